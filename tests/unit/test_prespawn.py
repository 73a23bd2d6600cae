"""Agents that are started before their tasks: who serves what, and what happens when one cannot."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import is_alive
from tests.adoption import family
from tests.configs import made
from tests.waiting import wait_for
from tests.workshop import Running, Workshop, attempt, reason, run
from watcher.clock import SystemClock
from watcher.policy.after_attempt import Failure
from watcher.runner.oneshot import OneShotRunner
from watcher.runner.prestart import Prestarter, PrestartLimits, attending
from watcher.runner.prestarted_process import Key
from watcher.runner.providers.built_in import BUILT_IN, built_in
from watcher.runner.runner_interface import Attempt, Workplace
from watcher.settings.worker_groups import RunnerSettings
from watcher.telemetry.events import ProviderHeld, ProviderResumed, WorkerPaused, WorkerResumed

__all__ = ["family"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pipes, marks and /proc of Linux")
STANDIN = Path(__file__).parents[1] / "waiting_claude.py"
PATIENCE = 60.0


class Stable:
    """A runner of the stand-in under the name claude, and what the stand-in noted."""

    def __init__(self, place: Path) -> None:
        self.shop = Workshop(place)
        self.notes = place / "notes"
        self.home = place / "home"
        self.home.mkdir()
        self.clock = Hands()
        self.runners: list[OneShotRunner] = []

    def runner(self, way: str = "", count: int = 1, words: tuple[str, ...] = (), **more: Any) -> OneShotRunner:
        command = (sys.executable, "-I", str(STANDIN), str(self.notes), way, *words)
        prefix = f"{os.getpid():016x}{len(self.runners):016x}"
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.home), "IS_SANDBOX": "1"}
        place = Workplace(self.shop.folder, environ, id=prefix, busy_fd=self.shop.busy_fd)
        config = made(RunnerSettings, warm_agents=count, kill_grace=1.0, min_free_bytes=0)
        runner = OneShotRunner(built_in({"claude": command}), config, place, self.clock, PrestartLimits(**more))
        self.runners.append(runner)
        return runner

    def warm(self, way: str = "", count: int = 1, **more: Any) -> OneShotRunner:
        """A runner whose processes are ready."""
        runner = self.runner(way, count, **more)
        runner.expect("claude", None, "marie")
        wait_for("what is ready", lambda: ahead(runner).ready() == count, PATIENCE)
        return runner

    def noted(self, word: str) -> list[tuple[int, str]]:
        """The notes that start with a word, with the pids that wrote them."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        parts = [(int(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines if " " in line]
        return [part for part in parts if part[1].startswith(word)]

    def forget_kept(self) -> None:
        """What is kept is the caller's."""
        for path in self.shop.folder.glob("output-*.stdout"):
            if b'"result"' in path.read_bytes():
                path.unlink()

    def close(self) -> None:
        for runner in self.runners:
            runner.close()
        self.shop.close()


class Hands(SystemClock):
    """The machine's clock, moved on by hand."""

    moved = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.moved


@pytest.fixture
def stable(tmp_path: Path, family: object) -> Iterator[Stable]:
    made = Stable(tmp_path)
    yield made
    pids = [pid for pid, _ in made.noted("started")]
    made.close()
    made.forget_kept()
    assert not [pid for pid in pids if is_alive(pid)], "one outlived its runner"
    assert list(made.shop.folder.iterdir()) == []


def ahead(runner: OneShotRunner) -> Prestarter:
    assert runner.prestart is not None
    return runner.prestart


def one(prompt: str = "say hi", **more: Any) -> Attempt:
    return attempt(prompt, "claude", **more)


def said(runner: OneShotRunner, prompt: str = "say hi", **more: Any) -> str:
    outcome = run(runner, one(prompt, **more))
    assert outcome.ending.failure is None, outcome.ending
    return outcome.stdout.text


def test_a_waiting_process_serves_one_task_and_its_output_is_that_of_the_task_alone(stable: Stable) -> None:
    runner = stable.warm()
    outcome = run(runner, one("say hi"))
    assert (reason(outcome), outcome.stdout.text, outcome.exit_code) == ((None, None), "warm: say hi", 0)
    assert outcome.usage is not None and outcome.usage.cost_usd == 0.5
    assert outcome.stdout.kept is not None and outcome.leftovers_killed == 0
    kept = stable.shop.folder / outcome.stdout.kept
    assert [json.loads(line)["type"] for line in kept.read_text().splitlines()] == ["system", "result"]
    kept.unlink()


def test_each_process_serves_one_task_and_is_replaced(stable: Stable) -> None:
    runner = stable.warm(count=2)
    for number in range(4):
        wait_for("one that is ready", lambda: ahead(runner).ready() > 0, PATIENCE)
        assert said(runner, f"task {number}") == f"warm: task {number}"
    pids = [pid for pid, _ in stable.noted("warm")]
    assert len(set(pids)) == 4
    wait_for("the next two", lambda: ahead(runner).ready() == 2, PATIENCE)


