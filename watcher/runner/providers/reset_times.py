"""Find when a usage limit ends, in the words in which a CLI tells it.

Only epoch seconds are exact. A clock time stands in the zone behind it, else in the local one: commands see the
worker's TZ. Without a date it is today's where the CLI writes one for any other day (codex), else its nearest
occurrence: a limit that ended a minute ago is over, and is probed; as tomorrow's it would hold the account for a day.
What cannot be understood is None; nothing raises.
"""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo

_UNITS = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
#: `12:15am (UTC)`, `Nov 25, 5:13am (Europe/Paris)`, `Nov 25th, 2026 5:13 AM`, `3pm`.
_CLOCK = re.compile(
    r"(?:(?P<month>[A-Za-z]{3})[a-z]* (?P<day>\d{1,2})(?:st|nd|rd|th)?,?(?: (?P<year>\d{4}),?)?(?: at)? )?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))? ?(?P<half>[AaPp])\.?[Mm]\b(?: \((?P<zone>[\w/+-]+)\))?"
)


def told_time(words: re.Match[str], now: float) -> float | None:
    """Wall seconds, from one of the groups `epoch` (seconds or milliseconds), `after` (`8h44m7s`), `at`, and `today`,
    which has a date unless it is today. A time in the past is over."""
    groups = words.groupdict()
    if groups.get("epoch"):
        told = float(groups["epoch"])
        return told / 1000 if told > 1e11 else told
    if groups.get("after"):
        parts = re.findall(r"(\d+(?:\.\d+)?) ?([dhms])", groups["after"])
        return now + sum(float(number) * _UNITS[unit] for number, unit in parts)
    text = groups.get("today") or groups.get("at")
    return _clock_time(text, now, is_today=groups.get("at") is None) if text else None


def _clock_time(text: str, now: float, is_today: bool) -> float | None:
    found = _CLOCK.match(text.strip())
    if found is None:
        return None
    try:
        zone = _zone(found["zone"])
        today = dt.datetime.fromtimestamp(now, zone)
        hour = _hour(int(found["hour"]), found["half"])
        at = today.replace(hour=hour, minute=int(found["minute"] or 0), second=0, microsecond=0, fold=0)
        if found["month"] is None:
            return at.timestamp() if is_today else _nearest(at, now)
        month = _MONTHS.index(found["month"].lower()) + 1
        at = at.replace(year=int(found["year"] or today.year), month=month, day=int(found["day"]))
        if found["year"] is None and at.timestamp() < now - _UNITS["d"]:
            at = at.replace(year=at.year + 1)
    except (ValueError, OverflowError, OSError, zoneinfo.ZoneInfoNotFoundError):
        return None
    return at.timestamp()


def _hour(hour: int, half: str) -> int:
    if not 1 <= hour <= 12:
        raise ValueError(hour)
    return hour % 12 + (12 if half in "Pp" else 0)


def _nearest(at: dt.datetime, now: float) -> float:
    return min(((at + dt.timedelta(days=days)).timestamp() for days in (-1, 0, 1)), key=lambda one: abs(one - now))


def _zone(name: str | None) -> dt.tzinfo | None:
    """None is the local zone, whose offset may differ between two dates; a name needs the system's zone data."""
    if name is None:
        return None
    return dt.UTC if name.upper() in ("UTC", "GMT", "Z") else zoneinfo.ZoneInfo(name)
