#!/usr/bin/env python3
"""Give tasks to workers and look at what becomes of them: `python demo_watcher.py --task marie "List files" --wait`.

Assembly only. Needs no running worker and no server: it reads and writes the folders. Every command imports what it
needs when it runs, because each submit pays for what stands at the top of this file.

Exit codes: 0 done, and with --wait or --batch every task completed; 1 a task did not complete, or not in time; 2 the
command line, a setting or a task is wrong, or a folder cannot be used; 130 Ctrl-C while waiting. One line on stderr
says why.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

from watcher.errors import InvalidTask, SettingError, WatcherError
from watcher_config import folders, read_layers, state_folder

if TYPE_CHECKING:
    from pathlib import Path

    from watcher.outcomes import Outcome
    from watcher.screen import Look, Tally
    from watcher_config import Folders

_DEFAULT_WORKERS = "marie,anga,fabien"
_DEFAULT_TEXT = "Task {n} of {total}: answer with one line."
_MAX_BATCH = 1_000_000
#: Tasks of a batch that are made durable together; between two of these groups the bar moves.
_GROUP = 100
#: A wait of this length passes in silence; then the person hears when nobody serves the worker.
_PATIENCE_SECONDS = 1.0
#: Between two lines of progress where nothing can be redrawn.
_LINE_SECONDS = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to fail
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        code = _run(options, parser)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough (`--status | head`); what is left must not be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _tell(
            "stopped; its workers have ended, its files stay" if options.demo else "stopped; what was submitted goes on"
        )
        return 130
    except WatcherError as error:
        _tell(str(error))
        return 2
    except OSError as error:
        _tell(f"{error.filename or 'a file or folder'}: {error.strerror or error}")
        return 2
    return code


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    _check(options, parser)
    if options.demo:
        return _demo(options)
    commands = {
        "setup": _setup, "task": _task, "batch": _batch, "status": _status, "watch": _watch, "report": _report,
        "examples": _examples,
    }  # fmt: skip
    chosen = next((run for name, run in commands.items() if getattr(options, name)), None)
    if chosen is None:
        parser.print_help()
        return 0
    return chosen(options, folders(read_layers()))


# --- commands


def _setup(options: argparse.Namespace, places: Folders) -> int:
    import re

    from watcher.formats.task import WORKER_PATTERN
    from watcher.screen import setup_text

    workers = [name.strip() for name in options.workers.split(",") if name.strip()]
    if not workers or not all(re.fullmatch(WORKER_PATTERN, name) for name in workers):
        raise SettingError(f"--workers {options.workers!r}: give names of letters, digits, dot, dash, underscore")
    parents = (places.tasks, places.results, places.dlq, places.triggers)
    made: list[Path] = []
    there: list[Path] = []
    for path in [*(parent / worker for worker in workers for parent in parents), places.heartbeats, places.control]:
        (there if path.is_dir() else made).append(path)
        path.mkdir(parents=True, exist_ok=True)
    print(setup_text(made, there, workers))
    return 0


def _task(options: argparse.Namespace, places: Folders) -> int:
    from watcher.submit import new_task_id, submit

    worker, text = options.task
    fields = _fields(options) | {"task_id": options.id or new_task_id(), "description": _text(text)}
    task_id = fields["task_id"]
    if options.id is not None:
        from watcher.outcomes import refuse_known

        refuse_known(places, worker, task_id)
    if options.wait is not None:
        return _task_and_wait(options, places, worker, fields)
    is_new = not (places.tasks / worker).is_dir()
    submit(places.tasks, worker, fields)
    if is_new:
        _tell(f"note: {worker} is a new name here; its tasks wait for: python worker_watcher.py {worker}")
    if options.json:
        _say_json(_about(places, worker, task_id))
    else:
        print(f"submitted {task_id} to {worker}")
        print(f"result    {places.results / worker / task_id}.json")
    return 0


def _task_and_wait(options: argparse.Namespace, places: Folders, worker: str, fields: dict[str, Any]) -> int:
    from watcher import outcomes
    from watcher.submit import submit

    awaited = outcomes.Awaited(places, worker, [fields["task_id"]])
    submit(places.tasks, worker, fields)
    _tell(f"waiting for {worker}/{fields['task_id']}")
    found: list[Outcome] = []
    patience = _Patience(places, worker)

    def each(ended: list[Outcome]) -> None:
        found.extend(ended)
        patience.check()

    outcomes.wait([awaited], options.wait, each)
    _say_outcome(options, places, worker, fields["task_id"], found[0] if found else None)
    return 0 if found and found[0].is_completed else 1


def _batch(options: argparse.Namespace, places: Folders) -> int:
    from watcher import outcomes
    from watcher.screen import Tally, batch_summary
    from watcher.submit import new_task_id, submit_many

    worker, total = options.worker, options.batch
    batch_id = options.batch_id or f"batch-{new_task_id()}"
    fields = _fields(options) | {"batch_id": batch_id}
    template = _text(options.text)
    began = time.monotonic()
    awaited = outcomes.Awaited(places, worker, [])
    tally, progress, patience = Tally(total), _Progress(began), _Patience(places, worker)

    def each(ended: list[Outcome]) -> None:
        tally.ended += len(ended)
        tally.failed += sum(not outcome.is_completed for outcome in ended)
        progress.show(tally)
        patience.check()

    for start in range(1, total + 1, _GROUP):
        numbers = range(start, min(start + _GROUP, total + 1))
        texts = [template.replace("{n}", str(n)).replace("{total}", str(total)) for n in numbers]
        many = [fields | {"task_id": new_task_id(), "description": text} for text in texts]
        awaited.open.update(submit_many(places.tasks, worker, many))
        if not options.no_wait:
            each(awaited.look())
    if options.no_wait:
        print(f"submitted {total} tasks to {worker} as {batch_id}")
        return 0
    try:
        outcomes.wait([awaited], options.wait, each)
    finally:
        progress.end()
        print(f"{batch_id} of {worker}:")
        print(batch_summary(tally, time.monotonic() - began, places.results / worker, places.dlq / worker))
    return 0 if tally.ended == total and not tally.failed else 1


def _status(options: argparse.Namespace, places: Folders) -> int:
    from watcher.listenerview import is_running, listener_lines, read_status, read_statuses
    from watcher.overview import Lookout
    from watcher.screen import status_lines

    state = state_folder(read_layers(), places.root)
    lookout = Lookout(places)
    listens = is_running(state)
    if listens:
        lookout.know(read_statuses(state))
    overview = lookout.look()
    if options.json:
        _say_json(overview.as_json() | {"listener": {"is_running": listens, "status": read_status(state)}})
    else:
        print("\n".join([*status_lines(overview, _look()), "", *listener_lines(state)]))
    return 0


def _report(options: argparse.Namespace, places: Folders) -> int:
    from pathlib import Path

    from watcher.listenerview import read_points, read_view
    from watcher.report import report_html, report_text

    state = state_folder(read_layers(), places.root)
    view = read_view(state)
    if view is None:
        _tell(f"no listener has counted anything in {state}; run: python orchestrator_listener.py --once")
        return 1
    if options.json:
        _say_json(view.as_json())
    elif options.html is None:
        print(report_text(view))
    else:
        Path(options.html).write_text(report_html(view, read_points(state), str(places.root)), encoding="utf-8")
        print(options.html)
    return 0


def _watch(options: argparse.Namespace, places: Folders) -> int:
    from watcher import screen
    from watcher.overview import Lookout

    lookout = Lookout(places)
    redrawn = sys.stdout.isatty()
    _end_as_by_ctrl_c()
    try:
        if redrawn:
            sys.stdout.write(screen.ENTER_SCREEN)
        while True:
            began = time.monotonic()
            overview = lookout.look()
            if options.json:
                _say_json(overview.as_json())
            elif redrawn:
                look = _look()
                lines = [*screen.status_lines(overview, look), "", f"{time.strftime('%H:%M:%S')}  Ctrl-C ends this"]
                sys.stdout.write(screen.status_frame(lines, look.height))
            else:
                print("\n".join(screen.status_lines(overview, _look())), end="\n\n")
            sys.stdout.flush()
            time.sleep(max(1.0, (time.monotonic() - began) * 3))
    except KeyboardInterrupt:
        return 0
    finally:
        if redrawn:
            sys.stdout.write(screen.LEAVE_SCREEN)
            sys.stdout.flush()


def _examples(options: argparse.Namespace, places: Folders) -> int:
    from watcher.screen import examples_text

    print(examples_text(places))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from pathlib import Path

    from watcher.showcase import Showcase

    def say(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    _end_as_by_ctrl_c()
    root = None if options.demo_root is None else Path(options.demo_root)
    return Showcase(root, say, _look, sys.stdout.isatty()).run()


# --- what a task is made of


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    """The optional fields of a task, as far as they were given."""
    given = {
        "priority": _number_or_word(options.priority),
        "timeout": options.timeout,
        "agent_id": options.agent,
        "dependencies": _list(options.after),
        "batch_id": options.batch_id,
        "metadata": _pairs(options.meta),
        "provider": options.provider,
        "model": options.model,
        "cwd": None if options.cwd is None else os.path.abspath(os.path.expanduser(options.cwd)),
    }
    return {name: value for name, value in given.items() if value is not None}


def _text(given: str) -> str:
    """The task's text, from stdin when it is `-`. What is not UTF-8 is refused, not repaired."""
    if given != "-":
        return given
    if sys.stdin.isatty():
        _tell("reading the task from the keyboard; end it with Ctrl-D")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidTask("invalid_text", f"stdin is not UTF-8 at byte {error.start}") from None


