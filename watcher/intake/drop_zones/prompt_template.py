"""Fill the prompt of a drop zone: text with a few placeholders, filled once and literally.

A placeholder is a word in braces, `{path}`; `{{path}}` is the word in braces itself; every other brace is text, so
that JSON and code need no care. What is put in is never looked at again: a file that contains `{path}` stays as it
is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

#: What may stand in braces, and what it becomes.
PLACEHOLDERS = {
    "path": "the absolute path at which the agent finds the file, the same during all attempts",
    "name": "the file's name",
    "stem": "the name without its last ending",
    "text": "what the file holds, which must be UTF-8 text",
    "relative": "the path below the zone's folder",
    "zone": "the zone's name",
}

_BRACED = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt to be filled. Make it with `parse`, which refuses what cannot be filled."""

    source: str

    @classmethod
    def parse(cls, source: str) -> Template:
        """Raises ValueError that names the unknown placeholder, and the first line of the text in which it stands."""
        for found in _BRACED.finditer(source):
            if found[2] is not None and found[2] not in PLACEHOLDERS:
                raise ValueError(
                    f"{{{found[2]}}} is not a placeholder; known are {', '.join(f'{{{n}}}' for n in PLACEHOLDERS)}; "
                    f"write {{{{{found[2]}}}}} for the word in braces itself"
                )
        return cls(source)

    def uses(self, name: str) -> bool:
        return any(found[2] == name for found in _BRACED.finditer(self.source))

    def fill(self, values: Mapping[str, str]) -> str:
        """Put in all values, in one go."""
        return _BRACED.sub(lambda found: f"{{{found[1]}}}" if found[1] else values[found[2]], self.source)
