"""What the heartbeat says, and what a worker does while its provider is held or its breaker is open."""

from __future__ import annotations

import json
import time

from tests.acceptance.conftest import Site, read
from tests.schemacheck import fits
from tests.waiting import wait_for
from watcher.clock import parse_rfc3339, rfc3339
from watcher.formats.schemas import all_schemas

HEARTBEAT_FIELDS = {
    "worker", "timestamp", "uptime_seconds", "queue_size", "active_tasks", "circuit_breaker_state", "stats", "status",
    "reason", "incarnation", "instance", "pid", "host", "sequence", "heartbeat_interval_seconds", "held_until",
    "metrics_port", "wake", "fence", "oldest_pending_age_seconds", "active",
}  # fmt: skip
#: Works unless a file `broken` is there; notes each run.
FRAGILE = 'echo "$WATCHER_TASK_ID $WATCHER_ATTEMPT" >> "$SITE/notes"; test ! -e "$SITE/broken"'
#: Waits until the test makes the file of this task.
GATE = 'until test -e "$SITE/go-$WATCHER_TASK_ID"; do sleep 0.02; done'


def test_heartbeat_has_every_documented_field_and_tells_what_runs(site: Site) -> None:
    worker = site.start(AGENT_COMMAND=site.script("echo begun; while test ! -e $SITE/go; do sleep 0.05; done"))
    site.drop("running", agent_id="x")
    site.drop("behind", agent_id="x")
    beat = site.beat_that(
        lambda b: b["queue_size"] == 1 and b["active"] and b["active"][0]["last_output_at"],
        what="of a running task",
    )
    assert set(beat) == HEARTBEAT_FIELDS and fits(all_schemas()["heartbeat"], beat)
    assert (beat["worker"], beat["pid"], beat["instance"]) == ("marie", worker.pid, None)
    assert (beat["status"], beat["reason"], beat["held_until"], beat["wake"]) == ("healthy", None, None, "events")
    assert (beat["active_tasks"], beat["circuit_breaker_state"], beat["heartbeat_interval_seconds"]) == (
        1,
        "closed",
        0.1,
    )
    assert beat["stats"] == {"tasks_processed": 0, "tasks_failed": 0, "tasks_retried": 0, "tasks_dlq": 0}
    assert beat["oldest_pending_age_seconds"] >= 0 and beat["uptime_seconds"] > 0
    [active] = beat["active"]
    assert set(active) == {
        "task_id", "started_at", "last_output_at", "stdout_path", "last_event", "last_event_at",
    }  # fmt: skip
    assert active["task_id"] == "running" and active["last_event"] is None, "plain text has no events"
    assert parse_rfc3339(active["started_at"]) <= parse_rfc3339(active["last_output_at"]) + 0.02
    with open(active["stdout_path"]) as live:
        assert live.read() == "begun\n", "it can be followed while it runs"
    (site.home / "go").touch()
    beat = site.beat_that(lambda b: b["stats"]["tasks_processed"] == 2, what="after both tasks")
    assert (beat["queue_size"], beat["active_tasks"], beat["active"]) == (0, 0, [])
    assert worker.stop() == 0
    last = site.beat()
    assert (last["status"], last["reason"], last["stats"]) == ("stopped", "SIGTERM", beat["stats"])


def test_heartbeat_comes_at_its_interval(site: Site) -> None:
    site.start(HEARTBEAT_INTERVAL="0.4")
    first = site.beat()
    later = site.beat_that(lambda beat: beat["sequence"] >= first["sequence"] + 3, what="three beats later")
    beats = later["sequence"] - first["sequence"]
    # Late it may be on a busy machine, but never as late as the default of ten seconds.
    assert 0.35 <= (later["uptime_seconds"] - first["uptime_seconds"]) / beats < 10


