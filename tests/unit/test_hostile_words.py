"""Lines that tools, hooks and test runs print are no words of the CLI: they hold nobody and end no task at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.printing import INIT, judged, printed
from tests.recorded import recorded
from watcher.policy.after_attempt import Failure
from watcher.runner.providers.built_in import BUILT_IN

__all__ = ["printed"]

#: What a task may make a tool print: names of tests, HTTP logs, hits of a search, traces, logs, other CLIs' words.
LINES = (
    "FAILED tests/test_limits.py::test_maxRequestsPerDay",
    "Iteration limit reached in tests/loop.py",
    "5-hour limit reached in the simulation",
    "Recursion limit reached",
    "OAuth token refresh test failed: see tests/test_oauth.py",
    "OAuth token has expired (expected by test_expiry)",
    "HTTP/1.1 401 Unauthorized  <- curl of an API under test",
    "< HTTP/2 403 Forbidden",
    "401 Unauthorized",
    "Error: Unauthorized",
    "Unauthorized: GET /api/users",
    "assert response.error == API_KEY_INVALID",
    "Invalid API key in fixture users.json, expected a 401",
    "Error: Invalid API key",
    "Incorrect API key provided: sk-test",
    "Missing API key: the fixture has none",
    "the API key is required for this test",
    "Not logged in",
    "Not logged in: redirecting to /login (test_session.py:41)",
    "Error: Not logged in to the registry. Run npm login",
    "Authentication required",
    "Authentication failed for 'https://git.example.org/x.git'",
    "Failed to authenticate the test user",
    "Please run /login before the next request, says the page",
    "remote: Invalid username or password.",
    "E   AssertionError: API Error: 401 {'detail': 'no'}",
    "API Error: 401 from GET /v2/orders",
    "API Error: 400 from POST /v2/orders",
    "API Error: Request rejected (429)",
    "{'error': {'code': 429, 'message': 'You exceeded your current quota'}}",
    "error: unknown option '--strict'",
    "error: unknown option `cached'",
    "error: option '--port' argument missing",
    "error: too many arguments",
    "error: unexpected argument '--nocapture' found\n\nUsage: cargo test [OPTIONS]",
    "Unknown argument: watch\nUsage: vite [options]",
    "Unknown arguments: foo, bar",
    "Not enough arguments following: port",
    "usage: pytest [options] [file_or_dir]",
    "Prompt is too long",
    "src/chat.py:88: Prompt is too long",
    "Prompt is too long for this fixture (test_prompt.py)",
    "the context window of the test model has 8192 tokens",
    "This model's maximum context length is 8192 tokens",
    "context_length_exceeded",
    "The input token count exceeds the maximum number of tokens allowed",
    "ModelNotFoundError: no row for model 7",
    "django.core.exceptions.ModelNotFoundError: Model not found",
    "Model not found",
    "The model User does not exist in this database",
    "There's an issue with the selected model in the form",
    "Cannot use this model: it is abstract",
    "Session not found",
    "Error: Session ID 42 is already in use.",
    "No conversation found with session ID: 7",
    "Workspace trust is off in this editor",
    "Not inside a trusted directory",
    "Error loading config file ./fixtures/broken.toml",
    "You've hit your rate limit of 3 requests per test",
    "You've hit your limits",
    "AssertionError: You've hit your usage limit",
    "usage limit reached for user 3",
    "Claude AI usage limit reached|soon",
    "You have exhausted your daily quota of retries",
    "Your quota will reset after 5m (fake clock)",
    "Quota exceeded: 3 of 2 mails sent",
    "Credit balance is too low: refusing order 17 (expected)",
    "insufficient_quota",
    "402 Payment Required: insufficient balance",
    "Error: ENOTFOUND api.anthropic.com (mocked)",
    "npm ERR! code E401",
    "opencode run [message..]",
    "Traceback (most recent call last):\n  File \"t.py\", line 1\nAuthenticationError: invalid api key",
    "2026-11-22T03:10:06Z ERROR proxy: unexpected status 401 Unauthorized: test, url: http://x/v1",
    "unexpected status 403 for GET /admin",
    "stream disconnected by the test server",
    "--dangerously-skip-permissions cannot be used with root, says the manual",
    "[API Error: 401] in a log",
    "No auth type is selected in the form",
)  # fmt: skip
#: What has come before it on stdout.
BEGINNINGS = {
    "nothing": b"",
    "an event": json.dumps(INIT).encode() + b"\n",
    "a tool": b"".join(
        json.dumps(event).encode() + b"\n"
        for event in (
            INIT,
            {"type": "thread.started", "thread_id": "t"},
            {"type": "assistant", "message": {"content": [{"type": "tool_use", "name": "Bash"}]}},
            {"type": "tool_use", "part": {"tool": "bash"}, "sessionID": "s", "tool_name": "run_shell_command"},
        )
    ),
}
HOLDS = (Failure.AUTH, Failure.LIMIT)


@pytest.mark.parametrize("provider", list(BUILT_IN))
@pytest.mark.parametrize("beginning", list(BEGINNINGS))
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_a_tool_prints_holds_nobody_and_ends_no_task(
    provider: str, beginning: str, stream: str, printed: Any
) -> None:
    wrong = []
    for line in LINES:
        for text in (line, f"collected 3 items\n{line}\n1 failed", f"{line}\nmake: *** [test] Error 1"):
            stdout, stderr = BEGINNINGS[beginning], text
            if stream == "stdout":
                stdout, stderr = stdout + text.encode() + b"\n", ""
            ending = judged(provider, 1, stdout, stderr, printed)
            if ending.failure is not Failure.TRANSIENT:
                wrong.append((text, ending.failure, ending.reason))
    assert wrong == []


@pytest.mark.parametrize("provider", list(BUILT_IN))
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_a_tool_prints_holds_nobody_in_text_mode(provider: str, stream: str, printed: Any) -> None:
    wrong = []
    for line in LINES:
        text = f"collected 3 items\n{line}\n1 failed in 0.2 s"
        stdout, stderr = (text.encode(), "") if stream == "stdout" else (b"I ran the tests.\n", text)
        ending = judged(provider, 1, stdout, stderr, printed, output="text")
        if ending.failure is not Failure.TRANSIENT:
            wrong.append((text, ending.failure, ending.reason))
    assert wrong == []


@pytest.mark.parametrize("provider", list(BUILT_IN))
def test_words_of_one_cli_are_none_of_another(provider: str, printed: Any) -> None:
    """What the others printed when they failed, on stderr of one that had begun."""
    wrong = []
    for case in recorded():
        text = (case.folder / "stderr").read_text() + (case.folder / "stdout").read_text()
        if case.provider != provider and case.fields["output"] == "text":
            ending = judged(provider, 1, BEGINNINGS["a tool"], text, printed)
            if ending.failure is not Failure.TRANSIENT:
                wrong.append((case.name, ending.failure, ending.reason))
    assert wrong == []


def test_words_alone_are_weak_and_an_event_is_strong(printed: Any) -> None:
    text = "You've hit your 5-hour limit · resets 11:26pm (UTC)"
    said = judged("claude", 1, text.encode(), "", printed, output="text")
    assert (said.failure, said.evidence) == (Failure.LIMIT, "weak")
    failed = {"type": "turn.failed", "error": {"message": "You've hit your usage limit. Try again at 11:30 PM."}}
    event = judged("codex", 1, json.dumps(failed).encode() + b"\n", "", printed)
    assert (event.failure, event.evidence) == (Failure.LIMIT, "strong")
