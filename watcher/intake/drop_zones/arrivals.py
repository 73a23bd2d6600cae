"""Find the files in the zones that their writers have finished.

Events only say where to look; the scan walks every folder and finds what they missed. A file is settled when it has
not changed for its zone's `settle` seconds and no process has it open for writing; where the kernel cannot tell that
(another owner, a network file system), when it has not changed for SETTLE_SECONDS. Time is this process's own
monotonic clock.

Memory holds a bounded number of files; the others wait where they lie and are found when there is room. Nothing is
opened for longer than the question for writers, no link is followed, neither a file nor a folder on the way that was
exchanged for one, nothing that begins with a dot is looked at. Raises nothing for a folder or file that cannot be read:
it is told once, and looked at again by the next scan.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from watcher.clock import Clock
from watcher.errors import tells_nothing
from watcher.intake.drop_zones.zone_file import Zone
from watcher.store.task_reader import has_writer
from watcher.system import no_links
from watcher.system.inotify import Waker

#: Files that are known at once; more wait where they are.
MAX_KNOWN = 10_000
#: An unsettled file is looked at again after this long, doubling up to the second figure.
_LOOK_AGAIN_SECONDS = (0.05, 2.0)
#: What editors, browsers and copying programs leave for a moment; taken only by a pattern with that very ending.
_FLEETING_ENDS = ("~", ".swp", ".swx", ".tmp", ".part", ".partial", ".crdownload", ".filepart")
_MAX_DEPTH = 64
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_LONG_OPEN_SECONDS = 60.0
_STEPS = 200

log = logging.getLogger("watcher.zones")


@dataclass(frozen=True, slots=True)
class FileSignature:
    """What changes when a file does. Nanoseconds."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, info: os.stat_result) -> FileSignature:
        return cls(info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


@dataclass(slots=True)
class Arrival:
    """A file that may become a task. Times are monotonic seconds."""

    path: str
    zone: Zone
    base: Path
    signature: FileSignature
    since: float
    first: float
    again_at: float
    pause: float = _LOOK_AGAIN_SECONDS[0]
    is_told: bool = False

    @property
    def rank(self) -> tuple[int, int, str]:
        """What is taken first: priority, then arrival, then name."""
        return (-self.zone.priority, self.signature.ctime_ns, self.path)


class Arrivals:
    """The files of all served zones. `is_known(path, zone, signature)` says whether a file needs no (further) look;
    `on_gone(path)` hears of names that went."""

    def __init__(
        self,
        waker: Waker,
        clock: Clock,
        settle_seconds: float,
        is_known: Callable[[str, Zone, FileSignature], bool],
        on_gone: Callable[[str], None],
    ) -> None:
        self._waker = waker
        self._clock = clock
        self._settle_seconds = settle_seconds
        self._is_known = is_known
        self._on_gone = on_gone
        self._zones: tuple[Zone, ...] = ()
        self._served: frozenset[str] = frozenset()
        self._watched: dict[str, tuple[int, int]] = {}
        self._unsettled: dict[str, Arrival] = {}
        self.settled: dict[str, Arrival] = {}
        self._told: set[str] = set()
        #: Whether the last scan left files where they are for want of room.
        self.left_some = False
        self.is_blind = False

    def serve(self, zones: tuple[Zone, ...], served: frozenset[str]) -> None:
        """Look for files of these zones; of all that are configured, because the first that fits a file has it."""
        self._zones, self._served = zones, served
        for files in (self._unsettled, self.settled):
            for path in [p for p, found in files.items() if found.zone not in zones]:
                del files[path]

    def unsettled(self) -> int:
        return len(self._unsettled)

    def zone_of(self, path: str) -> tuple[Zone, Path] | None:
        """The first zone whose folders and patterns fit, with its folder; None when that is not served here."""
        name = os.path.basename(path)
        if name.startswith("."):
            return None
        for zone in self._zones:
            for base in zone.dirs:
                if self._fits(zone, base, path, name):
                    return (zone, base) if zone.name in self._served else None
        return None

    def notice(self, folder: str, name: str) -> None:
        """An event named something in a watched folder."""
        if name.startswith("."):
            return
        path = os.path.join(folder, name)
        try:
            info = no_links.look_at(path)
        except OSError as error:
            if not tells_nothing(error):  # else the next scan sees what there is
                self.drop(path)
                self._on_gone(path)
            return
        if stat.S_ISDIR(info.st_mode):
            for _ in self._walk(Path(path), set()):
                pass
        else:
            self.consider(path, info)

    def consider(self, path: str, info: os.stat_result) -> None:
        """Look at a file whose state is `info`: new, changed, or known."""
        fitting = self.zone_of(path)
        if fitting is None:
            return
        signature = FileSignature.of(info)
        known = self._unsettled.get(path) or self.settled.get(path)
        if known is not None and known.signature == signature:
            return
        self.drop(path)
        if self._is_known(path, fitting[0], signature):
            return
        if len(self._unsettled) + len(self.settled) >= MAX_KNOWN:
            self.left_some = True
            return
        now = self._clock.monotonic()
        first = now if known is None else known.first
        self._unsettled[path] = Arrival(path, *fitting, signature, now, first, now + fitting[0].settle)

    def drop(self, path: str) -> None:
        """This file is gone, changed, or has become somebody else's."""
        self._unsettled.pop(path, None)
        self.settled.pop(path, None)

    def unsettle(self, arrival: Arrival) -> None:
        """It was settled and is not any more: look at it again from the start."""
        self.drop(arrival.path)
        with contextlib.suppress(OSError):
            self.consider(arrival.path, no_links.look_at(arrival.path))

    def postpone(self, arrival: Arrival, seconds: float) -> None:
        """Offer it again after a while."""
        self.drop(arrival.path)
        arrival.again_at = self._clock.monotonic() + seconds
        self._unsettled[arrival.path] = arrival

    def tick(self) -> None:
        """Settle what is due."""
        now = self._clock.monotonic()
        for arrival in [one for one in self._unsettled.values() if one.again_at <= now]:
            self._examine(arrival, now)

    def next_due_in(self) -> float | None:
        """Seconds until a file may have settled."""
        if not self._unsettled:
            return None
        return max(0.0, min(one.again_at for one in self._unsettled.values()) - self._clock.monotonic())

    def scan(self) -> Iterator[None]:
        """Walk all folders; yields now and then so that the loop stays awake."""
        self.left_some = False
        self.is_blind = False
        seen: set[str] = set()
        for zone in self._zones:
            for base in zone.dirs if zone.name in self._served else ():
                try:
                    no_links.make_folder(base)
                except OSError as error:
                    self.tell(str(base), f"cannot make the folder: {error.strerror or error}")
                    continue
                yield from self._walk(base, seen)
        for folder in [folder for folder in self._watched if folder not in seen]:
            self._waker.unwatch(folder)
            del self._watched[folder]
        for path in [p for files in (self._unsettled, self.settled) for p in files]:
            if no_links.is_gone(path):
                self.drop(path)
        yield

    def _walk(self, top: Path, seen: set[str]) -> Iterator[None]:
        ahead = [(str(top), 0)]
        step = 0
        while ahead:
            folder, depth = ahead.pop()
            if folder in seen or depth > _MAX_DEPTH or not self._is_ours(folder):
                continue
            seen.add(folder)
            self._watch(folder)  # before it is listed, so that nothing falls between
            try:
                with no_links.entries_in(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            ahead.append((os.path.join(folder, entry.name), depth + 1))
                        else:
                            with contextlib.suppress(FileNotFoundError):
                                self.consider(os.path.join(folder, entry.name), entry.stat(follow_symlinks=False))
                        step += 1
                        if step % _STEPS == 0:
                            yield
                self._told.discard(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                self.tell(folder, f"cannot be listed: {error.strerror or error}; make it readable")

    def _watch(self, folder: str) -> None:
        try:
            info = no_links.look_at(folder)
        except OSError:
            return
        identity = (info.st_dev, info.st_ino)
        if self._watched.get(folder) == identity and self._waker.is_watching(folder):
            return
        if self._waker.watch(folder, Path(folder), creations=True, removals=True):
            self._watched[folder] = identity
        else:
            self.is_blind = True

    def _is_ours(self, folder: str) -> bool:
        path = Path(folder)
        for zone in self._zones:
            for base in zone.dirs if zone.name in self._served else ():
                if path == base or (zone.recursive and path.is_relative_to(base)):
                    return True
        return False

    def _fits(self, zone: Zone, base: Path, path: str, name: str) -> bool:
        prefix = f"{base}{os.sep}" if str(base) != os.sep else os.sep
        if not path.startswith(prefix):
            return False
        below = path[len(prefix) :]
        if below != name and (not zone.recursive or any(part.startswith(".") for part in below.split(os.sep))):
            return False
        fleeting = next((end for end in _FLEETING_ENDS if name.endswith(end)), None)
        return any(
            fnmatchcase(below if "/" in pattern else name, pattern) and (fleeting is None or pattern.endswith(fleeting))
            for pattern in zone.patterns
        )

    def _examine(self, arrival: Arrival, now: float) -> None:
        try:
            signature = FileSignature.of(no_links.look_at(arrival.path))
        except OSError:
            self.drop(arrival.path)
            return
        if signature != arrival.signature:
            arrival.signature, arrival.since, arrival.pause = signature, now, _LOOK_AGAIN_SECONDS[0]
        rest = arrival.since + arrival.zone.settle - now
        if rest > 0:
            arrival.again_at = now + rest
            return
        try:
            writing = is_being_written(arrival.path)
        except OSError:
            arrival.again_at = now + arrival.pause
            return
        if writing is None:
            rest = arrival.since + max(arrival.zone.settle, self._settle_seconds) - now
            if rest > 0:
                arrival.again_at = now + rest
                return
        elif writing:
            arrival.again_at = now + arrival.pause
            arrival.pause = min(arrival.pause * 2, _LOOK_AGAIN_SECONDS[1])
            self._tell_open(arrival, now)
            return
        del self._unsettled[arrival.path]
        self.settled[arrival.path] = arrival
        log.debug("%s has settled", arrival.path, extra={"event": "zones.file_found", "file": arrival.path})

    def _tell_open(self, arrival: Arrival, now: float) -> None:
        if now - arrival.since > _LONG_OPEN_SECONDS and not arrival.is_told:
            arrival.is_told = True
            text = "%s waits: a process has had it open for writing for a minute without changing it"
            log.warning(text, arrival.path, extra={"event": "zones.file_held_open"})

    def tell(self, folder: str, what: str) -> None:
        """Say once what is wrong with a folder."""
        if folder not in self._told:
            self._told.add(folder)
            log.error("drop folder %s: %s", folder, what, extra={"event": "zones.folder_unusable"})


def is_being_written(path: str) -> bool | None:
    """Whether some process has the file open for writing; None when that cannot be told, False for what is no file
    or cannot be opened: whoever takes it says what is wrong with it. Raises OSError when the machine is too short of
    something to look."""
    try:
        fd = no_links.open_file(path, _OPEN)
    except OSError as error:
        if tells_nothing(error):
            raise
        return False
    try:
        # Several names: the link may be the moment between `ln` and `rm` of a careful writer.
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return False
        return None if info.st_nlink > 1 else has_writer(fd)
    finally:
        os.close(fd)
