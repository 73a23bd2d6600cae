"""The Agent Client Protocol, against an agent made with a package that others wrote (agent-client-protocol)."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import is_alive
from tests.adoption import family
from tests.waiting import wait_for
from tests.workshop import attempt, reason
from watcher.clock import SystemClock
from watcher.policy.disposition import Failure
from watcher.runner import acprunner
from watcher.runner.acp import _granted
from watcher.runner.acprunner import AcpRunner, AcpSettings
from watcher.runner.builtin import built_in
from watcher.runner.interface import Attempt, Outcome
from watcher.runner.oneshot import OneShotRunner, OneShotSettings

__all__ = ["family"]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("acp") is None, reason="the package agent-client-protocol is not installed: '.[dev]'"
)
PEER = Path(__file__).parents[1] / "acp_peer.py"
PATIENCE = 60.0


class Peers:
    """A runner of the peer, and what the peer noted."""

    def __init__(self, place: Path, **more: Any) -> None:
        self.notes = place / "notes"
        self.folder = place / "claims"
        self.folder.mkdir()
        providers = built_in({"acp": (sys.executable, str(PEER), str(self.notes))})
        environ = {"PATH": os.environ["PATH"], "HOME": str(place)}
        self.once = OneShotRunner(providers, OneShotSettings(self.folder, None, environ), SystemClock())
        prefix = f"{os.getpid():016x}{'a' * 16}.a"
        settings = AcpSettings(self.folder, "marie", environ, prefix, grace_seconds=2.0, **more)
        self.runner = AcpRunner({"acp": providers["acp"]}, self.once, settings, SystemClock())

    def do(self, prompt: str, **more: Any) -> Outcome:
        return self.run(attempt(prompt, "acp", **({"timeout_seconds": PATIENCE} | more)))

    def run(self, one: Attempt) -> Outcome:
        box: list[Outcome] = []
        thread = threading.Thread(target=lambda: box.append(self.runner.run(one)))
        thread.start()
        thread.join(2 * PATIENCE)
        return box[0]

    def noted(self, word: str) -> list[int]:
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [int(line.split()[0]) for line in lines if line.split(" ", 1)[1].startswith(word)]


@pytest.fixture
def peers(tmp_path: Path, family: object) -> Iterator[Peers]:
    made = Peers(tmp_path)
    yield made
    made.runner.close()
    made.once.close()
    assert not [pid for pid in made.noted("started") if is_alive(pid)]


def test_one_process_serves_task_after_task_each_in_a_session_of_its_own(peers: Peers, tmp_path: Path) -> None:
    first, second = peers.do("say a"), peers.do("say b", cwd=str(tmp_path))
    assert (reason(first), first.stdout.text) == ((None, None), "a (turn 1)")
    assert (reason(second), second.stdout.text) == ((None, None), "b (turn 1)")
    assert len(peers.noted("started")) == 1 and len(peers.noted(f"session {tmp_path}")) == 1
    assert first.usage is not None and second.usage is not None
    assert first.usage.session_id != second.usage.session_id


def test_permission_is_granted_once_and_what_is_not_offered_is_refused(peers: Peers) -> None:
    assert peers.do("ask").stdout.text == "once -32601 (turn 1)"
    assert _granted([{"optionId": "a", "kind": "allow_always"}])["optionId"] == "a"
    assert _granted([{"optionId": "r", "kind": "reject_once"}, 7]) == {"outcome": "cancelled"}


def test_five_megabytes_and_a_flood_on_stderr_pass(peers: Peers) -> None:
    outcome = peers.do("long 5000000")
    assert reason(outcome) == (None, None) and outcome.stdout.size_bytes > 5_000_000 and outcome.stdout.truncated
    assert reason(peers.do("flood all")) == (None, None)
    assert len(peers.noted("started")) == 1


@pytest.mark.parametrize(
    ("prompt", "failure", "word"),
    [
        ("silent", Failure.TRANSIENT, "no_output"),
        ("refuse", Failure.PERMANENT, "refused"),
        ("cut", Failure.PERMANENT, "max_tokens"),
        ("login", Failure.AUTH, "not_authenticated"),
        ("status 401", Failure.AUTH, "not_authenticated"),
        ("status 429", Failure.TRANSIENT, "rate_limited"),
        ("status 503", Failure.TRANSIENT, "server_error"),
        ("status 400", Failure.PERMANENT, "invalid_request"),
        ("status -32603", Failure.TRANSIENT, "agent_error"),
        ("die", Failure.TRANSIENT, "agent_crashed"),
        ("garbage", Failure.TRANSIENT, "agent_bad_answer"),
        ("stray", Failure.TRANSIENT, "agent_bad_answer"),
    ],
)
def test_each_way_to_fail_has_its_class_and_ends_its_process(
    prompt: str, failure: Failure, word: str, peers: Peers
) -> None:
    assert reason(peers.do(prompt)) == (failure, word)
    assert not [pid for pid in peers.noted("started") if is_alive(pid)]
    assert peers.do("say on").stdout.text == "on (turn 1)"


def test_a_late_one_is_killed(peers: Peers) -> None:
    peers.do("say warm")
    outcome = peers.do("hang", timeout_seconds=0.5)
    assert reason(outcome) == (Failure.TRANSIENT, "timeout") and outcome.ending.timed_out
    assert not [pid for pid in peers.noted("started") if is_alive(pid)]


def test_a_stopped_one_is_cancelled_and_ended(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acprunner, "_LEAVE_SECONDS", PATIENCE)  # the peer ends by itself when it hears of it
    one = attempt("hang", "acp", timeout_seconds=PATIENCE)
    box: list[Outcome] = []
    thread = threading.Thread(target=lambda: box.append(peers.runner.run(one)))
    thread.start()
    wait_for("the turn", lambda: peers.noted("hangs"), PATIENCE)
    peers.runner.stop(one.mark, Failure.CANCELLED)
    thread.join(2 * PATIENCE)
    assert box[0].ending.failure is Failure.CANCELLED and peers.noted("cancelled")
    assert not [pid for pid in peers.noted("started") if is_alive(pid)]


def test_one_that_died_while_it_was_kept_costs_nothing(peers: Peers) -> None:
    peers.do("say a")
    (pid,) = peers.noted("started")
    os.kill(pid, signal.SIGKILL)
    assert peers.do("say b").stdout.text == "b (turn 1)"


def test_a_command_that_is_missing_holds_the_provider(tmp_path: Path) -> None:
    providers = built_in({"acp": ("/no/such/agent",)})
    once = OneShotRunner(providers, OneShotSettings(tmp_path, None, {"PATH": ""}), SystemClock())
    runner = AcpRunner(providers, once, AcpSettings(tmp_path, "marie", {"PATH": ""}, "0" * 32), SystemClock())
    assert reason(runner.run(attempt("x", "acp"))) == (Failure.AUTH, "command_missing")
    runner.close()
