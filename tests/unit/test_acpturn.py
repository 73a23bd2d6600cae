"""Which of what an agent says in a turn of the Agent Client Protocol is the answer, and what the turn comes to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from watcher.policy.after_attempt import Ending, Failure
from watcher.runner.acp.faults import fault_of
from watcher.runner.acp.turn import Heard, Turn
from watcher.runner.providers.built_in import acp_rules, built_in
from watcher.runner.providers.failure_words import Printed
from watcher.runner.providers.judging import judge
from watcher.runner.providers.output_events import Reading
from watcher.runner.warm.jsonrpc import RpcError

Update = dict[str, Any]
NO_USAGE: Update = {"usage": None, "_meta": {"quota": {"token_count": None, "model_usage": []}}}
USED: Update = {"usage": {"totalTokens": 16, "inputTokens": 11, "outputTokens": 5}}
CRASHED: Update = {
    "sessionUpdate": "session_info_update",
    "_meta": {"codex": {"threadStatus": {"type": "systemError"}}},
}
CALL: Update = {"sessionUpdate": "tool_call", "toolCallId": "c1", "title": "ls", "status": "in_progress"}
DONE: Update = {"sessionUpdate": "tool_call_update", "toolCallId": "c1", "status": "completed"}


def chunk(text: str, id_: str | None = None, kind: str = "agent_message_chunk", **more: Any) -> Update:
    numbered = {} if id_ is None else {"messageId": id_}
    return {"sessionUpdate": kind, "content": {"type": "text", "text": text}, **numbered, **more}


def turn(*updates: Update, prompt: str = "do it", numbers: bool = False, **result: Any) -> Turn:
    heard = Heard("s", numbers)
    heard.is_asked = True
    for update in updates:
        heard.learn(update)
    return heard.turn({"stopReason": "end_turn", **result}, prompt)


def judged(reading: Reading) -> Ending:
    provider = replace(built_in({"acp": ("agent",)})["acp"], rules=acp_rules(), needs_answer=True)
    return judge(provider, 0, reading, Printed, 1_800_000_000.0)


def ended(found: Turn) -> tuple[Failure | None, str | None]:
    ending = judged(found.reading)
    return ending.failure, ending.reason


@pytest.mark.parametrize(
    ("updates", "answer"),
    [
        ((chunk("4"), chunk("2")), "42"),
        ((chunk("I look"), CALL, DONE, chunk("It is 42")), "It is 42"),
        ((chunk("It is 42"), CALL, DONE), "It is 42"),
        ((chunk("It is 42"), CALL, DONE, chunk(".")), "It is 42."),
        ((chunk("It is 42"), CALL, DONE, chunk("\n\n---\n")), "It is 42\n\n---\n"),
        ((chunk("It is 42", "m1"), CALL, DONE, chunk(" indeed.", "m1")), "It is 42 indeed."),
        ((chunk("I look", "m1"), CALL, DONE, chunk("It ", "m2"), chunk("is 42", "m2")), "It is 42"),
        ((chunk("one half", "m1"), chunk("the other", "m2")), "one half\n\nthe other"),
        ((chunk("a", "m1"), chunk("x", "m2"), chunk("b", "m1")), "ab\n\nx"),
        ((chunk("\U0001f44d"),), "\U0001f44d"),
        ((chunk("Warning: old"), chunk("42", "m1"), chunk("**Warning:** new")), "42"),
        ((chunk("hm", kind="agent_thought_chunk"), chunk("42"), chunk("do it", kind="user_message_chunk")), "42"),
        ((chunk("42"), {"sessionUpdate": "plan", "entries": [{"content": "x", "status": "completed"}]}), "42"),
        ((chunk("42", "m1"), chunk("of a helper", "m2", _meta={"claudeCode": {"parentToolUseId": "t"}})), "42"),
        ((chunk("42"), {"sessionUpdate": "notice", "severity": "warning", "title": "old", "description": "x"}), "42"),
        (
            ({"sessionUpdate": "agent_message_chunk", "content": {"type": "resource_link", "uri": "file:///a"}},),
            "file:///a",
        ),
        (
            (
                chunk("42"),
                {"sessionUpdate": 7},
                {"sessionUpdate": "agent_message_chunk", "content": "text"},
                chunk("", "m1"),
            ),
            "42",
        ),
    ],
)
def test_the_answer_is_what_was_said_last_and_says_something(updates: tuple[Update, ...], answer: str) -> None:
    found = turn(*updates)
    assert (found.reading.answer, ended(found)) == (answer, (None, None))


def test_all_that_was_said_is_kept_beside_the_answer_and_the_programs_own_words_apart() -> None:
    notice = {"sessionUpdate": "notice", "title": "Old version", "description": "update it"}
    found = turn(chunk("I look", "m1"), CALL, DONE, notice, chunk("Context compacted"), chunk("42", "m2"))
    assert (found.whole, found.reading.answer) == ("I look\n\n42", "42")
    assert found.notices == "Old version: update it\nContext compacted"
    assert turn(chunk("42")).whole == ""


def test_what_is_said_before_the_task_is_no_answer() -> None:
    heard = Heard("s")
    heard.learn(chunk("Welcome to the agent!"))
    assert heard.has_spoken_first()
    heard.is_asked = True
    heard.learn(chunk("42"))
    found = heard.turn({"stopReason": "end_turn"}, "do it")
    assert (found.reading.answer, found.notices) == ("42", "Welcome to the agent!")


@pytest.mark.parametrize(
    ("text", "failure", "reason"),
    [
        ("exceeded retry limit, last status: 429 Too Many Requests\n\n", Failure.TRANSIENT, "rate_limited"),
        (
            '{"error": {"message": "no", "type": "invalid_request_error", "code": null}}',
            Failure.PERMANENT,
            "invalid_request",
        ),
        ("unexpected status 402 Payment Required: stub, url: http://127.0.0.1/v1", Failure.AUTH, "billing"),
        ("unexpected status 503 Service Unavailable: stub", Failure.TRANSIENT, "server_error"),
        ("API Error: 529 overloaded", Failure.TRANSIENT, "overloaded"),
        (
            '{"error":{"code":401,"message":"API key not valid","status":"UNAUTHENTICATED"}}',
            Failure.AUTH,
            "not_authenticated",
        ),
        (
            '{"error": {"message": "too long", "code": "context_length_exceeded"}}',
            Failure.PERMANENT,
            "context_overflow",
        ),
    ],
)
@pytest.mark.parametrize("crashed", [True, False])
def test_a_turn_in_which_no_model_spoke_is_the_failure_that_its_program_tells(
    text: str, failure: Failure, reason: str, crashed: bool
) -> None:
    assert ended(turn(*([CRASHED] if crashed else []), chunk(text), **NO_USAGE)) == (failure, reason)


def test_half_an_answer_and_then_a_refused_call_is_a_failure() -> None:
    words = chunk("unexpected status 500 Internal Server Error: x")
    assert ended(turn(chunk("I begin", "m1"), words, **USED)) == (Failure.TRANSIENT, "server_error")
    assert ended(turn(chunk("I begin", "m1"), CRASHED, **USED)) == (Failure.TRANSIENT, "agent_error")
    told = {"sessionUpdate": "session_info_update"}
    again = {"codexErrorInfo": {"responseStreamDisconnected": {"httpStatusCode": 503}}, "willRetry": True}
    retry = told | {"_meta": {"codex": {"error": again}}}
    assert ended(turn(retry, CRASHED, chunk("stream disconnected"), **NO_USAGE)) == (Failure.TRANSIENT, "server_error")
    assert ended(turn(retry, chunk("42", "m1"), **USED)) == (None, None)


def test_an_agent_known_to_number_its_messages_that_gives_none_and_used_nothing_has_failed() -> None:
    words = chunk("stream disconnected before completion")
    assert ended(turn(words, numbers=True, **NO_USAGE)) == (Failure.TRANSIENT, "stream_cut")
    assert ended(turn(chunk("anything at all"), numbers=True, **NO_USAGE)) == (Failure.TRANSIENT, "agent_error")


@pytest.mark.parametrize(
    ("updates", "result"),
    [
        ((chunk("all fine"),), NO_USAGE),  # an agent that gives neither numbers nor usage
        ((chunk("API Error: 500 is what the log says"),), {}),
        ((chunk("API Error: 429", "m1"),), NO_USAGE),  # a model's own words
        ((chunk("exceeded retry limit, last status: 429"),), USED),
        ((chunk("see the log: unexpected status 401"),), NO_USAGE),
        ((chunk("unexpected status 401 x"), chunk("42", "m1")), USED),
    ],
)
def test_one_sign_alone_is_no_failure(updates: tuple[Update, ...], result: Update) -> None:
    assert ended(turn(*updates, **result)) == (None, None)


@pytest.mark.parametrize(
    ("stop", "failure", "reason"),
    [
        ("refusal", Failure.PERMANENT, "refused"),
        ("max_tokens", Failure.PERMANENT, "max_tokens"),
        ("max_turn_requests", Failure.PERMANENT, "max_turns"),
        ("cancelled", Failure.TRANSIENT, "unfinished"),
        ("paused", Failure.TRANSIENT, "agent_error"),
        ("", Failure.TRANSIENT, "agent_error"),
        (None, Failure.TRANSIENT, "agent_error"),
        ({"end_turn": 1}, Failure.TRANSIENT, "agent_error"),
    ],
)
def test_only_end_turn_is_an_end(stop: Any, failure: Failure, reason: str) -> None:
    assert ended(turn(chunk("half an ans"), stopReason=stop, **USED)) == (failure, reason)


def test_a_tool_that_still_runs_makes_a_turn_unfinished_and_one_that_never_ran_is_told() -> None:
    found = turn(chunk("done"), CALL, **USED)
    assert ended(found) == (Failure.TRANSIENT, "unfinished") and "ls" in found.reading.message
    waiting = turn(CALL | {"status": "pending"}, chunk("done"))
    assert ended(waiting) == (None, None) and "ls" in waiting.remark
    plan = {"sessionUpdate": "plan", "entries": [{"status": "in_progress"}, {"status": "completed"}]}
    assert turn(plan, chunk("done")).remark == "1 steps of its plan are open"


def test_a_turn_without_a_word_is_well_only_if_a_tool_ran() -> None:
    assert ended(turn(CALL, DONE)) == (None, None)
    assert ended(turn()) == (Failure.TRANSIENT, "no_output")
    assert ended(turn(chunk(" \n"))) == (Failure.TRANSIENT, "no_output")


@pytest.mark.parametrize("result", [NO_USAGE, {"usage": {"totalTokens": 0}}])
def test_a_description_that_the_program_takes_for_a_command_is_not_run(result: Update) -> None:
    help_text = chunk("Commands: /help")
    assert ended(turn(help_text, prompt=" /help me", **result)) == (Failure.PERMANENT, "not_run")
    assert ended(turn(chunk("42"), prompt="/etc/hosts has what?", **result)) == (None, None)
    assert ended(turn(chunk("42"), prompt="/help", **USED)) == (None, None)


@pytest.mark.parametrize(
    ("error", "failure", "reason"),
    [
        (
            RpcError(-32603, "Internal error: API Error: 400 no", {"errorKind": "unknown"}),
            Failure.PERMANENT,
            "invalid_request",
        ),
        (
            RpcError(-32603, "Internal error: API Error: Request rejected (429) x", {"errorKind": "rate_limit"}),
            Failure.TRANSIENT,
            "rate_limited",
        ),
        (RpcError(-32603, "Internal error: API Error: 529 x"), Failure.TRANSIENT, "overloaded"),
        (
            RpcError(-32603, "Internal error: API Error: 500 x", {"errorKind": "server_error"}),
            Failure.TRANSIENT,
            "server_error",
        ),
        (
            RpcError(-32603, "Internal error: Failed to authenticate. API Error: 401 x"),
            Failure.AUTH,
            "not_authenticated",
        ),
        (
            RpcError(-32603, "Internal error: Credit balance is too low", {"errorKind": "billing_error"}),
            Failure.AUTH,
            "billing",
        ),
        (
            RpcError(-32603, "Internal error: Prompt is too long", {"errorKind": "invalid_request"}),
            Failure.PERMANENT,
            "context_overflow",
        ),
        (RpcError(-32603, "x", {"codexErrorInfo": "usageLimitExceeded"}), Failure.LIMIT, "usage_limit"),
        (
            RpcError(-32603, "x", {"codexErrorInfo": {"httpConnectionFailed": {"httpStatusCode": 502}}}),
            Failure.TRANSIENT,
            "server_error",
        ),
        (
            RpcError(400, '{"error":{"code":400,"message":"no","status":"INVALID_ARGUMENT"}}'),
            Failure.PERMANENT,
            "invalid_request",
        ),
        (RpcError(429, "You have exhausted your daily quota on this model."), Failure.LIMIT, "usage_limit"),
        (RpcError(429, "slow down"), Failure.TRANSIENT, "rate_limited"),
        (RpcError(-32603, "Internal error"), Failure.TRANSIENT, "agent_error"),
        (RpcError(-32603, "the test says API Error: 401"), Failure.TRANSIENT, "agent_error"),
        (RpcError(-32603, "x", [1]), Failure.TRANSIENT, "agent_error"),
    ],
)
def test_errors_are_classed_by_status_kind_and_the_programs_own_words(
    error: RpcError, failure: Failure, reason: str
) -> None:
    ending = judged(fault_of(error))
    assert (ending.failure, ending.reason) == (failure, reason)
    assert ending.evidence == "strong" or ending.failure is Failure.TRANSIENT


def test_a_limit_with_its_time_is_read_from_an_error() -> None:
    ending = judged(fault_of(RpcError(-32603, "Internal error: You've hit your limit \u00b7 resets Jan 20, 5pm (UTC)")))
    assert ending.failure is Failure.LIMIT and ending.resets_at is not None


@pytest.mark.parametrize(
    ("result", "usage"),
    [
        # codex-acp: all of it in inputTokens
        (
            {
                "usage": {
                    "totalTokens": 120,
                    "inputTokens": 100,
                    "cachedReadTokens": 60,
                    "cachedWriteTokens": 0,
                    "outputTokens": 20,
                    "thoughtTokens": 15,
                }
            },
            (100, 60, 20, None),
        ),
        # claude-agent-acp: what came from the cache is beside it
        (
            {
                "usage": {
                    "totalTokens": 190,
                    "inputTokens": 10,
                    "cachedReadTokens": 150,
                    "cachedWriteTokens": 10,
                    "outputTokens": 20,
                }
            },
            (170, 150, 20, None),
        ),
        (
            {"usage": {"totalTokens": 37, "inputTokens": 10, "outputTokens": 20, "thoughtTokens": 7}},
            (10, None, 27, None),
        ),
        ({"usage": {"inputTokens": 10, "cachedReadTokens": 150, "outputTokens": 20}}, (160, 150, 20, None)),
        # gemini
        (
            {
                "_meta": {
                    "quota": {
                        "token_count": {"input_tokens": 11, "output_tokens": 5},
                        "model_usage": [{"model": "gemini-2.5-pro"}],
                    }
                }
            },
            (11, None, 5, "gemini-2.5-pro"),
        ),
        (
            {"usage": {"inputTokens": -1, "outputTokens": "x"}, "_meta": {"quota": {"model_usage": [7]}}},
            (None, None, None, None),
        ),
        ({}, (None, None, None, None)),
    ],
)
def test_all_that_is_told_of_its_use_is_read(result: Update, usage: tuple[object, ...]) -> None:
    cost = {"sessionUpdate": "usage_update", "used": 1, "size": 2, "cost": {"amount": 0.25, "currency": "USD"}}
    found = turn(chunk("x", "m"), cost, **result).reading.usage
    assert found is not None
    assert (found.input_tokens, found.cached_input_tokens, found.output_tokens, found.model) == usage
    assert (found.cost_usd, found.session_id) == (0.25, "s")
    euros = cost | {"cost": {"amount": 1, "currency": "EUR"}}
    assert turn(chunk("x"), euros).reading.usage.cost_usd is None  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["chunks", "numbers", "calls and dots"])
def test_a_turn_of_very_many_parts_is_read_in_a_time_that_grows_with_them(kind: str) -> None:
    heard = Heard("s")
    heard.is_asked = True
    for place in range(100_000):  # what takes the square of it would take minutes
        if kind == "calls and dots":
            heard.learn(CALL | {"toolCallId": str(place), "status": "completed"})
        heard.learn(chunk("." if kind == "calls and dots" else "ab", str(place) if kind == "numbers" else None))
        assert heard.is_whole() or kind == "calls and dots"
    assert len(str(heard.turn({"stopReason": "end_turn"}, "do it").reading.answer)) >= 100_000
