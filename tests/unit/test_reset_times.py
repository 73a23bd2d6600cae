"""When a usage limit ends, from the words of a CLI."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo

import pytest

from watcher.runner.providers.reset_times import told_time

NEEDS_ZONES = pytest.mark.skipif(
    not zoneinfo.available_timezones(), reason="this machine has no time zone data: install tzdata"
)
NOW = dt.datetime(2026, 12, 30, 22, 26, 40, tzinfo=dt.UTC).timestamp()


def at(text: str, now: float = NOW) -> float | None:
    words = re.search(r"resets (?P<at>.*)", f"resets {text}")
    assert words is not None
    return told_time(words, now)


def moment(*fields: int) -> float:
    return dt.datetime(*fields, tzinfo=dt.UTC).timestamp()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("11:03pm (UTC)", moment(2026, 12, 30, 23, 3)),
        ("12:15am (UTC)", moment(2026, 12, 31, 0, 15)),
        ("12:15pm (UTC)", moment(2026, 12, 30, 12, 15)),
        ("9am (UTC)", moment(2026, 12, 31, 9)),
        ("10:26pm (UTC)", moment(2026, 12, 30, 22, 26)),
        ("9pm (UTC)", moment(2026, 12, 30, 21)),
        ("Jan 2, 9:00am (UTC)", moment(2027, 1, 2, 9)),
        ("Jan 2nd, 2027 9:00 AM (UTC)", moment(2027, 1, 2, 9)),
        ("Dec 31 at 5pm (UTC).", moment(2026, 12, 31, 17)),
        pytest.param("11:30pm (Europe/Paris)", moment(2026, 12, 30, 22, 30), marks=NEEDS_ZONES),
    ],
)
def test_clock_time_is_its_nearest_occurrence(text: str, expected: float) -> None:
    assert at(text) == expected


@pytest.mark.parametrize(
    "text", ["soon", "25:00pm (UTC)", "9:75am (UTC)", "Foo 3, 9am (UTC)", "Feb 31, 9am (UTC)", "9am (No/Where)"]
)
def test_time_that_cannot_be_understood_is_none(text: str) -> None:
    assert at(text) is None


def test_time_without_a_zone_is_local() -> None:
    local = dt.datetime.fromtimestamp(NOW) + dt.timedelta(hours=1)
    assert at(local.strftime("%I:%M %p")) == local.replace(second=0, microsecond=0).timestamp()


@pytest.mark.parametrize(
    ("text", "hour"), [("10:25 PM (UTC)", 22.25), ("12:10 AM (UTC)", 0.1), ("11:59 PM (UTC)", 23.59)]
)
def test_clock_time_of_a_cli_that_writes_other_dates_is_todays(text: str, hour: float) -> None:
    words = re.search(r"at (?P<today>.*)", f"Try again at {text}")
    assert words is not None
    assert told_time(words, NOW) == moment(2026, 12, 30, int(hour), round(hour % 1 * 100))
    dated = re.search(r"at (?P<today>.*)", "Try again at Jan 2nd, 2027 9:00 AM (UTC)")
    assert dated is not None
    assert told_time(dated, NOW) == moment(2027, 1, 2, 9)
