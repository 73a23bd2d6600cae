"""In which order tasks run, and what they wait for, over real processes."""

from __future__ import annotations

import time

import pytest

from tests.acceptance.conftest import Site
from tests.waiting import wait_for

#: Notes its start and its end, and ends only when as many tasks as its prompt says have started.
MEETING = """
echo "start $WATCHER_TASK_ID" >> "$SITE/notes"
need=$(cat); patience=2000
while test "$(grep -c start "$SITE/notes")" -lt "$need" && test $patience -gt 0; do
  sleep 0.05; patience=$((patience - 1))
done
echo "end $WATCHER_TASK_ID" >> "$SITE/notes"
"""


def overlapping(notes: list[str]) -> set[frozenset[str]]:
    """The pairs of tasks that ran at the same time."""
    running: set[str] = set()
    pairs: set[frozenset[str]] = set()
    for word, name in (line.split() for line in notes):
        if word == "start":
            pairs |= {frozenset((name, other)) for other in running}
            running.add(name)
        else:
            running.discard(name)
    return pairs


def starts(site: Site) -> list[str]:
    return [line.split()[1] for line in site.noted() if line.startswith("start ")]


def test_urgent_tasks_go_first_and_equal_ones_in_the_order_in_which_they_came(site: Site) -> None:
    note = 'echo "start $WATCHER_TASK_ID" >> "$SITE/notes"; while test ! -e "$SITE/go"; do sleep 0.02; done'
    site.start(AGENT_COMMAND=site.script(note), MAX_CONCURRENT_TASKS="1", QUEUE_SIZE="0")
    site.drop("blocker", priority="low")
    wait_for("the first task to run", lambda: starts(site))
    priorities = {"low": "low", "z-first": None, "a-second": "normal", "number": 10, "high": "high", "now": "critical"}
    for stem, priority in priorities.items():
        site.drop(stem, priority=priority)
    site.beat_that(lambda beat: beat["queue_size"] == len(priorities), what="that knows all tasks")
    (site.home / "go").touch()
    for stem in priorities:
        site.result(stem)
    assert starts(site) == ["blocker", "now", "high", "number", "z-first", "a-second", "low"]


def test_task_does_not_start_before_its_time(site: Site) -> None:
    """Nothing but its time starts it: no scan, no event."""
    site.start(AGENT_COMMAND=site.script("date +%s.%N"), SCAN_INTERVAL="3600", HEARTBEAT_INTERVAL="3600")
    due = time.time() + 0.8
    site.drop("later", not_before=due)
    site.drop("much-later", not_before=due + 3600)
    site.drop("now")
    assert site.result("now")["status"] == "completed"
    assert due <= float(site.result("later")["stdout"])
    assert site.pending() == ["much-later"]


@pytest.mark.parametrize(
    ("mode", "tasks", "together"),
    [
        ("strict", {"x1": "1", "x2": "1", "y1": "1", "free": "1"}, set()),
        ("per_agent", {"x1": "3", "x2": "1", "y1": "3", "free": "3"}, {("x1", "y1"), ("x1", "free"), ("y1", "free")}),
        ("relaxed", {"x1": "4", "x2": "4", "y1": "4", "free": "4"}, None),
    ],
)
def test_fifo_mode_says_what_may_run_at_the_same_time(
    site: Site, mode: str, tasks: dict[str, str], together: set[tuple[str, str]] | None
) -> None:
    for stem, need in tasks.items():
        agent = None if stem == "free" else stem[0]
        site.drop(stem, agent_id=agent, description=need)
    site.start("marie", "--fifo-mode", mode, AGENT_COMMAND=site.script(MEETING), MAX_CONCURRENT_TASKS="4")
    for stem in tasks:
        assert site.result(stem)["status"] == "completed"
    notes = site.noted()
    pairs = overlapping(notes)
    if together is None:
        assert len(pairs) == 6, "all four at once"
        return
    # x2 may also meet those that have not noticed yet that all are there; what counts is who must and who must not.
    assert pairs >= {frozenset(pair) for pair in together} and frozenset(("x1", "x2")) not in pairs
    assert notes.index("end x1") < notes.index("start x2")
    if mode == "strict":
        assert pairs == set()
        assert starts(site) == ["x1", "x2", "y1", "free"]