def test_another_model_folder_or_budget_gets_a_process_of_its_own(stable: Stable, tmp_path: Path) -> None:
    runner = stable.warm()
    other = tmp_path / "other"
    other.mkdir()
    assert said(runner, model="m2").startswith("cold")
    assert said(runner, cwd=str(other)).startswith("cold")
    assert said(runner, max_cost_usd=1.0).startswith("cold")
    assert said(runner, "  ").startswith("cold")
    assert said(runner).startswith("warm")


def test_from_its_second_use_a_folder_has_processes_too(stable: Stable, tmp_path: Path) -> None:
    runner = stable.runner()
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    assert said(runner, cwd=str(folders[0])).startswith("cold")
    assert said(runner, cwd=str(folders[1])).startswith("cold")
    assert stable.noted("started") == []
    assert said(runner, cwd=str(folders[0])).startswith("cold")
    wait_for("one that is ready", lambda: ahead(runner).ready() == 1, PATIENCE)
    assert said(runner, cwd=str(folders[1])).startswith("cold")
    assert said(runner, cwd=str(folders[0])).startswith("warm")


def test_the_least_recently_used_of_too_many_folders_goes(stable: Stable, tmp_path: Path) -> None:
    runner = stable.warm(most_keys=2)
    (first,) = [pid for pid, _ in stable.noted("started")]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert said(runner, cwd=str(tmp_path / name)).startswith("cold")
    wait_for("its end", lambda: not is_alive(first), PATIENCE)


def test_what_waits_too_long_ends_and_is_replaced_when_it_would_have_been_used(stable: Stable) -> None:
    runner = stable.warm()
    (first,) = [pid for pid, _ in stable.noted("started")]
    stable.clock.moved += 601
    ahead(runner).pause(False)
    wait_for("its end", lambda: not is_alive(first), PATIENCE)
    assert len(stable.noted("started")) == 1
    assert said(runner).startswith("cold")
    wait_for("another one, now that it is used again", lambda: ahead(runner).ready() == 1, PATIENCE)


@pytest.mark.parametrize("way", ["die", "late", "complain", "refuse"])
def test_one_that_is_no_good_before_its_task_costs_nothing_and_is_not_tried_again_at_once(
    way: str, stable: Stable
) -> None:
    runner = stable.runner(way)
    runner.expect("claude", None, "marie")
    wait_for("its start", lambda: stable.noted("initialize"), PATIENCE)
    assert said(runner).startswith("cold")
    stable.clock.moved += 61 if way == "late" else 0
    ahead(runner).pause(False)
    wait_for("the remark", lambda: runner.remark(), PATIENCE)
    assert (runner.remark() or "").startswith("claude: not warm: it ")
    assert said(runner).startswith("cold")
    assert len(stable.noted("started")) == 1
    stable.clock.moved += 61
    assert said(runner).startswith("cold")
    wait_for("the next try", lambda: len(stable.noted("initialize")) == 2, PATIENCE)


def test_one_that_is_killed_while_it_waits_costs_nothing(stable: Stable) -> None:
    runner = stable.warm()
    (pid,) = [pid for pid, _ in stable.noted("started")]
    os.kill(pid, 9)
    assert said(runner).startswith("cold")


def test_one_that_ends_without_a_word_when_its_task_comes_costs_no_attempt(stable: Stable) -> None:
    runner = stable.warm("deaf")
    outcome = run(runner, one())
    assert (reason(outcome), outcome.stdout.text) == ((None, None), "cold: say hi")
    assert "did nothing with its task" in (runner.remark() or "")


@pytest.mark.parametrize("size", [1000, 60_000, 300_000, 3_000_000])
def test_a_task_of_any_length_arrives_whole(size: int, stable: Stable) -> None:
    runner = stable.warm()
    text = "".join(chr(0x20 + n % 90) for n in range(size)) + "\u00e9\u4e2d."
    outcome = run(runner, one(text))
    how = "cold" if size > 1 << 20 else "warm"
    assert reason(outcome) == (None, None)
    assert [json.loads(note.split(" ", 1)[1]) for _, note in stable.noted(how)] == [text]


