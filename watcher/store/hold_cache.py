"""Own what one process knows of holds and ramps: what lies on disk, what is new, what it has written itself.

A file is known by inode, time stamp and size, so that only what is new is read; while the folder's own time stamp
stands still, nobody has held or lifted anything. A disk that takes no file stops nothing: what could not be stored is
only not seen by the other workers, and a file that cannot be read counts as absent.

Loop thread only, but for `may_be_held`. Raises OSError when the folder itself cannot be asked.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection

from watcher.clock import Clock, parse_rfc3339, rfc3339
from watcher.policy.provider_gate import Hold
from watcher.store.holds import (
    StoredHold,
    key_of,
    ramp_name,
    read_hold,
    read_ramp,
    read_well,
    split_name,
    split_ramp_name,
    well_name,
)
from watcher.system.files import Folder, replace

#: A folder that changed less than this before it was listed may change again under the same time stamp.
_TICK_NS = 50_000_000
#: A ramp that nothing has widened for so long is over: no limit came back, and tasks may take hours each.
_RAMP_SECONDS = 900.0

_Version = tuple[int, int, int]


class KnownHolds:
    """What `folder` holds for the providers of one account. `owner` names this process in its temporary files."""

    def __init__(self, folder: Folder, owner: str, account: str, clock: Clock) -> None:
        self.folder = folder
        self._owner = owner
        self._account = account
        self._clock = clock
        #: The version of each provider's hold and ramp as this process knows it; what is not here is not on disk.
        self._holds: dict[str, _Version | None] = {}
        self._ramps: dict[str, _Version | None] = {}
        self._since: dict[str, float | None] = {}
        self._ramp_since: dict[str, float] = {}
        self._looked_at_ns = -1

    def key(self, provider: str) -> str:
        """The name of the provider's files without their endings."""
        return key_of(provider, self._account)

    # --- the folder as a whole

    def has_moved(self) -> bool:
        """Whether somebody may have held or lifted something since `looked`. Costs one system call."""
        return os.fstat(self.folder.fd).st_mtime_ns != self._looked_at_ns

    def may_be_held(self, provider: str) -> bool:
        """Whether a hold has come since `looked`. Any thread."""
        return self.has_moved() and self.folder.has(f"{self.key(provider)}.json")

    def names(self) -> tuple[Collection[str], int]:
        """All names there, and the folder's time stamp from before, for `looked`."""
        self.folder.mend()
        changed_ns = os.fstat(self.folder.fd).st_mtime_ns
        return self.folder.names(), changed_ns

    def looked(self, changed_ns: int) -> None:
        """What `names` gave with this time stamp has been taken over."""
        is_settled = abs(self._clock.wall() * 1e9 - changed_ns) > _TICK_NS
        self._looked_at_ns = changed_ns if is_settled else -1

    def held(self, names: Collection[str]) -> set[str]:
        """The providers that these files hold, as far as they are of our account."""
        return self._whose(names, split_name)

    def ramping(self, names: Collection[str]) -> set[str]:
        """The providers that come back after a hold, as far as they are of our account."""
        return self._whose(names, split_ramp_name)

    # --- one provider

    def has_hold(self, provider: str) -> bool:
        """Whether its hold is on disk, by us or by others, as far as we know."""
        return provider in self._holds

    def is_shared(self, provider: str) -> bool:
        """Whether its hold, or the ramp after it, lies where others see it."""
        return provider in self._holds or provider in self._ramps

    def is_unchanged(self, provider: str) -> bool:
        """Whether its files are those that we know."""
        key = self.key(provider)
        hold, ramp = self._version(f"{key}.json"), self._version(ramp_name(key))
        return hold == self._holds.get(provider) and (hold is not None or ramp == self._ramps.get(provider))

    def news(self, provider: str) -> tuple[StoredHold, bool] | None:
        """Its hold, if we do not know it yet, and whether it was made at another time than the one that we knew."""
        name = f"{self.key(provider)}.json"
        version = self._version(name)
        if version is None or (provider in self._holds and self._holds[provider] == version):
            return None
        stored = read_hold(self.folder, name)
        if stored is None:
            return None
        self._holds[provider] = version
        is_another = self._since.get(provider) != stored.since
        self._since[provider] = stored.since
        return stored, is_another

    def ramp(self, provider: str, known: int | None, is_there: bool) -> int | None:
        """How many may run at once after its hold, where we knew of `known`; None: any number. `is_there`: its file."""
        if not is_there:
            return known if self._ramps.pop(provider, None) is None else None
        version, now = self._version(ramp_name(self.key(provider))), self._clock.monotonic()
        if version is not None and self._ramps.get(provider) != version:
            self._ramps[provider] = version
            self._ramp_since[provider] = now
            return read_ramp(self.folder, self.key(provider)) or known
        if now - self._ramp_since.get(provider, now) >= _RAMP_SECONDS:
            self._forget_ramp(provider)
            return None
        return known

    # --- what this process changes

    def store(self, provider: str, hold: Hold) -> None:
        """Let the others see this hold; it ends the ramp of one before."""
        since = self._clock.wall()
        stored = StoredHold(
            provider, self._account, hold.reason, hold.detail, hold.until, since,
            pause_seconds=hold.pause_seconds, is_doubted=hold.is_doubted, task=hold.task,
        )  # fmt: skip
        name = f"{self.key(provider)}.json"
        if try_to_replace(self.folder, name, stored.dump(), self._owner):
            self._holds[provider] = self._version(name)
            self._since[provider] = parse_rfc3339(rfc3339(since))
        self._forget_ramp(provider)

    def store_ramp(self, provider: str, allowed: int | None) -> None:
        """Let the others see how many may run at once; None ends the ramp."""
        if allowed is None:
            self._forget_ramp(provider)
            return
        name = ramp_name(self.key(provider))
        if try_to_replace(self.folder, name, json.dumps({"allowed": allowed}).encode() + b"\n", self._owner):
            self._ramps[provider] = self._version(name)
            self._ramp_since[provider] = self._clock.monotonic()

    def refutations(self, provider: str) -> int:
        """How often a doubted hold of its account was refuted, by anybody."""
        return read_well(self.folder, self.key(provider))

    def refuted(self, provider: str) -> None:
        """That was once more. Of two who see it at once only one may be counted; that is enough."""
        raw = json.dumps({"times": self.refutations(provider) + 1}).encode() + b"\n"
        try_to_replace(self.folder, well_name(self.key(provider)), raw, self._owner)

    def remove(self, provider: str) -> None:
        """End its hold for all; one that was never stored is only forgotten."""
        was_stored = provider in self._holds
        self.forget(provider)
        if was_stored:
            with contextlib.suppress(OSError):
                self.folder.remove(f"{self.key(provider)}.json")

    def forget(self, provider: str) -> None:
        """Its hold is gone from disk."""
        self._holds.pop(provider, None)
        self._since.pop(provider, None)

    def _forget_ramp(self, provider: str) -> None:
        self._ramps.pop(provider, None)
        with contextlib.suppress(OSError):
            self.folder.remove(ramp_name(self.key(provider)))

    def _whose(self, names: Collection[str], split: Callable[[str], tuple[str, str] | None]) -> set[str]:
        whose = [split(name) for name in names]
        return {found[0] for found in whose if found is not None and found[1] == self._account}

    def _version(self, name: str) -> _Version | None:
        try:
            found = os.stat(name, dir_fd=self.folder.fd, follow_symlinks=False)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def try_to_replace(folder: Folder, name: str, raw: bytes, owner: str) -> bool:
    """Store a gate's memory; returns whether that was possible. A full disk must not stop the gate itself."""
    with contextlib.suppress(OSError):
        replace(folder, name, raw, owner)
        return True
    return False
