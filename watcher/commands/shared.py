"""What the commands share: the folders, how things are printed, durations as people write them."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from typing import TYPE_CHECKING

from watcher.errors import SettingError
from watcher_config import folders, read_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from watcher.screen import Look
    from watcher_config import Folders

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPEAKER = ["watcher"]
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)?")


def places() -> Folders:
    """The folders that the settings name."""
    return folders(read_layers())


def say_json(value: object) -> None:
    print(json.dumps(value), flush=True)


def speak_as(program: str) -> None:
    """Who is heard by `tell`."""
    _SPEAKER[0] = program


def tell(text: str) -> None:
    """One thing beside the output proper."""
    sys.stdout.flush()
    print(f"{_SPEAKER[0]}: {text}", file=sys.stderr, flush=True)


def look() -> Look:
    """How large the terminal is now, and whether colour is welcome there (https://no-color.org)."""
    from watcher.screen import Look

    if not sys.stdout.isatty():
        return Look(width=200)
    size = os.get_terminal_size(sys.stdout.fileno())
    return Look(size.columns or 80, size.lines or 24, colour=not os.environ.get("NO_COLOR"))


def say_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from watcher.screen import clean, table

    print("\n".join(table(header, [[clean(cell) for cell in row] for row in rows], look())))


def add_json(parser: argparse.ArgumentParser, what: str = "as JSON") -> None:
    parser.add_argument("--json", action="store_true", help=what)


def add_worker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--worker", metavar="NAME", type=utf8, help="only this worker")


def add_worker_first(parser: argparse.ArgumentParser) -> None:
    """The worker as the first word, or by its flag: for commands that take no other words."""
    parser.add_argument("worker", metavar="NAME", nargs="?", type=utf8, default=argparse.SUPPRESS,
                        help="only this worker; the same as --worker NAME")  # fmt: skip
    add_worker(parser)


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
