"""Every command of `watcher`, as a person runs it, against real workers that live and that do not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.acceptance.conftest import REPOSITORY, Site, is_alive, names, read
from tests.acceptance.test_control_files import NOTING, SLOW, TREE
from tests.waiting import wait_for

#: Completes, unless the task says `bad`.
PICKY = 'read -r line; case "$line" in bad*) echo oops >&2; exit 3;; *) echo "did $line";; esac'


def lines(site: Site, *words: str, **settings: Any) -> list[Any]:
    """What a command says as JSON, a value a line."""
    done = site.run(*words, "--json", **settings)
    assert done.stdout, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def said(site: Site, *words: str, code: int = 0, **settings: Any) -> str:
    done = site.run(*words, **settings)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_submit_takes_text_from_argument_stdin_and_file_and_waits(site: Site) -> None:
    said(site, "submit", "marie", "one", "--id", "a", "--priority", "high", "--meta", "n=1", "--after", "z")
    task = {"task_id": "a", "worker": "marie", "priority": "high", "dependencies": ["z"], "metadata": {"n": "1"}}
    assert read(site.inbox() / "a.json") == task | {"description": "one"}
    assert site.run("submit", "marie", "-", "--id", "b", stdin="two\n").returncode == 0
    (site.home / "text").write_text("three")
    (told,) = lines(site, "submit", "marie", "--file", "text", "--id", "c")
    assert told["task_id"] == "c" and read(site.inbox() / "c.json")["description"] == "three"
    assert site.run("submit", "marie", "x", "--id", "b").returncode == 2
    assert site.run("submit", "marie").returncode == 2
    site.start()
    (told,) = lines(site, "submit", "marie", "four", "--wait", "60")
    assert told["result"]["stdout"] == "four"
    assert site.result("b")["stdout"] == "two\n"


def test_list_and_show_tell_each_state_with_and_without_a_worker(site: Site) -> None:
    site.drop("r")
    worker = site.start(AGENT_COMMAND=site.script(SLOW), MAX_CONCURRENT_TASKS=1)
    wait_for("its start", site.noted)
    site.drop("w", priority="low")
    site.drop("s", not_before="2100-01-01T00:00:00Z")
    site.drop("b", dependencies=["nobody"])
    site.drop("h")
    said(site, "hold", "h")
    expected = {"r": "running", "w": "waiting", "s": "scheduled", "b": "blocked", "h": "held"}
    assert {line["task_id"]: line["state"] for line in lines(site, "list")} == expected
    assert [line["task_id"] for line in lines(site, "list", "--state", "held")] == ["h"]
    (shown,) = lines(site, "show", "marie/b")
    assert (shown["missing"], shown["description"]) == (["nobody"], "do b")
    text = said(site, "list")
    assert "after nobody" in text and "WORKER" in text
    assert re.search(r"marie +w +waiting +low ", text)
    assert said(site, "list", "marie").splitlines()[0] == text.splitlines()[0]
    assert (
        said(site, "list", "anga")
        == said(site, "list", "--worker", "anga")
        == f"no tasks waiting or running in {site.root}\n"
    )
    assert "  priority  low\n" in said(site, "show", "w")
    assert [line["holdup"] for line in lines(site, "show", "w")] == [None]
    said(site, "pause", "marie")
    assert "  held up   marie is paused; end the pause: watcher resume marie\n" in said(site, "show", "w")
    worker.kill()
    assert {line["task_id"]: line["state"] for line in lines(site, "list")} == expected | {"r": "orphaned"}
    assert "  held up   no process of marie runs\n" in said(site, "show", "w")
    assert "held up" not in said(site, "show", "b") + said(site, "show", "h") + said(site, "show", "s")
    assert site.run("show", "nowhere").returncode == 1
    status = json.loads(
        subprocess.run(
            [sys.executable, str(REPOSITORY / "demo_watcher.py"), "--status", "--json"],
            env=site.environment({}), capture_output=True, check=True, cwd=site.home,
        ).stdout
    )  # fmt: skip
    assert [(w["pending"], w["held"]) for w in status["workers"]] == [(4, 1)]


def test_tail_follows_a_task_from_before_its_start_to_its_end(site: Site) -> None:
    script = 'echo one; while [ ! -e "$SITE/go" ]; do sleep 0.05; done; echo two; sleep 0.3; echo three'
    site.drop("x")
    said_aside = site.home / "stderr"
    with said_aside.open("w") as stderr:
        tail = subprocess.Popen(
            [sys.executable, "-m", "watcher", "tail", "x"], cwd=site.home, text=True, stdout=subprocess.PIPE,
            stderr=stderr, env=site.environment({}) | {"PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
    wait_for("the word that it waits", lambda: "does not run yet" in said_aside.read_text())
    site.start(AGENT_COMMAND=site.script(script), HEARTBEAT_INTERVAL=60)
    assert tail.stdout is not None
    assert tail.stdout.readline() == "one\n", "while it runs, and although no beat was due"
    (site.home / "go").touch()
    out, _ = tail.communicate(timeout=60)
    assert (out, tail.returncode) == ("two\nthree\n", 0)
    assert "completed" in said_aside.read_text()


def test_cancel_ends_what_waits_at_once_and_what_runs_by_its_worker(site: Site) -> None:
    site.drop("w", not_before="2100-01-01T00:00:00Z")
    assert "before it ran" in said(site, "cancel", "w", "--reason", "not needed")
    result = read(site.root / "results" / "marie" / "w.json")
    assert result["status"] == "cancelled" and result["detail"].endswith(": not needed")
    worker = site.start(AGENT_COMMAND=site.script(TREE))
    site.drop("x")
    wait_for("the grandchild", lambda: site.noted("grandchildren"))
    pids = [int(site.noted()[0].split()[1]), int(site.noted("grandchildren")[0])]
    (told,) = lines(site, "cancel", "x", "--wait", "60")
    assert told["is_cancelled"] and not any(is_alive(pid) for pid in pids)
    site.settled("x")
    assert "ended already" in said(site, "cancel", "x", code=1)
    assert "no task" in said(site, "cancel", "nowhere", code=1)
    worker.stop()
    assert site.leftovers() == []


def test_cancel_of_a_dead_workers_task_is_kept_for_the_next_one(site: Site) -> None:
    worker = site.start(AGENT_COMMAND=site.script(TREE))
    site.drop("x")
    wait_for("its start", site.noted)
    worker.kill()
    assert "nobody serves marie" in said(site, "cancel", "x", "--wait", "0", code=1)
    site.start(AGENT_COMMAND=site.script(TREE))
    assert site.result("x")["status"] == "cancelled"


def test_workers_says_of_a_frozen_process_that_it_does_not_beat(site: Site) -> None:
    os.kill(site.start().pid, signal.SIGSTOP)
    wait_for("the word about it", lambda: "its last heartbeat is" in said(site, "workers", "marie"))
    assert "DEAD" not in said(site, "workers", "marie")


def test_pause_resume_and_drain_work_on_a_worker_that_lives_and_one_that_does_not(site: Site) -> None:
    said(site, "pause", "marie", "--reason", "lunch")
    worker = site.start(AGENT_COMMAND=site.script(NOTING))
    site.drop("x")
    assert "paused by" in site.beat_that(lambda beat: beat["status"] == "paused", what="paused")["reason"]
    (told,) = lines(site, "workers", "marie")
    assert (told["state"], told["is_alive"], told["pid"]) == ("paused", True, worker.pid)
    assert site.noted() == []
    said(site, "resume", "marie")
    assert site.result("x")["status"] == "completed"
    assert "was not paused" in said(site, "resume", "marie", code=1)
    assert "has ended" in said(site, "drain", "marie", "--wait", "60")
    assert worker.ended() == 0
    assert "nobody serves" in said(site, "drain", "marie", code=1)
    assert site.run("workers", "marie").returncode == 1


def test_budget_says_that_a_name_is_new_here_for_it_may_be_misspelt(site: Site) -> None:
    site.start()
    site.beat_that(lambda beat: beat["status"] == "healthy", what="healthy")
    for words in (("budget", "--raise", "5"), ("budget",)):
        assert "note: mari is a new name here" in said(site, words[0], "mari", *words[1:]), words
        assert "note" not in said(site, words[0], "marie", *words[1:]), words


def test_hold_says_that_no_provider_has_this_name_and_holds_it_all_the_same(site: Site) -> None:
    site.root.mkdir(exist_ok=True)
    described = site.home / "providers.toml"
    described.write_text('[providers.mine]\ncommand = "mine"\n')
    assert "note: no provider is called clude here" in said(site, "hold", "--provider", "clude")
    assert (site.root / "control" / "holds" / "clude.json").exists()
    for known in ("claude", "command", "handler", "acp", "mine"):
        assert "note" not in said(site, "hold", "--provider", known, PROVIDERS_FILE=described), known
    described.write_text("not valid TOML")
    assert "note" not in said(site, "hold", "--provider", "mine", PROVIDERS_FILE=described)


def test_wait_says_once_why_a_worker_that_lives_does_not_start_the_task(site: Site) -> None:
    site.start(AGENT_COMMAND="/nowhere/agent")
    site.beat_that(lambda beat: beat["status"] == "held", what="held")
    complaint = said(site, "submit", "marie", "hi", "--wait", "3", code=1)
    assert complaint.count("marie is held: command: command_missing") == 1
    assert "nobody serves" not in complaint


def test_drain_of_one_instance_leaves_the_other(site: Site) -> None:
    first, second = (site.start("marie", "--instance", number) for number in ("1", "2"))
    said(site, "drain", "marie@1", "--wait", "60")
    assert first.ended() == 0
    site.pass_beats(5, "marie@2")
    assert second.popen.poll() is None


def test_drain_here_means_the_instance_of_this_environment_alone(site: Site) -> None:
    first, second = (site.start("marie", "--instance", number) for number in ("1", "2"))
    done = site.run("drain", "marie", "--here", "--wait", "60", WATCHER_INSTANCE="1")
    assert done.returncode == 0, done.stderr
    assert first.ended() == 0
    site.pass_beats(5, "marie@2")
    assert second.popen.poll() is None


def test_hold_and_resume_of_a_provider_stops_and_starts_its_tasks(site: Site) -> None:
    said(site, "hold", "--provider", "command", "--reason", "key is rotated", "--until", "2100-01-01T00:00:00Z")
    site.start(AGENT_COMMAND=site.script(NOTING))
    site.drop("x")
    site.beat_that(lambda beat: beat["status"] == "held", what="held")
    site.pass_beats(5)
    assert site.noted() == []
    said(site, "resume", "--provider", "command")
    assert site.result("x")["status"] == "completed"


def test_resume_names_the_accounts_that_are_held_when_none_was_given(site: Site) -> None:
    for account in ("team-a", "team-b"):
        said(site, "hold", "--provider", "claude", "--account", account)
    complaint = said(site, "resume", "--provider", "claude", code=1)
    assert "claude: was not held" in complaint
    assert "its accounts are held: team-a, team-b; name one with --account" in complaint
    assert "accounts" not in said(site, "resume", "--provider", "gemini", code=1)
    assert "hold removed" in said(site, "resume", "--provider", "claude", "--account", "team-a")


def test_hold_refuses_an_end_that_would_not_be_kept(site: Site) -> None:
    site.drop("x")
    for words in (("--until", "2100-01-01T00:00:00Z"), ("--reason", "later"), ("--account", "a")):
        assert "are for --provider" in said(site, "hold", "x", *words, code=2)
    assert "has passed" in said(site, "hold", "--provider", "claude", "--until", "2020-01-01T00:00:00Z", code=2)
    assert (site.inbox() / "x.json").exists() and not (site.root / "control" / "holds" / "claude.json").exists()


def test_hold_release_prio_and_edit_refuse_what_does_not_wait(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(SLOW))
    site.drop("x")
    wait_for("its start", site.noted)
    for words in (("hold", "x"), ("prio", "x", "5"), ("edit", "x", "--timeout", "5"), ("release", "x")):
        assert "runs already" in said(site, *words, code=1)
    (site.home / "go").touch()
    site.settled("x")
    assert "rerun it" in said(site, "hold", "x", code=1)
    site.drop("y", not_before="2100-01-01T00:00:00Z")
    assert "invalid_field" in said(site, "edit", "y", "--timeout", "-5", code=1)
    site.drop("z", dependencies=["y"])
    assert "dependency_cycle" in said(site, "edit", "y", "--after", "z", code=1)
    assert read(site.inbox() / "y.json")["not_before"] == "2100-01-01T00:00:00Z"
    said(site, "edit", "y", "--unset", "not_before")
    assert site.result("y")["status"] == "completed"


def test_rerun_archives_the_result_and_runs_the_task_again_with_its_history(site: Site) -> None:
    worker = site.start(AGENT_COMMAND=site.script(PICKY))
    site.drop("x", description="one", x_note="kept")
    first = site.result("x")
    said(site, "rerun", "x", "--description", "two")
    second = wait_for("the second result", lambda: (r := site.result("x")) != first and r)
    assert (first["stdout"], second["stdout"]) == ("did one\n", "did two\n")
    assert read(site.root / "results" / "marie" / ".archive" / "x~1.json") == first
    past = second["submitted"]["x_history"]
    assert [(run["status"], run["timestamp"]) for run in past] == [("completed", first["timestamp"])]
    assert second["submitted"]["x_note"] == "kept"
    worker.stop()
    said(site, "rerun", "x")  # while nobody serves
    assert site.results() == [] and site.pending() == ["x"]
    assert "already waits, is held or runs" in said(site, "rerun", "x", code=1) or "no result" in said(
        site, "rerun", "x", code=1
    )
    site.start(AGENT_COMMAND=site.script(PICKY))
    assert len(site.result("x")["submitted"]["x_history"]) == 2


def test_rerun_waits_until_the_claim_of_the_run_before_is_gone(site: Site) -> None:
    """A result is seen a moment before its claim is removed; who waited for it is not told that it runs."""
    site.start()
    site.drop("x")
    site.settled("x")
    claims = site.inbox() / ".claims"
    (mine,) = [path for path in claims.iterdir() if path.is_dir()]
    (mine / "x~1-0.json").write_text('{"description": "do x"}')
    rerun = subprocess.Popen(
        [sys.executable, "-m", "watcher", "rerun", "x"], cwd=site.home,
        env=site.environment({}) | {"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for("its own claim folder", lambda: len([path for path in claims.iterdir() if path.is_dir()]) == 2)
    (mine / "x~1-0.json").unlink()
    assert rerun.wait(60) == 0
    wait_for("the second result", lambda: "x_history" in read(site.root / "results/marie/x.json").get("submitted", {}))


def test_redrive_puts_dead_letters_back_and_archives_them(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(PICKY), MAX_RETRIES=0)
    for stem in ("a", "b"):
        site.drop(stem, description="bad", metadata={"k": 1})
        site.dead_letter(stem), site.result(stem)
    said(site, "redrive", "a", "--description", "good")
    result = wait_for("the good result", lambda: (r := site.result("a"))["status"] == "completed" and r)
    assert result["metadata"] == {"k": 1} and result["submitted"]["x_history"][0]["status"] == "failed"
    assert site.dead_letters() == ["b"]
    assert names(site.root / "dlq" / "marie" / ".archive") == ["a~1.json"]
    before = site.result("b")
    (told,) = lines(site, "redrive", "--reason", "max_retries_exceeded")
    assert (told["dead_letter"], told["is_done"]) == ("marie/b", True)
    again = wait_for(
        "another failure", lambda: (r := read(site.root / "results/marie/b.json")) not in ({}, before) and r
    )
    assert again["status"] == "failed"
    assert site.dead_letter("b")["dlq_result"]["timestamp"] == again["timestamp"]
    assert "no dead letter" in said(site, "redrive", "a", code=1)


def test_unreadable_file_is_redriven_only_by_force_or_with_a_description(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(PICKY))
    for stem in ("a", "b"):
        (site.inbox() / f"{stem}.json").write_text('{"description": ')
        site.original(site.dead_letter(stem))
    assert "--force" in said(site, "redrive", "--all", code=1)
    assert site.dead_letters() == ["a", "b"]
    said(site, "redrive", "a", "--description", "mended")
    assert site.result("a")["stdout"] == "did mended\n"
    said(site, "redrive", "b", "--force")
    wait_for("the same refusal", lambda: site.dead_letters() == ["b"])
    assert names(site.root / "dlq" / "marie" / ".archive") == ["a~1.json", "b~1.json"]


def test_duplicate_is_redriven_only_under_an_id_of_its_own(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(PICKY))
    site.drop("a", description="one")
    site.result("a")
    site.drop("a", description="two")
    site.dead_letter("a")
    assert "--id" in said(site, "redrive", "a", code=1)
    said(site, "redrive", "a", "--id", "a2")
    assert site.result("a2")["stdout"] == "did two\n"
    assert site.result("a")["stdout"] == "did one\n"


def test_fifo_among_results_and_dead_letters_hangs_no_command(site: Site) -> None:
    for place in (site.root / "results/marie", site.root / "dlq/marie"):
        place.mkdir(parents=True)
        os.mkfifo(place / "f.json")
        (place / "deep.json").write_text("[" * 100_000)
    assert "not a result of ours" in said(site, "show", "f")
    assert "nested deeper than 64 levels" in said(site, "show", "deep")
    told = said(site, "results")
    assert told.startswith("no result yet\n") and told.count("not a result of ours") == 2
    assert "f" in said(site, "purge", "--dead-letters", "--worker", "marie")
    assert site.run("redrive", "--all").returncode in (0, 1)


def test_purge_removes_only_with_yes_and_never_what_a_task_needs(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script(PICKY), MAX_RETRIES=0)
    for stem in ("a", "b"):
        site.drop(stem)
        site.result(stem)
    site.drop("later", dependencies=["a"], not_before="2100-01-01T00:00:00Z")
    (site.inbox() / "broken.json").write_text("{")
    original = site.original(site.dead_letter("broken"))
    assert "with --yes" in said(site, "purge", "--results", "--older-than", "0s")
    assert site.results() == ["a", "b"]
    said(site, "purge", "--results", "--dead-letters", "--receipts", "--older-than", "0s", "--yes")
    assert (site.results(), site.dead_letters(), original.exists()) == (["a"], [], False)
    assert site.run("purge", "--results").returncode == 2


def test_results_and_qshape_count_what_is_there(site: Site) -> None:
    worker = site.start(AGENT_COMMAND=site.script(PICKY), MAX_RETRIES=0)
    site.drop("good", batch_id="b1")
    site.drop("wrong", description="bad")
    site.result("good"), site.result("wrong")
    assert {r["task_id"]: r["status"] for r in lines(site, "results")} == {"good": "completed", "wrong": "failed"}
    assert [r["task_id"] for r in lines(site, "results", "--batch-id", "b1")] == ["good"]
    assert "did do good" in said(site, "results", "--status", "completed")
    worker.stop()
    site.drop("new", priority="high")
    site.drop("old", priority="high")
    stamp = (site.inbox() / "old.json").stat().st_mtime - 3600
    os.utime(site.inbox() / "old.json", (stamp, stamp))
    ((row,),) = lines(site, "qshape")
    assert (row["worker"], row["priority"], row["total"]) == ("marie", 50, 2)
    assert (row["ages"]["5m"], row["ages"]["80m"]) == (1, 1)
    assert "high" in said(site, "qshape")


def test_report_says_when_nobody_has_counted(site: Site) -> None:
    assert "WATCHER_ROOT=" in said(site, "report", code=2)
    site.root.mkdir()
    assert "no listener" in said(site, "report", code=1)
    (site.root / "state" / "orchestrator.db").mkdir(parents=True)
    assert "cannot read what the listener has counted" in said(site, "report", code=2)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_its_shell_takes(site: Site, shell: str) -> None:
    script = said(site, "completion", shell)
    assert "redrive" in script and "older-than" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; only the text was looked at")
    (site.home / "completion").write_text(script)
    assert subprocess.run([shell, "-n", "completion"], cwd=site.home, check=False).returncode == 0


def test_completion_for_bash_completes_commands_flags_and_names(site: Site) -> None:
    site.drop("task-one")
    (site.home / "completion").write_text(said(site, "completion", "bash"))
    (site.home / "watcher").write_text(f'#!/bin/sh\nexec {sys.executable} -m watcher "$@"\n')
    (site.home / "watcher").chmod(0o755)
    environment = site.environment({}) | {"PYTHONPATH": str(REPOSITORY)}
    environment["PATH"] = f"{site.home}:{environment['PATH']}"

    def complete(*words: str) -> list[str]:
        typed = " ".join(f"'{word}'" for word in words)
        script = (
            f'. ./completion; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _watcher; echo "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(
            ["/bin/bash", "-c", script], cwd=site.home, env=environment, capture_output=True, text=True
        )
        return done.stdout.split()

    assert complete("watcher", "redr") == ["redrive"]
    assert complete("watcher", "cancel", "--rea") == ["--reason"]
    assert complete("watcher", "show", "task") == ["task-one"]
    assert complete("watcher", "pause", "") == ["marie"]
    assert complete("watcher", "list", "--state", "r") == ["running", "retrying"]
    assert complete("watcher", "results", "--worker", "") == ["marie"]
    assert complete("watcher", "submit", "marie", "--priority", "") == [], "no worker where another value belongs"
    assert complete("watcher", "hold", "--provider", "") == []
    assert complete("watcher", "cancel", "--reason", "over", "") == ["task-one"]
    assert complete("watcher", "help", "redr") == ["redrive"]
    assert complete("watcher", "completion", "") == ["bash", "zsh", "fish"]


def test_wait_of_submit_ends_with_ctrl_c_and_the_task_goes_on(site: Site) -> None:
    waiting = subprocess.Popen(
        [sys.executable, "-m", "watcher", "submit", "marie", "x", "--id", "x", "--wait"], cwd=site.home,
        env=site.environment({}) | {"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for("the task", lambda: site.pending() == ["x"])
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(60) == 130
    site.start()
    assert site.result("x")["status"] == "completed"
