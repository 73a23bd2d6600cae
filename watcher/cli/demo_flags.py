"""Give tasks to workers and look at what becomes of them: `python demo_watcher.py --task marie "List files" --wait`.

Assembly only. Needs no running worker and no server: it reads and writes the folders. Every command imports what it
needs when it runs, because each submit pays for what stands at the top of this file.

Exit codes: 0 done, and with --wait or --batch every task completed; 1 a task did not complete, or not in time; 2 the
command line, a setting or a task is wrong, or a folder cannot be used; 130 Ctrl-C while waiting. One line on stderr
says why.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from watcher.cli import command_output
from watcher.cli.task_flags import given_fields, pair, text_of
from watcher.cli.terminal import Parser
from watcher.errors import SettingError
from watcher_config import folders, read_layers, state_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from watcher.cli.tables import BatchProgress
    from watcher.store.results import Ended
    from watcher_config import Folders

_DEFAULT_WORKERS = "marie,anga,fabien"
_DEFAULT_TEXT = "Task {n} of {total}: answer with one line."
_MAX_BATCH = 1_000_000
#: Tasks of a batch that are made durable together; between two of these groups the bar moves.
_GROUP = 100
#: Between two lines of progress where nothing can be redrawn.
_LINE_SECONDS = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    command_output.forgive_terminals()
    command_output.speak_as("demo_watcher")
    parser = _parser()
    options = parser.parse_args(arguments)
    stopped = "stopped; its workers have ended, its files stay" if options.demo else "stopped; submitted tasks continue"
    return command_output.concluded("demo_watcher", lambda: _run(options, parser), stopped)


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

    from watcher.cli.first_steps import setup_text
    from watcher.formats.task import WORKER_PATTERN

    workers = [name.strip() for name in options.workers.split(",") if name.strip()]
    if not workers or not all(re.fullmatch(WORKER_PATTERN, name) for name in workers):
        raise SettingError(f"--workers {options.workers!r}: give names of letters, digits, dot, dash, underscore")
    parents = (places.tasks, places.results, places.dlq, places.triggers)
    made: list[Path] = []
    there: list[Path] = []
    for path in [*(parent / worker for worker in workers for parent in parents), places.heartbeats, places.control]:
        (there if path.is_dir() else made).append(path)
        path.mkdir(parents=True, exist_ok=True)
    command_output.say(setup_text(made, there, workers, places.root))
    return 0


def _task(options: argparse.Namespace, places: Folders) -> int:
    from watcher.cli.commands.submit import put_in

    worker, text = options.task
    given = given_fields(options) | {"description": text_of(text)}
    if options.id is not None:
        given["task_id"] = options.id
    return put_in(places, worker, given, options.wait, as_json=options.json)


def _batch(options: argparse.Namespace, places: Folders) -> int:
    from watcher.cli.commands.submit import Patience
    from watcher.cli.tables import BatchProgress, batch_summary
    from watcher.store import results
    from watcher.store.submitting import new_task_id, submit_many

    worker, total = options.worker, options.batch
    batch_id = options.batch_id or f"batch-{new_task_id()}"
    fields = given_fields(options) | {"batch_id": batch_id}
    template = text_of(options.text)
    began = time.monotonic()
    awaited = results.Awaited(places, worker, [])
    tally, progress, patience = BatchProgress(total), _Progress(began), Patience(places, worker)

    def each(ended: list[Ended]) -> None:
        tally.ended += len(ended)
        tally.failed += sum(not outcome.is_completed for outcome in ended)
        progress.show(tally)
        patience.check()

    submitted = 0
    try:
        for start in range(1, total + 1, _GROUP):
            numbers = range(start, min(start + _GROUP, total + 1))
            texts = [template.replace("{n}", str(n)).replace("{total}", str(total)) for n in numbers]
            many = [fields | {"task_id": new_task_id(), "description": text} for text in texts]
            with _ctrl_c_waits():
                awaited.open.update(submit_many(places.tasks, worker, many))
                submitted += len(many)
            if not options.no_wait:
                each(awaited.look())
        if not options.no_wait:
            results.wait([awaited], options.wait, each)
    finally:
        progress.end()
        if options.no_wait:
            command_output.say(f"submitted {submitted} tasks to {worker} as {batch_id}")
        else:
            command_output.say(f"{batch_id} of {worker}:")
            tally.total = submitted
            command_output.say(
                batch_summary(tally, time.monotonic() - began, places.results / worker, places.dlq / worker)
            )
        if submitted < total:
            command_output.say(f"{total - submitted} of {total} tasks were not submitted")
    if options.no_wait:
        return 0
    return 0 if tally.ended == total and not tally.failed else 1


def _status(options: argparse.Namespace, places: Folders) -> int:
    from watcher.cli.tables import listener_lines, status_lines
    from watcher.store.listener_state import is_running, read_status, read_statuses
    from watcher.store.overview import OverviewReader

    command_output.check_root(places)
    state = state_folder(read_layers(), places.root)
    lookout = OverviewReader(places)
    listens, status = is_running(state), read_status(state)
    if listens:
        lookout.know(read_statuses(state))
    overview = lookout.look()
    if options.json:
        command_output.say_json(overview.as_json() | {"listener": {"is_running": listens, "status": status}})
    else:
        command_output.say_drawn(
            "\n".join([*status_lines(overview, command_output.look()), "", *listener_lines(listens, status)])
        )
    return 0


def _report(options: argparse.Namespace, places: Folders) -> int:
    from watcher.cli.commands.report import report

    command_output.check_root(places)
    return report(places, options.html, as_json=options.json)


def _watch(options: argparse.Namespace, places: Folders) -> int:
    from watcher.cli import tables, terminal
    from watcher.store.overview import OverviewReader

    command_output.check_root(places)
    lookout = OverviewReader(places)
    redrawn = sys.stdout.isatty()
    _end_as_by_ctrl_c()
    try:
        if redrawn:
            sys.stdout.write(terminal.ENTER_SCREEN)
        while True:
            began = time.monotonic()
            overview = lookout.look()
            if options.json:
                command_output.say_json(overview.as_json())
            elif redrawn:
                look = command_output.look()
                lines = [*tables.status_lines(overview, look), "", f"{time.strftime('%H:%M:%S')}  Ctrl-C ends this"]
                sys.stdout.write(terminal.status_frame(lines, look.height))
            else:
                command_output.say_drawn("\n".join([*tables.status_lines(overview, command_output.look()), ""]))
            sys.stdout.flush()
            time.sleep(max(1.0, (time.monotonic() - began) * 3))
    except KeyboardInterrupt:
        return 0
    finally:
        if redrawn:
            sys.stdout.write(terminal.LEAVE_SCREEN)
            sys.stdout.flush()


def _examples(options: argparse.Namespace, places: Folders) -> int:
    from watcher.cli.first_steps import examples_text

    command_output.say(examples_text(places))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from pathlib import Path

    from watcher.cli.demo import Demo

    def say(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    _end_as_by_ctrl_c()
    root = None if options.demo_root is None else Path(options.demo_root)
    return Demo(root, say, command_output.look, sys.stdout.isatty()).run()


# --- what is said


class _Progress:
    """A bar that is redrawn on a terminal; elsewhere a line now and then."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._redrawn = sys.stdout.isatty()
        self._said: tuple[float, str] = (began, "")

    def show(self, tally: BatchProgress) -> None:
        from watcher.cli.tables import progress_line
        from watcher.cli.terminal import redraw

        now = time.monotonic()
        line = progress_line(tally, now - self._began, command_output.look())
        if self._redrawn:
            sys.stdout.write(redraw([line], 1 if self._said[1] else 0))
            sys.stdout.flush()
        elif now - self._said[0] < _LINE_SECONDS and tally.ended < tally.total:
            return
        else:
            command_output.say_drawn(line)
        self._said = (now, line)

    def end(self) -> None:
        """The bar stays where it is; the next line comes below."""
        sys.stdout.flush()


