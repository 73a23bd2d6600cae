"""Pools of real handler processes: what they answer, every way in which they fail, and that nothing is left."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import HandClock, Memory
from watcher import childproc, events, leftovers, procfs
from watcher.clock import Clock, SystemClock
from watcher.policy.poolsize import PoolLimits
from watcher.runner import keeper
from watcher.runner.jsonrpc import Executed, RpcError
from watcher.runner.pool import (
    HandlerFault,
    HandlerPool,
    HandlerState,
    NotWarm,
    PoolClosed,
    PoolFull,
    PoolSettings,
    Reply,
    Ticket,
)
from watcher.runner.warm import Start

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sessions, pidfds and /proc of Linux")

SOON = 60.0
RUDE = (sys.executable, "-I", "-S", str(Path(__file__).parents[1] / "rude_handler.py"))


def wait_for(what: str, look: Callable[[], Any]) -> Any:
    end = time.monotonic() + SOON
    while not (found := look()):
        assert time.monotonic() < end, f"waited {SOON:g} s for {what}"
        time.sleep(0.005)  # between two looks: other processes give no event to wait for
    return found


def marked(prefix: str) -> list[int]:
    """Living processes whose mark begins so."""
    found = []
    for pid in procfs.all_pids():
        facts = procfs.facts_of(pid)
        if facts is not None and not facts.is_dead and procfs.mark_of(pid).startswith(prefix.encode()):
            found.append(pid)
    return found


@pytest.fixture(autouse=True)
def subreaper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Orphans are adopted while a test runs and no longer; in the end nobody is missing and nobody left."""
    family = leftovers._Family()
    monkeypatch.setattr(leftovers, "_family", family)
    assert childproc.become_subreaper()
    yield
    ctypes.CDLL(None).prctl(leftovers._PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    os.close(family._children_fd or -1)
    assert (family.started, family.running) == (set(), {})


class Site:
    """A folder, and pools that are shut down in the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = folder / "gate"
        self.note = folder / "note"
        self.memory = Memory()
        self.pools: list[HandlerPool] = []
        self.prefix = f"{secrets.token_hex(16)}.h"

    def pool(
        self, size: int = 2, *argv: str, clock: Clock | None = None, least: int = 1, most: int = 10, **more: Any
    ) -> HandlerPool:
        """A pool of rude handlers (or of `argv`), started."""
        environment = {b"PATH": os.environ["PATH"].encode()}
        line_bytes = more.pop("max_line_bytes", 1 << 20)
        start = Start(argv or RUDE, environment, max_line_bytes=line_bytes)
        given = {"request_seconds": SOON, "start_seconds": SOON, "grace_seconds": SOON, **more}
        settings = PoolSettings(start, self.prefix, PoolLimits(least, size, most), **given)
        pool = HandlerPool(size, settings, clock or SystemClock(), self.memory)
        self.pools.append(pool)
        pool.start()
        return pool

    def ready(self, *arguments: Any, **more: Any) -> HandlerPool:
        """The same, with every handler idle."""
        pool = self.pool(*arguments, **more)
        size = pool._settings.limits.nominal
        wait_for("idle handlers", lambda: [state.state for state in pool.states()] == ["idle"] * size)
        return pool

    def event(self, do: str = "answer", **more: Any) -> dict[str, Any]:
        return {"do": do, "gate": str(self.gate), "note": str(self.note), "say": "something", **more}

    def failures(self) -> list[str]:
        return [event.reason for event in self.memory.of(events.HandlerFailed)]

    def noted(self) -> list[int]:
        try:
            return [int(line) for line in self.note.read_text().split()]
        except FileNotFoundError:
            return []


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for pool in site.pools:
        pool.shutdown()
    assert marked(site.prefix) == []


def ask(pool: HandlerPool, event: dict[str, Any], **more: Any) -> Reply:
    return pool.execute("default", event, **more)


def output(reply: Reply) -> str:
    assert isinstance(reply.answer, Executed), reply
    return reply.answer.output


def fault(pool: HandlerPool, event: dict[str, Any], **more: Any) -> HandlerFault:
    with pytest.raises(HandlerFault) as caught:
        ask(pool, event, **more)
    return caught.value


class Asking:
    """A request under way in a thread."""

    def __init__(self, pool: HandlerPool, event: dict[str, Any], **more: Any) -> None:
        self.ticket = Ticket()
        self._box: list[Reply | BaseException] = []
        self._pool, self._event, self._more = pool, event, more
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._box.append(ask(self._pool, self._event, ticket=self.ticket, **self._more))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self._box.append(error)

    def end(self) -> Reply | BaseException:
        self._thread.join(SOON)
        return self._box[0]


def pids(pool: HandlerPool) -> set[int]:
    return {state.pid for state in pool.states()}


def idle(pool: HandlerPool) -> list[HandlerState]:
    return [state for state in pool.states() if state.state == "idle"]


# --- what works


def test_many_requests_are_answered_by_the_same_processes(site: Site) -> None:
    pool = site.ready(2)
    before = pids(pool)
    assert [output(ask(pool, site.event(say=f"word {n}"))) for n in range(200)] == [f"word {n}" for n in range(200)]
    assert pids(pool) == before
    assert sum(state.requests for state in pool.states()) == 200


def test_a_pool_without_settings_echoes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    pool = HandlerPool(pool_size=3)
    site.pools.append(pool)
    pool.start()
    assert output(pool.execute("default", {"description": "hi"})) == "hi"


def test_each_request_has_a_handler_for_itself(site: Site) -> None:
    pool = site.ready(3)
    asking = [Asking(pool, site.event("wait", say=f"{n}")) for n in range(3)]
    wait_for("three handlers at work", lambda: len(set(site.noted())) == 3)
    assert [state.state for state in pool.states()] == ["busy"] * 3
    site.gate.touch()
    assert {output(one.end()) for one in asking} == {"0", "1", "2"}  # type: ignore[arg-type]


def test_requests_wait_when_all_are_busy_and_one_too_many_is_refused(site: Site) -> None:
    pool = site.ready(1, most=1, max_waiting=2)
    first = Asking(pool, site.event("wait"))
    wait_for("the handler to be busy", site.noted)
    waiting = [Asking(pool, site.event(say=f"{n}")) for n in range(2)]
    wait_for("both to wait", lambda: pool.waiting() == 2)
    with pytest.raises(PoolFull, match=r"2 requests wait for 1 handlers.*HANDLER_POOL_MAX"):
        ask(pool, site.event())
    site.gate.touch()
    assert [output(one.end()) for one in (first, *waiting)] == ["something", "0", "1"]  # type: ignore[arg-type]
    assert pool.waiting() == 0


def test_a_request_larger_than_a_pipe_comes_through(site: Site) -> None:
    pool = site.ready(1, max_line_bytes=16 << 20)
    text = "long " * 1_000_000
    assert output(ask(pool, site.event(say=text))) == text


def test_output_that_is_no_text_comes_as_json(site: Site) -> None:
    pool = site.ready(1)
    assert output(ask(pool, site.event(say={"a": [1, None, "é"]}))) == '{"a": [1, null, "é"]}'
    assert output(ask(pool, site.event(say=None))) == ""


def test_what_a_handler_writes_to_stderr_belongs_to_the_request_that_it_had(site: Site) -> None:
    pool = site.ready(1)
    assert [ask(pool, site.event("murmur", say=f"{n}")).printed for n in range(3)] == [f"about {n}\n" for n in range(3)]
    assert ask(pool, site.event()).printed == ""


def test_an_error_of_the_protocol_is_an_answer_and_the_handler_lives_on(site: Site) -> None:
    pool = site.ready(1)
    before = pids(pool)
    assert ask(pool, site.event("error", code=-32601)).answer == RpcError(-32601, "I do not do that")
    assert output(ask(pool, site.event())) == "something"
    assert pids(pool) == before


# --- what fails: the request of a bad handler fails for a reason, the others go on, a new handler comes


BAD = {
    "crash": ("handler_crashed", "exit code 3; its last words: I cannot go on"),
    "killed": ("handler_crashed", "ended by signal 9"),
    "garbage": ("handler_bad_answer", "a line that is not JSON: 'Traceback: this is no protocol'"),
    "not an answer": ("handler_bad_answer", "no JSON-RPC 2.0 response"),
    "wrong result": ("handler_bad_answer", "the result must be an object with success"),
    "other id": ("handler_bad_answer", "which nobody made"),
    "endless line": ("handler_answer_too_long", "longer than 1048576 bytes"),
}


@pytest.mark.parametrize("do", BAD)
def test_a_handler_that_breaks_costs_its_own_request_only(site: Site, do: str) -> None:
    pool = site.ready(2)
    other = Asking(pool, site.event("wait", say="other"))
    (busy,) = wait_for("the other handler", site.noted)
    reason, words = BAD[do]
    failed = fault(pool, site.event(do))
    assert (failed.reason, words in failed.detail) == (reason, True), failed.detail
    assert output(ask(pool, site.event(say="next"))) == "next"
    site.gate.touch()
    assert output(other.end()) == "other"  # type: ignore[arg-type]
    wait_for("two idle handlers again", lambda: len(idle(pool)) == 2)
    assert busy in pids(pool)
    wait_for("the failure to be told", lambda: site.failures() == [reason])


def test_an_answer_of_50_mb_is_cut_off_and_its_handler_killed(site: Site) -> None:
    pool = site.ready(1)
    (before,) = pids(pool)
    failed = fault(pool, site.event("huge", bytes=50 << 20))
    assert (failed.reason, "longer than 1048576 bytes" in failed.detail) == ("handler_answer_too_long", True)
    assert procfs.facts_of(before) is None
    assert output(ask(pool, site.event())) == "something"


@pytest.mark.parametrize("do", ["hang", "half a line"])
def test_a_handler_that_gives_no_answer_in_time_is_killed(site: Site, do: str) -> None:
    pool = site.ready(2)
    failed = fault(pool, site.event(do), timeout_seconds=0.2)
    assert (failed.reason, "no answer within 0.2 s" in failed.detail) == ("timeout", True)
    assert output(ask(pool, site.event())) == "something"
    wait_for("two handlers again", lambda: len(idle(pool)) == 2)


def test_no_request_may_take_longer_than_the_pool_allows(site: Site) -> None:
    pool = site.ready(1, request_seconds=0.2)
    assert fault(pool, site.event("hang"), timeout_seconds=SOON).reason == "timeout"


def test_a_handler_that_ignores_term_is_killed_after_the_grace(site: Site) -> None:
    pool = site.ready(1, grace_seconds=0.2)
    asking = Asking(pool, site.event("hang deaf"))
    (pid,) = wait_for("the deaf one", site.noted)
    pool.stop(asking.ticket)
    failed = asking.end()
    assert isinstance(failed, HandlerFault)
    assert (failed.reason, procfs.facts_of(pid)) == ("stopped", None)
    assert output(ask(pool, site.event())) == "something"


def test_a_late_answer_reaches_nobody(site: Site) -> None:
    pool = site.ready(1)
    assert fault(pool, site.event("late"), timeout_seconds=0.2).reason == "timeout"
    site.gate.touch()
    assert output(ask(pool, site.event(say="mine"))) == "mine"


def test_a_second_answer_costs_no_request_but_the_handler(site: Site) -> None:
    pool = site.ready(1)
    (before,) = pids(pool)
    assert output(ask(pool, site.event("twice", say="first"))) == "first"
    assert output(ask(pool, site.event(say="mine"))) == "mine"
    wait_for("another handler", lambda: idle(pool) and before not in pids(pool))


def test_an_old_answer_that_comes_during_the_next_request_is_passed_over(site: Site) -> None:
    pool = site.ready(1)
    (before,) = pids(pool)
    assert output(ask(pool, site.event("again later", say="first"))) == "first"
    asking = Asking(pool, site.event(say="mine"))
    wait_for("the second request", lambda: pool.states()[0].requests == 2)
    site.gate.touch()
    assert output(asking.end()) == "mine"  # type: ignore[arg-type]
    wait_for("another handler", lambda: idle(pool) and before not in pids(pool))
    wait_for("its end to be told", lambda: site.memory.of(events.HandlerEnded))
    assert [event.reason for event in site.memory.of(events.HandlerEnded)] == ["answered_twice"]


def test_a_flood_on_stderr_neither_blocks_nor_grows(site: Site) -> None:
    pool = site.ready(1)
    reply = ask(pool, site.event("flood", bytes=30 << 20, say="dry"))
    assert output(reply) == "dry"
    assert reply.printed.startswith("[")
    assert "bytes left out]" in reply.printed[:60]
    assert len(reply.printed) < 100_000


def test_an_idle_handler_that_ends_is_replaced_before_anybody_asks_it(site: Site) -> None:
    pool = site.ready(1)
    (pid,) = pids(pool)
    os.kill(pid, signal.SIGKILL)
    wait_for("a new handler", lambda: idle(pool) and pid not in pids(pool))
    assert output(ask(pool, site.event())) == "something"


@pytest.mark.parametrize("is_adopting", [True, False])
def test_what_a_crashed_handler_has_left_in_another_session_is_ended(site: Site, is_adopting: bool) -> None:
    leftovers._family.is_adopting = is_adopting
    pool = site.ready(1)
    failed = fault(pool, site.event("leave and crash"))
    (left,) = site.noted()
    assert (failed.reason, failed.leftovers_killed) == ("handler_crashed", 1)
    facts = procfs.facts_of(left)
    assert facts is None or facts.is_dead


def test_what_a_handler_has_left_ends_with_it(site: Site) -> None:
    pool = site.ready(1)
    assert output(ask(pool, site.event("leave and answer"))) == "something"
    (left,) = site.noted()
    assert procfs.facts_of(left) is not None  # a healthy handler may keep what it needs
    pool.shutdown()
    facts = procfs.facts_of(left)
    assert facts is None or facts.is_dead
    assert [event.leftovers for event in site.memory.of(events.HandlerEnded)] == [1]


def test_a_request_can_be_stopped_while_it_waits(site: Site) -> None:
    pool = site.ready(1, most=1)
    first = Asking(pool, site.event("wait"))
    wait_for("the handler to be busy", site.noted)
    second = Asking(pool, site.event())
    wait_for("the second to wait", lambda: pool.waiting() == 1)
    pool.stop(second.ticket)
    failed = second.end()
    assert isinstance(failed, HandlerFault)
    assert failed.reason == "stopped"
    site.gate.touch()
    assert output(first.end()) == "something"  # type: ignore[arg-type]


# --- starting, and what cannot be kept warm


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("cat",), "ping: a line that is no JSON-RPC 2.0 response"),
        (("true",), "; exit code 0"),
        (("sh", "-c", "echo no such module >&2; exit 3"), "exit code 3; its last words: no such module"),
        (("/nowhere/at-all",), "'/nowhere/at-all': No such file or directory"),
    ],
)
def test_a_command_that_cannot_be_kept_warm_is_said_to_be_so(site: Site, argv: tuple[str, ...], words: str) -> None:
    pool = site.pool(2, *argv)
    with pytest.raises(NotWarm, match="does not stay and answer a ping") as caught:
        ask(pool, site.event())
    assert words in str(caught.value)
    wait_for("the event", lambda: [words in event.detail for event in site.memory.of(events.HandlersCold)] == [True])


def test_a_command_that_says_nothing_to_a_ping_is_given_up(site: Site) -> None:
    pool = site.pool(2, "sleep", "600", start_seconds=0.2)
    with pytest.raises(NotWarm, match=r"no answer within 0\.2 s"):
        ask(pool, site.event())
    wait_for("their end", lambda: marked(site.prefix) == [])


def test_a_cold_command_is_tried_again_and_may_be_warm_then(site: Site) -> None:
    clock = HandClock()
    broken = f"test -e {site.gate} || exit 1; exec {' '.join(RUDE)}"
    pool = site.pool(1, "sh", "-c", broken, clock=clock)
    with pytest.raises(NotWarm):
        ask(pool, site.event())
    site.gate.touch()
    with pytest.raises(NotWarm):
        ask(pool, site.event())
    clock.pass_seconds(61)
    pool.nudge()
    wait_for("it to be warm", lambda: pool.cold() is None)
    assert output(ask(pool, site.event())) == "something"


def test_restarts_wait_longer_after_each_failure(site: Site) -> None:
    """The command was warm once and then breaks at every start."""
    clock = HandClock()
    starts = site.folder / "starts"
    once = f"echo x >> {starts}; test $(wc -l < {starts}) = 1 || exit 1; exec {' '.join(RUDE)}"
    pool = site.pool(1, "sh", "-c", once, clock=clock)
    assert fault(pool, site.event("crash")).reason == "handler_crashed"

    def started() -> int:
        return len(starts.read_text().split())

    # The start that follows at once fails too; who asks after that waits for the next one.
    wait_for("the second start to fail", lambda: pool._shelf.books.downs == 1)
    assert started() == 2
    for number, pause in ((3, 0.5), (4, 1.0), (5, 2.0)):
        asking = Asking(pool, site.event())
        wait_for("it to wait", lambda: pool.waiting() == 1)
        clock.pass_seconds(pause - 0.1)
        assert pool.health_check() == []  # the keeper has looked, and started nothing
        assert started() == number - 1
        clock.pass_seconds(0.2)
        pool.nudge()
        failed = asking.end()
        assert isinstance(failed, HandlerFault)
        assert (failed.reason, started()) == ("handler_not_started", number)


# --- wear and health


def test_a_handler_is_replaced_after_so_many_requests(site: Site) -> None:
    pool = site.ready(1, max_requests=5)
    seen = []
    for n in range(15):
        assert output(ask(pool, site.event(say=f"{n}"))) == f"{n}"
        seen += [event.reason for event in site.memory.of(events.HandlerEnded)][len(seen) :]
    wait_for("three ends", lambda: len(site.memory.of(events.HandlerEnded)) == 3)
    assert [(event.reason, event.requests) for event in site.memory.of(events.HandlerEnded)] == [
        ("max_requests", 5)
    ] * 3


def test_a_handler_is_replaced_when_it_is_old(site: Site) -> None:
    clock = HandClock()
    pool = site.ready(1, max_age_seconds=100.0, clock=clock)
    (before,) = pids(pool)
    clock.pass_seconds(99)
    assert output(ask(pool, site.event())) == "something"
    assert pids(pool) == {before}
    clock.pass_seconds(2)
    assert output(ask(pool, site.event())) == "something"
    wait_for("another", lambda: idle(pool) and before not in pids(pool))
    wait_for("its end to be told", lambda: site.memory.of(events.HandlerEnded))
    assert [event.reason for event in site.memory.of(events.HandlerEnded)] == ["max_age"]


def test_a_handler_that_hoards_memory_is_replaced_at_the_next_health_check(site: Site) -> None:
    pool = site.ready(1, max_memory_bytes=100 << 20)
    (before,) = pids(pool)
    assert output(ask(pool, site.event("hoard", bytes=150 << 20))) == "something"
    pool.health_check()
    wait_for("another", lambda: idle(pool) and before not in pids(pool))
    wait_for("its end to be told", lambda: site.memory.of(events.HandlerEnded))
    assert [event.reason for event in site.memory.of(events.HandlerEnded)] == ["max_memory"]


def test_a_health_check_finds_the_handler_that_answers_no_more(site: Site) -> None:
    pool = site.ready(2, ping_seconds=0.5, health_seconds=3600.0)
    asking = Asking(pool, site.event("wait"))  # a busy one is not pinged: a busy machine may be slower than the ping
    (busy,) = wait_for("the other one to be busy", site.noted)
    (frozen,) = pids(pool) - {busy}
    os.kill(frozen, signal.SIGSTOP)
    states = pool.health_check()
    assert {state.pid for state in states} & {busy, frozen} == {busy}
    site.gate.touch()
    assert output(asking.end()) == "something"  # type: ignore[arg-type]
    wait_for("two again", lambda: len(idle(pool)) == 2)
    assert site.failures() == ["timeout"]


def test_a_request_that_waits_is_not_passed_over_for_a_health_check_that_waits(site: Site) -> None:
    pool = site.ready(2, most=2, ping_seconds=3600.0, health_seconds=3600.0)
    first = Asking(pool, site.event("wait"))
    (busy,) = wait_for("one to be busy", site.noted)
    (frozen,) = pids(pool) - {busy}
    os.kill(frozen, signal.SIGSTOP)
    checking = threading.Thread(target=pool.health_check)
    checking.start()
    wait_for("the check to wait for the frozen one", lambda: "checking" in {state.state for state in pool.states()})
    second = Asking(pool, site.event(say="second"))
    wait_for("the second request to wait", lambda: pool.waiting() == 1)
    site.gate.touch()
    assert [output(one.end()) for one in (first, second)] == ["something", "second"]  # type: ignore[arg-type]
    os.kill(frozen, signal.SIGCONT)
    checking.join(SOON)
    assert not checking.is_alive()


def test_health_is_checked_after_half_a_minute(site: Site) -> None:
    clock = HandClock()
    pool = site.ready(1, ping_seconds=0.5, clock=clock)
    (frozen,) = pids(pool)
    os.kill(frozen, signal.SIGSTOP)
    clock.pass_seconds(31)
    pool.nudge()
    wait_for("another", lambda: idle(pool) and frozen not in pids(pool))


# --- size


def test_the_monitor_adds_one_handler_at_a_time_while_more_than_ten_wait(site: Site) -> None:
    clock = HandClock()
    pool = site.ready(1, most=3, clock=clock)
    asking = [Asking(pool, site.event("wait")) for _ in range(14)]
    wait_for("thirteen to wait", lambda: pool.waiting() == 13)
    for size in (2, 3, 3):
        clock.pass_seconds(6)
        pool.nudge()
        wait_for(f"{size} at work", lambda size=size: len(set(site.noted())) == size)
    wait_for("both to be told", lambda: len(site.memory.of(events.PoolResized)) == 2)
    assert [(e.was, e.size, e.waiting) for e in site.memory.of(events.PoolResized)] == [(1, 2, 13), (2, 3, 12)]
    site.gate.touch()
    assert [output(one.end()) for one in asking] == ["something"] * 14  # type: ignore[arg-type]


def test_ten_waiting_requests_are_no_reason_to_grow(site: Site) -> None:
    clock = HandClock()
    pool = site.ready(1, most=3, clock=clock)
    asking = [Asking(pool, site.event("wait")) for _ in range(11)]
    wait_for("ten to wait", lambda: pool.waiting() == 10)
    clock.pass_seconds(6)
    pool.health_check()  # so the keeper has had its look at the size
    assert site.memory.of(events.PoolResized) == []
    site.gate.touch()
    assert [output(one.end()) for one in asking] == ["something"] * 11  # type: ignore[arg-type]
    assert len(set(site.noted())) == 1


def test_the_monitor_shrinks_an_idle_pool_to_its_minimum_and_work_brings_it_back(site: Site) -> None:
    clock = HandClock()
    pool = site.ready(3, least=1, clock=clock)
    clock.pass_seconds(61)
    pool.nudge()
    wait_for("one handler", lambda: len(pool.states()) == 1)
    asking = [Asking(pool, site.event("wait")) for _ in range(3)]
    wait_for("three handlers at work", lambda: len(set(site.noted())) == 3)
    site.gate.touch()
    assert [output(one.end()) for one in asking] == ["something"] * 3  # type: ignore[arg-type]


def test_scale_is_bound_by_the_limits_and_lets_busy_handlers_finish(site: Site) -> None:
    pool = site.ready(2, least=1, most=4)
    assert pool.scale(99) == 4
    wait_for("four", lambda: len(idle(pool)) == 4)
    asking = [Asking(pool, site.event("wait")) for _ in range(3)]
    wait_for("three at work", lambda: len(set(site.noted())) == 3)
    assert pool.scale(0) == 1
    wait_for("the idle one to go", lambda: len(pool.states()) == 3)
    site.gate.touch()
    assert [output(one.end()) for one in asking] == ["something"] * 3  # type: ignore[arg-type]
    wait_for("one left", lambda: len(pool.states()) == 1)


def test_a_size_outside_of_the_limits_is_refused(site: Site) -> None:
    settings = PoolSettings(Start(RUDE, {}), site.prefix, PoolLimits(2, 3, 4))
    for size in (1, 5):
        with pytest.raises(ValueError, match=f"pool_size {size}: give one from 2 to 4"):
            HandlerPool(size, settings)


# --- the end


def test_a_pool_that_is_shut_down_or_was_not_started_takes_nothing(site: Site) -> None:
    pool = site.ready(1)
    pool.shutdown()
    with pytest.raises(PoolClosed):
        ask(pool, site.event())
    fresh = HandlerPool(1, PoolSettings(Start(RUDE, {}), site.prefix))
    site.pools.append(fresh)
    with pytest.raises(PoolClosed):
        ask(fresh, site.event())


def test_shutdown_ends_busy_waiting_and_deaf_ones(site: Site) -> None:
    pool = site.pool(1, *RUDE, "deaf", most=1, grace_seconds=0.2)
    busy = Asking(pool, site.event("hang deaf"))
    wait_for("the handler to be busy", site.noted)
    waiting = Asking(pool, site.event())
    wait_for("one to wait", lambda: pool.waiting() == 1)
    pool.shutdown()
    first, second = busy.end(), waiting.end()
    assert isinstance(first, HandlerFault)
    assert first.reason == "stopped"
    assert isinstance(second, PoolClosed)
    assert marked(site.prefix) == []


def test_shutdown_asks_before_it_kills(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "POLITE_SECONDS", SOON)
    trap = f"trap 'echo term > {site.note}' TERM; {' '.join(RUDE)}; echo 7 > {site.note}"
    pool = site.ready(1, "sh", "-c", trap)
    pool.shutdown()
    assert site.noted() == [7]


def test_no_descriptor_and_no_thread_is_left(site: Site) -> None:
    def open_ones() -> int:
        return len(os.listdir("/proc/self/fd")) - len(childproc._wakers)  # those are kept for the next wait

    warm_up = site.ready(1)
    fault(warm_up, site.event("crash"))
    warm_up.shutdown()
    descriptors, threads = open_ones(), threading.active_count()
    pool = site.ready(2)
    for do in ("crash", "garbage", "endless line"):
        fault(pool, site.event(do))
    pool.shutdown()
    assert (open_ones(), threading.active_count()) == (descriptors, threads)


# --- the guard


def test_the_guard_kills_every_handler_when_its_pipe_ends_without_a_word(site: Site) -> None:
    """As it ends when this process is killed; tests/crash kills one."""
    pool = site.ready(3, *RUDE, "deaf", backoff_seconds=(600.0, 600.0))
    before = pids(pool)
    guarding = pool._keeper._guarding
    os.close(guarding._pipe)
    guarding._pipe = -1
    wait_for("their end", lambda: not before & set(marked(site.prefix)))


def test_a_guard_that_was_killed_is_replaced(site: Site) -> None:
    pool = site.ready(1)
    guarding = pool._keeper._guarding
    first = guarding.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)

    def is_replaced() -> bool:
        pool.health_check()
        return guarding.pid != first

    wait_for("another guard", is_replaced)
