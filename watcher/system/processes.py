"""Start commands, wait for them, and end their group; `leftover_processes` ends what escapes it.

A command leads its own session and process group. Each is started by a thread of its own: what a command shall
inherit and this process shall not have (the fence of an agent, a signal mask) is that thread's alone. It ends after the
command, because its end is the death of a parent to one that asked for PR_SET_PDEATHSIG. A command is waited for
through a pidfd, so waiting and timeouts cost no polling, and it is reaped only under a lock, so no signal can hit a
recycled pid. Where there are no pidfds, waiting falls back to short sleeps.

This is the door to all that has to do with processes: what `leftover_processes` offers is had from here. `spawn` raises
OSError as `subprocess.Popen` does. It decides nothing: what an exit code means is the runner's business.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import os
import select
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence

from watcher.system import procfs
from watcher.system.leftover_processes import (
    attempt_began,
    attempt_over,
    become_subreaper,
    kill_holders,
    kill_marked,
    nobody_escaped,
    note_ended,
    note_started,
    open_pidfd,
    poll_pidfds,
    sweep,
)
from watcher.system.process_fence import fence

__all__ = [
    "EXIT_UNKNOWN", "MARK", "Child", "attempt_began", "attempt_over", "become_subreaper", "kill_holders", "kill_marked",
    "nobody_escaped", "spawn", "sweep",
]  # fmt: skip

#: The environment variable that says to which attempt a process belongs.
MARK = procfs.MARK
#: `Child.wait` gives this when somebody else reaped the command, so that nobody knows how it ended.
EXIT_UNKNOWN = -255
_A_DAY_MS = 86_400_000
#: What this process was started with, before `signals` blocked any: commands start with the same.
_SIGNAL_MASK = signal.pthread_sigmask(signal.SIG_BLOCK, ())


def spawn(
    argv: Sequence[str | bytes],
    env: Mapping[bytes, bytes],
    cwd: str | None,
    stdin_fd: int | None,
    stdout_fd: int,
    stderr_fd: int,
    pass_fds: Collection[int] = (),
    executable: str | None = None,
    *,
    is_agent: bool = True,
) -> Child:
    """Start a command as the leader of a new session, without a shell and without `preexec_fn`, so that vfork is used.

    An agent starts behind the fence. `executable` is the program's absolute path: without it the search of PATH in
    `env` swaps the warning filters, which two threads must not do at once. `stdin_fd` None gives an empty stdin. Every
    descriptor but the standard ones and `pass_fds` is closed in the child.
    """
    begun: list[int | BaseException] = []
    done = _thread.allocate_lock()
    done.acquire()
    over = _thread.allocate_lock()
    over.acquire()

    def start() -> None:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, _SIGNAL_MASK)
            if is_agent:
                fence.enter()
            process = subprocess.Popen(
                argv,
                executable=executable,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL if stdin_fd is None else stdin_fd,
                stdout=stdout_fd,
                stderr=stderr_fd,
                pass_fds=pass_fds,
                close_fds=True,
                start_new_session=True,
            )
            process.returncode = 0  # the reaping is ours; so Popen neither waits for it nor warns about it
            note_started(process.pid, pass_fds)  # while it is this thread's child, and so in no list of adopted ones
            begun.append(process.pid)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's
            begun.append(error)
            over.release()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, ours)
            done.release()
            over.acquire()

    ours = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        _thread.start_new_thread(start, ())  # `threading` would wait for it twice
    except RuntimeError:
        raise OSError(errno.EAGAIN, "cannot start a thread") from None
    done.acquire()
    found = begun[0]
    if isinstance(found, BaseException):
        raise found
    return Child(found, over)


class Child:
    """A command that was started. One thread waits for it; any thread may end it."""

    __slots__ = ("_code", "_kill_at", "_lock", "_nudged", "_over", "_pidfd", "_waker", "pid", "was_told_to_end")

    def __init__(self, pid: int, over: _thread.LockType) -> None:
        self.pid = pid
        self._over = over
        self.was_told_to_end = False
        self._lock = threading.Lock()
        self._code: int | None = None
        self._kill_at: float | None = None
        self._waker: int | None = None
        self._nudged = False
        self._pidfd = open_pidfd(pid)

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """Block until the command has ended and return its exit code, or None when `timeout_seconds` are over first.

        A negative code is the signal that killed it. When `end` was called, before or meanwhile, from whatever thread,
        this sends the KILL as soon as the grace is over.
        """
        if self._code is not None:
            return self._code
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        if self._pidfd is None:
            return self._wait_in_steps(deadline)
        waker = _take_waker()
        with self._lock:
            self._waker = waker
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        if waker is not None:
            poller.register(waker, select.POLLIN)
        try:
            return self._wait_for_events(poller, self._pidfd, waker, deadline)
        finally:
            with self._lock:
                self._waker = None
                nudged, self._nudged = self._nudged, False
            if waker is not None:
                _give_waker_back(waker, nudged)

    def end(self, grace_seconds: float, leader_alone: bool = False) -> bool:
        """Ask the command's whole group to end (TERM, and CONT so that a stopped one hears it), and return at once.

        KILL follows `grace_seconds` later, sent to the group by the thread in `wait`; a second call can only bring it
        forward. With `leader_alone` nobody else is asked: for one that ends what it has started in its own way.
        Returns False when the command had already ended by itself, so that what it did still counts.
        """
        with self._lock:
            if self._code is not None or self._has_exited():
                return False
            self.was_told_to_end = True
            if grace_seconds <= 0:
                self._signal_group(signal.SIGKILL)
                return True
            ask = self._signal_leader if leader_alone else self._signal_group
            ask(signal.SIGTERM)
            ask(signal.SIGCONT)
            kill_at = time.monotonic() + grace_seconds
            self._kill_at = kill_at if self._kill_at is None else min(kill_at, self._kill_at)
            if self._waker is not None:
                os.eventfd_write(self._waker, 1)
                self._nudged = True
            return True

    def _wait_for_events(
        self, poller: select.poll, pidfd: int, waker: int | None, deadline: float | None
    ) -> int | None:
        while True:
            kill_at = self._kill_at
            next_at = min((t for t in (deadline, kill_at) if t is not None), default=None)
            for fd, _ in poller.poll(_milliseconds_until(next_at) if waker is not None else 50):
                if fd == pidfd:
                    return self._reap()
                if fd == waker:
                    with self._lock, contextlib.suppress(BlockingIOError):
                        os.eventfd_read(fd)
                        self._nudged = False
            now = time.monotonic()
            if kill_at is not None and now >= kill_at:
                self._kill_group()
            elif deadline is not None and now >= deadline:
                return None

    def _wait_in_steps(self, deadline: float | None) -> int | None:
        """Without a pidfd (Linux before 5.3, another system, no descriptor left) sleeps of 1 to 50 ms must do."""
        step = 0.001
        while True:
            with self._lock:
                if self._has_exited():
                    return self._code
            now = time.monotonic()
            kill_at = self._kill_at
            if kill_at is not None and now >= kill_at:
                self._kill_group()
            elif deadline is not None and now >= deadline:
                return None
            time.sleep(step)
            step = min(step * 2, 0.05)

    def _has_exited(self) -> bool:
        """Asked under the lock. Where there is no pidfd, asking is reaping."""
        if self._pidfd is not None:
            return bool(poll_pidfds([self._pidfd], 0))
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            self._ended(EXIT_UNKNOWN)
            return True
        if pid:
            self._ended(os.waitstatus_to_exitcode(status))
        return bool(pid)

    def _reap(self) -> int:
        with self._lock:
            try:
                code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            except ChildProcessError:
                code = EXIT_UNKNOWN
            self._ended(code)
            return code

    def _ended(self, code: int) -> None:
        self._code = code
        note_ended(self.pid)
        if self._over.locked():
            self._over.release()  # its thread may end, too
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def _kill_group(self) -> None:
        with self._lock:
            self._kill_at = None
            if self._code is None:
                self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        """Only while the leader is not reaped: so long its number cannot name another group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _signal_leader(self, number: signal.Signals) -> None:
        """As above."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, number)


_wakers: deque[int] = deque()


def _take_waker() -> int | None:
    """An eventfd to be woken by; they are kept, because making one costs as much as a kill."""
    try:
        return _wakers.pop()
    except IndexError:
        try:
            return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:  # no descriptor left: the command runs already, so do without being woken
            return None


def _give_waker_back(waker: int, nudged: bool) -> None:
    if nudged:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(waker)
    _wakers.append(waker)


def _milliseconds_until(moment: float | None) -> int | None:
    if moment is None:
        return None
    return min(_A_DAY_MS, max(0, int((moment - time.monotonic()) * 1000) + 1))
