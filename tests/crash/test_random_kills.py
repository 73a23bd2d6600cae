"""SIGKILL at random moments, many times, with two instances of one name: every task ends once.

CRASH_KILLS and CRASH_TASKS set the size, CRASH_SEED repeats a run's choices (not its timing); the seed is printed
with a failure.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.crash.harness import Site, WorkerProcess
from tests.crash.records import Submitted

KILLS = int(os.environ.get("CRASH_KILLS", "100"))
TASKS = int(os.environ.get("CRASH_TASKS", "2000"))
SEED = int(os.environ.get("CRASH_SEED", str(random.randrange(1 << 32))))
SLOTS = 6
#: So that the kills are spread over the whole run: two instances with their slots are busy for about KILLS times this.
SECONDS_A_KILL = 0.6


@pytest.mark.crash
@pytest.mark.timeout(900)
def test_every_task_ends_once_through_random_kills(make_site: Callable[..., Site]) -> None:
    rng = random.Random(SEED)
    print(f"CRASH_SEED={SEED} CRASH_KILLS={KILLS} CRASH_TASKS={TASKS}")
    site = make_site(MAX_CONCURRENT_TASKS=SLOTS, MAX_RETRIES=2, MAX_OUTPUT_BYTES=50_000)
    mean_ms = int(1000 * KILLS * SECONDS_A_KILL * 2 * SLOTS / TASKS * 0.7)
    pending = [_task(rng, number, mean_ms) for number in range(TASKS)]
    serving = {instance: site.start(instance=instance) for instance in ("1", "2")}
    done: list[Submitted] = []
    killed = 0
    began = time.monotonic()
    while killed < KILLS:
        for _ in range(min(len(pending), rng.randrange(2 * TASKS // KILLS + 1))):
            done.append(pending.pop()(site))
        if done and rng.random() < 0.3:
            site.drop_again(rng.choice(done))
        victim = rng.choice(list(serving))
        # Half of the kills come while what was just dropped is claimed, run and stored in bulk; also at a start.
        if rng.random() < 0.5:
            _let_pass(site, rng.uniform(0, 0.05))
        else:
            _let_begin(site, serving[victim])
            _let_pass(site, rng.expovariate(0.5 / SECONDS_A_KILL))
        assert serving[victim].is_running(), f"exit code {serving[victim].popen.returncode}\n{serving[victim].text()}"
        serving[victim].kill()
        killed += 1
        serving[victim] = _restart(site, victim)
    for drop in pending:
        drop(site)
    site.finish(seconds=300)
    died = sum(1 for name in site.root.glob("dlq/marie/*.json") if b'"worker_died"' in name.read_bytes())
    runs = site.runs()
    cut = sum(run.end is None for run in runs)
    print(
        f"{killed} kills, {len(site.submitted)} tasks, {len(runs)} runs, {cut} of them cut, "
        f"{died} given up after three deaths, {time.monotonic() - began:.0f} s"
    )
    assert len(site.submitted) == TASKS
    assert _uncounted(site) == []
    assert cut > KILLS / 4, "the kills hit nothing: the test proves little"


def test_task_that_kills_its_workers_ends_as_a_dead_letter(make_site: Callable[..., Site]) -> None:
    site = make_site(AGENT_SUDO="yes")  # without the fence, which keeps an agent from its worker
    poison = site.drop("poison", "kill-workers gate never")
    poison.expect = "ended"
    site.drop("beside", "gate go")
    deaths = 0
    process = site.start(wait=False)  # it may be dead before it is seen to live

    def has_ended() -> bool:
        nonlocal deaths, process
        if process.was_killed():
            deaths += 1
            assert deaths <= 3, site.report()
            process = site.start(wait=False)
        if deaths == 2:
            site.open_gate("go")
        return site.result("poison") is not None

    site.wait_for(has_ended, "the end of what kills its workers", 180)
    site.finish()
    result = site.result("poison")
    assert result is not None and (result["reason"], result["attempts"]) == ("worker_died", 3)
    assert len(site.runs("poison")) == 3 and (site.root / "dlq/marie/poison.json").exists()


def _uncounted(site: Site) -> list[str]:
    """Tasks that ran more often than their results say."""
    runs: Counter[str] = Counter(run.task_id for run in site.runs())
    told = {task_id: (site.result(task_id) or {"attempts": runs[task_id]})["attempts"] for task_id in runs}
    return [
        f"{task_id}: {runs[task_id]} runs, {told[task_id]} attempts"
        for task_id in runs
        if runs[task_id] > told[task_id]
    ]


def _task(rng: random.Random, number: int, mean_ms: int) -> Callable[[Site], Submitted]:
    """One of the kinds of task, chosen now and dropped later."""
    words = [f"sleep {int(rng.choice([0, rng.uniform(0, 4 * mean_ms)]))}"]
    fields: dict[str, object] = {"priority": rng.choice(["low", "normal", "high", 3])}
    kind = rng.random()
    if kind < 0.10:
        words.insert(0, f"fail {rng.choice([1, 2, 9])}")
    elif kind < 0.20:
        words.insert(rng.randrange(2), "escape")
    elif kind < 0.25:
        words.insert(0, "deaf say 100000")
    elif kind < 0.35:
        fields["agent_id"] = f"agent-{number % 5}"
    if 0.35 <= kind < 0.37:
        raw = b'{"description": "broken' + bytes(rng.randrange(32, 127) for _ in range(50))
        return lambda site: site.drop_raw(f"t{number}.json", raw)
    return lambda site: site.drop(f"t{number}", " ".join(words), **fields)


def _let_begin(site: Site, process: WorkerProcess) -> None:
    """Until the process has begun to run what waits, if anything does."""
    site.wait_for(
        lambda: process.said("task.started") or not any(site.inbox().glob("*.json")),
        "the first run of a process, or an empty inbox",
    )


def _let_pass(site: Site, seconds: float) -> None:
    """Time in which the workers work; what they show meanwhile must be whole."""
    end = time.monotonic() + seconds
    site.look()
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))  # the random moment itself: there is no event to wait for


def _restart(site: Site, instance: str) -> WorkerProcess:
    return site.start(instance=instance, wait=False)
