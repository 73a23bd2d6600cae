"""A task file may be written in any way that people and programs write files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from tests.acceptance.conftest import Site, names
from tests.waiting import wait_for

RAW = b'{"description": "a rather long description"}'


def settled(site: Site, stem: str, text: str = "a rather long description") -> None:
    """It has run, once, with this description, and nothing of it is left or was refused."""
    result = site.result(stem)
    assert (result["status"], result["stdout"], result["attempts"]) == ("completed", text, 1)
    assert stem not in site.pending() and stem not in site.dead_letters()


def written(path: Path, size: int) -> None:
    """Wait until a writer has come so far."""
    wait_for(f"{size} bytes in {path.name}", lambda: path.exists() and path.stat().st_size == size)


def test_file_written_slowly_by_a_redirect_runs_when_it_is_closed_and_not_before(shared: Site) -> None:
    path = shared.inbox() / "slow.json"
    writer = subprocess.Popen(["/bin/sh", "-c", 'cat > "$0"', str(path)], stdin=subprocess.PIPE)
    assert writer.stdin is not None
    writer.stdin.write(RAW[:20])
    writer.stdin.flush()
    written(path, 20)
    shared.pass_beats(8)  # longer than SETTLE_SECONDS: whoever took it for garbage would have thrown it away by now
    assert path.exists() and shared.results().count("slow") == shared.dead_letters().count("slow") == 0
    writer.stdin.write(RAW[20:])
    writer.stdin.flush()
    written(path, len(RAW))
    shared.pass_beats(2)
    assert path.exists() and "slow" not in shared.results(), "it is complete, but its writer may write on"
    writer.stdin.close()
    assert writer.wait() == 0
    settled(shared, "slow")


def test_file_that_is_moved_in_runs(shared: Site, tmp_path: Path) -> None:
    source = tmp_path / "outside.json"
    source.write_bytes(RAW)
    subprocess.run(["/bin/mv", str(source), str(shared.inbox() / "moved.json")], check=True)
    settled(shared, "moved")


def test_file_that_is_moved_in_from_another_file_system_runs(shared: Site) -> None:
    source = Path(f"/dev/shm/watcher-test-{uuid.uuid4()}.json")
    if not source.parent.is_dir():
        pytest.skip("needs /dev/shm as another file system")
    source.write_bytes(RAW)
    subprocess.run(["/bin/mv", str(source), str(shared.inbox() / "copied.json")], check=True)
    settled(shared, "copied")


def test_hidden_copy_that_is_renamed_runs_after_the_rename_and_not_before(shared: Site) -> None:
    """What rsync does."""
    hidden = shared.inbox() / ".synced.json.Ab12Cd"
    hidden.write_bytes(RAW)
    shared.pass_beats(3)
    assert hidden.exists() and "synced" not in shared.results()
    hidden.rename(shared.inbox() / "synced.json")
    settled(shared, "synced")


def test_waiting_task_that_is_rewritten_in_place_runs_as_it_is_then(shared: Site) -> None:
    path = shared.inbox() / "edited.json"
    path.write_text(json.dumps({"description": "old", "not_before": time.time() + 3600}))
    shared.beat_that(lambda beat: beat["queue_size"] >= 1, what="with a waiting task")
    with path.open("w") as editor:
        editor.write('{"descrip')
        editor.flush()
        shared.pass_beats(2)
        editor.write('tion": "new"}')
    settled(shared, "edited", "new")


def test_waiting_task_that_an_editor_replaces_runs_as_it_is_then(shared: Site) -> None:
    path = shared.inbox() / "replaced.json"
    path.write_text(json.dumps({"description": "old", "not_before": time.time() + 3600}))
    shared.beat_that(lambda beat: beat["queue_size"] >= 1, what="with a waiting task")
    subprocess.run(["/bin/sed", "-i", "-e", 's/"old", .*/"new"}/', str(path)], check=True)
    settled(shared, "replaced", "new")


def test_file_that_was_closed_half_written_and_is_completed_soon_runs_as_a_whole(site: Site) -> None:
    site.start(SETTLE_SECONDS="600", SCAN_INTERVAL="0.1")
    path = site.inbox() / "halves.json"
    for part in (b"", RAW[:15], RAW[15:]):
        with path.open("ab") as writer:
            writer.write(part)
        site.pass_beats(2)
    settled(site, "halves")


def test_file_whose_writer_died_halfway_is_a_dead_letter_with_all_its_bytes(shared: Site) -> None:
    path = shared.inbox() / "cut.json"
    writer = subprocess.Popen(["/bin/sh", "-c", 'exec cat > "$0"', str(path)], stdin=subprocess.PIPE)
    assert writer.stdin is not None
    writer.stdin.write(RAW[:20])
    writer.stdin.flush()
    written(path, 20)
    shared.pass_beats(2)
    writer.kill()
    writer.wait()
    letter = shared.dead_letter("cut")
    assert letter["dlq_reason"] == "invalid_json" and letter["dlq_detail"]
    assert shared.original(letter).read_bytes() == RAW[:20]
    assert not path.exists() and "cut" not in shared.results()


def test_file_without_an_event_is_found_by_the_scan(site: Site, tmp_path: Path) -> None:
    """A link makes none of the events that are listened to, as a file on a network share makes none at all."""
    site.start(SCAN_INTERVAL="0.5")
    source = site.inbox() / ".hidden"
    source.write_bytes(RAW)
    os.link(source, site.inbox() / "linked.json")
    source.unlink()
    settled(site, "linked")


def test_file_whose_name_is_no_id_is_a_dead_letter_and_one_that_is_no_json_is_left_alone(site: Site) -> None:
    (site.inbox() / "no id.json").write_bytes(RAW)
    (site.inbox() / "readme.txt").write_text("hello")
    worker = site.start()
    [stem] = wait_for("the bad name", site.dead_letters)
    letter = site.dead_letter(stem)
    assert letter["dlq_reason"] == "bad_name" and "no id.json" in letter["dlq_detail"]
    assert site.original(letter).read_bytes() == RAW
    wait_for("a word about readme.txt", lambda: worker.lines("file.ignored"))
    assert names(site.inbox()) == ["readme.txt"]


def test_tasks_that_waited_before_the_worker_came_run(site: Site) -> None:
    for number in range(5):
        site.drop(f"early-{number}")
    site.start()
    for number in range(5):
        settled(site, f"early-{number}", f"do early-{number}")


def is_removed(folder: Path) -> bool:
    """Try once to delete it. The worker may make a folder in it again just before its own turn comes."""
    try:
        shutil.rmtree(folder)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("how", ["deleted", "moved away"])
def test_worker_whose_inbox_was_taken_away_serves_the_new_one(site: Site, how: str) -> None:
    worker = site.start()
    site.drop("before")
    settled(site, "before", "do before")
    if how == "deleted":
        wait_for("it to be gone", lambda: is_removed(site.root / "tasks" / "marie"))
    else:
        site.inbox().rename(site.home / "away")
    site.drop("after")
    settled(site, "after", "do after")
    assert worker.popen.poll() is None


def test_events_alone_tell_of_every_way_to_write_also_behind_a_symbolic_link(site: Site) -> None:
    (site.home / "real").mkdir()
    site.root.symlink_to(site.home / "real")
    site.start(SCAN_INTERVAL="3600")
    site.drop("renamed")
    settled(site, "renamed", "do renamed")
    (site.inbox() / "written.json").write_bytes(RAW)
    settled(site, "written")
    (site.home / "outside.json").write_bytes(RAW)
    subprocess.run(["/bin/mv", str(site.home / "outside.json"), str(site.inbox() / "moved.json")], check=True)
    settled(site, "moved")
    assert names(site.home / "real" / "results" / "marie") == ["moved.json", "renamed.json", "written.json"]


def test_hostile_number_costs_its_task_and_not_the_worker(shared: Site) -> None:
    (shared.inbox() / "digits.json").write_bytes(b'{"description": "x", "timeout": 1' + b"0" * 400 + b"}")
    assert shared.dead_letter("digits")["dlq_reason"] == "invalid_field"
    shared.drop("next")
    settled(shared, "next", "do next")
