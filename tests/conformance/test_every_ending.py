"""Whatever an attempt comes to, and by whatever way its task comes back: it ends, or it lets the others pass.

The real executor, gates and spool on real folders; the clock is the test's, and the runner says what each attempt
comes to. A class of ending that is not in the table below fails the first test.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.configs import worker_config
from tests.conformance.conftest import Desk, Office
from tests.doubles import HandClock, Memory
from watcher.policy.after_attempt import Ending, Failure
from watcher.policy.claim_order import FIFO_MODES, FifoMode
from watcher.policy.give_back_limit import FACTS_BELIEVED, GIVEN_BACK_TOO_OFTEN
from watcher.runner.runner_interface import Attempt, Live, Outcome, Output
from watcher.telemetry.events import TaskSettled
from watcher.worker.executor import Executor
from watcher.worker.parts import WorkerParts
from watcher.worker.provider_gates import OWN_REASONS, Gates

Told = Callable[[float], Ending]


def of_this_machine(reason: str, now: float) -> Ending:
    return Ending(Failure.AUTH, reason, resets_at=now + 60)


#: For each class of ending the forms in which it comes; `now` is wall seconds.
ENDINGS: dict[Failure, dict[str, Told]] = {
    Failure.TRANSIENT: {
        "exit_code": lambda now: Ending(Failure.TRANSIENT, "exit_code"),
        "timeout": lambda now: Ending(Failure.TRANSIENT, "timeout", timed_out=True),
    },
    Failure.PERMANENT: {"bad_argument": lambda now: Ending(Failure.PERMANENT, "bad_argument")},
    Failure.AUTH: {
        "event": lambda now: Ending(Failure.AUTH, "not_authenticated"),
        "words": lambda now: Ending(Failure.AUTH, "not_authenticated", evidence="weak"),
        "soon": lambda now: Ending(Failure.AUTH, "handler_not_warm", resets_at=now + 10, evidence="weak"),
    }
    | {reason: partial(of_this_machine, reason) for reason in sorted(OWN_REASONS)},
    Failure.LIMIT: {
        "event": lambda now: Ending(Failure.LIMIT, "usage_limit"),
        "a_second": lambda now: Ending(Failure.LIMIT, "usage_limit", resets_at=now + 1),
        "ten_hours": lambda now: Ending(Failure.LIMIT, "usage_limit", resets_at=now + 36_000),
        "over": lambda now: Ending(Failure.LIMIT, "usage_limit", resets_at=now - 60),
        "words": lambda now: Ending(Failure.LIMIT, "usage_limit", evidence="weak"),
        "words_of_ten_hours": lambda now: Ending(
            Failure.LIMIT, "usage_limit", resets_at=now + 36_000, evidence="weak"
        ),
    },
    Failure.TROUBLE: {"errno": lambda now: Ending(Failure.TROUBLE, "worker_trouble", "EMFILE")},
    Failure.STOPPED: {"unasked": lambda now: Ending(Failure.STOPPED)},
    Failure.CANCELLED: {"unasked": lambda now: Ending(Failure.CANCELLED)},
}  # fmt: skip
FORMS = [
    pytest.param(told, id=f"{failure.value}-{name}")
    for failure, forms in ENDINGS.items()
    for name, told in forms.items()
]
#: The same forms by name, for those where it matters what they are.
WORDS = [
    pytest.param(told, id=f"{failure.value}-{name}")
    for failure, forms in ENDINGS.items() for name, told in forms.items() if told(0.0).evidence == "weak"
]  # fmt: skip


def is_of_the_machine(ending: Ending) -> bool:
    return ending.failure is Failure.TROUBLE or ending.reason in OWN_REASONS


def good(now: float) -> Ending:
    return Ending(None)


class Scripted:
    """A runner whose attempts end at once, each as its task always does."""

    def __init__(self, clock: HandClock, ends: dict[str, Told]) -> None:
        self._clock = clock
        self.ends = ends
        self.runs: list[str] = []

    def run(self, attempt: Attempt) -> Outcome:
        self.runs.append(attempt.task_id)
        told = self.ends.get(attempt.task_id, good)
        return Outcome(told(self._clock.wall()), 0, Output(), Output(), self._clock.wall(), 1.0)

    def stop(self, mark: str, failure: Failure, reason: str | None = None) -> None:
        pass

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

    def close(self) -> None:
        pass


@dataclass
class Loop:
    """One worker without its process: each turn does what is due and then waits for the next thing that is."""

    desk: Desk
    runner: Scripted
    slots: int = 1
    max_retries: int = 3
    gates: Gates = field(init=False)
    executor: Executor = field(init=False)
    memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        desk = self.desk
        config = worker_config(
            desk.root, max_concurrent_tasks=self.slots, queue_size=0, max_retries=self.max_retries, retry_jitter=0.0,
            min_free_bytes=0,
        )  # fmt: skip
        self.gates = Gates(config, desk.incarnation, desk.clock, self.memory)
        parts = WorkerParts(desk.incarnation, desk.spool, self.runner, self.gates, Mock())
        self.executor = Executor(config, parts, desk.clock, self.memory)
        self.executor.start(asyncio.get_running_loop(), lambda: None)

    async def turn(self) -> None:
        """Let time pass until something may be due, and everything that it starts come to its end."""
        desk = self.desk
        now = desk.clock.monotonic()
        dues = [self.gates.due_in(now), desk.spool.next_due_in(), self.executor.retry_in()]
        desk.clock.pass_seconds(min([due for due in dues if due is not None], default=0.0) + 0.001)
        self.gates.refresh()
        desk.scan()
        desk.spool.tick()
        self.executor.fill()
        async with asyncio.timeout(60):
            await self.executor.idle()

    def close(self) -> None:
        self.executor.drain()
        self.executor.close()
        self.gates.close()

    def ended(self, task_id: str) -> bool:
        return self.desk.result(task_id) is not None


Body = Callable[[Loop], Awaitable[None]]


def looped(office: Office, runner: Scripted, body: Body, mode: FifoMode, **changes: Any) -> None:
    async def main() -> None:
        loop = Loop(office.desk(fifo_mode=mode), runner, **changes)
        try:
            await body(loop)
        finally:
            loop.close()

    asyncio.run(main())


def test_every_class_of_ending_has_its_answer() -> None:
    assert set(ENDINGS) == set(Failure), "say below what a new class comes to when a task always ends so"


@pytest.mark.parametrize("mode", FIFO_MODES)
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("told", FORMS)
def test_task_that_always_ends_so_ends_or_lets_the_others_pass(
    office: Office, told: Told, slots: int, mode: FifoMode
) -> None:
    others = [f"t{number}" for number in range(8)]

    async def body(loop: Loop) -> None:
        loop.desk.drop("poison", agent_id="a")
        for number, other in enumerate(others):
            loop.desk.drop(other, **({"agent_id": "a"} if number == 0 else {}))
        for _ in range(100):
            await loop.turn()
            if loop.ended("poison"):
                break
        if mode == "strict" and is_of_the_machine(told(0.0)):
            return  # nothing is started then and nothing is paid; nobody else may be asked, and the heartbeat says it
        is_over = loop.ended("poison")
        passed = [other for other in others if loop.ended(other)]
        assert is_over or len(passed) >= len(others) - 1, (loop.runner.runs, passed)
        for _ in range(20):
            await loop.turn()
        if is_over:
            assert all(map(loop.ended, others)), "what waited behind it runs when it is over"
        assert {loop.desk.result(other)["attempts"] for other in passed} <= {1}  # type: ignore[index]
        settled = [event for event in loop.memory.of(TaskSettled) if event.task_id in others]
        assert all(event.status == "completed" for event in settled), settled

    looped(office, Scripted(office.clock, {"poison": told}), body, mode, slots=slots)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("told", FORMS)
def test_task_that_always_ends_so_is_over_soon_when_others_keep_succeeding(
    office: Office, told: Told, slots: int
) -> None:
    is_trouble = told(0.0).failure is Failure.TROUBLE
    turns, most = (500, 400) if is_trouble and slots > 1 else (60, 5)

    async def body(loop: Loop) -> None:
        loop.desk.drop("poison")
        others = []
        for _ in range(turns):
            for _ in range(slots):
                others.append(f"t{len(others)}")
                loop.desk.drop(others[-1])
            await loop.turn()
            if loop.ended("poison"):
                break
        result = loop.desk.result("poison")
        assert result is not None, loop.runner.runs
        assert loop.runner.runs.count("poison") <= most, loop.runner.runs
        if result["reason"] == GIVEN_BACK_TOO_OFTEN:
            letter = loop.desk.dead_letter("poison")
            assert letter is not None and letter["dlq_reason"] == GIVEN_BACK_TOO_OFTEN
            assert str(told(0.0).reason) in result["detail"] and result["retry_count"] <= 3
        for _ in range(10):
            await loop.turn()
        assert all(map(loop.ended, others))

    looped(office, Scripted(office.clock, {"poison": told}), body, "per_agent", slots=slots)


@pytest.mark.parametrize("told", WORDS)
def test_words_alone_that_no_other_task_can_be_asked_about_are_believed_three_times(office: Office, told: Told) -> None:
    async def body(loop: Loop) -> None:
        loop.desk.drop("poison")
        for _ in range(30):
            await loop.turn()
        assert loop.runner.runs == ["poison"] * 3
        result = loop.desk.result("poison")
        assert result is not None and result["reason"] == GIVEN_BACK_TOO_OFTEN
        assert "words" in result["detail"] and "no other task" in result["detail"]
        assert loop.desk.dead_letter("poison") is not None

    looped(office, Scripted(office.clock, {"poison": told}), body, "per_agent")


@pytest.mark.parametrize("mode", FIFO_MODES)
def test_two_tasks_that_confirm_each_others_words_end(office: Office, mode: FifoMode) -> None:
    async def body(loop: Loop) -> None:
        for stem in ("poison-1", "poison-2"):
            loop.desk.drop(stem)
        turns = 0
        while not (loop.ended("poison-1") and loop.ended("poison-2")):
            await loop.turn()
            turns += 1
            assert turns < 6 * FACTS_BELIEVED

    looped(office, Scripted(office.clock, {"poison-1": WORDS[0], "poison-2": WORDS[0]}), body, mode)


@pytest.mark.parametrize("mode", FIFO_MODES)
@pytest.mark.parametrize("resets", [None, 600.0, 36_000.0])
@pytest.mark.parametrize("evidence", ["strong", "weak"])
def test_limit_of_ten_hours_costs_none_of_a_hundred_tasks_an_attempt(
    office: Office, evidence: Any, resets: float | None, mode: FifoMode
) -> None:
    if evidence == "weak" and mode == "strict":
        return  # nothing else may be asked there, so words are believed three times: see above
    over_at = office.clock.wall() + 36_000
    met = {"times": 0}

    def limited(now: float) -> Ending:
        if now >= over_at:
            return Ending(None)
        met["times"] += 1
        until = None if resets is None else min(now + resets, over_at)
        return Ending(Failure.LIMIT, "usage_limit", resets_at=until, evidence=evidence)

    tasks = [f"t{number:02}" for number in range(100)]

    async def body(loop: Loop) -> None:
        for task in tasks:
            loop.desk.drop(task)
        while office.clock.wall() < over_at:
            await loop.turn()
        wasted = met["times"]
        assert wasted <= 70 if resets == 600.0 else wasted <= 30, wasted
        for _ in range(200):
            await loop.turn()
        results = [loop.desk.result(task) for task in tasks]
        assert all(result is not None and result["status"] == "completed" for result in results)
        assert {result["attempts"] for result in results if result} == {1}

    looped(office, Scripted(office.clock, dict.fromkeys(tasks, limited)), body, mode, slots=3)


def test_limit_that_comes_back_each_hour_costs_nobody_an_attempt(office: Office) -> None:
    """Two tasks an hour are let through, so that others succeed after each task that was given back."""
    let_through: dict[int, int] = {}

    def hourly(now: float) -> Ending:
        hour = int(now // 3600)
        let_through[hour] = let_through.get(hour, 0) + 1
        if let_through[hour] <= 2:
            return Ending(None)
        return Ending(Failure.LIMIT, "usage_limit", resets_at=(hour + 1) * 3600.0)

    tasks = [f"t{number:02}" for number in range(40)]

    async def body(loop: Loop) -> None:
        for task in tasks:
            loop.desk.drop(task)
        for _ in range(400):
            await loop.turn()
        results = [loop.desk.result(task) or {} for task in tasks]
        assert {(result.get("status"), result.get("attempts")) for result in results} == {("completed", 1)}

    looped(office, Scripted(office.clock, dict.fromkeys(tasks, hourly)), body, "relaxed", slots=3)


def test_account_that_only_one_task_can_ask_about_is_believed_for_days(office: Office) -> None:
    began = office.clock.wall()

    async def body(loop: Loop) -> None:
        loop.desk.drop("alone")
        turns = 0
        while not loop.ended("alone"):
            await loop.turn()
            turns += 1
            assert turns < 3 * FACTS_BELIEVED
        assert office.clock.wall() - began > 3 * 86_400 and len(loop.runner.runs) == FACTS_BELIEVED

    told = ENDINGS[Failure.AUTH]["event"]
    looped(office, Scripted(office.clock, {"alone": told}), body, "per_agent")


def test_task_whose_worker_is_killed_after_each_give_back_does_not_loop_either(office: Office) -> None:
    """The notes lie with the task and the account, so that a new process knows what the old one knew."""
    told = ENDINGS[Failure.AUTH]["words"]
    runner = Scripted(office.clock, {"poison": told})

    async def one_life(desk: Desk) -> None:
        loop = Loop(desk, runner)
        try:
            desk.spool.rescue()
            before = len(runner.runs)
            for _ in range(10):
                await loop.turn()
                if len(runner.runs) > before + 1:
                    break
        finally:
            loop.close()

    desk = office.desk()
    desk.drop("poison")
    for number in range(30):
        desk.drop(f"t{number:02}")
    for _ in range(12):
        asyncio.run(one_life(desk))
        office.fire(desk)
        desk.die()
        desk = office.desk()
    result = desk.result("poison")
    assert result is not None and result["reason"] == GIVEN_BACK_TOO_OFTEN and runner.runs.count("poison") <= 6


def test_orderly_stop_never_counts(office: Office) -> None:
    """Whoever stops a worker a hundred times has not made its task fail."""
    clock = office.clock
    begun, stopped = threading.Event(), threading.Event()

    class Slow(Scripted):
        def run(self, attempt: Attempt) -> Outcome:
            assert attempt.number == 1
            begun.set()
            assert stopped.wait(60)
            return super().run(attempt)

        def stop(self, mark: str, failure: Failure, reason: str | None = None) -> None:
            stopped.set()

    runner = Slow(clock, {"t": lambda now: Ending(Failure.STOPPED)})

    async def one_life(desk: Desk) -> None:
        loop = Loop(desk, runner)
        desk.scan()
        loop.executor.fill()
        await asyncio.to_thread(begun.wait, 60)
        loop.executor.drain()
        loop.executor.stop_running()
        await loop.executor.idle()
        loop.close()

    desk = office.desk()
    desk.drop("t")
    for _ in range(100):
        begun.clear()
        stopped.clear()
        asyncio.run(one_life(desk))
        office.fire(desk)
        desk.close()
        desk = office.desk()
    assert len(runner.runs) == 100 and (desk.inbox / "t.json").exists()
