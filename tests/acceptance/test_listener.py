"""The real listener beside real workers: it tells everything once, whoever is killed meanwhile."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import REPOSITORY, Json, Site, names, read
from tests.waiting import wait_for

#: A second heartbeat that a busy machine keeps.
BEAT = 1.0
STANDIN = f"{sys.executable} -I -S {REPOSITORY / 'watcher' / 'standin.py'}"


class Listener:
    """Starts orchestrator_listener.py on a site, again and again, and takes its notices away like a consumer."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.notices = site.root / "triggers" / "orchestrator"
        self.taken: list[Json] = []
        self.popen: subprocess.Popen[bytes] | None = None
        self.log = site.home / "listener.log"

    def launch(self, *arguments: str, **settings: Any) -> subprocess.Popen[bytes]:
        chosen = {"HEARTBEAT_INTERVAL": BEAT, "BATCH_SETTLE_SECONDS": 0.3, "SCAN_INTERVAL": 0.5, **settings}
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, str(REPOSITORY / "orchestrator_listener.py"), *arguments],
                cwd=self.site.home, env=self.site.environment(chosen), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        return self.popen

    def start(self, *arguments: str, **settings: Any) -> None:
        """Start it and wait until it has read what was there."""
        popen = self.launch(*arguments, **settings)

        def is_up() -> bool:
            assert popen.poll() is None, self.log.read_text()[-3000:]
            status = self.status()
            return status.get("pid") == popen.pid and status["caught_up"]

        wait_for("the listener to be up", is_up)

    def status(self) -> Json:
        return read(self.site.root / "state" / "listener.json")

    def kill(self) -> None:
        assert self.popen is not None
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> int:
        assert self.popen is not None
        self.popen.terminate()
        return self.popen.wait(60)

    def there(self, kind: str) -> list[Json]:
        """The notices of one kind that nobody has taken yet."""
        found = [read(self.notices / name) for name in names(self.notices)]
        return [notice for notice in found if notice.get("kind") == kind]

    def one(self, kind: str, seconds: float = 60.0) -> Json:
        """Wait for a notice of this kind; there must be just one."""
        wait_for(f"a notice {kind}", lambda: self.there(kind), seconds)
        found = self.there(kind)
        assert len(found) == 1, found
        return found[0]

    def consume(self) -> None:
        """Take every notice away, as the orchestrating agent does."""
        for name in names(self.notices):
            self.taken.append(read(self.notices / name))
            (self.notices / name).unlink()

    def totals(self, state: str = "state") -> dict[tuple[str, str], str]:
        """Every total of the database, as it is stored."""
        with closing(sqlite3.connect(self.site.root / state / "orchestrator.db")) as db:
            return {(dimension, key): tally for dimension, key, tally in db.execute("SELECT * FROM totals")}


@pytest.fixture
def listener(site: Site) -> Iterator[Listener]:
    made = Listener(site)
    yield made
    if made.popen is not None and made.popen.poll() is None:
        made.kill()


def task_ids(notices: list[Json]) -> Counter[str]:
    return Counter(f"{n['worker']}/{n['task_id']}" for n in notices if n["kind"] in ("task_done", "task_refused"))


# --- 1: once, through kills


