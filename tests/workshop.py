"""Attempts as real processes, for tests: a claim folder, runners made for it, attempts under way."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.configs import made
from tests.waiting import wait_for
from watcher.clock import SystemClock
from watcher.policy.after_attempt import Failure
from watcher.runner import oneshot
from watcher.runner.oneshot import OneShotRunner
from watcher.runner.providers.built_in import built_in
from watcher.runner.providers.provider import Provider
from watcher.runner.runner_interface import Attempt, Outcome, Workplace
from watcher.settings.worker_groups import RunnerSettings
from watcher.system import processes

SOON = 60.0
_numbers = iter(range(10**6))


def attempt(prompt: str = "say hi", provider: str = "command", **more: Any) -> Attempt:
    number = next(_numbers)
    given: dict[str, Any] = {
        "task_id": f"t{number}",
        "worker": "marie",
        "number": 1,
        "mark": f"{os.getpid():016x}{'e' * 16}.{number}",
        "prompt": prompt,
        "provider": provider,
        "timeout_seconds": SOON,
    }
    return Attempt(**(given | more))


class Workshop:
    """A claim folder and the runners made for it; every run happens in a thread of its own, as in a slot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "claims"
        self.folder.mkdir()
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.busy_fd = os.open(folder / "x.busy", os.O_RDWR | os.O_CREAT)
        self.runners: list[OneShotRunner] = []

    def runner(
        self,
        *command: str,
        providers: Mapping[str, Provider] | None = None,
        environ: Mapping[str, str] | None = None,
        default_cwd: Path | None = None,
        **more: Any,
    ) -> OneShotRunner:
        path = f"{self.bin}:{os.environ['PATH']}"
        environ = {"PATH": path, "HOME": str(self.folder.parent), "IS_SANDBOX": "1"} if environ is None else environ
        place = Workplace(self.folder, environ, busy_fd=self.busy_fd, default_cwd=default_cwd)
        config = made(RunnerSettings, **({"kill_grace": SOON, "min_free_bytes": 0} | more))
        known = built_in({"command": command}) if providers is None else providers
        runner = OneShotRunner(known, config, place, SystemClock())
        self.runners.append(runner)
        return runner

    def shell(self, script: str, **more: Any) -> OneShotRunner:
        return self.runner("/bin/sh", "-c", script, **more)

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def close(self) -> None:
        for runner in self.runners:
            runner.close()
        os.close(self.busy_fd)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    shop = Workshop(tmp_path)
    yield shop
    shop.close()


def run(runner: OneShotRunner, one: Attempt | None = None) -> Outcome:
    return Running(runner, one or attempt()).outcome()


class Running:
    """An attempt under way in a thread."""

    def __init__(self, runner: OneShotRunner, one: Attempt) -> None:
        self._box: list[Outcome] = []
        self._thread = threading.Thread(target=lambda: self._box.append(runner.run(one)))
        self._thread.start()

    def outcome(self) -> Outcome:
        self._thread.join(2 * SOON)
        assert self._box, "it did not end, or it raised"
        return self._box[0]


def until_it_prints(runner: OneShotRunner, one: Attempt) -> Path:
    """Wait until a running attempt has printed something; the waiting itself is bounded."""

    def look() -> Path | None:
        live = runner.live_output(one.mark)
        return live[0] if live is not None and live[1] is not None else None

    found = wait_for("the first words of a command", look)
    assert found is not None
    return found


@pytest.fixture
def printing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of an attempt begins when its command has printed its first words: so it is where it shall be ended."""
    spawn = processes.spawn

    def start(*arguments: Any) -> processes.Child:
        child, stdout = spawn(*arguments), arguments[4]
        wait_for("the first words of a command", lambda: os.fstat(stdout).st_size)
        return child

    monkeypatch.setattr(oneshot.processes, "spawn", start)


def reason(outcome: Outcome) -> tuple[Failure | None, str | None]:
    return outcome.ending.failure, outcome.ending.reason


def no_processes_with(mark: str) -> bool:
    return processes.kill_marked(mark) == 0


CLAUDE = """#!{python} -IS
import sys
prompt = sys.stdin.read()
sys.stdout.write('{{"type":"system","subtype":"init","model":"' + "--model".join(sys.argv[1:2]) + '"}}\\n')
{body}
"""


def claude(shop: Workshop, body: str) -> OneShotRunner:
    """A double of claude: its first line, then what the test says."""
    shop.program("claude", CLAUDE.format(python=sys.executable, body=body))
    return shop.runner()
