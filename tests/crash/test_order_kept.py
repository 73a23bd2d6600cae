"""1,000 tasks of 20 agents, some failing, through a kill and a clean restart: what each FIFO_MODE promises holds.

Judged by the agents' own run log: when each run began and ended, on the machine's monotonic clock.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable

import pytest

from tests.crash.harness import Site
from tests.crash.records import Run

TASKS = 1000
AGENTS = 20
#: Where the worker is killed, then stopped, as shares of what has run.
CUTS = (0.3, 0.6)


def drop_all(site: Site, rng: random.Random) -> dict[str, str]:
    """Drop the tasks in their order; returns the agent of each. One in ten fails once, one in fifty for good."""
    owners: dict[str, str] = {}
    for number in range(TASKS):
        failures = 9 if number % 50 == 7 else 1 if number % 10 == 3 else 0
        words = f"sleep {rng.randrange(8)}" + (f" fail {failures}" if failures else "")
        stem, agent = f"t{number:04d}", f"agent-{rng.randrange(AGENTS)}"
        site.drop(stem, words, agent_id=agent)
        owners[stem] = agent
    return owners


def run_through_a_kill_and_a_restart(site: Site, mode: str) -> list[Run]:
    worker = site.start(FIFO_MODE=mode)
    for share, end in zip(CUTS, ("kill", "stop"), strict=True):
        site.wait_for(lambda share=share: len(site.runs()) > share * TASKS, f"{share:.0%} of the tasks", 240)
        assert (worker.kill() if end == "kill" else worker.stop()) in (None, 0)
        worker = site.start(FIFO_MODE=mode)
    site.finish(seconds=240)
    return site.runs()


def disorder(runs: Iterable[Run], order: list[str]) -> list[str]:
    """Where runs overlap, or a task runs after a later one has begun. Runs come in the order of their start."""
    found: list[str] = []
    place = {stem: number for number, stem in enumerate(order)}
    last: Run | None = None
    for run in runs:
        if last is not None:
            if place[run.task_id] < place[last.task_id]:
                found.append(f"{run.task_id} began after {last.task_id}")
            if last.end is not None and run.start < last.end:
                found.append(f"{run.task_id} began before {last.task_id} ended")
        last = run
    return found


def overlaps(runs: list[Run]) -> int:
    """How many runs began while the one before them was still going on."""
    return sum(a.end is not None and b.start < a.end for a, b in itertools.pairwise(runs))


@pytest.mark.crash
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["strict", "per_agent", "relaxed"])
def test_order_of_a_mode_holds_through_failures_a_kill_and_a_restart(make_site: Callable[..., Site], mode: str) -> None:
    site = make_site(MAX_CONCURRENT_TASKS=5, MAX_RETRIES=1, INITIAL_RETRY_DELAY=0.01)
    owners = drop_all(site, random.Random(1))
    runs = run_through_a_kill_and_a_restart(site, mode)
    order = list(owners)
    of_agent: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        of_agent[owners[run.task_id]].append(run)
    assert len(of_agent) == AGENTS and {run.task_id for run in runs} == set(order)
    if mode == "strict":
        assert disorder(runs, order) == []
        return
    assert overlaps(runs) > TASKS / 10, "tasks of different agents ran side by side"
    if mode == "per_agent":
        assert [line for agent in of_agent.values() for line in disorder(agent, order)] == []
    else:
        assert sum(overlaps(agent) for agent in of_agent.values()) > 0, "also those of one agent"
