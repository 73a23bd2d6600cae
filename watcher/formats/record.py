"""Write a record whose fields are stated once: each with its type for Python, its kind for files, and its name there.

A record is a dataclass whose annotations carry a Kind, and what is special in its file:

    finished_at: Annotated[float, Instant(40, 20), Named("timestamp")]
    detail: Annotated[str | None, Optional(Text(8192)), SPARSE] = None

`fields.fields_of` makes the table of fields from them; here is what is written, and the JSON Schema.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field
from functools import cache
from typing import Any

from watcher.clock import rfc3339
from watcher.formats.fields import Choice, Flag, Kind, Number, Optional, Text, annotated, fields_of, record_schema

#: Left out of the file when it is None or an empty tuple.
SPARSE = "sparse"
#: Always written, but files of earlier versions lack it.
NEWER = "newer"


class Instant(Text):
    """A wall time: seconds since the epoch in Python, RFC 3339 in the file."""

    __slots__ = ()

    def write(self, value: float) -> str:
        return rfc3339(value)


class Milliseconds(Number):
    """Seconds, written with three digits behind the point."""

    __slots__ = ()

    def write(self, value: float) -> float:
        return round(value, 3)


class Microseconds(Number):
    """Seconds, written with six digits behind the point."""

    __slots__ = ()

    def write(self, value: float) -> float:
        return round(value, 6)


@cache
def _columns(record: type) -> tuple[tuple[str, str, Callable[[Any], Any] | None, bool], ...]:
    """Of each field of the file: attribute, name, what writes its value (None: it stands as it is), is it sparse."""
    return tuple((field.name, name, _writer(kind), SPARSE in marks) for field, name, kind, marks in annotated(record))


def _writer(kind: Kind) -> Callable[[Any], Any] | None:
    inside = kind.inside if isinstance(kind, Optional) else kind
    own: Callable[[Any], Any] | None = getattr(inside, "write", None)
    return own if own is not None or isinstance(inside, Text | Number | Choice | Flag) else _plain


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    return as_json(value) if hasattr(value, "__dataclass_fields__") else value


def as_json(record: Any) -> dict[str, Any]:
    """The object that the file holds."""
    out: dict[str, Any] = {}
    for attribute, name, write, is_sparse in _columns(record.__class__):
        value = getattr(record, attribute)
        if not is_sparse or (value is not None and value != ()):
            out[name] = value if value is None or write is None else write(value)
    return out


def schema_of(record: type, name: str, title: str) -> dict[str, Any]:
    """The JSON Schema of a record's file. Required is what each file of any version has."""
    required = tuple(
        name for field, name, _, marks in annotated(record) if _is_always_given(field) and NEWER not in marks
    )
    return record_schema(name, title, fields_of(record), required)


def _is_always_given(field: Field[Any]) -> bool:
    return not field.init or (field.default is MISSING and field.default_factory is MISSING)
