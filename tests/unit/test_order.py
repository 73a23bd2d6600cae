"""Which waiting task is taken next: single rules by example, all of them together against a naive model."""

from __future__ import annotations

import math
from collections.abc import Collection

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from watcher.policy.claim_order import FIFO_MODES, FifoMode, Lineup, Waiting, doubted, undoubted


def waiting(
    name: str,
    priority: int = 0,
    arrived: float = 1.0,
    provider: str = "claude",
    lane: str | None = None,
    due: float = 0,
    keeps_place: bool = False,
) -> Waiting:
    return Waiting(name, priority, arrived, provider, lane, due, keeps_place=keeps_place)


def drain(lineup: Lineup, now: float = 0.0) -> list[str]:
    """Take everything, freeing each lane at once."""
    out = []
    while (task := lineup.take(now, ())) is not None:
        out.append(task.name)
        lineup.free(task.lane, now)
    return out


def test_priority_goes_before_arrival_and_arrival_before_name() -> None:
    lineup = Lineup("relaxed")
    for task in (
        waiting("b", arrived=2), waiting("a", arrived=2), waiting("old", arrived=1),
        waiting("low", -50, arrived=0), waiting("high", 50, arrived=9),
    ):  # fmt: skip
        lineup.add(task, 0)
    assert drain(lineup) == ["high", "old", "a", "b", "low"]


def test_excluded_provider_is_passed_over_and_keeps_its_place() -> None:
    lineup = Lineup("relaxed")
    lineup.add(waiting("first", provider="gemini"), 0)
    lineup.add(waiting("second", provider="claude"), 0)
    assert lineup.has_ready({"claude"}) and not lineup.has_ready({"claude", "gemini"})
    assert lineup.providers() == {"claude", "gemini"}
    taken = lineup.take(0, {"gemini"})
    assert taken is not None and taken.name == "second"
    assert lineup.take(0, {"gemini"}) is None
    assert lineup.providers() == {"gemini"}
    assert drain(lineup) == ["first"]
    assert lineup.providers() == set()


def test_doubted_tasks_can_be_left_out_and_keep_their_place_otherwise() -> None:
    lineup = Lineup("relaxed")
    lineup.add(Waiting("first", 0, 1.0, "claude", is_doubted=True), 0)
    lineup.add(waiting("second", arrived=2.0), 0)
    lineup.add(waiting("other", arrived=3.0, provider="gemini"), 0)
    assert lineup.has_undoubted("claude") and not lineup.has_undoubted("qwen")
    assert not lineup.has_ready({"claude", "gemini"}) and lineup.providers() == {"claude", "gemini"}
    taken = lineup.take(0, {doubted("claude")})
    assert taken is not None and taken.name == "second"
    assert not lineup.has_undoubted("claude") and lineup.has_ready({doubted()}) and lineup.has_ready({"gemini"})
    assert not lineup.has_ready({"gemini", doubted()})
    assert lineup.has_ready({undoubted()}) and not lineup.has_ready({undoubted("claude"), "gemini", "claude"})
    assert drain(lineup) == ["first", "other"]


def test_doubted_head_of_a_lane_keeps_its_place_before_those_of_its_provider() -> None:
    lineup = Lineup("strict")
    lineup.add(Waiting("first", 0, 1.0, "claude", "*", is_doubted=True), 0)
    lineup.add(waiting("second", arrived=2.0, lane="*"), 0)
    lineup.add(waiting("other", arrived=3.0, provider="gemini", lane="*"), 0)
    assert not lineup.has_undoubted("claude"), "a limit that is over must not have changed the order"
    taken = lineup.take(0, {doubted("claude")})
    assert taken is not None and taken.name == "other"
    lineup.free("*", 0)
    assert drain(lineup) == ["first", "second"]


def test_doubted_tasks_take_turns_when_only_they_are_asked() -> None:
    lineup = Lineup("relaxed")
    for number, turn in enumerate((3, 1, 2)):
        lineup.add(Waiting(f"t{number}", 0, float(number), "claude", is_doubted=True, turn=turn), 0)
    lineup.add(waiting("new", arrived=9.0), 0)
    taken = [lineup.take(0, {undoubted("claude")}), lineup.take(0, {undoubted()})]
    assert [task.name for task in taken if task is not None] == ["t1", "t2"]
    assert drain(lineup) == ["t0", "new"]


@pytest.mark.parametrize(
    ("mode", "agent", "lane"),
    [
        ("relaxed", "x", None), ("relaxed", None, None), ("per_agent", "x", "agent:x"), ("per_agent", None, None),
        ("strict", "x", "*"), ("strict", None, "*"),
    ],
)  # fmt: skip
def test_lane_of_a_task_follows_the_mode(mode: FifoMode, agent: str | None, lane: str | None) -> None:
    assert Lineup(mode).lane_of(agent) == lane


