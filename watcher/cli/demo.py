"""Show the whole suite at work in half a minute: three real workers, a dozen tasks, every kind of ending.

Everything lies in one root that is new or empty. The workers are real processes of `worker_watcher.py` with the
stand-in agent; their output goes to log files in that root. `run` ends by itself, within a bounded time, and checks
what it shows: what did not come out as it must is said, and the exit code is 1. Whatever happens, also Ctrl-C, every
worker that was started is stopped and waited for before it returns; when this process is killed, the kernel ends them
(Linux). The files stay.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from watcher import standin
from watcher.cli import tables, terminal
from watcher.errors import SettingError, WatcherError
from watcher.settings.folders import Folders, folders
from watcher.settings.layers import ENV_FILE, SETTINGS, read_layers
from watcher.store import results, workers
from watcher.store.overview import OverviewReader
from watcher.store.results import Awaited, Ended
from watcher.store.submitting import submit, submit_many

_HERE = Path(__file__).resolve().parents[2]
#: Everything must have ended by then: it takes about 6 s on a free machine.
_TASKS_SECONDS = 120.0
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_SETTINGS = {
    "PROVIDER": "command",
    "MAX_CONCURRENT_TASKS": "2",
    "HEARTBEAT_INTERVAL": "1",
    "MAX_RETRIES": "2",
    "INITIAL_RETRY_DELAY": "0.5",
    "SETTLE_SECONDS": "0.5",
    "METRICS_PORT": "0",
    "LOG_FORMAT": "text",
}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)


class Failed(WatcherError):
    """Something did not come out as it must. Reaction: say so, exit 1."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One task, what it shows, and how it must end. `raw` is dropped by hand instead of submitted."""

    worker: str
    task_id: str
    shows: str
    fields: dict[str, Any] = field(default_factory=dict)
    ends: str = "completed"
    reason: str | None = None
    attempts: int | None = 1
    says: tuple[str, ...] = ()
    raw: bytes | None = None

    @property
    def name(self) -> str:
        return f"{self.worker}/{self.task_id}"


#: These wait already when the workers come; the last one is taken first.
_BEFORE = (
    Scene("marie", "outline", "an answer that another task needs", says=("lighthouse",),
          fields={"description": "[sleep 1] [print A lighthouse keeper writes letters to ships]"}),
    Scene("marie", "letter-1", "a task like any other", {"description": "[sleep 1] Write the first letter"}),
    Scene("marie", "letter-2", "a task like any other", {"description": "[sleep 1] Write the second letter"}),
    Scene("marie", "letter-3", "low priority: taken last",
          {"description": "[sleep 1] Write the third letter", "priority": "low"}),
    Scene("marie", "urgent", "critical priority: submitted last, taken first",
          {"description": "[sleep 0.5] A ship is in danger", "priority": "critical"}),
)  # fmt: skip
#: These come while the workers run.
_DURING = (
    Scene("anga", "numbers", "an answer that another task needs", {"description": "[print 42]"}, says=("42",)),
    Scene("anga", "flaky", "fails once, is retried, then completes", attempts=2, says=("second try",),
          fields={"description": "[fail 1 times] [print it worked at the second try]"}),
    Scene("anga", "first", "in order: one agent_id, one at a time",
          {"description": "[sleep 0.5] Step one", "agent_id": "steps"}),
    Scene("anga", "second", "in order: starts when the first one has ended",
          {"description": "Step two", "agent_id": "steps"}),
    Scene("fabien", "story", "waits for tasks of marie and anga and gets their answers", says=("42", "lighthouse"),
          fields={
              "description": "[print A story of {{anga/numbers.stdout}} words: {{marie/outline.stdout}}]",
              "dependencies": ["marie/outline", "anga/numbers"],
          }),
    Scene("fabien", "broken", "fails for good: dead letter", ends="failed", reason="max_retries_exceeded", attempts=3,
          fields={"description": "[stderr the map is missing] [fail]"}),
    Scene("fabien", "by-hand", "a file written by hand, only a description", {},
          raw=b'{ "description": "Say hello" }\n'),
    Scene("fabien", "notes", "a file that is no JSON: dead letter, the file is kept", {}, ends="refused",
          reason="invalid_json", attempts=None, raw=b'{ "description": "I forgot the closing brace"\n'),
)  # fmt: skip
_SCENES = _BEFORE + _DURING
WORKERS = ("marie", "anga", "fabien")


