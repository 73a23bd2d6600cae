"""What the command lines of the agent CLIs are, and what they see of the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from watcher.runner.providers.built_in import built_in
from watcher.runner.providers.provider import Provider, environment_for, find_program

CLAUDE = ("--print", "--dangerously-skip-permissions", "--output-format", "stream-json", "--verbose")


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


def test_claude_is_told_what_an_attempt_may_cost_unless_its_command_says_so() -> None:
    own = built_in({"claude": ["claude", "--max-budget-usd", "3"]})["claude"]
    assert built_in()["claude"].takes_budget() and not own.takes_budget()
    assert not built_in()["gemini"].takes_budget()


@pytest.mark.parametrize(("name", "formats"), [("claude", {"text", "json"}), ("cursor-agent", {"text", "json"})])
def test_providers_know_which_of_their_output_comes_only_at_the_end(name: str, formats: set[str]) -> None:
    provider = built_in()[name]
    assert provider.silent == formats and provider.argv()[1] not in provider.silent