def test_an_agent_called_like_the_strict_lane_has_a_lane_of_its_own() -> None:
    lineup = Lineup("per_agent")
    assert lineup.lane_of("*") not in (lineup.lane_of("x"), "*", None)


def test_lane_runs_one_at_a_time_and_other_tasks_pass_it() -> None:
    lineup = Lineup("per_agent")
    for name, lane in (("x1", "x"), ("x2", "x"), ("free", None)):
        lineup.add(waiting(name, lane=lane), 0)
    names = [task.name for _ in range(3) if (task := lineup.take(0, ()))]
    assert names == ["free", "x1"]
    lineup.free("x", 0)
    assert drain(lineup) == ["x2"]


def test_head_that_waits_for_its_retry_holds_those_behind_it() -> None:
    lineup = Lineup("per_agent")
    lineup.add(waiting("x1", arrived=1, lane="x", due=10, keeps_place=True), 0)
    lineup.add(waiting("x2", arrived=2, lane="x"), 0)
    lineup.add(waiting("x3", arrived=3, lane="x", provider="gemini"), 0)
    assert lineup.take(9, ()) is None
    assert lineup.next_due() == 10
    assert lineup.take(10, {"claude"}) is None, "it also keeps its place while its provider may not start"
    assert drain(lineup, 10) == ["x1", "x2", "x3"]


@pytest.mark.parametrize("lane", ["x", "*"])
def test_task_that_waits_for_its_time_holds_nobody_behind_it(lane: str) -> None:
    lineup = Lineup("strict")
    lineup.add(waiting("later", 50, lane=lane, due=10), 0)
    lineup.add(waiting("now", lane=lane), 0)
    assert lineup.next_due() == 10
    taken = lineup.take(0, ())
    assert taken is not None and taken.name == "now"
    lineup.wake_due(11)
    assert lineup.take(11, ()) is None, "one at a time"
    lineup.free(lane, 11)
    lineup.add(waiting("next", lane=lane), 11)
    assert drain(lineup, 11) == ["later", "next"], "it has joined at its place"


def test_task_whose_provider_may_not_start_lets_those_of_others_pass_and_keeps_its_place() -> None:
    lineup = Lineup("strict")
    for name, provider in (("first", "gemini"), ("second", "claude"), ("third", "gemini"), ("fourth", "claude")):
        lineup.add(waiting(name, arrived=len(lineup), provider=provider, lane="*"), 0)
    taken = lineup.take(0, {"gemini"})
    assert taken is not None and taken.name == "second"
    assert not lineup.has_ready(()), "one at a time"
    lineup.free("*", 0)
    assert drain(lineup) == ["first", "third", "fourth"]


def test_more_urgent_task_of_a_lane_displaces_the_head_that_was_offered() -> None:
    lineup = Lineup("strict")
    lineup.add(waiting("usual", lane="*"), 0)
    lineup.add(waiting("urgent", 100, arrived=5, lane="*"), 0)
    assert drain(lineup) == ["urgent", "usual"]


def test_task_put_in_line_again_in_another_lane_frees_the_place_it_had() -> None:
    lineup = Lineup("per_agent")
    lineup.add(waiting("a", lane="x"), 0)
    lineup.add(waiting("b", arrived=2, lane="x"), 0)
    lineup.add(waiting("a", arrived=3, lane="y"), 0)
    assert drain(lineup) == ["b", "a"]


def test_what_waits_for_a_time_is_kept_once_however_many_come_behind_it() -> None:
    lineup = Lineup("strict")
    lineup.add(waiting("head", arrived=0, lane="*", due=10, keeps_place=True), 0)
    for number in range(100):
        lineup.add(waiting(f"t{number}", lane="*"), 0)
    assert lineup.deferred() == ["head"]


def test_what_came_due_while_nothing_could_be_taken_is_waited_for_no_longer() -> None:
    lineup = Lineup("relaxed")
    lineup.add(waiting("a", due=10), 0)
    lineup.wake_due(10)
    assert lineup.next_due() is None and lineup.has_ready(())


def test_oldest_arrival_is_told_whatever_the_task_waits_for() -> None:
    lineup = Lineup("relaxed")
    assert lineup.oldest_arrival() is None
    lineup.add(waiting("a", arrived=5), 0)
    lineup.add(waiting("b", arrived=3, due=99), 0)
    assert lineup.oldest_arrival() == 3


