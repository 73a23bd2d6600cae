"""Who may serve a name: one process, or several that each have an instance of their own."""

from __future__ import annotations

import signal

from tests.acceptance.conftest import Site, names
from tests.waiting import wait_for

NOTE = 'echo "$WATCHER_TASK_ID" >> "$SITE/notes"; while [ ! -e "$SITE/go" ]; do sleep 0.05; done'


def test_second_process_of_a_name_is_refused_and_told_who_holds_it(site: Site) -> None:
    first = site.start()
    before = site.beat()["incarnation"]
    second = site.launch("marie")
    assert second.ended() == 3
    said = second.text()
    assert f"pid {first.pid}" in said and "'marie'" in said and "--instance" in said
    assert "Traceback" not in said
    third = site.launch("marie", "--instance", "1")
    assert third.ended() == 3 and f"pid {first.pid}" in third.text()
    site.drop("still-served")
    assert site.result("still-served")["incarnation"] == before == site.beat()["incarnation"]
    assert names(site.root / "heartbeats") == ["marie.json"]
    assert site.start("anga").popen.poll() is None, "another name is free"


def test_two_instances_share_the_work_and_each_has_its_own_heartbeat(site: Site) -> None:
    tasks = [f"t{number:02d}" for number in range(30)]
    for stem in tasks:
        site.drop(stem)
    one = site.start("marie", "--instance", "1", AGENT_COMMAND=site.script(NOTE), MAX_CONCURRENT_TASKS="2")
    two = site.start("marie", WATCHER_INSTANCE="2", AGENT_COMMAND=site.script(NOTE), MAX_CONCURRENT_TASKS="2")
    again = site.launch("marie", "--instance", "2")
    wait_for("what each of both can run at once", lambda: len(site.noted()) == 4)
    (site.home / "go").touch()
    for number in range(30, 60):
        site.drop(f"t{number:02d}")
        tasks.append(f"t{number:02d}")
    done = [site.result(stem)["incarnation"] for stem in tasks]
    assert sorted(site.noted()) == sorted(tasks), "each ran once"
    assert len(set(done)) == 2, "both have worked"
    assert names(site.root / "heartbeats") == ["marie@1.json", "marie@2.json"]
    assert [(site.beat(f"marie@{n}")["instance"], site.beat(f"marie@{n}")["pid"]) for n in "12"] == [
        ("1", one.pid), ("2", two.pid),
    ]  # fmt: skip
    assert again.ended() == 3 and "another --instance" in again.text()
    assert one.stop() == 0 and site.beat("marie@1")["status"] == "stopped"
    assert site.beat("marie@2")["status"] == "healthy"


def test_name_is_free_again_when_its_process_was_killed_and_its_task_is_done_by_the_next(site: Site) -> None:
    hold = site.script('echo "$$" >> "$SITE/notes"; while test ! -e "$SITE/go"; do sleep 0.05; done; echo done')
    first = site.start(AGENT_COMMAND=hold)
    site.drop("orphan")
    wait_for("the command", site.noted)
    first.signal(signal.SIGKILL)
    first.ended()
    (site.home / "go").touch()
    second = site.start(AGENT_COMMAND=hold)
    result = site.result("orphan")
    assert (result["status"], result["attempts"], result["retry_count"]) == ("completed", 2, 0)
    assert [line["deaths"] for line in second.lines("task.rescued")] == [1]
    assert second.stop() == 0 and site.leftovers() == [] and site.command_pids() == []


def test_other_instance_takes_over_what_a_killed_one_was_doing(site: Site) -> None:
    hold = site.script('echo "$$" >> "$SITE/notes"; while test ! -e "$SITE/go"; do sleep 0.05; done; echo done')
    first = site.start("marie", "--instance", "1", AGENT_COMMAND=hold)
    site.drop("orphan")
    wait_for("the command", site.noted)
    site.start("marie", "--instance", "2", AGENT_COMMAND=hold)
    first.kill()
    wait_for("the second run", lambda: len(site.noted()) == 2)
    (site.home / "go").touch()
    assert site.result("orphan")["attempts"] == 2
    assert len(site.noted()) == 2
