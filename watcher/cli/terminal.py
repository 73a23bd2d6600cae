"""Fit text to a terminal: cells, columns, colours, and redrawing over what was there.

Text from files is shown without control characters, so that no output of an agent can move the cursor or recolour the
screen. Lines are cut at the width that is given, counted in cells, because a wrapped line breaks a screen that is
redrawn in place. Colour is only ever added: every line reads the same without. Prints nothing itself.
"""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

#: ANSI, as every terminal since the VT100 has it (ECMA-48).
ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_COLOURS = {"red": 31, "green": 32, "yellow": 33, "dim": 2, "bold": 1}
#: What a person reads of one remark.
_WRAPPED_LINES_AT_MOST = 3
#: C0 and C1 but newline and tab; what turns or breaks a line (Unicode bidirectional controls, separators); tags, which
#: nobody sees; halves of surrogate pairs.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)


class Parser(argparse.ArgumentParser):
    """Repeats no control character of a command line, which may hold the name of a stranger's file."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        super()._print_message(clean(message), file)


@dataclass(frozen=True, slots=True)
class TerminalStyle:
    """How wide a line may be, in cells, how many lines there are, and whether colour is welcome."""

    width: int = 100
    height: int = 30
    colour: bool = False

    def paint(self, text: str, name: str) -> str:
        return f"\x1b[{_COLOURS[name]}m{text}\x1b[0m" if self.colour and text else text


def table(header: Sequence[str], rows: Sequence[Sequence[str]], look: TerminalStyle) -> list[str]:
    """Columns as wide as they must be, two spaces between; the last one takes what is left."""
    widths = [max(width_of(row[column]) for row in [header, *rows]) for column in range(len(header) - 1)]
    widths.append(0)
    plain = ["  ".join(map(pad, row, widths)).rstrip() for row in [header, *rows]]
    return [look.paint(cut(plain[0], look.width), "bold"), *(cut(line, look.width) for line in plain[1:])]


def duration(seconds: float) -> str:
    """About how long, in one unit: `20 ms`, `0.3 s`, `45 s`, `12 min`, `5 h`, `4 d`."""
    if 0 < seconds < 0.095:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for limit, size, unit in ((100.0, 1, "s"), (6000.0, 60, "min"), (172_800.0, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def clean(text: str) -> str:
    """Text of a stranger without what a terminal would obey; newlines and tabs stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """The same on one line, so that no text of a stranger looks like the next line of ours."""
    return " ".join(clean(text).split())


def width_of(text: str) -> int:
    """How many cells of a terminal this takes."""
    return len(text) if text.isascii() else sum(_cells(c) for c in text)


def pad(text: str, width: int) -> str:
    return text + " " * (width - width_of(text))


def cut(text: str, width: int) -> str:
    """This text on one line of at most so many cells; what is missing shows as `..`."""
    text = text.replace("\n", " ").replace("\t", " ")
    if width_of(text) <= width:
        return text
    kept, used = "", 0
    for character in text:
        used += _cells(character)
        if used > width - 2:
            break
        kept += character
    return f"{kept}.."[: max(0, width)]


def wrap(text: str, width: int) -> list[str]:
    """This text on as many lines as it needs, at most a few; commands stand at its end, so it is not simply cut."""
    import textwrap  # after all else: every submit imports this module

    lines = textwrap.wrap(
        text, max(20, width), subsequent_indent="  ", max_lines=_WRAPPED_LINES_AT_MOST, placeholder=" .."
    )
    return [cut(line, width) for line in lines]


def _cells(character: str) -> int:
    """Unicode Standard Annex 11: wide and full-width characters take two cells, combining ones none."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def status_frame(lines: Sequence[str], height: int) -> str:
    """A whole screen, drawn over the last one without flicker; cut at the height."""
    shown = list(lines[: max(1, height - 1)])
    if len(shown) < len(lines):
        shown[-1] = f"... {len(lines) - len(shown) + 1} more lines"
    return _HOME + "".join(f"{line}{_CLEAR_LINE}\r\n" for line in shown) + _CLEAR_BELOW


def redraw(lines: Sequence[str], drawn: int) -> str:
    """These lines in the place of the `drawn` last ones; the cursor ends below them."""
    up = f"\x1b[{drawn}F" if drawn else ""
    return up + "".join(f"{line}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_BELOW
