"""Name the failure when a command could not be started at all.

What fails for every task alike (a missing program) holds the provider; what is the task's own (a folder, arguments that
are too long) is permanent; what the machine lacks just now is trouble of the worker, which counts no attempt. Pure, but
for one look whether the program is there.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from watcher.errors import is_trouble
from watcher.policy.after_attempt import Ending, Failure
from watcher.runner.cwd import bad_cwd
from watcher.runner.providers.provider import LOOK_AGAIN_SECONDS, Provider, missing_problem
from watcher.runner.runner_interface import Attempt


@dataclass(frozen=True, slots=True)
class Launch:
    """What was to be started: `path` is the PATH it was looked for in."""

    provider: Provider
    program: str
    path: str
    cwd: str | None
    prompt_file: str | None


def start_failure(place: Launch, attempt: Attempt, error: OSError, now: float) -> Ending:
    """The ending of an attempt whose command could not be started; `now` is wall seconds."""
    name = place.provider.name
    if place.cwd is not None and error.filename == place.cwd:
        return bad_cwd(place.cwd, f"cannot be entered: {error.strerror}")
    # ETXTBSY: the program is being written just now, by an update or a copy; soon it is whole.
    is_passing = is_trouble(error) or error.errno == errno.ETXTBSY
    if is_passing or error.filename == place.prompt_file is not None:
        return trouble(attempt, error)
    if error.errno == errno.E2BIG:
        what = "the arguments and the environment are longer than the system allows"
        return Ending(Failure.PERMANENT, "argument_too_long", f"{name}: {what}; use AGENT_PROMPT=stdin")
    word = _word(error)
    if error.errno == errno.ENOENT:
        if not os.path.exists(place.program):
            return missing_problem(place.provider, place.path, now)
        why = "the interpreter that its first line names is missing; install it"
    elif error.errno in (errno.EACCES, errno.ENOEXEC, errno.EPERM, errno.ENOTDIR, errno.ELOOP):
        why = "it cannot be executed; give it the right mode, and a script a first line such as #!/bin/sh"
    else:
        return Ending(Failure.TRANSIENT, "not_started", f"{name}: {place.program}: {word}")
    detail = f"{name}: {place.program}: {word}: {why}, it is tried again soon"
    return Ending(Failure.AUTH, "command_not_executable", detail, resets_at=now + LOOK_AGAIN_SECONDS)


def trouble(attempt: Attempt, error: OSError) -> Ending:
    """The machine is short of something."""
    where = "" if error.filename is None else f" ({error.filename!r})"
    detail = f"run {attempt.provider} for {attempt.task_id}: {_word(error)}: {error.strerror or error}{where}"
    return Ending(Failure.TROUBLE, "worker_trouble", detail)


def _word(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error.errno))