def test_every_outcome_is_told_once_through_ten_kills_and_totals_equal_a_rebuild(
    site: Site, listener: Listener
) -> None:
    chance = random.Random(3)
    wanted: set[str] = set()
    for number in range(90):
        worker = ("marie", "anga", "fabien")[number % 3]
        text = ("say it", "[fail 1 times] try", "[fail]", "[sleep 0.05]", "again")[number % 5]
        batch = {3: "first", 7: "second one / ü"}.get(number % 10)
        site.drop(f"t{number}", worker, description=f"{text} {number}", **({"batch_id": batch} if batch else {}))
        wanted.add(f"{worker}/t{number}")
    site.drop("root", "marie", agent_id="graph")
    site.drop("leaf", "anga", dependencies=["marie/root"])
    (site.inbox("fabien") / "broken.json").write_text('{"description": ')
    wanted |= {"marie/root", "anga/leaf", "fabien/broken"}
    settings = {"AGENT_COMMAND": STANDIN, "MAX_RETRIES": 1, "HEARTBEAT_INTERVAL": BEAT}
    listener.start()
    for worker in ("marie", "anga", "fabien"):
        site.launch(worker, **settings)
    for _ in range(10):
        end = time.monotonic() + chance.uniform(0.15, 0.7)
        while time.monotonic() < end:
            listener.consume()
            time.sleep(0.01)  # the kill shall fall at a random moment
        listener.kill()
        listener.launch()

    def all_told() -> bool:
        listener.consume()
        kinds = Counter(notice["kind"] for notice in listener.taken)
        return set(task_ids(listener.taken)) >= wanted and kinds["batch_done"] >= 2 and kinds["graph_done"] >= 1

    wait_for("all notices", all_told, 150)
    seen = listener.status()["taken_at"]
    wait_for("one more status", lambda: listener.status()["taken_at"] > seen)
    listener.stop()
    listener.consume()
    assert task_ids(listener.taken) == Counter(wanted)
    assert max(Counter(notice["notice_id"] for notice in listener.taken).values()) == 1
    batches = [n for n in listener.taken if n["kind"] == "batch_done"]
    # A batch may have looked complete while a killed worker's task was on its way; never here: all were dropped first.
    assert sorted(n["batch_id"] for n in batches) == ["first", "second one / ü"]
    assert [sum(n["counts"].values()) for n in batches] == [9, 9]
    graph = next(n for n in listener.taken if n["kind"] == "graph_done")
    assert {f"{t['worker']}/{t['task_id']}" for t in graph["tasks"]} == {"marie/root", "anga/leaf"}
    assert graph["all_completed"]

    rebuilt = listener.launch("--once", STATE_DIR=site.root / "other", TRIGGER_DIR=site.root / "nowhere")
    assert rebuilt.wait(60) == 0, listener.log.read_text()[-2000:]
    assert listener.totals() == listener.totals("other")
    assert listener.totals()[("all", "")]