class Naive:
    """The same rules without any index: every answer looks at every task."""

    def __init__(self) -> None:
        self.tasks: dict[str, Waiting] = {}
        self.busy: set[str] = set()

    def startable(self, now: float, excluded: Collection[str] = ()) -> list[Waiting]:
        """In order: every task of no busy lane that is due, unless one that keeps its place stands before it."""
        out, closed = [], set(self.busy)
        for task in self.in_order():
            if task.lane is not None and task.lane in closed:
                continue
            if task.due <= now and task.provider not in excluded:
                out.append(task)
            if task.lane is not None and task.keeps_place:
                closed.add(task.lane)
        return out

    def in_order(self) -> list[Waiting]:
        return sorted(self.tasks.values(), key=lambda t: (-t.priority, t.arrived_at, t.name))

    def next(self, now: float, excluded: Collection[str]) -> Waiting | None:
        return next(iter(self.startable(now, excluded)), None)


NAMES = st.sampled_from([f"t{number}" for number in range(8)])
PROVIDERS = st.sampled_from(["claude", "gemini"])


class LineupMachine(RuleBasedStateMachine):
    """Lineup and the naive model get the same calls and must give the same answers."""

    @initialize(mode=st.sampled_from(FIFO_MODES))
    def begin(self, mode: FifoMode) -> None:
        self.lineup = Lineup(mode)
        self.naive = Naive()
        self.now = 0.0

    @rule(
        name=NAMES, priority=st.integers(-1, 1), arrived=st.integers(0, 3), provider=PROVIDERS,
        agent=st.sampled_from([None, "x", "y"]), delay=st.sampled_from([0, 0, 0, 1, 2]), kept=st.booleans(),
    )  # fmt: skip
    def add(
        self, name: str, priority: int, arrived: int, provider: str, agent: str | None, delay: int, kept: bool
    ) -> None:
        due = self.now + delay if delay else 0.0
        task = Waiting(name, priority, float(arrived), provider, self.lineup.lane_of(agent), due, keeps_place=kept)
        self.lineup.add(task, self.now)
        self.naive.tasks[name] = task

    @rule(name=NAMES)
    def discard(self, name: str) -> None:
        self.lineup.discard(name, self.now)
        self.naive.tasks.pop(name, None)

    @rule(excluded=st.sets(PROVIDERS))
    def take(self, excluded: set[str]) -> None:
        expected = self.naive.next(self.now, excluded)
        assert self.lineup.take(self.now, excluded) is expected
        if expected is not None:
            del self.naive.tasks[expected.name]
            if expected.lane is not None:
                self.naive.busy.add(expected.lane)
            self.taken = expected

    @precondition(lambda self: getattr(self, "taken", None) is not None)
    @rule()
    def put_the_same_one_back(self) -> None:
        """What a claim does that met trouble of the machine."""
        task, self.taken = self.taken, None
        if task.name not in self.naive.tasks:
            self.lineup.add(task, self.now)
            self.lineup.free(task.lane, self.now)
            self.naive.tasks[task.name] = task
            self.naive.busy.discard(task.lane)

    @precondition(lambda self: self.naive.busy)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(sorted(self.naive.busy)))
        self.lineup.free(lane, self.now)
        self.naive.busy.discard(lane)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wake_due(self) -> None:
        self.lineup.wake_due(self.now)
        due = self.lineup.next_due()
        assert due is None or due > self.now, "a loop that sleeps until then would not sleep"

    @invariant()
    def the_same_tasks_wait(self) -> None:
        assert set(self.lineup.names()) == set(self.naive.tasks) and len(self.lineup) == len(self.naive.tasks)
        assert all(self.lineup.get(name) is task for name, task in self.naive.tasks.items())

    @invariant()
    def nobody_who_is_ready_is_slept_over(self) -> None:
        # Who stands behind a ready one of its lane and provider is waited for when that one is over.
        before = {(task.lane, task.provider) for task in self.naive.startable(self.now) if task.lane is not None}
        waits = [task for task in self.naive.startable(math.inf) if (task.lane, task.provider) not in before]
        later = [task.due for task in waits if task.due > self.now]
        due = self.lineup.next_due()
        if self.naive.next(self.now, set()) is not None:
            assert self.lineup.has_ready(()) or (due is not None and due <= self.now)
        if later:
            assert (math.inf if due is None else due) <= min(later)

    @invariant()
    def memory_does_not_grow_with_what_happened(self) -> None:
        assert sorted(self.lineup.deferred()) == sorted(set(self.lineup.deferred()))


TestLineupAgainstModel = LineupMachine.TestCase
TestLineupAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
