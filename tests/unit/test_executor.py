"""Trouble of the machine, seen from the executor: who tries again, when, and what sleeps meanwhile."""

from __future__ import annotations

import asyncio
import errno
import queue
import threading
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.configs import worker_config
from tests.doubles import HandClock, Memory
from watcher.errors import WorkerTrouble
from watcher.formats.task import Task
from watcher.policy.after_attempt import Ending, Failure
from watcher.runner.runner_interface import Attempt, Live, Outcome, Output
from watcher.store.holds import hold_provider, lift_hold
from watcher.store.queue_interface import Claim, Claimed, Settlement
from watcher.telemetry.events import Event, TaskSettled, TroubleBegan, TroubleEnded
from watcher.worker.executor import Executor
from watcher.worker.parts import WorkerParts
from watcher.worker.provider_gates import Gates


class StubSpool:
    """Hands out claims by name; the disk is full while `is_full`."""

    def __init__(self, *names: str) -> None:
        self.waiting_names = list(names)
        self.is_full = False
        self.settled_ids: list[str] = []
        self.released: list[str] = []

    def claim(self, limit: int, excluded: Collection[str]) -> Claimed:
        names, self.waiting_names = self.waiting_names[:limit], self.waiting_names[limit:]
        tasks = [Task(name, "marie", "x", "0" * 64) for name in names]
        return Claimed([Claim(task, 1, 0, "command", task.task_id, 0.0, None, 0.0) for task in tasks])

    def release(self, claim: Claim, reason: str) -> None:
        self.released.append(claim.task.task_id)
        self.waiting_names.append(claim.task.task_id)

    def retry_in(self, claim: Claim, delay_seconds: float) -> None:
        raise AssertionError("no attempt of these tests is counted")

    def prompt(self, claim: Claim) -> str:
        return claim.task.description

    def taken(self, claim: Claim) -> None:
        pass

    def settle(self, batch: list[Settlement]) -> tuple[list[Event | None], OSError | None]:
        if self.is_full:
            return [None] * len(batch), OSError(errno.ENOSPC, "No space left", "/r/dlq/marie/.tmp/1.i")
        return [settlement.event for settlement in batch], None

    def settled(self, settlement: Settlement) -> None:
        self.settled_ids.append(settlement.task_id)

    def rescue(self) -> int:
        return 0

    def check_space(self, minimum_bytes: int) -> None:
        if self.is_full:
            raise WorkerTrouble("store results", OSError(errno.ENOSPC, "no room"))

    def discard_output(self, name: str) -> None:
        pass

    def output_path(self, task_id: str, stream: str) -> str:
        return ""

    def waiting(self) -> int:
        return len(self.waiting_names)

    def has_ready(self, excluded: Collection[str]) -> bool:
        return bool(self.waiting_names) and "command" not in excluded

    def has_undoubted(self, provider: str) -> bool:
        return bool(self.waiting_names)

    def next_due_in(self) -> float | None:
        return None


class StubRunner:
    """An attempt ends when the test says how."""

    def __init__(self) -> None:
        self.endings: dict[str, queue.SimpleQueue[Ending]] = {}

    def end(self, task_id: str, ending: Ending) -> None:
        self._of(task_id).put(ending)

    def run(self, attempt: Attempt) -> Outcome:
        ending = self._of(attempt.task_id).get(timeout=60)
        return Outcome(ending, 0, Output(), Output(), 0.0, 1.0)

    def stop(self, mark: str, failure: Failure, reason: str | None = None) -> None:
        for waiting in self.endings.values():
            waiting.put(Ending(failure))

    def problem(self, provider: str) -> Ending | None:
        return None

    def remark(self) -> str | None:
        return None

    def live_output(self, mark: str) -> tuple[Path, float | None] | None:
        return None

    def live(self, mark: str) -> Live | None:
        return None

    def unwatched(self) -> list[tuple[str, str]]:
        return []

    def sweep(self) -> int:
        return 0

    def _of(self, task_id: str) -> queue.SimpleQueue[Ending]:
        return self.endings.setdefault(task_id, queue.SimpleQueue())


