"""Real workers and a task that blames its account or the machine each time: it ends, and the others are not held up.

The agent is a program that only PROVIDERS_FILE describes: `words` in a description makes it print what looks like a
usage limit, `event` answer with the event of one, and so does every task while the file `$SITE/limited` is there.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.conftest import Process, Site, names, read
from tests.waiting import wait_for

AGENT = """
read -r prompt
echo "$WATCHER_WORKER $WATCHER_TASK_ID" >> "$SITE/notes"
case "$prompt" in
  *words*) echo "FAILED tests/test_limits.py: quota exceeded" >&2; exit 1;;
  *event*) echo '{"problem": {"code": "refused", "text": "401 Unauthorized"}}'; exit 1;;
esac
if [ -e "$SITE/limited" ]; then echo '{"problem": {"code": "quota", "text": "come back later"}}'; exit 1; fi
echo '{"part": "done", "event": "end"}'
"""
FILE = """
[providers.ours]
command = COMMAND
output = "stream-json"
[providers.ours.fields]
answer = "part"
final = "event=end"
error = "problem.text"
signs = { code = "problem.code" }
[[providers.ours.failures]]
class = "limit"
reason = "usage_limit"
signs = ["code:quota"]
[[providers.ours.failures]]
class = "auth"
reason = "not_authenticated"
signs = ["code:refused"]
[[providers.ours.failures]]
class = "limit"
reason = "usage_limit"
pattern = "quota exceeded"
"""
GOOD = [f"t{number}" for number in range(8)]


def serve(site: Site, *workers: str, **settings: Any) -> list[Process]:
    command = site.script(AGENT)
    file = site.home / "providers.toml"
    file.write_text(FILE.replace("COMMAND", f'"{command}"'))
    given = {"PROVIDER": "ours", "AGENT_COMMAND": None, "PROVIDERS_FILE": file, "MAX_CONCURRENT_TASKS": "2", **settings}
    return [site.start(worker, **given) for worker in workers]


def runs(site: Site, task: str) -> int:
    return site.noted().count(task)


def all_completed(site: Site, worker: str, tasks: list[str]) -> None:
    for task in tasks:
        result = site.result(task, worker)
        assert (result["status"], result["attempts"]) == ("completed", 1), result


def succeed_until_it_ends(site: Site) -> None:
    """One task after the other that succeeds, so that there is always one to ask."""
    for number in range(300):
        site.drop(f"more{number}")
        all_completed(site, "marie", [f"more{number}"])
        if "poison.json" in names(site.root / "results" / "marie"):
            return


def hold_files(site: Site) -> list[str]:
    return names(site.root / "control" / "holds")


def test_task_that_prints_the_words_of_a_limit_holds_nobody_up_and_ends(site: Site) -> None:
    """With the default pause of a minute between probes: nobody waits for even one."""
    site.drop("poison", description="words")
    for task in GOOD:
        site.drop(task)
    serve(site, "marie")
    all_completed(site, "marie", GOOD)
    succeed_until_it_ends(site)
    result = site.result("poison")
    letter = site.dead_letter("poison")
    assert letter["dlq_reason"] == result["reason"] == "given_back_too_often"
    assert "usage_limit" in result["detail"] and "quota exceeded" in result["detail"], result["detail"]
    assert runs(site, "marie poison") <= 4


def test_task_that_always_meets_a_refused_login_ends_when_others_succeed_right_after_it(site: Site) -> None:
    site.drop("poison", description="event")
    serve(site, "marie", CIRCUIT_BREAKER_TIMEOUT="0.3", MAX_CONCURRENT_TASKS="1")
    succeed_until_it_ends(site)
    result = site.result("poison")
    assert result["reason"] == "given_back_too_often" and "not_authenticated" in result["detail"]
    assert "another task succeeded" in result["detail"] and runs(site, "marie poison") <= 5


def test_task_of_another_worker_finds_out_whether_the_account_is_held_rightly(site: Site) -> None:
    serve(site, "marie", "anga")
    site.drop("poison", description="words")
    wait_for("the hold", lambda: hold_files(site) == ["ours.json"])
    hold = read(site.root / "control" / "holds" / "ours.json")
    assert hold["doubted"] is True and hold["task"] == "marie/poison" and hold["pause_seconds"] == 60
    site.drop("t", "anga")
    all_completed(site, "anga", ["t"])
    wait_for("its second run", lambda: runs(site, "marie poison") == 2)
    wait_for("its retry", lambda: list(site.inbox().glob(".retry/poison~1-0-*")))


def test_account_that_two_tasks_find_limited_is_held_and_costs_no_task_an_attempt(site: Site) -> None:
    (site.home / "limited").touch()
    serve(site, "marie", "anga", CIRCUIT_BREAKER_TIMEOUT="0.2")
    tasks = [f"t{number}" for number in range(20)]
    for task in tasks:
        site.drop(task)
        site.drop(task, "anga")
    wait_for("some probes", lambda: len(site.noted()) >= 8)
    pauses = read(site.root / "control" / "holds" / "ours.json")["pause_seconds"]
    assert pauses > 0.4, "each probe that is refused doubles the pause"
    (site.home / "limited").unlink()
    wasted = len(site.noted())
    for worker in ("marie", "anga"):
        all_completed(site, worker, tasks)
    assert len(site.noted()) <= wasted + 2 * len(tasks) + 2


@pytest.mark.parametrize("kind", ["words", "event"])
def test_task_whose_worker_is_killed_each_time_does_not_run_for_ever(site: Site, kind: str) -> None:
    site.drop("poison", description=kind)
    for life in range(12):
        for task in (f"a{life}", f"b{life}"):
            site.drop(task)
        [process] = serve(site, "marie", CIRCUIT_BREAKER_TIMEOUT="0.3", MAX_CONCURRENT_TASKS="1")
        all_completed(site, "marie", [f"a{life}", f"b{life}"])
        process.kill()
        if "poison.json" in names(site.root / "results" / "marie"):
            break
    serve(site, "marie")
    assert site.result("poison")["reason"] in ("given_back_too_often", "worker_died")
    assert runs(site, "marie poison") <= 8


def test_strict_order_is_kept_through_a_limit(site: Site) -> None:
    (site.home / "limited").touch()
    for task in GOOD:
        site.drop(task)
    serve(site, "marie", FIFO_MODE="strict", CIRCUIT_BREAKER_TIMEOUT="0.1")
    wait_for("some probes", lambda: len(site.noted()) >= 4)
    assert set(site.noted()) == {"marie t0"}
    (site.home / "limited").unlink()
    all_completed(site, "marie", GOOD)
    order = list(dict.fromkeys(site.noted()))
    assert order == [f"marie {task}" for task in GOOD]
