"""Money: what stops before it starts, while it runs, between attempts, for a day, and over kill -9. The agent is a
script that answers as claude does and says what it has cost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import Json, Process, Site, read
from tests.waiting import wait_for
from watcher.clock import parse_rfc3339
from watcher.store.spending import raise_daily_budget

#: `cost` is what an attempt costs; a task whose id begins with `bad` fails. With `--max-budget-usd N` below that it
#: stops at N, as claude does.
AGENT = """
cost=$(cat "$SITE/cost" 2>/dev/null || echo 0.5)
echo "$WATCHER_TASK_ID $WATCHER_ATTEMPT $*" >> "$SITE/notes"
while [ $# -gt 1 ]; do [ "$1" = --max-budget-usd ] && most=$2; shift; done
result() { echo '{"type":"result","subtype":"'$1'","is_error":'$2',"result":"x","total_cost_usd":'$3'}'; }
if [ -n "$most" ] && [ "$(echo "$most $cost" | awk '{print ($1 < $2)}')" = 1 ]; then
  result error_max_budget_usd true "$most"; exit 1
fi
case "$WATCHER_TASK_ID" in bad*) result error_during_execution true "$cost"; exit 1;; esac
result success false "$cost"
"""


def serve(site: Site, *, agent: str = AGENT, worker: str = "marie", **settings: Any) -> Process:
    given: Json = {
        "PROVIDER": "claude", "CLAUDE_COMMAND": site.script(agent), "AGENT_COMMAND": None,
        "MAX_CONCURRENT_TASKS": "1", "CIRCUIT_BREAKER_THRESHOLD": "100", **settings,
    }  # fmt: skip
    return site.start(worker, **given)


def starts(site: Site, stem: str) -> int:
    return sum(line.split()[0] == stem for line in site.noted())


def spend_file(site: Site) -> Path:
    return site.root / "control" / "marie" / f"spend-{time.strftime('%Y%m%d', time.gmtime())}.jsonl"


def away_from_midnight() -> None:
    """A day that ends in the middle of a test would prove nothing."""
    left = 86_400 - time.time() % 86_400
    if left < 120:
        time.sleep(left + 1)  # the worker lives by the real clock: a day that must not end can only be waited for


def test_retries_of_a_task_share_its_budget_and_then_it_is_a_dead_letter(site: Site) -> None:
    serve(site, MAX_COST_PER_TASK="1.2", MAX_RETRIES="50")
    site.drop("bad")
    result = site.result("bad")
    assert (result["status"], result["reason"]) == ("failed", "budget_exceeded")
    assert "1.2 USD" in result["detail"] and "MAX_COST_PER_TASK" in result["detail"]
    assert starts(site, "bad") == 3, "0.5 + 0.5, and of the third only what was left"
    assert "--max-budget-usd 0.2" in site.noted()[2]
    assert site.dead_letter("bad")["dlq_reason"] == "budget_exceeded"


def test_budget_of_a_task_survives_kill_9(site: Site) -> None:
    away_from_midnight()
    worker = serve(site, MAX_COST_PER_TASK="0.9", MAX_RETRIES="50", INITIAL_RETRY_DELAY="3600", MAX_RETRY_DELAY="3600")
    site.drop("bad")
    wait_for("the first attempt's cost", lambda: spend_file(site).exists() and "0.5" in spend_file(site).read_text())
    wait_for("its retry", lambda: list((site.inbox() / ".retry").glob("*.json")))
    worker.kill()
    (found,) = (site.inbox() / ".retry").glob("*.json")
    found.rename(found.with_name(f"bad~1-0-{int(time.time() * 1000)}.json"))  # an hour later
    serve(site, MAX_COST_PER_TASK="0.9", MAX_RETRIES="50")
    assert site.result("bad")["reason"] == "budget_exceeded"
    assert starts(site, "bad") == 2 and "--max-budget-usd 0.4" in site.noted()[1]


def test_cheap_tasks_are_not_stopped_and_their_cost_is_in_the_books(site: Site) -> None:
    away_from_midnight()
    serve(site, MAX_COST_PER_TASK="1", DAILY_BUDGET="100", ENABLE_METRICS="true", METRICS_PORT="0")
    for number in range(3):
        site.drop(f"t{number}")
    for number in range(3):
        result = site.result(f"t{number}")
        assert (result["status"], result["usage"]["cost_usd"]) == ("completed", 0.5)
    port = site.beat()["metrics_port"]
    metrics = scrape(port)
    assert metrics['watcher_spent_today_usd{worker="marie"}'] == 1.5
    assert metrics['watcher_daily_budget_usd{worker="marie"}'] == 100
    assert metrics['watcher_over_daily_budget{worker="marie"}'] == 0
    assert metrics['watcher_spent_usd_total{provider="claude",worker="marie"}'] == 1.5


def test_spent_day_holds_the_worker_and_burns_nothing_until_it_is_raised(site: Site) -> None:
    away_from_midnight()
    worker = serve(site, DAILY_BUDGET="1")
    for number in range(5):
        site.drop(f"t{number}")
    beat = site.beat_that(lambda beat: beat["status"] == "held" and beat["queue_size"] == 3, what="held with three")
    assert beat["reason"].startswith("daily_budget: 1 of 1 USD")
    assert parse_rfc3339(beat["held_until"]) % 86_400 == 0 < parse_rfc3339(beat["held_until"]) - time.time() < 86_400
    wait_for("both results", lambda: len(site.results()) == 2)
    site.pass_beats(5)
    assert len(site.noted()) == 2 and len(site.results()) == 2 and site.dead_letters() == []
    worker.kill()
    serve(site, DAILY_BUDGET="1")
    site.pass_beats(5)
    assert len(site.noted()) == 2, "kill -9 gives no new budget"
    raise_daily_budget(site.root / "control", "marie", 0.5, time.time())
    wait_for("one more", lambda: len(site.results()) == 3)
    site.beat_that(lambda beat: beat["status"] == "held" and "1.5 of 1.5" in beat["reason"], what="held again")
    site.processes[-1].stop()
    serve(site, DAILY_BUDGET="10")
    wait_for("the rest", lambda: len(site.results()) == 5)
    assert {site.result(f"t{n}")["attempts"] for n in range(5)} == {1}


def test_task_that_meets_the_end_of_the_days_money_goes_back_untouched(site: Site) -> None:
    away_from_midnight()
    serve(site, DAILY_BUDGET="0.8")
    for name in ("a", "b"):
        site.drop(name)
    beat = site.beat_that(lambda beat: beat["status"] == "held", what="that says held")
    assert "0.8 of 0.8" in beat["reason"]
    site.result("a")
    assert site.pending() == ["b"] and site.results() == ["a"] and "--max-budget-usd 0.3" in site.noted()[1]
    raise_daily_budget(site.root / "control", "marie", 5, time.time())
    assert site.result("b")["retry_count"] == 0


def test_running_task_is_ended_when_its_events_tell_that_it_costs_too_much(site: Site) -> None:
    """A CLI that cannot be told a limit, but says what each step has cost."""
    agent = """
    echo '{"type":"step_finish","part":{"type":"step-finish","cost":0.4}}'
    echo '{"type":"step_finish","part":{"type":"step-finish","cost":0.7}}'
    exec sleep 600
    """
    serve(site, agent=agent, MAX_COST_PER_TASK="1")
    site.drop("t")
    result = site.result("t")
    assert (result["status"], result["reason"]) == ("failed", "budget_exceeded") and "1.1 USD" in result["detail"]
    assert site.command_pids() == []


def scrape(port: int) -> dict[str, float]:
    """The metrics of a worker, by name and labels."""
    import urllib.request

    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20).read().decode()
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_books_that_cannot_be_read_stop_nothing(site: Site) -> None:
    away_from_midnight()
    spend_file(site).parent.mkdir(parents=True)
    spend_file(site).write_bytes(b'\xff\n{"cost_usd": "x"}\n[1]\n{"task_id": 1, "cost_usd": 1}\n{"torn')
    serve(site, DAILY_BUDGET="1.2")
    for number in range(2):
        site.drop(f"t{number}")
    assert site.result("t0")["status"] == site.result("t1")["status"] == "completed"
    assert read(site.root / "heartbeats" / "marie.json")["status"] == "healthy"


CODEX = """
echo "$WATCHER_TASK_ID $WATCHER_ATTEMPT $*" >> "$SITE/notes"
echo '{"type":"turn.started"}'
echo '{"type":"item.completed","item":{"type":"agent_message","text":"x"}}'
echo '{"type":"turn.completed","usage":{"input_tokens":300,"output_tokens":100}}'
case "$WATCHER_TASK_ID" in bad*) exit 1;; long*) sleep 600;; esac
"""


def test_tokens_bound_a_provider_that_tells_no_cost_between_attempts_and_while_it_runs(site: Site) -> None:
    settings = {"PROVIDER": "codex", "CODEX_COMMAND": site.script(CODEX, "codex"), "MAX_RETRIES": "50"}
    worker = serve(site, MAX_TOKENS_PER_TASK="1000", HEARTBEAT_INTERVAL="0.2", **settings)
    site.drop("bad")
    result = site.result("bad")
    assert (result["status"], result["reason"]) == ("failed", "budget_exceeded")
    assert "1200 tokens" in result["detail"] and "MAX_TOKENS_PER_TASK" in result["detail"]
    assert starts(site, "bad") == 3
    assert worker.stop() == 0
    serve(site, MAX_TOKENS_PER_TASK="400", HEARTBEAT_INTERVAL="0.2", **settings)
    site.drop("long")
    result = site.result("long")
    assert (result["reason"], starts(site, "long")) == ("budget_exceeded", 1)


def test_budget_that_cannot_bound_its_provider_says_so_at_the_start_and_in_the_heartbeat(site: Site) -> None:
    settings = {"PROVIDER": "codex", "CODEX_COMMAND": site.script(CODEX, "codex")}
    worker = serve(site, MAX_COST_PER_TASK="1", **settings)
    beat = site.beat_that(lambda beat: beat["status"] == "healthy", what="that is healthy")
    assert beat["reason"].startswith("MAX_COST_PER_TASK cannot bound codex")
    told = {line["provider"]: line["detail"] for line in worker.lines("budget.unbound")}
    assert "MAX_TOKENS_PER_TASK would" in told["codex"] and "claude" not in told
