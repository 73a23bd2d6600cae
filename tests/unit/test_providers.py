"""What the command lines of the agent CLIs are, and what their outputs and exit codes mean.

The events were recorded from claude 2.1.330 and gemini 0.61.0 (shortened); cursor-agent's are from its documentation.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from watcher.policy.disposition import Ending, Failure
from watcher.runner import reading as module
from watcher.runner.builtin import built_in
from watcher.runner.judging import judge
from watcher.runner.providers import Provider, Rule, environment_for, find_program
from watcher.runner.reading import bounded_text, events, harmless, shortened
from watcher.runner.shapes import Reading, read_claude, read_codex, read_gemini, read_opencode, read_qwen

NOW = 1_795_300_000.0  # 2026-11-21T22:26:40Z
CLAUDE = ("--print", "--dangerously-skip-permissions", "--output-format", "stream-json", "--verbose")
INIT = {"type": "system", "subtype": "init", "cwd": "/w", "session_id": "s", "apiKeySource": "none"}


def lines(*given: Any) -> bytes:
    return b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in given)


@pytest.fixture
def printed(tmp_path: Path) -> Iterator[Any]:
    """Puts bytes into a file, as a command's output is, and gives its descriptor and size."""
    fds = []

    def put(raw: bytes) -> tuple[int, int]:
        path = tmp_path / f"out{len(fds)}"
        path.write_bytes(raw)
        fds.append(os.open(path, os.O_RDONLY))
        return fds[-1], len(raw)

    yield put
    for fd in fds:
        os.close(fd)


def claude_result(**more: Any) -> dict[str, Any]:
    """As it is recorded: `type` stands near the end."""
    given = {
        "duration_api_ms": 84,
        "session_id": "s",
        "total_cost_usd": 0.000144,
        "usage": {
            "input_tokens": 11,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 5,
        },
        "permission_denials": [],
        "terminal_reason": "completed",
        "is_error": False,
        "num_turns": 1,
        "subtype": "success",
        "api_error_status": None,
        "result": "Hello there",
        "type": "result",
    }
    return given | more


def claude_failure(word: str, text: str, status: int | None, terminal: str = "api_error") -> bytes:
    """What claude prints for an API error, `subtype` "success" included."""
    return lines(
        INIT,
        {"type": "assistant", "message": {"content": [{"type": "text", "text": text}]}, "error": word},
        claude_result(is_error=True, result=text, api_error_status=status, terminal_reason=terminal),
    )


LIMIT_EVENT = {
    "type": "rate_limit_event",
    "rate_limit_info": {"status": "rejected", "resetsAt": int(NOW) + 3600, "rateLimitType": "five_hour"},
}


def judged(provider: str, code: int, stdout: bytes, stderr: str, printed: Any, output: str = "stream-json") -> Ending:
    known = built_in()[provider]
    assert known.reader is not None
    fd, size = printed(stdout)
    found = None if output == "text" else known.reader(events(fd, size, output, known.mentions))
    text = f"{stdout.decode() if found is None else found.message}\n{stderr}"
    return judge(known, code, found, lambda: text, NOW)


# --- the command lines


@pytest.mark.parametrize(
    ("command", "argv", "output"),
    [
        ("claude", ("claude", *CLAUDE), "stream-json"),
        ("claude --output-format text", ("claude", "--output-format", "text", *CLAUDE[:2]), "text"),
        ("claude --output-format=json", ("claude", "--output-format=json", *CLAUDE[:2]), "json"),
        (
            "claude -p --permission-mode plan",
            ("claude", "-p", "--permission-mode", "plan", *CLAUDE[2:]),
            "stream-json",
        ),
        (
            "claude --print --output-format stream-json",
            ("claude", "--print", "--output-format", "stream-json", CLAUDE[1], CLAUDE[4]),
            "stream-json",
        ),
        (
            "docker run -p 80:80 box /opt/claude --model x",
            ("docker", "run", "-p", "80:80", "box", "/opt/claude", "--model", "x", *CLAUDE),
            "stream-json",
        ),
    ],
)
def test_claude_is_started_with_what_its_command_does_not_say_already(
    command: str, argv: tuple[str, ...], output: str
) -> None:
    assert built_in({"claude": command})["claude"].argv() == (argv, output)


