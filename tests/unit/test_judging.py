"""What the outputs and exit codes of the agent CLIs mean.

The events were recorded from claude 2.1.330 and gemini 0.61.0 (shortened); cursor-agent's are from its documentation.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.printing import INIT, LIMIT_EVENT, NOW, claude_failure, claude_result, judged, lines, printed
from watcher.policy.after_attempt import Ending, Failure
from watcher.runner.printed_text import events
from watcher.runner.providers.built_in import built_in
from watcher.runner.providers.claude_events import read_claude
from watcher.runner.providers.failure_words import Printed
from watcher.runner.providers.judging import judge
from watcher.runner.providers.output_events import Reading, read_codex, read_opencode
from watcher.runner.providers.provider import Provider, Rule

__all__ = ["printed"]


def test_claude_that_finished_without_an_error_has_succeeded(printed: Any) -> None:
    assert judged("claude", 0, lines(INIT, claude_result()), "", printed) == Ending(None)


@pytest.mark.parametrize(
    ("stdout", "expected", "reason"),
    [
        (claude_failure("server_error", "API Error: 529 Overloaded.", 529), Failure.TRANSIENT, "overloaded"),
        (claude_failure("server_error", "API Error: 500 x", 500), Failure.TRANSIENT, "server_error"),
        (claude_failure("rate_limit", "API Error: Request rejected (429)", 429), Failure.TRANSIENT, "rate_limited"),
        (claude_failure("unknown", "API Error: Connection error.", None), Failure.TRANSIENT, "exit_code"),
        (
            claude_failure("authentication_failed", "Failed to authenticate. API Error: 401 x", 401),
            Failure.AUTH,
            "not_authenticated",
        ),
        (
            claude_failure("authentication_failed", "Not logged in · Please run /login", None),
            Failure.AUTH,
            "not_authenticated",
        ),
        (claude_failure("billing_error", "Credit balance is too low", 400), Failure.AUTH, "billing"),
        (
            claude_failure("model_not_found", "There's an issue with the selected model (nope).", 404),
            Failure.PERMANENT,
            "model_not_found",
        ),
        (
            claude_failure("invalid_request", "Prompt is too long · the request is ~250000", 400, "prompt_too_long"),
            Failure.PERMANENT,
            "context_overflow",
        ),
        (claude_failure("invalid_request", "Prompt is too long", 400), Failure.PERMANENT, "context_overflow"),
        (claude_failure("unknown", "API Error: 400 x", 400), Failure.PERMANENT, "invalid_request"),
        (
            lines(INIT, {k: v for k, v in claude_result().items() if k != "result"} | {
                "is_error": True, "subtype": "error_max_turns", "errors": ["Reached maximum number of turns (1)"],
            }),
            Failure.PERMANENT,
            "max_turns",
        ),
        (
            lines(INIT, claude_result(is_error=True, subtype="error_during_execution", result=None)),
            Failure.TRANSIENT,
            "exit_code",
        ),
    ],
)  # fmt: skip
def test_class_of_a_claude_failure_comes_from_its_events(
    stdout: bytes, expected: Failure, reason: str, printed: Any
) -> None:
    ending = judged("claude", 1, stdout, "", printed)
    assert (ending.failure, ending.reason) == (expected, reason)
    assert (ending.detail or "").startswith("claude: ")
    assert ending.resets_at is None


def test_usage_limit_holds_claude_until_it_is_reset(printed: Any) -> None:
    failure = claude_failure("rate_limit", "You've hit your 5-hour limit · resets 1:03am (UTC)", 429)
    ending = judged("claude", 1, lines(INIT, LIMIT_EVENT) + failure, "", printed)
    assert (ending.failure, ending.reason, ending.resets_at) == (Failure.LIMIT, "usage_limit", NOW + 3600)
    assert "5-hour limit" in (ending.detail or "")


def test_reset_that_is_a_minute_past_is_over_and_never_tomorrow(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    said = {"type": "turn.failed", "error": {"message": "You've hit your usage limit. Try again at 10:25 PM."}}
    ending = judged("codex", 1, lines(said), "", printed)
    assert (ending.failure, ending.resets_at) == (Failure.LIMIT, NOW - 100)
    text = "You've hit your 5-hour limit \u00b7 resets 10:25pm (UTC)"
    ending = judged("claude", 1, text.encode(), "", printed, output="text")
    assert (ending.failure, ending.resets_at) == (Failure.LIMIT, NOW - 100)
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("resets_at", [None, "soon", -5, 1e300, NOW + 90 * 86_400, NOW - 90 * 86_400, True])
def test_reset_time_that_cannot_be_is_not_believed(resets_at: object, printed: Any) -> None:
    info = {"status": "rejected", "resetsAt": resets_at}
    stdout = lines({"type": "rate_limit_event", "rate_limit_info": info}) + claude_failure("rate_limit", "x", 429)
    ending = judged("claude", 1, stdout, "", printed)
    assert (ending.failure, ending.resets_at) == (Failure.LIMIT, None)


def test_limit_that_was_lifted_again_is_no_limit(printed: Any) -> None:
    allowed = {"type": "rate_limit_event", "rate_limit_info": {"status": "allowed", "resetsAt": NOW}}
    stdout = lines(LIMIT_EVENT, allowed) + claude_failure("server_error", "API Error: 500", 500)
    assert judged("claude", 1, stdout, "", printed).reason == "server_error"
    assert judged("claude", 0, lines(LIMIT_EVENT, claude_result()), "", printed) == Ending(None)


@pytest.mark.parametrize(
    ("stderr", "expected", "reason"),
    [
        ("error: unknown option '--nonsense'", Failure.PERMANENT, "bad_argument"),
        (
            "Error: When using --print, --output-format=stream-json requires --verbose",
            Failure.PERMANENT,
            "bad_argument",
        ),
        ("Error: Session ID 123 is already in use.", Failure.PERMANENT, "bad_session"),
        (
            "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons",
            Failure.AUTH,
            "refuses_root",
        ),
        ("something broke", Failure.TRANSIENT, "exit_code"),
        ("", Failure.TRANSIENT, "exit_code"),
    ],
)
def test_claude_that_could_not_begin_says_why_on_stderr(
    stderr: str, expected: Failure, reason: str, printed: Any
) -> None:
    ending = judged("claude", 1, b"", stderr, printed, words="--nonsense --session-id 123")
    assert (ending.failure, ending.reason) == (expected, reason)


@pytest.mark.parametrize(
    ("stdout", "expected", "reason", "resets_at"),
    [
        ("Failed to authenticate. API Error: 401 x", Failure.AUTH, "not_authenticated", None),
        ("Invalid API key · Fix external API key", Failure.AUTH, "not_authenticated", None),
        ("Credit balance is too low", Failure.AUTH, "billing", None),
        ("You've hit your 5-hour limit · resets 11:26pm (UTC)", Failure.LIMIT, "usage_limit", NOW + 3560),
        ("You've hit your weekly limit · resets Nov 25, 9:00am (UTC)", Failure.LIMIT, "usage_limit", 1_795_597_200.0),
        ("You've reached your limit", Failure.LIMIT, "usage_limit", None),
        (f"Claude AI usage limit reached|{int(NOW) + 60}", Failure.LIMIT, "usage_limit", NOW + 60),
        (f"Claude AI usage limit reached|{int(NOW) + 60}000", Failure.LIMIT, "usage_limit", NOW + 60),
        ("API Error: 529 Overloaded.", Failure.TRANSIENT, "overloaded", None),
        ("API Error: Request rejected (429) · x", Failure.TRANSIENT, "rate_limited", None),
        ("API Error: 400 x", Failure.PERMANENT, "invalid_request", None),
        ("Prompt is too long", Failure.PERMANENT, "context_overflow", None),
        ("I read that the credit balance is low: Credit balance is too low", Failure.TRANSIENT, "exit_code", None),
        ("Rate limit reached", Failure.TRANSIENT, "exit_code", None),
    ],
)
def test_class_of_a_claude_failure_in_text_comes_from_all_that_it_says(
    stdout: str, expected: Failure, reason: str, resets_at: float | None, printed: Any
) -> None:
    ending = judged("claude", 1, f"{stdout}\n".encode(), "", printed, output="text")
    assert (ending.failure, ending.reason, ending.resets_at) == (expected, reason, resets_at)
    more = judged("claude", 1, f"{stdout}\nsome words\n".encode(), stdout, printed, output="text")
    assert (more.failure, more.reason) == (Failure.TRANSIENT, "exit_code")
    assert stdout in (ending.detail or "")


def test_exit_0_without_a_final_event_is_no_success(printed: Any) -> None:
    ending = judged("claude", 0, lines(INIT, b'{"type":"resu'), "", printed)
    assert (ending.failure, ending.reason) == (Failure.TRANSIENT, "no_result")
    ending = judged("claude", 0, lines(INIT, claude_result(is_error=True, result="hm")), "", printed)
    assert (ending.failure, ending.reason) == (Failure.TRANSIENT, "agent_error")


def test_exit_code_1_after_a_good_final_event_is_no_success(printed: Any) -> None:
    assert judged("claude", 1, lines(INIT, claude_result()), "", printed).failure is Failure.TRANSIENT


REPORT = "Error when talking to Gemini API Full report available at: /tmp/x "


def gemini_end(status: str, message: str = "") -> bytes:
    end: dict[str, Any] = {"type": "result", "status": status, "stats": {"input_tokens": 0, "output_tokens": 0}}
    if message:
        end["error"] = {"type": "unknown", "message": message}
    said = {"type": "message", "role": "assistant", "content": "x"}
    return lines({"type": "init", "model": "m"}, {"type": "message", "role": "user", "content": "x"}, said, end)


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "expected", "reason"),
    [
        (0, gemini_end("success"), "", None, None),
        (0, gemini_end("error", "boom"), "", Failure.TRANSIENT, "agent_error"),
        (41, b"", "Invalid auth method selected.", Failure.AUTH, "not_authenticated"),
        (145, gemini_end("error", "[API Error: 401]"), "", Failure.AUTH, "not_authenticated"),
        (147, gemini_end("error", "[API Error: 403]"), "", Failure.AUTH, "not_authenticated"),
        (144, gemini_end("error", "[API Error: 400]"), "", Failure.PERMANENT, "invalid_request"),
        (
            144,
            gemini_end("error", "API key not valid. Please pass a valid API key."),
            "",
            Failure.AUTH,
            "not_authenticated",
        ),
        (
            1,
            gemini_end("error", "[API Error: x]"),
            f"{REPORT}ModelNotFoundError: x",
            Failure.PERMANENT,
            "model_not_found",
        ),
        (1, gemini_end("error", "[API Error: x]"), "ModelNotFoundError: x", Failure.TRANSIENT, "exit_code"),
        (55, b"", "\x1b[31mGemini CLI is not running in a trusted directory.", Failure.PERMANENT, "untrusted_folder"),
        (1, b"", "Unknown argument: skip-trust\nUsage: gemini [options]", Failure.PERMANENT, "bad_argument"),
        (42, b"", "no input", Failure.PERMANENT, "invalid_request"),
        (53, b"", "turns", Failure.PERMANENT, "max_turns"),
        (
            173,
            gemini_end("error", "You have exhausted your daily quota on this model."),
            "",
            Failure.LIMIT,
            "usage_limit",
        ),
        (173, gemini_end("error", "[API Error: slow down]"), "", Failure.TRANSIENT, "rate_limited"),
        (247, gemini_end("error", "[API Error: 503]"), "", Failure.TRANSIENT, "overloaded"),
        (244, gemini_end("error", "[API Error: 500]"), "", Failure.TRANSIENT, "server_error"),
        (1, b"", "what?", Failure.TRANSIENT, "exit_code"),
    ],
)
def test_class_of_a_gemini_failure_comes_from_its_exit_code(
    code: int, stdout: bytes, stderr: str, expected: Failure | None, reason: str | None, printed: Any
) -> None:
    ending = judged("gemini", code, stdout, stderr, printed)
    assert (ending.failure, ending.reason) == (expected, reason)


@pytest.mark.parametrize(("after", "seconds"), [("8h44m7s", 31_447), ("53s", 53), ("1d2h", 93_600), ("1.5s", 1.5)])
def test_gemini_says_after_what_time_its_quota_is_back(after: str, seconds: float, printed: Any) -> None:
    text = f"You have exhausted your capacity on this model. Your quota will reset after {after}."
    ending = judged("gemini", 173, gemini_end("error", text), "", printed)
    assert (ending.failure, ending.resets_at) == (Failure.LIMIT, NOW + seconds)


def test_error_that_gemini_prints_as_json_is_told_in_its_own_words(printed: Any) -> None:
    stderr = json.dumps({"session_id": "s", "error": {"message": 'it "broke"', "code": 401}}, indent=2)
    ending = judged("gemini", 145, b"", stderr, printed, output="json")
    assert ending.reason == "not_authenticated"
    assert 'it "broke"' in (ending.detail or "")


@pytest.mark.parametrize(
    ("stderr", "expected", "reason"),
    [
        ("Error: Not authenticated. Run cursor-agent login", Failure.AUTH, "not_authenticated"),
        ("Authentication required. Please run 'agent login' first", Failure.AUTH, "not_authenticated"),
        ("ActionRequiredError: You've hit your usage limit", Failure.LIMIT, "usage_limit"),
        ("error: unknown option '--trust'", Failure.PERMANENT, "bad_argument"),
        ("Cannot use this model: x. Available models: auto, y", Failure.PERMANENT, "model_not_found"),
        ("Error: aborted", Failure.TRANSIENT, "exit_code"),
    ],
)
def test_class_of_a_cursor_failure_comes_from_its_words(
    stderr: str, expected: Failure, reason: str, printed: Any
) -> None:
    ending = judged("cursor-agent", 1, b"", stderr, printed)
    assert (ending.failure, ending.reason) == (expected, reason)
    begun = judged("cursor-agent", 1, lines(INIT), stderr, printed)
    assert begun.failure is (Failure.TRANSIENT if expected is Failure.PERMANENT else expected)


def test_cursor_succeeds_with_its_final_event(printed: Any) -> None:
    end = {"type": "result", "subtype": "success", "is_error": False, "result": "done", "session_id": "s"}
    assert judged("cursor-agent", 0, lines(INIT, end), "", printed) == Ending(None)
    assert judged("cursor-agent", 0, lines(INIT), "", printed).reason == "no_result"


def test_signal_wins_over_all_words(printed: Any) -> None:
    ending = judged("claude", -9, claude_failure("billing_error", "Credit balance is too low", 400), "", printed)
    assert (ending.failure, ending.reason) == (Failure.TRANSIENT, "killed_by_signal")
    assert "SIGKILL" in (ending.detail or "")


def test_events_decide_before_exit_codes_and_exit_codes_before_words(printed: Any) -> None:
    known = Provider(
        "x",
        ("x",),
        output="stream-json",
        reader=read_claude,
        rules=(
            Rule(Failure.PERMANENT, "by_words", pattern=re.compile("boom")),
            Rule(Failure.AUTH, "by_exit_code", exit_codes=frozenset({3})),
            Rule(Failure.LIMIT, "by_event", signs=frozenset({"status:429"})),
        ),
    )
    for event, code, reason in (
        ({"api_error_status": 429}, 3, "by_event"),
        ({}, 3, "by_exit_code"),
        ({}, 1, "by_words"),
    ):
        fd, size = printed(lines(claude_result(is_error=True, **event)))
        found = read_claude(events(fd, size, "stream-json"))
        assert judge(known, code, found, lambda: Printed("", "boom"), NOW).reason == reason


@pytest.mark.parametrize(
    ("rule", "code", "evidence"),
    [
        (Rule(Failure.LIMIT, "x", signs=frozenset({"status:429"})), 1, "strong"),
        (Rule(Failure.LIMIT, "x", signs=frozenset({"status:429"}), pattern=re.compile("boom")), 1, "strong"),
        (Rule(Failure.AUTH, "x", exit_codes=frozenset({41})), 41, "strong"),
        (Rule(Failure.AUTH, "x", exit_codes=frozenset({1, 41}), pattern=re.compile("boom")), 1, "weak"),
        (Rule(Failure.AUTH, "x", pattern=re.compile("boom")), 41, "weak"),
    ],
)
def test_words_alone_are_weak_evidence(rule: Rule, code: int, evidence: str, printed: Any) -> None:
    known = Provider("x", ("x",), output="stream-json", reader=read_claude, rules=(rule,))
    fd, size = printed(lines(claude_result(is_error=True, api_error_status=429)))
    found = read_claude(events(fd, size, "stream-json"))
    assert judge(known, code, found, lambda: Printed("", "boom"), NOW).evidence == evidence


def test_refused_tool_fails_the_task_unless_the_provider_allows_it(printed: Any) -> None:
    fd, size = printed(lines(INIT, claude_result(permission_denials=[{"tool_name": "Bash"}, {"tool_name": "Bash"}, 7])))
    known = built_in()["claude"]
    found = read_claude(events(fd, size, "stream-json"))
    ending = judge(known, 0, found, Printed, NOW)
    assert (ending.failure, ending.reason) == (Failure.PERMANENT, "denied")
    assert "not allowed to use Bash, so" in (ending.detail or "")
    assert judge(replace(known, denials_are_fine=True), 0, found, Printed, NOW) == Ending(None)


def test_success_without_an_answer_needs_a_tool_that_ran(printed: Any) -> None:
    known = built_in()["claude"]
    tool = {"type": "assistant", "message": {"content": [{"type": "tool_use", "name": "Bash"}]}}
    for printed_lines, reason in (
        (lines(INIT, claude_result(result=" ")), "no_output"),
        (lines(tool, claude_result(result="")), None),
    ):
        fd, size = printed(printed_lines)
        assert judge(known, 0, read_claude(events(fd, size, "stream-json")), Printed, NOW).reason == reason
    assert judge(known, 0, None, Printed, NOW, stdout_bytes=0).reason == "no_output"
    assert judge(Provider("x", ("x",)), 0, None, Printed, NOW, stdout_bytes=0) == Ending(None)


def test_end_without_a_final_event_is_told_apart_from_silence(printed: Any) -> None:
    known = built_in()["opencode"]
    step = {"type": "step_finish", "part": {"reason": "tool-calls"}}
    fd, size = printed(lines({"type": "step_start"}, {"type": "text", "part": {"text": "x"}}, step))
    assert judge(known, 0, read_opencode(events(fd, size, "stream-json")), Printed, NOW, size).reason == "no_result"
    assert judge(known, 0, Reading(), Printed, NOW, stdout_bytes=0).reason == "no_output"


def test_codex_that_was_heard_after_all_has_succeeded(printed: Any) -> None:
    said = {"type": "item.completed", "item": {"type": "agent_message", "text": "x"}}
    error = {"type": "error", "message": "Reconnecting... 1/5 (unexpected status 500)"}
    for end, expected in (({"type": "turn.completed"}, None), ({"type": "item.started"}, Failure.TRANSIENT)):
        fd, size = printed(lines(error, said, end))
        found = read_codex(events(fd, size, "stream-json"))
        assert judge(built_in()["codex"], 0, found, Printed, NOW).failure is expected


def test_success_without_its_mcp_servers_says_so(printed: Any) -> None:
    servers = [{"name": "a", "status": "connected"}, {"name": "b", "status": "failed"}, {"name": 7}, None]
    ending = judged("claude", 0, lines(INIT | {"mcp_servers": servers}, claude_result()), "", printed)
    assert ending.failure is None
    assert "MCP servers b (failed);" in (ending.detail or "")


def test_cure_of_a_refused_login_ends_with_the_command_that_lifts_the_hold(printed: Any) -> None:
    refused = claude_failure("authentication_failed", "Not logged in", None)
    detail = judged("claude", 1, refused, "", printed).detail
    assert detail is not None and detail.endswith("set ANTHROPIC_API_KEY, then `watcher resume --provider claude`")
    variant = replace(built_in()["claude"], name="planner")
    detail = judge(variant, 1, None, lambda: Printed("Not logged in · Please run /login"), NOW).detail
    assert detail is not None and detail.endswith("then `watcher resume --provider planner`")


def test_detail_is_short_and_can_be_stored(printed: Any) -> None:
    ending = judged("claude", 1, b"", "x" * 100_000 + "\ud800\0", printed)
    assert len(ending.detail or "") < 2000
    (ending.detail or "").encode()
