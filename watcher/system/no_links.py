"""Open files and folders by a path without symbolic links: the one way to anything below a root or a drop zone.

Promise: what is opened lies where its path says, whatever other users do to the folders on the way, also between two
calls: a link anywhere in the path is refused with ELOOP, never followed. Nothing here goes by a path twice: who wants
to change something opens its folder once and goes on by that descriptor.
Assumes that the folders which people configure were resolved once, at the start (`os.path.realpath`), so that a link
above them, or one that is such a folder itself, is no longer in any path.
openat2(RESOLVE_NO_SYMLINKS) does it in one call since Linux 5.6; elsewhere the path is walked name by name.
Raises OSError as the system gives it, and Refused, which is one, with what to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from watcher.errors import tells_nothing

#: What a reader takes for "no such folder": it is missing, a file, or a link.
NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: A descriptor that only names a place: it needs no right to read there, and opens no device and no FIFO.
_PLACE: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC
_CURE: Final = "a symbolic link is in this path, and none is followed here; put the real one there, or mount --bind it"

_SYS_OPENAT2: Final = 437  # the same number on every architecture of Linux but alpha
_RESOLVE_NO_LINKS: Final = 0x02 | 0x04  # RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS, linux/openat2.h
_AT_FDCWD: Final = -100
#: Old kernels, and the filters of old container runtimes, which answer EPERM.
_NO_SUCH_CALL: Final = frozenset({errno.ENOSYS, errno.EPERM, errno.E2BIG})


class Refused(OSError):
    """What is there must not be used: it is reached through a link, or belongs to somebody else. The text has the cure.

    Reaction: leave everything as it is and say so; no retry helps before a person has looked at it.
    """


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_SYSCALL = getattr(ctypes.CDLL(None, use_errno=True), "syscall", None)
if _SYSCALL is not None:
    _SYSCALL.restype = ctypes.c_long
    _SYSCALL.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_How), ctypes.c_size_t)


def open_file(path: str | Path, flags: int, mode: int = 0o666) -> int:
    """A descriptor of the file or folder at `path`, never inherited; flags as for `os.open`."""
    flags |= os.O_CLOEXEC
    try:
        if _HAS_OPENAT2:  # O_NOFOLLOW would turn ELOOP into ENOTDIR where a folder is wanted
            return _open_at_once(path, flags & ~os.O_NOFOLLOW, mode)
        return _open_by_steps(path, flags | os.O_NOFOLLOW, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Refused(errno.ELOOP, _CURE, os.fspath(path)) from None
        raise


def open_folder(path: str | Path, *, create: bool = False, mode: int = 0o777) -> int:
    """A descriptor of a folder; `create` makes it and those above it when they are missing."""
    try:
        return open_file(path, _FOLDER)
    except FileNotFoundError:
        if not create:
            raise
    parent, name = os.path.split(os.path.normpath(path))
    above = open_folder(parent or ".", create=True)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=above)
        return _opened(name, _FOLDER | os.O_NOFOLLOW, 0, above, path)
    except OSError as error:
        error.filename = os.fspath(path)  # the bare name would be looked for below the current folder
        raise
    finally:
        os.close(above)


def make_folder(path: str | Path) -> None:
    """Make a folder and those above it, where they are missing."""
    os.close(open_folder(path, create=True))


@contextlib.contextmanager
def folder_of(path: str | Path) -> Iterator[tuple[int, str]]:
    """The folder that holds `path`, as a descriptor, and the name in it: for one call that takes `dir_fd`.

    An OSError of that call names the whole path.
    """
    parent, name = os.path.split(path)
    fd = open_file(parent or ".", _PLACE | os.O_DIRECTORY)
    try:
        yield fd, name
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    finally:
        os.close(fd)


def names_in(path: str | Path) -> list[str]:
    """The names in a folder, in no order; none when it is not there, is no folder, or is reached only by a link."""
    try:
        fd = open_file(path, _FOLDER)
    except OSError as error:
        if error.errno in NOT_THERE:
            return []
        raise
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def entries_in(path: str | Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """The entries of a folder; they can be asked for their state until the folder is left."""
    fd = open_folder(path)
    try:
        with os.scandir(fd) as entries:
            yield entries
    finally:
        os.close(fd)


def look_at(path: str | Path) -> os.stat_result:
    """`lstat`: a link at the very end is told as what it is."""
    with folder_of(path) as (fd, name):
        return os.stat(name, dir_fd=fd, follow_symlinks=False)


def is_there(path: str | Path) -> bool:
    """Whether something has this name, be it a link. Raises OSError when that cannot be seen (no descriptors, EIO)."""
    try:
        look_at(path)
    except OSError as error:
        if tells_nothing(error):
            raise
        return False
    return True


def is_gone(path: str | Path) -> bool:
    """Whether surely nothing has this name; False when that cannot be seen."""
    try:
        return not is_there(path)
    except OSError:
        return False


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there; a link to one is none. Raises OSError when that cannot be seen."""
    try:
        return stat.S_ISDIR(look_at(path).st_mode)
    except OSError as error:
        if tells_nothing(error):
            raise
        return False


def refuse_link(path: str | Path) -> None:
    """For a library that opens `path` by itself, and would follow. Raises OSError when it is a link, or below one."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISLNK(look_at(path).st_mode):
            raise Refused(errno.ELOOP, _CURE, os.fspath(path))


def remove(path: str | Path) -> None:
    """Unlink; a link at the end goes itself. Raises FileNotFoundError when nothing is there."""
    with folder_of(path) as (fd, name):
        os.unlink(name, dir_fd=fd)


def remove_folder(path: str | Path) -> None:
    """Remove an empty folder."""
    with folder_of(path) as (fd, name):
        os.rmdir(name, dir_fd=fd)


def _open_at_once(path: str | Path, flags: int, mode: int) -> int:
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("embedded null byte")
    how = _How(flags, mode if flags & os.O_CREAT else 0, _RESOLVE_NO_LINKS)
    while True:
        fd = int(_SYSCALL(_SYS_OPENAT2, _AT_FDCWD, raw, how, ctypes.sizeof(how)))  # type: ignore[misc]
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code), os.fspath(path))


def _open_by_steps(path: str | Path, flags: int, mode: int) -> int:
    parts = [part for part in os.fspath(path).split(os.sep) if part not in ("", ".")]
    at = os.open(os.sep if os.fspath(path).startswith(os.sep) else ".", _PLACE | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            below = _opened(part, _PLACE | os.O_DIRECTORY | os.O_NOFOLLOW, 0, at, path)
            os.close(at)
            at = below
        return _opened(parts[-1] if parts else ".", flags, mode, at, path)
    finally:
        os.close(at)


def _opened(name: str, flags: int, mode: int, at: int, path: str | Path) -> int:
    """One step. A link with O_DIRECTORY gives ENOTDIR, which says nothing of links: tell which it was."""
    try:
        return os.open(name, flags, mode, dir_fd=at)
    except OSError as error:
        code = error.errno
        if code == errno.ENOTDIR and stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            raise Refused(errno.ELOOP, _CURE, os.fspath(path)) from None
        error.filename = os.fspath(path)
        raise


def _has_openat2() -> bool:
    if _SYSCALL is None or sys.platform != "linux":  # another system's 437 is another call
        return False
    try:
        os.close(_open_at_once("/", _FOLDER, 0))
    except OSError as error:
        if error.errno in _NO_SUCH_CALL:
            return False
    return True


_HAS_OPENAT2: Final = _has_openat2()
