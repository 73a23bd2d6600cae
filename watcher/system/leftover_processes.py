"""End every process that a command leaves behind, in whatever session it hides.

What escapes a command's process group by `setsid` is caught in two ways: this process is a child subreaper, so orphans
become children of its main thread, and every command carries WATCHER_MARK in its environment, which its descendants
inherit. Each is held by a pidfd before it is signalled, so no signal can hit a recycled pid.

It assumes Linux for that; elsewhere only the process group is ended. It assumes that nobody else in this process starts
a child that leaves this session: such a child would look adopted. It starts nothing: see processes, which is also the
door to what is here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from watcher.system import procfs

#: A process that outlived its command gets this long between TERM and KILL: its work is over.
LEFTOVER_GRACE_SECONDS = 1.0
#: KILL takes effect at once, except in an uninterruptible system call (a dead NFS server): then we stop waiting.
UNKILLABLE_SECONDS = 10.0
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_HAS_PIDFD = hasattr(os, "pidfd_open") and hasattr(os, "eventfd")
_A_DAY_MS = 86_400_000
#: Our own mark, if an agent started us: children of ours that carry it belong to somebody else's attempt.
INHERITED_MARK = os.environ.get(procfs.MARK, "").encode()


class ReapedCommand(Protocol):
    """A command that has ended and was waited for."""

    pid: int
    was_told_to_end: bool


def note_started(pid: int, passed: Collection[int]) -> None:
    """A child of ours, and the descriptors that it inherited: it is never taken for an orphan."""
    _family.started.add(pid)
    _family.passed.update(passed)


def note_ended(pid: int) -> None:
    """It was reaped, so its number may come again."""
    _family.started.discard(pid)


def become_subreaper() -> bool:
    """Adopt the orphans of commands from now on, so that none can escape. Call it once, in the main thread.

    Also undoes an inherited `SIGCHLD` = ignore, with which the kernel would throw exit codes away. Returns whether
    orphans can be adopted here; where not, every attempt's end costs a scan of /proc.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not procfs.IS_THERE:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        return False
    _family.adopt()
    return True


def attempt_began(mark: str) -> None:
    """Let processes with this mark live until `attempt_over`. Call it before the command is spawned."""
    _family.running[mark.encode()] = _boot_seconds()


def attempt_over(child: ReapedCommand | None, mark: str) -> int:
    """End everything that an attempt left behind; its command has ended and was waited for, or never started.

    First the rest of its group, then what escaped. Returns how many processes that were. When nothing was left, which
    is nearly always, this is one `kill` and one read of /proc. No `sweep` takes them meanwhile and counts them twice.
    """
    key = mark.encode()
    _family.ending.add(key)
    try:
        return _end_rest(child, key)
    finally:
        _family.running.pop(key, None)
        _family.ending.discard(key)


def _end_rest(child: ReapedCommand | None, mark: bytes) -> int:
    count = 0
    if child is not None and _group_exists(child.pid):
        count = _end_session(child.pid)
        if child.was_told_to_end:
            count = 0  # they are part of what was told to end, not something it left behind
    if not _family.is_adopting:
        return count + (_end_marked(mark.__eq__, LEFTOVER_GRACE_SECONDS) if child is not None else 0)
    return count + _sweep(mark)


def nobody_escaped() -> bool:
    """Whether surely no process has outlived its command: so none can still write where a command has written."""
    return _family.is_adopting and not _family.has_adopted()


def sweep() -> int:
    """End adopted processes whose attempt is over, and reap the dead ones. Returns how many were ended."""
    return _sweep(None)


def _sweep(over: bytes | None) -> int:
    if not _family.has_adopted():
        return 0
    return _end_all(_family.reap_and_list, lambda pid: _family.is_left_over(pid, over), LEFTOVER_GRACE_SECONDS)


def kill_marked(prefix: str) -> int:
    """Kill every process of this host whose mark starts with `prefix` (an incarnation), until none is found.

    For commands of a worker that died; never kills this process. Returns how many were killed. Raises ValueError for a
    prefix so short that it could be anybody's.
    """
    if len(prefix) < 8:
        raise ValueError(f"a mark's prefix must have at least 8 characters, not {prefix!r}")
    start = prefix.encode()
    return _end_marked(lambda mark: mark.startswith(start), grace_seconds=0)


