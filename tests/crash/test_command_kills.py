"""A kill at every single file-system call of the commands that change tasks: nothing is lost and nothing doubles.

A first run with the preloaded library (faults.c) lists the calls; then each call is hit once, each time on a task of
its own. Afterwards one real worker must bring every task to exactly one result, whatever the kill left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.conftest import REPOSITORY, Site, names, read
from tests.crash.test_kill_points import CHANGES, Point, numbered
from tests.waiting import wait_for

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]

#: Stands in calls and arguments for the id of the task that is hit.
TASK = "zq0"
AGENT = 'line=$(cat); echo "$WATCHER_TASK_ID $line" >> "$SITE/notes"; case "$line" in bad*) exit 1;; esac; echo "$line"'

#: Many fail on purpose; the breaker would stop the others.
SETTINGS = {"MAX_RETRIES": 0, "MAX_CONCURRENT_TASKS": 8, "CIRCUIT_BREAKER_THRESHOLD": 10_000}


@dataclass(frozen=True)
class Case:
    """A command, what the task is before it, and how often it may run in all."""

    words: tuple[str, ...]
    prepare: Callable[[Site, str], object]
    runs: tuple[int, ...]
    texts: tuple[str, ...] = ("old",)
    ends_first: bool = False


def waits(site: Site, task_id: str) -> None:
    site.drop(task_id, description="old")


def is_held(site: Site, task_id: str) -> None:
    place(site, ".held", f"{task_id}.json")


def waits_for_its_retry(site: Site, task_id: str) -> None:
    place(site, ".retry", f"{task_id}~1-2-1763768000123.json")


def fails(site: Site, task_id: str) -> None:
    site.drop(task_id, description="bad", max_retries=0)


def place(site: Site, folder: str, name: str) -> None:
    path = site.inbox() / folder
    path.mkdir(exist_ok=True)
    (path / name).write_text(json.dumps({"description": "old"}))


CASES = {
    "edit": Case(("edit", TASK, "--description", "new"), waits, (1,), ("old", "new")),
    "edit of a held one": Case(("edit", TASK, "--description", "new"), is_held, (1,), ("old", "new")),
    "edit of a retry": Case(("edit", TASK, "--description", "new"), waits_for_its_retry, (1,), ("old", "new")),
    "hold": Case(("hold", TASK), waits, (1,)),
    "release": Case(("release", TASK), is_held, (1,)),
    "cancel": Case(("cancel", TASK), waits, (0, 1)),
    "rerun": Case(("rerun", TASK), waits, (1, 2), ends_first=True),
    "redrive": Case(("redrive", TASK, "--description", "new"), fails, (1, 2), ("bad", "new"), ends_first=True),
}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def call(site: Site, case: Case, task_id: str, library: Path, at: Point | None) -> int:
    """Run the command on one task, hit at one call or only traced."""
    environment = site.environment({}) | {
        "PYTHONPATH": str(REPOSITORY), "LD_PRELOAD": str(library), "FAULTS_ROOT": str(site.root),
    }  # fmt: skip
    if at is None:
        environment["FAULTS_TRACE"] = str(site.home / "trace")
    else:
        environment |= {"FAULTS_AT": f"{at[0].replace(TASK, task_id)} {at[1]}", "FAULTS_DO": "kill"}
    words = [word.replace(TASK, task_id) for word in case.words]
    command = [sys.executable, "-m", "watcher", *words]
    done = subprocess.run(command, cwd=site.home, env=environment, capture_output=True, check=False, timeout=60)
    return done.returncode


def serve(site: Site, ids: list[str]) -> None:
    """One clean worker, until every task has its result."""
    worker = site.start(AGENT_COMMAND=site.script(AGENT), **SETTINGS)
    wait_for(f"all of {len(ids)} results", lambda: set(ids) <= set(site.results()), 120)
    site.beat_that(lambda beat: beat["queue_size"] == beat["active_tasks"] == 0, what="with nothing to do")
    assert worker.stop() == 0


@pytest.mark.parametrize("name", list(CASES))
def test_kill_at_any_call_of_a_command_loses_and_doubles_nothing(name: str, site: Site, faults: Path) -> None:
    case = CASES[name]
    site.inbox()
    prepare(site, case, [TASK, "warm"])
    # Makes the folders, so that the next run shows the calls of every run.
    assert call(site, case, "warm", faults, None) == 0
    (site.home / "trace").unlink()
    assert call(site, case, TASK, faults, None) == 0
    points = [point for point in numbered((site.home / "trace").read_text().splitlines()) if is_change(point)]
    ids = [f"zq{number}" for number in range(1, len(points) + 1)]
    prepare(site, case, ids)
    first = {task_id: read(site.root / "results" / "marie" / f"{task_id}.json") for task_id in ids}
    codes = Counter(call(site, case, i, faults, point) for i, point in zip(ids, points, strict=True))
    assert codes[-9] >= len(points) * 0.9, f"most calls must be reached: {codes}"
    assert len(points) > 15

    bring_to_an_end(site, case, [TASK, "warm", *ids])
    runs = Counter(line.split()[0] for line in site.noted())
    wrong = [*wrong_results(site, case, ids, runs), *wrong_firsts(site, case, first)]
    wrong += [path.name for path in (site.root / "dlq" / "marie").glob("*.json") if is_duplicate(path)]
    assert not wrong, wrong
    assert site.leftovers() == []
    assert site.pending() == []


def is_duplicate(letter: Path) -> bool:
    """A copy of a task was left in line although its result stands."""
    return bool(read(letter)["dlq_reason"] == "duplicate_id")


def is_change(point: Point) -> bool:
    return point[0].split()[0] in CHANGES


def prepare(site: Site, case: Case, ids: list[str]) -> None:
    for task_id in ids:
        case.prepare(site, task_id)
    if case.ends_first:
        serve(site, ids)


def bring_to_an_end(site: Site, case: Case, ids: list[str]) -> None:
    """A worker takes back what dead commands had in hand; what is held is let go."""
    worker = site.start(AGENT_COMMAND=site.script(AGENT), **SETTINGS)
    claims = site.inbox() / ".claims"
    wait_for("the dead commands to be cleared away", lambda: len([n for n in names(claims) if len(n) == 32]) <= 1)
    assert worker.stop() == 0
    held = names(site.inbox() / ".held")
    if held:
        done = site.run("release", *(stem.partition(".json")[0].partition("~")[0] for stem in held))
        assert done.returncode == 0, done.stderr
    serve(site, ids)


def wrong_results(site: Site, case: Case, ids: list[str], runs: Counter[str]) -> Iterator[str]:
    for task_id in ids:
        result = read(site.root / "results" / "marie" / f"{task_id}.json")
        if runs[task_id] not in case.runs:
            yield f"{task_id} ran {runs[task_id]} times"
        if result["status"] == "completed" and result["stdout"].strip() not in case.texts:
            yield f"{task_id} answered {result['stdout']!r}"
        if (result["status"] == "cancelled") != (runs[task_id] == 0):
            yield f"{task_id} is {result['status']} after {runs[task_id]} runs"


def wrong_firsts(site: Site, case: Case, first: dict[str, dict[str, object]]) -> Iterator[str]:
    """The result of the first run is where it was, or archived; so is its dead letter."""
    if not case.ends_first:
        return
    results = site.root / "results" / "marie"
    for task_id, before in first.items():
        there = [read(results / f"{task_id}.json"), read(results / ".archive" / f"{task_id}~1.json")]
        if sum(one == before for one in there) != 1:
            yield f"the first result of {task_id} is lost or doubled"
        letters = site.root / "dlq" / "marie"
        places = [letters / f"{task_id}.json", letters / ".archive" / f"{task_id}~1.json"]
        if before["status"] == "failed" and sum(os.path.exists(path) for path in places) != 1:
            yield f"the dead letter of {task_id} is lost or doubled"
