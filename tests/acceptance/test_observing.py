"""What people and monitors see: the log, the metrics, the probes; and what none of them ever shows."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.conftest import Site
from tests.waiting import wait_for

DOCUMENTED = {
    "watcher_tasks_processed_total": {"worker", "status"},
    "watcher_tasks_failed_total": {"worker", "reason"},
    "watcher_task_duration_seconds": {"worker"},
    "watcher_task_queue_size": {"worker"},
    "watcher_active_tasks": {"worker"},
    "watcher_circuit_breaker_state": {"worker"},
}
CANARY = "canary-7f3a9c"


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# --- metrics


def test_three_workers_that_set_no_port_get_one_each_and_tell_it(site: Site) -> None:
    workers = [site.launch(name, ENABLE_METRICS=None) for name in ("marie", "anga", "fabien")]
    ports = {}
    for name in ("marie", "anga", "fabien"):
        wait_for(f"the heartbeat of {name}", lambda name=name: (site.root / "heartbeats" / f"{name}.json").exists())
        ports[name] = site.beat(name)["metrics_port"]
    assert len(set(ports.values())) == 3 and all(9090 <= port < 9200 for port in ports.values())
    for process, (name, port) in zip(workers, ports.items(), strict=True):
        assert f'worker="{name}"' in fetch(port, "/metrics")[1]
        moved = process.lines("metrics.port_moved")
        assert bool(moved) == (port != 9090) and all(str(port) in line["message"] for line in moved)
        assert f"metrics on port {port}" in process.lines("worker.started")[0]["message"]


def test_port_that_was_set_and_is_busy_is_a_clear_error(site: Site) -> None:
    with closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        refused = site.launch("marie", "--metrics-port", str(port), ENABLE_METRICS=None)
        assert refused.ended() == 2
    assert f"METRICS_PORT={port} is in use" in refused.text() and "Traceback" not in refused.text()
    assert not (site.root / "heartbeats").exists(), "it has not begun to serve"


def test_metrics_have_the_documented_names_and_labels_and_count_what_happens(site: Site) -> None:
    fragile = site.script('while test ! -e "$SITE/go"; do sleep 0.02; done; test "$WATCHER_TASK_ID" != bad')
    site.start("marie", "--metrics-port", "0", ENABLE_METRICS=None, AGENT_COMMAND=fragile, MAX_CONCURRENT_TASKS="2",
               MAX_RETRIES="1", CIRCUIT_BREAKER_THRESHOLD="2", CIRCUIT_BREAKER_TIMEOUT="3600")  # fmt: skip
    port = site.beat()["metrics_port"]
    status, text = fetch(port, "/metrics")
    assert status == 200
    found: dict[str, set[frozenset[str]]] = {}
    for name, labels in samples(text):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        found.setdefault(base, set()).add(frozenset(key for key, _ in labels) - {"le"})
    for name, labels in DOCUMENTED.items():
        assert found.get(name) == {frozenset(labels)}, name
    assert re.findall(r"^# TYPE (watcher_task_duration_seconds) (\w+)", text, re.M)[0][1] == "histogram"
    limits = [float(le) for le in re.findall(r'watcher_task_duration_seconds_bucket\{le="([\d.e+]+)"', text)]
    assert max(limits) >= 3600

    def value(name: str, **labels: str) -> float | None:
        return samples(fetch(port, "/metrics")[1]).get((name, frozenset({"worker": "marie", **labels}.items())))

    for stem in ("good-1", "good-2", "waits"):
        site.drop(stem)
    site.beat_that(lambda beat: (beat["active_tasks"], beat["queue_size"]) == (2, 1), what="with two running")
    assert value("watcher_active_tasks") == 2 and value("watcher_task_queue_size") == 1
    for name in ("watcher_heartbeat_age_seconds", "watcher_last_scan_age_seconds"):
        age = value(name)
        assert age is not None and age >= 0, name
    (site.home / "go").touch()
    for stem in ("good-1", "good-2", "waits"):
        site.result(stem)
    wait_for("three to be counted", lambda: value("watcher_tasks_processed_total", status="completed") == 3)
    wait_for("three durations", lambda: value("watcher_task_duration_seconds_count") == 3)
    assert value("watcher_active_tasks") == 0
    assert value("watcher_circuit_breaker_state") == 0
    site.drop("bad")
    site.result("bad")
    wait_for("one to be counted", lambda: value("watcher_tasks_processed_total", status="failed") == 1)
    wait_for("its reason", lambda: value("watcher_tasks_failed_total", reason="max_retries_exceeded") == 1)
    assert value("watcher_circuit_breaker_state") == 1
    assert "good-1" not in fetch(port, "/metrics")[1], "a task id is never a label"


def test_probes_say_yes_and_readiness_says_no_while_it_drains(site: Site) -> None:
    wait = site.script('echo "$$" >> "$SITE/notes"; while test ! -e "$SITE/go"; do sleep 0.02; done')
    worker = site.start("marie", "--metrics-port", "0", ENABLE_METRICS=None, AGENT_COMMAND=wait)
    port = site.beat()["metrics_port"]
    assert fetch(port, "/healthz")[0] == 200
    assert fetch(port, "/readyz") == (200, "ready\n")
    assert fetch(port, "/secrets")[0] == 404
    site.drop("running")
    wait_for("the command", site.noted)  # a task that is active and has not begun goes back at a stop
    worker.popen.terminate()
    site.beat_that(lambda beat: beat["status"] == "draining", what="that says draining")
    assert fetch(port, "/readyz") == (503, "draining\n")
    assert fetch(port, "/healthz")[0] == 200
    (site.home / "go").touch()
    assert worker.ended() == 0


# --- logs


def test_log_is_json_lines_with_the_documented_fields_and_events(site: Site) -> None:
    worker = site.start(AGENT_COMMAND=site.script('test "$WATCHER_TASK_ID" = good'), MAX_RETRIES="1")
    site.drop("good", colour="blue")
    site.drop("bad")
    (site.inbox() / "broken.json").write_text("{")
    site.result("good")
    site.dead_letter("bad")
    site.dead_letter("broken")
    # A result can be read a moment before the worker says so.
    wait_for(
        "the last words about each", lambda: len(worker.lines("task.settled")) == 2 and worker.lines("task.refused")
    )
    assert worker.stop() == 0
    raw = worker.text().splitlines()
    lines = worker.lines()
    assert len(raw) == len(lines), "every line is JSON"
    for line in lines:
        assert {"timestamp", "level", "logger", "worker", "message", "event"} <= set(line), line
        assert (line["logger"].partition(".")[0], line["worker"]) == ("watcher", "marie") and line["message"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"])
    of_good = [(line["event"], line["level"]) for line in lines if line.get("task_id") == "good"]
    assert of_good == [("task.fields_unknown", "WARNING"), ("task.started", "INFO"), ("task.settled", "INFO")]
    of_bad = [(line["event"], line["level"]) for line in lines if line.get("task_id") == "bad"]
    assert of_bad == [
        ("task.started", "INFO"), ("task.retry_scheduled", "WARNING"), ("task.started", "INFO"),
        ("task.settled", "INFO"),
    ]  # fmt: skip
    [refused] = worker.lines("task.refused")
    assert (refused["task_id"], refused["level"], refused["reason"]) == ("broken", "ERROR", "invalid_json")
    assert [line["event"] for line in lines][:1] == ["worker.started"]
    assert [line["event"] for line in lines][-2:] == ["worker.draining", "worker.stopped"]


def test_log_level_decides_what_is_logged(site: Site) -> None:
    talkative = site.start("marie", "--log-level", "debug")
    site.drop("a")
    site.result("a")
    wait_for("the details", lambda: talkative.lines("task.attempted"))
    talkative.stop()
    silent = site.start(LOG_LEVEL="ERROR")
    site.drop("b")
    site.result("b")
    assert silent.stop() == 0 and silent.text() == ""


def test_text_log_can_be_read_in_a_terminal(site: Site) -> None:
    worker = site.start("marie", "--log-format", "text")
    site.drop("a")
    site.result("a")
    assert worker.stop() == 0
    lines = worker.text().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d+Z (INFO|WARNING|ERROR) +marie \S", line) for line in lines), lines
    settled = [line for line in lines if " task.settled " in line]
    assert len(settled) == 1 and "task_id=a" in settled[0] and "status=completed" in settled[0]
    assert "\x1b" not in worker.text(), "no colours where no terminal is"


def test_no_prompt_output_or_secret_is_in_log_receipt_heartbeat_or_metrics(site: Site) -> None:
    say = f'cat; echo "said {CANARY}"; echo "err {CANARY} $MY_SECRET" >&2; test "$WATCHER_TASK_ID" = good'
    worker = site.start(
        "marie", "--metrics-port", "0", ENABLE_METRICS=None, AGENT_COMMAND=site.script(say), AGENT_ENV="MY_SECRET",
        MY_SECRET=f"{CANARY}-env", MAX_RETRIES="1", OTHER_SECRET=f"{CANARY}-other",
    )  # fmt: skip
    task = {"description": f"{CANARY} in the prompt", "metadata": {"note": CANARY}}
    for stem in ("good", "bad"):
        site.drop(stem, **task)
    (site.inbox() / "broken.json").write_text(f'{{"description": "{CANARY}", oops')
    (site.inbox() / "wrong.json").write_text(f'{{"description": "{CANARY}", "timeout": "{CANARY}"}}')
    assert CANARY in site.result("good")["stdout"] and f"{CANARY}-env" in site.result("good")["stderr"]
    assert CANARY in site.dead_letter("bad")["description"]
    for stem in ("broken", "wrong"):
        site.dead_letter(stem)
    site.pass_beats(1)
    shown = {"metrics": fetch(site.beat()["metrics_port"], "/metrics")[1]}
    assert worker.stop() == 0
    shown["log"] = worker.text()
    for folder in ("triggers", "heartbeats", "control"):
        for path in (site.root / folder).rglob("*"):
            if path.is_file():
                shown[str(path)] = path.read_text()
    assert len(shown) >= 5 and [where for where, text in shown.items() if CANARY in text] == []
    everywhere = [p for p in site.root.rglob("*") if p.is_file() and f"{CANARY}-other" in read_text(p)]
    assert everywhere == [], "a variable that no command may see is nowhere"


def read_text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")