def kill_holders(lock_path: str | os.PathLike[str], inherited_only: bool = False) -> int:
    """Kill every process of this host, but this one, that holds the lock file `lock_path` open, until none is found.

    It finds commands that cleared their environment: they inherited the descriptor all the same. With `inherited_only`
    it spares whoever opened the file itself, to ask whether it is locked. Returns how many were killed.
    """
    if not procfs.IS_THERE:
        return 0
    folder, name = os.path.split(lock_path)
    # Not through the file itself: a planted link to something that many processes use must not be their end.
    path = os.path.join(os.path.realpath(folder), name)
    try:
        found = os.lstat(path)
        identity = (found.st_dev, found.st_ino)
    except FileNotFoundError:
        identity = None
    return _end_all(
        _other_pids, lambda pid: procfs.holds(pid, path, identity, inherited_only), grace_seconds=0, scans=2
    )


class _Family:
    """What this process started and what it adopted. There is one, because a process has one set of children.

    The kernel gives an orphan to the first living thread of the subreaper, which is the main one, and so it does with
    the children of a thread that ends (`find_new_reaper` in kernel/exit.c). So the main thread's list in /proc holds
    what we adopted and what `processes` started; the latter are told apart by `started`, where each stands before its
    starting thread ends, and others by their session.
    """

    def __init__(self) -> None:
        self.started: set[int] = set()
        self.passed: set[int] = set()
        self.running: dict[bytes, float] = {}
        #: Those of `running` whose command has ended and whose leftovers are being ended.
        self.ending: set[bytes] = set()
        self.is_adopting = False
        self._children_fd: int | None = None
        self._began = 0.0
        self._session = 0
        self._lock = threading.Lock()

    def adopt(self) -> None:
        with self._lock:
            if self.is_adopting:
                return
            self._began = _boot_seconds()
            self._session = os.getsid(0)
            with contextlib.suppress(OSError):  # a kernel without CONFIG_PROC_CHILDREN
                path = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
                self._children_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.is_adopting = True

    def has_adopted(self) -> bool:
        """The cheap question, asked after every attempt."""
        return self.is_adopting and any(pid not in self.started for pid in self._list_children())

    def reap_and_list(self) -> list[int]:
        """Adopted processes that live; the dead ones are reaped.

        Under one lock, because a number that another thread has just reaped may already belong to a new command.
        """
        living = []
        with self._lock:
            for pid in self._list_children():
                facts = None if pid in self.started else procfs.facts_of(pid)
                if facts is None or facts.session == self._session:
                    continue
                if facts.is_dead:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)
                else:
                    living.append(pid)
        return living

    def is_left_over(self, pid: int, over: bytes | None = None) -> bool:
        """Whether an adopted process belongs to no attempt that still runs, or to `over`, which is ending."""
        facts = procfs.facts_of(pid)
        if facts is None or facts.is_dead or facts.parent != os.getpid():
            return False
        mark = procfs.mark_of(pid) or procfs.mark_of(pid, after_seconds=0.002)
        if mark and mark != INHERITED_MARK:
            return mark == over or mark not in self.running
        ending = set[bytes]() if over is None else self.ending  # of two that end at once, one must take it
        lasting = [began for mark, began in list(self.running.items()) if mark not in ending]
        return self._is_unmarked_left_over(pid, facts, lasting)

    def _is_unmarked_left_over(self, pid: int, facts: procfs.ProcessFacts, running: list[float]) -> bool:
        """It cleared its environment, so only its age tells: an attempt cannot have started what is older than itself.

        Pid 1 also gets orphans that none of us started (`docker exec`): of those without a mark, ours are the ones
        that hold a descriptor which we passed on.
        """
        if os.getpid() == 1 and not any(_holds_ours(pid, fd) for fd in list(self.passed)):
            return False
        return facts.started >= self._began and all(facts.started < began for began in running)

    def _list_children(self) -> list[int]:
        if self._children_fd is None:
            me = os.getpid()
            return [
                pid for pid in procfs.all_pids() if (facts := procfs.facts_of(pid)) is not None and facts.parent == me
            ]
        text = b""
        while chunk := os.pread(self._children_fd, 65536, len(text)):
            text += chunk
        return [int(word) for word in text.split()]


_family = _Family()


