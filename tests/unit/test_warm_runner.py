"""Attempts in a pool: what an answer means for the task, and what happens to attempts that cannot be warm."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.configs import made
from tests.doubles import HandClock, Memory
from watcher.policy.after_attempt import Ending, Failure
from watcher.runner.runner_interface import Attempt, Live, Outcome, Output
from watcher.runner.warm.jsonrpc import Executed, RpcError
from watcher.runner.warm.pool import HandlerFault, NotWarm, PoolClosed, PoolFull, Reply, Ticket
from watcher.runner.warm.runner import Router, WarmRunner
from watcher.settings.worker_groups import RunnerSettings
from watcher.telemetry import events


class Once:
    """A runner that notes what it is asked."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.stopped: list[str] = []
        self.is_closed = False

    def problem(self, provider: str) -> Ending | None:
        return None if provider in ("handler", "command") else Ending(Failure.PERMANENT, "unknown_provider")

    def run(self, attempt: Attempt) -> Outcome:
        self.ran.append(attempt.task_id)
        return Outcome(Ending(None), 0, Output("once"), Output(), 0.0, 0.0)

    def stop(self, mark: str, failure: Failure, reason: str | None = None) -> None:
        self.stopped.append(mark)

    def live(self, mark: str) -> Live | None:
        return Live() if mark == "once" else None

    def unwatched(self) -> list[tuple[str, str]]:
        return [("command", "why")]

    def live_output(self, mark: str) -> tuple[Path, float | None] | None:
        return (Path("/x"), 1.0) if mark == "once" else None

    def sweep(self) -> int:
        return 3

    def remark(self) -> str | None:
        return None

    def close(self) -> None:
        self.is_closed = True


class FakePool:
    """What a pool says is put into its mouth: here it is about what the runner makes of it."""

    def __init__(self) -> None:
        self.says: Any = Reply(Executed(True, "out", ""), "", 1)
        self.asked: list[tuple[str, dict[str, Any], float | None]] = []
        self.is_cold: str | None = None
        self.began = threading.Event()
        self.stopped = threading.Event()

    def execute(self, name: str, event: dict[str, Any], seconds: float | None, ticket: Ticket) -> Reply:
        self.asked.append((name, event, seconds))
        if self.says == "wait":
            self.began.set()
            assert self.stopped.wait(60)
            raise HandlerFault("stopped", "handler 1: ended on request", left=2)
        if isinstance(self.says, BaseException):
            raise self.says
        assert isinstance(self.says, Reply)
        return self.says

    def stop(self, ticket: Ticket) -> None:
        ticket.is_stopped = True
        self.stopped.set()

    def cold(self) -> str | None:
        return self.is_cold

    def shutdown(self) -> None:
        self.says = PoolClosed("closed")


class Shop:
    def __init__(self, folder: Path, emit: Any = None, soon: Any = None) -> None:
        self.pool = FakePool()
        self.once = Once()
        self.memory = Memory()
        self.clock = HandClock()
        self.folder = folder
        self.tell: Any = None

        def make(tell: Any) -> Any:
            self.tell = tell
            return self.pool

        config = made(RunnerSettings, max_output_bytes=100, allowed_cwd=(folder,))
        self.runner = WarmRunner(
            make, self.once, config, folder, self.clock, emit or self.memory, soon or (lambda call: None)
        )

    def run(self, says: Any = None, **more: Any) -> Outcome:
        self.pool.says = says if says is not None else self.pool.says
        return self.runner.run(attempt(**more))


def attempt(**more: Any) -> Attempt:
    given: dict[str, Any] = {
        "task_id": "t1", "worker": "marie", "number": 2, "mark": "m1", "prompt": "say hi", "provider": "handler",
        "timeout_seconds": 7.0,
    }  # fmt: skip
    return Attempt(**(given | more))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    yield Shop(tmp_path)


def test_a_task_becomes_a_name_and_an_event(shop: Shop) -> None:
    shop.run(metadata={"handler": "facts", "x": 1}, agent_id="a", model="m", cwd=str(shop.folder))
    assert shop.pool.asked == [
        ("facts", {
            "task_id": "t1", "worker": "marie", "attempt": 2, "description": "say hi",
            "metadata": {"handler": "facts", "x": 1}, "agent_id": "a", "cwd": str(shop.folder), "model": "m",
        }, 7.0),
    ]  # fmt: skip
    shop.run()
    assert shop.pool.asked[1][0] == "default"


@pytest.mark.parametrize(
    ("says", "failure", "reason", "detail", "exit_code"),
    [
        (Reply(Executed(True, "", ""), "", 1), None, None, None, 0),
        (Reply(Executed(False, "", "a\nlast"), "", 1), Failure.TRANSIENT, "handler_failed", "handler: last", 1),
        (Reply(Executed(False, "", "x", True), "", 1), Failure.PERMANENT, "handler_failed", "handler: x", 1),
        (Reply(RpcError(-32000, "busy"), "", 1), Failure.TRANSIENT, "handler_error", "handler: error -32000: busy", 1),
        (Reply(RpcError(-32601, "no"), "", 1), Failure.PERMANENT, "handler_error", "handler: error -32601: no", 1),
        (HandlerFault("timeout", "late"), Failure.TRANSIENT, "timeout", "late", None),
        (HandlerFault("handler_crashed", "gone", -9), Failure.TRANSIENT, "handler_crashed", "gone", -9),
        (PoolFull("too many"), Failure.TRANSIENT, "handler_queue_full", "too many", None),
        (PoolClosed("closed"), Failure.STOPPED, None, "closed", None),
        (OSError(24, "Too many open files"), Failure.TROUBLE, "worker_trouble", None, None),
        (OSError(7, "Argument list too long"), Failure.TRANSIENT, "handler_failed", None, None),
    ],
)
def test_what_the_pool_says_decides_how_the_attempt_ended(
    shop: Shop, says: Any, failure: Failure | None, reason: str | None, detail: str | None, exit_code: int | None
) -> None:
    outcome = shop.run(says)
    assert (outcome.ending.failure, outcome.ending.reason, outcome.exit_code) == (failure, reason, exit_code)
    assert outcome.ending.timed_out == (reason == "timeout")
    if detail is not None or failure is None:
        assert outcome.ending.detail == detail


