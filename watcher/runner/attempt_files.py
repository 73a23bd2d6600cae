"""Keep the files of an attempt: the prompt that a command reads, and the outputs that it prints into.

A slot's two files are used by one command after the other, which saves making and deleting two files for each; they
are replaced when something else may still hold them, or when the caller keeps them. They lie in the claim folder, so
that rescuers clear what a crash leaves. Raises OSError: the claim folder is gone, or the machine is short of
something.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from watcher.errors import is_trouble
from watcher.policy.output_limit import FULL_BYTES
from watcher.runner.printed_text import bounded_text, harmless, shortened
from watcher.runner.runner_interface import Output
from watcher.system import no_links


class Slot:
    """The two files that one command at a time prints into."""

    def __init__(self, folder: Path, numbers: Iterator[int]) -> None:
        self._folder = folder
        self._numbers = numbers
        self.stdout = Capture(folder, "stdout", numbers)
        try:
            self.stderr = Capture(folder, "stderr", numbers)
        except OSError:
            self.stdout.remove()
            raise

    def refresh(self, is_clean: bool) -> None:
        """Make both ready for the next command: emptied, or new when they are kept or were shared with others."""
        self.stdout = self._ready(self.stdout, is_clean)
        self.stderr = self._ready(self.stderr, is_clean)

    def remove(self) -> None:
        self.stdout.remove()
        self.stderr.remove()

    def printed_bytes(self) -> int:
        return self.stdout.size() + self.stderr.size()

    def free_bytes(self) -> int:
        """What is free on the disk that both are on."""
        space = os.fstatvfs(self.stdout.fd)
        return space.f_bavail * space.f_frsize

    def has_room(self, needed_bytes: int) -> bool:
        return self.free_bytes() >= max(needed_bytes, FULL_BYTES)

    def cut(self, at_most_bytes: int) -> None:
        """Drop the ends of what was printed until no more than so much is left of both together."""
        out, err = self.stdout.size(), self.stderr.size()
        self.stdout.cut(max(at_most_bytes - err, at_most_bytes // 2))
        self.stderr.cut(max(at_most_bytes - out, at_most_bytes // 2))

    def _ready(self, capture: Capture, is_clean: bool) -> Capture:
        if is_clean and not capture.is_kept:
            capture.empty()
            return capture
        fresh = Capture(self._folder, capture.stream, self._numbers)
        capture.remove()
        return fresh


class Slots:
    """The slots of a runner: one for each command that runs, kept for the next ones. Used by many threads at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._idle: deque[Slot] = deque()

    def take(self) -> Slot:
        """A slot for one command. Raises OSError."""
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        return Slot(self._folder, self._numbers)

    def give_back(self, slot: Slot, is_clean: bool) -> None:
        """Its command is over; `is_clean`: nothing else can still hold the files."""
        try:
            slot.refresh(is_clean)
        except OSError:  # no descriptor or no folder: the next attempt says so, if it is still true then
            slot.remove()
        else:
            self._idle.append(slot)

    def remove(self) -> None:
        """Remove the files of those that are idle."""
        while self._idle:
            self._idle.pop().remove()


class Capture:
    """A file that a command prints into: appending, so that it can be emptied while its descriptor is used again."""

    __slots__ = ("_folder", "fd", "is_kept", "name", "stream")

    def __init__(self, folder: Path, stream: str, numbers: Iterator[int]) -> None:
        self._folder = folder
        self.stream = stream
        self.is_kept = False
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        while True:
            self.name = f"output-{next(numbers)}.{stream}"
            try:
                self.fd = no_links.open_file(folder / self.name, flags, 0o644)
                return
            except FileExistsError:  # of another runner in this folder, or kept and not yet moved
                continue

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def cut(self, at_most_bytes: int) -> None:
        if self.size() > at_most_bytes:
            os.ftruncate(self.fd, at_most_bytes)

    def changed_at(self) -> float | None:
        """Wall seconds of the last output, or None when there is none."""
        found = os.fstat(self.fd)
        return found.st_mtime if found.st_size else None

    def state(self) -> tuple[int, int]:
        """Size and time of the last change: another pair means that something was written."""
        found = os.fstat(self.fd)
        return found.st_size, found.st_mtime_ns

    def output(self, size: int, at_most_bytes: int) -> Output:
        if size == 0:
            return Output()
        text, truncated = bounded_text(self.fd, size, at_most_bytes)
        return Output(text, size, truncated, self.keep() if truncated else None)

    def keep(self) -> str | None:
        """From now on the file is the caller's. None when somebody has deleted it: then it has no name any more."""
        self.is_kept = True
        try:
            there = no_links.look_at(self._folder / self.name)
        except FileNotFoundError:
            return None
        return self.name if there.st_ino == os.fstat(self.fd).st_ino else None

    def empty(self) -> None:
        if self.size():
            os.ftruncate(self.fd, 0)
            os.lseek(self.fd, 0, os.SEEK_SET)  # should a command have taken O_APPEND away

    def remove(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if not self.is_kept:
            remove(str(self._folder / self.name))


def output_of(text: str, at_most_bytes: int, folder: Path, stream: str, numbers: Iterator[int]) -> Output:
    """A text that is there already, bounded for the result; when it does not fit, a file in `folder` has all of it."""
    if not text:
        return Output()
    short, truncated = shortened(text, at_most_bytes)
    if not truncated:
        return Output(short, len(short) if short.isascii() else len(short.encode()))
    raw = harmless(text).encode()
    return Output(short, len(raw), True, _kept(raw, folder, stream, numbers))


def kept_text(text: str, folder: Path, stream: str, numbers: Iterator[int]) -> str | None:
    """The name of a file in `folder` that holds a text, for the result that shows less than that."""
    return _kept(harmless(text).encode(), folder, stream, numbers)


def _kept(raw: bytes, folder: Path, stream: str, numbers: Iterator[int]) -> str | None:
    file = Capture(folder, stream, numbers)
    try:
        write_all(file.fd, raw)
        return file.keep()
    finally:
        file.remove()


def unnamed_file(raw: bytes, folder: Path) -> int:
    """A descriptor of a file that holds `raw`, read from its beginning, and that is gone with its last user."""
    try:
        fd = os.memfd_create("prompt", os.MFD_CLOEXEC)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and is_trouble(error):
            raise
        path = folder / f"prompt-{threading.get_ident()}.tmp"
        remove(str(path))  # of a killed worker
        fd = no_links.open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        remove(str(path))
    try:
        write_all(fd, raw)
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        os.close(fd)
        raise
    return fd


def write_file(path: str, raw: bytes) -> None:
    remove(path)
    fd = no_links.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_all(fd, raw)
    finally:
        os.close(fd)


def write_all(fd: int, raw: bytes) -> None:
    written = os.write(fd, raw)
    while written < len(raw):
        written += os.write(fd, raw[written:])


def remove(path: str | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            no_links.remove(path)
