"""Serve drop zones inside a worker's process, on a thread with a loop of its own: neither delays the other.

The thread is started again after a defect, for which a file stays as safe as after a kill. `reload` may be called
from any thread, also from a signal handler of another loop. Nothing here raises into the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from watcher.clock import Clock
from watcher.errors import SettingError
from watcher.intake.drop_zones.loop import Counts, DropZones, state_folder
from watcher.intake.drop_zones.zone_file import ZoneFile, load_zone_file

if TYPE_CHECKING:
    from watcher.settings.worker import WatcherConfig

_PAUSE_SECONDS = 5.0
_STATUS_SECONDS = 60.0

log = logging.getLogger("watcher.zones")


def load(path: Path, config: WatcherConfig) -> ZoneFile:
    """The checked file of drop zones, apart from the suite's own folders. Raises ZoneFileError."""
    places = config.folders
    ours = (places.tasks, places.triggers, places.results, places.heartbeats, places.dlq, places.control)
    return load_zone_file(path, (*ours, state_folder(config)))


def reloaded(path: Path, config: WatcherConfig) -> ZoneFile | None:
    """The same for a file that is served already; None, and a line in the log, when the older one must be kept."""
    try:
        return load(path, config)
    except SettingError as error:
        log.error("keeping the drop zones as they were:\n%s", error, extra={"event": "zones.reload_refused"})  # noqa: TRY400
        return None


class ZonesThread:
    """Serves the zones of one file until `close`."""

    def __init__(self, path: Path, config: WatcherConfig, clock: Clock) -> None:
        """Raises ZoneFileError; nothing runs until `start`."""
        self._path = path
        self._config = config
        self._clock = clock
        self._file = load(path, config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._zones: DropZones | None = None
        self._stopping = threading.Event()
        self._is_draining = False
        self._told_at = clock.monotonic()
        self._thread = threading.Thread(target=self._serve, name="drop-zones", daemon=True)

    def start(self) -> None:
        """Begin to serve; once more does nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def reload(self) -> None:
        """Read the file again; a bad one is told and the older one kept."""
        found = reloaded(self._path, self._config)
        if found is not None:
            self._file = found
            self._call(lambda zones: zones.reload(found))

    def drain(self) -> None:
        """Take no more files; finish those whose task ends yet."""
        self._is_draining = True
        self._call(DropZones.drain)

    def close(self) -> None:
        """Finish what has ended by now, then end the thread."""
        self._stopping.set()  # first, or the thread begins anew
        self._call(DropZones.stop)
        if self._thread.is_alive():
            self._thread.join()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                asyncio.run(self._run())
            except Exception:
                # Whatever it is, a worker must not die of it; the files are as safe as after a kill.
                log.exception("drop zones failed; starting again", extra={"event": "zones.failed"})
                self._stopping.wait(_PAUSE_SECONDS)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._zones = DropZones(self._file, self._config, self._clock, self._each)
        if self._is_draining:
            self._zones.drain()
        try:
            if not self._stopping.is_set():
                await self._zones.run()
        finally:
            self._loop = self._zones = None

    def _call(self, what: Callable[[DropZones], None]) -> None:
        loop, zones = self._loop, self._zones
        if loop is not None and zones is not None:
            with contextlib.suppress(RuntimeError):  # it is closed: the thread ends or starts again
                loop.call_soon_threadsafe(what, zones)

    def _each(self, counts: Counts) -> None:
        now = self._clock.monotonic()
        if now - self._told_at >= _STATUS_SECONDS:
            self._told_at = now
            log.info("drop zones: %s", counts.block().replace("\n", "; "), extra={"event": "zones.status"})
