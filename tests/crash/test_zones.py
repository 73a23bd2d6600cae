"""Drop zones and kill -9: every dropped file has one result, and while no worker is killed one run, whatever is killed.

The second part kills `watcher zones` before every single call that changes something below its folders, by the library
of faults.c, and lets a clean one finish.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.acceptance.conftest import Process, Site, names
from tests.crash.test_kill_points import CHANGES, Point, numbered, run_all
from tests.waiting import wait_for
from tests.zones import NOTING, SECONDS, Zones, drop, hidden, start_zones

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]

MOVE = """
processing: {max_workers: 3, queue_size: 5}
zones:
  - {name: moved, dirs: moved, worker: marie, on_done: move, prompt: "moved {relative} {text}"}
  - {name: kept, dirs: kept, worker: marie, prompt: "kept {relative} {text}"}
"""
SLOW = NOTING + "; sleep 0.05"
FILES = 20


@pytest.fixture
def own(tmp_path: Path) -> object:
    site = Site(tmp_path)
    yield site
    site.close()


def wanted() -> list[str]:
    return sorted(f"{zone} n{number:02d}.txt x" for zone in ("moved", "kept") for number in range(FILES))


def drop_all(site: Site) -> None:
    for number in range(FILES):
        for zone in ("moved", "kept"):
            drop(site.home / zone, f"n{number:02d}.txt", "x")


def is_done(site: Site) -> bool:
    return len(site.results()) >= 2 * FILES and len(names(site.home / "moved" / ".done")) >= FILES


def check(site: Site) -> None:
    """One result for each file, every file where it belongs, nothing under way."""
    stems = Counter(stem.rpartition("-")[0] for stem in site.results())
    assert stems == {f"{zone}-n{number:02d}": 1 for zone in ("moved", "kept") for number in range(FILES)}
    assert site.dead_letters() == []
    assert len(names(site.home / "moved" / ".done")) == len(names(site.home / "kept")) == FILES
    assert names(site.home / "moved") == [] and hidden(site.home / "moved") == [".done"]
    state = site.root / "state" / "zones"
    assert [os.listdir(state / zone / "open") for zone in ("moved", "kept")] == [[], []]


@pytest.mark.parametrize("seed", range(3))
def test_zones_killed_again_and_again_give_each_file_one_run(own: Site, seed: int) -> None:
    chance = random.Random(seed)
    own.start(AGENT_COMMAND=own.script(SLOW))
    for turn in range(8):
        zones = start_zones(own, MOVE, LOG_LEVEL="INFO")
        if turn == 0:
            drop_all(own)
        goal = len(own.noted()) + chance.randrange(5)
        wait_for("some more runs", lambda goal=goal: len(own.noted()) >= min(goal, 2 * FILES), SECONDS)
        zones.kill()
    last = start_zones(own, MOVE)
    wait_for("all files", lambda: is_done(own), SECONDS)
    last.block_that("nothing under way", pending=0, processing=0)
    assert last.stop() == 0 and last.last()[5] == 0
    check(own)
    assert sorted(own.noted()) == wanted()


def test_worker_killed_in_the_middle_gives_each_file_one_result(own: Site) -> None:
    worker: Process = own.start(AGENT_COMMAND=own.script(SLOW))
    zones = start_zones(own, MOVE)
    drop_all(own)
    for goal in (5, 15, 25):
        wait_for("some runs", lambda goal=goal: len(own.noted()) >= goal, SECONDS)
        worker.kill()
        worker = own.start(AGENT_COMMAND=own.script(SLOW))
    zones.block_that("all done", completed=2 * FILES, errors=0, pending=0, processing=0)
    assert zones.stop() == 0
    check(own)
    assert set(own.noted()) == set(wanted())


def test_process_with_worker_and_zones_killed_in_the_middle_gives_each_file_one_result(own: Site) -> None:
    file = own.home / "drops.yaml"
    file.write_text(MOVE)
    drop_all(own)
    for goal in (5, 15, 25):
        worker = own.start("marie", "--zones", str(file), AGENT_COMMAND=own.script(SLOW))
        wait_for("some runs", lambda goal=goal: len(own.noted()) >= goal, SECONDS)
        worker.kill()
    worker = own.start("marie", "--zones", str(file), AGENT_COMMAND=own.script(SLOW))
    wait_for("all files", lambda: is_done(own), SECONDS)
    state = own.root / "state" / "zones"
    wait_for(
        "nothing under way", lambda: not os.listdir(state / "moved" / "open") + os.listdir(state / "kept" / "open")
    )
    assert worker.stop() == 0
    check(own)
    assert set(own.noted()) == set(wanted())


class Lab:
    """One worker for all points; each point has folders of its own, whose numbers the traces leave out.

    `what` is what becomes of the files: keep, move, delete, or aside, where every task fails.
    """

    def __init__(self, site: Site, library: Path, what: str) -> None:
        self.site, self.library, self.what = site, library, what
        self.numbers = itertools.count(10_000)
        agent = NOTING + ("; exit 1" if what == "aside" else "")
        site.start(
            AGENT_COMMAND=site.script(agent), MAX_RETRIES=0, MAX_CONCURRENT_TASKS=4, CIRCUIT_BREAKER_THRESHOLD=10_000
        )

    def point(self) -> tuple[Path, str]:
        """Fresh folders with one file, and the zone for it."""
        number = next(self.numbers)
        base = self.site.home / f"p{number}"
        drop(base / "in", "sub/a.txt", "x")
        on_done = "delete" if self.what == "aside" else self.what
        move_to = ", move_to: ../out" if on_done == "move" else ""
        return base, (
            f"zones: [{{name: z{number}, dirs: {base}/in, worker: marie, on_done: {on_done}{move_to}, "
            f'prompt: "p{number} {{path}} {{text}}"}}]'
        )

    def live(self, base: Path, zones: str, **fault: str) -> Zones:
        """One process that does all, or ends by the fault."""
        process = start_zones(
            self.site, zones, "--once", file=f"{base.name}.yaml", STATE_DIR=base / "state", LOG_LEVEL="INFO",
            SCAN_INTERVAL=0.2, LD_PRELOAD=self.library, FAULTS_ROOT=self.site.home.parent,
            FAULTS_TRACE=base / "trace", **fault,
        )  # fmt: skip
        process.ended(SECONDS)
        return process

    def trace(self) -> list[Point]:
        base, zones = self.point()
        assert self.live(base, zones).popen.returncode in (0, 1)
        lines = [line for line in (base / "trace").read_text().splitlines() if line.split()[0] in CHANGES]
        return numbered(line for line in lines if not line.split()[1].startswith(("home/log-", "home/out-")))

    def try_kill(self, point: Point) -> str | None:
        """Kill there, then let a clean process finish. Returns what is wrong."""
        base, zones = self.point()
        first = self.live(base, zones, FAULTS_AT=f"{point[0]} {point[1]}", FAULTS_DO="kill")
        if first.popen.returncode != -9:
            return "not reached"
        return self.finish(base, zones, f"killed before {point[0]} ({point[1]})")

    def try_error(self, point: Point, code: int) -> str | None:
        """Let the call fail once: the process gets over it, or ends with a clear word and a clean one finishes."""
        base, zones = self.point()
        first = self.live(base, zones, FAULTS_AT=f"{point[0]} {point[1]}", FAULTS_DO=str(code))
        if f"! {point[0]}" not in (base / "trace").read_text():
            return "not reached"
        if "Traceback" in first.text():
            return f"{errno.errorcode[code]} at {point[0]} ({point[1]}): {first.text()[-1500:]}"
        return self.finish(base, zones, f"{errno.errorcode[code]} at {point[0]} ({point[1]})")

    def finish(self, base: Path, zones: str, about: str) -> str | None:
        try:
            again = start_zones(self.site, zones, "--once", file=f"{base.name}.yaml", STATE_DIR=base / "state")
            assert again.ended(SECONDS) in (0, 1), again.text()
            self.check(base, again)
        except AssertionError as error:
            return f"{about}: {error}"
        return None

    def check(self, base: Path, process: Zones) -> None:
        """One run, one result, and the file where it belongs."""
        runs = [line for line in self.site.noted() if line.startswith(f"{base.name} ")]
        files = sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())
        told = f"{runs} {files} {process.text()}"
        assert len(runs) == 1, told
        assert len([stem for stem in self.site.results() if stem.startswith(f"z{base.name[1:]}-")]) == 1, told
        assert [name for name in files if name.endswith(".json") and "/open/" in name] == [], told
        found = [name for name in files if name.split("/")[0] in ("in", "out") and not name.endswith(".tmp")]
        expected = {
            "keep": ["in/sub/a.txt"], "delete": [], "move": ["out/sub/a.txt"],
            "aside": ["in/.aside/sub/a.txt", "in/.aside/sub/a.txt.reason.json"],
        }  # fmt: skip
        assert found == expected[self.what], told


@pytest.mark.parametrize("what", ["keep", "move", "delete", "aside"])
def test_zones_killed_at_any_call_run_each_file_once_and_leave_it_where_it_belongs(
    own: Site, faults: Path, what: str
) -> None:
    lab = Lab(own, faults, what)
    points = lab.trace()
    assert len(points) > 10
    run_all(lab.try_kill, points, f"kill, {what}")


#: Which calls an error can come from.
FAILING = {
    errno.EIO: CHANGES - {"flock"},
    errno.ENOSPC: frozenset({"mkdir", "create", "write", "renameat", "renameat2", "fsync"}),
}


@pytest.mark.parametrize("code", FAILING, ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize("what", ["keep", "move"])
def test_error_at_any_call_loses_no_file_and_runs_it_once(own: Site, faults: Path, what: str, code: int) -> None:
    lab = Lab(own, faults, what)
    points = [point for point in lab.trace() if point[0].split()[0] in FAILING[code]]
    run_all(lambda point: lab.try_error(point, code), points, f"{errno.errorcode[code]}, {what}")
