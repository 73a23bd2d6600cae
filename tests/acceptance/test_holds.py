"""A usage limit met by several workers: who waits, who probes, what it costs. The agent is a script that answers as
claude does, limited until the time that a file says."""

from __future__ import annotations

import os
import signal
import time

from tests.acceptance.conftest import Process, Site, names, read
from tests.acceptance.test_trouble import switches
from tests.waiting import wait_for
from watcher.clock import parse_rfc3339
from watcher.store.holds import hold_provider, lift_hold

#: 50 tasks on a loaded machine.
LONG_SECONDS = 90.0

AGENT = """
until=$(cat "$SITE/until" 2>/dev/null || echo 0)
now=$(date +%s)
if [ "$now" -lt "$until" ]; then
  echo "limited $WATCHER_WORKER $WATCHER_TASK_ID $now" >> "$SITE/notes"
  echo '{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":'$until'}}'
  echo '{"type":"result","subtype":"success","is_error":true,"result":"You have hit your limit","session_id":"s"}'
  exit 1
fi
echo "began $WATCHER_WORKER $WATCHER_TASK_ID $now" >> "$SITE/notes"
while [ -e "$SITE/slow" ]; do sleep 0.05; done
echo "worked $WATCHER_WORKER $WATCHER_TASK_ID" >> "$SITE/notes"
echo '{"type":"result","subtype":"success","is_error":false,"result":"done","session_id":"s","total_cost_usd":0}'
"""


def limit(site: Site, seconds: float) -> int:
    """From now on the agent is limited, for so long (whole seconds of the clock); returns when it ends."""
    until = int(time.time() + seconds) + 1
    (site.home / ".until.new").write_text(str(until))
    (site.home / ".until.new").rename(site.home / "until")
    return until


def serve(site: Site, *workers: str, **settings: str) -> list[Process]:
    """These workers, with one task at a time each."""
    agent = site.script(AGENT)
    given = {
        "PROVIDER": "claude", "CLAUDE_COMMAND": agent, "AGENT_COMMAND": None, "MAX_CONCURRENT_TASKS": "1",
        "CIRCUIT_BREAKER_TIMEOUT": "1", **settings,
    }  # fmt: skip
    return [site.start(worker, **given) for worker in workers]


def meet_limit(site: Site, tasks: int) -> None:
    """So many tasks for marie and anga, who are held before one of them may work; what works then is slow."""
    limit(site, 12)
    for number in range(tasks):
        for worker in ("marie", "anga"):
            site.drop(f"t{number}", worker)
    wait_for("a hold", lambda: hold_files(site) == ["claude.json"])
    for worker in ("marie", "anga"):
        site.beat_that(lambda beat: beat["status"] == "held", worker, "that says held")
    assert not words(site, "began")
    (site.home / "slow").touch()


def words(site: Site, kind: str) -> list[list[str]]:
    return [line.split() for line in site.noted() if line.split()[0] == kind]


def hold_files(site: Site) -> list[str]:
    return names(site.root / "control" / "holds")


def all_results(site: Site, *workers: str) -> list[dict[str, object]]:
    return [
        read(site.root / "results" / worker / f"{stem}.json") for worker in workers for stem in site.results(worker)
    ]


def test_two_workers_meet_one_limit_and_waste_one_start_each_and_probe_once_and_do_everything(site: Site) -> None:
    serve(site, "marie", "anga")
    until = limit(site, 12)
    for number in range(25):
        for worker in ("marie", "anga"):
            site.drop(f"t{number}", worker)
    wait_for("a hold", lambda: hold_files(site) == ["claude.json"])
    (site.home / "slow").touch()  # so that the probe is seen alone
    for worker in ("marie", "anga"):
        beat = site.beat_that(lambda beat: beat["status"] == "held", worker, "that says held")
        assert parse_rfc3339(beat["held_until"]) == until and "usage_limit" in beat["reason"]
    wait_for("the probe", lambda: words(site, "began"), LONG_SECONDS)
    for worker in ("marie", "anga"):
        site.pass_beats(5, worker)
    assert len(words(site, "began")) == 1, "one probe first, over all workers"
    assert hold_files(site) == ["claude.json"]
    (site.home / "slow").unlink()
    wait_for("50 results", lambda: len(site.results("marie")) + len(site.results("anga")) == 50, LONG_SECONDS)
    wasted = [line[1] for line in words(site, "limited")]
    assert len(wasted) == len(set(wasted)) <= 2, f"at most one wasted start a worker: {wasted}"
    results = all_results(site, "marie", "anga")
    assert {(r["status"], r["attempts"], r["retry_count"]) for r in results} == {("completed", 1, 0)}
    assert len(words(site, "worked")) == 50 and hold_files(site) == []
    assert not site.dead_letters("marie") and not site.dead_letters("anga")