def test_gemini_and_cursor_are_started_so_that_they_never_ask() -> None:
    known = built_in()
    gemini = ("gemini", "--skip-trust", "--approval-mode", "yolo", "-o", "stream-json")
    assert known["gemini"].argv() == (gemini, "stream-json")
    cursor = ("cursor-agent", "--print", "--force", "--trust", "--approve-mcps", "--output-format", "stream-json")
    assert known["cursor-agent"].argv() == (cursor, "stream-json")
    assert built_in({"gemini": "gemini -y --output-format json"})["gemini"].argv() == (
        ("gemini", "-y", "--output-format", "json", "--skip-trust"),
        "json",
    )


def test_codex_opencode_and_qwen_are_started_so_that_they_never_ask() -> None:
    known = built_in()
    codex = ("codex", "exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox")
    assert known["codex"].argv() == ((*codex, "--ephemeral"), "stream-json")
    assert known["opencode"].argv() == (("opencode", "run", "--auto", "--format", "json"), "stream-json")
    assert known["qwen"].argv() == (("qwen", "--approval-mode", "yolo", "-o", "stream-json"), "stream-json")
    assert all(known[name].prompt == "stdin" for name in known)


@pytest.mark.parametrize(
    ("name", "command", "added", "output"),
    [
        ("codex", "codex exec -s read-only", ("--json", "--skip-git-repo-check", "--ephemeral"), "stream-json"),
        ("opencode", "opencode run --format default", ("--auto",), "text"),
        ("qwen", "qwen -o json -y", (), "json"),
    ],
)
def test_what_a_command_says_itself_is_not_added_again(
    name: str, command: str, added: tuple[str, ...], output: str
) -> None:
    assert built_in({name: command})[name].argv() == ((*command.split(), *added), output)


def test_any_command_is_a_provider_with_text_output() -> None:
    known = built_in({"command": ("my-agent", "--x"), "mine": "tool 'two words'", "empty": ()}, prompt="file")
    assert known["command"].argv() == (("my-agent", "--x"), "text")
    assert known["command"].prompt == "file"
    assert known["mine"].command == ("tool", "two words")
    assert "empty" not in known
    assert "command" not in built_in()


def test_program_is_found_under_its_other_name_unless_the_command_was_chosen(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_text("#!/bin/sh\n")
    agent.chmod(0o755)
    assert find_program(built_in()["cursor-agent"], str(tmp_path)) == str(agent)
    assert find_program(built_in({"cursor-agent": "my-cursor"})["cursor-agent"], str(tmp_path)) is None
    (tmp_path / "cursor-agent").symlink_to(agent)
    assert find_program(built_in()["cursor-agent"], str(tmp_path)) == str(tmp_path / "cursor-agent")


def test_program_given_by_a_relative_path_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agent.sh").write_text("#!/bin/sh\n")
    (tmp_path / "agent.sh").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert find_program(Provider("x", ("./agent.sh",)), "/usr/bin") == str(tmp_path / "agent.sh")


# --- the environment


def test_each_provider_sees_its_own_keys_and_not_those_of_others() -> None:
    environ = {
        "PATH": "/bin",
        "LC_TIME": "C",
        "https_proxy": "http://p",
        "ANTHROPIC_API_KEY": "a",
        "CLAUDE_CODE_MAX_RETRIES": "7",
        "CLAUDECODE": "1",
        "GEMINI_API_KEY": "g",
        "CURSOR_API_KEY": "c",
        "DATABASE_URL": "d",
        "MY_SECRET": "m",
        "MY_OTHER": "o",
    }
    common = {"PATH": "/bin", "LC_TIME": "C", "https_proxy": "http://p"}
    known = built_in({"command": "x"})
    assert environment_for(known["claude"], environ) == common | {
        "ANTHROPIC_API_KEY": "a",
        "CLAUDE_CODE_MAX_RETRIES": "7",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "API_TIMEOUT_MS": "180000",
        "MCP_TIMEOUT": "15000",
        "MCP_TOOL_TIMEOUT": "300000",
    }
    assert environment_for(known["gemini"], environ) == common | {
        "GEMINI_API_KEY": "g",
        "GEMINI_CLI_NO_RELAUNCH": "true",
    }
    assert environment_for(known["cursor-agent"], environ) == common | {"CURSOR_API_KEY": "c"}
    assert environment_for(known["command"], environ, ("MY_SEC*",)) == common | {"MY_SECRET": "m"}


def test_command_has_a_path_even_when_the_worker_has_none() -> None:
    assert environment_for(built_in()["claude"], {})["PATH"]


# --- what an ending means


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
    ending = judged("claude", 1, b"", stderr, printed)
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
def test_class_of_a_claude_failure_in_text_comes_from_how_a_line_begins(
    stdout: str, expected: Failure, reason: str, resets_at: float | None, printed: Any
) -> None:
    ending = judged("claude", 1, f"some words\n{stdout}\n".encode(), "", printed, output="text")
    assert (ending.failure, ending.reason, ending.resets_at) == (expected, reason, resets_at)
    assert stdout in (ending.detail or "")


def test_exit_0_without_a_final_event_is_no_success(printed: Any) -> None:
    ending = judged("claude", 0, lines(INIT, b'{"type":"resu'), "", printed)
    assert (ending.failure, ending.reason) == (Failure.TRANSIENT, "no_result")
    ending = judged("claude", 0, lines(INIT, claude_result(is_error=True, result="hm")), "", printed)
    assert (ending.failure, ending.reason) == (Failure.TRANSIENT, "agent_error")


def test_exit_code_1_after_a_good_final_event_is_no_success(printed: Any) -> None:
    assert judged("claude", 1, lines(INIT, claude_result()), "", printed).failure is Failure.TRANSIENT


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
        (1, gemini_end("error", "[API Error: x]"), "ModelNotFoundError: x", Failure.PERMANENT, "model_not_found"),
        (55, b"", "\x1b[31mGemini CLI is not running in a trusted directory.", Failure.PERMANENT, "untrusted_folder"),
        (1, b"", "Unknown argument: nonsense\nUsage: gemini", Failure.PERMANENT, "bad_argument"),
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
        ("error: unknown option '--x'", Failure.PERMANENT, "bad_argument"),
        ("Cannot use this model: x", Failure.PERMANENT, "model_not_found"),
        ("Error: aborted", Failure.TRANSIENT, "exit_code"),
    ],
)
def test_class_of_a_cursor_failure_comes_from_its_words(
    stderr: str, expected: Failure, reason: str, printed: Any
) -> None:
    ending = judged("cursor-agent", 1, lines(INIT), stderr, printed)
    assert (ending.failure, ending.reason) == (expected, reason)


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
        assert judge(known, code, found, lambda: "boom", NOW).reason == reason


