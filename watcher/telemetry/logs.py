"""Write the log on stderr: one line an event, as JSON for machines or as text for a terminal.

Only the logger "watcher" is set up; the root logger and other libraries are left alone. Logging never raises
into the worker and never stops it: a line that cannot be written, because stderr is closed, its disk is full
or nobody reads its pipe, is dropped and counted. The count is `lines_dropped()`, the metric
`watcher_log_lines_dropped_total`, and a line `log.lines_dropped` once writing works again.

Lines are whole: one write each up to 4,096 bytes, so that several workers may share a pipe or a file. Prompts
and outputs are never logged, since events do not carry them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, TextIO

from pythonjsonlogger.json import JsonEncoder, JsonFormatter

from watcher.errors import SettingError
from watcher.telemetry import events

LOGGER_NAME = "watcher"
MAX_TEXT_CHARS = 500

#: How long a line may wait for a reader that does not keep up: a `less` nobody scrolls must stop no worker.
_PATIENCE_MS = 100
#: POSIX: a pipe takes up to PIPE_BUF bytes whole, and Linux polls it as writable when there is room for them.
_PIECE_BYTES = 4096

_RECORD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def configure_logging(level: str, format: str, worker: str, stream: TextIO | None = None) -> logging.Logger:
    """Send the logger "watcher" and those below it to `stream` (stderr when None); returns that logger.

    `level` is a name of the logging module, `format` is `json` or `text`. Text is coloured when the stream is
    a terminal and NO_COLOR is not set (https://no-color.org). A second call replaces what the first set up.
    Raises SettingError for another level or format.
    """
    if level.upper() not in _LEVELS:
        raise SettingError(f"LOG_LEVEL={level} is unknown: use one of {', '.join(_LEVELS)}")
    handler = LineHandler(sys.stderr if stream is None else stream)
    if format == "json":
        handler.setFormatter(JsonLines(worker))
    elif format == "text":
        handler.setFormatter(TextLines(worker, coloured=_wants_colour(handler.stream)))
    else:
        raise SettingError(f"LOG_FORMAT={format} is unknown: use json, or text for a terminal")
    logger = logging.getLogger(LOGGER_NAME)
    for old in [h for h in logger.handlers if isinstance(h, LineHandler)]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    return logger


def lines_dropped() -> int:
    """How many lines of this process could not be written. Any thread may ask."""
    handlers = logging.getLogger(LOGGER_NAME).handlers
    return sum(handler.lines_dropped for handler in handlers if isinstance(handler, LineHandler))


def _wants_colour(stream: Any) -> bool:
    try:
        # A convention about terminals, not a setting of this software: it is not in the configuration.
        return bool(stream.isatty()) and not os.environ.get("NO_COLOR")
    except (AttributeError, ValueError):
        return False


# Events to records --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is known of an event's class before one comes."""

    level: int
    names: tuple[str, ...]
    values: Callable[[Any], tuple[Any, ...]]
    texts: tuple[str, ...]
    sentence: str


class EventLog:
    """Logs every event at its level. A listener: call it with the event.

    The record carries `event` (the dotted name), a sentence for people, and the event's fields as extras.
    Where the level is off nothing is built. A text of more than 500 characters is cut.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._plans: dict[type[events.Event], _Plan] = {}

    def __call__(self, event: events.Event) -> None:
        kind = type(event)
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._plans[kind] = _plan(kind)
        if not self._logger.isEnabledFor(plan.level):
            return
        extras = dict(zip(plan.names, plan.values(event), strict=True))
        for name in plan.texts:
            text = extras[name]
            if text is not None and len(text) > MAX_TEXT_CHARS:
                extras[name] = text[: MAX_TEXT_CHARS - 1] + "…"
        # Not logger.log(): finding the caller's line, which is always this one, costs more than the rest.
        record = logging.getLogRecordFactory()(
            self._logger.name, plan.level, "", 0, _sentence(plan, extras), None, None
        )
        attributes = record.__dict__
        attributes["event"] = kind.name
        attributes.update(extras)
        self._logger.handle(record)


def _plan(kind: type[events.Event]) -> _Plan:
    known = fields(kind)
    names = tuple(field.name for field in known)
    clash = _RECORD_ATTRIBUTES.intersection(names)
    if clash:
        raise TypeError(f"{kind.__name__}: {', '.join(clash)} would overwrite what logging keeps in its record")
    return _Plan(
        level=logging.getLevelNamesMapping()[kind.level.upper()],
        names=names,
        values=_reader(names),
        texts=tuple(field.name for field in known if "str" in str(field.type)),
        sentence=kind.sentence or kind.name,
    )


def _reader(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda event: tuple(getattr(event, name) for name in names)  # attrgetter gives no tuple for one name


def _sentence(plan: _Plan, extras: dict[str, Any]) -> str:
    pattern = plan.sentence if extras.get("task_id") != "" else plan.sentence.replace("{task_id} ", "")
    try:
        sentence = pattern.format_map(extras)
    except (KeyError, TypeError, ValueError):
        return plan.sentence  # an event that carries None for a number is still worth its line
    for name in ("reason", "detail"):
        text = extras.get(name)
        if text:
            sentence = f"{sentence}: {text}"
    return sentence


# Records to lines ---------------------------------------------------------------------------------


class _Stamp:
    """Writes times as RFC 3339 UTC; the part up to the second is made once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def write(self, wall_seconds: float) -> str:
        second = int(wall_seconds)
        if second != self._second:
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            self._second = second
        return f"{self._text}{int((wall_seconds - second) * 1_000_000):06d}Z"


class JsonLines(JsonFormatter):
    """One JSON object a line: timestamp, level, logger, worker, message, event, then the extras, flat."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker
        self._stamp = _Stamp()
        # The base class makes an encoder for each line, which costs more than to encode. NaN is no JSON.
        self._encode = JsonEncoder(allow_nan=False, separators=(",", ":")).encode

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        log_data["timestamp"] = self._stamp.write(record.created)
        log_data["level"] = record.levelname
        log_data["logger"] = record.name
        log_data["worker"] = self._worker
        log_data["message"] = record.message
        for name, value in record.__dict__.items():
            if name not in _RECORD_ATTRIBUTES:
                log_data[name] = value
        log_data.update(message_dict)

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        try:
            return self._encode(log_data)
        except ValueError:  # NaN or infinity
            return self._encode({n: str(v) if isinstance(v, float) else v for n, v in log_data.items()})


_COLOURS = {
    "DEBUG": "\x1b[2m",
    "INFO": "\x1b[32m",
    "WARNING": "\x1b[33m",
    "ERROR": "\x1b[31m",
    "CRITICAL": "\x1b[1;31m",
}
_PLAIN = "\x1b[0m"


class TextLines(logging.Formatter):
    """Time, level, worker, event or message, then key=value; what is not printable is escaped."""

    def __init__(self, worker: str, coloured: bool) -> None:
        super().__init__()
        self._worker = worker
        self._coloured = coloured
        self._stamp = _Stamp()

    def format(self, record: logging.LogRecord) -> str:
        extras = {n: v for n, v in record.__dict__.items() if n not in _RECORD_ATTRIBUTES and v is not None}
        what = extras.pop("event", None)
        level = f"{record.levelname:<7}"
        if self._coloured:
            level = f"{_COLOURS.get(record.levelname, '')}{level}{_PLAIN}"
        words = [
            self._stamp.write(record.created)[11:23] + "Z",
            level,
            self._worker,
            f"{what:<20}" if what else printable(record.getMessage()),
            # An event's fields say all; anything else that names itself an event brought its words as the message.
            *([printable(record.getMessage())] if what and not extras else ()),
            *(f"{name}={_word(value)}" for name, value in extras.items()),
        ]
        line = " ".join(words).rstrip()
        if record.exc_info:
            line += "".join("\n" + printable(row) for row in self.formatException(record.exc_info).split("\n"))
        return line


def printable(text: str) -> str:
    """A file's name or a program's words must not move the cursor, colour the screen or begin a line."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    if text and text.isprintable() and not any(mark in text for mark in ' "='):
        return text
    return '"' + printable(text).replace('"', '\\"') + '"'


# Lines to the stream ------------------------------------------------------------------------------


class LineHandler(logging.StreamHandler[Any]):
    """Writes each record as one line; never raises, and waits at most 0.1 s for a slow reader.

    It writes to the descriptor: a text stream keeps what it could not write and tries again at exit, and then
    Python ends with status 120. A stream without a descriptor (a StringIO) is written the usual way.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.lines_dropped = 0
        self._dropped_said = 0
        self._stalled = False
        self._torn = False
        self._fd = -1
        self._has_room = False
        self._room = select.poll()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if not self._write(self.format(record)):
                self.handleError(record)
            elif self.lines_dropped != self._dropped_said:
                self._say_dropped()
        except Exception:  # noqa: BLE001 - whatever is wrong with a line or a stream must not end the worker
            self.handleError(record)

    def pass_on(self, line: str) -> None:
        """Write a line that another process has made, as it is; one that cannot be written is counted like ours."""
        with self.lock or contextlib.nullcontext():
            try:
                if self._write(line):
                    return
            except (OSError, ValueError):
                pass  # counted below, like every line that nobody can read
            self.lines_dropped += 1

    def handleError(self, record: logging.LogRecord) -> None:
        """Count the line. `logging.raiseExceptions` would print to the stderr that has just failed."""
        self.lines_dropped += 1

    def _say_dropped(self) -> None:
        dropped = self.lines_dropped
        lost = dropped - self._dropped_said
        record = logging.LogRecord(
            LOGGER_NAME, logging.WARNING, "", 0, f"log lines that could not be written: {lost}", None, None
        )
        record.__dict__.update(event="log.lines_dropped", lines=lost)
        if self._write(self.format(record)):
            self._dropped_said = dropped

    def _write(self, line: str) -> bool:
        try:
            fd = self.stream.fileno()
        except (AttributeError, OSError):  # io.UnsupportedOperation is an OSError
            self.stream.write(line + "\n")
            self.stream.flush()
            return True
        return self._write_fd(fd, line.encode("utf-8", "backslashreplace") + b"\n")

    def _write_fd(self, fd: int, data: bytes) -> bool:
        """Write all of it, or return False when nobody makes room in time; then later lines do not wait."""
        if fd != self._fd:
            self._fd = fd
            self._room = select.poll()
            self._room.register(fd, select.POLLOUT)
            self._has_room = stat.S_ISREG(os.fstat(fd).st_mode)  # a regular file always takes what is written
        if self._torn:
            data = b"\n" + data
        while data:
            if not self._has_room and not self._room.poll(0 if self._stalled else _PATIENCE_MS):
                self._stalled = True
                return False
            count = os.write(fd, data[:_PIECE_BYTES])
            data = data[count:]
            self._torn = bool(data)
        self._stalled = False
        return True
