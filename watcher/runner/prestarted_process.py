"""Own one agent process that was started before its task: it waits at its stdin, serves one task, and ends.

It speaks claude's stream-json. At the start it is asked to `initialize`; when it has answered that and nothing else, it
is ready. `give` hands it the task and closes its stdin, and from then on it is a command like any other: it prints
into the files of its slot and ends by itself. What it has printed before is removed, so a reader finds the task's
output alone.

Its stdin is a pipe of which only this process holds the other end, so it sees the end of a worker that is killed. Used
by one thread at a time. The start raises OSError as `processes.spawn` does; nothing else here raises.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from watcher.runner.attempt_files import Slot
from watcher.system import processes

#: What a pipe holds at least, and what it can be made to hold (pipe(7)): a longer task is not handed over in one write.
_PIPE_BYTES = 1 << 16
_MOST_PIPE_BYTES = 1 << 20
#: What it may print before its task: the answer lists all its commands and tools.
_READ_BYTES = 1 << 20
_FIRST = {"type": "control_request", "request_id": "first", "request": {"subtype": "initialize"}}

#: Files up to this size are compared by what they hold: two changes within one tick of the clock have the same times.
_HASHED_BYTES = 256 << 10

Identity = tuple[int, int, int, int, int, bytes] | None


@dataclass(frozen=True, slots=True)
class Key:
    """What is fixed when a process starts: tasks may only use one that was started for the same.

    `reads` are the files and folders that it may have read at its start; each may be missing.
    """

    provider: str
    program: str
    argv: tuple[str | bytes, ...]
    environment: tuple[tuple[bytes, bytes], ...]
    cwd: str | None
    reads: tuple[str, ...] = ()

    def facts(self) -> tuple[Identity, ...]:
        """What is there now of the program, the folder and what it reads: other facts mean a process of yesterday."""
        files = [_identity(path) for path in (self.program, *self.reads)]
        return (_identity(self.cwd or ".", is_folder=True), *files)


class WaitingProcess:
    """A process that waits for its task."""

    def __init__(self, key: Key, mark: str, slot: Slot, pass_fds: tuple[int, ...], now: float) -> None:
        """Start it. Raises OSError; then nothing is left but the slot, which stays the caller's."""
        self.key = key
        self.mark = mark
        self.slot = slot
        self.began = now
        self._facts = key.facts()
        reading, self._stdin = os.pipe()
        processes.attempt_began(mark)
        try:
            environment = {**dict(key.environment), processes.MARK.encode(): mark.encode()}
            os.write(self._stdin, _line(_FIRST))
            self.child = processes.spawn(
                key.argv, environment, key.cwd, reading, slot.stdout.fd, slot.stderr.fd, pass_fds, key.program
            )
        except BaseException:
            self._close_stdin()
            processes.attempt_over(None, mark)
            raise
        finally:
            os.close(reading)

    def look(self) -> Literal["starting", "ready"] | str:
        """How it is; any other text says why it cannot be used."""
        code = self.child.wait(0)
        if code is not None:
            return f"it ended before its task (exit code {code}){_last_words(self.slot)}"
        if self.slot.stderr.size():
            return f"it complained before its task{_last_words(self.slot)}"
        if self.slot.stdout.size() > _READ_BYTES:
            return "it printed more than a mebibyte before its task"
        raw = os.pread(self.slot.stdout.fd, _READ_BYTES, 0)
        return "starting" if not raw.endswith(b"\n") else _judged(raw)

    def is_fresh(self) -> bool:
        """Whether all that it may have read at its start is still as it was."""
        return self.key.facts() == self._facts

    def give(self, prompt: bytes) -> bool:
        """Hand it its task. False: it did not take it, has done nothing, and must be ended."""
        text = prompt.decode("utf-8", "replace")
        line = _line({"type": "user", "message": {"role": "user", "content": [{"type": "text", "text": text}]}})
        try:
            self.slot.stdout.empty()
            if len(line) > _PIPE_BYTES:
                fcntl.fcntl(self._stdin, fcntl.F_SETPIPE_SZ, _MOST_PIPE_BYTES)
            os.set_blocking(self._stdin, False)
            if os.write(self._stdin, line) != len(line):
                return False
        except OSError:  # it has just ended, or the pipe cannot be made so large
            return False
        self._close_stdin()
        return True

    def ask_to_end(self, grace_seconds: float) -> None:
        """Close its stdin and send TERM; returns at once."""
        # Not before the signal: half a task in the pipe must not be taken for a whole one.
        self.child.end(grace_seconds)
        self._close_stdin()

    def end(self) -> None:
        """Wait for its end, and end what it leaves. `ask_to_end` was called."""
        self.child.wait()
        processes.attempt_over(self.child, self.mark)

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1


def files_read(names: tuple[str, ...], cwd: str | None, home: str | None) -> tuple[str, ...]:
    """Where these files may be: `~/name` in the home folder, others in the working folder and all above it."""
    return tuple(_places(names, os.path.realpath(cwd or "."), home))


def _places(names: tuple[str, ...], folder: str, home: str | None) -> Iterator[str]:
    for name in names:
        if name.startswith("~/"):
            if home is not None:
                yield os.path.join(home, name[2:])
            continue
        above = folder
        while True:
            yield os.path.join(above, name)
            if above == os.path.dirname(above):
                break
            above = os.path.dirname(above)


def _judged(raw: bytes) -> str:
    """What its lines say: one answer to the first request, and at most news of the system beside it."""
    is_ready = False
    for line in raw.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        kind = event.get("type") if isinstance(event, dict) else None
        if kind == "control_response" and not is_ready:
            response = event.get("response")
            if not isinstance(response, dict) or response.get("subtype") != "success":
                return "it answered `initialize` with an error"
            is_ready = True
        elif kind != "system":
            return "it printed something else than the answer to `initialize` before its task"
    return "ready" if is_ready else "starting"


def _identity(path: str, is_folder: bool = False) -> Identity:
    """Of a folder only which it is: its contents are not read at the start."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if is_folder:
        return (found.st_dev, found.st_ino, 0, 0, 0, b"")
    is_small = stat.S_ISREG(found.st_mode) and found.st_size <= _HASHED_BYTES
    held = _digest(path) if is_small else b""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, held)


def _digest(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # it may have become a pipe meanwhile
    except OSError:
        return b"unreadable"
    try:
        return hashlib.sha256(os.read(fd, _HASHED_BYTES)).digest()
    except OSError:
        return b"unreadable"
    finally:
        os.close(fd)


def _last_words(slot: Slot) -> str:
    with contextlib.suppress(OSError):
        end = slot.stderr.size()
        text = os.pread(slot.stderr.fd, 2000, max(0, end - 2000)).decode("utf-8", "replace").rstrip()
        if text:
            return f": {text.rpartition(chr(10))[2].strip()[:300]}"
    return ""


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"