def test_refused_tool_fails_the_task_unless_the_provider_allows_it(printed: Any) -> None:
    fd, size = printed(lines(INIT, claude_result(permission_denials=[{"tool_name": "Bash"}, {"tool_name": "Bash"}, 7])))
    known = built_in()["claude"]
    found = read_claude(events(fd, size, "stream-json"))
    ending = judge(known, 0, found, lambda: "", NOW)
    assert (ending.failure, ending.reason) == (Failure.PERMANENT, "denied")
    assert "not allowed to use Bash, so" in (ending.detail or "")
    assert judge(replace(known, denials_are_fine=True), 0, found, lambda: "", NOW) == Ending(None)


def test_success_without_an_answer_needs_a_tool_that_ran(printed: Any) -> None:
    known = built_in()["claude"]
    tool = {"type": "assistant", "message": {"content": [{"type": "tool_use", "name": "Bash"}]}}
    for printed_lines, reason in (
        (lines(INIT, claude_result(result=" ")), "no_output"),
        (lines(tool, claude_result(result="")), None),
    ):
        fd, size = printed(printed_lines)
        assert judge(known, 0, read_claude(events(fd, size, "stream-json")), lambda: "", NOW).reason == reason
    assert judge(known, 0, None, lambda: "", NOW, stdout_bytes=0).reason == "no_output"
    assert judge(Provider("x", ("x",)), 0, None, lambda: "", NOW, stdout_bytes=0) == Ending(None)


def test_end_without_a_final_event_is_told_apart_from_silence(printed: Any) -> None:
    known = built_in()["opencode"]
    step = {"type": "step_finish", "part": {"reason": "tool-calls"}}
    fd, size = printed(lines({"type": "step_start"}, {"type": "text", "part": {"text": "x"}}, step))
    assert judge(known, 0, read_opencode(events(fd, size, "stream-json")), lambda: "", NOW, size).reason == "no_result"
    assert judge(known, 0, Reading(), lambda: "", NOW, stdout_bytes=0).reason == "no_output"