def _boot_seconds() -> float:
    """The clock of start times in /proc: it runs on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if procfs.IS_THERE else 0.0


def open_pidfd(pid: int) -> int | None:
    if not _HAS_PIDFD:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def poll_pidfds(fds: Collection[int], timeout_ms: int) -> list[int]:
    """Which of these pidfds belong to ended processes; waits until one does."""
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return [fd for fd, _ in poller.poll(timeout_ms)]


def _group_exists(pgid: int) -> bool:
    """Asked after the leader was reaped. While a member lives, no other process can get the number."""
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _end_session(leader: int) -> int:
    """End the rest of the session that `leader` led, whatever groups it has made in it."""
    if not procfs.IS_THERE:
        return _end_group_blindly(leader)

    def candidates() -> list[int]:
        _family.reap_and_list() if _family.is_adopting else None
        return procfs.all_pids()

    def belongs(pid: int) -> bool:
        facts = procfs.facts_of(pid)
        return facts is not None and not facts.is_dead and leader in (facts.session, facts.group)

    return _end_all(candidates, belongs, LEFTOVER_GRACE_SECONDS)


def _end_group_blindly(pgid: int) -> int:
    """Where there is no /proc to count them."""
    kill_at = time.monotonic() + LEFTOVER_GRACE_SECONDS
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, signal.SIGTERM)
        os.killpg(pgid, signal.SIGCONT)
        while time.monotonic() < kill_at:
            time.sleep(0.02)
            os.killpg(pgid, 0)
        os.killpg(pgid, signal.SIGKILL)
    return 1


def _end_marked(is_theirs: Callable[[bytes], bool], grace_seconds: float) -> int:
    if not procfs.IS_THERE:
        return 0

    def belongs(pid: int) -> bool:
        mark = procfs.mark_of(pid)
        return bool(mark) and is_theirs(mark)  # whatever is asked: what has no mark is never meant

    return _end_all(_other_pids, belongs, grace_seconds, scans=2)


def _end_all(
    candidates: Callable[[], list[int]], belongs: Callable[[int], bool], grace_seconds: float, scans: int = 1
) -> int:
    """TERM, then KILL, until `scans` looks in a row find nothing that belongs; returns how many processes it were.

    A process may start another between the look and the signal: hence the loop. One look can miss a process that is
    just executing a program, whose environment cannot be read in that instant: hence `scans`.
    """
    kill_at = time.monotonic() + grace_seconds
    give_up_at = kill_at + UNKILLABLE_SECONDS
    asked: set[_Identity] = set()
    empty = 0
    while empty < scans:
        targets = _hold([pid for pid in candidates() if belongs(pid)], belongs)
        now = time.monotonic()
        try:
            if not targets:
                empty += 1
                if empty < scans:
                    time.sleep(0.005)
                continue
            empty = 0
            if now >= give_up_at:
                _beyond_us.update(target.identity for target in targets)
                continue
            for target in targets:
                if now >= kill_at:
                    target.send(signal.SIGKILL)
                elif target.identity not in asked:
                    target.send(signal.SIGTERM)
                    target.send(signal.SIGCONT)
                asked.add(target.identity)
            _wait_until_ended(targets, (give_up_at if now >= kill_at else kill_at) - now)
        finally:
            for target in targets:
                target.close()
    return len(asked - _beyond_us)


#: A process for ever: its number may come again, its number with its start time does not.
_Identity = tuple[int, float]
#: Processes that took no signal from us (another user's, or stuck in the kernel): asking again would only cost time.
_beyond_us: set[_Identity] = set()


@dataclass(slots=True)
class _Target:
    pid: int
    identity: _Identity
    pidfd: int | None

    def send(self, number: signal.Signals) -> None:
        try:
            if self.pidfd is not None:
                signal.pidfd_send_signal(self.pidfd, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            _beyond_us.add(self.identity)

    def close(self) -> None:
        if self.pidfd is not None:
            os.close(self.pidfd)


def _hold(pids: list[int], belongs: Callable[[int], bool]) -> list[_Target]:
    """Hold each process by a pidfd and ask once more after that: so no signal can hit a recycled number."""
    targets = []
    for pid in pids:
        pidfd = open_pidfd(pid)
        facts = procfs.facts_of(pid)
        if facts is not None and (pid, facts.started) not in _beyond_us and belongs(pid):
            targets.append(_Target(pid, (pid, facts.started), pidfd))
        elif pidfd is not None:
            os.close(pidfd)
    return targets


def _wait_until_ended(targets: list[_Target], seconds: float) -> None:
    """Until all of them have ended or the time is over; without pidfds, a moment."""
    waiting = {target.pidfd for target in targets if target.pidfd is not None and target.identity not in _beyond_us}
    if any(target.pidfd is None for target in targets):
        time.sleep(min(max(seconds, 0.0), 0.02))
        return
    until = time.monotonic() + seconds
    while waiting and (left := until - time.monotonic()) > 0:
        waiting.difference_update(poll_pidfds(waiting, min(_A_DAY_MS, int(left * 1000) + 1)))


def _holds_ours(pid: int, fd: int) -> bool:
    try:
        found = os.fstat(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False
    return procfs.holds(pid, path, (found.st_dev, found.st_ino))


def _other_pids() -> list[int]:
    if _family.is_adopting:
        _family.reap_and_list()
    me = os.getpid()
    return [pid for pid in procfs.all_pids() if pid != me]
