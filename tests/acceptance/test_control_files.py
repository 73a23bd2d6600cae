"""Plain files below `control/<worker>/` steer real workers: anyone who can write a file can do it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import Site, is_alive, names, read
from tests.waiting import wait_for

#: An agent that notes that it has started, starts a grandchild in a session of its own, and works for long.
TREE = """
echo "$WATCHER_TASK_ID $$" >> "$SITE/notes"
echo working
setsid sh -c 'echo $$ >> "$0/grandchildren"; exec sleep 300' "$SITE" &
sleep 300
"""
SLOW = 'echo "$WATCHER_TASK_ID" >> "$SITE/notes"; while [ ! -e "$SITE/go" ]; do sleep 0.05; done; echo done'
NOTING = 'echo "$WATCHER_TASK_ID" >> "$SITE/notes"; cat'


def control(site: Site, worker: str = "marie") -> Path:
    path = site.root / "control" / worker
    path.mkdir(parents=True, exist_ok=True)
    return path


def command(site: Site, name: str, **fields: Any) -> None:
    """What a program in any language does: hidden name, then rename."""
    hidden = control(site) / f".{name}"
    hidden.write_text(json.dumps(fields))
    hidden.rename(control(site) / f"{name}.json")


def consumed(site: Site) -> bool:
    return set(names(control(site))) <= {"breakers.json", "paused.json"}


def test_pause_stops_starting_lets_run_what_runs_and_survives_a_restart(site: Site) -> None:
    worker = site.start(AGENT_COMMAND=site.script(SLOW))
    site.drop("running")
    wait_for("the start of the first task", lambda: site.noted() == ["running"])
    (control(site) / "pause").touch()
    site.beat_that(lambda beat: beat["status"] == "paused" and beat["active_tasks"] == 1, what="that is paused")
    site.drop("waiting")
    (site.home / "go").touch()
    assert site.result("running")["status"] == "completed"
    worker.stop()
    worker = site.start(AGENT_COMMAND=site.script(SLOW))
    beat = site.beat_that(lambda beat: beat["status"] == "paused", what="that is paused again")
    assert beat["reason"].startswith("paused")
    site.pass_beats(10)
    assert (site.noted(), site.pending()) == (["running"], ["waiting"])
    (control(site) / "resume").touch()
    assert site.result("waiting")["status"] == "completed"
    site.beat_that(lambda beat: beat["status"] == "healthy", what="that is healthy")
    assert consumed(site) and not (control(site) / "paused.json").exists()
    worker.stop()
    assert site.leftovers() == []


def test_pause_by_command_says_who_and_why(site: Site) -> None:
    site.start()
    command(site, "p1", command="pause", reason="the budget is spent", by="ops")
    beat = site.beat_that(lambda beat: beat["status"] == "paused", what="that is paused")
    assert beat["reason"] == "paused by ops: the budget is spent"
    command(site, "r1", command="resume")
    site.beat_that(lambda beat: beat["status"] == "healthy", what="that is healthy")


def test_pause_is_seen_by_every_process_of_a_worker(site: Site) -> None:
    for instance in ("1", "2"):
        site.start("marie", "--instance", instance, AGENT_COMMAND=site.script(NOTING))
    (control(site) / "pause").touch()
    for instance in ("1", "2"):
        site.beat_that(lambda beat: beat["status"] == "paused", f"marie@{instance}", "that is paused")
    site.drop("x")
    for instance in ("1", "2"):
        site.pass_beats(8, f"marie@{instance}")
    assert site.noted() == []
    (control(site) / "paused.json").unlink()
    assert site.result("x")["status"] == "completed"


def test_cancel_ends_the_whole_process_tree_of_a_running_task(site: Site) -> None:
    worker = site.start(AGENT_COMMAND=site.script(TREE))
    site.drop("x")
    wait_for("the grandchild", lambda: site.noted("grandchildren"))
    pids = [int(site.noted()[0].split()[1]), int(site.noted("grandchildren")[0])]
    assert all(is_alive(pid) for pid in pids)
    command(site, "c1", command="cancel", task_id="x", reason="wrong branch", by="ops")
    result = site.result("x")
    assert (result["status"], result["reason"]) == ("cancelled", "cancelled")
    assert result["detail"] == "cancelled by ops: wrong branch"
    assert result["stdout"] == "working\n"
    assert not any(is_alive(pid) for pid in pids)
    wait_for("the command to be consumed", lambda: consumed(site))
    assert (site.dead_letters(), site.command_pids()) == ([], [])
    worker.stop()
    assert site.leftovers() == []


def test_cancelled_tasks_that_wait_get_their_result_without_running(site: Site) -> None:
    site.drop("scheduled", not_before="2100-01-01T00:00:00Z")
    site.drop("blocked", dependencies=["nobody"])
    site.drop("other")
    for stem in ("scheduled", "blocked"):  # while the worker is away
        command(site, f"c-{stem}", command="cancel", task_id=stem)
    worker = site.start(AGENT_COMMAND=site.script(NOTING))
    for stem in ("scheduled", "blocked"):
        result = site.result(stem)
        assert (result["status"], result["attempts"], result["started_at"]) == ("cancelled", 0, None)
    assert site.result("other")["status"] == "completed"
    assert site.noted() == ["other"]
    wait_for("the commands to be consumed", lambda: consumed(site))
    worker.stop()
    assert (site.leftovers(), site.pending(), site.dead_letters()) == ([], [], [])


def test_cancelled_retry_does_not_come_again(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script('echo "$WATCHER_TASK_ID" >> "$SITE/notes"; exit 1'), INITIAL_RETRY_DELAY=60)
    site.drop("x")
    wait_for("the retry", lambda: os.listdir(site.inbox() / ".retry"))
    command(site, "c", command="cancel", task_id="x")
    result = site.result("x")
    assert (result["status"], result["attempts"]) == ("cancelled", 1)
    assert len(site.noted()) == 1


def test_cancel_reaches_the_process_that_runs_the_task(site: Site) -> None:
    for instance in ("1", "2"):
        site.start("marie", "--instance", instance, AGENT_COMMAND=site.script(TREE), MAX_CONCURRENT_TASKS=1)
    site.drop("x")
    site.drop("y")
    wait_for("both tasks", lambda: len(site.noted()) == 2)
    command(site, "c1", command="cancel", task_id="x")
    command(site, "c2", command="cancel", task_id="y")
    assert {site.result(stem)["status"] for stem in "xy"} == {"cancelled"}
    wait_for("the commands to be consumed", lambda: consumed(site))
    assert site.command_pids() == []


def test_cancel_that_races_with_the_end_leaves_exactly_one_result(site: Site) -> None:
    site.start(AGENT_COMMAND="cat", MAX_CONCURRENT_TASKS=4)
    stems = [f"t{number:03d}" for number in range(120)]
    for stem in stems:
        site.drop(stem)
        command(site, f"c-{stem}", command="cancel", task_id=stem)
    statuses = [site.result(stem)["status"] for stem in stems]
    assert set(statuses) <= {"completed", "cancelled"}
    wait_for("the commands to be consumed", lambda: consumed(site))
    site.beat_that(lambda beat: beat["queue_size"] == beat["active_tasks"] == 0, what="that has nothing to do")
    assert sorted(site.results()) == stems
    assert site.dead_letters() == []
    assert site.beat_that(lambda beat: beat["stats"]["tasks_processed"] == len(stems), what="that has counted all")


def test_cancel_of_a_killed_workers_task_is_obeyed_by_the_next_one(site: Site) -> None:
    worker = site.start(AGENT_COMMAND=site.script(TREE))
    site.drop("x")
    wait_for("its start", lambda: site.noted())
    worker.kill()
    command(site, "c", command="cancel", task_id="x")
    site.start(AGENT_COMMAND=site.script(TREE))
    result = site.result("x")
    assert result["status"] == "cancelled"
    assert len(site.noted()) == 1


def test_held_task_waits_until_it_is_released_also_over_a_restart(site: Site) -> None:
    site.drop("x")
    command(site, "h", command="hold", task_id="x")
    worker = site.start(AGENT_COMMAND=site.script(NOTING))
    site.drop("y")
    assert site.result("y")["status"] == "completed"
    assert site.noted() == ["y"]
    site.beat_that(lambda beat: beat["queue_size"] == 1, what="that counts the held task")
    worker.stop()
    site.start(AGENT_COMMAND=site.script(NOTING))
    site.pass_beats(8)
    assert site.noted() == ["y"]
    command(site, "r", command="release", task_id="x")
    assert site.result("x")["status"] == "completed"


def test_second_file_of_a_held_task_waits_for_the_first(site: Site) -> None:
    site.drop("x")
    command(site, "h", command="hold", task_id="x")
    site.start(AGENT_COMMAND=site.script(NOTING))
    wait_for("the hold", lambda: consumed(site))
    site.drop("x")
    site.pass_beats(10)
    assert site.noted() == []
    command(site, "r", command="release", task_id="x")
    assert site.result("x")["status"] == "completed"


def test_edit_and_prio_change_a_waiting_task(site: Site) -> None:
    (control(site) / "pause").touch()
    site.start(AGENT_COMMAND=site.script(NOTING), MAX_CONCURRENT_TASKS=1)
    site.beat_that(lambda beat: beat["status"] == "paused", what="that is paused")
    for stem in ("a", "b", "c"):
        site.drop(stem, x_note="kept")
    command(site, "e", command="edit", task_id="a", changes={"description": "something else", "priority": None})
    command(site, "p", command="prio", task_id="c", priority="critical")
    wait_for("the commands to be consumed", lambda: consumed(site))
    assert read(site.inbox() / "a.json") == {"description": "something else", "x_note": "kept"}
    (control(site) / "resume").touch()
    assert site.result("a")["stdout"] == "something else"
    site.result("b"), site.result("c")
    assert site.noted() == ["c", "a", "b"]


def test_drain_ends_every_process_after_what_runs_and_only_those_that_were_there(site: Site) -> None:
    settings = {"AGENT_COMMAND": site.script(SLOW), "MAX_CONCURRENT_TASKS": 1, "SHUTDOWN_GRACE": 0}
    first = [site.start("marie", "--instance", number, **settings) for number in ("1", "2")]
    site.drop("x")
    site.drop("y")
    wait_for("both tasks", lambda: sorted(site.noted()) == ["x", "y"])
    (control(site) / "drain").touch()
    for number in ("1", "2"):
        site.beat_that(lambda beat: beat["status"] == "draining", f"marie@{number}", "that drains")
    site.drop("z")
    (site.home / "go").touch()
    assert [process.ended() for process in first] == [0, 0]
    assert sorted(site.results()) == ["x", "y"]
    assert consumed(site)
    (control(site) / "drain").touch()  # nobody is there
    later = site.start("marie", "--instance", "3", **settings)
    assert site.result("z")["status"] == "completed"
    wait_for("the late drain to be consumed", lambda: consumed(site))
    assert later.popen.poll() is None


def test_sigterm_ends_a_patient_drain_within_its_grace(site: Site) -> None:
    worker = site.start(AGENT_COMMAND=site.script(TREE), SHUTDOWN_GRACE=0)
    site.drop("x")
    wait_for("the start", lambda: site.noted())
    command(site, "d", command="drain")
    site.beat_that(lambda beat: beat["status"] == "draining", what="that drains")
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0
    assert (site.pending(), site.leftovers()) == (["x"], [])


def test_what_is_no_command_is_put_aside_with_a_reason(site: Site) -> None:
    worker = site.start()
    command(site, "wrong", command="explode")
    command(site, "lost", command="cancel", task_id="nowhere")
    command(site, "state", colour="red")
    (control(site) / "broken.json").write_text("{")
    refused = control(site) / ".refused"
    wait_for("the refusals", lambda: names(refused) == ["broken.json", "lost.json", "wrong.json"])
    told = {line["file"].strip("'"): line["detail"] for line in worker.logged("command.refused", 3)}
    assert "must be one of" in told["wrong.json"]
    assert "no task 'nowhere'" in told["lost.json"]
    assert names(control(site)) == ["state.json"]
    assert read(control(site) / "state.json") == {"colour": "red"}
    command(site, "late", command="explode")
    assert worker.stop() == 0


def test_file_that_is_no_command_and_no_state_is_left_alone_and_told_once(site: Site) -> None:
    worker = site.start()
    for name in ("stop", "cancel", "my command.json", "spend-20260101.jsonl", "budget-20260101.json", ".c.tmp"):
        (control(site) / name).touch()
    told = {line["file"].strip("'"): line["detail"] for line in worker.logged("file.ignored", 3)}
    assert told.keys() == {"stop", "cancel", "my command.json"}
    assert "pause, resume, drain, beat" in told["stop"] and "task_id" in told["cancel"]
    command(site, "p", command="pause")
    site.beat_that(lambda beat: beat["status"] == "paused", what="that is paused")
    assert len(worker.lines("file.ignored")) == 3
    assert {"stop", "cancel", "my command.json"} <= set(names(control(site)))
    (control(site) / "stop").unlink()
    command(site, "r", command="resume")
    site.beat_that(lambda beat: beat["status"] == "healthy", what="that is healthy")
    (control(site) / "stop").touch()
    assert len(worker.logged("file.ignored", 4)) == 4