@pytest.mark.parametrize("what", ["CLAUDE.md", "~/.claude/.credentials.json"])
def test_one_that_has_read_a_file_of_yesterday_is_not_used(what: str, stable: Stable, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "below"
    folder.mkdir(parents=True)
    runner = stable.runner()
    said(runner, cwd=str(folder))
    said(runner, cwd=str(folder))
    wait_for("one that is ready", lambda: ahead(runner).ready() == 1, PATIENCE)
    path = stable.home / what[2:] if what.startswith("~/") else folder.parent / what
    path.parent.mkdir(exist_ok=True)
    path.write_text("be kind")
    assert said(runner, cwd=str(folder)).startswith("cold")
    wait_for("another one", lambda: ahead(runner).ready() == 1, PATIENCE)
    assert said(runner, cwd=str(folder)).startswith("warm")


def test_a_change_that_keeps_size_and_time_is_seen(stable: Stable, tmp_path: Path) -> None:
    path = tmp_path / "CLAUDE.md"
    path.write_text("be kind")
    runner = stable.runner()
    said(runner, cwd=str(tmp_path))
    said(runner, cwd=str(tmp_path))
    wait_for("one that is ready", lambda: ahead(runner).ready() == 1, PATIENCE)
    before = path.stat()
    path.write_text("be rude")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert said(runner, cwd=str(tmp_path)).startswith("cold")


def test_files_that_differ_in_nothing_but_what_they_hold_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "CLAUDE.md"
    path.write_text("be kind")
    key = Key("claude", sys.executable, (), (), str(tmp_path), (str(path),))
    kind = key.facts()
    path.write_text("be rude")
    rude = key.facts()
    assert kind[-1] is not None and rude[-1] is not None
    assert isinstance(kind[-1][-1], bytes) and kind[-1][-1] != rude[-1][-1]
    path.unlink()
    os.mkfifo(path)  # it is not waited for
    assert key.facts() not in (kind, rude)


def test_one_that_stands_in_a_folder_that_was_replaced_is_not_used(stable: Stable, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    runner = stable.runner()
    said(runner, cwd=str(folder))
    said(runner, cwd=str(folder))
    wait_for("one that is ready", lambda: ahead(runner).ready() == 1, PATIENCE)
    folder.rename(tmp_path / "old")
    folder.mkdir()
    assert said(runner, cwd=str(folder)).startswith("cold")
    shutil.rmtree(tmp_path / "old")


def test_it_is_timed_out_and_stopped_as_any_other(stable: Stable) -> None:
    runner = stable.warm()
    outcome = run(runner, one("sleep", timeout_seconds=0.5))
    assert reason(outcome) == (Failure.TRANSIENT, "timeout") and outcome.ending.timed_out
    wait_for("another one", lambda: ahead(runner).ready() == 1, PATIENCE)
    task = one("sleep")
    running = Running(runner, task)
    wait_for("its first words", lambda: (runner.live_output(task.mark) or (None, None))[1], PATIENCE)
    live = runner.live(task.mark)
    assert live is not None
    runner.stop(task.mark, Failure.CANCELLED)
    assert running.outcome().ending.failure is Failure.CANCELLED
    # On a busy machine the first may have been ended before it could note its task.
    assert stable.noted("warm") and stable.noted("cold") == []


def test_after_a_refused_login_nothing_that_was_started_before_is_used(stable: Stable) -> None:
    runner = stable.warm(count=3)
    assert run(runner, one("auth")).ending.failure is Failure.AUTH
    waiting = [pid for pid, _ in stable.noted("started") if pid not in {pid for pid, _ in stable.noted("warm")}]
    wait_for("the end of the others", lambda: not any(map(is_alive, waiting)), PATIENCE)
    assert said(runner).startswith("cold")


def test_nothing_waits_for_a_provider_that_is_held(stable: Stable) -> None:
    runner = stable.warm()
    hear = attending(ahead(runner))
    (first,) = [pid for pid, _ in stable.noted("started")]
    hear(ProviderHeld("claude", "usage_limit", "", None))
    wait_for("its end", lambda: not is_alive(first), PATIENCE)
    said(runner)
    said(runner)
    assert len(stable.noted("started")) == 1
    hear(ProviderResumed("claude"))
    said(runner)
    wait_for("another one", lambda: ahead(runner).ready() == 1, PATIENCE)


def test_while_the_worker_is_paused_none_is_replaced(stable: Stable) -> None:
    runner = stable.warm()
    hear = attending(ahead(runner))
    hear(WorkerPaused("a person says so"))
    assert said(runner).startswith("warm")
    assert said(runner).startswith("cold")
    assert len(stable.noted("started")) == 1
    hear(WorkerResumed())
    wait_for("another one", lambda: ahead(runner).ready() == 1, PATIENCE)


@pytest.mark.parametrize(
    "words", [("--output-format", "text"), ("--output-format", "json"), ("--input-format", "stream-json")]
)
def test_a_command_that_says_its_own_formats_is_never_started_ahead(words: tuple[str, ...]) -> None:
    _, output = (provider := built_in({"claude": ("claude", *words)})["claude"]).argv()
    assert provider.words_to_wait(output) == ()


def test_of_the_providers_only_claude_can_wait() -> None:
    able = {name for name, provider in BUILT_IN.items() if provider.words_to_wait(provider.argv()[1])}
    assert able == {"claude"}
    assert dataclasses.replace(BUILT_IN["claude"], prompt="file").words_to_wait("stream-json") == ()


def test_many_threads_get_their_own_answers(stable: Stable) -> None:
    runner = stable.warm(count=3)
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = runner.run(one(f"task {number}")).stdout.text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert {n: text.partition(": ")[2] for n, text in answers.items()} == {n: f"task {n}" for n in range(9)}
