"""What the heartbeat says, and what a worker does while its provider is held or its breaker is open."""

from __future__ import annotations

import json
import time

from tests.acceptance.conftest import Site, read, wait_for
from tests.schemacheck import fits
from watcher.clock import parse_rfc3339, rfc3339
from watcher.formats.schemas import all_schemas

HEARTBEAT_FIELDS = {
    "worker", "timestamp", "uptime_seconds", "queue_size", "active_tasks", "circuit_breaker_state", "stats", "status",
    "reason", "incarnation", "instance", "pid", "host", "sequence", "heartbeat_interval_seconds", "held_until",
    "metrics_port", "wake", "oldest_pending_age_seconds", "active",
}  # fmt: skip
#: Works unless a file `broken` is there; notes each run.
FRAGILE = 'echo "$WATCHER_TASK_ID $WATCHER_ATTEMPT" >> "$SITE/notes"; test ! -e "$SITE/broken"'


def test_heartbeat_has_every_documented_field_and_tells_what_runs(site: Site) -> None:
    worker = site.start(AGENT_COMMAND=site.script("echo begun; while test ! -e $SITE/go; do sleep 0.05; done"))
    site.drop("running", agent_id="x")
    site.drop("behind", agent_id="x")
    beat = site.beat_that(lambda b: b["queue_size"] == 1 and b["active"][0]["last_output_at"], what="of a running task")
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
    assert 0.35 <= (later["uptime_seconds"] - first["uptime_seconds"]) / beats < 0.8


def test_missing_command_is_said_at_once_and_tasks_wait_until_it_is_there(site: Site) -> None:
    (site.home / "bin").mkdir()
    site.drop("patient")
    # Long intervals: what the first heartbeat says was known at the start.
    worker = site.start(
        PROVIDER="claude", CLAUDE_COMMAND=f"{site.home}/bin/claude --verbose", HEARTBEAT_INTERVAL="1", MAX_RETRIES="0"
    )
    beat = site.beat()
    assert beat["sequence"] == 1 and beat["status"] == "held"
    assert f"{site.home}/bin/claude" in beat["reason"] and "CLAUDE_COMMAND" in beat["reason"]
    assert worker.lines("provider.held")[0]["reason"] == "command_missing"
    site.pass_beats(2)
    assert site.pending() == ["patient"] and site.results() == site.dead_letters() == []
    assert site.beat()["queue_size"] == 1
    final = '{"type":"result","subtype":"success","is_error":false,"result":"here I am"}'
    site.script(f"cat > /dev/null; echo '{final}'", "bin/claude")
    result = site.result("patient")
    assert (result["status"], result["stdout"], result["attempts"]) == ("completed", "here I am", 1)
    site.beat_that(lambda beat: beat["status"] == "healthy", what="that is healthy again")
    assert len(worker.lines("provider.held")) == len(worker.lines("provider.resumed")) == 1


def test_breaker_opens_burns_nothing_lets_one_probe_through_and_closes(site: Site) -> None:
    (site.home / "broken").touch()
    worker = site.start(
        AGENT_COMMAND=site.script(FRAGILE), CIRCUIT_BREAKER_THRESHOLD="3", CIRCUIT_BREAKER_TIMEOUT="1",
        MAX_RETRIES="0", MAX_CONCURRENT_TASKS="1",
    )  # fmt: skip
    raw = {stem: site.drop(stem) for stem in ("t1", "t2", "t3", "t4", "t5", "t6")}
    beat = site.beat_that(lambda beat: beat["circuit_breaker_state"] == "open", what="with an open breaker")
    assert beat["status"] == "degraded" and "circuit breaker" in beat["reason"]
    assert site.results() == ["t1", "t2", "t3"] and len(site.noted()) == 3
    assert {stem: (site.inbox() / f"{stem}.json").read_bytes() for stem in site.pending()} == {
        stem: raw[stem] for stem in ("t4", "t5", "t6")
    }
    wait_for("the probe", lambda: len(site.noted()) >= 4)
    site.beat_that(lambda beat: beat["circuit_breaker_state"] == "open", what="with a breaker that opened again")
    site.pass_beats(4)
    assert site.noted() == ["t1 1", "t2 1", "t3 1", "t4 1"], "one probe, and nothing after it"
    (site.home / "broken").unlink()
    assert [site.result(stem)["status"] for stem in ("t5", "t6")] == ["completed", "completed"]
    site.beat_that(lambda beat: beat["status"] == "healthy", what="that is healthy again")
    states = [line["state"] for line in worker.lines("breaker.moved")]
    assert states == ["open", "half_open", "open", "half_open", "closed"]


def test_open_breaker_survives_a_restart(site: Site) -> None:
    (site.home / "broken").touch()
    settings = {
        "AGENT_COMMAND": site.script(FRAGILE), "CIRCUIT_BREAKER_THRESHOLD": "1", "MAX_RETRIES": "0",
        "MAX_CONCURRENT_TASKS": "1",
    }  # fmt: skip
    first = site.start(CIRCUIT_BREAKER_TIMEOUT="2.5", **settings)
    site.drop("t1")
    site.result("t1")
    opened = time.monotonic()
    (site.home / "broken").unlink()
    assert first.stop() == 0
    site.drop("t2")
    site.start(CIRCUIT_BREAKER_TIMEOUT="2.5", **settings)
    assert site.beat()["circuit_breaker_state"] == "open" and site.noted() == ["t1 1"]
    assert site.result("t2")["status"] == "completed"
    assert 2.2 < time.monotonic() - opened < 5, "the rest of its time, not a whole one"
    site.beat_that(lambda beat: beat["circuit_breaker_state"] == "closed", what="with a closed breaker")


def test_usage_limit_holds_the_provider_until_its_time_over_a_restart_and_costs_no_attempt(site: Site) -> None:
    until = int(time.time()) + 5
    final = '{"type":"result","subtype":"success","is_error":false,"result":"at last"}'
    site.script(
        f'cat > /dev/null; echo "$WATCHER_TASK_ID $WATCHER_ATTEMPT" >> "$SITE/notes"\n'
        f"if test $(date +%s) -lt {until}; then echo 'Claude AI usage limit reached|{until}'; exit 1; fi\n"
        f"echo '{final}'",
        "claude",
    )
    settings = {"PROVIDER": "claude", "CLAUDE_COMMAND": f"{site.home}/claude", "MAX_RETRIES": "0"}
    first = site.start(MAX_CONCURRENT_TASKS="1", **settings)
    site.drop("t1")
    site.drop("t2")
    beat = site.beat_that(lambda beat: beat["status"] == "held", what="that says held")
    assert beat["held_until"] == rfc3339(until) and "usage_limit" in beat["reason"]
    assert read(site.root / "control" / "holds" / "claude.json")["until"] == rfc3339(until)
    assert site.pending() == ["t1", "t2"] and len(site.noted()) == 1
    assert first.stop() == 0
    site.start(MAX_CONCURRENT_TASKS="1", **settings)
    assert site.beat()["held_until"] == rfc3339(until) and len(site.noted()) == 1
    for stem in ("t1", "t2"):
        result = site.result(stem)
        assert (result["status"], result["attempts"], result["stdout"]) == ("completed", 1, "at last")
    assert site.dead_letters() == [] and not (site.root / "control" / "holds" / "claude.json").exists()


def test_hold_that_a_person_writes_is_obeyed_until_the_file_is_removed(site: Site) -> None:
    worker = site.start()
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
