"""Drop zones as a user runs them: real files in real folders, a real worker, every file one task, once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import REPOSITORY, Site, names, read
from tests.waiting import wait_for
from tests.zones import GATED, NOTING, SECONDS, drop, hidden, noted, reason_of, start_zones, zones_file

pytestmark = pytest.mark.timeout(900)

MOVE = """
zones:
  - name: notes
    dirs: in
    worker: marie
    on_done: move
    prompt: "{relative} {text}"
"""
KEEP = MOVE.replace("on_done: move", "on_done: keep")


def sums_up(block: tuple[int, ...], seen: int) -> bool:
    return block[0] + block[1] + block[4] + block[5] == seen


def test_twenty_files_at_once_are_done_once_each_three_at_a_time_and_every_block_is_right(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(GATED), MAX_CONCURRENT_TASKS=10)
    zones = start_zones(site, MOVE)
    for number in range(3):
        drop(site.home / "in", f"first-{number}.txt", "x")
    noted(site, 3, "began")
    zones.block_that("three running", pending=0, processing=3, active=3, workers=3)
    for number in range(20):
        drop(site.home / "in", f"n{number:02d}.txt", "x")
    zones.block_that("all in line", pending=20, processing=3, active=3, completed=0, errors=0)
    assert len(site.noted("began")) == 3 and len(names(site.home / "in")) == 20  # they wait where they are
    (site.home / "go").touch()
    zones.block_that("all done", completed=23)
    assert sorted(site.noted()) == sorted(
        [f"first-{n}.txt x" for n in range(3)] + [f"n{n:02d}.txt x" for n in range(20)]
    )
    assert len(names(site.home / "in" / ".done")) == 23 and names(site.home / "in") == []
    assert all(block[1] == block[2] <= block[3] == 3 for block in zones.blocks())
    full = zones.blocks()[[block[0] for block in zones.blocks()].index(20) :]
    assert all(sums_up(block, 23) for block in full)
    assert zones.stop() == 0 and zones.last() == (0, 0, 0, 3, 23, 0)
    assert hidden(site.home / "in") == [".done"]


def test_folder_copied_in_becomes_a_task_for_each_file_and_keeps_its_shape_when_moved(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING))
    zones = start_zones(site, MOVE)
    tree = site.home / "tree"
    wanted = ["tree/top.txt", "tree/a/one.txt", "tree/a/b/two.txt"]
    for name in wanted:
        drop(site.home, name, "x")
    drop(tree / ".git", "config", "not a drop")
    shutil.copytree(tree, site.home / "in" / "tree")
    zones.block_that("done", completed=3)
    assert sorted(site.noted()) == sorted(f"{name} x" for name in wanted)
    assert all((site.home / "in" / ".done" / name).exists() for name in wanted)
    assert (site.home / "in" / "tree" / ".git" / "config").exists()


def test_kept_file_stays_and_is_no_task_again_after_a_restart_until_it_changes(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(GATED))
    zones = start_zones(site, KEEP)
    path = drop(site.home / "in", "a.txt", "one")
    # Soon: what changes ten seconds after it was taken is a new drop.
    wait_for("it to be taken", lambda: zones.lines("zones.file_submitted"), SECONDS)
    os.utime(path, (1e9, 1e9))  # copying programs set times late; the bytes are the same
    (site.home / "go").touch()
    zones.block_that("done", completed=1)
    zones.stop()
    again = start_zones(site, KEEP)
    drop(site.home / "in", "b.txt", "two")
    again.block_that("the new one", completed=1)
    assert site.noted() == ["a.txt one", "b.txt two"] and path.read_text() == "one"
    path.write_text("three")
    again.block_that("the changed one", completed=2)
    path.unlink()
    drop(site.home / "in", "a.txt", "three")
    again.block_that("the one that was dropped again", completed=3)
    assert site.noted()[2:] == ["a.txt three", "a.txt three"]


def test_kept_files_are_not_run_again_when_the_memory_was_lost_and_the_results_were_not(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING))
    zones = start_zones(site, KEEP)
    drop(site.home / "in", "a.txt", "one")
    zones.block_that("done", completed=1)
    zones.stop()
    shutil.rmtree(site.root / "state")
    again = start_zones(site, KEEP.replace("{relative}", "now {relative}"), "--once")
    assert again.ended(SECONDS) == 0, again.text()
    assert again.last()[4:] == (1, 0) and site.noted() == ["a.txt one"]
    assert names(site.inbox()) == [] and site.dead_letters() == []


@pytest.mark.parametrize("how", ["rename", "rewrite"])
def test_file_replaced_while_its_task_runs_is_a_new_task_after_and_the_first_sees_its_own_bytes(
    site: Site, how: str
) -> None:
    agent = GATED.replace('printf "%s" "$prompt"', 'cat "$(echo "$line" | cut -d" " -f2)"')
    site.start(AGENT_COMMAND=site.script(agent))
    zones = start_zones(site, MOVE.replace("{text}", "{path}"))
    path = drop(site.home / "in", "a.txt", "old")
    noted(site, 1, "began")
    if how == "rename":
        drop(site.home, "new.txt", "new").rename(path)
    else:
        path.write_text("new")
    zones.block_that("the second in line", pending=1, processing=1)
    assert len(site.noted("began")) == 1
    (site.home / "go").touch()
    zones.block_that("both done", completed=2)
    results = [read(site.root / "results" / "marie" / f"{stem}.json") for stem in site.results()]
    assert sorted((result["started_at"], result["stdout"]) for result in results) == [
        (min(result["started_at"] for result in results), "old"),
        (max(result["started_at"] for result in results), "new"),
    ]
    assert sorted(file.read_text() for file in (site.home / "in" / ".done").iterdir()) == ["new", "old"]


def test_kept_file_replaced_while_its_task_runs_is_a_new_task_after(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(GATED))
    zones = start_zones(site, KEEP)
    path = drop(site.home / "in", "a.txt", "old")
    noted(site, 1, "began")
    path.write_text("newer")
    zones.block_that("the second in line", pending=1, processing=1)
    (site.home / "go").touch()
    zones.block_that("both done", completed=2)
    assert site.noted() == ["a.txt old", "a.txt newer"] and path.read_text() == "newer"


def test_file_is_taken_when_its_writer_closes_it_and_not_before(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING))
    zones = start_zones(site, MOVE, SETTLE_SECONDS="0.1")
    with (site.home / "in" / "slow.txt").open("w") as writer:
        writer.write("first ")
        writer.flush()
        drop(site.home / "in", "other.txt", "x")
        zones.block_that("the other one", completed=1)
        for number in range(5):
            drop(site.home / "in", f"later-{number}.txt", "x")
        zones.block_that("the later ones", completed=6)
        assert zones.last()[0] == 0
        writer.write("last")
    zones.block_that("the slow one", completed=7)
    assert "slow.txt first last" in site.noted()


def test_what_cannot_be_a_task_goes_aside_with_the_reason(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING))
    folder = site.home / "in"
    folder.mkdir()
    drop(site.home, "secret", "secret")
    drop(folder, "large.txt", "x" * 2000)
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "link.txt").symlink_to(site.home / "secret")
    os.mkfifo(folder / "fifo.txt")
    (folder / os.fsdecode(b"bad-\xff.txt")).write_text("x")
    zones = start_zones(site, MOVE + "    max_bytes: 1000\n")
    zones.block_that("all aside", errors=5)
    aside = folder / ".aside"
    assert reason_of(aside, "large.txt")["reason"] == "too_large" and (aside / "large.txt").stat().st_size == 2000
    assert reason_of(aside, "binary.txt")["reason"] == "not_text"
    assert reason_of(aside, "link.txt")["reason"] == "not_regular" and (aside / "link.txt").is_symlink()
    assert reason_of(aside, "fifo.txt")["reason"] == "not_regular"
    assert reason_of(aside, os.fsdecode(b"bad-\xff.txt"))["reason"] == "bad_name"
    assert site.noted() == [] and names(folder) == []


def test_file_of_a_failed_task_goes_aside_and_is_a_new_task_when_it_is_moved_back(site: Site) -> None:
    fails_once = 'cat >/dev/null; [ -e $SITE/mended ] || exit 1; echo "$WATCHER_TASK_ID" >> $SITE/notes'
    site.start(AGENT_COMMAND=site.script(fails_once), MAX_RETRIES=0)
    zones = start_zones(site, MOVE)
    drop(site.home / "in", "a.txt", "x")
    zones.block_that("failed", errors=1)
    aside = site.home / "in" / ".aside"
    told = reason_of(aside, "a.txt")
    assert told["status"] == "failed" and read(Path(told["result"]))["status"] == "failed"
    (site.home / "mended").touch()
    (aside / "a.txt").rename(site.home / "in" / "a.txt")
    zones.block_that("done", errors=1, completed=1)
    assert len(site.noted()) == 1 and site.noted()[0] != told["task_id"]


def test_failed_kept_file_stays_and_is_not_tried_again_by_itself(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script("cat >> $SITE/notes; exit 1"), MAX_RETRIES=0)
    path = drop(site.home / "in", "a.txt", "x\n")
    first = start_zones(site, KEEP, "--once")
    assert first.ended(SECONDS) == 1 and first.last()[5] == 1
    assert start_zones(site, KEEP, "--once").ended(SECONDS) == 0
    assert len(site.noted()) == 1 and path.exists()


def test_full_queue_leaves_files_where_they_are_and_takes_them_all_in_the_end(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING), MAX_CONCURRENT_TASKS=4)
    for number in range(40):
        drop(site.home / "in", f"n{number}.txt", "x")
    zones = start_zones(site, MOVE + "processing: {max_workers: 2, queue_size: 3}\n")
    zones.block_that("all done", completed=40)
    assert max(block[0] for block in zones.blocks()) <= 3 and max(block[1] for block in zones.blocks()) <= 2
    assert len(set(site.noted())) == len(site.noted()) == 40


def test_higher_priority_goes_first_and_the_task_carries_the_zones_fields(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(GATED))
    two = """
