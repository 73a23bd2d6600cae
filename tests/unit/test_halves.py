"""An answer that stopped early is no success: each CLI's word for why it ended, and what was begun and not ended."""

from __future__ import annotations

from typing import Any

import pytest

from tests.printing import INIT, claude_result, judged, lines, printed
from watcher.policy.after_attempt import Failure
from watcher.runner.providers.built_in import BUILT_IN
from watcher.runner.providers.early_stops import half_of

__all__ = ["printed"]

#: What each API and CLI calls an end: Anthropic, claude itself, OpenAI, Google, the AI SDK (opencode).
WORDS = {
    "truncated": ("max_tokens", "model_context_window_exceeded", "length", "max_output_tokens", "MAX_TOKENS"),
    "refused": (
        "refusal", "content_filter", "content-filter", "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT",
        "SPII",
    ),
    "unfinished": (
        "pause_turn", "tool_deferred", "aborted_streaming", "aborted_tools", "stop_hook_prevented", "hook_stopped",
        "background_requested", "blocking_limit", "rapid_refill_breaker", "error", "cancelled", "interrupted",
        "budget_exhausted", "MALFORMED_FUNCTION_CALL", "incomplete",
    ),
}  # fmt: skip
FIELDS = ("stop_reason", "terminal_reason")
CALL = {"type": "assistant", "message": {"content": [{"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}]}}


def ended(provider: str, field: str, word: str) -> bytes:
    """A run that ends well but for this word."""
    if provider in ("claude", "qwen", "cursor-agent"):
        return lines(INIT, claude_result(**{field: word}))
    if provider == "gemini":
        said = {"type": "message", "role": "assistant", "content": "x"}
        return lines(said, {"type": "result", "status": "success", field: word})
    if provider == "codex":
        item = {"type": "agent_message", "text": "x"}
        return lines(
            {"type": "turn.started"}, {"type": "item.completed", "item": item}, {"type": "turn.completed", field: word}
        )
    text, step = {"type": "text", "part": {"text": "x"}}, {"type": "step_finish", "part": {"reason": word}}
    return lines({"type": "step_start"}, text, step)


def field_of(provider: str) -> tuple[str, ...]:
    return FIELDS if provider in ("claude", "qwen", "cursor-agent") else ("stop_reason",)


@pytest.mark.parametrize("provider", list(BUILT_IN))
@pytest.mark.parametrize(("reason", "word"), [(reason, word) for reason, words in WORDS.items() for word in words])
def test_word_for_an_early_end_is_no_success(provider: str, reason: str, word: str, printed: Any) -> None:
    for field in field_of(provider):
        ending = judged(provider, 0, ended(provider, field, word), "", printed)
        assert ending.reason == reason
        assert ending.failure is (Failure.TRANSIENT if reason == "unfinished" else Failure.PERMANENT)
        assert word in (ending.detail or "")


@pytest.mark.parametrize("provider", list(BUILT_IN))
def test_word_that_nobody_knows_is_told_and_fails_nothing(provider: str, printed: Any) -> None:
    for field in field_of(provider):
        ending = judged(provider, 0, ended(provider, field, "newly_made"), "", printed)
        assert ending.failure is None
        assert f"{'reason' if provider == 'opencode' else field} newly_made" in (ending.detail or "")


@pytest.mark.parametrize("provider", list(BUILT_IN))
@pytest.mark.parametrize("word", ["end_turn", "stop", "completed"])
def test_end_as_it_should_be_needs_no_word(provider: str, word: str, printed: Any) -> None:
    for field in field_of(provider):
        ending = judged(provider, 0, ended(provider, field, word), "", printed)
        assert (ending.failure, ending.detail) == (None, None)


def test_answer_by_a_schema_ends_with_a_tool(printed: Any) -> None:
    event = claude_result(stop_reason="tool_use", terminal_reason="completed")
    assert judged("claude", 0, lines(INIT, event), "", printed).failure is None
    assert half_of("tool_use") == "unfinished"


def started(**more: Any) -> dict[str, Any]:
    return {"type": "system", "subtype": "task_started", "task_id": "b1", "description": "make all", **more}


def notified(status: str) -> dict[str, Any]:
    return {"type": "system", "subtype": "task_notification", "task_id": "b1", "status": status}


BASH = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "make all", "run_in_background": True}}
BEHIND = {"type": "assistant", "message": {"content": [BASH]}}
TOOL_RESULT = {"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": "t1"}]}}


@pytest.mark.parametrize(
    "events",
    [
        (started(is_backgrounded=True), claude_result()),
        (started(is_backgrounded=True), notified("stopped"), claude_result()),
        (started(is_backgrounded=True), claude_result(), notified("stopped")),
        (
            started(),
            {"type": "system", "subtype": "task_updated", "task_id": "b1", "patch": {"is_backgrounded": True}},
            claude_result(),
        ),
        (
            started(is_backgrounded=True),
            {"type": "system", "subtype": "task_updated", "task_id": "b1", "patch": {"status": "killed"}},
            claude_result(),
        ),
        (BEHIND, TOOL_RESULT, started(tool_use_id="t1"), claude_result()),
        (started(), claude_result(), notified("stopped")),
    ],
)
def test_success_while_background_work_is_not_done_is_unfinished(events: tuple[Any, ...], printed: Any) -> None:
    ending = judged("claude", 0, lines(INIT, *events), "", printed)
    assert (ending.failure, ending.reason) == (Failure.TRANSIENT, "unfinished")
    assert "make all" in (ending.detail or "")


