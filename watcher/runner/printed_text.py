"""Read what a command printed: a bounded text of it, and the JSON events in it.

Everything is read from a file by position, in pieces, so that 10 GB of output cost no more memory than 10 MB. Bytes
that are no UTF-8, NUL characters and lone surrogates become U+FFFD: a result must be storable anywhere. Nothing here
raises for what it reads; what the events mean is for `output_events`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

from watcher.runner.providers.output_events import Event

#: Of a larger machine-readable output only the beginning and the end are read: the final event stands at the end.
READ_AT_MOST_BYTES = 16 << 20
_HEAD_BYTES = 1 << 20
#: A longer line (a tool that returned a film) is skipped, not parsed.
MAX_LINE_BYTES = 8 << 20
#: Larger reads make the interpreter map and unmap memory for each of them.
_CHUNK_BYTES = 1 << 16

_SURROGATE = re.compile("[\ud800-\udfff\0]")


def bounded_text(fd: int, size: int, at_most_bytes: int) -> tuple[str, bool]:
    """The text of a file of `size` bytes, and whether something was left out of its middle."""
    if size <= at_most_bytes:
        return _decode(_read(fd, 0, size)), False
    half = at_most_bytes // 2
    return _joined(_read(fd, 0, half), _read(fd, size - (at_most_bytes - half), size), size - at_most_bytes), True


def shortened(text: str, at_most_bytes: int) -> tuple[str, bool]:
    """The same for a text that is there already."""
    raw = text.encode("utf-8", "replace") if _SURROGATE.search(text) is None else harmless(text).encode()
    if len(raw) <= at_most_bytes:
        return raw.decode(), False
    half = at_most_bytes // 2
    return _joined(raw[:half], raw[len(raw) - (at_most_bytes - half) :], len(raw) - at_most_bytes), True


def harmless(text: str) -> str:
    """A text that can be written as UTF-8 and stored in any database."""
    return _SURROGATE.sub("\ufffd", text)


def events(fd: int, size: int, output: str, mentions: tuple[bytes, ...] = ()) -> Iterator[Event]:
    """The JSON objects that a command printed: one a line for `stream-json`, one or a list of them for `json`.

    Of a stream only the lines that mention one of `mentions` are parsed, when there are any: most are tool output.
    """
    if output == "json":
        yield from _objects_in(_document(_read(fd, max(0, size - READ_AT_MOST_BYTES), size)))
        return
    for line in _lines(fd, size):
        if line[:1] in (b"{", b"[") and (not mentions or any(word in line for word in mentions)):
            yield from _objects_in(_parse(line))


def _objects_in(value: object) -> Iterator[Event]:
    """`claude --output-format json --verbose` prints a list of all events, as qwen does without --verbose."""
    for member in value if isinstance(value, list) else [value]:
        if isinstance(member, dict):
            yield member


def _document(raw: bytes) -> object:
    """The JSON document that a command printed, maybe after lines of other things."""
    starts = [m.start() for m in re.finditer(rb"^[ \t]*[{\[]", raw, re.M)]
    for start in starts[:20]:
        value = _parse(raw[start:])
        if value is not None:
            return value
    return None


def _parse(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _lines(fd: int, size: int) -> Iterator[bytes]:
    """The lines of a file without its over-long ones; of a very large file, those near its two ends."""
    if size <= READ_AT_MOST_BYTES:
        yield from _lines_between(fd, 0, size)
    else:
        yield from _lines_between(fd, 0, _HEAD_BYTES)
        yield from _lines_between(fd, size - (READ_AT_MOST_BYTES - _HEAD_BYTES), size)


def _lines_between(fd: int, start: int, end: int) -> Iterator[bytes]:
    """The line that `start` falls into is left out, unless it is the file's first."""
    held: list[bytes] = []
    held_bytes = 0
    skips = start > 0
    while start < end:
        chunk = os.pread(fd, min(_CHUNK_BYTES, end - start), start)
        if not chunk:
            break
        start += len(chunk)
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            if not skips:
                yield b"".join((*held, piece)) if held else piece
            held, held_bytes, skips = [], 0, False
        held.append(rest)
        held_bytes += len(rest)
        if held_bytes > MAX_LINE_BYTES:
            held, held_bytes, skips = [], 0, True
    if held and not skips:
        yield b"".join(held)


def _read(fd: int, start: int, end: int) -> bytes:
    parts = []
    while start < end:
        part = os.pread(fd, min(_CHUNK_BYTES, end - start), start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _joined(head: bytes, tail: bytes, left_out: int) -> str:
    """Head and tail, neither beginning nor ending inside a character."""
    size = len(head)
    for cut in range(1, min(4, len(head) + 1)):  # a character has at most 4 bytes, the first one tells how many
        byte = head[-cut]
        if byte >= 0xC0:
            if cut < (4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2):
                head = head[:-cut]
            break
        if byte < 0x80:
            break
    left_out += size - len(head)
    skip = 0
    while skip < min(3, len(tail)) and 0x80 <= tail[skip] < 0xC0:
        skip += 1
    left_out += skip
    return f"{_decode(head)}\n[... {left_out} bytes left out ...]\n{_decode(tail[skip:])}"


def _decode(raw: bytes) -> str:
    text = raw.decode("utf-8", "replace")
    return text.replace("\0", "\ufffd") if "\0" in text else text