def test_hold_of_one_worker_is_seen_by_another_before_its_next_start(site: Site) -> None:
    """Its heartbeat is an hour away: the folder's event, or the look before the claim, must do."""
    limit(site, 600)
    serve(site, "marie")
    (anga,) = serve(site, "anga", HEARTBEAT_INTERVAL="3600", SCAN_INTERVAL="3600")
    site.drop("first")
    wait_for("the hold", lambda: hold_files(site))
    for number in range(5):
        site.drop(f"t{number}", "anga")
    site.pass_beats(5)
    assert [line[1] for line in words(site, "limited")] == ["marie"]
    assert len(site.pending("anga")) == 5 and not words(site, "began")
    assert not anga.lines("task.released"), "nothing was claimed, so nothing had to be given back"
    (site.home / "until").unlink()
    assert lift_hold(site.root / "control", "claude") is True
    wait_for("anga's work", lambda: len(site.results("anga")) == 5, LONG_SECONDS)
    site.result("first")


def test_worker_that_is_killed_while_it_probes_leaves_the_probe_to_another(site: Site) -> None:
    processes = dict(zip(("marie", "anga"), serve(site, "marie", "anga"), strict=True))
    meet_limit(site, 5)
    wait_for("the probe", lambda: words(site, "began"), LONG_SECONDS)
    prober = words(site, "began")[0][1]
    other = "anga" if prober == "marie" else "marie"
    processes[prober].kill()
    wait_for("another probe", lambda: [line for line in words(site, "began") if line[1] == other], LONG_SECONDS)
    site.pass_beats(5, other)
    assert len(words(site, "began")) == 2
    (site.home / "slow").unlink()
    wait_for("the other's results", lambda: len(site.results(other)) == 5, LONG_SECONDS)
    serve(site, prober)
    wait_for("all results", lambda: len(site.results(prober)) == 5, LONG_SECONDS)
    results = all_results(site, "marie", "anga")
    assert {r["status"] for r in results} == {"completed"} and {r["retry_count"] for r in results} == {0}


def test_worker_that_is_frozen_while_it_probes_leaves_the_probe_to_another(site: Site) -> None:
    processes = dict(zip(("marie", "anga"), serve(site, "marie", "anga"), strict=True))
    meet_limit(site, 1)
    wait_for("the probe", lambda: words(site, "began"), LONG_SECONDS)
    prober = words(site, "began")[0][1]
    other = "anga" if prober == "marie" else "marie"
    processes[prober].signal(signal.SIGSTOP)
    try:
        wait_for("another probe", lambda: [line for line in words(site, "began") if line[1] == other], LONG_SECONDS)
        (site.home / "slow").unlink()
        site.result("t0", other)
    finally:
        processes[prober].signal(signal.SIGCONT)
    assert site.result("t0", prober)["attempts"] == 1


def test_worker_sleeps_while_another_one_probes(site: Site) -> None:
    found = serve(site, "marie", "anga", HEARTBEAT_INTERVAL="0.3", SCAN_INTERVAL="1")
    processes = dict(zip(("marie", "anga"), found, strict=True))
    meet_limit(site, 1)
    wait_for("the probe", lambda: words(site, "began"), LONG_SECONDS)
    other = "anga" if words(site, "began")[0][1] == "marie" else "marie"
    before = switches(processes[other])
    site.pass_beats(4, other)
    assert switches(processes[other]) - before < 250, "a loop that turns every millisecond sleeps 1000 times and more"
    (site.home / "slow").unlink()
    for worker in ("marie", "anga"):
        site.result("t0", worker)


def test_limit_met_by_several_at_once_wastes_what_was_running_and_nothing_more(site: Site) -> None:
    limit(site, 6)
    for number in range(20):
        for worker in ("marie", "anga", "fabien"):
            site.drop(f"t{number}", worker)
    serve(site, "marie", "anga", "fabien", MAX_CONCURRENT_TASKS="3")
    wait_for("60 results", lambda: sum(len(site.results(w)) for w in ("marie", "anga", "fabien")) == 60, LONG_SECONDS)
    wasted = [line[1] for line in words(site, "limited")]
    assert all(wasted.count(worker) <= 3 for worker in wasted), wasted
    assert {r["attempts"] for r in all_results(site, "marie", "anga", "fabien")} == {1}


def test_limit_of_one_account_holds_no_other(site: Site) -> None:
    limit(site, 600)
    serve(site, "marie", PROVIDER_ACCOUNT="team a")
    site.drop("t")
    held = wait_for("the hold", lambda: hold_files(site))[0]
    assert held.startswith("claude@team_a-") and read(site.root / "control" / "holds" / held)["reason"] == "usage_limit"
    (site.home / "until").unlink()
    serve(site, "anga", PROVIDER_ACCOUNT="b")
    site.drop("t", "anga")
    assert site.result("t", "anga")["status"] == "completed"
    assert site.waiting() == ["t"]


def test_hold_by_hand_stops_starts_and_waits_for_the_word(site: Site) -> None:
    serve(site, "marie")
    hold_provider(site.root / "control", "claude", detail="maintenance", now=time.time())
    site.drop("t")
    beat = site.beat_that(lambda beat: beat["status"] == "held", what="that says held")
    assert "operator: maintenance" in beat["reason"] and beat["held_until"] is None
    site.pass_beats(15)  # the breaker's pace of a second has passed
    assert site.pending() == ["t"] and not site.noted()
    os.unlink(site.root / "control" / "holds" / "claude.json")
    assert site.result("t")["attempts"] == 1
    site.beat_that(lambda beat: beat["status"] == "healthy", what="that is healthy again")
