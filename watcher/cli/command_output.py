"""What the commands share: the folders, how things are printed, durations as people write them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from typing import TYPE_CHECKING

from watcher.cli.terminal import clean, one_line
from watcher.errors import SettingError, WatcherError
from watcher.settings.folders import folders
from watcher.settings.layers import read_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from watcher.cli.terminal import TerminalStyle
    from watcher.settings.folders import Folders

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPEAKER = ["watcher"]
_TOLD: set[str] = set()
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)?")


def places(*, makes_them: bool = False) -> Folders:
    """The folders that the settings name. Raises UnusableRoot where none is, unless the command makes what it needs."""
    found = folders(read_layers())
    if not makes_them:
        check_root(found)
    elif not found.root.exists() and not found.tasks.exists():
        tell(f"note: {found.root} did not exist and was made; is WATCHER_ROOT right?")
    return found


def check_root(found: Folders) -> None:
    """Raise UnusableRoot where nothing can be read; say what else keeps an answer from being whole, once."""
    from watcher.store import root_check

    root_check.check(found)
    for remark in root_check.remarks(found):
        if remark not in _TOLD:
            _TOLD.add(remark)
            tell(f"note: {remark}")


def words_of(error: Exception) -> str:
    """An error for a person: what was refused, on what, why and what to do."""
    if not isinstance(error, OSError):
        return str(error)
    from watcher.store.root_check import refusal_words

    return refusal_words(error)


def say(text: str) -> None:
    """Print text that may hold a stranger's words: no control character of it reaches the terminal."""
    print(clean(text), flush=True)


def say_drawn(text: str) -> None:
    """Print what `screen` has made: its colours are ours, all else in it is clean already."""
    print(text, flush=True)


def say_json(value: object) -> None:
    print(json.dumps(value), flush=True)


def speak_as(program: str) -> None:
    """Who is heard by `tell`."""
    _SPEAKER[0] = program


def tell(text: str) -> None:
    """One thing beside the output proper."""
    sys.stdout.flush()
    print(f"{_SPEAKER[0]}: {clean(text)}", file=sys.stderr, flush=True)


def is_new_here(places: Folders, worker: str) -> bool:
    """Nobody has served this worker or given it a task: perhaps its name is misspelt."""
    return not (places.tasks / worker).is_dir()


def tell_if_new(places: Folders, worker: str) -> None:
    """A word about a name that may be misspelt; the command is carried out all the same."""
    if is_new_here(places, worker):
        tell(f"note: {worker} is a new name here; nobody has served it or given it a task")


def forgive_terminals() -> None:
    """A terminal that lacks a character is no reason to fail, and neither is a closed standard error."""
    if sys.stderr is None:  # `2>&-`; what is told there would be printed among the output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def concluded(program: str, body: Callable[[], int], interrupted: str = "") -> int:
    """The exit code of `body`. What goes wrong is told here, as one line of `program` on stderr.

    0 also when the reader of stdout has gone; 2 for every error that has words for people, and where a file or folder
    cannot be used; 130 Ctrl-C, with the line `interrupted` if there is one. 2 and nothing done with a closed stdout.
    """
    if sys.stdout is None:  # `>&-`; the first file that is opened would be taken for standard output
        print(f"{program}: standard output is closed; nothing was done; give it a file or /dev/null", file=sys.stderr)
        return 2
    try:
        try:
            code = body()
        except SystemExit:  # a parser that has printed its help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough (`watcher list | head`); what is left must not be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _complained(program, interrupted, 130)
    except WatcherError as error:
        return _complained(program, str(error), 2)
    except OSError as error:
        return _complained(program, words_of(error), 2)
    return code


def _complained(program: str, text: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):  # whoever reads no more needs no order
        sys.stdout.flush()
    if text:
        print(f"{program}: {clean(text)}", file=sys.stderr, flush=True)
    return code


def look() -> TerminalStyle:
    """How large the terminal is now, and whether colour is welcome there (https://no-color.org)."""
    from watcher.cli.terminal import TerminalStyle

    if not sys.stdout.isatty():
        return TerminalStyle(width=200)
    size = os.get_terminal_size(sys.stdout.fileno())
    return TerminalStyle(size.columns or 80, size.lines or 24, colour=not os.environ.get("NO_COLOR"))


def say_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from watcher.cli.terminal import table

    say_drawn("\n".join(table(header, [[one_line(cell) for cell in row] for row in rows], look())))


def add_json(parser: argparse.ArgumentParser, what: str = "as JSON") -> None:
    parser.add_argument("--json", action="store_true", help=what)


def add_worker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--worker", metavar="NAME", type=utf8, help="only this worker")


def add_worker_first(parser: argparse.ArgumentParser) -> None:
    """The worker as the first word, or by its flag: for commands that take no other words."""
    parser.add_argument("worker", metavar="NAME", nargs="?", type=utf8, help="only this worker; as --worker NAME")
    parser.add_argument("--worker", metavar="NAME", dest="worker_too", type=utf8, help="only this worker")


def worker_of(options: argparse.Namespace) -> str | None:
    """The worker that `add_worker_first` was given. Raises SettingError for two different ones."""
    first: str | None = options.worker
    flag: str | None = options.worker_too
    if None not in (first, flag) and first != flag:
        raise SettingError(f"{first} or --worker {flag}: give one worker's name, or leave both out for all")
    return first if flag is None else flag


def priority_word(number: int) -> str:
    """Its name, if it has one."""
    from watcher.formats.task import PRIORITIES

    return next((word for word, its in PRIORITIES.items() if its == number), str(number))


def utf8(text: str) -> str:
    """Bytes of a command line that are no UTF-8 come as halves of surrogate pairs (PEP 383); no file holds them."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise argparse.ArgumentTypeError("the text is not UTF-8")
    return text


def seconds(text: str) -> float:
    """`90`, `90s`, `5m`, `2h`, `7d`, `4w` as seconds."""
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: write it like 90s, 5m, 2h, 7d or 4w")
    return float(found[1]) * _UNITS[found[2] or "s"]


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number from 1")
    return value


def only_one(given: Sequence[object], what: str) -> None:
    """Raises SettingError unless exactly one of these was given."""
    if sum(one not in (None, False, []) for one in given) != 1:
        raise SettingError(what)
