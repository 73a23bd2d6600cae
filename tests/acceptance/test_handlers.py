"""Warm handlers as a user has them: HANDLER_COMMAND, PROVIDER=handler, task files in, result files out."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import REPOSITORY, Process, Site
from tests.waiting import wait_for

RUDE = shlex.join([sys.executable, "-I", "-S", str(REPOSITORY / "tests" / "rude_handler.py")])
HANDLERS = """
import json, os, subprocess, sys
from watcher.handler import PermanentError, handler, serve

@handler
def default(event):
    print("printed in", event["task_id"])
    os.system("echo from a program")
    return event["description"].upper()

@handler("facts")
def facts(event):
    return {"event": event, "pid": os.getpid(), "stdin": sys.stdin.read()}

@handler
def broken(event):
    raise ValueError("no such weather")

@handler
def hopeless(event):
    raise PermanentError("this cannot be done at all")

@handler
def large(event):
    return "head" + "x" * 5000 + "tail"

if __name__ == "__main__":
    serve()
"""


def start(site: Site, command: str | None = None, **settings: Any) -> Process:
    """A worker whose handlers are written with watcher.handler, or are another command."""
    script = site.home / "my_handlers.py"
    script.write_text(HANDLERS)
    command = command or shlex.join([sys.executable, str(script)])
    return site.start(**{
        "PROVIDER": "handler", "HANDLER_COMMAND": command, "LOG_LEVEL": "DEBUG", "PYTHONPATH": str(REPOSITORY),
        "MAX_RETRIES": "0", "CIRCUIT_BREAKER_THRESHOLD": "100", **settings,
    })  # fmt: skip


def test_tasks_are_answered_by_processes_that_stay(site: Site) -> None:
    worker = start(site)
    for n in range(30):
        site.drop(f"t{n}", metadata={"handler": "facts", "n": n}, agent_id=f"a{n}", model="a-model", cwd=str(site.home))
    pids = set()
    for n in range(30):
        result = site.result(f"t{n}")
        assert (result["status"], result["exit_code"], result["provider"]) == ("completed", 0, "handler")
        facts = json.loads(result["stdout"])
        pids.add(facts["pid"])
        assert facts["event"] == {
            "task_id": f"t{n}", "worker": "marie", "attempt": 1, "description": f"do t{n}",
            "metadata": {"handler": "facts", "n": n}, "agent_id": f"a{n}", "model": "a-model", "cwd": str(site.home),
        }  # fmt: skip
        assert facts["stdin"] == ""
    assert len(pids) <= 3
    worker.logged("handler.started", 3)
    assert worker.stop() == 0
    assert [line["reason"] for line in worker.lines("handler.ended")] == ["shutdown"] * 3
    assert worker.lines("process.leftovers_killed") == []
    assert (site.command_pids(), site.leftovers()) == ([], [])


def test_prints_go_to_stderr_and_the_answer_to_stdout(site: Site) -> None:
    start(site)
    site.drop("one")
    result = site.result("one")
    assert result["stdout"] == "DO ONE"
    assert sorted(result["stderr"].splitlines()) == ["from a program", "printed in one"]


def test_failures_have_reasons_and_retries_as_those_of_any_agent(site: Site) -> None:
    start(site, MAX_RETRIES="1")
    site.drop("broken", metadata={"handler": "broken"})
    site.drop("hopeless", metadata={"handler": "hopeless"})
    site.drop("nobody", metadata={"handler": "nobody"})
    site.drop("number", metadata={"handler": 7})
    site.drop("good")
    broken = site.result("broken")
    assert (broken["status"], broken["attempts"], broken["exit_code"]) == ("failed", 2, 1)
    assert broken["stderr"].rstrip().endswith("ValueError: no such weather")
    assert "handler_failed on attempt 2: handler: ValueError: no such weather" in broken["detail"]
    hopeless = site.result("hopeless")
    assert (hopeless["reason"], hopeless["attempts"]) == ("handler_failed", 1)
    assert hopeless["detail"] == "handler: this cannot be done at all"
    assert "no handler is called 'nobody'; there are: broken, default" in site.result("nobody")["detail"]
    assert site.result("number")["reason"] == "bad_handler_name"
    assert site.result("good")["status"] == "completed"
    assert sorted(site.dead_letters()) == ["broken", "hopeless", "nobody", "number"]


def test_a_long_answer_is_shortened_and_kept_whole_beside_the_result(site: Site) -> None:
    start(site, MAX_OUTPUT_BYTES="1000")
    site.drop("long", metadata={"handler": "large"})
    result = site.result("long")
    assert result["stdout_truncated"] is True
    assert result["stdout"].startswith("headxxx")
    assert result["stdout"].endswith("xxxtail")
    whole = site.root / "results" / "marie" / result["stdout_path"].rpartition("results/marie/")[2]
    assert whole.read_text() == "head" + "x" * 5000 + "tail"


def test_handlers_that_hang_or_crash_cost_their_own_task(site: Site) -> None:
    script = site.home / "two.py"
    script.write_text(
        "import os, time\n"
        "from watcher.handler import handler, serve\n"
        "@handler\n"
        "def default(event):\n"
        "    word = event['description']\n"
        "    if word == 'hang': time.sleep(600)\n"
        "    if word == 'crash': os._exit(9)\n"
        "    return word\n"
        "serve()\n"
    )
    worker = start(site, shlex.join([sys.executable, str(script)]))
    site.drop("hang", description="hang", timeout=0.5)
    site.drop("crash", description="crash")
    for n in range(10):
        site.drop(f"good{n}", description="fine")
    assert [site.result(f"good{n}")["stdout"] for n in range(10)] == ["fine"] * 10
    assert (site.result("hang")["status"], site.result("crash")["status"]) == ("timeout", "failed")
    assert "no answer within 0.5 s" in site.result("hang")["detail"]
    crash = site.result("crash")
    assert (crash["exit_code"], "exit code 9" in crash["detail"]) == (9, True)
    wait_for("both to be logged", lambda: len(worker.lines("handler.failed")) == 2)
    assert worker.stop() == 0
    assert (site.command_pids(), site.leftovers()) == ([], [])


def test_a_handler_that_keeps_what_it_has_read_never_gets_much_larger_than_it_may(site: Site) -> None:
    script = site.home / "hoarder.py"
    script.write_text(
        "import os\n"
        "from watcher.handler import handler, serve\n"
        "HOARD = []\n"
        "@handler\n"
        "def default(event):\n"
        "    HOARD.append(b'x' * (40 << 20))\n"
        "    with open('/proc/self/statm') as file:\n"
        "        return str(int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') >> 20)\n"
        "serve()\n"
    )
    worker = start(site, shlex.join([sys.executable, str(script)]), HANDLER_MAX_MEMORY=150 << 20, HANDLER_POOL_SIZE="1")
    for n in range(12):
        site.drop(f"t{n}")
    sizes = [int(site.result(f"t{n}", seconds=60)["stdout"]) for n in range(12)]
    assert 100 < max(sizes) < 200
    assert {line["reason"] for line in worker.lines("handler.ended")} == {"max_memory"}


def test_a_command_that_cannot_be_kept_warm_runs_once_for_each_task_and_says_so(site: Site) -> None:
    worker = start(site, "cat")
    site.drop("one")
    site.drop("named", metadata={"handler": "facts"})
    assert site.result("one")["stdout"] == "do one"
    beat = site.beat_that(lambda beat: beat.get("status") == "held", what="that is held")
    assert "handler_not_warm" in beat["reason"]
    assert "the task names the handler 'facts'" in beat["reason"]
    assert len(wait_for("the event", lambda: worker.lines("handler.fell_back"))) == 1
    assert "named" not in site.results()


def test_a_fallback_is_seen_in_the_heartbeat_of_a_healthy_worker(site: Site) -> None:
    start(site, "cat")
    beat = site.beat_that(lambda beat: "one process for each task" in (beat.get("reason") or ""), what="that says so")
    assert beat["status"] == "healthy"


def test_a_program_of_watcher_handler_is_a_one_shot_agent_too(site: Site) -> None:
    script = site.home / "my_handlers.py"
    script.write_text(HANDLERS)
    site.start(
        AGENT_COMMAND=shlex.join([sys.executable, str(script)]), PYTHONPATH=str(REPOSITORY), AGENT_ENV="PYTHONPATH"
    )
    site.drop("one")
    result = site.result("one")
    assert (result["stdout"], result["status"]) == ("DO ONE", "completed")
    assert "printed in one" in result["stderr"]


def test_other_providers_run_beside_the_pool_as_ever(site: Site) -> None:
    start(site, AGENT_COMMAND="cat")
    site.drop("warm")
    site.drop("once", provider="command")
    assert (site.result("warm")["stdout"], site.result("once")["stdout"]) == ("DO WARM", "do once")


def test_a_missing_command_holds_the_provider(site: Site) -> None:
    start(site, "/nowhere/at-all")
    site.drop("one")
    beat = site.beat_that(lambda beat: beat.get("status") == "held", what="that is held")
    assert "command_missing" in beat["reason"]
    assert "HANDLER_COMMAND" in beat["reason"]
    assert site.pending() == ["one"]


def test_without_the_setting_no_process_or_module_of_a_pool_is_there(site: Site) -> None:
    worker = site.start()
    site.drop("one")
    assert site.result("one")["status"] == "completed"
    children = [(task / "children").read_text() for task in Path(f"/proc/{worker.pid}/task").iterdir()]
    assert "".join(children) == ""
    rooms = "('watcher.runner.warm', 'watcher.runner.orphan_guard')"
    code = f"import sys, worker_watcher; print([name for name in sys.modules if name.startswith({rooms})])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_second_signal_ends_handlers_at_work_and_gives_their_tasks_back(site: Site) -> None:
    script = site.home / "sleepy.py"
    script.write_text(
        "import time\nfrom watcher.handler import handler, serve\n"
        "@handler\ndef default(event):\n    time.sleep(600)\nserve()\n"
    )
    worker = start(site, shlex.join([sys.executable, str(script)]), SHUTDOWN_GRACE="0.2")
    site.drop("one")
    wait_for("it to run", lambda: site.beat()["active_tasks"] == 1)
    assert worker.stop() == 0
    assert site.results() == []
    assert site.command_pids() == []
    assert len(list((site.inbox() / ".retry").glob("*")) + list(site.inbox().glob("one.json"))) == 1
