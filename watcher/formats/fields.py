"""Describe fields: one description checks a value and writes itself as JSON Schema.

The records of this package are tables of these kinds, so a rule is written once: the check, the message a person
reads and the published schema cannot drift apart. Checks are strict: `true` is no number and `"7"` no integer.
This is no general validation library on purpose: importing one would cost a submitter more than the submit.

Raises FieldError with a message that names what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, Protocol

from watcher.clock import parse_rfc3339


class FieldError(ValueError):
    """A value does not fit its field; the message says what would."""


class Kind(Protocol):
    """One kind of field."""

    def check(self, value: object) -> Any:
        """Return the value as Python wants it, or raise FieldError."""
        ...

    def schema(self) -> dict[str, Any]:
        """The same rule as a JSON Schema (draft 2020-12) fragment."""
        ...


@dataclass(frozen=True, slots=True)
class Text:
    """A string with bounds on its length (characters) and, if given, a pattern for the whole of it."""

    maximum: int
    minimum: int = 0
    pattern: str | None = None
    meaning: str = ""

    def check(self, value: object) -> str:
        if not isinstance(value, str):
            raise FieldError(f"must be a string, not {_kind_of(value)}")
        if not self.minimum <= len(value) <= self.maximum:
            raise FieldError(f"must have {self.minimum} to {self.maximum} characters, has {len(value)}")
        if self.pattern is not None and re.fullmatch(self.pattern, value) is None:
            raise FieldError(f"must match {self.pattern}" + (f" ({self.meaning})" if self.meaning else ""))
        return value

    def schema(self) -> dict[str, Any]:
        out: dict[str, Any] = {"type": "string", "minLength": self.minimum, "maxLength": self.maximum}
        if self.pattern is not None:
            out["pattern"] = f"^(?:{self.pattern})$"
        return out


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number between two bounds, both allowed; with `integer`, a whole one."""

    minimum: float
    maximum: float
    integer: bool = False

    def check(self, value: object) -> Any:
        wanted = "a whole number" if self.integer else "a number"
        if self.integer and isinstance(value, float) and value.is_integer():
            value = int(value)  # 7.0 is an integer to JSON Schema, and so to everybody who reads the published one
        if isinstance(value, bool) or not isinstance(value, int if self.integer else (int, float)):
            raise FieldError(f"must be {wanted}, not {_kind_of(value)}")
        # NaN fails both comparisons; asking math.isfinite instead raises for a whole number of 400 digits.
        if not self.minimum <= value <= self.maximum:
            raise FieldError(f"must be {wanted} from {self.minimum:.15g} to {self.maximum:.15g}, is {value!r:.40}")
        return value

    def schema(self) -> dict[str, Any]:
        kind = "integer" if self.integer else "number"
        return {"type": kind, "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    def check(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.words:
            known = ", ".join(word or "an empty text" for word in self.words)
            raise FieldError(f"must be one of {known}, is {value!r:.40}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.words)}


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def check(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise FieldError(f"must be true or false, not {_kind_of(value)}")
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list whose members are all of one kind; it becomes a tuple."""

    member: Kind
    maximum: int

    def check(self, value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise FieldError(f"must be a list, not {_kind_of(value)}")
        if len(value) > self.maximum:
            raise FieldError(f"must have at most {self.maximum} members, has {len(value)}")
        out = []
        for number, member in enumerate(value):
            try:
                out.append(self.member.check(member))
            except FieldError as error:
                raise FieldError(f"member {number} {error}") from None
        return tuple(out)

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": self.member.schema(), "maxItems": self.maximum}


@dataclass(frozen=True, slots=True)
class Object:
    """A JSON object with whatever inside. `members` describes some of it in the schema; they are not checked."""

    members: Mapping[str, Kind] | None = None

    def check(self, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise FieldError(f"must be an object, not {_kind_of(value)}")
        return value

    def schema(self) -> dict[str, Any]:
        if self.members is None:
            return {"type": "object"}
        return {"type": "object", "properties": {name: kind.schema() for name, kind in self.members.items()}}


@dataclass(frozen=True, slots=True)
class Members:
    """A JSON object with these members, each of which may be missing; others are kept."""

    kinds: Mapping[str, Kind]

    def check(self, value: object) -> dict[str, Any]:
        found = Object().check(value)
        for name, kind in self.kinds.items():
            if name in found:
                try:
                    kind.check(found[name])
                except FieldError as error:
                    raise FieldError(f"member {name} {error}") from None
        return found

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "properties": {name: kind.schema() for name, kind in self.kinds.items()}}


@dataclass(frozen=True, slots=True)
class Moment:
    """A wall time: RFC 3339 text with a zone, or seconds since the epoch; it becomes the latter."""

    def check(self, value: object) -> float:
        if isinstance(value, str):
            try:
                return parse_rfc3339(value)
            except (ValueError, OverflowError) as error:
                raise FieldError(f"must be a time like 2026-11-21T23:33:00Z ({error})") from None
        seconds: float = Number(0, 253_402_300_799).check(value)
        return float(seconds)

    def schema(self) -> dict[str, Any]:
        return {
            "anyOf": [
                {"type": "string", "format": "date-time"},
                {"type": "number", "minimum": 0, "maximum": 253_402_300_799},
            ]
        }


@dataclass(frozen=True, slots=True)
class Optional:
    """The kind inside, or null."""

    inside: Kind

    def check(self, value: object) -> Any:
        return None if value is None else self.inside.check(value)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [self.inside.schema(), {"type": "null"}]}


class Named(str):
    """The name of a field in the file, where it is another than in Python."""

    __slots__ = ()


def annotated(record: type) -> Iterator[tuple[Field[Any], str, Kind, list[Any]]]:
    """Each field of a dataclass whose annotation carries a Kind: the field, its name in the file, the kind, the rest.

    The module of such a class must not import `annotations` from `__future__`: the kinds are read as objects.
    """
    for field in fields(record):
        kind, *marks = getattr(field.type, "__metadata__", (None,))
        if kind is not None:
            yield field, next((mark for mark in marks if isinstance(mark, Named)), field.name), kind, marks


def fields_of(record: type) -> dict[str, Kind]:
    """The kind of each field of a record's file by its name there, in the order of the file."""
    return {name: kind for _, name, kind, _ in annotated(record)}


def record_schema(name: str, title: str, fields: Mapping[str, Kind], required: tuple[str, ...]) -> dict[str, Any]:
    """The JSON Schema of a whole record; unknown members are allowed, as the readers allow them."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": name,
        "description": title,
        "type": "object",
        "required": list(required),
        "properties": {field: kind.schema() for field, kind in fields.items()},
        "additionalProperties": True,
    }


def _kind_of(value: object) -> str:
    words = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return words.get(type(value), "a list" if isinstance(value, (list, tuple)) else "an object")
