"""Tell what a running command does now, from the end of what it has printed so far.

A Look remembers how far it has read and reads at most 1 MiB of what is new, at its end; so a beat costs the same
whether the command has written a line or a gigabyte. Only complete lines are read, and only names are taken out of
them (an event's kind, a tool's name): never what was asked or answered. What it cannot understand it leaves out.

Plain text has no events. The shapes are those of claude (and cursor-agent, qwen), gemini, codex and opencode.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from watcher.runner.tokens import TokenCount

#: What one look reads at most.
LOOK_BYTES = 1 << 20
#: Of the newest lines so many are tried for one that can be named.
_LINES = 64
_MAX_NAME = 80
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_.:/ -]+")
_TOKENS = re.compile(rb'"(?:usage|tokens)"')
_COST = re.compile(rb'"(?:total_cost_usd|cost_usd|cost)"')


@dataclass(slots=True)
class Live:
    """`event` is a few words like `tool Bash`; `at` (wall seconds) is when the last look saw it first.

    `cost_usd` and `tokens` are what the attempt has cost and used so far, where events tell; `is_answered`: the
    provider has begun to answer, so it works.
    """

    event: str | None = None
    at: float | None = None
    cost_usd: float | None = None
    tokens: int | None = None
    is_answered: bool = False


class LiveView:
    """One running command's output, seen again and again."""

    def __init__(self) -> None:
        self.live = Live()
        self._read_to = 0
        self._tokens = TokenCount()

    def again(self, fd: int, now: float) -> Live:
        """Read what is new in the file; `now` is wall seconds. Returns the same record each time, as it is now."""
        start, end = self._read_to, os.fstat(fd).st_size
        if end < start:  # it was emptied
            start = self._read_to = 0
        skips = end - start > LOOK_BYTES
        if skips:
            start = end - LOOK_BYTES
        raw = _read(fd, start, end)
        last = raw.rfind(b"\n")
        if last < 0:
            if skips:
                self._read_to = start + len(raw)  # a line of more than a mebibyte: what follows it counts
            return self.live
        first = raw.find(b"\n") + 1 if skips else 0
        self._read_to = start + last + 1
        self._learn(raw[first : last + 1], now)
        return self.live

    def _learn(self, raw: bytes, now: float) -> None:
        lines = [line for line in raw.split(b"\n") if line[:1] == b"{"]
        for event in _parsed(reversed(lines[-_LINES:])):
            name = name_of(event)
            if name is not None:
                self.live.event, self.live.at = name, now
                break
        if not self.live.is_answered:
            self.live.is_answered = any(is_answer(event) for event in _parsed(iter(lines[-_LINES:])))
        self._learn_costs(lines)
        for event in _parsed(line for line in lines if _TOKENS.search(line)):
            self._tokens.learn(event)
        self.live.tokens = self._tokens.total

    def _learn_costs(self, lines: list[bytes]) -> None:
        for event in _parsed(line for line in lines if _COST.search(line)):
            cost, is_total = _cost_of(event)
            if cost is not None:
                known = self.live.cost_usd or 0.0
                self.live.cost_usd = max(known, cost) if is_total else known + cost


def name_of(event: dict[str, Any]) -> str | None:
    """An event in a few words: `tool Bash`, `text`, `result`; None when it has no kind."""
    kind = event.get("type")
    if not isinstance(kind, str):
        return None
    tool = _tool_of(event, kind)
    if tool is not None:
        return _name(f"tool {tool}")
    if kind == "assistant":
        return "text"
    if kind == "user":
        return "tool_result"
    subtype = event.get("subtype")
    if kind == "system" and isinstance(subtype, str):
        return _name(subtype)
    return _name(kind)


def is_answer(event: dict[str, Any]) -> bool:
    """Whether a model has answered: not a limit, not an error, not the beginning."""
    kind = event.get("type")
    if kind == "assistant":
        message = event.get("message")
        is_synthetic = isinstance(message, dict) and message.get("model") == "<synthetic>"  # claude about itself
        return not is_synthetic and not isinstance(event.get("error"), str)
    if kind == "message":
        return event.get("role") == "assistant"
    return kind in ("tool_use", "text", "item.started", "item.completed", "step_finish")


def _tool_of(event: dict[str, Any], kind: str) -> str | None:
    """The tool that an event starts: in a block of a message, in the event, in its `part` or its `item`."""
    if kind == "assistant":
        message = event.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        blocks = [b for b in content if isinstance(b, dict)] if isinstance(content, list) else []
        names = [block.get("name") for block in blocks if block.get("type") == "tool_use"]
        return next((name for name in reversed(names) if isinstance(name, str)), None)
    if kind == "tool_use":
        part = event.get("part")
        inside = part.get("tool") if isinstance(part, dict) else None
        names = [event.get("tool_name"), event.get("name"), inside]
        return next((name for name in names if isinstance(name, str)), None)
    if kind == "tool_call":  # cursor-agent: {"tool_call": {"shellToolCall": {...}}}
        call = event.get("tool_call")
        return next((name for name in call if isinstance(name, str)), None) if isinstance(call, dict) else None
    if kind == "item.started":
        item = event.get("item")
        name = item.get("type") if isinstance(item, dict) else None
        return name if isinstance(name, str) and name not in ("agent_message", "reasoning") else None
    return None


def _cost_of(event: dict[str, Any]) -> tuple[float | None, bool]:
    """What an event says of costs, and whether that is the total so far or one step's."""
    for name in ("total_cost_usd", "cost_usd"):
        if (cost := _number(event.get(name))) is not None:
            return cost, True
    part = event.get("part")
    return _number(part.get("cost") if isinstance(part, dict) else event.get("cost")), False


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < 1e9 else None  # type: ignore[arg-type, operator]


def _name(text: str) -> str:
    return _NOT_A_NAME.sub("_", text)[:_MAX_NAME]


def _parsed(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _read(fd: int, start: int, end: int) -> bytes:
    parts = []
    while start < end and (part := os.pread(fd, min(1 << 16, end - start), start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)
