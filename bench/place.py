"""Where to measure: a filesystem of its own, made for the run and removed after it.

Native folders mislead: an ext4 without a journal pays for every file deleted before (a create cost 32 us on a
fresh one and up to 590 us after other runs), so `auto` makes a journalled ext4 on a sparse file and mounts it
by loop, which needs root. Where that is refused it takes a tmpfs, then a plain temporary folder; `Place.note`
says which, and every report prints it. A tmpfs ignores fsync: figures of durable work mean nothing there.

Promise: the mount and the file are gone when the block ends, also on an exception, SIGINT, SIGTERM or SIGHUP.
After a SIGKILL they stay until the next run, which removes what runs of dead processes left (`sweep`). Raises
BenchError when an explicitly named kind cannot be had.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench.errors import BenchError

KINDS = ("auto", "ext4", "tmpfs", "folder")
_PREFIX = "watcher-bench-"
#: Small files are all there is: one inode for each 4 KiB, mkfs's default would end at a quarter of the tasks.
_BYTES_PER_INODE = 4096


@dataclass(frozen=True)
class Place:
    """A folder to measure in. `kind` is `ext4`, `tmpfs` or `folder`; `note` says what that means."""

    path: Path
    kind: str
    note: str

    def settle(self) -> None:
        """Write out what is dirty here, so that no run pays for the one before it."""
        _refusal(["sync", "-f", str(self.path)])


@contextlib.contextmanager
def place(kind: str = "auto", size: str = "2G", base: Path | None = None) -> Iterator[Place]:
    """Make a place, yield it, remove it. `size` is as mkfs takes it (`512M`, `8G`); the file is sparse."""
    base = base or Path(tempfile.gettempdir())
    sweep(base)
    with _ending_on_signals():
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))
        try:
            yield _make(kind, size, folder)
        finally:
            _remove(folder)


def _make(kind: str, size: str, folder: Path) -> Place:
    refusals: list[str] = []
    if kind in ("auto", "ext4"):
        refusal = _mount_ext4(folder, size)
        if refusal is None:
            note = f"journalled ext4 of {size} on a loop device, backing file in {folder.parent}"
            return Place(folder / "mnt", "ext4", note)
        refusals.append(f"ext4: {refusal}")
    if kind in ("auto", "tmpfs"):
        refusal = _mount_tmpfs(folder, size)
        if refusal is None:
            return Place(folder / "mnt", "tmpfs", _because(f"tmpfs of {size}; fsync costs nothing here", refusals))
        refusals.append(f"tmpfs: {refusal}")
    if kind in ("auto", "folder"):
        plain = folder / "mnt"
        plain.mkdir(exist_ok=True)
        note = f"plain folder on {_filesystem_of(folder)}; it may remember what was deleted before"
        return Place(plain, "folder", _because(note, refusals))
    raise BenchError(f"place {kind} in {folder.parent}: {'; '.join(refusals) or 'unknown kind'}; try --place auto")


def _because(note: str, refusals: list[str]) -> str:
    return f"FALLBACK: {note} ({'; '.join(refusals)})" if refusals else note


def _mount_ext4(folder: Path, size: str) -> str | None:
    """Mount a fresh journalled ext4; returns why not, or None."""
    image, target = folder / "image", folder / "mnt"
    target.mkdir(exist_ok=True)
    # Inode tables and journal are written now: else a kernel thread writes them while we measure.
    make = ["mkfs.ext4", "-q", "-F", "-O", "has_journal", "-i", str(_BYTES_PER_INODE)]
    make += ["-E", "lazy_itable_init=0,lazy_journal_init=0", str(image)]
    for command in (
        ["truncate", "-s", size, str(image)],
        make,
        ["mount", "-o", "loop", str(image), str(target)],
    ):
        refusal = _refusal(command)
        if refusal is not None:
            return refusal
    return None


def _mount_tmpfs(folder: Path, size: str) -> str | None:
    target = folder / "mnt"
    target.mkdir(exist_ok=True)
    return _refusal(["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes=0", "watcher-bench", str(target)])


def _refusal(command: list[str]) -> str | None:
    """Run it; returns None when it worked, else its words."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
    return None if done.returncode == 0 else said[0]


def _remove(folder: Path) -> None:
    """Unmount and delete. While a process has a file open there, wait a moment; then detach the mount."""
    target = folder / "mnt"
    for _ in range(50):
        if not os.path.ismount(target) or _refusal(["umount", str(target)]) is None:
            break
        time.sleep(0.1)  # a killed process may still be closing its files
    else:
        print(f"place: {target} is busy, detaching it lazily", file=sys.stderr)
        _refusal(["umount", "-l", str(target)])
    if not os.path.ismount(target):
        shutil.rmtree(folder, ignore_errors=True)


def sweep(base: Path) -> None:
    """Remove places in `base` whose process is dead."""
    for folder in base.glob(f"{_PREFIX}*-*"):
        owner = re.fullmatch(rf"{_PREFIX}(\d+)-.*", folder.name)
        if owner is not None and not Path(f"/proc/{owner[1]}").exists():
            print(f"place: removing {folder}, left by a killed run", file=sys.stderr)
            _end_orphans(folder)
            _remove(folder)


def _end_orphans(folder: Path) -> None:
    """Kill what a killed run left running: everything it started has its working folder in there."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(folder):
                os.kill(int(entry.name), signal.SIGKILL)


def _filesystem_of(folder: Path) -> str:
    """`ext4` and the like, by the longest mount point above the folder."""
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split(" ")
        if folder.is_relative_to(point) and len(point) > len(best[0]):
            best = (point, kind)
    return best[1]


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that every `finally` runs."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    with place(sys.argv[1] if len(sys.argv) > 1 else "auto", "1G") as made:
        room = os.statvfs(made.path)
        print(f"{made.path}\n{made.kind}: {made.note}")
        print(f"{room.f_bavail * room.f_frsize >> 20:,} MiB, {room.f_favail:,} inodes")