class Bench:
    """An executor of two slots on stubs and a clock that the test drives."""

    def __init__(self, control: Path, spool: StubSpool) -> None:
        self.spool, self.runner, self.clock, self.memory = spool, StubRunner(), HandClock(), Memory()
        config = worker_config(control, control_dir=control, max_concurrent_tasks=2, queue_size=0, min_free_bytes=1)
        owner = Mock(worker="marie", id="i")
        self.gates = gates = Gates(config, owner, self.clock, self.memory)
        parts = WorkerParts(owner, spool, self.runner, gates, Mock())
        self.executor = Executor(config, parts, self.clock, self.memory)

    def running(self) -> list[str]:
        return [running.claim.task.task_id for running in self.executor.running()]

    async def pass_seconds(self, seconds: float) -> None:
        """What was handed to a thread is begun before the clock moves on, or it would count as waiting that long."""
        await self.until(lambda: not self.executor._threads.has_waiting())
        self.clock.pass_seconds(seconds)
        self.executor.fill()

    async def until(self, is_true: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_true():  # noqa: ASYNC110 - other threads make it true
                await asyncio.sleep(0.002)


def run(tmp_path: Path, spool: StubSpool, body: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, spool)
        bench.executor.start(asyncio.get_running_loop(), lambda: None)
        try:
            await body(bench)
        finally:
            bench.executor.drain()
            bench.executor.stop_running()
            bench.executor.close()

    asyncio.run(main())


def test_one_task_tries_whether_the_trouble_is_over_also_beside_one_that_runs_for_hours(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.executor.fill()
        assert bench.running() == ["hours"]
        bench.spool.is_full = True
        bench.spool.waiting_names = ["a", "b"]
        await bench.pass_seconds(2)
        assert bench.running() == ["hours"] and bench.executor.trouble is not None
        bench.spool.is_full = False
        await bench.pass_seconds(20)
        assert bench.running() == ["hours", "a"]
        await bench.pass_seconds(20)
        assert bench.running() == ["hours", "a"], "one tries, not all"
        bench.runner.end("a", Ending(None))
        await bench.until(lambda: bench.spool.settled_ids == ["a"])
        await bench.until(lambda: bench.running() == ["hours", "b"])
        assert bench.executor.trouble is None and len(bench.memory.of(TroubleEnded)) == 1

    run(tmp_path, StubSpool("hours"), body)


def test_trouble_ends_when_nothing_waits_that_could_try(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.executor.fill()
        bench.spool.is_full = True
        await bench.pass_seconds(2)
        assert bench.executor.trouble is not None
        bench.spool.is_full = False
        await bench.pass_seconds(20)
        assert bench.executor.trouble is None and bench.running() == ["hours"]

    run(tmp_path, StubSpool("hours"), body)


def test_loop_sleeps_while_somebody_tries_whether_the_trouble_is_over(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.spool.is_full = True
        await bench.pass_seconds(2)
        bench.spool.is_full = False
        bench.spool.waiting_names = ["a", "b"]
        for _ in range(5):
            await bench.pass_seconds(bench.executor.retry_in() or 0.0)
            pause = bench.executor.retry_in()
            assert pause is not None and pause > 0.1, "it would turn a thousand times a second"
        assert bench.running() == ["a"]

    run(tmp_path, StubSpool(), body)


def test_task_that_meets_the_trouble_goes_back_uncounted_and_the_next_try_waits_longer(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.executor.fill()
        pauses = []
        for _ in range(4):
            bench.runner.end("a", Ending(Failure.TROUBLE, "worker_trouble", "EMFILE"))
            await bench.until(lambda: bench.running() == [])
            pause = bench.executor.retry_in()
            assert pause is not None
            pauses.append(pause)
            bench.executor.fill()
            assert bench.running() == [], "not before its time"
            await bench.pass_seconds(pause)
            assert bench.running() == ["a"]
        assert pauses == sorted(pauses) and pauses[-1] >= 4 * pauses[0]
        assert bench.spool.released == ["a"] * 4 and len(bench.memory.of(TroubleBegan)) == 1

    run(tmp_path, StubSpool("a"), body)


def test_outcome_that_cannot_be_stored_is_kept_and_stored_later_and_nothing_is_claimed_meanwhile(
    tmp_path: Path,
) -> None:
    async def body(bench: Bench) -> None:
        bench.executor.fill()
        bench.spool.is_full = True
        bench.runner.end("a", Ending(None))
        await bench.until(lambda: bench.executor.stuck() == 1)
        assert bench.executor.trouble == "store an outcome in /r/dlq/marie/.tmp: ENOSPC: No space left"
        bench.spool.waiting_names = ["b"]
        bench.executor.fill()
        assert not bench.executor.is_idle() and bench.running() == []
        bench.spool.is_full = False
        await bench.pass_seconds(bench.executor.retry_in() or 0.0)
        await bench.until(lambda: bench.spool.settled_ids == ["a"])
        assert [event.task_id for event in bench.memory.of(TaskSettled)] == ["a"]
        await bench.pass_seconds(20)
        assert bench.running() == ["b"]

    run(tmp_path, StubSpool("a"), body)


def test_task_goes_back_uncounted_when_no_thread_can_be_made_and_runs_when_one_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def body(bench: Bench) -> None:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        bench.executor.fill()
        await bench.until(lambda: bench.spool.released == ["a"])
        assert "EAGAIN" in (bench.executor.trouble or "") and bench.running() == []
        monkeypatch.undo()
        await bench.pass_seconds(bench.executor.retry_in() or 0.0)
        bench.runner.end("a", Ending(None))
        await bench.until(lambda: bench.spool.settled_ids == ["a"])
        assert bench.executor.trouble is None

    run(tmp_path, StubSpool("a"), body)


def test_tasks_share_the_threads_that_could_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = threading.Thread.start

    def refuse_the_second(thread: threading.Thread) -> None:
        if thread.name == "slot-2":
            raise RuntimeError("can't start new thread")
        real(thread)

    async def body(bench: Bench) -> None:
        monkeypatch.setattr(threading.Thread, "start", refuse_the_second)
        bench.executor.fill()
        bench.runner.end("a", Ending(None))
        bench.runner.end("b", Ending(None))
        await bench.until(lambda: sorted(bench.spool.settled_ids) == ["a", "b"])
        assert bench.executor.trouble is None

    run(tmp_path, StubSpool("a", "b"), body)


def test_task_whose_provider_is_held_between_claim_and_start_goes_back_and_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Gates.may_start

    def held_just_now(gates: Gates, provider: str, mark: str) -> bool:
        hold_provider(tmp_path, provider, now=0.0)
        return real(gates, provider, mark)

    async def body(bench: Bench) -> None:
        monkeypatch.setattr(Gates, "may_start", held_just_now)
        bench.executor.fill()
        await bench.until(lambda: sorted(bench.spool.released) == ["a", "b"])
        assert bench.runner.endings == {} and bench.running() == []
        monkeypatch.undo()
        lift_hold(tmp_path, "command")
        bench.executor.fill()
        assert sorted(bench.running()) == ["a", "b"]

    run(tmp_path, StubSpool("a", "b"), body)


def test_one_task_of_a_held_provider_goes_first_when_the_hold_is_over(tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.gates.hold("command", "usage_limit", None, bench.clock.wall() + 100, None)
        bench.executor.fill()
        assert bench.running() == []
        await bench.pass_seconds(100)
        assert bench.running() == ["a"]
        bench.runner.end("a", Ending(Failure.LIMIT, "usage_limit", resets_at=bench.clock.wall() + 50))
        await bench.until(lambda: bench.spool.released == ["a"])
        assert bench.running() == []
        await bench.pass_seconds(50)
        assert bench.running() == ["b"]
        bench.runner.end("b", Ending(None))
        await bench.until(lambda: sorted(bench.running()) == ["a", "c"])

    run(tmp_path, StubSpool("a", "b", "c"), body)
