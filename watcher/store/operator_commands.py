"""Put a command into a worker's control folder, or set and end the worker's pause.

Promise: what `tell` has returned is durable there and is seen whole; it works while the worker is away. A pause is not
a command but a state, a file that stays until it is removed, so that a worker that starts later sees it too.
Raises InvalidCommand for what no worker would obey, OSError as the system gives it.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

from watcher.errors import WatcherError
from watcher.formats.operator_command import command_of
from watcher.formats.task import WORKER_PATTERN
from watcher.store.layout import PAUSED
from watcher.store.submitting import put
from watcher.system.files import Folder, replace


class BadName(WatcherError):
    """No worker can have this name. Reaction: give another."""


def tell(control: Path, worker: str, command: str, **fields: Any) -> Path:
    """Put one command in; returns its file, which is gone once the worker has obeyed. None leaves a field out."""
    told = {"command": command, "by": _who()} | {name: value for name, value in fields.items() if value is not None}
    command_of(told)
    folder = Folder(control / checked(worker))
    try:
        name = f"{command}-{secrets.token_hex(8)}.json"
        put(folder, name, json.dumps(told).encode() + b"\n")
    finally:
        folder.close()
    return control / worker / name


def pause(control: Path, worker: str, reason: str | None) -> Path:
    """From now on the worker starts nothing, in all its processes, until `resume`; also one that starts later."""
    folder = Folder(control / checked(worker))
    try:
        told = {"reason": reason, "by": _who()}
        replace(folder, PAUSED, json.dumps(told).encode() + b"\n", secrets.token_hex(8), durable=True)
    finally:
        folder.close()
    return control / worker / PAUSED


def resume(control: Path, worker: str) -> bool:
    """End the pause; returns whether there was one."""
    try:
        folder = Folder(control / checked(worker), create=False)
    except FileNotFoundError:
        return False
    try:
        was_paused = folder.remove(PAUSED)
        os.fsync(folder.fd)
    finally:
        folder.close()
    return was_paused


def checked(worker: str) -> str:
    """This name, if a worker may have it. Raises BadName."""
    if re.fullmatch(WORKER_PATTERN, worker) is None:
        raise BadName(f"{worker!r} is no worker name: use at most 64 letters, digits, . - _")
    return worker


def _who() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return None
