"""Answer one cheap question for containers and scripts: does a worker's heartbeat move, and could it take a task?

The heartbeat's age is asked first, because it needs no waiting. Where the age does not speak for it (a beat is late, or
the clocks of two machines differ), its `sequence` is watched for as long as the caller allows. A worker that may not
start tasks by somebody's will (paused, held, draining) is well. One that could not claim or store (its claim folder is
gone or may not be written, the disk is full) is not, however fast its heart beats.

Reads only. Assumes that the folders are mounted where the worker has them. Raises WorkerTrouble when this process is
out of descriptors or memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watcher.store import workers
from watcher.store.layout import CLAIMS, LOCK
from watcher.store.workers import Beat

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

_LOOK_EVERY_SECONDS = 0.1
#: The worker itself claims nothing with less than this.
_FULL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """The answer about one process: `name` is `marie` or `marie@2`, `why` says what was found either way."""

    name: str
    is_well: bool
    why: str
    status: str | None = None
    beat_age_seconds: float | None = None
    sequence: int | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def probe(
    folders: Folders, worker: str, instance: str | None, within_seconds: float, strict: bool
) -> list[ProbeAnswer]:
    """Ask about every process of a worker that has left a heartbeat, or about one `instance`; by name.

    A beat whose age does not speak for it is watched for up to `within_seconds`; it is well as soon as its sequence
    moves. With `strict` only the status `healthy` is well.
    """
    end = time.monotonic() + within_seconds
    first = _beats(folders, worker, instance)
    if not first and within_seconds:
        first = _watch(lambda: _beats(folders, worker, instance), end)
    found = []
    for beat in first:
        if beat.is_late and not _is_last(beat):
            moved = _watch(partial(_moved, folders, beat), end)
            found.append(_judge(folders, moved[0], strict) if moved else _silent(beat))
        else:
            found.append(_judge(folders, beat, strict))
    return found


def _beats(folders: Folders, worker: str, instance: str | None) -> list[Beat]:
    beats = workers.read_beats(folders.heartbeats, time.time(), [], worker)
    return [beat for beat in beats if instance is None or beat.instance == instance]


def _watch(look: Callable[[], list[Beat]], end: float) -> list[Beat]:
    """Look until there is something or the time is over."""
    while not (found := look()) and time.monotonic() < end:
        time.sleep(min(_LOOK_EVERY_SECONDS, max(0.0, end - time.monotonic())))
    return found


def _moved(folders: Folders, old: Beat) -> list[Beat]:
    """The beat after this one, or another process's in its place."""
    marks = (old.incarnation, (old.fields or {}).get("sequence"))
    there = [b for b in _beats(folders, old.worker, old.instance) if b.instance == old.instance]
    return [b for b in there if b.fields is not None and (b.incarnation, b.fields["sequence"]) != marks]


def _is_last(beat: Beat) -> bool:
    return beat.fields is not None and beat.fields.get("status") == "stopped"


def _silent(beat: Beat) -> ProbeAnswer:
    age = round(beat.age_seconds, 3)
    if beat.fields is None:
        return ProbeAnswer(beat.name, False, beat.problem or "its heartbeat cannot be read", beat_age_seconds=age)
    text = f"no heartbeat for {age:.0f} s: it is dead, frozen or cannot write to HEARTBEAT_DIR"
    return ProbeAnswer(beat.name, False, text, str(beat.fields["status"]), age, beat.fields["sequence"])


def _judge(folders: Folders, beat: Beat, strict: bool) -> ProbeAnswer:
    """A process whose heart beats: may it and could it take a task?"""
    assert beat.fields is not None  # only such beats are fresh or have moved
    status, reason = str(beat.fields["status"]), beat.fields.get("reason")
    facts = (status, round(beat.age_seconds, 3), beat.fields["sequence"])
    said = f"{status}: {reason}" if reason and status != "healthy" else status
    if status == "stopped":
        return ProbeAnswer(beat.name, False, f"stopped: {reason or 'it ended'}", *facts)
    problem = _cannot_claim(folders, beat)
    if problem is not None:
        return ProbeAnswer(beat.name, False, f"{said}; {problem}", *facts)
    return ProbeAnswer(beat.name, status == "healthy" or not strict, said, *facts)


def _cannot_claim(folders: Folders, beat: Beat) -> str | None:
    """Why a task could not be claimed or its result not be stored now, as far as the folders tell."""
    claims = folders.tasks / beat.worker / CLAIMS
    if workers.is_locked(claims / (beat.incarnation + LOCK)) is False:
        return f"no process holds {claims / beat.incarnation}{LOCK}: it was killed, or its inbox was replaced"
    for path in (folders.tasks / beat.worker, claims / beat.incarnation, folders.results / beat.worker):
        if not path.is_dir():
            return f"{path} is not there; tasks cannot be claimed"
        if not os.access(path, os.W_OK | os.X_OK):
            return f"{path} may not be written; tasks cannot be claimed or stored"
        if _is_full(path):
            return f"no room left in {path}; tasks cannot be claimed or stored"
    return None


def _is_full(path: Path) -> bool:
    try:
        space = os.statvfs(path)
    except OSError:
        return False  # what cannot be asked is no proof
    return space.f_bavail * space.f_frsize < _FULL_BYTES
