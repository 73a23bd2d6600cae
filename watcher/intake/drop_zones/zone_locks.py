"""Own the list of zones that this process serves: the memory of each, and the lock that keeps other processes off.

A zone that another process serves is asked for again at each `take`, so that a second process takes over when the
first one dies; that it stands by is said once. Memories belong to the loop's thread.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from watcher.intake.drop_zones.file_memory import ZoneMemory
from watcher.system import no_links

log = logging.getLogger("watcher.zones")


class ZoneLocks:
    """The memories of the zones that are ours, by slug; `state` is the zones' own folder."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._memories: dict[str, ZoneMemory] = {}
        self._standing_by: set[str] = set()

    def __contains__(self, slug: str) -> bool:
        return slug in self._memories

    def __getitem__(self, slug: str) -> ZoneMemory:
        return self._memories[slug]

    def take(self, slugs: Iterable[str], trouble: Callable[[str], None]) -> Iterator[ZoneMemory]:
        """Take those zones that are free; gives the new memories. `trouble` hears of a zone that cannot be taken."""
        for slug in slugs:
            if slug not in self._memories and (memory := self._take(slug, trouble)) is not None:
                yield memory

    def leave_all_but(self, slugs: Collection[str]) -> None:
        for slug in [slug for slug in self._memories if slug not in slugs]:
            self.leave(slug)

    def leave(self, slug: str) -> None:
        self._memories.pop(slug).close()

    def forget_file(self, path: str) -> None:
        """A name went from some zone: what comes under it is new."""
        for memory in self._memories.values():
            with contextlib.suppress(OSError):  # the next pruning forgets it
                memory.forget_file(path)

    def prune(self) -> None:
        """Forget the files that are there no longer."""
        for memory in self._memories.values():
            with contextlib.suppress(OSError):  # it only stays a little larger
                memory.prune(no_links.is_gone)

    def _take(self, slug: str, trouble: Callable[[str], None]) -> ZoneMemory | None:
        try:
            memory = ZoneMemory.take(self._state, slug)
        except OSError as error:
            trouble(f"zone {slug}: cannot use {self._state}: {error}")
            return None
        if memory is None:
            if slug not in self._standing_by:
                self._standing_by.add(slug)
                text = "zone %s is served by another process; standing by"
                log.info(text, slug, extra={"event": "zones.standing_by"})
            return None
        self._standing_by.discard(slug)
        self._memories[slug] = memory
        return memory
