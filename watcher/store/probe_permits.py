"""Own the permits to start something for a held account: one over all workers of the root, then two, four, ...

A permit is a file that only one process can have made: `.<account>~start<place>~<turn>` in `control/holds/`, created
exclusively. Its owner touches it at every heartbeat and removes it when its attempt is over. Who sees a permit that
nobody touches for its whole lease, on his own monotonic clock, takes the place over by making the next turn of it: so
a prober that was killed or frozen keeps nobody waiting for longer, and of several who see that only one wins.

Assumes exclusive creation that is atomic (every local file system, NFS since version 3). Raises OSError as the system
gives it. Whether a permit is needed, and how many places there are, is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from watcher.clock import Clock
from watcher.system.files import Folder

_NAME = re.compile(r"\.([^~]+)~start(\d{1,4})~(\d{1,9})")
#: A lease that a file states outside of these bounds (seconds) is not believed.
_LEASES_SECONDS = (0.5, 900.0)
_MAX_BYTES = 4096


@dataclass(slots=True)
class _Seen:
    """How a permit looked, and since when (monotonic) it has looked like that."""

    state: tuple[int, int]
    since: float
    lease_seconds: float


class Permits:
    """The permits of one process, and what it has seen of the others'."""

    def __init__(self, folder: Folder, owner: str, lease_seconds: float, clock: Clock) -> None:
        self._folder = folder
        self._owner = owner
        self._lease = min(max(lease_seconds, _LEASES_SECONDS[0]), _LEASES_SECONDS[1])
        self._clock = clock
        self._mine: set[str] = set()
        self._seen: dict[str, _Seen] = {}

    def look_again_in(self) -> float:
        """Seconds after which a permit that somebody else has may be free without an event."""
        return max(0.1, self._lease / 3)

    def observe(self, names: Iterable[str]) -> None:
        """See how the permits among these names of the folder look now."""
        now = self._clock.monotonic()
        seen, self._seen = self._seen, {}
        for name in names:
            if _NAME.fullmatch(name) is None:
                continue
            state = self._state(name)
            if state is None:
                continue
            known = seen.get(name)
            if known is None or known.state != state:
                known = _Seen(state, now, self._lease_of(name))
            self._seen[name] = known

    def take(self, key: str, places: int) -> str | None:
        """A permit for this account, if one of its places is free; `observe` was called just before."""
        taken: dict[int, list[tuple[int, str]]] = {}
        for name in self._seen:
            found = _NAME.fullmatch(name)
            if found is not None and found[1] == key:
                taken.setdefault(int(found[2]), []).append((int(found[3]), name))
        for place in range(1, places + 1):
            turns = sorted(taken.get(place, ()))
            if turns and not self._is_abandoned(turns[-1][1]):
                continue
            name = f".{key}~start{place}~{turns[-1][0] + 1 if turns else 1}"
            if self._make(name):
                for _, older in turns:
                    self._folder.remove(older)
                return name
        return None

    def renew(self) -> None:
        """Say that this process still uses its permits. One that somebody took over is forgotten."""
        for name in list(self._mine):
            if not self._is_mine(name):
                self._mine.discard(name)
                continue
            with contextlib.suppress(OSError):  # at worst somebody takes the place over
                os.utime(name, dir_fd=self._folder.fd, follow_symlinks=False)

    def give_back(self, name: str) -> None:
        """The attempt is over. A place that was taken over meanwhile is another's and stays."""
        self._mine.discard(name)
        self._seen.pop(name, None)
        if self._is_mine(name):
            self._remove(name)

    def clear(self, names: Iterable[str], needed: Collection[str]) -> None:
        """Remove the permits among these names whose account is neither held nor ramping: they mean nothing."""
        for name in names:
            found = _NAME.fullmatch(name)
            if found is not None and found[1] not in needed and name not in self._mine:
                self._seen.pop(name, None)
                self._remove(name)

    def close(self) -> None:
        for name in list(self._mine):
            self.give_back(name)

    def _make(self, name: str) -> bool:
        try:
            self._folder.write_new(name, json.dumps({"owner": self._owner, "lease_seconds": self._lease}).encode())
        except FileExistsError:
            return False
        self._mine.add(name)
        state = self._state(name)
        if state is not None:
            self._seen[name] = _Seen(state, self._clock.monotonic(), self._lease)
        return True

    def _is_mine(self, name: str) -> bool:
        """Asked of the file: while we were frozen, others may have gone through this place, and its name come again."""
        try:
            return bool(json.loads(self._folder.read(name, _MAX_BYTES))["owner"] == self._owner)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):  # it is taken over when its lease is over
            self._folder.remove(name)

    def _is_abandoned(self, name: str) -> bool:
        seen = self._seen[name]
        return name not in self._mine and self._clock.monotonic() - seen.since >= seen.lease_seconds

    def _state(self, name: str) -> tuple[int, int] | None:
        try:
            found = os.stat(name, dir_fd=self._folder.fd, follow_symlinks=False)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _lease_of(self, name: str) -> float:
        try:
            lease = float(json.loads(self._folder.read(name, _MAX_BYTES))["lease_seconds"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return self._lease  # being written just now, or odd: ours is as good
        return min(max(lease, _LEASES_SECONDS[0]), _LEASES_SECONDS[1]) if lease == lease else self._lease
