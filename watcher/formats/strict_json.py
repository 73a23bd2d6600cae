"""Read JSON that a stranger wrote, and write JSON that every reader accepts.

Strict means RFC 8259 and more: UTF-8 only (one byte order mark is forgiven), no NaN or Infinity, no number that
overflows, no duplicate keys, no NUL and no lone surrogate in any string, at most 64 levels. Each of these passes the
standard parser and breaks something later: a result nobody can parse, a write that raises, a spawn that raises, a
task that swaps its own id. What a stranger sends may also be bounded in its values: a megabyte of `[],[],` is a quarter
of a second of work and fifty times its size in memory.

Raises NotStrictJson with what is wrong and, where known, the line.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 64
#: Members of all lists and objects together in what a stranger sends; it takes some 50 ms to read so many.
MAX_VALUES = 100_000

# The closing quote may be missing, so that it never fails, and takes back nothing: one pass, whatever it reads.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


class NotStrictJson(ValueError):
    """The bytes are not the JSON this project accepts."""


def loads(raw: bytes, *, is_bounded: bool = False) -> Any:
    """Parse bytes strictly, and with `is_bounded` no more than MAX_VALUES. Raises NotStrictJson."""
    if is_bounded and has_too_many_values(raw):
        raise NotStrictJson(f"more than {MAX_VALUES} values; put large data into a file, and name that")
    if raw.startswith(b"\xef\xbb\xbf"):
        raw = raw[3:]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotStrictJson(f"not UTF-8: byte {error.start} cannot be read; save the file as UTF-8") from None
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise NotStrictJson(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise NotStrictJson(f"nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise NotStrictJson(str(error)) from None
    # NUL and surrogates can only come from an escape, depth only from brackets: most files need no walk.
    if b"\\u" in raw or raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _walk(value)
    return value


def dumps(value: Any, errors: str = "replace") -> bytes:
    """Write compact UTF-8 JSON with a newline at the end; raises ValueError rather than write NaN.

    Half a surrogate pair becomes a question mark, so that no outcome is lost for it; with `errors="strict"` it raises.
    """
    return _ENCODER.encode(value).encode("utf-8", errors) + b"\n"


def has_too_many_values(raw: bytes) -> bool:
    """Counted before anything is made: by commas and brackets, and those within texts only where that is too many."""
    if _values(raw) <= MAX_VALUES:
        return False
    return _values(_STRING.sub(b"", raw)) > MAX_VALUES


def _values(raw: bytes) -> int:
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{")


def _walk(root: Any) -> None:
    stack = [(root, 1)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, (list, dict)) and depth > MAX_DEPTH:
            raise NotStrictJson(f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, list):
            stack.extend((member, depth + 1) for member in value)
        elif isinstance(value, dict):
            for key, member in value.items():
                _check_text(key)
                stack.append((member, depth + 1))


def _check_text(text: str) -> None:
    if "\0" in text:
        raise NotStrictJson("a string holds a NUL character")
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise NotStrictJson("a string holds half of a surrogate pair")


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook`: raises ValueError for a key that appears twice in one object."""
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r:.60} appears twice in one object")
            seen.add(key)
    return out


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON; use null or leave the field out")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text:.40} is too large")
    return number


_DECODER = json.JSONDecoder(
    object_pairs_hook=without_duplicates, parse_constant=_no_constant, parse_float=_finite, strict=True
)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