def _number_or_word(text: str | None) -> int | str | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return text


def _list(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _pairs(given: list[str] | None) -> dict[str, str] | None:
    return None if given is None else {key: value for key, _, value in (pair.partition("=") for pair in given)}


# --- what is said


def _say_outcome(
    options: argparse.Namespace, places: Folders, worker: str, task_id: str, outcome: Outcome | None
) -> None:
    from watcher.screen import refused_text, result_text

    record = None if outcome is None else outcome.read()
    if options.json:
        refused = outcome is not None and outcome.status == "refused"
        told = {"outcome": None if outcome is None else outcome.status}
        _say_json(
            _about(places, worker, task_id)
            | told
            | {"result": None if refused else record, "dead_letter": record if refused else None}
        )
    elif outcome is None or record is None:
        _tell(f"{worker}/{task_id} has not ended within {options.wait:g} s; it goes on")
        print(f"result    {places.results / worker / task_id}.json")
    elif outcome.status == "refused":
        print(refused_text(record, outcome.path, _look()))
    else:
        print(result_text(record, outcome.path, _look()))


def _about(places: Folders, worker: str, task_id: str) -> dict[str, Any]:
    name = f"{task_id}.json"
    paths = {"task_path": places.tasks, "result_path": places.results, "dlq_path": places.dlq}
    return {"task_id": task_id, "worker": worker} | {key: str(path / worker / name) for key, path in paths.items()}


def _say_json(value: object) -> None:
    import json

    print(json.dumps(value), flush=True)


def _tell(text: str) -> None:
    """One thing beside the output proper."""
    sys.stdout.flush()
    print(f"demo_watcher: {text}", file=sys.stderr, flush=True)


def _look() -> Look:
    """How large the terminal is now, and whether colour is welcome there (https://no-color.org)."""
    from watcher.screen import Look

    if not sys.stdout.isatty():
        return Look(width=200)
    size = os.get_terminal_size(sys.stdout.fileno())
    return Look(size.columns or 80, size.lines or 24, colour=not os.environ.get("NO_COLOR"))


class _Progress:
    """A bar that is redrawn on a terminal; elsewhere a line now and then."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._redrawn = sys.stdout.isatty()
        self._said: tuple[float, str] = (began, "")

    def show(self, tally: Tally) -> None:
        from watcher.screen import progress_line, redraw

        now = time.monotonic()
        line = progress_line(tally, now - self._began, _look())
        if self._redrawn:
            sys.stdout.write(redraw([line], 1 if self._said[1] else 0))
            sys.stdout.flush()
        elif now - self._said[0] < _LINE_SECONDS and tally.ended < tally.total:
            return
        else:
            print(line, flush=True)
        self._said = (now, line)

    def end(self) -> None:
        """The bar stays where it is; the next line comes below."""
        sys.stdout.flush()


class _Patience:
    """Says once, after a while, that nobody serves the worker that is waited for."""

    def __init__(self, places: Folders, worker: str) -> None:
        self._places = places
        self._worker = worker
        self._due: float | None = time.monotonic() + _PATIENCE_SECONDS

    def check(self) -> None:
        if self._due is None or time.monotonic() < self._due:
            return
        from watcher.overview import Lookout

        self._due = None
        if not any(process.is_alive for process in Lookout(self._places).processes(self._worker)):
            _tell(f"nobody serves {self._worker} now; start it: python worker_watcher.py {self._worker}")


# --- the command line


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"demo_watcher: {message}; --help shows what there is\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="demo_watcher.py",
        description="Give tasks to workers and look at what becomes of them.",
        usage="demo_watcher.py COMMAND [options]",
        epilog="Folders and settings come from the environment and .env, as for worker_watcher.py (WATCHER_ROOT, ...).",
        allow_abbrev=False,
    )
    group = parser.add_argument_group("commands")
    commands = group.add_mutually_exclusive_group()
    commands.add_argument("--setup", action="store_true", help="make the folders")
    commands.add_argument("--task", nargs=2, metavar=("WORKER", "TEXT"), help="submit a task; TEXT - reads stdin")
    commands.add_argument("--batch", type=_batch_size, metavar="N", help="submit N tasks and show how far they are")
    commands.add_argument("--status", action="store_true", help="show all workers and what runs now")
    commands.add_argument("--watch", action="store_true", help="the same, redrawn every second until Ctrl-C")
    commands.add_argument("--report", action="store_true", help="what the listener has counted: totals, times, cost")
    commands.add_argument("--examples", action="store_true", help="things to paste into a shell")
    commands.add_argument("--demo", action="store_true", help="the whole show: three workers, a dozen tasks, 20 s")
    one = parser.add_argument_group("with --task")
    one.add_argument("--id", help="the task's id; without it a fresh one")
    one.add_argument("--after", metavar="ID,ID", help="wait for these tasks first (ID or WORKER/ID)")
    both = parser.add_argument_group("with --task and --batch")
    both.add_argument("--wait", nargs="?", type=_seconds, const=float("inf"), metavar="SECONDS",
                      help="wait for the result and print it; --batch waits anyway")  # fmt: skip
    both.add_argument("--priority", metavar="P", help="critical, high, normal, low or a number")
    both.add_argument("--timeout", type=_seconds, metavar="S", help="seconds one attempt may take")
    both.add_argument("--agent", metavar="A", help="agent_id: tasks with the same one run in order")
    both.add_argument("--batch-id", metavar="B", help="a name for tasks that belong together")
    both.add_argument("--meta", action="append", type=_pair, metavar="K=V", help="metadata; may be repeated")
    both.add_argument("--provider", help="which agent CLI")
    both.add_argument("--model", help="which model")
    both.add_argument("--cwd", metavar="DIR", help="where the agent works")
    more = parser.add_argument_group("more")
    more.add_argument("--workers", metavar="A,B", help=f"with --setup: their names ({_DEFAULT_WORKERS})")
    more.add_argument("--worker", metavar="W", help="with --batch: who gets the tasks")
    more.add_argument("--text", metavar="T", help="with --batch: the text; {n} and {total} are replaced")
    more.add_argument("--no-wait", action="store_true", help="with --batch: only submit")
    more.add_argument("--json", action="store_true", help="with --task, --status, --watch, --report: for programs")
    more.add_argument("--html", metavar="FILE", help="with --report: write one page with plots")
    more.add_argument("--demo-root", metavar="DIR", help="with --demo: an empty or new folder")
    return parser


#: Which command takes which option; an option that would do nothing is refused.
_BELONGS = {
    "id": "task", "after": "task", "wait": "task batch", "priority": "task batch", "timeout": "task batch",
    "agent": "task batch", "batch_id": "task batch", "meta": "task batch", "provider": "task batch",
    "model": "task batch", "cwd": "task batch", "workers": "setup", "worker": "batch", "text": "batch",
    "no_wait": "batch", "json": "task status watch report", "demo_root": "demo",
    "html": "report",
}  # fmt: skip


def _check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse options that their command does not know or that no file can hold, and fill in what it needs."""
    for name, value in vars(options).items():
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and not _is_utf8(text) for text in texts):
            parser.error(f"--{name.replace('_', '-')}: the text is not UTF-8")
    for name, commands in _BELONGS.items():
        given = getattr(options, name) not in (None, False)
        if given and not any(getattr(options, command) for command in commands.split()):
            wanted = " or ".join(f"--{command}" for command in commands.split())
            parser.error(f"--{name.replace('_', '-')} goes with {wanted}")
    if options.batch and options.worker is None:
        parser.error("--batch needs --worker NAME")
    options.workers = options.workers or _DEFAULT_WORKERS
    options.text = _DEFAULT_TEXT if options.text is None else options.text


def _is_utf8(text: str) -> bool:
    """Bytes of the command line that are no UTF-8 come as halves of surrogate pairs (PEP 383)."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _seconds(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise ValueError
    return value


def _batch_size(text: str) -> int:
    value = int(text)
    if not 1 <= value <= _MAX_BATCH:
        raise argparse.ArgumentTypeError(f"{text}: a number of tasks from 1 to {_MAX_BATCH}")
    return value


def _pair(text: str) -> str:
    key, between, _ = text.partition("=")
    if not key or not between:
        raise argparse.ArgumentTypeError(f"{text!r}: write it as name=value")
    return text


def _end_as_by_ctrl_c() -> None:
    """SIGTERM and a closed terminal end us like Ctrl-C, so that what was opened or started is put away."""
    import signal

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


if __name__ == "__main__":
    sys.exit(main())