def test_missing_command_is_said_at_once_and_tasks_wait_until_it_is_there(site: Site) -> None:
    (site.home / "bin").mkdir()
    site.drop("patient")
    settings = {"PROVIDER": "claude", "CLAUDE_COMMAND": f"{site.home}/bin/claude --verbose", "MAX_RETRIES": "0"}
    # A long interval: what the first heartbeat says was known at the start.
    worker = site.start(HEARTBEAT_INTERVAL="3600", **settings)
    beat = site.beat()
    assert beat["sequence"] == 1 and beat["status"] == "held"
    assert f"{site.home}/bin/claude" in beat["reason"] and "CLAUDE_COMMAND" in beat["reason"]
    assert worker.lines("provider.held")[0]["reason"] == "command_missing"
    assert worker.stop() == 0
    worker = site.start(**settings)
    site.pass_beats(2)
    assert site.pending() == ["patient"] and site.results() == site.dead_letters() == []
    assert (site.beat()["status"], site.beat()["queue_size"]) == ("held", 1)
    final = '{"type":"result","subtype":"success","is_error":false,"result":"here I am"}'
    site.script(f"cat > /dev/null; echo '{final}'", "bin/claude")
    result = site.result("patient")
    assert (result["status"], result["stdout"], result["attempts"]) == ("completed", "here I am", 1)
    site.beat_that(lambda beat: beat["status"] == "healthy", what="that is healthy again")
    assert len(worker.lines("provider.held")) == len(worker.lines("provider.resumed")) == 1


def test_open_breaker_burns_nothing_also_after_a_restart_until_its_time_has_come(site: Site) -> None:
    (site.home / "broken").touch()
    settings = {
        "AGENT_COMMAND": site.script(FRAGILE), "CIRCUIT_BREAKER_THRESHOLD": "3", "CIRCUIT_BREAKER_TIMEOUT": "3600",
        "MAX_RETRIES": "0", "MAX_CONCURRENT_TASKS": "1",
    }  # fmt: skip
    first = site.start(**settings)
    raw = {stem: site.drop(stem) for stem in ("t1", "t2", "t3", "t4", "t5", "t6")}
    for stem in ("t1", "t2", "t3"):
        assert site.result(stem)["status"] == "failed"
    beat = site.beat_that(lambda beat: beat["circuit_breaker_state"] == "open", what="with an open breaker")
    assert beat["status"] == "degraded" and "circuit breaker" in beat["reason"]
    site.pass_beats(4)
    waiting = {stem: raw[stem] for stem in ("t4", "t5", "t6")}
    assert {stem: (site.inbox() / f"{stem}.json").read_bytes() for stem in site.pending()} == waiting
    assert first.stop() == 0
    (site.home / "broken").unlink()
    file = site.root / "control" / "marie" / "breakers.json"
    stored = read(file)
    second = site.start(**settings)
    assert site.beat()["circuit_breaker_state"] == "open"
    site.pass_beats(4)
    assert second.stop() == 0
    assert len(site.noted()) == 3 and read(file) == stored, "the rest of its time, not a whole one"
    # As after an hour.
    stored["command"]["probe_at"] = rfc3339(parse_rfc3339(stored["command"]["probe_at"]) - 3600)
    file.write_text(json.dumps(stored))
    site.start(**settings)
    assert [site.result(stem)["status"] for stem in waiting] == ["completed"] * 3
    site.beat_that(lambda beat: beat["circuit_breaker_state"] == "closed", what="with a closed breaker")


