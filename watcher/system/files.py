"""Do every rename, link and fsync of the project, on folders held open by descriptor.

Promise: what `publish_new` shows is whole, never replaces anything, and survives a power cut once `Sync.flush` of its
folder has returned. A crash leaves at most a temporary file under a name that says whose it is.
Assumes a POSIX file system; `link` and `rename` are atomic. Linux gives `renameat2(RENAME_NOREPLACE)` and `syncfs`;
elsewhere, and on file systems without them (NFS), slower calls with the same result are used. No link is followed,
neither in a name nor in a folder's path (`no_links`).
Raises OSError as the system gives it; `EXDEV` means that two folders of one protocol lie on two file systems.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from watcher.errors import tells_nothing
from watcher.system import no_links

_RENAME_NOREPLACE: Final = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_RENAMEAT2 = getattr(_LIBC, "renameat2", None)
_SYNCFS = getattr(_LIBC, "syncfs", None)

#: Up to this many files one fsync each is cheaper than flushing the whole file system (measured: docs/architecture.md).
FEW = 2

#: What `read_regular` says of a name that is no regular file: a folder, a FIFO or a device; a link; a socket.
NO_FILE = frozenset({errno.EINVAL, errno.ELOOP, errno.EMLINK, errno.ENXIO})

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC  # O_EXCL follows no link either (open(2))


class Folder:
    """A directory held open: paths are relative to it, so that a swapped parent cannot redirect a write.

    `private` is for the folders that nobody but this suite makes: another user's is refused, because its owner can take
    away and exchange what we keep there. Raises OSError; `no_links.Refused` for that, and for a link in the path.
    """

    __slots__ = ("_is_private", "fd", "path")

    def __init__(self, path: Path, *, create: bool = True, mode: int = 0o777, private: bool = False) -> None:
        self.path = path
        self._is_private = private
        self.fd = no_links.open_folder(path, create=create, mode=mode)
        if private:
            try:
                self._refuse_foreign()
            except OSError:
                self.close()
                raise

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def is_current(self) -> bool:
        """Whether the path still leads to the folder that is held open (it may be deleted, replaced, unmounted).

        Raises OSError when that cannot be seen: a process without descriptors has lost no folder.
        """
        try:
            there, here = no_links.look_at(self.path), os.fstat(self.fd)
        except OSError as error:
            if tells_nothing(error):
                raise
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def mend(self) -> bool:
        """Make and open the folder anew if it was deleted or replaced; returns whether it was. Raises OSError.

        The descriptor keeps its number and changes in one step, so that other threads may go on using it.
        """
        if self.is_current():
            return False
        new = Folder(self.path, private=self._is_private)
        try:
            os.dup2(new.fd, self.fd, inheritable=False)
        finally:
            new.close()
        return True

    def names(self) -> list[str]:
        """All names, in no order."""
        try:
            return os.listdir(self.fd)
        except OSError as error:
            error.filename = str(self.path)
            raise

    def write_new(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Create a file that must not exist and write it; unless `durable`, it needs a flush to be safe."""
        try:
            _write(self.fd, name, _CREATE, data, durable)
        except OSError as error:
            self._name(error, name)
            raise

    def read(self, name: str, limit: int) -> bytes:
        """At most `limit` bytes of a regular file; never follows a link, never blocks on a FIFO."""
        try:
            return read_regular(name, limit, self.fd)
        except OSError as error:
            self._name(error, name)
            raise

    def has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._name(error, name)
            raise
        return True

    def is_folder(self, name: str) -> bool:
        return self._is_a(stat.S_ISDIR, name)

    def is_link(self, name: str) -> bool:
        return self._is_a(stat.S_ISLNK, name)

    def _is_a(self, kind: Callable[[int], bool], name: str) -> bool:
        try:
            return kind(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    def remove(self, name: str) -> bool:
        """Unlink; returns whether it was there."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._name(error, name)
            raise
        return True

    def _name(self, error: OSError, name: str) -> None:
        """A name below a descriptor tells nobody which folder it was."""
        error.filename = str(self.path / name)

    def _refuse_foreign(self) -> None:
        """Root's folders are as good as ours. A network file system may show our own under another number, so the
        owner of a new file decides before anything is refused."""
        owner = os.fstat(self.fd).st_uid
        if owner in (0, os.geteuid()):
            return
        probe = f".owner-{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):
            fd = os.open(probe, _CREATE, 0o600, dir_fd=self.fd)
            try:
                if os.fstat(fd).st_uid == owner:
                    return
            finally:
                os.close(fd)
                os.unlink(probe, dir_fd=self.fd)
        text = f"it belongs to another user (uid {owner}); remove it, or give it to this one: chown -R {os.geteuid()}"
        raise no_links.Refused(errno.EPERM, text, str(self.path))


def _write(folder_fd: int, name: str, flags: int, data: bytes, durable: bool) -> None:
    fd = os.open(name, flags, 0o666, dir_fd=folder_fd)
    try:
        write_all(fd, data)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)


def read_regular(path: str | Path, limit: int, folder_fd: int | None = None) -> bytes:
    """At most `limit` bytes of a regular file; never follows a link, never blocks on a FIFO."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = no_links.open_file(path, flags) if folder_fd is None else os.open(path, flags, dir_fd=folder_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return read_up_to(fd, limit)
    finally:
        os.close(fd)


def is_blank(raw: bytes) -> bool:
    """Whether a file that was replaced without a flush has lost its contents to a power cut: nobody has written it."""
    return not raw.strip(b"\0")


def read_up_to(fd: int, limit: int) -> bytes:
    """Read a regular file from the current position to its end, at most `limit` bytes."""
    # 64 KiB a call: a larger buffer makes the allocator map and unmap memory each time.
    chunk = os.read(fd, min(limit, 65_536))
    if len(chunk) < 65_536:
        return chunk
    chunks = [chunk]
    left = limit - len(chunk)
    while left > 0 and (chunk := os.read(fd, min(left, 65_536))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def write_all(fd: int, data: bytes) -> None:
    """Write every byte, also after a short write (a nearly full disk gives one before ENOSPC)."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def move_new(source: Folder, name: str, target: Folder, new_name: str) -> bool:
    """Rename without replacing. Returns False when the target exists; raises FileNotFoundError without source."""
    done = _rename_noreplace(source, name, target, new_name)
    if done is not None:
        return done
    # No such flag here (NFS): look, then rename. The window is small and only a same-named file could fall into it.
    if target.has(new_name):
        return False
    os.rename(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
    return True


def _rename_noreplace(source: Folder, name: str, target: Folder, new_name: str) -> bool | None:
    """Whether it was renamed (False: the target exists); None where the system or the file system has no such flag."""
    if _RENAMEAT2 is None:
        return None
    if _RENAMEAT2(source.fd, os.fsencode(name), target.fd, os.fsencode(new_name), _RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return False
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return None
    raise OSError(code, os.strerror(code), str(source.path / name), None, str(target.path / new_name))


def move(source: Folder, name: str, target: Folder, new_name: str) -> bool:
    """Rename to a name that only this process can use. Returns False when the source is gone.

    Over a network file system a lost answer can report ENOENT for a rename that worked, so the target is looked at.
    """
    try:
        os.rename(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
    except FileNotFoundError:
        if target.has(new_name):
            return True
        if source.has(name):
            raise  # the target folder is gone
        return False
    except OSError as error:
        error.filename, error.filename2 = str(source.path / name), str(target.path / new_name)
        raise
    return True


def publish_new(source: Folder, name: str, target: Folder, new_name: str) -> bool:
    """Show a finished temporary file under its final name, never replacing. Returns False when that exists."""
    done = _rename_noreplace(source, name, target, new_name)
    if done is not None:
        return done
    # Unlike a look and a rename, a link never replaces, also between the clients of an NFS server.
    try:
        os.link(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd, follow_symlinks=False)
    except FileExistsError:
        return False
    os.unlink(name, dir_fd=source.fd)
    return True


def replace(folder: Folder, name: str, data: bytes, owner: str, *, durable: bool = False) -> None:
    """Write a file whole or not at all, over an older one. `owner` keeps two writers' temporary files apart."""
    temporary = f".{name}.{owner}.tmp"
    try:
        try:
            _write(folder.fd, temporary, _CREATE, data, durable)
        except FileExistsError:  # half written by a killed writer, or somebody's link: never write into it
            os.unlink(temporary, dir_fd=folder.fd)
            _write(folder.fd, temporary, _CREATE, data, durable)
        os.rename(temporary, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder.fd)
        error.filename = str(folder.path / name)  # a name below a descriptor tells nobody which folder it was
        raise
    if durable:
        os.fsync(folder.fd)


def fsync_file(folder: Folder, name: str) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder.fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def syncfs(fd: int) -> None:
    """Write everything dirty of the file system that holds `fd`. Reports errors since Linux 5.8 (syncfs(2))."""
    if _SYNCFS is None:
        os.sync()
    elif _SYNCFS(fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "syncfs")


class Sync:
    """Makes groups of files durable: one call for many, a few calls for few.

    `flush_files` makes contents durable, `flush_folders` makes names durable. Both raise OSError; after an error the
    contents must be written anew to a new file, because the kernel may have dropped the dirty pages (fsyncgate).
    """

    def __init__(self, folders: Iterable[Folder]) -> None:
        self._by_device: dict[int, Folder] = {}
        self._device: dict[int, int] = {}
        for folder in folders:
            device = os.fstat(folder.fd).st_dev
            self._by_device.setdefault(device, folder)
            self._device[folder.fd] = device

    def flush_files(self, folders: Iterable[Folder]) -> None:
        """Make the contents of all new files in these folders durable: one call for each file system."""
        self._flush_devices({folder.fd for folder in folders})

    def flush_folders(self, folders: Iterable[Folder]) -> None:
        """Make names durable that came or went in these folders."""
        unique = {folder.fd for folder in folders}
        if len(unique) <= FEW:
            for fd in unique:
                os.fsync(fd)
            return
        self._flush_devices(unique)

    def _flush_devices(self, fds: set[int]) -> None:
        for device in {self._device.get(fd, -1) for fd in fds}:
            folder = self._by_device.get(device)
            syncfs(folder.fd if folder is not None else next(iter(fds)))