def test_codex_that_was_heard_after_all_has_succeeded(printed: Any) -> None:
    said = {"type": "item.completed", "item": {"type": "agent_message", "text": "x"}}
    error = {"type": "error", "message": "Reconnecting... 1/5 (unexpected status 500)"}
    for end, expected in (({"type": "turn.completed"}, None), ({"type": "item.started"}, Failure.TRANSIENT)):
        fd, size = printed(lines(error, said, end))
        found = read_codex(events(fd, size, "stream-json"))
        assert judge(built_in()["codex"], 0, found, lambda: "", NOW).failure is expected


def test_success_without_its_mcp_servers_says_so(printed: Any) -> None:
    servers = [{"name": "a", "status": "connected"}, {"name": "b", "status": "failed"}, {"name": 7}, None]
    ending = judged("claude", 0, lines(INIT | {"mcp_servers": servers}, claude_result()), "", printed)
    assert ending.failure is None
    assert "MCP servers b (failed);" in (ending.detail or "")


def test_detail_is_short_and_can_be_stored(printed: Any) -> None:
    ending = judged("claude", 1, b"", "x" * 100_000 + "\ud800\0", printed)
    assert len(ending.detail or "") < 2000
    (ending.detail or "").encode()


# --- what machine-readable output says


def test_last_of_several_final_events_counts(printed: Any) -> None:
    fd, size = printed(lines(INIT, claude_result(result="first"), claude_result(result="second", total_cost_usd=2)))
    found = read_claude(events(fd, size, "stream-json"))
    assert (found.answer, found.usage and found.usage.cost_usd) == ("second", 2.0)


@pytest.mark.parametrize("verbose", [False, True])
def test_claude_json_is_one_object_or_with_verbose_a_list(verbose: bool, printed: Any) -> None:
    document: Any = [INIT, claude_result()] if verbose else claude_result()
    fd, size = printed(b"a warning first\n" + json.dumps(document, indent=2 if verbose else None).encode())
    found = read_claude(events(fd, size, "json"))
    assert (found.is_finished, found.is_error, found.answer) == (True, False, "Hello there")


def test_usage_counts_the_cached_input_too(printed: Any) -> None:
    usage = {"input_tokens": 4, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 1000, "output_tokens": 7}
    fd, size = printed(lines(claude_result(usage=usage)))
    found = read_claude(events(fd, size, "stream-json"))
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens) == (1104, 7)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "result"},
        {"type": "result", "usage": [], "result": 7, "is_error": "no", "total_cost_usd": "1"},
        {"type": "result", "usage": {"input_tokens": -1, "output_tokens": 1e400}, "total_cost_usd": float("nan")},
        {"type": "result", "usage": {"input_tokens": True}, "errors": [7], "api_error_status": {}},
        {"type": "rate_limit_event", "rate_limit_info": "no"},
        {"type": "assistant", "error": "x", "message": {"content": [None, {"text": 7}]}},
        {"type": ["result"]},
        {"type": "message", "role": "assistant", "content": []},
        {"error": 7},
        {"response": None, "stats": {"models": []}},
        {"stats": {"models": {"a": 7, "b": {"tokens": None}}}, "response": ""},
    ],
)
def test_events_of_any_shape_are_read_without_harm(event: Any, printed: Any) -> None:
    fd, size = printed(lines(b"garbage\n", b"[" * 100_000 + b"\n", b"[7, null]\n", event))
    for reader in (read_claude, read_gemini, read_codex, read_opencode, read_qwen):
        found = reader(events(fd, size, "stream-json"))
        assert isinstance(found, Reading)
        assert found.usage is None or found.usage.input_tokens is None or found.usage.input_tokens >= 0


def test_gemini_answers_with_what_it_said_after_its_last_tool_call(printed: Any) -> None:
    def said(text: str) -> dict[str, Any]:
        return {"type": "message", "role": "assistant", "content": text, "delta": True}

    end = {"type": "result", "status": "success", "stats": {"input_tokens": 22, "output_tokens": 10}}
    tool = {"type": "tool_use", "tool_name": "run_shell_command"}
    user = {"type": "message", "role": "user", "content": "x"}
    fd, size = printed(lines(user, said("let me"), tool, {"type": "tool_result"}, said("al"), said("l done"), end))
    found = read_gemini(events(fd, size, "stream-json"))
    assert (found.answer, found.is_error) == ("all done", False)
    assert found.usage is not None
    assert found.usage.as_json() == {"input_tokens": 22, "output_tokens": 10}
    fd, size = printed(lines(user, said("only this"), tool, end))
    assert read_gemini(events(fd, size, "stream-json")).answer == "only this"