processing: {max_workers: 1, timeout: 77}
zones:
  - {name: low, dirs: low, worker: marie, priority: low, prompt: "low {name}"}
  - {name: urgent, dirs: urgent, worker: marie, priority: critical, timeout: 50, agent_id: a1, on_done: delete,
     metadata: {team: x}, prompt: "urgent {stem} of {zone}"}
"""
    zones = start_zones(site, two)
    drop(site.home / "low", "0.txt", "x")
    noted(site, 1, "began")
    for number in (1, 2):
        drop(site.home / "low", f"{number}.txt", "x")
    path = drop(site.home / "urgent", "now.txt", "x")
    zones.block_that("in line", pending=3)
    (site.home / "go").touch()
    zones.block_that("done", completed=4)
    assert site.noted()[:2] == ["low 0.txt", "urgent now of urgent"]
    (stem,) = [stem for stem in site.results() if stem.startswith("urgent-now-")]
    result = read(site.root / "results" / "marie" / f"{stem}.json")
    assert result["agent_id"] == "a1"
    assert result["metadata"] == {"team": "x", "drop": {"zone": "urgent", "path": str(path)}}
    assert not path.exists() and hidden(path.parent) == []


def test_what_an_agent_leaves_beside_its_file_is_kept(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script('file=$(cat); echo report > "${file%.txt}.md"'))
    zones = start_zones(site, MOVE.replace("{relative} {text}", "{path}").replace("move", "delete"))
    drop(site.home / "in", "a.txt", "x")
    zones.block_that("done", completed=1)
    assert names(site.home / "in") == [] and hidden(site.home / "in") == [".done"]
    assert (site.home / "in" / ".done" / "a.md").read_text() == "report\n"


def test_agent_that_edits_its_kept_file_is_stopped_after_a_few_rounds(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script('file=$(cat); date +%s%N >> "$file"; echo x >> $SITE/notes'))
    zones = start_zones(site, KEEP.replace("{relative} {text}", "{path}"))
    drop(site.home / "in", "a.txt", "x")
    zones.block_that("stopped", errors=1)
    assert len(site.noted()) == 5
    assert reason_of(site.home / "in" / ".aside", "a.txt")["reason"] == "changes_itself"


def test_events_say_whether_a_change_of_a_kept_file_is_a_drop(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING))
    zones = start_zones(site, KEEP + "    events: [created]\n")
    path = drop(site.home / "in", "a.txt", "one")
    zones.block_that("done", completed=1)
    path.write_text("two")
    drop(site.home / "in", "b.txt", "x")
    zones.block_that("the other one", completed=2)
    drop(site.home, "new.txt", "three").rename(path)
    zones.block_that("another file of that name", completed=3)
    assert site.noted() == ["a.txt one", "b.txt x", "a.txt three"]


def test_sighup_takes_a_new_file_and_keeps_the_old_one_when_it_is_bad(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING))
    zones = start_zones(site, MOVE)
    zones_file(site, MOVE + "    priorty: high\n")
    zones.signal(signal.SIGHUP)
    refused = wait_for("the refusal", lambda: zones.lines("zones.reload_refused"), SECONDS)
    assert "drops.yaml:8: zone 'notes': unknown key 'priorty'; did you mean priority?" in refused[0]["message"]
    drop(site.home / "in", "a.txt", "x")
    zones.block_that("still served", completed=1)
    zones_file(site, MOVE.replace("dirs: in", "dirs: [in, more]"))
    zones.signal(signal.SIGHUP)
    wait_for("the new folder", lambda: (site.home / "more").is_dir(), SECONDS)
    drop(site.home / "more", "b.txt", "x")
    zones.block_that("the new one, too", completed=2)


def test_bad_file_is_refused_with_its_lines_before_anything_starts(site: Site) -> None:
    file = zones_file(
        site, "zones:\n  - name: a\n    dirs: in\n    worker: marie\n    prompt: '{nme}'\n    events: gone\n"
    )
    alone = start_zones(site, file.read_text(), "--once")
    assert alone.ended(SECONDS) == 2
    assert f"{file}:5: zone 'a': prompt: {{nme}} is not a placeholder" in alone.text()
    assert f"{file}:6: zone 'a': events must be one of created" in alone.text()
    inside = site.launch("marie", "--zones", str(file))
    assert inside.ended(SECONDS) == 2 and f"{file}:5:" in inside.text()


def test_zones_run_inside_a_worker_and_hear_sighup_there(site: Site) -> None:
    file = zones_file(site, MOVE)
    worker = site.start("marie", "--zones", str(file), AGENT_COMMAND=site.script(NOTING))
    wait_for("the folder", lambda: (site.home / "in").is_dir(), SECONDS)
    drop(site.home / "in", "a.txt", "x")
    wait_for("the file done", lambda: names(site.home / "in" / ".done") == ["a.txt"], SECONDS)
    zones_file(site, MOVE.replace("dirs: in", "dirs: other"))
    worker.signal(signal.SIGHUP)
    wait_for("the new folder", lambda: (site.home / "other").is_dir(), SECONDS)
    drop(site.home / "other", "b.txt", "x")
    wait_for("the file done", lambda: names(site.home / "other" / ".done") == ["b.txt"], SECONDS)
    assert worker.stop() == 0 and site.noted() == ["a.txt x", "b.txt x"]


def test_worker_that_drains_finishes_the_files_whose_task_ends_then(site: Site) -> None:
    file = zones_file(site, MOVE)
    worker = site.start("marie", "--zones", str(file), AGENT_COMMAND=site.script(GATED))
    wait_for("the folder", lambda: (site.home / "in").is_dir(), SECONDS)
    drop(site.home / "in", "a.txt", "x")
    noted(site, 1, "began")
    worker.signal(signal.SIGTERM)
    site.beat_that(lambda beat: beat.get("status") == "draining")
    (site.home / "go").touch()
    assert worker.ended() == 0
    assert names(site.home / "in" / ".done") == ["a.txt"]


def test_second_process_stands_by_and_takes_over_when_the_first_dies(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING))
    first = start_zones(site, MOVE)
    second = start_zones(site, MOVE)
    wait_for("standing by", lambda: second.lines("zones.standing_by"), SECONDS)
    drop(site.home / "in", "a.txt", "x")
    first.block_that("done by the first", completed=1)
    first.kill()
    drop(site.home / "in", "b.txt", "x")
    second.block_that("done by the second", completed=1)
    assert site.noted() == ["a.txt x", "b.txt x"]


def test_task_that_somebody_took_away_frees_its_place_and_its_file_goes_aside(site: Site) -> None:
    zones = start_zones(site, MOVE + "processing: {max_workers: 1}\n", SCAN_INTERVAL="0.1")
    drop(site.home / "in", "a.txt", "x")
    wait_for("the task", lambda: names(site.inbox()), SECONDS)
    (site.inbox() / names(site.inbox())[0]).unlink()
    assert reason_of(site.home / "in" / ".aside", "a.txt")["reason"] == "task_gone"
    drop(site.home / "in", "b.txt", "x")
    wait_for("the next task", lambda: names(site.inbox()), SECONDS)
    zones.block_that("the next one", processing=1, errors=1)


def test_task_that_is_held_by_command_keeps_its_file_until_it_is_released(site: Site) -> None:
    zones = start_zones(site, MOVE, SCAN_INTERVAL="0.1")
    drop(site.home / "in", "a.txt", "x")
    wait_for("the task", lambda: names(site.inbox()), SECONDS)
    task = names(site.inbox())[0].removesuffix(".json")
    command(site, "hold", f"marie/{task}")
    wait_for("it to be held", lambda: names(site.inbox() / ".held"), SECONDS)
    shown = len(zones.blocks())
    wait_for("many looks", lambda: len(zones.blocks()) > shown + 30, SECONDS)
    assert zones.last() == (0, 1, 1, 3, 0, 0)
    site.start(AGENT_COMMAND=site.script(NOTING))
    command(site, "release", f"marie/{task}")
    zones.block_that("done", completed=1, errors=0)
    assert names(site.home / "in" / ".done") == ["a.txt"]


def command(site: Site, *words: str) -> None:
    """Run `watcher` with these words; it must succeed."""
    environment = site.environment({"PYTHONPATH": str(REPOSITORY)})
    line = [sys.executable, "-m", "watcher", *words]
    done = subprocess.run(line, cwd=site.home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_file_whose_task_the_worker_refuses_goes_aside(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING), MAX_TASK_BYTES=200)
    zones = start_zones(site, MOVE)
    drop(site.home / "in", "a.txt", "x" * 500)
    zones.block_that("refused", errors=1)
    assert reason_of(site.home / "in" / ".aside", "a.txt")["reason"] == "too_large"


def test_a_hundred_files_one_after_the_other_while_others_run_are_done_once_each(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING))
    zones = start_zones(site, MOVE)
    for number in range(100):
        drop(site.home / "in", f"n{number:03d}.txt", "x")
        wait_for("its turn", lambda n=number: zones.last()[0] < 20 or n < 20, SECONDS)
    zones.block_that("all done", completed=100, errors=0, pending=0, processing=0)
    assert sorted(site.noted()) == [f"n{number:03d}.txt x" for number in range(100)]


def test_zones_work_without_file_events(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING))
    (site.home / "site").mkdir()
    block = "import sys; sys.modules['watchdog.observers.inotify_c'] = None\n"
    (site.home / "site" / "sitecustomize.py").write_text(block)
    path = os.pathsep.join([str(site.home / "site"), str(REPOSITORY)])
    zones = start_zones(site, MOVE, PYTHONPATH=path, POLL_INTERVAL="0.05")
    drop(site.home / "in", "sub/a.txt", "x")
    zones.block_that("done", completed=1)
    assert site.noted() == ["sub/a.txt x"]


def test_missing_pyyaml_is_told_with_the_cure(site: Site) -> None:
    (site.home / "site").mkdir()
    (site.home / "site" / "sitecustomize.py").write_text("import sys; sys.modules['yaml'] = None\n")
    path = os.pathsep.join([str(site.home / "site"), str(REPOSITORY)])
    zones = start_zones(site, MOVE, "--once", PYTHONPATH=path)
    assert zones.ended(SECONDS) == 2
    assert "need PyYAML" in zones.text() and "pip install 'watcher-suite[zones]'" in zones.text()


def test_journal_forgets_kept_files_that_are_gone(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING))
    path = drop(site.home / "in", "a.txt", "x")
    assert start_zones(site, KEEP, "--once").ended(SECONDS) == 0
    journal = site.root / "state" / "zones" / "notes" / "handled.jsonl"
    assert [json.loads(line)["path"] for line in journal.read_text().splitlines()] == [str(path)]
    path.unlink()
    assert start_zones(site, KEEP, "--once").ended(SECONDS) == 0
    assert json.loads(journal.read_text().splitlines()[-1]) == {"path": str(path), "gone": True}
