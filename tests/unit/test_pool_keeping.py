"""How a pool of real handler processes is kept: starts, wear, size and the end; that nothing is left."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from tests.adoption import family
from tests.doubles import HandClock
from tests.handlerpools import RUDE, SOON, Asking, Site, ask, fault, idle, marked, output, pids, site
from tests.waiting import wait_for
from watcher.policy.pool_size import PoolLimits
from watcher.runner.warm import pool_keeper
from watcher.runner.warm.handler_process import Start
from watcher.runner.warm.pool import HandlerFault, HandlerPool, NotWarm, PoolClosed, PoolSettings
from watcher.system import processes
from watcher.telemetry import events

__all__ = ["family", "site"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sessions, pidfds and /proc of Linux")


# --- starting, and what cannot be kept warm


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("cat",), "ping: a line that is no JSON-RPC 2.0 response"),
        (("true",), "; exit code 0"),
        (("sh", "-c", "echo no such module >&2; exit 3"), "exit code 3; its last output: no such module"),
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
    wait_for("the second start to fail", lambda: pool._handlers.books.downs == 1)
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


def test_a_handler_that_hoards_memory_is_replaced_after_the_request_that_did_it(site: Site) -> None:
    pool = site.ready(1, max_memory_bytes=100 << 20, health_seconds=3600.0)
    (before,) = pids(pool)
    assert output(ask(pool, site.event("hoard", bytes=150 << 20))) == "something"
    wait_for("another", lambda: idle(pool) and before not in pids(pool))
    wait_for("its end to be told", lambda: site.memory.of(events.HandlerEnded))
    assert [event.reason for event in site.memory.of(events.HandlerEnded)] == ["max_memory"]


def test_a_request_that_takes_twice_the_memory_is_ended_while_it_runs(site: Site) -> None:
    pool = site.ready(1, max_memory_bytes=100 << 20)
    failed = fault(pool, site.event("hoard", bytes=250 << 20, gated=True))
    assert (failed.reason, "HANDLER_MAX_MEMORY" in failed.detail) == ("handler_too_large", True)
    assert output(ask(pool, site.event())) == "something"


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


def test_start_of_a_pool_that_runs_changes_nothing_and_one_that_was_shut_down_says_so(site: Site) -> None:
    pool = site.ready(1)
    before = pids(pool)
    pool.start()
    assert output(ask(pool, site.event(say="on"))) == "on" and pids(pool) == before
    pool.shutdown()
    with pytest.raises(PoolClosed, match="make a new one"):
        pool.start()


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
    monkeypatch.setattr(pool_keeper, "POLITE_SECONDS", SOON)
    trap = f"trap 'echo term > {site.note}' TERM; {' '.join(RUDE)}; echo 7 > {site.note}"
    pool = site.ready(1, "sh", "-c", trap)
    pool.shutdown()
    assert site.noted() == [7]


def test_no_descriptor_and_no_thread_is_left(site: Site) -> None:
    def open_ones() -> int:
        return len(os.listdir("/proc/self/fd")) - len(processes._wakers)  # those are kept for the next wait

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
