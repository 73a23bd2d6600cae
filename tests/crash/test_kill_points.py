"""A kill, and an error, at every single file-system call of one task's life: start, claim, run, settle, stop.

A first run with the preloaded library (faults.c) lists the calls below the root; then one run for each call is hit
there, and a clean worker must bring everything to its one outcome. Between two calls nothing changes on disk, so these
are all the states that a SIGKILL can leave. CRASH_ALL_POINTS=1 also hits the calls that only look, and in each kind of
life those that every life has.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.harness import Site, WorkerProcess

pytestmark = [pytest.mark.crash, pytest.mark.timeout(900)]

ALL = bool(os.environ.get("CRASH_ALL_POINTS"))
AT_ONCE = 2
#: Calls that change something; the others only look, so a kill there finds the disk as at the next change.
CHANGES = frozenset(
    ("mkdir", "mkdirat", "create", "write", "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat",
     "rmdir", "fsync", "fdatasync", "syncfs", "ftruncate64", "utimensat", "flock")
)  # fmt: skip


@dataclass(frozen=True)
class Life:
    """What one worker does in a run that is hit; `events` says when it is done, so that it can be stopped."""

    prepare: Callable[[Site], object]
    events: tuple[str, ...]
    settings: tuple[tuple[str, object], ...] = ()


LIVES = {
    "completed": Life(lambda site: site.drop("a", "say 10"), ("task.settled",)),
    "kept": Life(lambda site: site.drop("a", "say 5000 escape"), ("task.settled",), (("MAX_OUTPUT_BYTES", 1000),)),
    "failed": Life(lambda site: site.drop("a", "fail 9", max_retries=1), ("task.settled",)),
    "refused": Life(lambda site: site.drop_raw("a.json", b'{"description": '), ("task.refused",)),
    "duplicate": Life(lambda site: _settle_and_drop_again(site), ("task.dropped",)),
    "rescued": Life(lambda site: _leave_a_dead_worker(site), ("task.settled",)),
}
Point = tuple[str, int]


def _settle_and_drop_again(site: Site) -> None:
    task = site.drop("a", "say 1")
    process = site.start()
    site.wait_until_all_ended()
    process.stop()
    site.drop_again(task)


def _leave_a_dead_worker(site: Site) -> None:
    """One with a command in its middle and a helper of that in a session of its own."""
    site.drop("a", "escape gate open")
    process = site.start()
    site.wait_for(site.runs, "a run")
    process.kill()
    site.open_gate("open")


class Lab:
    """Makes a fresh site for each run of one kind of life."""

    def __init__(self, base: Path, library: Path, life: Life) -> None:
        self.base = base
        self.library = library
        self.life = life
        self._numbers = itertools.count()

    def site(self) -> Site:
        base = self.base / f"run-{next(self._numbers)}"
        base.mkdir()
        site = Site(base, MAX_CONCURRENT_TASKS=2, **dict(self.life.settings))
        site.root.mkdir()
        self.life.prepare(site)
        return site

    def trace(self) -> list[Point]:
        """Every call of an untouched life, numbered among those of the same name."""
        site = self.site()
        try:
            self.live(site, {})
            site.finish()
            return numbered((site.base / "trace").read_text().splitlines())
        finally:
            site.close()

    def live(self, site: Site, fault: dict[str, str]) -> WorkerProcess:
        """One worker from its start to its stop, or to its end by the fault. Beats and scans come only by need."""
        environment = {
            "LD_PRELOAD": str(self.library),
            "FAULTS_ROOT": str(site.root),
            "FAULTS_TRACE": str(site.base / "trace"),
            **fault,
        }
        # An error may hide a file until the next scan; a kill must be found without one.
        rarely: dict[str, object] = {"HEARTBEAT_INTERVAL": 60, "SCAN_INTERVAL": 60 if "FAULTS_AT" not in fault else 1}
        process = site.start(environment=environment, wait=False, **rarely)
        site.wait_for(
            lambda: not process.is_running() or any(process.said(event) for event in self.life.events),
            f"an end of the life with {fault}",
        )
        if process.is_running():
            process.stop()
        process.was_killed()
        return process

    def try_kill(self, point: Point) -> str | None:
        """Kill there, then let a clean worker finish. Returns what is wrong."""
        site = self.site()
        try:
            process = self.live(site, {"FAULTS_AT": f"{point[0]} {point[1]}", "FAULTS_DO": "kill"})
            if not process.was_killed():
                return "not reached"
            site.start()
            site.finish()
        except AssertionError as error:
            return f"killed before {point[0]} ({point[1]}): {error}"
        finally:
            site.close()
        return None

    def try_error(self, point: Point, code: int) -> str | None:
        """Let the call fail once: the worker gets over it, or says what is wrong and a clean one finishes."""
        site = self.site()
        name = errno.errorcode[code]
        try:
            process = self.live(site, {"FAULTS_AT": f"{point[0]} {point[1]}", "FAULTS_DO": str(code)})
            if f"! {point[0]}" not in (site.base / "trace").read_text():
                return "not reached"
            if process.fate == "running":
                process.fate = "stopped"
                text = process.text()
                assert process.popen.returncode > 0, text
                assert "Traceback" not in text and "worker_watcher: " in text, f"ended without a clear word:\n{text}"
            elif process.popen.returncode != 0:
                raise AssertionError(f"exit code {process.popen.returncode}\n{process.text()}")
            # What an error kept it from removing at its stop is for the next one.
            site.start()
            site.finish()
        except AssertionError as error:
            return f"{name} at {point[0]} ({point[1]}): {error}"
        finally:
            site.close()
        return None


def numbered(calls: Iterable[str]) -> list[Point]:
    seen: Counter[str] = Counter()
    points = []
    for call in calls:
        seen[call] += 1
        points.append((call, seen[call]))
    return points


#: Listings of one folder that every life has, if it lists it at all so often.
_LISTINGS = 3


def chosen(points: Iterable[Point], calls: Container[str], usual: Container[Point]) -> list[Point]:
    """Points of these calls that an ordinary life has not had tried.

    A folder is listed at beats, before claims, and again when it may have changed in the instant of the last look: how
    often depends on how long a life takes, so the first listings stand for all.
    """
    return [
        (call, number)
        for call, number in points
        if call.split()[0] in calls
        and (ALL or (call, number) not in usual)
        and (not call.startswith("list ") or number <= _LISTINGS)
    ]


def _depends_on_time(point: Point) -> bool:
    """Whether a life that is a little faster or slower need not come to it: all looks at a folder after the first, for
    whether it is listed anew depends on when it changed."""
    return point[0].startswith(("list ", "fstatat64 control/")) and point[1] > 1


def run_all(work: Callable[[Point], str | None], points: list[Point], what: str) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        said = list(pool.map(work, points))
    missed = [point for point, word in zip(points, said, strict=True) if word == "not reached"]
    owed = [point for point in missed if not _depends_on_time(point)]
    wrong = [word for word in said if word not in (None, "not reached")]
    print(f"{what}: {len(points) - len(missed)} points hit, {len(missed)} not reached: {missed[:5]}")
    assert not wrong, "\n".join(
        [f"{len(wrong)} of {len(points)} points:", *(word.splitlines()[0] for word in wrong), "", *wrong[:2]]
    )
    assert len(owed) <= max(1, len(points) // 10), f"not reached: {owed}"


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory, faults: Path) -> frozenset[Point]:
    """The calls of the simplest life, which the other kinds need not be hit at again."""
    return frozenset(Lab(tmp_path_factory.mktemp("usual"), faults, LIVES["completed"]).trace())


@pytest.mark.parametrize("name", LIVES)
def test_worker_killed_at_any_call_loses_nothing_and_leaves_nothing(
    name: str, tmp_path: Path, faults: Path, usual: frozenset[Point]
) -> None:
    lab = Lab(tmp_path, faults, LIVES[name])
    points = lab.trace()
    calls = frozenset(point[0].split()[0] for point in points) if ALL else CHANGES
    if name == "completed":
        usual = frozenset()
    if name == "duplicate":  # the same calls, and they find something else
        usual = frozenset(point for point in usual if "/a" not in point[0])
    run_all(lab.try_kill, chosen(points, calls, usual), f"kill, {name}")


#: Which calls an error can come from, in this test.
FAILING = {
    errno.EIO: CHANGES - {"flock"} | ({"fstatat64", "stat64", "read", "list"} if ALL else {"fstatat64"}),
    errno.ENOSPC: frozenset({"mkdir", "create", "write", "renameat", "renameat2", "linkat", "fsync", "syncfs"}),
    errno.EMFILE: frozenset({"open", "create", "opendir", "list"}),
}


@pytest.mark.parametrize("code", FAILING, ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize("name", ["completed", "failed", "refused"])
def test_error_at_any_call_loses_nothing_and_burns_no_attempt(
    name: str, code: int, tmp_path: Path, faults: Path, usual: frozenset[Point]
) -> None:
    lab = Lab(tmp_path, faults, LIVES[name])
    points = chosen(lab.trace(), FAILING[code], () if name == "completed" else usual)
    run_all(lambda point: lab.try_error(point, code), points, f"{errno.errorcode[code]}, {name}")
