"""Real agent CLIs through the real worker, offline: each is pointed at the stub model, in a throw-away HOME.

What each must come to in each case stands in CLIS; `run_case` starts a worker for one case, checks the outcome where a
user would look, and that nothing is left running.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.acceptance.conftest import Json, Site, read
from tests.stub_model import StubModel
from tests.waiting import wait_for
from watcher.clock import parse_rfc3339

#: A cold start of a node program on a busy machine, and its own retries.
PATIENCE = 300.0
#: Long enough to start and to ask the model, short enough to wait for.
HANG_SECONDS = 60.0
CASES = ("turn", "tool", "401", "limit", "429", "hang", "cut", "400", "404")
#: What ends a task at once: the reason of its dead letter.
PERMANENT = {
    "400": "invalid_request",
    "404": "model_not_found",
    "context": "context_overflow",
    "slash": "not_run",
    "truncated": "truncated",
    "denied": "denied",
}
#: What holds the provider.
HELD = {"401": "not_authenticated", "402": "billing", "limit": "usage_limit"}
_TOO_LONG = "This model's maximum context length is 8192 tokens"
_GEMINI_SETTINGS = {"security": {"auth": {"selectedType": "gemini-api-key"}}, "general": {"maxAttempts": 2}}
_OPENCODE_SETTINGS = {
    "model": "stub/m",
    "provider": {
        "stub": {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": "STUB-URL/v1", "apiKey": "not-a-key"},
            "models": {"m": {}},
        }
    },
}


@dataclass(frozen=True)
class RealCli:
    """How one CLI is pointed at the stub, and what it comes to. `command` follows the program's path."""

    setting: str
    tool: str
    settings: Mapping[str, str]
    command: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    limit: str = ""
    for_limit: Mapping[str, str | None] = field(default_factory=dict)
    tells_reset: bool = False
    cut: str = "stream_cut"
    slash: str = ""
    longest: str = ""
    for_denied: Mapping[str, str] = field(default_factory=dict)
    cases: tuple[str, ...] = CASES


CLIS = {
    "claude": RealCli(
        setting="CLAUDE_COMMAND",
        tool='Bash {"command": "echo made > made.txt", "description": "make a file"}',
        settings={
            "ANTHROPIC_BASE_URL": "STUB-URL", "ANTHROPIC_API_KEY": "not-a-key", "IS_SANDBOX": "1",
            "CLAUDE_CODE_MAX_RETRIES": "1",
        },
        limit="[[status 429 reset RESET saying limit]]",
        # Only a login to a subscription has limits with an end; a made-up one will do.
        for_limit={"ANTHROPIC_API_KEY": None, "CLAUDE_CODE_OAUTH_TOKEN": "not-a-token"},
        tells_reset=True,
        cut="server_error",
        slash="/help",
        longest="max_tokens",
        cases=(*CASES, "slash", "truncated"),
    ),
    "gemini": RealCli(
        setting="GEMINI_COMMAND",
        tool='run_shell_command {"command": "echo made > made.txt"}',
        settings={"GEMINI_API_KEY": "not-a-key", "GOOGLE_GEMINI_BASE_URL": "STUB-URL", "MODEL": "gemini-2.5-flash"},
        files={".gemini/settings.json": json.dumps(_GEMINI_SETTINGS)},
        limit="[[status 429 kind GenerateRequestsPerDayPerProjectPerModel saying You exceeded your quota]]",
    ),
    "codex": RealCli(
        setting="CODEX_COMMAND",
        command="-c 'openai_base_url=\"STUB-URL/v1\"'",
        tool='exec_command {"cmd": "echo made > made.txt"}',
        settings={"CODEX_API_KEY": "not-a-key", "MODEL": "gpt-5"},
        limit="[[status 429 reset RESET kind usage_limit_reached saying limit]]",
        tells_reset=True,
        longest="max_output_tokens",
        cases=(*CASES, "truncated"),
    ),
    "opencode": RealCli(
        setting="OPENCODE_COMMAND",
        tool='bash {"command": "echo made > made.txt", "description": "make a file"}',
        settings={"OPENCODE_CONFIG_CONTENT": json.dumps(_OPENCODE_SETTINGS), "OPENCODE_DISABLE_MODELS_FETCH": "1"},
        # It tries a 429 for longer than a test waits, and a cut stream without end.
        longest="length",
        for_denied={"OPENCODE_CONFIG_CONTENT": json.dumps(_OPENCODE_SETTINGS | {"permission": {"bash": "deny"}})},
        cases=("turn", "tool", "401", "hang", "400", "404", "truncated", "denied"),
    ),
    "qwen": RealCli(
        setting="QWEN_COMMAND",
        command="--auth-type openai",
        tool='run_shell_command {"command": "echo made > made.txt", "is_background": false}',
        settings={"OPENAI_API_KEY": "not-a-key", "OPENAI_BASE_URL": "STUB-URL/v1", "OPENAI_MODEL": "stub-model"},
        slash="/clear",
        cases=("turn", "tool", "401", "402", "hang", "cut", "400", "404", "context", "slash"),
    ),
}  # fmt: skip


