"""`watcher doctor` starts providers for real and says what is wrong with them, and what to do."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import REPOSITORY, Json, is_alive
from tests.acceptance.test_real_claude import CLAUDE
from tests.stub_model import StubModel
from tests.waiting import wait_for

STANDIN = f"{sys.executable} {REPOSITORY / 'watcher' / 'standin.py'}"
INIT = {"type": "system", "subtype": "init", "claude_code_version": "9.8.7", "apiKeySource": "none", "model": "m"}


class Clinic:
    """A home, a PATH folder for programs, and the doctor as people call it."""

    def __init__(self, place: Path) -> None:
        self.home = place / "home"
        self.bin = place / "bin"
        for folder in (self.home, self.bin):
            folder.mkdir()

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def environment(self, **settings: str) -> dict[str, str]:
        basis = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.home), "WATCHER_ROOT": str(self.home / "root")}
        return {**basis, "TMPDIR": str(self.home), "PYTHONPATH": str(REPOSITORY), **settings}

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "watcher", "doctor", *arguments], cwd=self.home, env=self.environment(**settings),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *arguments: str, **settings: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **settings)
        out, error = process.communicate(timeout=280)
        return process.returncode, out, error

    def found(self, *arguments: str, **settings: str) -> tuple[int, dict[str, Json]]:
        code, out, error = self.run("--json", *arguments, **settings)
        assert out, error
        return code, {found["provider"]: found for found in json.loads(out)["providers"]}


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Clinic]:
    made = Clinic(tmp_path)
    yield made
    left = [path.name for path in made.home.iterdir() if path.name.startswith("watcher-doctor")]
    assert left == []


def claude_that_prints(*events: dict[str, Any], code: int = 0) -> str:
    lines = "\n".join(json.dumps(event) for event in events)
    looks = 'case "$*" in *--version) echo "9.8.7 (fake)"; exit;; *status) exit 1;; esac'
    return f'{looks}\ncat <<"E"\n{lines}\nE\nexit {code}'


def result(**more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 11, "output_tokens": 5}
    return {"type": "result", "subtype": "success", "is_error": False, "result": "READY", "usage": usage, **more}


def test_stand_in_is_well_and_needs_no_account(clinic: Clinic) -> None:
    code, out, error = clinic.run(PROVIDER="command", AGENT_COMMAND=STANDIN)
    assert (code, error) == (0, "")
    first, *below = out.splitlines()
    assert first.split()[:2] == ["command", "works"]
    assert "answered 'This is doctor, played by the stand-in agent." in " ".join(line.strip() for line in below)


def test_warm_handler_is_pinged(clinic: Clinic) -> None:
    code, found = clinic.found(PROVIDER="handler", HANDLER_COMMAND=f"{sys.executable} -m watcher.handler")
    assert (code, list(found)) == (0, ["handler"])
    assert '"result"' in found["handler"]["answer"]


@pytest.mark.parametrize(
    ("provider", "settings"),
    [
        ("handler", {"HANDLER_COMMAND": f"{sys.executable} mine.py"}),
        ("command", {"AGENT_COMMAND": f"{sys.executable} mine.py"}),
    ],
)
def test_command_of_ones_own_is_examined_where_a_worker_runs_it(
    clinic: Clinic, provider: str, settings: dict[str, str]
) -> None:
    (clinic.home / "mine.py").write_text(
        "from watcher.handler import handler, serve\nhandler('default')(lambda event: 'ready')\nserve()\n"
    )
    code, found = clinic.found(PROVIDER=provider, **settings)
    assert (code, found[provider]["state"]) == (0, "well"), found
    assert found[provider]["trust"] == "", "only a CLI knows folders that are trusted"


def test_agent_of_the_agent_client_protocol_is_not_called_well_without_a_word_of_it(clinic: Clinic) -> None:
    agent = clinic.program("peer", """echo '{"jsonrpc": "2.0", "id": null, "error": {"code": -32700}}'""")
    code, found = clinic.found(PROVIDER="acp", ACP_COMMAND=str(agent))
    assert (code, found["acp"]["state"], found["acp"]["reason"]) == (0, "warning", "not_examined")
    code, found = clinic.found(PROVIDER="acp", ACP_COMMAND="no-such-agent")
    assert (code, found["acp"]["reason"]) == (1, "command_missing")


def test_provider_tells_version_login_permissions_model_and_mcp_servers(clinic: Clinic) -> None:
    init = INIT | {"apiKeySource": "ANTHROPIC_API_KEY", "permissionMode": "bypassPermissions"}
    servers = [{"name": "files", "status": "connected"}, {"name": "tracker", "status": "failed"}]
    clinic.program("claude", claude_that_prints(init | {"mcp_servers": servers}, result(total_cost_usd=0.01)))
    code, found = clinic.found("--provider", "claude")
    claude = found["claude"]
    assert (code, claude["state"], claude["reason"]) == (0, "warning", "mcp_without_tools")
    assert "tracker (failed)" in claude["detail"]
    assert claude["mcp"] == {"files": "connected", "tracker": "failed"}
    assert (claude["version"], claude["login"], claude["model"]) == ("9.8.7", "ANTHROPIC_API_KEY", "m")
    assert (claude["permissions"], claude["answer"]) == ("bypassPermissions", "READY")
    assert claude["trust"] == "accepted an unknown folder"
    assert claude["program"] == str(clinic.bin / "claude")
    assert claude["usage"]["cost_usd"] == 0.01
    assert claude["seconds"] >= 0


def test_missing_login_is_ill_and_the_cure_is_told(clinic: Clinic) -> None:
    text = "Not logged in · Please run /login"
    failed = {"type": "assistant", "error": "authentication_failed", "message": {"content": [{"text": text}]}}
    clinic.program("claude", claude_that_prints(INIT, failed, result(is_error=True, result=text), code=1))
    code, out, _ = clinic.run("--provider", "claude")
    text = " ".join(out.split())
    assert code == 1
    assert out.split()[:3] == ["claude", "NOT", "WORKING"]
    assert "not_authenticated: claude: Not logged in" in text
    assert "log in as the worker's user (claude, then /login) or set ANTHROPIC_API_KEY" in text
    assert "login none known to claude auth status" in text


def test_folder_that_is_not_trusted_is_told(clinic: Clinic) -> None:
    clinic.program("gemini", '[ "$1" = --version ] && exit; echo "not running in a trusted directory" >&2; exit 55')
    code, found = clinic.found("--provider", "gemini")
    assert (code, found["gemini"]["reason"], found["gemini"]["trust"]) == (
        1, "untrusted_folder", "refused an unknown folder",
    )  # fmt: skip


def test_command_that_is_missing_is_ill_with_its_setting_named(clinic: Clinic) -> None:
    code, found = clinic.found(CLAUDE_COMMAND="claude-of-nobody")
    assert (code, list(found)) == (1, ["claude"])
    assert found["claude"]["reason"] == "command_missing"
    assert "CLAUDE_COMMAND" in found["claude"]["detail"]
    assert found["claude"]["seconds"] is None


def test_without_names_the_default_and_the_installed_ones_are_examined(clinic: Clinic) -> None:
    for name in ("gemini", "qwen"):
        clinic.program(name, 'echo "$0 1.0"')
    code, found = clinic.found("--no-call", PROVIDER="qwen")
    assert (code, list(found)) == (0, ["qwen", "gemini"])


def test_without_a_call_only_version_and_login_are_looked_at(clinic: Clinic) -> None:
    notes = clinic.home / "notes"
    clinic.program("codex", f'echo "$*" >> {shlex.quote(str(notes))}; echo "codex-cli 1.2.3"')
    code, out, _ = clinic.run("--no-call", "--provider", "codex")
    assert code == 0
    assert notes.read_text().splitlines() == ["--version", "login status"]
    assert "codex-cli 1.2.3" in out
    assert "login known to codex login status" in out
    assert "no model call was made" in out


def test_provider_that_hangs_is_ended_with_all_that_it_started(clinic: Clinic) -> None:
    pids = clinic.home / "pids"
    clinic.program("gemini", f"sleep 600 & echo $! >> {shlex.quote(str(pids))}; [ $# = 1 ] && exit 0; sleep 600")
    code, found = clinic.found("--provider", "gemini", "--timeout", "5", KILL_GRACE="0.2")
    assert (code, found["gemini"]["reason"]) == (1, "timeout")
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    assert not any(map(is_alive, started))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_doctor_that_is_interrupted_leaves_nothing_behind(clinic: Clinic, number: signal.Signals) -> None:
    pids = clinic.home / "pids"
    clinic.program("gemini", f"[ $# = 1 ] && exit 0; echo $$ > {shlex.quote(str(pids))}; exec sleep 600")
    process = clinic.start("--provider", "gemini", "--provider", "gemini", KILL_GRACE="0.2")
    wait_for("the command's start", lambda: pids.exists() and pids.read_text().strip(), 60)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert not is_alive(int(pids.read_text()))


def test_described_provider_is_examined_like_the_others(clinic: Clinic) -> None:
    clinic.program("mine", 'cat > /dev/null; echo \'{"reply": "READY"}\'')
    file = clinic.home / "providers.toml"
    file.write_text('[providers.mine]\ncommand = "mine"\noutput = "json"\nfields = { answer = "reply" }\n')
    code, found = clinic.found("--provider", "mine", PROVIDERS_FILE=str(file))
    assert (code, found["mine"]["answer"]) == (0, "READY")


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        (("--provider", "clod"), {}, "no provider 'clod'; name one of claude, gemini"),
        ((), {"PROVIDER": "clod"}, "PROVIDER=clod: no such provider"),
        ((), {"PROVIDERS_FILE": "/no/such/file"}, "must be a file that is there"),
        (("--timeout", "soon"), {}, "a number of seconds"),
    ],
)
def test_wrong_name_or_setting_is_told_in_one_line(
    clinic: Clinic, arguments: tuple[str, ...], settings: dict[str, str], said: str
) -> None:
    code, out, error = clinic.run(*arguments, **settings)
    assert (code, out) == (2, "")
    assert said in error
    assert "Traceback" not in error


@pytest.mark.skipif(CLAUDE is None, reason="the claude program is not installed: pip install '.[claude]'")
@pytest.mark.timeout(240)
def test_real_claude_is_well_against_the_stub_and_ill_with_a_refused_key(clinic: Clinic) -> None:
    stub = StubModel(always="[[say READY]]")
    settings = {
        "CLAUDE_COMMAND": str(CLAUDE), "ANTHROPIC_BASE_URL": stub.url, "ANTHROPIC_API_KEY": "not-a-key",
        "IS_SANDBOX": "1", "CLAUDE_CODE_MAX_RETRIES": "1",
    }  # fmt: skip
    try:
        code, found = clinic.found("--provider", "claude", **settings)
        claude = found["claude"]
        assert (code, claude["state"], claude["answer"]) == (0, "well", "READY")
        assert (claude["login"], claude["permissions"]) == ("ANTHROPIC_API_KEY", "bypassPermissions")
        assert claude["version"][:2] == "2." and claude["usage"]["input_tokens"] > 0
        stub.always = "[[status 401]]"
        code, found = clinic.found("--provider", "claude", **settings)
        assert (code, found["claude"]["reason"]) == (1, "not_authenticated")
        assert stub.calls >= 2
    finally:
        stub.close()