MARKS = b'"batch_id": "B", "agent_id": "lea", "metadata": {"k": 1}'
REFUSED = {
    "wrong-type": b'{"description": "x", "timeout": "soon", %s}',
    "no-description": b"{%s}",
    "not-strict": b'{"description": "x", %s, "timeout": NaN}',
    "twice-the-key": b'{"description": "x", "description": "y", %s}',
    "other-id": b'{"task_id": "z", "description": "x", %s}',
    "bad name": b'{"description": "x", %s}',
    "too-large": b'{"description": "' + b"x" * 2_000_000 + b'", %s}',
    "first": b'{"description": "another", %s}',  # its id is taken
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_batch_with_a_refused_member_is_not_called_completed(name: str, site: Site, listener: Listener) -> None:
    site.start("marie", AGENT_COMMAND=STANDIN, SETTLE_SECONDS=0.1)
    listener.start(BATCH_SETTLE_SECONDS=0.2)
    site.drop("first", batch_id="B")
    site.result("first")
    (site.inbox() / f".{name}.tmp").write_bytes(REFUSED[name].replace(b"%s", MARKS))
    (site.inbox() / f".{name}.tmp").rename(site.inbox() / f"{name}.json")

    def told() -> list[Json]:
        listener.consume()
        return [n for n in listener.taken if n["kind"] == "batch_done" and n["counts"].get("refused") == 1]

    notice = wait_for("the word about the whole batch", told)[0]
    assert (notice["all_completed"], notice["counts"]) == (False, {"completed": 1, "refused": 1})
    refused = next(n for n in listener.taken if n["kind"] == "task_refused")
    assert (refused["batch_id"], refused["agent_id"]) == ("B", "lea")
    letter = json.loads(Path(refused["dead_letter_path"]).read_text())
    assert (letter["batch_id"], letter["agent_id"], letter["metadata"]) == ("B", "lea", {"k": 1})
    report = json.loads(site.run("report", "--json").stdout)
    assert report["all_time"]["batch_id"]["B"]["success_rate"] == 0.5


def test_deleted_database_is_rebuilt_and_tells_nothing_twice_that_is_still_there(
    site: Site, listener: Listener
) -> None:
    site.start("marie")
    site.drop("a")
    site.drop("b", batch_id="pair")
    listener.start()
    listener.one("batch_done")
    wait_for("both notices", lambda: len(listener.there("task_done")) == 2)
    before = listener.totals()
    listener.kill()
    shutil.rmtree(site.root / "state")
    listener.start()
    wait_for("the totals", lambda: listener.totals() == before)
    told = names(listener.notices)
    wait_for("a second look", lambda: listener.status()["caught_up"] and not listener.status()["batches"])
    assert names(listener.notices) == told
    assert not [name for name in told if name.endswith("~2.json")]


def test_consumed_notice_does_not_come_again_after_a_restart(site: Site, listener: Listener) -> None:
    site.start("marie")
    site.drop("a")
    listener.start()
    listener.one("task_done")
    listener.consume()
    listener.kill()
    site.drop("b")
    site.result("b")
    listener.start()
    assert listener.one("task_done")["task_id"] == "b"


def test_task_that_is_run_again_under_its_id_is_told_again(site: Site, listener: Listener) -> None:
    site.start("marie")
    site.drop("a")
    listener.start()
    listener.one("task_done")
    site.drop("b")
    site.result("b")
    wait_for("the notice of b", lambda: len(listener.there("task_done")) == 2)
    (site.root / "results" / "marie" / "a.json").unlink()
    site.drop("a", description="another text")
    wait_for("the second notice of a", lambda: len(listener.there("task_done")) == 3)
    assert task_ids(listener.there("task_done")) == Counter({"marie/a": 2, "marie/b": 1})
    assert json.loads(listener.totals()[("all", "")])[0] == {"completed": 2}


# --- 2: who lives


def test_killed_worker_is_dead_with_its_claims_and_recovers(site: Site, listener: Listener) -> None:
    worker = site.start("marie", AGENT_COMMAND=STANDIN, HEARTBEAT_INTERVAL=BEAT)
    listener.start()
    site.drop("long", description="[sleep 60]")
    site.beat_that(lambda beat: beat.get("active_tasks") == 1)
    worker.kill()
    notice = listener.one("worker_dead")
    assert (notice["worker"], notice["claims"], notice["pid"]) == ("marie", ["long"], worker.pid)

    def back_from_the_dead() -> list[Json]:
        """A machine that stands still for a while makes a worker stale, and it recovers from that, too."""
        return [notice for notice in listener.there("worker_recovered") if notice["reason"] == "was dead"]

    assert back_from_the_dead() == []
    site.start("marie", AGENT_COMMAND=STANDIN, HEARTBEAT_INTERVAL=BEAT)
    (recovered,) = wait_for("its recovery", back_from_the_dead)
    assert recovered["worker"] == "marie" and recovered["incarnation"] != notice["incarnation"]
    assert len(listener.there("worker_dead")) == 1


def test_stopped_worker_is_not_dead(site: Site, listener: Listener) -> None:
    worker = site.start("marie", HEARTBEAT_INTERVAL=BEAT)
    listener.start()
    worker.stop()

    def state() -> str:
        return str(listener.status()["processes"][0]["state"])

    wait_for("the word stopped", lambda: state() == "stopped")
    silent = listener.status()["processes"][0]["silent_seconds"]
    wait_for("four beats", lambda: listener.status()["processes"][0]["silent_seconds"] > silent + 4 * BEAT + 1)
    assert state() == "stopped"
    assert listener.there("worker_dead") == []


def test_frozen_worker_is_stale_and_comes_back_without_a_death(site: Site, listener: Listener) -> None:
    worker = site.start("marie", HEARTBEAT_INTERVAL=BEAT)
    listener.start()
    worker.signal(signal.SIGSTOP)
    assert listener.one("worker_stale")["worker"] == "marie"
    wait_for("a long silence", lambda: listener.status()["processes"][0]["silent_seconds"] > 6 * BEAT)
    assert listener.status()["processes"][0]["state"] == "stale"
    worker.signal(signal.SIGCONT)
    listener.one("worker_recovered")
    site.drop("a")
    assert site.result("a")["attempts"] == 1
    assert listener.there("worker_dead") == []


def test_restarted_listener_does_not_tell_the_same_death_again(site: Site, listener: Listener) -> None:
    worker = site.start("marie", HEARTBEAT_INTERVAL=BEAT)
    listener.start()
    worker.kill()
    listener.one("worker_dead")
    listener.consume()
    listener.kill()
    listener.start()
    wait_for("dead again", lambda: [p["state"] for p in listener.status()["processes"]] == ["dead"])
    wait_for("some silence", lambda: listener.status()["processes"][0]["silent_seconds"] > 4 * BEAT + 1)
    assert listener.there("worker_dead") == []


def test_held_worker_is_told_with_its_reason(site: Site, listener: Listener) -> None:
    site.start("marie", AGENT_COMMAND="/nowhere/at-all", HEARTBEAT_INTERVAL=BEAT)
    listener.start()
    notice = listener.one("worker_held")
    assert notice["worker"] == "marie" and "at-all" in notice["reason"]


# --- what else may lie there


def test_foreign_and_half_written_files_are_reported_once_and_harm_nobody(site: Site, listener: Listener) -> None:
    results = site.root / "results" / "marie"
    results.mkdir(parents=True)
    (results / "half.json").write_text('{"task_id": "half", ')
    (results / "notes.txt").write_text("mine")
    (results / "folder.json").mkdir()
    (results / "alien.json").write_text('{"task_id": "other", "worker": "marie", "status": "completed"}')
    (results / "link.json").symlink_to("/etc/passwd")
    listener.start()
    site.start("marie")
    site.drop("a")
    listener.one("task_done")
    wait_for("all reports", lambda: len(listener.there("file_unreadable")) == 4)
    listener.consume()
    listener.kill()
    listener.start()
    site.drop("b")
    listener.one("task_done")
    assert listener.there("file_unreadable") == []
    good = read(results / "b.json") | {"task_id": "half"}
    (results / "half.json").write_text(json.dumps(good))
    wait_for("the repaired one", lambda: "marie/half" in task_ids(listener.there("task_done")))


def test_results_folder_that_goes_and_comes_back_costs_nothing(site: Site, listener: Listener) -> None:
    worker = site.start("marie")
    site.drop("a")
    site.result("a")
    listener.start()
    listener.one("task_done")
    worker.stop()
    results, aside = site.root / "results" / "marie", site.root / "aside"
    results.rename(aside)
    wait_for("the word", lambda: "folder.lost" in listener.log.read_text())
    aside.rename(results)
    wait_for("the good word", lambda: "folder.found" in listener.log.read_text())
    site.start("marie")
    site.drop("b")
    wait_for("the next notice", lambda: "marie/b" in task_ids(listener.there("task_done")))
    assert task_ids(listener.there("task_done")) == Counter(["marie/a", "marie/b"])


def test_second_listener_is_refused_and_told_who_is_there(site: Site, listener: Listener) -> None:
    listener.start()
    first = listener.popen
    assert first is not None
    for settings in ({}, {"STATE_DIR": site.root / "other"}):
        second = Listener(site).launch(**settings)
        assert second.wait(60) == 3
    assert f"pid {first.pid} on" in listener.log.read_text()
    assert first.poll() is None


def test_once_tells_what_is_there_and_ends(site: Site, listener: Listener) -> None:
    site.start("marie")
    for number in range(5):
        site.drop(f"t{number}", batch_id="five")
        site.result(f"t{number}")
    assert listener.launch("--once").wait(60) == 0
    assert len(listener.there("task_done")) == 5
    assert listener.one("batch_done")["counts"] == {"completed": 5}
    assert listener.launch("--once").wait(60) == 0
    assert len(names(listener.notices)) == 6


def test_named_workers_are_the_only_ones(site: Site, listener: Listener) -> None:
    for worker in ("marie", "anga"):
        site.start(worker)
        site.drop("a", worker)
        site.result("a", worker)
    assert listener.launch("--once", "--workers", "anga").wait(60) == 0
    assert task_ids(listener.there("task_done")) == Counter(["anga/a"])


# --- late, moved, measured


def test_late_tasks_are_told_once_each(site: Site, listener: Listener) -> None:
    site.start("marie", HEARTBEAT_INTERVAL=BEAT)
    site.drop("orphan", dependencies=["nobody-has-this"])
    site.drop("waits", "fabien")
    settings = {"BLOCKED_ALERT_AFTER": 0.3, "PENDING_ALERT_AFTER": 0.3}
    listener.start(**settings)
    wait_for("both", lambda: len(listener.there("task_overdue")) == 2)
    assert {(n["task_id"], n["reason"]) for n in listener.there("task_overdue")} == {
        ("orphan", "blocked"), ("waits", "pending"),
    }  # fmt: skip
    listener.consume()
    listener.kill()
    listener.start(**settings)
    seen = listener.status()["taken_at"]
    wait_for("two more looks", lambda: listener.status()["taken_at"] > seen)
    assert listener.there("task_overdue") == []


def test_pending_tasks_of_a_dead_worker_go_to_its_substitute_and_of_a_living_one_stay(
    site: Site, listener: Listener
) -> None:
    wait = site.script('echo "$$" >> "$SITE/notes"; while test ! -e "$SITE/go"; do sleep 0.02; done')
    worker = site.start("marie", HEARTBEAT_INTERVAL=BEAT, MAX_CONCURRENT_TASKS=1, AGENT_COMMAND=wait, QUEUE_SIZE=0)
    site.drop("held")
    wait_for("the command", site.noted)
    for number in range(20):
        site.drop(f"t{number}", metadata={"mine": number}, worker="marie")
    listener.start("--reassign", "marie:anga", REASSIGN_AFTER=0.5)
    site.pass_beats(3)
    assert len(site.pending()) == 20
    worker.kill()
    listener.one("worker_dead")
    for _ in range(3):
        seen = listener.status()["taken_at"]
        wait_for("another look", lambda seen=seen: listener.status()["taken_at"] > seen)
    assert len(site.pending()) == 20, "a command that it left running holds a lock"
    (site.home / "go").touch()
    notice = listener.one("tasks_reassigned")
    assert len(notice["tasks"]) == 20
    site.start("anga")
    for number in range(20):
        result = site.result(f"t{number}", "anga")
        assert result["metadata"] == {"reassigned_from": "marie", "mine": number}
    site.start("marie")
    site.drop("last")
    site.result("last"), site.result("held")
    assert site.results() == ["held", "last"]  # what it was running is rescued by its own next process
    assert not (site.inbox() / ".reassign").exists()


def test_probes_and_metrics_tell_how_things_are(site: Site, listener: Listener) -> None:
    site.start("marie")
    site.drop("a")
    site.drop("never", dependencies=["nobody"], batch_id="open")
    site.drop("b", batch_id="open")
    site.result("a")
    site.result("b")
    listener.start(ENABLE_METRICS="true", METRICS_PORT="0")
    line = next(json.loads(row) for row in listener.log.read_text().splitlines() if "listener.started" in row)
    port = int(line["detail"].rpartition(" ")[2])

    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return str(answer.read().decode())

    assert get("/readyz") == "ready\n"
    assert get("/healthz").startswith("last turn")
    wanted = (
        'watcher_listener_tasks_total{status="completed",worker="marie"} 2.0',
        'watcher_listener_workers{state="healthy"} 1.0',
        'watcher_listener_notices_total{kind="task_done"} 2.0',
        'watcher_listener_batch_tasks{batch="open",state="ended"} 1.0',
        'watcher_listener_batch_tasks{batch="open",state="on_their_way"} 1.0',
    )
    wait_for("the metrics", lambda: all(row in get("/metrics") for row in wanted))


def test_folders_of_the_listener_are_left_clean(site: Site, listener: Listener) -> None:
    site.start("marie")
    site.drop("a")
    listener.start()
    listener.one("task_done")
    assert listener.stop() == 0
    hidden = listener.notices / ".tmp"
    assert list(hidden.iterdir()) == []
    assert sorted(path.name for path in Path(site.root / "state").iterdir() if not path.name.startswith(".")) == [
        "listener.json", "orchestrator.db",
    ]  # fmt: skip


def test_status_and_report_say_what_the_listener_knows(site: Site, listener: Listener) -> None:
    worker = site.start("marie", HEARTBEAT_INTERVAL=BEAT)
    site.drop("a")
    site.result("a")

    def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(REPOSITORY / "demo_watcher.py"), *arguments],
            cwd=site.home, env=site.environment({}), capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    assert demo("--report").returncode == 1
    assert "listener: not running" in demo("--status").stdout
    listener.start()
    listener.one("task_done")
    worker.kill()
    listener.one("worker_dead")
    wait_for("the word in the status", lambda: "marie is dead" in demo("--status").stdout)
    assert json.loads(demo("--status", "--json").stdout)["listener"]["is_running"] is True
    assert "the listener runs" in demo("--report").stdout
    told = json.loads(demo("--report", "--json").stdout)
    assert told["all_time"]["worker"]["marie"]["completed"] == 1
    page = site.home / "report.html"
    assert demo("--report", "--html", str(page)).returncode == 0
    assert page.read_text().count("<svg") == 3  # nobody has reported a cost
    assert demo("--html", "x").returncode == 2


@pytest.mark.parametrize("folder", ["triggers/orchestrator", "state"])
def test_listener_whose_lock_is_deleted_ends_before_another_tells_the_same(listener: Listener, folder: str) -> None:
    listener.start(SCAN_INTERVAL=0.2)
    assert listener.popen is not None
    (listener.site.root / folder / ".listener.lock").unlink()
    assert listener.popen.wait(60) == 4