# --- the command line


class _Parser(Parser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"demo_watcher: {message}; --help lists the options\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="demo_watcher.py",
        description="Submit tasks and look at their results.",
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
    commands.add_argument("--demo", action="store_true", help="the whole demo: three workers, a dozen tasks, 20 s")
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
    both.add_argument("--meta", action="append", type=pair, metavar="K=V", help="metadata; may be repeated")
    both.add_argument("--provider", help="which agent CLI")
    both.add_argument("--model", help="which model")
    both.add_argument("--cwd", metavar="DIR", help="where the agent works")
    more = parser.add_argument_group("more")
    more.add_argument("--workers", metavar="A,B", help=f"with --setup: their names ({_DEFAULT_WORKERS})")
    more.add_argument("--worker", metavar="W", help="with --batch: the worker that gets the tasks")
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
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text}: a number of seconds, such as 90")
    return value


def _batch_size(text: str) -> int:
    value = int(text)
    if not 1 <= value <= _MAX_BATCH:
        raise argparse.ArgumentTypeError(f"{text}: a number of tasks from 1 to {_MAX_BATCH}")
    return value


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C takes effect at the end of this, so that what is told of the work in it is true."""
    import signal

    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: noted.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if noted:
        raise KeyboardInterrupt


def _end_as_by_ctrl_c() -> None:
    """SIGTERM and a closed terminal end us like Ctrl-C, so that what was opened or started is put away."""
    import signal

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
