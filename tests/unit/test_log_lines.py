"""Every event as its log line: what monitors and greps of people rest on does not change by a letter.

`tests/data/log_lines.txt` has for each event its line as JSON and as text, once with every field and once with those
that may be missing left out. `python -m tests.unit.test_log_lines` writes it anew, for events that were added.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from watcher.telemetry import events
from watcher.telemetry.logs import EventLog, JsonLines, TextLines

GOLDEN = Path(__file__).parents[1] / "data" / "log_lines.txt"
_SAMPLES: dict[str, Any] = {"int": 7, "float": 1.25, "bool": True}


def every_event() -> list[type[events.Event]]:
    found = {kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)}
    return sorted(found - {events.Event}, key=lambda kind: (kind.name, kind.__name__))


def sample(kind: type[events.Event], with_all: bool) -> events.Event:
    """Each text is its field's name, or empty; what may be None is None without `with_all`."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        of_type, _, optional = str(field.type).partition(" | ")
        value = _SAMPLES.get(of_type, f"some {field.name}" if with_all else "")
        values[field.name] = None if optional and not with_all else value
    return kind(**values)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.created = 0.0
        self.lines += [formatter.format(record) for formatter in (JsonLines("marie"), TextLines("marie", False))]


def lines_of(kind: type[events.Event]) -> list[str]:
    logger = logging.Logger("watcher", logging.DEBUG)
    handler = _Lines()
    logger.addHandler(handler)
    log = EventLog(logger)
    log(sample(kind, with_all=True))
    log(sample(kind, with_all=False))
    return handler.lines


def _golden() -> dict[str, list[str]]:
    blocks = re.split(r"^# (\w+)\n", GOLDEN.read_text(), flags=re.M)[1:]
    return {name: lines.splitlines() for name, lines in zip(blocks[::2], blocks[1::2], strict=True)}


def _written() -> Iterator[str]:
    for kind in every_event():
        yield "\n".join([f"# {kind.__name__}", *lines_of(kind), ""])


@pytest.mark.parametrize("kind", every_event(), ids=lambda kind: kind.__name__)
def test_log_lines_of_event_are_as_they_were(kind: type[events.Event]) -> None:
    assert lines_of(kind) == _golden()[kind.__name__]


def test_no_event_is_missing() -> None:
    assert [kind.__name__ for kind in every_event()] == list(_golden())


if __name__ == "__main__":
    GOLDEN.write_text("".join(_written()))
