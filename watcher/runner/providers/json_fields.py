"""Read JSON output of any shape by paths, for providers that people describe themselves.

Never raises for what it reads: a path that leads nowhere is a fact that was not told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from watcher.formats.result import Usage
from watcher.runner.providers.output_events import Event, Reading, count, name, number


@dataclass(frozen=True, slots=True)
class FieldReader:
    """Reads JSON of any shape by paths such as `choices.0.message.content`; the last event that has a path counts.

    `final` is what tells the last event, as `path=value` or only a path; without it any event does. An `error` that is
    not empty, or an `error_flag` that is true, makes the attempt a failure. `joins_answer` puts all pieces of the
    answer together; `ended` is its word for why it ended (`halves`). `usage` has the names of Usage, `signs` any names
    that the provider's failure rules use.
    """

    answer: str = ""
    joins_answer: bool = False
    final: str = ""
    error: str = ""
    error_flag: str = ""
    resets_at: str = ""
    ended: str = ""
    usage: tuple[tuple[str, str], ...] = ()
    signs: tuple[tuple[str, str], ...] = ()

    def __call__(self, found: Iterator[Event]) -> Reading:
        out = Reading()
        usage = Usage()
        for event in found:
            self._read_answer(event, out)
            self._read_failure(event, out)
            for field, path in self.usage:
                _set_usage(usage, field, _at(event, path))
            out.is_finished = out.is_finished or not self.final or self._is_final(event)
        out.usage = usage if usage != Usage() else None
        return out

    def _read_answer(self, event: Event, out: Reading) -> None:
        value = _at(event, self.answer)
        if value is None:
            return
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        out.answer = (out.answer or "") + text if self.joins_answer else text

    def _read_failure(self, event: Event, out: Reading) -> None:
        error = _at(event, self.error)
        if error:
            out.is_error = True
            out.message = error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)
        out.is_error = out.is_error or _at(event, self.error_flag) is True
        for kind, path in self.signs:
            value = _at(event, path)
            if isinstance(value, str | int | float):
                out.signs[kind] = str(value).lower() if isinstance(value, bool) else str(value)
        ended = name(_at(event, self.ended))
        if ended is not None:
            out.ends[self.ended] = ended
        resets_at = number(_at(event, self.resets_at))
        out.resets_at = out.resets_at if resets_at is None else resets_at

    def _is_final(self, event: Event) -> bool:
        path, sign, wanted = self.final.partition("=")
        value = _at(event, path)
        return value is not None and (not sign or str(value) == wanted)


def _set_usage(usage: Usage, field: str, value: object) -> None:
    reads = {"model": name, "session_id": name, "cost_usd": number}.get(field, count)
    known = reads(value)
    if known is not None:
        setattr(usage, field, known)


def _at(node: object, path: str) -> Any:
    """What stands at a path of names and indices; None when there is no path or nothing there."""
    if not path:
        return None
    for step in path.split("."):
        if isinstance(node, dict):
            node = node.get(step)
        elif isinstance(node, list) and step.lstrip("-").isdecimal() and -len(node) <= int(step) < len(node):
            node = node[int(step)]
        else:
            return None
    return node
