"""Read what a command printed: a bounded text of it, and what its machine-readable output says.

Everything is read from a file by position, in pieces, so that 10 GB of output cost no more memory than 10 MB. Bytes
that are no UTF-8, NUL characters and lone surrogates become U+FFFD: a result must be storable anywhere. A reader of
events never raises for what it reads; what it cannot understand it leaves out. It decides nothing: `providers.judge`
does, from the Reading.

The shapes were recorded from claude 2.1.330 and gemini 0.61.0; cursor-agent's is documented at
https://cursor.com/docs/cli/reference/output-format.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from watcher.formats.result import Usage

#: Of a larger machine-readable output only the beginning and the end are read: the final event stands at the end.
READ_AT_MOST_BYTES = 16 << 20
_HEAD_BYTES = 1 << 20
#: A longer line (a tool that returned a film) is skipped, not parsed.
MAX_LINE_BYTES = 8 << 20
#: Larger reads make the interpreter map and unmap memory for each of them.
_CHUNK_BYTES = 1 << 16

_SURROGATE = re.compile("[\ud800-\udfff\0]")

Event = dict[str, Any]


@dataclass(slots=True)
class Reading:
    """What machine-readable output says. `signs` are facts as `kind -> value` for the rules of a provider:

    `error` (claude's word for an API error), `status` (HTTP), `terminal` (why a turn ended), `subtype` (of the final
    event), `limit` (`rejected` when a usage limit is reached; `resets_at` is then wall seconds, if told).
    """

    answer: str | None = None
    is_finished: bool = False
    is_error: bool = False
    message: str = ""
    signs: dict[str, str] = field(default_factory=dict)
    resets_at: float | None = None
    usage: Usage | None = None


Reader = Callable[[Iterator[Event]], Reading]


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


def read_claude(found: Iterator[Event]) -> Reading:
    """Events of claude, and of CLIs made after it (cursor-agent, qwen)."""
    out = Reading()
    for event in found:
        kind = event.get("type")
        if kind == "result":
            _read_claude_result(event, out)
        elif kind == "rate_limit_event":
            _read_claude_limit(event.get("rate_limit_info"), out)
        elif kind == "assistant" and isinstance(event.get("error"), str):
            out.signs["error"] = event["error"]
            out.message = _text_of(event.get("message")) or out.message
    return out


def read_gemini(found: Iterator[Event]) -> Reading:
    """Events of gemini. The answer is what it said after its last tool call, as claude's is."""
    out = Reading()
    parts: list[str] = []
    before: list[str] = []
    for event in found:
        kind = event.get("type")
        if kind == "message" and event.get("role") == "assistant" and isinstance(event.get("content"), str):
            parts.append(event["content"])
        elif kind == "tool_use" and parts:
            before, parts = parts, []
        elif kind == "error" and isinstance(event.get("message"), str):
            out.message = event["message"]
        elif kind == "result":
            out.is_finished = True
            out.is_error = event.get("status") != "success"
            out.message = _error_message(event) or out.message
            out.usage = _gemini_usage(event.get("stats"))
        elif "response" in event or ("error" in event and kind is None):  # the one object of `-o json`
            out.is_finished = True
            out.is_error = event.get("error") is not None
            out.message = _error_message(event)
            parts = [event["response"]] if isinstance(event.get("response"), str) else []
            out.usage = _gemini_usage(event.get("stats"))
    if parts or before or out.is_finished:
        out.answer = "".join(parts or before)
    return out


def _read_claude_result(event: Event, out: Reading) -> None:
    """Exit 0 and subtype `success` prove nothing: a run that was not logged in says both, and `is_error`."""
    out.is_finished = True
    subtype = event.get("subtype")
    is_error = event.get("is_error")
    out.is_error = is_error if isinstance(is_error, bool) else subtype != "success"
    for sign, name in (("subtype", "subtype"), ("status", "api_error_status"), ("terminal", "terminal_reason")):
        value = event.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool):
            out.signs[sign] = str(value)
    answer = event.get("result")
    out.answer = answer if isinstance(answer, str) else None
    if out.is_error:
        errors = event.get("errors")
        said = [e for e in errors if isinstance(e, str)] if isinstance(errors, list) else []
        out.message = out.answer or "; ".join(said) or out.message
    out.usage = _claude_usage(event)


def _read_claude_limit(info: object, out: Reading) -> None:
    """See `rate_limit_info` in the Agent SDK's types: `resetsAt` is seconds since the epoch."""
    if not isinstance(info, dict):
        return
    if info.get("status") == "rejected":
        out.signs["limit"] = "rejected"
        out.resets_at = _number(info.get("resetsAt"))
    else:
        out.signs.pop("limit", None)
        out.resets_at = None


def _claude_usage(event: Event) -> Usage | None:
    """Anthropic counts input that came from or went into the cache apart from `input_tokens`; a person means all."""
    usage = event.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    inputs = [
        _count(usage.get(name))
        for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "inputTokens")
    ]
    known = [count for count in inputs if count is not None]
    outputs = _count(usage.get("output_tokens"))
    outputs = _count(usage.get("outputTokens")) if outputs is None else outputs
    return _usage(sum(known) if known else None, outputs, _number(event.get("total_cost_usd")))


def _gemini_usage(stats: object) -> Usage | None:
    if not isinstance(stats, dict):
        return None
    if "input_tokens" in stats or "output_tokens" in stats:
        return _usage(_count(stats.get("input_tokens")), _count(stats.get("output_tokens")), None)
    models = stats.get("models")
    counts = [m.get("tokens") for m in models.values() if isinstance(m, dict)] if isinstance(models, dict) else []
    tokens = [t for t in counts if isinstance(t, dict)]
    if not tokens:
        return None
    prompt = sum(_count(t.get("prompt")) or 0 for t in tokens)
    return _usage(prompt, sum(_count(t.get("candidates")) or 0 for t in tokens), None)


def _usage(input_tokens: int | None, output_tokens: int | None, cost_usd: float | None) -> Usage | None:
    if input_tokens is None and output_tokens is None and cost_usd is None:
        return None
    return Usage(input_tokens, output_tokens, cost_usd)


def _number(value: object) -> float | None:
    """A finite number that is not negative, or None: what a command prints may be anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _count(value: object) -> int | None:
    number = _number(value)
    return None if number is None or number > 1e15 else int(number)


def _error_message(event: Event) -> str:
    error = event.get("error")
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""


def _text_of(message: object) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return ""
    texts = [block.get("text") for block in content if isinstance(block, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


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