def test_breaker_lets_one_probe_through_at_a_time_and_closes_after_one_that_works(site: Site) -> None:
    (site.home / "broken").touch()
    gated = f'echo "$WATCHER_TASK_ID began" >> "$SITE/began"; {GATE}; {FRAGILE}'
    worker = site.start(
        AGENT_COMMAND=site.script(gated), CIRCUIT_BREAKER_THRESHOLD="3", CIRCUIT_BREAKER_TIMEOUT="0.5",
        MAX_RETRIES="0", MAX_CONCURRENT_TASKS="2",
    )  # fmt: skip
    for number in (1, 2, 3):  # one at a time, so that none is claimed beside the third
        (site.home / f"go-t{number}").touch()
        site.drop(f"t{number}")
        assert site.result(f"t{number}")["status"] == "failed"
    for number in (4, 5, 6):
        site.drop(f"t{number}")

    def probed(count: int) -> None:
        wait_for(f"start number {count}", lambda: len(site.noted("began")) >= count)
        site.pass_beats(8)  # longer than CIRCUIT_BREAKER_TIMEOUT
        assert len(site.noted("began")) == count, "one probe, and nothing beside it"

    probed(4)
    (site.home / "go-t4").touch()
    assert site.result("t4")["status"] == "failed"
    probed(5)
    (site.home / "broken").unlink()
    for number in (5, 6):
        (site.home / f"go-t{number}").touch()
    assert [site.result(stem)["status"] for stem in ("t5", "t6")] == ["completed", "completed"]
    site.beat_that(lambda beat: beat["status"] == "healthy", what="that is healthy again")
    assert site.noted() == [f"t{number} 1" for number in (1, 2, 3, 4, 5, 6)]
    states = [line["state"] for line in worker.lines("breaker.moved")]
    assert states == ["open", "half_open", "open", "half_open", "closed"]


def test_usage_limit_holds_the_provider_until_its_time_over_a_restart_and_costs_no_attempt(site: Site) -> None:
    until = int(time.time()) + 3600
    final = '{"type":"result","subtype":"success","is_error":false,"result":"at last"}'
    site.script(
        f'cat > /dev/null; echo "$WATCHER_TASK_ID $WATCHER_ATTEMPT" >> "$SITE/notes"\n'
        f"if test ! -e $SITE/over; then echo 'Claude AI usage limit reached|{until}'; exit 1; fi\n"
        f"echo '{final}'",
        "claude",
    )
    settings = {"PROVIDER": "claude", "CLAUDE_COMMAND": f"{site.home}/claude", "MAX_RETRIES": "0"}
    hold = site.root / "control" / "holds" / "claude.json"
    first = site.start(MAX_CONCURRENT_TASKS="1", **settings)
    site.drop("t1")
    site.drop("t2")
    beat = site.beat_that(lambda beat: beat["status"] == "held", what="that says held")
    assert beat["held_until"] == rfc3339(until) and "usage_limit" in beat["reason"]
    # Words alone: the other task is asked as well, and meets the same.
    wait_for("both tasks to be back", lambda: len(site.noted()) == 2 and site.waiting() == ["t1", "t2"])
    stored = read(hold)
    assert stored["until"] == rfc3339(until) and sorted(site.noted()) == ["t1 1", "t2 1"]
    assert first.stop() == 0
    site.start(MAX_CONCURRENT_TASKS="1", **settings)
    assert site.beat()["held_until"] == rfc3339(until) and len(site.noted()) == 2
    # However slow this machine is, the end of the limit comes only now.
    (site.home / "over").touch()
    until = int(time.time()) + 2
    hold.with_name(".sooner").write_text(json.dumps({**stored, "until": rfc3339(until)}))
    hold.with_name(".sooner").rename(hold)
    for stem in ("t1", "t2"):
        result = site.result(stem)
        assert (result["status"], result["attempts"], result["stdout"]) == ("completed", 1, "at last")
        assert parse_rfc3339(result["started_at"]) >= until
    assert site.dead_letters() == [] and not hold.exists()


def test_hold_that_a_person_writes_is_obeyed_until_the_file_is_removed(site: Site) -> None:
    worker = site.start(CIRCUIT_BREAKER_TIMEOUT="3600")  # after which a hold without an end is tried
    holds = site.root / "control" / "holds"
    wait_for("the folder of the holds", holds.is_dir)
    (holds / "command.json").write_text(json.dumps({"reason": "maintenance", "detail": "back at noon", "until": None}))
    beat = site.beat_that(lambda beat: beat["status"] == "held", what="that says held")
    assert beat["reason"] == "command: maintenance: back at noon"
    site.drop("waits")
    site.pass_beats(3)
    assert site.pending() == ["waits"]
    (holds / "command.json").unlink()
    assert site.result("waits")["status"] == "completed"
    assert [line["provider"] for line in worker.lines("provider.resumed")] == ["command"]