def test_what_was_printed_follows_what_was_answered(shop: Shop) -> None:
    outcome = shop.run(Reply(Executed(True, "out", "said"), "printed\n", 1))
    assert (outcome.stdout, outcome.stderr.text) == (Output("out", 3), "said\nprinted\n")
    assert shop.run(HandlerFault("timeout", "late", stderr="last words")).stderr.text == "last words"


def test_a_text_that_cannot_be_written_is_mended(shop: Shop) -> None:
    assert shop.run(Reply(Executed(True, "half \ud800", ""), "", 1)).stdout.text == "half \ufffd"


def test_long_output_is_cut_and_kept_whole_in_the_claim_folder(shop: Shop) -> None:
    text = "é" * 500
    stdout = shop.run(Reply(Executed(True, text, ""), "", 1)).stdout
    assert (stdout.size_bytes, stdout.truncated, len(stdout.text.encode()) < 300) == (1000, True, True)
    assert stdout.kept is not None
    assert (shop.folder / stdout.kept).read_text() == text


def test_a_handler_name_that_is_no_text_and_a_cwd_that_is_not_allowed_are_refused(shop: Shop) -> None:
    assert shop.run(metadata={"handler": ["x"]}).ending.reason == "bad_handler_name"
    refused = shop.run(cwd="/").ending
    assert (refused.failure, refused.reason) == (Failure.PERMANENT, "bad_cwd")
    assert shop.pool.asked == []


@pytest.mark.parametrize("failure", [Failure.STOPPED, Failure.CANCELLED])
def test_a_running_attempt_is_stopped_for_the_given_cause(shop: Shop, failure: Failure) -> None:
    shop.pool.says = "wait"
    box: list[Outcome] = []
    thread = threading.Thread(target=lambda: box.append(shop.runner.run(attempt())))
    thread.start()
    assert shop.pool.began.wait(60)
    shop.runner.stop("another", failure)
    assert not shop.pool.stopped.is_set()
    shop.runner.stop("m1", failure, "a reason")
    thread.join(60)
    assert (box[0].ending.failure, box[0].ending.reason, box[0].leftovers_killed) == (failure, "a reason", 0)
    shop.runner.stop("m1", failure)  # over: ignored


def test_what_cannot_be_kept_warm_runs_once(shop: Shop) -> None:
    outcome = shop.run(NotWarm("it does not answer"))
    assert (outcome.stdout.text, shop.once.ran) == ("once", ["t1"])


def test_a_task_that_names_a_handler_waits_until_there_are_handlers(shop: Shop) -> None:
    ending = shop.run(NotWarm("it does not answer"), metadata={"handler": "facts"}).ending
    assert (ending.failure, ending.reason) == (Failure.AUTH, "handler_not_warm")
    assert ending.resets_at == shop.clock.wall() + 60
    assert shop.once.ran == []


def test_events_are_told_when_the_loop_comes_by_and_cold_is_remarked(shop: Shop) -> None:
    assert shop.runner.remark() is None
    shop.tell(events.HandlersCold("why"))
    shop.pool.is_cold = "why"
    assert shop.memory.events == []
    assert shop.runner.sweep() == 0
    assert shop.memory.events == [events.HandlersCold("why")]
    assert shop.runner.remark() == "handler: one process for each task: why"


def test_events_are_told_at_once_and_on_the_loop_thread_when_there_is_a_loop(tmp_path: Path) -> None:
    async def play() -> tuple[int, list[int]]:
        told, threads = asyncio.Event(), []

        def emit(_: events.Event) -> None:
            threads.append(threading.get_ident())
            told.set()

        shop = Shop(tmp_path, emit, asyncio.get_running_loop().call_soon_threadsafe)
        await asyncio.to_thread(shop.tell, events.HandlersCold("why"))
        async with asyncio.timeout(30):
            await told.wait()
        return threading.get_ident(), threads

    mine, threads = asyncio.run(play())
    assert threads == [mine]


def test_events_of_a_closed_loop_are_told_at_the_end(tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    memory = Memory()
    shop = Shop(tmp_path, memory, loop.call_soon_threadsafe)
    shop.tell(events.HandlersCold("why"))
    assert memory.events == []
    shop.runner.close()
    assert memory.events == [events.HandlersCold("why")]


def test_the_router_sends_each_provider_to_its_runner(shop: Shop) -> None:
    router = Router(shop.once, {"handler": shop.runner})
    assert router.run(attempt()).stdout.text == "out"
    assert router.run(dataclasses.replace(attempt(), provider="command")).stdout.text == "once"
    assert (router.problem("command"), router.problem("handler")) == (None, None)
    assert router.problem("unheard-of") is not None
    router.stop("m9", Failure.STOPPED)
    assert shop.once.stopped == ["m9"]
    assert (router.live_output("once"), router.live_output("m1")) == ((Path("/x"), 1.0), None)
    assert (router.live("once"), router.live("m1")) == (Live(), None)
    assert router.unwatched() == [("command", "why")]
    assert router.sweep() == 3
    shop.pool.is_cold = "why"
    assert router.remark() == "handler: one process for each task: why"
    router.close()
    assert shop.once.is_closed