def test_failing_task_of_an_agent_holds_back_those_behind_it_until_its_retries_are_over(site: Site) -> None:
    note = 'echo "start $WATCHER_TASK_ID" >> "$SITE/notes"; test "$WATCHER_TASK_ID" != x1'
    site.drop("x1", agent_id="x", max_retries=2)
    site.drop("x2", agent_id="x")
    site.start(AGENT_COMMAND=site.script(note))
    assert site.result("x2")["status"] == "completed"
    assert starts(site) == ["x1", "x1", "x1", "x2"]


def test_task_waits_for_results_of_two_workers_and_gets_their_words(site: Site) -> None:
    """Submitted the wrong way round, and one worker comes last."""
    site.drop(
        "sum", dependencies=["anga/part", "own"],
        description="{{anga/part.stdout}} and {{own.stdout}} and {{anga/part.stdout}} and {{else.stdout}}",
    )  # fmt: skip
    site.start("marie")
    site.drop("own", description="{{anga/part.stdout}}")
    assert site.result("own")["stdout"] == "{{anga/part.stdout}}", "it declares no dependency"
    site.drop("part", "anga", description="PART of {{marie/own.stdout}}", dependencies=["marie/own"])
    site.pass_beats(3)
    assert site.pending() == ["sum"] and site.beat()["queue_size"] == 1
    site.start("anga")
    own = "{{anga/part.stdout}}"
    assert site.result("part", "anga")["stdout"] == f"PART of {own}"
    assert site.result("sum")["stdout"] == f"PART of {own} and {own} and PART of {own} and {{{{else.stdout}}}}"


def test_task_whose_dependency_failed_fails_with_it_and_says_which(site: Site) -> None:
    site.drop("last", dependencies=["middle"])
    site.drop("middle", dependencies=["anga/first"])
    site.drop("loop", dependencies=["loop"])
    site.drop("first", "anga", max_retries=0)
    site.start("marie", AGENT_COMMAND=site.script('echo "$WATCHER_TASK_ID" >> "$SITE/notes"'))
    site.start("anga", AGENT_COMMAND="false")
    for stem, named in (("middle", "anga/first"), ("last", "middle")):
        result = site.result(stem)
        assert (result["status"], result["reason"], result["attempts"]) == ("failed", "dependency_failed", 0)
        assert named in result["detail"] and site.dead_letter(stem)["dlq_reason"] == "dependency_failed"
    assert site.result("loop")["reason"] == "dependency_cycle"
    assert site.noted() == [], "none of them ran"


@pytest.mark.parametrize("mode", ["per_agent", "strict"])
@pytest.mark.parametrize("why", ["not_before", "dependency", "held", "provider"])
def test_task_that_cannot_start_yet_stands_in_nobodys_way(site: Site, mode: str, why: str) -> None:
    fields = {
        "not_before": {"not_before": "2036-01-01T00:00:00Z"},
        "dependency": {"dependencies": ["nobody-has-this"]},
        "held": {},
        "provider": {"provider": "claude"},
    }[why]
    site.start(FIFO_MODE=mode, AGENT_COMMAND="cat", CLAUDE_COMMAND="/nowhere/claude")
    site.run("pause", "marie")
    site.drop("first", agent_id="L", priority="high", **fields)
    if why == "held":
        assert site.run("hold", "marie/first").returncode == 0
    site.drop("second", agent_id="L")
    site.run("resume", "marie")
    assert site.result("second")["status"] == "completed"
    if why in ("not_before", "dependency"):
        reason = {"not_before": "1 for their time", "dependency": "1 for dependencies"}[why]
        site.beat_that(lambda beat: reason in (beat["reason"] or ""), what=f"that says {reason}")


def test_show_says_which_task_of_the_same_agent_goes_first(site: Site) -> None:
    wait = 'while test ! -e "$SITE/go"; do sleep 0.02; done'
    site.start(AGENT_COMMAND=site.script(wait), QUEUE_SIZE=0)
    site.drop("first", agent_id="L")
    site.drop("second", agent_id="L")
    site.beat_that(lambda beat: beat["active_tasks"], what="that runs one")
    assert "first of the same agent runs" in site.run("show", "second").stdout
    (site.home / "go").touch()
    assert site.result("second")["status"] == "completed"