def test_background_work_that_ended_or_that_the_agent_ended_itself_is_done(printed: Any) -> None:
    stop = {"type": "tool_use", "id": "t2", "name": "TaskStop", "input": {"task_id": "b1"}}
    for events in (
        (started(is_backgrounded=True), claude_result(), notified("completed"), claude_result(result="whole")),
        (started(is_backgrounded=True), notified("failed"), claude_result()),
        (started(is_backgrounded=True), {"type": "assistant", "message": {"content": [stop]}}, notified("stopped"),
         {"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": "t2"}]}}, claude_result()),
    ):  # fmt: skip
        ending = judged("claude", 0, lines(INIT, *events), "", printed)
        assert (ending.failure, ending.detail) == (None, None)


@pytest.mark.parametrize(
    ("provider", "events"),
    [
        ("claude", (INIT, CALL, claude_result())),
        ("claude", (INIT, started(), claude_result())),
        ("qwen", (INIT, CALL, claude_result())),
        (
            "cursor-agent",
            (INIT, {"type": "tool_call", "subtype": "started", "call_id": "c", "tool_call": {"shell": {}}},
             claude_result()),
        ),
        (
            "gemini",
            ({"type": "tool_use", "tool_id": "r", "tool_name": "shell"}, {"type": "result", "status": "success"}),
        ),
        (
            "codex",
            ({"type": "turn.started"}, {"type": "item.started", "item": {"id": "i", "type": "command_execution"}},
             {"type": "item.completed", "item": {"id": "j", "type": "agent_message", "text": "x"}},
             {"type": "turn.completed"}),
        ),
        (
            "opencode",
            ({"type": "step_start"}, {"type": "tool_use", "part": {"tool": "bash", "callID": "c", "state": {}}},
             {"type": "text", "part": {"text": "x"}}, {"type": "step_finish", "part": {"reason": "stop"}}),
        ),
    ],
)  # fmt: skip
def test_tool_without_an_end_is_told(provider: str, events: tuple[Any, ...], printed: Any) -> None:
    ending = judged(provider, 0, lines(*events), "", printed)
    assert ending.failure is None
    assert "no end was told of" in (ending.detail or "")


def test_second_turn_of_codex_that_never_completes_is_unfinished(printed: Any) -> None:
    said = {"type": "item.completed", "item": {"type": "agent_message", "text": "x"}}
    turn = ({"type": "turn.started"}, said, {"type": "turn.completed"})
    ending = judged("codex", 0, lines(*turn, {"type": "turn.started"}, said), "", printed)
    assert (ending.failure, ending.reason) == (Failure.TRANSIENT, "unfinished")
    assert judged("codex", 0, lines(*turn, *turn), "", printed).failure is None


def test_run_that_gemini_breaks_off_is_unfinished(printed: Any) -> None:
    end = {"type": "result", "status": "success"}
    said = {"type": "message", "role": "assistant", "content": "x"}
    for message in ("Loop detected, stopping execution", "Maximum session turns exceeded"):
        ending = judged("gemini", 0, lines(said, {"type": "error", "message": message}, end), "", printed)
        assert (ending.failure, ending.reason) == (Failure.TRANSIENT, "unfinished")
    ending = judged("gemini", 0, lines(said, {"type": "error", "message": "a hook said no"}, end), "", printed)
    assert (ending.failure, ending.detail) == (None, "gemini: it said: a hook said no")


@pytest.mark.parametrize("provider", ["claude", "qwen"])
def test_description_that_was_taken_for_a_command_was_not_run(provider: str, printed: Any) -> None:
    for answer in ("/help isn't available in this environment.", ""):
        ending = judged(provider, 0, lines(INIT, claude_result(num_turns=0, result=answer)), "", printed)
        assert (ending.failure, ending.reason) == (Failure.PERMANENT, "not_run")


def test_tool_that_opencode_forbids_is_denied(printed: Any) -> None:
    error = {"tool": "bash", "error": "Model tried to call unavailable tool 'bash'. Available tools: read."}
    call = {
        "type": "tool_use",
        "part": {"tool": "invalid", "callID": "c", "state": {"status": "completed", "input": error}},
    }
    end = ({"type": "text", "part": {"text": "x"}}, {"type": "step_finish", "part": {"reason": "stop"}})
    ending = judged("opencode", 0, lines({"type": "step_start"}, call, *end), "", printed)
    assert (ending.failure, ending.reason) == (Failure.PERMANENT, "denied")
    error["tool"] = "no_such_tool"
    assert judged("opencode", 0, lines({"type": "step_start"}, call, *end), "", printed).failure is None


def test_tokens_of_a_run_that_its_budget_ended_are_those_of_its_models(printed: Any) -> None:
    from watcher.runner.printed_text import events
    from watcher.runner.providers.claude_events import read_claude

    models = {"m": {"inputTokens": 200_000, "outputTokens": 20_000, "cacheReadInputTokens": 5, "costUSD": 1.2}}
    event = claude_result(
        is_error=True, subtype="error_max_budget_usd", usage={"input_tokens": 0, "output_tokens": 0}, modelUsage=models
    )
    fd, size = printed(lines(INIT, event))
    usage = read_claude(events(fd, size, "stream-json")).usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.cached_input_tokens) == (200_005, 20_000, 5)