def program_of(name: str) -> Path | None:
    """The real program: claude inside the wheel of claude-agent-sdk (nothing of it is imported), others on PATH."""
    spec = importlib.util.find_spec("claude_agent_sdk") if name == "claude" else None
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        program = Path(folder) / "_bundled" / "claude"
        if program.exists():
            return program
    found = shutil.which(name)
    return None if found is None else Path(found)


def run_case(site: Site, stub: StubModel, name: str, case: str) -> Json:
    """One task through one worker; returns what was seen, for a table."""
    cli = CLIS[name]
    program = program_of(name)
    assert program is not None
    reset = int(time.time()) // 60 * 60 + 7200
    for path, text in cli.files.items():
        (site.home / path).parent.mkdir(parents=True, exist_ok=True)
        (site.home / path).write_text(text)
    work = site.home / "work"
    work.mkdir()
    stub.always = _order(cli, case, reset)
    settings: dict[str, str | None] = {**cli.settings, **(cli.for_limit if case == "limit" else {})}
    settings |= cli.for_denied if case == "denied" else {}
    settings = {key: None if text is None else text.replace("STUB-URL", stub.url) for key, text in settings.items()}
    command = f"{shlex.quote(str(program))} {cli.command.replace('STUB-URL', stub.url)}"
    worker = site.start(
        "marie", PROVIDER=name, AGENT_COMMAND=None, MAX_RETRIES="0", TZ="UTC", KILL_GRACE="2",
        **{cli.setting: command}, **settings,
    )  # fmt: skip
    more = {"description": cli.slash} if case == "slash" else {}
    site.drop("it", cwd=str(work), timeout=HANG_SECONDS if case == "hang" else PATIENCE, **more)
    seen = _held(site, name, case, cli, reset) if case in HELD else _ended(site, case, cli, work)
    assert (stub.calls >= 1) == (case != "slash")
    assert worker.stop() == 0
    wait_for("the end of all that was started", lambda: not site.command_pids())
    kept = [name for name in site.leftovers() if case not in HELD or not name.startswith("tasks/marie/.retry/it~")]
    assert kept == []
    assert "not-a-" not in worker.text()
    return seen


def _order(cli: RealCli, case: str, reset: int) -> str:
    return {
        "turn": "[[say all is well]]",
        "tool": f"[[tool {cli.tool}]]",
        "401": "[[status 401]]",
        "402": "[[status 402 kind insufficient_quota saying Insufficient balance]]",
        "400": "[[status 400]]",
        "404": "[[status 404 kind model_not_found saying The model nope does not exist]]",
        "context": f"[[status 400 kind context_length_exceeded saying {_TOO_LONG}]]",
        "slash": "",
        "truncated": f"[[ends {cli.longest} a long st]]",
        "denied": f"[[tool {cli.tool}]]",
        "limit": cli.limit.replace("RESET", str(reset)),
        "429": "[[status 429 saying slow down]]",
        "hang": "[[hang]]",
        "cut": "[[cut]]",
    }[case]


def _held(site: Site, name: str, case: str, cli: RealCli, reset: int) -> Json:
    """The provider is held, and the task is back in the inbox as it was."""
    file = site.root / "control" / "holds" / f"{name}.json"
    wait_for(f"the hold of {name}", file.exists, PATIENCE)
    hold = read(file)
    assert hold["reason"] == HELD[case], hold
    if case == "limit" and cli.tells_reset:
        # The jitter only adds.
        assert reset <= parse_rfc3339(hold["until"]) <= reset + 600, (reset, hold)
    beat = site.beat_that(lambda beat: beat.get("status") == "held", what="that says held")
    wait_for("the task in the inbox", lambda: "it" in site.pending() or (site.inbox() / ".retry").exists())
    assert site.results() == [] and site.dead_letters() == []
    return {"held": hold["reason"], "until": hold.get("until"), "detail": beat["reason"]}


def _ended(site: Site, case: str, cli: RealCli, work: Path) -> Json:
    result = site.result("it", seconds=PATIENCE + 30)
    seen = {name: result.get(name) for name in ("status", "reason", "exit_code", "detail", "usage")}
    if case in ("turn", "tool"):
        assert result["status"] == "completed", result
        assert result["stdout"].strip() == ("all is well" if case == "turn" else "made it")
        assert result["usage"]["input_tokens"] > 0 and result["usage"]["output_tokens"] > 0
        assert result["usage"]["session_id"]
        assert (work / "made.txt").exists() == (case == "tool")
        return seen
    if case in PERMANENT:
        assert (result["status"], result["reason"], result["attempts"]) == ("failed", PERMANENT[case], 1), result
        assert site.dead_letter("it")["dlq_reason"] == PERMANENT[case]
        return seen
    wanted = {"429": "rate_limited", "hang": "timeout", "cut": cli.cut}[case]
    assert result["status"] == ("timeout" if case == "hang" else "failed"), result
    assert result["reason"] == "max_retries_exceeded"
    assert result["detail"].startswith(f"{wanted} on attempt 1"), result["detail"]
    assert site.dead_letter("it")["dlq_reason"] == "max_retries_exceeded"
    return seen
