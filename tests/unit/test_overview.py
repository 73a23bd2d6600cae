"""What a look at the folders tells, with real files, real locks and a clock driven by hand."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import HandClock
from watcher.clock import rfc3339
from watcher.errors import WorkerTrouble
from watcher.formats.heartbeat import ActiveTask, Heartbeat, Stats
from watcher.formats.result import status_in_head
from watcher.overview import Lookout, Overview, WorkerOverview
from watcher.presence import Process
from watcher_config import Folders, folders, read_layers

NOW = 1_800_000_000.0
ALICE, BOB = "a" * 32, "b" * 32


class World:
    """A root with folders, files and locks as workers would leave them. A lock of a process that lives is held here:
    flock excludes by open file, so it does not matter that it is this very process."""

    def __init__(self, root: Path) -> None:
        self.folders: Folders = folders(read_layers(environ={"WATCHER_ROOT": str(root)}, env_file=os.devnull))
        self.root = root
        self.held: dict[str, int] = {}
        self.clock = HandClock(NOW)

    def look(self) -> Overview:
        return Lookout(self.folders, self.clock).look()

    def worker(self, name: str = "marie") -> WorkerOverview:
        return next(worker for worker in self.look().workers if worker.worker == name)

    def process(self, name: str = "marie") -> Process:
        (process,) = self.worker(name).processes
        return process

    def put(self, place: str, data: bytes | str = b"{}", age: float = 0.0) -> Path:
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        os.utime(path, (NOW - age, NOW - age))
        return path

    def result(self, place: str, status: str) -> Path:
        worker, task_id = place.split("/")
        fields = {"task_id": task_id, "worker": worker, "status": status, "stdout": "x" * 2000}
        return self.put(f"results/{place}.json", json.dumps(fields))

    def beat(self, name: str = "marie", incarnation: str = ALICE, age: float = 1.0, **changes: Any) -> Path:
        worker, _, instance = name.partition("@")
        fields: dict[str, Any] = {
            "worker": worker, "at": NOW - age, "uptime_seconds": 60.0, "queue_size": 0, "active_tasks": 0,
            "circuit_breaker_state": "closed", "stats": Stats(), "status": "healthy", "incarnation": incarnation,
            "pid": 4711, "host": "here", "sequence": 7, "interval_seconds": 10.0, "instance": instance or None,
        }  # fmt: skip
        return self.put(f"heartbeats/{name}.json", Heartbeat(**(fields | changes)).dump(), age)

    def lives(self, worker: str = "marie", incarnation: str = ALICE, **notes: Any) -> None:
        """A process with its lock, its notes and its claim folder."""
        self.died(worker, incarnation, **notes)
        fd = os.open(self.root / f"tasks/{worker}/.claims/{incarnation}.lock", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.held[incarnation] = fd

    def died(self, worker: str = "marie", incarnation: str = ALICE, **notes: Any) -> None:
        """The same, left behind by a process that was killed."""
        place = f"tasks/{worker}/.claims/{incarnation}"
        self.put(f"{place}.lock", b"")
        self.put(f"{place}.busy", b"")
        self.put(f"{place}.json", json.dumps({"incarnation": incarnation, "pid": 4711, "host": "here"} | notes))
        (self.root / place).mkdir(exist_ok=True)

    def claim(self, task_id: str, attempt: int = 1, incarnation: str = ALICE, worker: str = "marie") -> Path:
        return self.put(f"tasks/{worker}/.claims/{incarnation}/{task_id}~{attempt}-0.json")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for fd in made.held.values():
        os.close(fd)


# --- which workers there are


def test_root_that_is_not_there_has_no_workers(tmp_path: Path) -> None:
    seen = World(tmp_path / "nowhere").look()
    assert (seen.workers, seen.running, seen.problems) == ((), (), ())
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("trace", ["tasks/marie/x.json", "results/marie/x.json", "dlq/marie/x.json"])
def test_worker_is_known_by_any_of_its_folders(world: World, trace: str) -> None:
    world.put(trace)
    assert [worker.worker for worker in world.look().workers] == ["marie"]


def test_worker_is_known_by_its_heartbeat_alone(world: World) -> None:
    world.beat("fabien")
    assert [worker.worker for worker in world.look().workers] == ["fabien"]


def test_names_that_are_no_worker_are_not_shown(world: World) -> None:
    for trace in ("tasks/.hidden/x.json", "tasks/mar ie/x.json", "tasks/loose.json", "heartbeats/.marie.json.tmp"):
        world.put(trace)
    assert world.look().workers == ()


# --- what waits


def test_only_task_files_are_counted_as_pending(world: World) -> None:
    for name in ("x.json", "y-2.json", ".submit-1.tmp", ".z.json", "notes.txt", "x.json~", "a b.json", "-q.json"):
        world.put(f"tasks/marie/{name}")
    assert world.worker().pending == 2


def test_tasks_that_wait_for_a_retry_are_pending_too(world: World) -> None:
    world.put("tasks/marie/x.json")
    world.put("tasks/marie/.retry/y~1-0-1800000000000.json")
    world.put("tasks/marie/.retry/.probe-1")
    assert (world.worker().pending, world.worker().retrying) == (2, 1)


def test_oldest_waiting_task_may_be_one_that_is_retried(world: World) -> None:
    world.put("tasks/marie/x.json", age=5.0)
    assert world.worker().oldest_pending_seconds == pytest.approx(5.0)
    world.put("tasks/marie/.retry/y~1-0-1800000000000.json", age=90.0)
    assert world.worker().oldest_pending_seconds == pytest.approx(90.0)


def test_nothing_waiting_has_no_age_and_a_file_of_the_future_has_none_below_zero(world: World) -> None:
    world.put("results/marie/x.json")
    assert world.worker().oldest_pending_seconds is None
    world.put("tasks/marie/x.json", age=-3600.0)
    assert world.worker().oldest_pending_seconds == 0.0


# --- how things ended


def test_results_are_counted_by_their_status(world: World) -> None:
    for number, status in enumerate(["completed", "completed", "completed", "failed", "timeout", "cancelled"]):
        world.result(f"marie/t{number}", status)
    seen = world.worker()
    assert (seen.done, seen.failed, seen.unread) == (3, 3, 0)


def test_archive_outputs_and_temporary_files_are_no_results(world: World) -> None:
    world.result("marie/x", "completed")
    for name in (".archive/x.json", ".output/x.stdout", ".tmp/1.aaa"):
        world.put(f"results/marie/{name}")
    assert world.worker().done == 1


def test_things_that_are_no_result_are_counted_apart_and_block_nothing(world: World) -> None:
    good = world.result("marie/good", "completed")
    world.put("results/marie/half.json", b'{"task_id": "half", "wor')
    world.put("results/marie/empty.json", b"")
    world.put("results/marie/bytes.json", bytes(range(256)))
    (good.parent / "folder.json").mkdir()
    os.mkfifo(good.parent / "fifo.json")
    (good.parent / "link.json").symlink_to(good)
    seen = world.worker()
    assert (seen.done, seen.failed, seen.unread) == (1, 0, 6)


def test_every_dead_letter_is_counted_and_the_originals_beside_them_are_not(world: World) -> None:
    for name in ("x.json", "x~2.json", ".x.json", ".tmp/1.aaa", ".originals/x.123"):
        world.put(f"dlq/marie/{name}")
    assert world.worker().dead_letters == 2


# --- who lives


def test_process_that_holds_its_lock_is_alive_however_old_its_heartbeat_is(world: World) -> None:
    world.lives()
    world.beat(age=86_400.0)
    assert world.process().state == "healthy"
    assert world.process().is_silent
    assert world.process().for_seconds == pytest.approx(60.0 + 86_400.0)


def test_process_that_beats_in_time_is_not_silent(world: World) -> None:
    world.lives()
    world.beat(age=30.0)
    assert not world.process().is_silent


def test_process_without_its_lock_is_dead_however_new_its_heartbeat_is(world: World) -> None:
    world.died()
    world.beat(age=0.5)
    assert world.process().state == "dead"
    assert world.process().for_seconds == pytest.approx(0.5)
    assert world.process().breaker is None


def test_process_whose_lock_was_cleaned_away_by_a_rescuer_is_dead(world: World) -> None:
    world.beat(age=120.0)
    assert world.worker().state == "dead"
    assert world.worker().for_seconds == pytest.approx(120.0)


def test_process_that_said_goodbye_is_stopped(world: World) -> None:
    world.beat(age=120.0, status="stopped", reason="SIGTERM")
    assert world.worker().state == "stopped"
    assert world.worker().for_seconds == pytest.approx(120.0)


def test_process_that_writes_its_last_beat_is_still_draining(world: World) -> None:
    world.lives()
    world.beat(status="stopped")
    assert world.process().state == "draining"


def test_state_and_reason_of_a_living_process_are_those_of_its_heartbeat(world: World) -> None:
    world.lives()
    world.beat(status="held", reason="claude: usage_limit", held_until=NOW + 600, circuit_breaker_state="half_open")
    seen = world.process()
    assert (seen.state, seen.reason, seen.breaker) == ("held", "claude: usage_limit", "half_open")
    assert seen.held_until == rfc3339(NOW + 600)


def test_worker_that_nobody_ever_served_is_absent(world: World) -> None:
    world.put("tasks/marie/x.json")
    assert (world.worker().state, world.worker().processes) == ("absent", ())


def test_process_that_has_not_beaten_yet_is_starting(world: World) -> None:
    world.lives(started_at=rfc3339(NOW - 2), instance="pod-1")
    seen = world.process()
    assert (seen.state, seen.name, seen.pid) == ("starting", "marie@pod-1", 4711)
    assert seen.for_seconds == pytest.approx(2.0)


def test_successor_that_has_not_beaten_yet_hides_the_dead_one_before_it(world: World) -> None:
    world.died(incarnation=ALICE)
    world.beat(incarnation=ALICE, age=300.0)
    world.lives(incarnation=BOB)
    assert world.process().state == "starting"


def test_successor_that_died_before_its_first_beat_is_dead_not_stopped(world: World) -> None:
    world.beat(incarnation=ALICE, age=300.0, status="stopped")
    world.died(incarnation=BOB)
    assert world.process().state == "dead"


def test_remains_of_killed_processes_do_not_hide_the_living_one(world: World) -> None:
    world.died(incarnation=ALICE)
    world.lives(incarnation=BOB)
    world.died(incarnation="c" * 32)
    assert world.process().state == "starting"
    world.beat(incarnation=BOB)
    assert world.process().state == "healthy"


def test_lock_that_cannot_be_asked_leaves_the_state_unknown(world: World) -> None:
    world.died()
    world.beat()
    lock = world.root / f"tasks/marie/.claims/{ALICE}.lock"
    lock.unlink()
    lock.symlink_to("/dev/null")
    assert world.process().state == "unknown"


def test_somebody_else_who_looks_is_not_taken_for_the_owner(world: World) -> None:
    world.died()
    world.beat()
    fd = os.open(world.root / f"tasks/marie/.claims/{ALICE}.lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    try:
        assert world.process().state == "dead"
    finally:
        os.close(fd)


def test_looking_leaves_the_lock_free_for_a_rescuer(world: World) -> None:
    world.died()
    world.look()
    fd = os.open(world.root / f"tasks/marie/.claims/{ALICE}.lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


def test_several_instances_are_shown_each_and_the_worst_that_lives_stands_for_all(world: World) -> None:
    world.lives(incarnation=ALICE, instance="1")
    world.beat("marie@1", ALICE)
    world.lives(incarnation=BOB, instance="2")
    world.beat("marie@2", BOB, status="degraded", circuit_breaker_state="open")
    world.beat("marie@3", "c" * 32, age=60.0)
    seen = world.worker()
    assert [(p.name, p.state) for p in seen.processes] == [
        ("marie@1", "healthy"), ("marie@2", "degraded"), ("marie@3", "dead"),
    ]  # fmt: skip
    assert (seen.state, seen.breaker) == ("degraded", "open")


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"worker": "marie"}', b'{"worker": 1, "status": "x"}', b"[" * 9999],
)
def test_heartbeat_that_is_none_is_told_and_hides_nobody_else(world: World, raw: bytes) -> None:
    world.put("heartbeats/marie.json", raw)
    world.lives("anga")
    world.beat("anga")
    seen = {worker.worker: worker.state for worker in world.look().workers}
    assert seen == {"anga": "healthy", "marie": "unknown"}
    assert any("marie.json" in problem for problem in world.look().problems)


def test_heartbeat_that_is_a_fifo_a_folder_or_a_link_is_told_and_blocks_nothing(world: World) -> None:
    target = world.beat("marie")
    os.mkfifo(target.with_name("fifo.json"))
    target.with_name("folder.json").mkdir()
    target.with_name("link.json").symlink_to(target)
    seen = {worker.worker: worker.state for worker in world.look().workers}
    assert seen == {"fifo": "unknown", "folder": "unknown", "link": "unknown", "marie": "dead"}


def test_fields_of_a_heartbeat_that_make_no_sense_are_left_out(world: World) -> None:
    world.lives()
    nonsense = {
        "worker": "marie", "status": "healthy", "sequence": 1, "incarnation": ALICE, "uptime_seconds": "long",
        "pid": -1, "active": {"task_id": 1}, "circuit_breaker_state": "melted", "metrics_port": [], "host": None,
    }  # fmt: skip
    world.claim("x")
    world.put("heartbeats/marie.json", json.dumps(nonsense))
    seen = world.process()
    assert (seen.state, seen.for_seconds, seen.pid, seen.breaker) == ("healthy", None, None, None)


def test_incarnation_in_a_heartbeat_is_never_used_as_a_path(world: World) -> None:
    world.put("victim.lock", b"")
    fd = os.open(world.root / "victim.lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    world.held["victim"] = fd
    world.beat(incarnation="../../../victim")
    assert world.process().state == "dead"


# --- what runs


def test_claims_of_the_living_run_and_those_of_the_dead_are_orphaned(world: World) -> None:
    world.lives(incarnation=ALICE)
    world.beat(incarnation=ALICE)
    world.claim("x")
    world.claim("y")
    world.died(incarnation=BOB)
    world.claim("z", incarnation=BOB)
    seen = world.look()
    assert (seen.workers[0].running, seen.workers[0].orphaned) == (2, 1)
    assert sorted(task.task_id for task in seen.running) == ["x", "y"]


def test_claims_without_a_lock_file_belong_to_nobody_who_lives(world: World) -> None:
    world.claim("x")
    assert (world.worker().running, world.worker().orphaned) == (0, 1)


def test_outputs_and_refused_files_in_a_claim_folder_are_not_running(world: World) -> None:
    world.lives()
    for name in ("output-1.stdout", "output-1.stderr", "bad-name-7!.json"):
        world.put(f"tasks/marie/.claims/{ALICE}/{name}")
    assert world.worker().running == 0


def test_heartbeat_says_since_when_a_task_runs_and_its_output_file_when_it_last_wrote(world: World) -> None:
    world.lives(instance="1")
    output = world.put(f"tasks/marie/.claims/{ALICE}/output-1.stdout", b"so far", age=3.0)
    active = [ActiveTask("x", NOW - 42.0, NOW - 30.0, str(output))]
    world.beat("marie@1", active=active, active_tasks=1)
    world.claim("x", attempt=2)
    (task,) = world.look().running
    assert (task.task_id, task.worker, task.instance, task.attempt) == ("x", "marie", "1", 2)
    assert task.for_seconds == pytest.approx(42.0)
    assert task.output_age_seconds == pytest.approx(3.0)


def test_heartbeat_says_what_a_running_task_does(world: World) -> None:
    world.lives()
    world.beat(active=[ActiveTask("x", NOW - 42.0, None, None, "tool Bash", NOW - 7.0)])
    world.claim("x")
    (task,) = world.look().running
    assert (task.last_event, task.last_event_age_seconds) == ("tool Bash", pytest.approx(7.0))


def test_task_that_has_written_nothing_has_no_last_output(world: World) -> None:
    world.lives()
    output = world.put(f"tasks/marie/.claims/{ALICE}/output-1.stdout", b"")
    world.beat(active=[ActiveTask("x", NOW - 42.0, None, str(output))])
    world.claim("x")
    (task,) = world.look().running
    assert task.output_age_seconds is None


def test_task_that_no_heartbeat_knows_yet_runs_since_its_claim(world: World) -> None:
    world.lives()
    world.beat()
    world.clock.now_wall = world.claim("x").stat().st_ctime + 7.0
    (task,) = world.look().running
    assert task.for_seconds == pytest.approx(7.0)


# --- one look after another


def test_next_look_counts_what_is_new_and_forgets_what_is_gone(world: World) -> None:
    lookout = Lookout(world.folders, world.clock)
    first = world.result("marie/x", "completed")
    world.put("tasks/marie/p.json", age=9.0)
    lookout.look()
    world.result("marie/y", "failed")
    first.unlink()
    (world.root / "tasks/marie/p.json").unlink()
    seen = lookout.look().workers[0]
    assert (seen.done, seen.failed, seen.pending, seen.oldest_pending_seconds) == (0, 1, 0, None)


def test_result_of_a_task_that_was_run_again_is_read_again(world: World) -> None:
    lookout = Lookout(world.folders, world.clock)
    path = world.result("marie/x", "failed")
    lookout.look()
    (path.parent / ".archive").mkdir()
    path.rename(path.parent / ".archive" / "x.json")
    world.result("marie/x", "completed")
    seen = lookout.look().workers[0]
    assert (seen.done, seen.failed) == (1, 0)


def test_file_that_could_not_be_read_is_tried_again(world: World) -> None:
    lookout = Lookout(world.folders, world.clock)
    path = world.put("results/marie/x.json", b"{")
    assert lookout.look().workers[0].unread == 1
    path.write_bytes(b'{"task_id": "x", "worker": "marie", "status": "completed"}')
    seen = lookout.look().workers[0]
    assert (seen.done, seen.unread) == (1, 0)


def test_each_result_is_read_once_however_often_one_looks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    def count(head: bytes) -> str | None:
        reads.append(head)
        return status_in_head(head)

    monkeypatch.setattr("watcher.overview.status_in_head", count)
    lookout = Lookout(world.folders, world.clock)
    for number in range(5):
        world.result(f"marie/t{number}", "completed")
        lookout.look()
    assert len(reads) == 5


def test_looking_changes_nothing(world: World) -> None:
    world.lives()
    world.beat()
    world.claim("x")
    world.put("tasks/marie/y.json")
    world.result("marie/z", "completed")
    before = snapshot(world.root)
    world.look()
    assert snapshot(world.root) == before


def test_processes_alone_are_the_same_as_in_a_whole_look(world: World) -> None:
    world.lives()
    world.beat()
    world.beat("anga", BOB)
    assert Lookout(world.folders, world.clock).processes("marie") == world.worker("marie").processes


# --- trouble


def test_folder_that_may_not_be_listed_is_told_and_the_rest_is_shown(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put("tasks/marie/x.json")
    real = os.listdir

    def refuse(path: Any) -> list[str]:
        if str(path).endswith("dlq"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("watcher.presence.os.listdir", refuse)
    seen = world.look()
    assert seen.workers[0].pending == 1
    assert [problem for problem in seen.problems if "dlq" in problem and "Permission denied" in problem]


def test_shortage_of_descriptors_is_an_error_and_no_number(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put("tasks/marie/x.json")

    def none_left(*_: Any, **__: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("watcher.overview.os.open", none_left)
    with pytest.raises(WorkerTrouble, match="EMFILE"):
        world.look()


def test_many_problems_are_cut_to_a_list_a_person_reads(world: World) -> None:
    for number in range(50):
        world.put(f"heartbeats/w{number}.json", b"no")
    problems = world.look().problems
    assert len(problems) == 21
    assert problems[-1] == "and 30 more"


def test_overview_for_programs_is_plain_json(world: World) -> None:
    world.lives()
    world.beat(age=1.23456)
    world.claim("x")
    world.result("marie/z", "completed")
    told = json.loads(json.dumps(world.look().as_json()))
    assert told["taken_at"] == rfc3339(NOW)
    assert told["workers"][0]["done"] == 1
    assert told["workers"][0]["processes"][0]["beat_age_seconds"] == 1.235
    assert told["running"][0]["task_id"] == "x"


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Every name below, with what a change would change."""
    found = {}
    for folder, folders_there, files in os.walk(root):
        for name in (*folders_there, *files):
            info = os.lstat(Path(folder, name))
            found[str(Path(folder, name))] = (info.st_mtime_ns, info.st_ctime_ns)
    return found


def test_what_a_listener_has_read_is_not_read_again_but_the_folder_decides(tmp_path: Path) -> None:
    places = folders(read_layers(environ={"WATCHER_ROOT": str(tmp_path)}))
    results = places.results / "marie"
    results.mkdir(parents=True)
    for name in ("known", "replaced", "new"):
        (results / f"{name}.json").write_text('{"task_id": "x", "worker": "marie", "status": "completed"}')
    inode = (results / "known.json").stat().st_ino
    lookout = Lookout(places)
    lookout.know(
        {"marie": {"known.json": (inode, "failed"), "replaced.json": (0, "failed"), "gone.json": (9, "failed")}}
    )
    [marie] = lookout.look().workers
    assert (marie.done, marie.failed) == (2, 1)
