"""What a look at the folders counts and tells, with real files, real locks and a clock driven by hand."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.world import BOB, NOW, World, world
from watcher.clock import rfc3339
from watcher.errors import WorkerTrouble
from watcher.formats.result import status_in_head
from watcher.store.overview import OverviewReader
from watcher.system import no_links
from watcher_config import folders, read_layers

__all__ = ["world"]

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


# --- one look after another


def test_next_look_counts_what_is_new_and_forgets_what_is_gone(world: World) -> None:
    lookout = OverviewReader(world.folders, world.clock)
    first = world.result("marie/x", "completed")
    world.put("tasks/marie/p.json", age=9.0)
    lookout.look()
    world.result("marie/y", "failed")
    first.unlink()
    (world.root / "tasks/marie/p.json").unlink()
    seen = lookout.look().workers[0]
    assert (seen.done, seen.failed, seen.pending, seen.oldest_pending_seconds) == (0, 1, 0, None)


def test_result_of_a_task_that_was_run_again_is_read_again(world: World) -> None:
    lookout = OverviewReader(world.folders, world.clock)
    path = world.result("marie/x", "failed")
    lookout.look()
    (path.parent / ".archive").mkdir()
    path.rename(path.parent / ".archive" / "x.json")
    world.result("marie/x", "completed")
    seen = lookout.look().workers[0]
    assert (seen.done, seen.failed) == (1, 0)


def test_file_that_could_not_be_read_is_tried_again(world: World) -> None:
    lookout = OverviewReader(world.folders, world.clock)
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

    monkeypatch.setattr("watcher.store.results.status_in_head", count)
    lookout = OverviewReader(world.folders, world.clock)
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
    assert OverviewReader(world.folders, world.clock).processes("marie") == world.worker("marie").processes


# --- trouble


def test_folder_that_may_not_be_listed_is_told_and_the_rest_is_shown(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put("tasks/marie/x.json")
    real = no_links.names_in

    def refuse(path: Any) -> list[str]:
        if str(path).endswith("dlq"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("watcher.store.workers.no_links.names_in", refuse)
    seen = world.look()
    assert seen.workers[0].pending == 1
    assert [problem for problem in seen.problems if "dlq" in problem and "Permission denied" in problem]


def test_shortage_of_descriptors_is_an_error_and_no_number(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put("tasks/marie/x.json")

    def none_left(*_: Any, **__: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("watcher.store.overview.no_links.open_folder", none_left)
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
    lookout = OverviewReader(places)
    lookout.know(
        {"marie": {"known.json": (inode, "failed"), "replaced.json": (0, "failed"), "gone.json": (9, "failed")}}
    )
    [marie] = lookout.look().workers
    assert (marie.done, marie.failed) == (2, 1)
