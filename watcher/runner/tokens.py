"""Count the tokens that a running command has used so far, from its events, where they tell before its end.

claude and qwen tell with each answer of the model, opencode with each step, codex with each turn; gemini only with its
final event. What a final event tells is for the books at the end. Cached input counts as input: it was read.

Pure; nothing raises for what it reads.
"""

from __future__ import annotations

from typing import Any

_PARTS = (
    "input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens",
)  # fmt: skip


class TokenCount:
    """Adds up one run. An answer that is told in several events counts once."""

    def __init__(self) -> None:
        self.total: int | None = None
        self._answers: dict[str, int] = {}
        self._steps = 0

    def learn(self, event: dict[str, Any]) -> None:
        """Count what one event tells."""
        kind = event.get("type")
        if kind == "assistant":
            message = _dict(event.get("message"))
            usage = _dict(message.get("usage"))
            # qwen gives a total; its input has the cached part in it, which claude counts apart.
            used = _count(usage.get("total_tokens")) or sum(_count(usage.get(name)) for name in _PARTS)
            key = str(message.get("id"))
            self._answers[key] = max(used, self._answers.get(key, 0))
        elif kind == "step_finish":
            tokens = _dict(_dict(event.get("part")).get("tokens"))
            cache = _dict(tokens.get("cache"))
            parts = (
                *(tokens.get(name) for name in ("input", "output", "reasoning")),
                cache.get("read"),
                cache.get("write"),
            )
            self._steps += sum(_count(part) for part in parts)
        elif kind == "turn.completed":  # codex counts cached input as input
            used_by_turn = _dict(event.get("usage"))
            self._steps += _count(used_by_turn.get("input_tokens")) + _count(used_by_turn.get("output_tokens"))
        added = sum(self._answers.values()) + self._steps
        if added:
            self.total = max(added, self.total or 0)


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        return 0
    return int(value)