class Demo:
    """`say` gets text as it shall appear, newlines included; `look` tells how wide the terminal is now.

    With `redrawn`, progress is one table that is redrawn in place; without, a line for each task that ends.
    """

    def __init__(
        self, root: Path | None, say: Callable[[str], None], look: Callable[[], terminal.TerminalStyle], redrawn: bool
    ) -> None:
        self._given_root = root
        self._say = say
        self._look = look
        self._redrawn = redrawn
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: dict[str, Ended] = {}
        self._drawn = 0

    def run(self) -> int:
        """Show it all; returns the exit code. Raises SettingError for a root that is not empty, and lets
        KeyboardInterrupt through when everything is stopped."""
        root = self._root()
        places = folders(read_layers(environ={"WATCHER_ROOT": str(root)}, env_file=os.devnull))
        problems: list[str] = []
        try:
            self._play(places)
            problems += self._differences()
        except (WatcherError, OSError, ValueError) as error:
            problems.append(str(error))
        finally:
            problems += self._stop()
        if problems:
            self._fail(places, problems)
            return 1
        self._farewell(places)
        return 0

    def _root(self) -> Path:
        if self._given_root is None:
            return Path(tempfile.mkdtemp(prefix="watcher-demo-"))
        root = self._given_root.expanduser().absolute()
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise SettingError(f"--demo-root {root}: the folder is not empty; name a new or empty one")
        return root

    # --- the play

    def _play(self, places: Folders) -> None:
        self._line(f"Everything of this demo is in {places.root}")
        awaited = [Awaited(places, w, [s.task_id for s in _SCENES if s.worker == w]) for w in WORKERS]
        self._title(f"{len(_BEFORE)} tasks for marie, who is not there yet: they wait in her inbox")
        fields = [scene.fields | {"task_id": scene.task_id} for scene in _BEFORE]
        submit_many(places.tasks, "marie", fields)
        for scene in _BEFORE:
            self._announce(scene)

        self._title("Three workers start, with the stand-in agent")
        for worker in WORKERS:
            self._start(places, worker)
        self._wait_for_beats(places)

        self._title(f"{len(_DURING)} more tasks")
        for scene in _DURING:
            self._announce(scene)
            self._put(places, scene)

        self._title("Progress")
        lookout = OverviewReader(places)
        if not results.wait(awaited, _TASKS_SECONDS, lambda ended: self._progress(ended, lookout)):
            missing = ", ".join(f"{one.worker}/{task_id}" for one in awaited for task_id in sorted(one.open))
            raise Failed(f"not ended after {_TASKS_SECONDS:.0f} s: {missing}")
        self._show_results()
        self._show_heartbeats(places)
        self._show_dead_letters(places)

    def _announce(self, scene: Scene) -> None:
        self._line(f"  {scene.name:<16} {scene.shows}")

    def _put(self, places: Folders, scene: Scene) -> None:
        if scene.raw is None:
            submit(places.tasks, scene.worker, scene.fields | {"task_id": scene.task_id})
        else:
            (places.tasks / scene.worker / f"{scene.task_id}.json").write_bytes(scene.raw)

    def _progress(self, ended: Iterable[Ended], lookout: OverviewReader) -> None:
        for outcome in ended:
            self._ended[f"{outcome.worker}/{outcome.task_id}"] = outcome
            if not self._redrawn:
                self._line(f"  [{len(self._ended):>2}/{len(_SCENES)}] {_one_line(outcome)}")
        for worker, process in self._started.items():
            if process.poll() is not None:
                raise Failed(f"the worker {worker} ended by itself with exit code {process.returncode}")
        if self._redrawn:
            look = self._look()
            tally = tables.BatchProgress(
                len(_SCENES), len(self._ended), sum(not o.is_completed for o in self._ended.values())
            )
            lines = [f"{tally.ended} of {tally.total} tasks have ended", *tables.status_lines(lookout.look(), look)]
            lines = lines[: max(2, look.height - 1)]
            self._say(terminal.redraw(lines, self._drawn))
            self._drawn = len(lines)

    def _show_results(self) -> None:
        self._title("Results")
        for scene in _SCENES:
            outcome = self._ended[scene.name]
            if outcome.status != "refused":
                result = outcome.read()
                self._line(f"  {tables.result_line(result)}")
                said = terminal.clean(str(result.get("stdout", ""))).strip()
                if said:
                    self._line(f"      {terminal.cut(said, self._look().width - 6)}")
        self._title("Retried")
        for outcome in self._ended.values():
            if outcome.is_completed and outcome.read().get("retry_count"):
                self._line(f"  {tables.result_line(outcome.read())}")

    def _show_heartbeats(self, places: Folders) -> None:
        """The beats once they know of everything; they come every second."""
        want = sum(scene.ends != "refused" for scene in _SCENES)
        deadline = time.monotonic() + 5.0
        while True:
            beats = [b.fields for b in workers.read_beats(places.heartbeats, time.time(), []) if b.fields]
            known = sum(_stat(beat, "tasks_processed") for beat in beats)
            if known >= want or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self._title("Heartbeats (one file for each worker, replaced at every beat)")
        names = ("tasks_processed", "tasks_failed", "tasks_retried", "tasks_dlq")
        rows = [
            [str(beat["worker"]), str(beat["status"]), str(beat.get("pid")), str(beat.get("sequence"))]
            + [str(_stat(beat, name)) for name in names]
            for beat in beats
        ]
        header = ["WORKER", "STATUS", "PID", "BEATS", "PROCESSED", "FAILED", "RETRIED", "DLQ"]
        for line in terminal.table(header, rows, self._look()):
            self._line(f"  {line}")

    def _show_dead_letters(self, places: Folders) -> None:
        self._title("Dead letters (each with its reason; a file that cannot be read is kept beside its letter)")
        letters = [path for worker in WORKERS for path in sorted((places.dlq / worker).glob("*.json"))]
        for path in letters:
            letter = Ended(path.stem, path.parent.name, "refused", path).read()
            self._line(f"  {terminal.cut(tables.letter_line(letter), self._look().width - 2)}")
        want = sorted(scene.name for scene in _SCENES if scene.ends != "completed")
        got = sorted(f"{path.parent.name}/{path.stem}" for path in letters)
        if want != got:
            raise Failed(f"the dead letters are {got} and must be {want}")

    def _differences(self) -> list[str]:
        """What did not come out as it must."""
        problems = [problem for scene in _SCENES for problem in _differences(scene, self._ended[scene.name].read())]
        started = {s.task_id: str(self._ended[s.name].read().get("started_at")) for s in _BEFORE}
        # Two slots begin at once, and which of their threads is faster says nothing about the order of claims.
        first = sorted(started, key=lambda task_id: started[task_id])[: int(_SETTINGS["MAX_CONCURRENT_TASKS"])]
        if "urgent" not in first:
            problems.append(f"marie/urgent was not among the first: {started}")
        return problems

    def _fail(self, places: Folders, problems: list[str]) -> None:
        self._title("The demo FAILED")
        for problem in problems:
            self._line(f"  {terminal.clean(problem)}")
        for worker in self._started:
            log = (places.root / f"{worker}.log").read_text(errors="replace").splitlines()
            self._line(f"  the last words of {worker}:")
            for line in log[-5:]:
                self._line(f"    {terminal.clean(line)}")
        self._line(f"All files and logs are in {places.root}")

    def _farewell(self, places: Folders) -> None:
        root = shlex.quote(str(places.root))
        self._title("Everything came out as it must, and the workers have stopped")
        self._line(f"  all files and logs        {root}")
        self._line(f"  look at them              WATCHER_ROOT={root} python demo_watcher.py --status")
        self._line(f"  remove them               rm -r {root}")
        self._line("")
        self._line("Try next:")
        self._line("  python demo_watcher.py --setup      # your own folders, in ./shared")
        self._line("  python worker_watcher.py marie      # a worker with the claude CLI; Ctrl-C ends it")
        self._line('  python demo_watcher.py --task marie "List files" --wait')
        self._line("  python demo_watcher.py --examples   # things to paste")

    # --- the workers

    def _start(self, places: Folders, worker: str) -> None:
        program = _HERE / "worker_watcher.py"
        with (places.root / f"{worker}.log").open("ab") as log:
            self._started[worker] = subprocess.Popen(
                [sys.executable, str(program), worker],
                env=_environment(places.root),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to pass on
                preexec_fn=_end_with_us if sys.platform == "linux" else None,
            )

    def _wait_for_beats(self, places: Folders) -> None:
        lookout = OverviewReader(places)
        deadline = time.monotonic() + _START_SECONDS
        for worker, process in self._started.items():
            while True:
                found = lookout.processes(worker)
                alive = next((p for p in found if p.is_alive and p.beat_age_seconds is not None), None)
                if alive is not None:
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"the worker {worker} does not start")
                time.sleep(0.05)
            self._line(f"  {worker:<8} pid {process.pid}, {alive.state}, metrics on port {alive.metrics_port}")

    def _stop(self) -> list[str]:
        """End every worker that was started, gently if it goes; returns what was wrong with that."""
        problems = []
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._started.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for worker, process in self._started.items():
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
                process.kill()
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    problems.append(f"the worker {worker} did not stop within {_STOP_SECONDS:.0f} s and was killed")
            else:
                if code != 0:
                    problems.append(f"the worker {worker} ended with exit code {code}")
        return problems

    # --- saying

    def _line(self, text: str) -> None:
        self._say(f"{text}\n")

    def _title(self, text: str) -> None:
        self._say(f"\n{self._look().paint(text, 'bold')}\n")
        self._drawn = 0


