"""Pools of real handler processes: what they answer, and every way in which they fail."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.adoption import family
from tests.handlerpools import SOON, Asking, Site, ask, fault, idle, output, pids, site
from tests.waiting import wait_for
from watcher.runner.warm.jsonrpc import RpcError
from watcher.runner.warm.pool import HandlerFault, HandlerPool, PoolFull
from watcher.system import leftover_processes, procfs
from watcher.telemetry import events

__all__ = ["family", "site"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sessions, pidfds and /proc of Linux")


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
    "crash": ("handler_crashed", "exit code 3; its last output: I cannot go on"),
    "killed": ("handler_crashed", "ended by signal 9"),
    "garbage": ("handler_bad_answer", "a line that is not JSON: 'Traceback: this is no protocol'"),
    "not an answer": ("handler_bad_answer", "no JSON-RPC 2.0 response"),
    "key twice": ("handler_bad_answer", "the key 'success' appears twice in one object"),
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


def test_empty_lines_and_notifications_are_passed_over_before_and_after_the_answer(site: Site) -> None:
    pool = site.ready(1)
    before = pids(pool)
    for n in range(5):
        assert output(ask(pool, site.event("chatter", times=100, say=f"{n}"))) == f"{n}"
    pool.health_check()
    assert (pids(pool), site.failures()) == (before, [])


def test_a_flood_of_lines_that_want_nothing_ends_the_handler(site: Site) -> None:
    pool = site.ready(1)
    failed = fault(pool, site.event("chatter", times=10_000))
    assert (failed.reason, "lines that are no answer" in failed.detail) == ("handler_bad_answer", True)


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
    leftover_processes._family.is_adopting = is_adopting
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
