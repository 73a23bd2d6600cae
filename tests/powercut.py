"""What a power cut would take: every write, fsync, rename and unlink of this process is noted while it happens.

A file is safe when an fsync of it, or a syncfs, came after its last write, and found all that it holds now; a name is
safe when one of its folder came after the name did. So a test can ask at any step, above all at the removal of a
claim, what would be left. It believes in fsync and knows one file system only; nothing else is assumed of it.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from watcher.system import files

_CALLS = ("open", "write", "fsync", "fdatasync", "rename", "link", "unlink", "mkdir")


class PowerCut:
    """Notes everything from now on. `before_removal` is called with the name and folder of what is to be unlinked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._step = 0
        self._dirty: dict[int, int] = {}
        self._clean: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._synced = 0
        self.before_removal: Callable[[str, int | None], None] = lambda name, folder: None
        real = {name: getattr(os, name) for name in _CALLS}
        syncfs, renameat2 = files._SYNCFS, files._RENAMEAT2

        def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            is_new = bool(flags & os.O_CREAT) and not _is_there(path, dir_fd)
            fd: int = real["open"](path, flags, mode, dir_fd=dir_fd)
            if is_new:
                self._soil(fd)
                self._soil_folder(path, dir_fd)
            return fd

        def write(fd: int, data: Any) -> int:
            self._soil(fd)
            return int(real["write"](fd, data))

        def flushing(name: str) -> Callable[[Any], None]:
            def flush(fd: Any) -> None:
                real[name](fd)
                self._step += 1
                info = os.fstat(fd)
                self._clean[info.st_ino], self._sizes[info.st_ino] = self._step, info.st_size

            return flush

        def moving(name: str) -> Callable[..., None]:
            def move(
                source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None, **more: Any
            ) -> None:
                real[name](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **more)
                self._soil_folder(source, src_dir_fd)
                self._soil_folder(target, dst_dir_fd)

            return move

        def unlink(path: Any, *, dir_fd: int | None = None) -> None:
            self.before_removal(os.path.basename(os.fspath(path)), dir_fd)
            real["unlink"](path, dir_fd=dir_fd)
            self._soil_folder(path, dir_fd)

        def mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            real["mkdir"](path, mode, dir_fd=dir_fd)
            self._soil_folder(path, dir_fd)

        def sync_all(fd: int) -> int:
            self._step += 1
            self._synced = self._step
            return int(syncfs(fd))

        def rename_new(source: int, name: bytes, target: int, new: bytes, flags: int) -> int:
            done = int(renameat2(source, name, target, new, flags))
            if done == 0:
                self._soil(source)
                self._soil(target)
            else:
                ctypes.set_errno(ctypes.get_errno())
            return done

        for name, instead in (
            ("open", open_), ("write", write), ("fsync", flushing("fsync")), ("fdatasync", flushing("fdatasync")),
            ("rename", moving("rename")), ("link", moving("link")), ("unlink", unlink), ("mkdir", mkdir),
        ):  # fmt: skip
            monkeypatch.setattr(os, name, instead)
        monkeypatch.setattr(files, "_SYNCFS", sync_all)
        monkeypatch.setattr(files, "_RENAMEAT2", rename_new)

    def unsafe(self, *paths: Path) -> list[str]:
        """What of these a power cut would take now: contents of files, and the names of files in their folders."""
        out = []
        for path in paths:
            if not self._is_safe(path):
                out.append(f"contents of {path}" if stat.S_ISREG(path.stat().st_mode) else f"names in {path}")
            if path.is_file() and not self._is_safe(path.parent):
                out.append(f"the name {path}")
        return out

    def printed(self, path: Path) -> None:
        """Another process, a command, has written to it."""
        self._step += 1
        self._dirty[path.stat().st_ino] = self._step

    def _is_safe(self, path: Path) -> bool:
        info = path.stat()
        clean = self._clean.get(info.st_ino, 0)
        # What a buffer held back until after the fsync was written by no call that is seen here.
        if clean > self._synced and path.is_file() and self._sizes[info.st_ino] != info.st_size:
            return False
        return max(clean, self._synced) >= self._dirty.get(info.st_ino, 0)

    def _soil(self, fd: int) -> None:
        self._step += 1
        self._dirty[os.fstat(fd).st_ino] = self._step

    def _soil_folder(self, path: Any, dir_fd: int | None) -> None:
        self._step += 1
        found = os.fstat(dir_fd) if dir_fd is not None else os.stat(os.path.dirname(os.fspath(path)) or ".")
        self._dirty[found.st_ino] = self._step


def _is_there(path: Any, dir_fd: int | None) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return True
