"""Turn flags into settings and errors into exit codes, for the three entry files and `watcher`.

Exit codes mean the same everywhere: 2 a setting or the command line is wrong, 3 another process has the place, 5 the
machine refused something at the start. The message goes to standard error in one line, with the program's name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping

from watcher.cli.terminal import clean
from watcher.errors import NameTaken, SettingError, WorkerTrouble, shortage_behind


def given(options: argparse.Namespace, flags: Mapping[str, str]) -> dict[str, str]:
    """The settings that flags set: `flags` names the setting of each option."""
    pairs: list[tuple[str, str | None]] = [(name, getattr(options, flag)) for flag, name in flags.items()]
    return {name: value for name, value in pairs if value is not None}


def run(program: str, body: Callable[[], int]) -> int:
    """The exit code of `body`, or that of the error which it raised and which is told here."""
    try:
        return body()
    except NameTaken as error:
        return _tell(program, str(error), 3)
    except WorkerTrouble as trouble:
        return _refused(program, trouble)
    except (SettingError, OSError) as error:
        shortage = shortage_behind(error)
        if shortage is not None:
            where = "" if shortage.filename is None else f" at {shortage.filename}"
            return _refused(program, WorkerTrouble(f"start{where}", shortage))
        if isinstance(error, OSError):
            raise
        return _tell(program, str(error), 2)


def _refused(program: str, trouble: WorkerTrouble) -> int:
    return _tell(program, f"{trouble}; nothing is lost; start it again when the machine has what was missing", 5)


def _tell(program: str, text: str, code: int) -> int:
    print(f"{program}: {clean(text)}", file=sys.stderr)  # noqa: T201 - the log is not there yet
    return code
