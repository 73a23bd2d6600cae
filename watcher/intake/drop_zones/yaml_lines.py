"""Read YAML with the line of every value, so that a message about a config can say where to look.

Only plain data is read (strings, numbers, booleans, null, lists, mappings): no tag makes an object. Duplicate keys
are refused, and what aliases expand to is bounded. PyYAML is imported on first use, because it comes with an extra.
Raises ZoneFileError with the line, also for what is no YAML.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from watcher.errors import SettingError

_MAX_VALUES = 50_000
_MAX_DEPTH = 32
_PLAIN = (str, int, float, bool, type(None))


class ZoneFileError(SettingError):
    """The file of the drop zones cannot be used. Reaction: say so; whoever has an older one keeps it."""


@dataclass(frozen=True, slots=True)
class Marked:
    """One value: a plain scalar, a list of Marked, or a dict from text to Marked. `line` counts from 1."""

    value: Any
    line: int

    def plain(self) -> Any:
        """The same without lines."""
        if isinstance(self.value, dict):
            return {name: inside.plain() for name, inside in self.value.items()}
        if isinstance(self.value, list):
            return [inside.plain() for inside in self.value]
        return self.value


def read_marked(raw: bytes, file: str) -> Marked:
    """Read one YAML document; `file` is its name in messages."""
    try:
        import yaml
    except ImportError:
        raise ZoneFileError(
            f"{file}: drop zones need PyYAML, which is not installed: pip install 'watcher-suite[zones]', "
            "or in a checkout: pip install -e '.[zones]'"
        ) from None
    loader = None
    try:
        loader = yaml.SafeLoader(raw)
        node = loader.get_single_node()
        if node is None:
            raise ZoneFileError(f"{file}:1: the file is empty; it needs `zones:` with a list")
        return _Reader(file, loader).value(node, 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise ZoneFileError(f"{file}:{line}: not valid YAML: {error.problem or error}{_hint(str(error))}") from None
    except RecursionError:
        raise ZoneFileError(f"{file}: not readable as YAML: it is nested too deep") from None
    except yaml.YAMLError as error:
        raise ZoneFileError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _hint(text: str) -> str:
    if "alias" in text:
        return '; a value that begins with * needs quotes: "*.txt"'
    if "'\\t'" in text or "cannot start any token" in text:
        return "; quote it, and indent with spaces"
    if "mapping values are not allowed" in text:
        return "; a value with a colon and a space in it needs quotes"
    return ""


class _Reader:
    """Turns PyYAML's nodes into Marked."""

    def __init__(self, file: str, loader: Any) -> None:
        self._file = file
        self._loader = loader
        self._count = 0

    def value(self, node: Any, depth: int) -> Marked:
        line = node.start_mark.line + 1
        self._count += 1
        if self._count > _MAX_VALUES or depth > _MAX_DEPTH:
            raise ZoneFileError(
                f"{self._file}:{line}: too many values, or too deep; aliases count as what they stand for"
            )
        if node.id == "mapping":
            return Marked(dict(self._members(node, depth)), line)
        if node.id == "sequence":
            return Marked([self.value(inside, depth + 1) for inside in node.value], line)
        found = self._loader.construct_object(node, deep=True)
        if not isinstance(found, _PLAIN):
            raise ZoneFileError(
                f"{self._file}:{line}: {node.value!r:.40} is read as a {type(found).__name__}; quote it"
            )
        return Marked(found, line)

    def _members(self, node: Any, depth: int) -> Iterator[tuple[str, Marked]]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if (name := str(key.value)) in seen:
                raise ZoneFileError(f"{self._file}:{line}: {name!r:.40} appears twice, first in line {seen[name]}")
            seen[name] = line
        self._loader.flatten_mapping(node)  # `<<: *defaults`; what stands here itself comes later and wins
        for key, inside in node.value:
            name = self._loader.construct_object(key, deep=True)
            if not isinstance(name, str):
                line = key.start_mark.line + 1
                raise ZoneFileError(f"{self._file}:{line}: the key {name!r:.40} must be text; quote it")
            yield name, self.value(inside, depth + 1)
