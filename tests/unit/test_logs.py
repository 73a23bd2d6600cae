"""What ends up on the log stream, and that nothing about it can hurt the worker."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from watcher.clock import parse_rfc3339
from watcher.errors import SettingError
from watcher.telemetry import events
from watcher.telemetry.logs import EventLog, configure_logging, lines_dropped

EVENT_KINDS = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, events.Event) and kind is not events.Event
]
SETTLED = events.TaskSettled("brief-1", "completed", None, "claude", 1, 0, 2.5, False)


@pytest.fixture(autouse=True)
def restore_the_logger() -> Iterator[None]:
    logger = logging.getLogger("watcher")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before[0], before[1], before[2]
    logger.setLevel(before[1])


def example(kind: type[events.Event], text: str = "word") -> events.Event:
    """An event of this kind with a value of the right type in each field."""
    samples: dict[str, Any] = {"str": text, "str | None": text, "int": 3, "int | None": 3, "float": 1.5,
                               "float | None": 1.5, "bool": True}  # fmt: skip
    return kind(**{field.name: samples[str(field.type)] for field in dataclasses.fields(kind)})


def logged(*happened: events.Event, level: str = "DEBUG", format: str = "json") -> list[str]:
    stream = io.StringIO()
    log = EventLog(configure_logging(level, format, "marie", stream))
    for event in happened:
        log(event)
    return stream.getvalue().splitlines()


def logged_json(*happened: events.Event, level: str = "DEBUG") -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged(*happened, level=level)]


def pipe() -> tuple[int, TextIO]:
    reader, writer = os.pipe()
    return reader, open(writer, "w")


def test_a_json_line_begins_with_the_common_fields_and_has_the_events_fields_flat() -> None:
    (line,) = logged_json(SETTLED)
    assert list(line)[:7] == ["timestamp", "level", "logger", "worker", "message", "event", "task_id"]
    assert line["level"] == "INFO"
    assert line["logger"] == "watcher"
    assert line["worker"] == "marie"
    assert line["event"] == "task.settled"
    assert line["message"] == "brief-1 completed on attempt 1 after 2.500 s"
    assert {name: line[name] for name in dataclasses.asdict(SETTLED)} == dataclasses.asdict(SETTLED)


def test_the_timestamp_is_utc_with_microseconds_and_z() -> None:
    stream = io.StringIO()
    logger = configure_logging("INFO", "json", "marie", stream)
    for created in (1_795_219_200.25, 1_795_219_200.75, 1_795_219_201.000001):
        record = logger.makeRecord("watcher", logging.INFO, "", 0, "x", (), None)
        record.created = created
        logger.handle(record)
    times = [json.loads(line)["timestamp"] for line in stream.getvalue().splitlines()]
    assert times[:2] == ["2026-11-21T00:00:00.250000Z", "2026-11-21T00:00:00.750000Z"]
    assert parse_rfc3339(times[2]) == pytest.approx(1_795_219_201.000001, abs=2e-6)


@pytest.mark.parametrize("kind", EVENT_KINDS, ids=lambda kind: kind.__name__)
def test_every_event_has_a_sentence_and_all_its_fields_in_the_log(kind: type[events.Event]) -> None:
    event = example(kind)
    (line,) = logged_json(event)
    assert line["event"] == kind.name
    assert line["level"] == kind.level.upper()
    assert line["message"] not in ("", kind.name)
    assert "{" not in line["message"]
    assert {name: line[name] for name in dataclasses.asdict(event)} == dataclasses.asdict(event)


def test_reason_and_detail_are_in_the_sentence() -> None:
    (line,) = logged_json(events.ProviderHeld("claude", "usage_limit", "try again at 5 pm", "2026-11-21T00:00:00Z"))
    assert line["message"] == "claude is held: usage_limit: try again at 5 pm"


def test_an_event_that_concerns_no_task_leaves_no_hole_in_its_sentence() -> None:
    happened = [events.LeftoversKilled("", 2), events.CommandDone("drain", "", ""), events.CommandDone("hold", "x", "")]
    told = [line["message"] for line in logged_json(*happened)]
    assert told == ["left processes behind, ended: 2", "command drain obeyed", "command hold x obeyed"]


def test_a_hint_that_belongs_to_no_task_makes_a_whole_sentence() -> None:
    (line,) = logged_json(events.HintFailed("", "heartbeat: Read-only file system"))
    assert line["message"] == "a receipt, heartbeat or notice could not be written: heartbeat: Read-only file system"


def test_an_event_of_a_new_kind_is_logged_under_its_name() -> None:
    @dataclasses.dataclass(slots=True)
    class TaskAdmired(events.Event):
        name = "task.admired"
        admirer: str

    (line,) = logged_json(TaskAdmired("anga"))
    assert (line["message"], line["event"], line["admirer"]) == ("task.admired", "task.admired", "anga")


def test_an_event_whose_field_would_hide_one_of_logging_is_refused_while_it_is_developed() -> None:
    @dataclasses.dataclass(slots=True)
    class Clashing(events.Event):
        process: int

    with pytest.raises(TypeError, match="process"):
        logged(Clashing(1))


def test_a_number_that_is_missing_costs_the_sentence_but_not_the_line() -> None:
    event = dataclasses.replace(SETTLED, duration_seconds=None)
    (line,) = logged_json(event)
    assert line["task_id"] == "brief-1"


def test_long_texts_are_cut_and_short_ones_are_not() -> None:
    just_fits, too_long = logged_json(
        events.TaskRefused("t", "invalid_json", "x" * 500), events.TaskRefused("t", "invalid_json", "x" * 501)
    )
    assert just_fits["detail"] == "x" * 500
    assert too_long["detail"] == "x" * 499 + "…"
    assert len(too_long["message"]) < 600


def test_what_is_below_the_level_is_not_logged_and_not_even_built() -> None:
    class Touchy(events.TaskClaimed):
        @property
        def task_id(self) -> str:  # type: ignore[override]
            raise AssertionError("the event was looked at")

        @task_id.setter
        def task_id(self, value: str) -> None: ...

    claimed = Touchy("t", "claude", 1, 0.1)
    assert logged(claimed, SETTLED, level="INFO")[0].count("task.settled") == 1
    with pytest.raises(AssertionError):
        logged(claimed, level="DEBUG")


def test_ordinary_log_calls_with_arguments_and_an_exception_work_in_both_formats() -> None:
    for format in ("json", "text"):
        stream = io.StringIO()
        configure_logging("INFO", format, "marie", stream)
        try:
            raise ValueError("odd")
        except ValueError:
            logging.getLogger("watcher.telemetry.metrics_endpoint").warning("tried %d times", 3, exc_info=True)
        text = stream.getvalue()
        assert "tried 3 times" in text
        assert "ValueError: odd" in text
        assert "Traceback" in text


def test_numbers_that_json_cannot_say_still_give_a_json_line() -> None:
    (line,) = logged(dataclasses.replace(SETTLED, cost_usd=float("nan")))
    fields = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (fields["cost_usd"], fields["reason"], fields["attempts"]) == ("nan", None, 1)


def test_a_text_line_has_time_level_event_and_the_fields_that_have_a_value() -> None:
    (line,) = logged(SETTLED, format="text")
    time, level, worker, event, *pairs = line.split()
    assert time.endswith("Z")
    assert (level, worker, event) == ("INFO", "marie", "task.settled")
    assert pairs[:2] == ["task_id=brief-1", "status=completed"]
    assert "duration_seconds=2.500" in pairs
    assert "reason" not in line


def test_text_lines_carry_no_terminal_codes_or_line_breaks_of_others() -> None:
    nasty = 'a\x1b[2J\nb "c" \x7f \u202e é'
    (line,) = logged(events.TaskRefused("t", "invalid_json", nasty), format="text")
    assert line.isprintable()
    assert '\\x1b[2J\\nb \\"c\\" \\x7f' in line


def test_printable_text_of_any_language_stays_readable() -> None:
    (line,) = logged(events.TaskRefused("t", "invalid_json", "déjà vu"), format="text")
    assert 'detail="déjà vu"' in line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_a_terminal_without_no_color_is_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    def coloured(stream: io.StringIO, format: str = "text") -> bool:
        EventLog(configure_logging("INFO", format, "marie", stream))(SETTLED)
        return "\x1b[" in stream.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert coloured(Terminal())
    assert not coloured(Terminal(), "json")
    assert not coloured(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured(Terminal())


def test_logs_go_to_stderr_unless_told_otherwise(capfd: pytest.CaptureFixture[str]) -> None:
    EventLog(configure_logging("INFO", "json", "marie"))(SETTLED)
    out, err = capfd.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == "task.settled"


def test_only_the_logger_watcher_is_touched() -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    logger = configure_logging("DEBUG", "json", "marie", io.StringIO())
    assert logger.name == "watcher"
    assert not logger.propagate
    assert (root.handlers[:], root.level) == before


def test_configuring_again_replaces_the_first_and_keeps_foreign_handlers() -> None:
    first, second, foreign = io.StringIO(), io.StringIO(), logging.NullHandler()
    configure_logging("INFO", "json", "marie", first).addHandler(foreign)
    log = EventLog(configure_logging("INFO", "text", "marie", second))
    log(SETTLED)
    assert first.getvalue() == ""
    assert second.getvalue().count("task.settled") == 1
    assert foreign in logging.getLogger("watcher").handlers


def test_an_unknown_level_or_format_is_refused_with_the_setting_and_what_is_allowed() -> None:
    with pytest.raises(SettingError, match=r"LOG_LEVEL=loud.*DEBUG"):
        configure_logging("loud", "json", "marie", io.StringIO())
    with pytest.raises(SettingError, match=r"LOG_FORMAT=xml.*json"):
        configure_logging("INFO", "xml", "marie", io.StringIO())


def test_a_closed_stream_costs_lines_that_are_counted_and_nothing_else() -> None:
    stream = io.StringIO()
    log = EventLog(configure_logging("INFO", "json", "marie", stream))
    stream.close()
    log(SETTLED)
    log(SETTLED)
    assert lines_dropped() == 2


def test_a_reader_that_has_gone_costs_lines_that_are_counted_and_nothing_else() -> None:
    reader, stream = pipe()
    with stream:
        log = EventLog(configure_logging("INFO", "json", "marie", stream))
        os.close(reader)
        log(SETTLED)
        assert lines_dropped() == 1


def test_a_process_whose_stderr_reader_has_gone_ends_with_its_own_status() -> None:
    program = (
        "from watcher.telemetry import events; from watcher.telemetry.logs import *\n"
        "log = EventLog(configure_logging('INFO', 'json', 'marie')); input()\n"
        "log(events.ProviderResumed('claude')); print(lines_dropped())"
    )
    reader, writer = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writer
    )
    os.close(writer)
    os.close(reader)
    assert child.communicate(b"\n", timeout=60)[0] == b"1\n"
    assert child.returncode == 0


def test_a_pipe_nobody_reads_does_not_stop_the_worker_and_the_loss_is_told_later() -> None:
    reader, stream = pipe()
    with stream:
        log = EventLog(configure_logging("INFO", "json", "marie", stream))
        for _ in range(500):  # far more than the pipe holds; without the bound this test hangs here
            log(SETTLED)
        lost = lines_dropped()
        assert 100 < lost < 500
        early = os.read(reader, 1 << 20)
        log(SETTLED)
        late = [json.loads(line) for line in os.read(reader, 1 << 20).splitlines()]
        assert len(early.splitlines()) == 500 - lost
        assert all(json.loads(line) for line in early.splitlines())
        assert [line["event"] for line in late] == ["task.settled", "log.lines_dropped"]
        assert late[1]["lines"] == lost
        log(SETTLED)
        assert os.read(reader, 1 << 20).count(b"\n") == 1  # what was told once is not told again
    os.close(reader)


def test_a_line_torn_by_a_full_pipe_does_not_spoil_the_next_one() -> None:
    reader, stream = pipe()
    with stream:
        logger = configure_logging("INFO", "json", "marie", stream)
        logger.info("x" * 100_000)  # more than the pipe holds
        assert lines_dropped() == 1
        torn = os.read(reader, 1 << 20)
        logger.info("whole")
        rows = os.read(reader, 1 << 20).splitlines()
    os.close(reader)
    assert not torn.endswith(b"\n")
    assert rows[0] == b""
    assert json.loads(rows[1])["message"] == "whole"


def test_a_long_line_arrives_whole_when_somebody_reads() -> None:
    reader, stream = pipe()
    with stream:
        logger = configure_logging("INFO", "json", "marie", stream)
        with subprocess.Popen(["cat"], stdin=reader, stdout=subprocess.PIPE) as cat:  # noqa: S607
            os.close(reader)
            logger.info("x" * 50_000)
            dropped = lines_dropped()
            stream.close()
            out, _ = cat.communicate(timeout=60)
    assert dropped == 0
    assert json.loads(out)["message"] == "x" * 50_000
