"""`python -m watcher up`: real processes are started, watched, rolled, scaled and stopped, and no task is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess

import pytest

from tests.acceptance.conftest import Site, is_alive, names
from tests.acceptance.supervised import PATIENCE, Up, assert_nothing_is_left, crashing, parent_of
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(900)

GATED = 'echo "$WATCHER_TASK_ID" >> "$SITE/notes"; while test ! -e "$SITE/go"; do sleep 0.05; done; echo done'


def open_gate(site: Site) -> None:
    (site.home / "go").touch()


def test_all_are_started_watched_and_stopped_in_order(site: Site) -> None:
    up = Up(site, "marie", "anga", "fabien", "--listener", "--report-every", "0.5")
    pids = up.beating("marie", "anga", "fabien", "orchestrator")
    assert len(set(pids.values())) == 4
    for worker in ("marie", "anga", "fabien"):
        site.drop("t", worker)
        assert site.result("t", worker)["status"] == "completed"
    wait_for("the notices", lambda: len(names(site.root / "triggers" / "orchestrator")) >= 3)
    report = up.says("workers.healthy", level="INFO")["message"]
    assert report.startswith("Workers healthy: [marie:") and report.endswith("m]"), report
    assert all(f"{name}:" in report for name in pids) and "not healthy" not in report
    assert up.stop() == 0
    assert [pid for pid in pids.values() if is_alive(pid)] == []
    ends = [line["child"] for line in up.lines("child.ended")]
    assert sorted(ends[:3]) == ["anga", "fabien", "marie"] and ends[3:] == ["orchestrator"]
    assert {line["worker"] for line in up.lines()} == {"marie", "anga", "fabien", "orchestrator", "supervisor"}
    assert_nothing_is_left(site)


def test_text_log_has_a_label_on_each_line_of_a_worker(site: Site) -> None:
    up = Up(site, "marie", "--log-format", "text")
    up.beats("marie")
    assert up.stop() == 0
    lines = up.text().splitlines()
    assert any(line.startswith("[marie] ") and "worker.started" in line for line in lines)
    assert any("supervisor.stopped" in line and not line.startswith("[") for line in lines)


def test_stop_lets_running_tasks_finish(site: Site) -> None:
    up = Up(site, "marie", "anga", AGENT_COMMAND=site.script(GATED))
    up.beating("marie", "anga")
    site.drop("one", "marie")
    site.drop("two", "anga")
    wait_for("both commands", lambda: len(site.noted()) == 2)
    up.signal(signal.SIGTERM)
    up.says("worker.draining", worker="marie")
    open_gate(site)
    assert up.ended(PATIENCE) == 0
    assert site.results("marie") == ["one"] and site.results("anga") == ["two"]
    assert len(site.noted()) == 2
    assert_nothing_is_left(site)


def test_second_signal_ends_running_tasks_which_go_back_untouched(site: Site) -> None:
    up = Up(site, "marie", "--listener", AGENT_COMMAND=site.script(GATED), SHUTDOWN_GRACE="600")
    up.beating("marie", "orchestrator")
    site.drop("one")
    wait_for("the command", site.noted)
    up.signal(signal.SIGINT)
    up.says("worker.draining")
    up.signal(signal.SIGINT)
    assert up.ended(PATIENCE) == 0
    assert (site.pending(), site.results()) == (["one"], [])
    assert_nothing_is_left(site)


def test_roll_restarts_one_after_the_other_and_loses_nothing(site: Site) -> None:
    up = Up(site, "marie", "anga", "--listener", AGENT_COMMAND=site.script("sleep 0.05; cat"))
    before = up.beating("marie", "anga", "orchestrator")
    for number in range(60):
        site.drop(f"t{number:02d}", ("marie", "anga")[number % 2])
    up.signal(signal.SIGHUP)
    up.says("children.rolled", children=3)
    after = up.beating("marie", "anga", "orchestrator")
    assert set(before.values()).isdisjoint(after.values())
    wait_for("all results", lambda: len(site.results("marie") + site.results("anga")) == 60, PATIENCE)
    steps = [(x["event"], x["child"]) for x in up.lines() if x.get("event") in ("child.started", "child.ended")][3:]
    assert steps == [(e, c) for c in ("marie", "anga", "orchestrator") for e in ("child.ended", "child.started")]
    assert up.stop() == 0
    attempts = [json.loads(path.read_text())["attempts"] for path in site.root.glob("results/*/*.json")]
    assert attempts == [1] * 60
    assert_nothing_is_left(site)


def test_roll_into_a_wrong_setting_stops_at_the_first_and_the_others_go_on(site: Site) -> None:
    up = Up(site, "marie", "anga")
    before = up.beating("marie", "anga")
    (site.home / ".env").write_text("MAX_RETRIES=many\n")
    up.signal(signal.SIGHUP)
    told = up.says("children.roll_broken_off", left=1)
    assert "marie does not come up" in told["reason"]
    assert "setting" in up.says("child.given_up", child="marie")["reason"]
    assert "MAX_RETRIES=many" in up.says("child.said", child="marie")["message"]
    site.drop("t", "anga")
    assert site.result("t", "anga")["status"] == "completed" and is_alive(before["anga"])
    (site.home / ".env").unlink()
    up.signal(signal.SIGHUP)
    up.says("children.rolled")
    up.beats("marie")
    assert up.stop() == 0


def test_worker_that_dies_at_once_is_left_alone_after_ten_restarts_and_the_others_go_on(site: Site) -> None:
    up = Up(
        site, "marie", "anga", "--restart-delay", "0.01", "--report-every", "0.2", PYTHONPATH=crashing(site, "anga")
    )
    marie = up.beats("marie")
    gone = up.says("child.given_up", child="anga")
    assert gone["reason"] == "killed by SIGKILL, and 10 restarts in a row did not help"
    delays = [line["delay_seconds"] for line in up.lines("child.restarting")]
    assert delays == pytest.approx([0.01 * 2**n for n in range(10)])
    words = "not healthy: [anga: killed by SIGKILL, and 10 restarts in a row did not help]"
    wait_for("the report", lambda: any(words in line["message"] for line in up.lines("workers.healthy")))
    site.drop("t")
    assert site.result("t")["status"] == "completed" and is_alive(marie)
    assert up.stop() == 1, "something had failed for good"
    assert_nothing_is_left(site)


def test_supervisor_ends_when_nothing_is_left_to_watch(site: Site) -> None:
    up = Up(site, "anga", "--restart-delay", "0.01", "--max-restarts", "1", PYTHONPATH=crashing(site, "anga"))
    assert up.ended(PATIENCE) == 1
    assert up.lines("supervisor.stopped")[0]["reason"] == "nothing is left to watch"


def test_worker_that_somebody_else_drained_is_left_until_the_next_roll(site: Site) -> None:
    up = Up(site, "marie", "anga")
    pids = up.beating("marie", "anga")
    os.kill(pids["marie"], signal.SIGTERM)
    up.says("child.left", child="marie")
    up.signal(signal.SIGHUP)
    assert up.beats("marie", other_than=pids["marie"]) != pids["marie"]
    assert up.stop() == 0


def test_name_that_a_worker_of_somebody_else_serves_is_waited_for(site: Site) -> None:
    first = site.start("marie")
    up = Up(site, "marie", "anga", "--restart-delay", "0.1")
    up.beats("anga")
    assert f"pid {first.pid}" in up.says("child.said", child="marie")["message"], "who holds it is said"
    for _ in range(3):
        up.signal(signal.SIGCONT)  # nothing; the waiting goes on
    assert is_alive(first.pid)
    first.stop()
    assert up.beats("marie") != first.pid
    assert up.lines("child.given_up") == []
    assert up.stop() == 0


def test_worker_survives_a_killed_supervisor_and_the_next_one_ends_it(site: Site) -> None:
    first = Up(site, "marie", "--listener", AGENT_COMMAND=site.script(GATED))
    before = first.beating("marie", "orchestrator")
    site.drop("paid")
    wait_for("the command", site.noted)
    first.kill()
    second = Up(site, "marie", "--listener", "--restart-delay", "0.1", AGENT_COMMAND=site.script(GATED))
    for name, pid in before.items():
        second.says("child.awaited", child=name, pid=pid)
    assert is_alive(before["marie"]), "what it runs costs money"
    open_gate(site)
    result = site.result("paid")
    assert (result["status"], result["attempts"]) == ("completed", 1)
    assert second.stop() == 0
    assert len(site.noted()) == 1
    assert_nothing_is_left(site)


def test_roll_replaces_a_worker_that_outlived_its_supervisor(site: Site) -> None:
    first = Up(site, "marie")
    old = first.beats("marie")
    first.kill()
    second = Up(site, "marie")
    second.says("child.awaited", child="marie", pid=old)
    second.signal(signal.SIGHUP)
    second.says("children.rolled")
    assert second.beats("marie") != old and not is_alive(old)
    assert second.stop() == 0


def test_survivor_that_ends_by_itself_is_replaced_and_one_without_a_place_is_drained(site: Site) -> None:
    first = Up(site, "marie", "--count", "2", AGENT_COMMAND=site.script(GATED), SHUTDOWN_GRACE="600")
    old = first.beating("marie@1", "marie@2")
    site.drop("one")
    wait_for("the command", site.noted)
    first.kill()
    second = Up(site, "marie", AGENT_COMMAND=site.script(GATED))
    third = [
        name for name in old if site.beat_that(lambda b: b["status"] == "draining" or b["status"] == "stopped", name)
    ]
    assert len(third) == 2, "no instances are wanted any more"
    open_gate(site)
    assert site.result("one")["attempts"] == 1
    assert second.beats("marie") not in old.values()
    assert second.stop() == 0
    assert len(site.noted()) == 1
    assert_nothing_is_left(site)


def test_killed_worker_leaves_no_command_behind_and_its_task_runs_again(site: Site) -> None:
    escape = 'setsid sleep 3000 & echo "$$ $!" >> "$SITE/notes"; ' + GATED.partition(";")[2]
    up = Up(site, "marie", "--restart-delay", "0.05", AGENT_COMMAND=site.script(escape))
    old = up.beats("marie")
    site.drop("t")
    wait_for("the command", site.noted)
    os.kill(old, signal.SIGKILL)
    assert up.beats("marie", other_than=old) != old
    wait_for("the second run", lambda: len(site.noted()) == 2, PATIENCE)
    assert [pid for pid in map(int, site.noted()[0].split()) if is_alive(pid)] == []
    open_gate(site)
    assert site.result("t")["attempts"] == 2
    assert up.stop() == 0
    assert_nothing_is_left(site)


def test_commands_of_a_killed_worker_end_also_when_nobody_takes_over(site: Site) -> None:
    escape = 'setsid sleep 3000 & echo "$$ $!" >> "$SITE/notes"; ' + GATED.partition(";")[2]
    up = Up(site, "marie", "anga", "--max-restarts", "0", AGENT_COMMAND=site.script(escape))
    pids = up.beating("marie", "anga")
    site.drop("t")
    wait_for("the command", site.noted)
    os.kill(pids["marie"], signal.SIGKILL)
    up.says("child.given_up", child="marie")
    commands = [int(pid) for pid in site.noted()[0].split()]
    wait_for("their end", lambda: not any(is_alive(pid) for pid in commands), PATIENCE)

    def told() -> int:
        lines = up.lines("process.leftovers_killed")
        return sum(line["processes"] for line in lines if line["worker"] == "supervisor")

    wait_for("a word about both", lambda: told() >= 2, PATIENCE)
    assert up.stop() == 1


def test_frozen_worker_is_named_and_left_alone(site: Site) -> None:
    up = Up(site, "marie", "anga", "--report-every", "0.3")
    pids = up.beating("marie", "anga")
    os.kill(pids["marie"], signal.SIGSTOP)
    silent = "not healthy: [marie: no heartbeat for "

    def is_it(message: str) -> bool:
        return silent in message and "[anga:" in message

    wait_for("the report", lambda: any(is_it(line["message"]) for line in up.lines("workers.healthy")))
    assert is_alive(pids["marie"])
    assert up.stop() == 0, "a stopped process is woken to drain"
    assert_nothing_is_left(site)


def test_fixed_count_runs_that_many_instances(site: Site) -> None:
    up = Up(site, "marie", "--count", "2")
    pids = up.beating("marie@1", "marie@2")
    assert len(set(pids.values())) == 2 and names(site.root / "heartbeats") == ["marie@1.json", "marie@2.json"]
    assert up.stop() == 0


def test_instances_come_with_the_work_and_go_without_ending_a_task(site: Site) -> None:
    up = Up(
        site, "marie", "--min", "1", "--max", "3", "--grow-after", "0.3", "--shrink-after", "0.3", "--max-cpu", "100",
        "--max-memory", "100", AGENT_COMMAND=site.script(GATED),
        MAX_CONCURRENT_TASKS="1", SHUTDOWN_GRACE="0", MAX_RETRIES="0",
    )  # fmt: skip
    up.beats("marie@1")
    for number in range(5):
        site.drop(f"t{number}")
    up.beating("marie@2", "marie@3")
    wait_for("three at once", lambda: len(site.noted()) == 3, PATIENCE)
    assert [line["instances"] for line in up.lines("instances.scaled")] == [2, 3]
    for number in (3, 4):
        (site.inbox() / f"t{number}.json").unlink()
    open_gate(site)
    wait_for("fewer", lambda: len(up.lines("child.ended")) == 2, PATIENCE)
    assert [line["instances"] for line in up.lines("instances.scaled")] == [2, 3, 2, 1]
    wait_for("a result of each that ran", lambda: sorted(site.results()) == sorted(set(site.noted())))
    assert len(site.noted()) == len(set(site.noted())), "and ran once, though the grace is 0"
    assert up.stop() == 0
    assert_nothing_is_left(site)


def test_drained_instance_finishes_its_task_however_long_it_takes(site: Site) -> None:
    gate = 'echo "$WATCHER_TASK_ID" >> "$SITE/notes"; until test -e "$SITE/go-$WATCHER_TASK_ID"; do sleep 0.05; done'
    up = Up(
        site, "marie", "--min", "1", "--max", "2", "--grow-after", "0.2", "--shrink-after", "0.2", "--max-cpu", "100",
        "--max-memory", "100", AGENT_COMMAND=site.script(gate), MAX_CONCURRENT_TASKS="2", SHUTDOWN_GRACE="0.1",
    )  # fmt: skip
    up.beats("marie@1")
    for number in range(5):
        site.drop(f"t{number}")
    up.beats("marie@2")
    wait_for("four at once", lambda: len(site.noted()) == 4, PATIENCE)
    (site.inbox() / f"{site.pending()[0]}.json").unlink()
    running = {n: site.beat_that(lambda b: b["active_tasks"] == 2, f"marie@{n}")["active"] for n in "12"}
    for tasks in running.values():
        (site.home / f"go-{tasks[0]['task_id']}").touch()
    site.beat_that(lambda beat: beat["status"] == "draining", "marie@2")
    site.pass_beats(10, "marie@2")  # many times the grace
    assert up.lines("child.ended") == [] and site.beat("marie@2")["active_tasks"] == 1
    for tasks in running.values():
        (site.home / f"go-{tasks[1]['task_id']}").touch()
    up.says("child.ended", child="marie@2", reason="stopped")
    wait_for("all results", lambda: len(site.results()) == 4)
    assert sorted(site.noted()) == site.results(), "each ran once"
    assert up.stop() == 0


def test_busy_machine_gets_no_more_instances(site: Site) -> None:
    up = Up(
        site, "marie", "--min", "1", "--max", "3", "--grow-after", "0.1", "--max-memory", "1", "--max-cpu", "100",
        AGENT_COMMAND=site.script(GATED), MAX_CONCURRENT_TASKS="1",
    )  # fmt: skip
    up.beats("marie@1")
    site.drop("one")
    site.drop("two")
    site.beat_that(lambda beat: (beat["active_tasks"], beat["queue_size"]) == (1, 1), "marie@1")
    site.pass_beats(20, "marie@1")  # many times what growing takes
    assert up.lines("instances.scaled") == [] and names(site.root / "heartbeats") == ["marie@1.json"]
    open_gate(site)
    assert site.result("two")["status"] == "completed"
    assert up.stop() == 0


def test_stop_gives_back_what_a_scaled_instance_runs_after_the_grace(site: Site) -> None:
    up = Up(site, "marie", "--min", "1", "--max", "2", AGENT_COMMAND=site.script(GATED), SHUTDOWN_GRACE="0.5")
    up.beats("marie@1")
    site.drop("t")
    wait_for("the command", site.noted)
    assert up.stop() == 0
    assert (site.pending(), site.results()) == (["t"], [])
    assert_nothing_is_left(site)


def three_free_ports() -> int:
    """The first of three in a row, below those that the system gives to whoever asks for any."""
    first = 20_000 + os.getpid() % 3000 * 4
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + 3):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
        first += 4


def test_port_that_was_set_is_the_first_ones_and_the_others_get_the_next(site: Site) -> None:
    port = three_free_ports()
    up = Up(site, "marie", "anga", "--listener", ENABLE_METRICS="true", METRICS_PORT=port)
    up.beating("marie", "anga")
    assert [site.beat(name)["metrics_port"] for name in ("marie", "anga")] == [port, port + 1]
    assert up.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["marie", "--min", "3", "--max", "2"], "--min 3 is more than --max 2"),
        (["marie", "--count", "2", "--max", "2"], "--count fixes"),
        (["marie", "--min", "2"], "--min needs --max"),
        (["marie", "marie"], "named twice"),
        (["../x"], "letters, digits"),
        (["orchestrator"], "another name"),
        (["marie", "--max-cpu", "200"], "MAX_CPU_PERCENT=200"),
    ],
)
def test_wrong_command_line_starts_nothing(site: Site, arguments: list[str], words: str) -> None:
    up = Up(site, *arguments)
    assert up.ended(PATIENCE) == 2
    assert words in up.text() and "Traceback" not in up.text()
    assert site.command_pids() == [] and not site.root.exists()


def test_wrong_setting_of_the_workers_is_refused_before_any_is_started(site: Site) -> None:
    up = Up(site, "marie", MAX_RETRIES="many")
    assert up.ended(PATIENCE) == 2 and "MAX_RETRIES=many" in up.text()
    assert not site.root.exists()


def test_children_lead_sessions_of_their_own(site: Site) -> None:
    """So that Ctrl-C at a terminal reaches the supervisor alone."""
    up = Up(site, "marie")
    pid = up.beats("marie")
    assert os.getsid(pid) == pid and parent_of(pid) == up.pid
    assert up.stop() == 0


def _term_by_one_that_has_ended(pid: int) -> None:
    """The worker is stopped meanwhile, so that it surely cannot see who it was."""
    os.kill(pid, signal.SIGSTOP)
    subprocess.run(["/bin/sh", "-c", f"kill -TERM {pid}"], check=True)
    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("fence", ["none", "in force"])
def test_signal_of_nobody_knows_whom_is_believed_only_where_no_task_can_send_one(site: Site, fence: str) -> None:
    up = Up(site, "marie", AGENT_SUDO="yes" if fence == "none" else "no")
    first = up.beats("marie")
    if site.beat()["fence"] != "in force" and fence != "none":
        pytest.skip("this kernel has no fence")
    _term_by_one_that_has_ended(first)
    if fence == "none":
        second = up.beats("marie", other_than=first)
        assert "sender could not be seen" in up.says("child.restarting")["message"]
        os.kill(second, signal.SIGTERM)  # by somebody who lives: this test
    up.says("child.left")
    assert up.stop() == 0