def test_gemini_json_is_read(printed: Any) -> None:
    tokens = {"tokens": {"prompt": 11, "candidates": 5}}
    document = {"session_id": "s", "response": "Hello", "stats": {"models": {"a": tokens, "b": tokens}}}
    name = {"model": "a", "session_id": "s"}
    fd, size = printed(json.dumps(document, indent=2).encode())
    found = read_gemini(events(fd, size, "json"))
    assert (found.answer, found.is_finished, found.is_error) == ("Hello", True, False)
    assert found.usage is not None
    assert found.usage.as_json() == {"input_tokens": 22, "output_tokens": 10, "cached_input_tokens": 0, **name}


def test_final_event_is_found_behind_more_output_than_is_read(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_AT_MOST_BYTES", 20_000)
    monkeypatch.setattr(module, "_HEAD_BYTES", 5_000)
    noise = {"type": "user", "message": "x" * 900}
    fd, size = printed(lines(LIMIT_EVENT, *[noise] * 100, claude_result()))
    found = read_claude(events(fd, size, "stream-json"))
    assert (found.answer, found.signs["limit"]) == ("Hello there", "rejected")


def test_end_of_a_line_that_is_only_half_read_is_no_line(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_AT_MOST_BYTES", 20_000)
    monkeypatch.setattr(module, "_HEAD_BYTES", 5_000)
    forged = lines(claude_result(result="forged"))
    after = b"z" * (15_000 - len(forged) - 1) + b"\n"
    fd, size = printed(b"y" * 30_000 + forged + after)
    assert not read_claude(events(fd, size, "stream-json")).is_finished


def test_line_that_is_too_long_is_skipped(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 100_000)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1_000)
    fd, size = printed(lines(claude_result(result="x" * 200_000), claude_result(), b"{"))
    assert read_claude(events(fd, size, "stream-json")).answer == "Hello there"
    fd, size = printed(lines(b"x" * 101_000, claude_result()))  # its end, taken alone, would be a final event
    assert not read_claude(events(fd, size, "stream-json")).is_finished
    fd, size = printed(lines(claude_result(), claude_result(result="x" * 200_000)))
    assert read_claude(events(fd, size, "stream-json")).answer == "Hello there"


# --- bounded text


@pytest.mark.parametrize("cut", range(90, 110))
def test_cut_text_has_whole_characters_and_a_true_count(cut: int, printed: Any) -> None:
    whole = "aé€😀" * 40
    text, truncated = bounded_text(*printed(whole.encode()), cut)
    assert truncated
    assert (text, truncated) == shortened(whole, cut)
    head, note, tail = text.split("\n")
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert len(head.encode()) + len(tail.encode()) + int(note.split()[1]) == len(whole.encode())
    assert cut - 6 <= len((head + tail).encode()) <= cut


def test_text_that_fits_is_not_cut(printed: Any) -> None:
    assert bounded_text(*printed(b"abc"), 3) == ("abc", False)
    assert bounded_text(*printed(b""), 3) == ("", False)
    assert shortened("é", 2) == ("é", False)


def test_cutting_bytes_that_are_no_text_ends(printed: Any) -> None:
    text, truncated = bounded_text(*printed(b"\x80" * 1000), 64)
    assert truncated
    assert text.count("\ufffd") > 20


def test_harmless_text_can_be_stored_anywhere() -> None:
    assert harmless("a\0b\ud800c😀") == "a\ufffdb\ufffdc😀"
    assert shortened("a\0\udfff", 100) == ("a\ufffd\ufffd", False)


def test_claude_is_told_what_an_attempt_may_cost_unless_its_command_says_so() -> None:
    own = built_in({"claude": ["claude", "--max-budget-usd", "3"]})["claude"]
    assert built_in()["claude"].takes_budget() and not own.takes_budget()
    assert not built_in()["gemini"].takes_budget()


@pytest.mark.parametrize(("name", "formats"), [("claude", {"text", "json"}), ("cursor-agent", {"text", "json"})])
def test_providers_know_which_of_their_output_comes_only_at_the_end(name: str, formats: set[str]) -> None:
    provider = built_in()[name]
    assert provider.silent == formats and provider.argv()[1] not in provider.silent
