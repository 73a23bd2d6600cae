"""Pass on what supervised processes print, line by line, to our own log.

A line of JSON goes on as it is, because it carries its worker. In a JSON log any other line (a traceback, a word on
stderr before the log was set up) becomes a record of ours; in a text log every line gets its label: `[marie] ...`.
Lines are bounded: a longer one is passed on in pieces. Nothing here waits for a slow reader longer than a line of our
own log does; what cannot be written is dropped and counted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from watcher.telemetry.logs import LOGGER_NAME, LineHandler, printable

#: Far above any line of our own logs; only a program that prints without line ends gets there.
MAX_LINE_BYTES = 64 << 10

Say = Callable[[str, bytes], None]


class Lines:
    """Cuts a stream of bytes into lines without their ends; the last one may wait for more."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete with these bytes, and pieces of one that is longer than the limit."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        out = [piece for line in whole for piece in self._pieces(line)]
        while len(self._rest) >= self._limit:
            out.append(self._rest[: self._limit])
            self._rest = self._rest[self._limit :]
        return out

    def end(self) -> list[bytes]:
        """What was left without a line end."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []

    def _pieces(self, line: bytes) -> list[bytes]:
        line = line.removesuffix(b"\r")
        return [line[at : at + self._limit] for at in range(0, len(line), self._limit)] or [line]


def make_say(as_json: bool) -> Say:
    """What passes on one line of a labelled process, through the logger that `configure_logging` has set up."""
    logger = logging.getLogger(LOGGER_NAME)
    handler = next(handler for handler in logger.handlers if isinstance(handler, LineHandler))

    def say(label: str, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace")
        if not text.strip():
            return
        if not as_json:
            handler.pass_on(f"[{label}] {printable(text)}")
        elif text.startswith("{") and text.endswith("}"):
            handler.pass_on(text)
        else:
            logger.warning("%s", text, extra={"event": "child.said", "child": label})

    return say
