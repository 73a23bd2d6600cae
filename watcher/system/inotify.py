"""Turn file-system events into one asyncio event: the only hop between threads on the way in.

Events are hints: they name files worth a look. The scan that the worker makes anyway is the truth, so a lost event
costs time and never a task. What is known to break watches is told instead of hidden: an overflow, a folder that was
deleted or replaced, a system without inotify or without watches left.

Uses the inotify reader of watchdog directly. Its observers hold an unpaired move for 0.5 s before everything behind
it, and every claim is such a move (docs/architecture.md has the figures).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from watchdog.observers.inotify_c import CallbackId, InotifyEvent, InotifyFD


#: Where inotify could not be had it is tried again after so long: a limit of the machine may have been raised.
AGAIN_SECONDS = 60.0


class Waker:
    """Collects names that events mention and sets `flag` on the loop.

    `take` hands them over; `lost` is True when events were lost, so that a full scan is due.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.flag = asyncio.Event()
        self._loop = loop
        self._names: dict[tuple[str, str], None] = {}
        self._lost = False
        self._signalled = False
        self._inotify: InotifyFD | None = None
        self._watches: dict[str, tuple[Any, Path]] = {}
        self.problem: str | None = None
        self._last_mode: str | None = None
        self._try_at: float | None = None
        self._start()

    @property
    def mode(self) -> str:
        """`events` or `polling`, as the heartbeat says it; after `close` what it was last."""
        if self._last_mode is not None:
            return self._last_mode
        return "events" if self._inotify is not None and self.problem is None else "polling"

    def watch(self, key: str, path: Path, *, removals: bool = False, creations: bool = False) -> bool:
        """Watch the folder at `path` (links resolved) under `key`; an older watch of that key is dropped.

        Names come when a writer closes or a rename brings them; with `removals` also when they go, with `creations`
        also when they are made, which is the only event of a new folder.

        Returns whether events can be had; if not, `problem` says why.
        """
        self.unwatch(key)
        if self._try_at is not None and time.monotonic() >= self._try_at:
            self._start()
        if self._inotify is None:
            return False
        real = Path(os.path.realpath(path))
        try:
            wd = self._inotify.add_callback(
                os.fsencode(real),
                self._mask | (self._removals if removals else 0) | (self._creations if creations else 0),
                _Callback(self, key),
                cast("CallbackId", key),
            )
        except OSError as error:
            self.problem = f"no events for {key}: {error.strerror or error}; scanning instead"
            return False
        self._watches[key] = (wd, real)
        self.problem = None
        return True

    def unwatch(self, key: str) -> None:
        old = self._watches.pop(key, None)
        if old is not None and self._inotify is not None:
            # The folder may be gone already, and its watch with it.
            with contextlib.suppress(OSError, KeyError):
                self._inotify.remove_callbacks([(old[0], cast("CallbackId", key))])

    def is_watching(self, key: str) -> bool:
        return key in self._watches

    def take(self) -> tuple[list[tuple[str, str]], bool]:
        """The (key, file name) pairs that events mentioned since the last call, and whether some were lost."""
        self.flag.clear()
        self._signalled = False
        # Each of these is one step under the interpreter lock. The reader thread may add meanwhile, also faster than
        # names are taken: those are for the next call, or this one would never return.
        names = list(self._names)
        for name in names:
            self._names.pop(name, None)
        lost, self._lost = self._lost, False
        return names, lost

    def poke(self) -> None:
        """Set the flag from any thread."""
        if not self._signalled:
            self._signalled = True
            # The loop is closed while the process ends; there is nobody left to wake then.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.flag.set)

    def close(self) -> None:
        self._last_mode = self.mode
        self._try_at = None
        if self._inotify is not None:
            for key in list(self._watches):
                self.unwatch(key)
            self._inotify.stop()
            self._inotify = None

    def _start(self) -> None:
        self._try_at = None
        try:
            from watchdog.observers.inotify_c import InotifyConstants as C
            from watchdog.observers.inotify_c import InotifyFD

            self._mask: Any = C.IN_CLOSE_WRITE | C.IN_MOVED_TO | C.IN_ONLYDIR
            self._removals: Any = C.IN_DELETE | C.IN_MOVED_FROM
            self._creations: Any = C.IN_CREATE
            self._inotify = InotifyFD()
            self._inotify.daemon = True
            self._inotify.start()
        except ImportError:
            self.problem = "this system has no inotify; scanning instead"
        except OSError as error:
            self._inotify = None
            self._try_at = time.monotonic() + AGAIN_SECONDS
            self.problem = f"no inotify: {error.strerror or error}; scanning instead"

    def _seen(self, key: str, name: str) -> None:
        self._names[(key, name)] = None
        self.poke()

    def _broken(self, key: str) -> None:
        self._watches.pop(key, None)
        self._lost = True
        self.poke()

    def _overflowed(self) -> None:
        self._lost = True
        self.poke()


class _Callback:
    """What watchdog's reader thread calls; it must never raise, or that thread ends."""

    __slots__ = ("_key", "_waker")

    def __init__(self, waker: Waker, key: str) -> None:
        self._waker = waker
        self._key = key

    def on_event(self, event: InotifyEvent) -> None:
        name = event.name
        self._waker._seen(self._key, os.fsdecode(name) if name else "")

    def on_watch_deleted(self, wd: Any) -> None:
        self._waker._broken(self._key)

    def on_queue_overflow(self) -> None:
        self._waker._overflowed()