def _differences(scene: Scene, record: dict[str, Any]) -> list[str]:
    """How the end of one task differs from what its scene promises."""
    if scene.ends == "refused":
        pairs: list[tuple[str, object, object]] = [("reason", record.get("dlq_reason"), scene.reason)]
    else:
        pairs = [("status", record.get("status"), scene.ends), ("reason", record.get("reason"), scene.reason)]
        pairs.append(("attempts", record.get("attempts"), scene.attempts))
    out = [f"{scene.name}: {what} is {got!r} and must be {want!r}" for what, got, want in pairs if got != want]
    said = str(record.get("stdout"))
    return out + [f"{scene.name}: its answer lacks {text!r}: {said!r:.200}" for text in scene.says if text not in said]


def _one_line(outcome: Ended) -> str:
    record = outcome.read()
    return tables.letter_line(record) if outcome.status == "refused" else tables.result_line(record)


def _stat(beat: dict[str, Any], name: str) -> int:
    stats = beat.get("stats")
    value = stats.get(name) if isinstance(stats, dict) else None
    return value if isinstance(value, int) else 0


def _environment(root: Path) -> dict[str, str]:
    """Ours without any setting of the suite, spelt right or wrong, and with those of the demo."""
    misspelt = {wrong.name for wrong in read_layers().misspelt}
    kept = {name: value for name, value in os.environ.items() if name not in {*SETTINGS, *misspelt}}
    agent = {"AGENT_COMMAND": shlex.join(standin.command())}
    return kept | _SETTINGS | agent | {"WATCHER_ROOT": str(root), ENV_FILE: os.devnull}


def _end_with_us() -> None:
    """In the new process, before its program starts: a TERM when the process that started it is gone (prctl(2))."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
