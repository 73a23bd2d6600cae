"""Where a task's command may run: `cwd` must exist, be ours to enter, and lie under ALLOWED_CWD when that is set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from watcher.policy.after_attempt import Ending, Failure


def checked_cwd(wanted: str, allowed: Sequence[Path]) -> str | Ending:
    """The folder to run in, links resolved where `allowed` demands it, or why not."""
    if not os.path.isdir(wanted):
        return bad_cwd(wanted, "is no folder here; make it, or correct cwd in the task")
    if not os.access(wanted, os.X_OK | os.R_OK):
        return bad_cwd(wanted, "may not be entered by the worker's user; change its mode")
    if not allowed:
        return wanted
    real = os.path.realpath(wanted)
    for folder in allowed:
        top = os.path.realpath(folder)
        if real == top or real.startswith(top.rstrip("/") + "/"):
            return real
    return bad_cwd(wanted, f"is {real}, which ALLOWED_CWD does not allow; add its folder there")


def bad_cwd(cwd: str, why: str) -> Ending:
    """The ending of a task whose `cwd` cannot be used."""
    return Ending(Failure.PERMANENT, "bad_cwd", f"cwd {cwd!r} {why}")
