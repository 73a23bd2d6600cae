"""Tell whether an agent stopped early: by its word for the end of its turn, and by what it began and did not end.

A final event without an error flag is no proof of a whole answer: a model that ran out of tokens, refused, or was
stopped in the middle ends "well" too. Each CLI names its reason in a field of its own, most with the words of the model
APIs, so one table serves them all. A word that nobody knows fails nothing, for CLIs add words: it is told in `detail`.

Nothing here raises, whatever it is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

_LONGEST_NAME = 200
Half = Literal["truncated", "refused", "unfinished"]

#: Words for an end as it should be. `stop_sequence` is also what claude puts into messages that it makes itself.
_WHOLE = frozenset({"end_turn", "stop", "stop_sequence", "completed", "complete", "success", "finished", "end"})
_TRUNCATED = frozenset(
    {"max_tokens", "length", "max_output_tokens", "model_context_window_exceeded", "context_length", "token_limit"}
)
_REFUSED = frozenset(
    {
        "refusal", "content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii", "language",
        "image_safety", "image_prohibited_content", "image_recitation", "guardrail_intervened",
    }
)  # fmt: skip
_UNFINISHED = frozenset(
    {
        "tool_use", "tool_calls", "function_call", "pause_turn", "tool_deferred", "max_turns", "max_turn_requests",
        "aborted_streaming", "aborted_tools", "aborted", "cancelled", "canceled", "interrupted", "stopped",
        "incomplete", "in_progress", "error", "failed", "stop_hook_prevented", "hook_stopped", "background_requested",
        "blocking_limit", "rapid_refill_breaker", "prompt_too_long", "image_error", "model_error", "api_error",
        "budget_exhausted", "malformed_function_call", "unexpected_tool_call", "no_image", "too_many_tool_calls",
    }
)  # fmt: skip


def half_of(word: str) -> Half | None:
    """What a word for the end of a turn means; None: the answer is whole, or nobody knows the word."""
    said = word.lower().replace("-", "_")
    if said in _TRUNCATED:
        return "truncated"
    if said in _REFUSED:
        return "refused"
    return "unfinished" if said in _UNFINISHED else None


def is_known(word: str) -> bool:
    return half_of(word) is not None or word.lower().replace("-", "_") in _WHOLE


@dataclass(slots=True)
class Begun:
    """Tools and background work of one run, as its events tell of them: `begin` and `end` by the CLI's own ids.

    A tool that has not ended when the run has is only worth a remark: its end may stand in a part of a very large
    output that nobody reads. Background work that is still open, or was stopped by anybody but the agent, is work that
    was not done.
    """

    _tools: dict[str, str] = field(default_factory=dict)
    _work: dict[str, str] = field(default_factory=dict)
    _behind: set[str] = field(default_factory=set)
    _ended_by_agent: set[str] = field(default_factory=set)
    _starters: set[str] = field(default_factory=set)
    _is_answered: bool = False

    def begin_tool(self, key: object, name: object, is_behind: bool = False) -> None:
        """`is_behind`: the work that it starts goes on when the tool has ended."""
        if isinstance(key, str) and key:
            self._tools[key] = str(name)[:_LONGEST_NAME]
            if is_behind:
                self._starters.add(key)

    def end_tool(self, key: object) -> None:
        self._tools.pop(str(key), None)

    def begin_work(self, key: object, name: object, starter: object, is_behind: bool) -> None:
        """`is_behind`: it goes on while the agent does other things. `starter` is the tool that began it."""
        if isinstance(key, str) and key:
            self._work[key] = str(name)[:_LONGEST_NAME]
            if is_behind or str(starter) in self._starters:
                self._behind.add(key)

    def answer(self) -> None:
        """There is a final answer; what is stopped after it was not the agent's wish."""
        self._is_answered = True

    def move_behind(self, key: object, is_behind: bool) -> None:
        (self._behind.add if is_behind else self._behind.discard)(str(key))

    def end_work(self, key: object, state: object) -> None:
        """Work that was stopped or killed stays undone; any other end is its own, a failure for the agent to judge."""
        if state not in ("stopped", "killed"):
            self._work.pop(str(key), None)
        elif self._is_answered:
            self._behind.add(str(key))

    def stopped_by_agent(self, keys: Iterable[object]) -> None:
        """The agent itself ends these."""
        self._ended_by_agent.update(str(key) for key in keys)

    def lost(self) -> tuple[str, ...]:
        """The names of background work that was not done."""
        return tuple(
            name for key, name in self._work.items() if key in self._behind and key not in self._ended_by_agent
        )

    def remarks(self) -> tuple[str, ...]:
        names = [*self._tools.values(), *(name for key, name in self._work.items() if key not in self._behind)]
        return (f"no end was told of {', '.join(dict.fromkeys(names))}",) if names else ()
