"""Remove what is older than its retention: receipts and notices, and, only when a retention is set, results and dead
letters.

Ages are by the files' time of modification against a clock that never runs ahead: wall time at our start plus what our
monotonic clock has counted, or wall time if that is less. A clock that jumps a day forward removes nothing. A result
goes only when it was noticed and no task on its way names it as a dependency, a refused file only when its dead letter
is gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from watcher.clock import Clock, NeverAhead
from watcher.store.layout import NOTICES, ORIGINALS, OUTPUT
from watcher.system import no_links
from watcher.telemetry.events import Emit, FilesPruned
from watcher.telemetry.record_guard import RecordGuard

#: No living process is silent for so long: HEARTBEAT_INTERVAL is at most one hour.
_LONGEST_BEAT_SECONDS = 7200.0


@dataclass(frozen=True, slots=True)
class Retention:
    """Seconds; 0 keeps for ever."""

    triggers: float
    results: float
    dead_letters: float


class Pruner:
    """`keep(worker, id)` says that a result must stay whatever its age."""

    def __init__(self, folders: dict[str, Path], retention: Retention, clock: Clock, emit: Emit) -> None:
        self._folders = folders
        self._retention = retention
        self._clock = clock
        self._emit = emit
        self._guard = RecordGuard(emit)
        self._never_ahead = NeverAhead(clock)

    def now(self) -> float:
        """Wall seconds, never ahead of what has really passed since the start."""
        return self._never_ahead.now()

    def prune(self, keep: Callable[[str, str], bool]) -> Iterator[None]:
        """Go through everything once; yields often. Errors of single files are left for the next time."""
        removed = {"receipts": 0, "notices": 0, "results": 0, "dead_letters": 0}
        retention, folders = self._retention, self._folders
        for worker in _folders_in(folders["triggers"]):
            what = "notices" if worker == NOTICES else "receipts"
            for place, name in self._old(folders["triggers"] / worker, retention.triggers):
                removed[what] += _remove(place / name)
                yield
        for worker in _folders_in(folders["results"]):
            for place, name in self._old(folders["results"] / worker, retention.results):
                with self._guard.over(f"{worker}/{name}"):
                    if not keep(worker, name[:-5]):
                        removed["results"] += _remove(place / name)
                        for stream in ("stdout", "stderr"):
                            _remove(place / OUTPUT / f"{name[:-5]}.{stream}")
                yield
        for worker in _folders_in(folders["dlq"]):
            for place, name in self._old(folders["dlq"] / worker, retention.dead_letters):
                removed["dead_letters"] += _remove(place / name)
                yield
            for path in self._left_over(folders["dlq"] / worker):
                _remove(path)
                yield
        yield from self._prune_beats()
        if any(removed.values()):
            self._emit(FilesPruned(**removed))

    def _left_over(self, letters: Path) -> list[Path]:
        """Refused files without a dead letter; it is there before its file. Their age alone says little: they keep the
        time stamp of whoever wrote them."""
        old = list(self._old(letters / ORIGINALS, self._retention.dead_letters, any_name=True))
        try:
            names = no_links.names_in(letters) if old else []
            named = {name.removesuffix(".json").partition("~")[0] for name in names}
        except OSError:
            return []
        return [place / name for place, name in old if name.rpartition(".")[0] not in named]

    def _prune_beats(self) -> Iterator[None]:
        """Beats of instances (`marie@7f3a`) that ended long ago: a container's name does not come again."""
        heartbeats, seconds = self._folders.get("heartbeats"), self._retention.triggers
        if heartbeats is None or seconds <= 0:
            return
        for place, name in self._old(heartbeats, max(seconds, _LONGEST_BEAT_SECONDS)):
            if "@" in name:
                _remove(place / name)
            yield

    def _old(self, place: Path, seconds: float, any_name: bool = False) -> Iterator[tuple[Path, str]]:
        if seconds <= 0:
            return
        limit = self.now() - seconds
        with contextlib.suppress(OSError):
            for name in no_links.names_in(place):
                if name.startswith(".") or not (any_name or name.endswith(".json")):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if no_links.look_at(place / name).st_mtime < limit:
                        yield place, name


def _folders_in(place: Path) -> list[str]:
    with contextlib.suppress(OSError):
        names = no_links.names_in(place)
        return sorted(name for name in names if not name.startswith(".") and no_links.is_folder(place / name))
    return []


def _remove(path: Path) -> int:
    try:
        no_links.remove(path)
    except OSError:
        return 0
    return 1
