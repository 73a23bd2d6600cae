"""The Agent Client Protocol, against an agent made with a package that others wrote (agent-client-protocol)."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import is_alive
from tests.adoption import family
from tests.configs import made
from tests.waiting import wait_for
from tests.workshop import attempt, reason
from watcher.clock import SystemClock
from watcher.policy.after_attempt import Failure
from watcher.runner.acp import process
from watcher.runner.acp import runner as acprunner
from watcher.runner.acp.process import _granted
from watcher.runner.acp.runner import AcpRunner
from watcher.runner.oneshot import OneShotRunner
from watcher.runner.providers.built_in import built_in
from watcher.runner.runner_interface import Attempt, Outcome, Workplace
from watcher.settings.worker_groups import RunnerSettings

__all__ = ["family"]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("acp") is None, reason="the package agent-client-protocol is not installed: '.[dev]'"
)
PEER = Path(__file__).parents[1] / "acp_peer.py"
PLAYER = Path(__file__).parents[1] / "acp_player.py"
PATIENCE = 60.0


class Peers:
    """A runner of the peer, and what the peer noted."""

    def __init__(
        self, place: Path, script: Path = PEER, options: Any = None, max_requests: int = 50, **more: Any
    ) -> None:
        self.notes = place / "notes"
        self.folder = place / "claims"
        self.folder.mkdir()
        words = () if options is None else (json.dumps(options),)
        providers = built_in({"acp": (sys.executable, str(script), str(self.notes), *words)})
        environ = {"PATH": os.environ["PATH"], "HOME": str(place)}
        self.once = OneShotRunner(providers, made(RunnerSettings), Workplace(self.folder, environ), SystemClock())
        workplace = Workplace(self.folder, environ, "marie", f"{os.getpid():016x}{'a' * 16}")
        config = made(RunnerSettings, kill_grace=2.0, **more)
        only = {"acp": providers["acp"]}
        self.runner = AcpRunner(only, self.once, config, workplace, SystemClock(), max_requests)

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
    once = OneShotRunner(providers, made(RunnerSettings), Workplace(tmp_path, {"PATH": ""}), SystemClock())
    place = Workplace(tmp_path, {"PATH": ""}, "marie", "0" * 32)
    runner = AcpRunner(providers, once, made(RunnerSettings), place, SystemClock())
    assert reason(runner.run(attempt("x", "acp"))) == (Failure.AUTH, "command_missing")
    runner.close()


# --- what agents do that the package cannot: a player of lines


@pytest.fixture
def player(tmp_path: Path, family: object) -> Iterator[Callable[..., Peers]]:
    made: list[Peers] = []

    def make(options: Any = None, **more: Any) -> Peers:
        made.append(Peers(tmp_path, PLAYER, options or {}, **more))
        return made[-1]

    yield make
    for one in made:
        one.runner.close()
        one.once.close()
        assert not [pid for pid in one.noted("started") if is_alive(pid)]


END = {"result": {"stopReason": "end_turn"}}


def chunk(text: str, **more: Any) -> dict[str, Any]:
    return {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}, **more}


def played(peers: Peers, *steps: dict[str, Any], **more: Any) -> Outcome:
    return peers.do(json.dumps(steps), **more)


def test_what_is_said_before_the_task_is_told_beside_its_answer(player: Callable[..., Peers]) -> None:
    # It comes late on purpose, so that it cannot be told apart by its place in the pipe.
    peers = player({"banner": [chunk("Welcome! "), {"pause": 0.05}, chunk("News: none. ")]})
    for _ in range(2):
        outcome = played(peers, chunk("42"), END)
        assert (outcome.stdout.text, reason(outcome)) == ("42", (None, None))
        assert outcome.stderr.text == "Welcome!\nNews: none."
    assert len(peers.noted("started")) == 1


def test_what_comes_after_the_end_of_a_turn_belongs_to_it(player: Callable[..., Peers]) -> None:
    peers = player()
    late = [{"pause": 0.05}, chunk("4"), {"pause": 0.05}, chunk("2")]
    assert played(peers, chunk("It is "), END, *late).stdout.text == "It is 42"
    assert played(peers, END, {"pause": 0.5}, chunk("It is 42")).stdout.text == "It is 42"
    call = {"sessionUpdate": "tool_call", "toolCallId": "c", "title": "ls", "status": "in_progress"}
    done = {"sessionUpdate": "tool_call_update", "toolCallId": "c", "status": "completed"}
    assert reason(played(peers, call, chunk("42"), END, {"pause": 0.5}, done)) == (None, None)
    assert played(peers, chunk("next"), {"other": chunk("of yesterday")}, END).stdout.text == "next"
    assert len(peers.noted("started")) == 1


def test_an_agent_that_talks_for_ever_after_its_end_is_left(
    player: Callable[..., Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_LATE_SECONDS", 0.3)
    talk = [step for _ in range(200) for step in (chunk("x"), {"pause": 0.02})]
    assert reason(played(player(), chunk("42"), END, *talk)) == (None, None)


def test_one_that_breaks_after_the_end_of_a_turn_has_done_its_task_and_is_replaced(
    player: Callable[..., Peers],
) -> None:
    peers = player()
    assert played(peers, chunk("42"), END, {"raw": "goodbye"}).stdout.text == "42"
    assert played(peers, chunk("43"), END).stdout.text == "43"
    assert len(peers.noted("started")) == 2


def test_empty_lines_cost_nothing_and_a_key_that_stands_twice_ends_the_conversation(
    player: Callable[..., Peers],
) -> None:
    peers = player()
    assert played(peers, {"raw": ""}, {"raw": " "}, chunk("42"), {"raw": ""}, END).stdout.text == "42"
    twice = '{"jsonrpc":"2.0","id":3,"result":{"stopReason":"refusal","stopReason":"end_turn"}}'
    outcome = played(peers, chunk("42"), {"raw": twice})
    assert reason(outcome) == (Failure.TRANSIENT, "agent_bad_answer") and "appears twice" in str(outcome.ending.detail)


def test_a_failed_call_that_ends_the_turn_well_is_a_failure_with_what_was_used(player: Callable[..., Peers]) -> None:
    peers = player()
    unused = {"result": {"stopReason": "end_turn", "usage": None, "_meta": {"quota": {"token_count": None}}}}
    words = chunk("exceeded retry limit, last status: 429 Too Many Requests\n\n")
    assert reason(played(peers, words, unused)) == (Failure.TRANSIENT, "rate_limited")
    cost = {"sessionUpdate": "usage_update", "used": 1, "size": 2, "cost": {"amount": 0.5, "currency": "USD"}}
    kind = {"error": {"code": -32603, "message": "Internal error: API Error: 400 no", "data": {"errorKind": "unknown"}}}
    outcome = played(peers, cost, kind)
    assert reason(outcome) == (Failure.PERMANENT, "invalid_request")
    assert outcome.usage is not None and outcome.usage.cost_usd == 0.5
    late = played(peers, cost, timeout_seconds=1.0)
    assert late.ending.timed_out and late.usage is not None and late.usage.cost_usd == 0.5


def test_all_that_was_said_is_kept_whole_in_a_file(player: Callable[..., Peers]) -> None:
    peers = player()
    call = {"sessionUpdate": "tool_call", "toolCallId": "c", "title": "ls", "status": "completed"}
    outcome = played(peers, chunk("I look."), call, chunk("42"), END)
    assert (outcome.stdout.text, outcome.stdout.truncated) == ("42", False)
    assert outcome.stdout.kept is not None and (peers.folder / outcome.stdout.kept).read_text() == "I look.\n\n42"


def test_one_that_wants_a_login_is_asked_for_it_by_the_way_that_is_named(player: Callable[..., Peers]) -> None:
    peers = player({"login": "api-key"}, acp_auth_method="api-key")
    assert played(peers, chunk("42"), END).stdout.text == "42"
    assert played(peers, chunk("43"), END).stdout.text == "43"
    assert len(peers.noted("authenticate api-key")) == len(peers.noted("started")) == 1
    assert played(peers, {"error": {"code": -32000, "message": "gone"}}).ending.reason == "not_authenticated"
    assert len(peers.noted("authenticate api-key")) == 2


@pytest.mark.parametrize(
    ("method", "words"), [("", "one of its ways (api-key, browser)"), ("browser", "browser: no such way")]
)
def test_one_that_cannot_be_logged_in_says_which_ways_it_has(
    method: str, words: str, player: Callable[..., Peers]
) -> None:
    outcome = played(player({"login": "api-key"}, acp_auth_method=method), chunk("42"), END)
    assert reason(outcome) == (Failure.AUTH, "not_authenticated")
    assert words in str(outcome.ending.detail) and "ACP_AUTH_METHOD" in str(outcome.ending.detail)


def test_a_description_that_is_a_command_of_the_program_is_not_run(player: Callable[..., Peers]) -> None:
    unused = {"result": {"stopReason": "end_turn", "usage": None}}
    outcome = player({"steps": [chunk("Commands: /help"), unused]}).do("/help")
    assert reason(outcome) == (Failure.PERMANENT, "not_run")


def test_agent_that_prints_too_much_for_one_task_is_ended_and_the_attempt_counts(tmp_path: Path) -> None:
    peers = Peers(tmp_path, max_attempt_output_bytes=100_000)
    try:
        assert reason(peers.do("flood")) == (Failure.TRANSIENT, "output_too_large")
        assert reason(peers.do("say well")) == (None, None)
    finally:
        peers.runner.close()


@pytest.mark.parametrize("close", [{"result": {}}, {"error": {"code": -32603, "message": "what session?"}}])
def test_a_session_is_closed_before_the_next_one(close: dict[str, Any], player: Callable[..., Peers]) -> None:
    peers = player({"close": close})
    assert [played(peers, chunk(word), END).stdout.text for word in ("a", "b", "c")] == ["a", "b", "c"]
    assert len(peers.noted("started")) == len(peers.noted("close s1")) == len(peers.noted("close s2")) == 1


def test_one_that_does_not_close_its_session_costs_nothing(
    player: Callable[..., Peers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_CLOSE_SECONDS", 0.3)
    peers = player({"close": {"id": None, "method": "never"}})
    assert [played(peers, chunk(word), END).stdout.text for word in ("a", "b")] == ["a", "b"]
    assert len(peers.noted("started")) == 2
