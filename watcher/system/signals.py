"""Own what each signal means to our programs, and find out who sent it.

TERM, INT, PWR, XCPU and the real-time ones drain, a second one means now; QUIT and ABRT mean now at once. HUP drains
when the terminal was closed; otherwise it reloads where there is something to reload, and drains where there is not.
Others that would end or stop the process are passed over and told. KILL, STOP and faults (SEGV) are the kernel's.

All of these are blocked in every thread, and one thread waits for them with sigwaitinfo(2): only so the sender can be
seen. A signal from an attempt (a process with a mark that we have not, or a descendant of ours) is passed over: where
there is a fence it cannot come, but kernels are older or AGENT_SUDO is set. A sender that has ended by then cannot be
seen, nor that of a signal which a starting thread got; it counts as a person. `processes` starts commands with the
mask from before. Where there is no sigwaitinfo senders are unknown. The table is in docs/security.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

from watcher.system import procfs
from watcher.system.leftover_processes import INHERITED_MARK


def _present(*names: str) -> frozenset[int]:
    return frozenset(getattr(signal, name) for name in names if hasattr(signal, name))


def _real_time() -> frozenset[int]:
    return frozenset(range(signal.SIGRTMIN, signal.SIGRTMAX + 1)) if hasattr(signal, "SIGRTMIN") else frozenset()


_DRAINING = _present("SIGTERM", "SIGINT", "SIGPWR", "SIGXCPU") | _real_time()
_NOW = _present("SIGQUIT", "SIGABRT")
_STOPPING = _present("SIGTSTP", "SIGTTIN", "SIGTTOU")
_MEANINGLESS = _present("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGSTKFLT") | _STOPPING
_TAKEN = _DRAINING | _NOW | _MEANINGLESS | {signal.SIGHUP}
#: The sender has ended by now: it may have been anybody.
_UNSEEN = -1
#: More steps up than any family has.
_GENERATIONS = 200


@dataclass(frozen=True, slots=True)
class Reactions:
    """What a program does; all are called on its loop. `stop`: drain, and the second time now.

    `unseen` is added to the name of a signal whose sender could not be seen.
    """

    stop: Callable[[str], None]
    stop_now: Callable[[str], None]
    reload: Callable[[], None] | None = None
    unseen: str = ""


class Signals:
    """The signals of this process. There is one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._early: list[tuple[int, int]] = []
        self._reactions: Reactions | None = None
        self._passed_over: Callable[[str, str], None] = lambda _name, _why: None
        self._had_terminal = False
        self._ignores_hang_up = False
        self._is_stopping = False

    def block(self) -> None:
        """Take them from now on. Main thread, before it starts another: a thread inherits what is blocked."""
        self._had_terminal = _has_terminal()
        self._ignores_hang_up = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        if hasattr(signal, "sigwaitinfo"):
            signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
            threading.Thread(target=self._take, name="signals", daemon=True).start()

    def attach(
        self, loop: asyncio.AbstractEventLoop, reactions: Reactions, passed_over: Callable[[str, str], None]
    ) -> None:
        """Act on this loop. What came before, or since the last loop ended, is acted on now.

        `passed_over` gets the name of each signal that is not obeyed, and why.
        """
        self._reactions, self._passed_over = reactions, passed_over
        for number in _TAKEN:  # a thread that starts a command has them unblocked for a moment, and may get one
            loop.add_signal_handler(number, self._act, number, _UNSEEN)
        with self._lock:
            self._loop = loop
            early, self._early = self._early, []
        for number, sender in early:
            loop.call_soon(self._act, number, sender)

    def _take(self) -> None:
        while True:
            found = signal.sigwaitinfo(_TAKEN)
            # Looked at here and not on the loop: a sender such as pkill ends in a moment.
            sender = _sender(found.si_pid)
            with self._lock:
                if self._loop is not None:
                    with contextlib.suppress(RuntimeError):  # that loop is closed
                        self._loop.call_soon_threadsafe(self._act, found.si_signo, sender)
                        continue
                self._early.append((found.si_signo, sender))

    def _act(self, number: int, sender: int) -> None:
        """Loop thread. `sender`: the process of an attempt that sent it, _UNSEEN, or 0 for anybody else."""
        assert self._reactions is not None  # set by attach, which makes this known to the loop
        name = _name(number)
        if sender > 0:
            self._passed_over(name, f"process {sender} sent it, which an agent has started")
        elif number in _MEANINGLESS:
            what = "stopped, it could not end its tasks in time; use `watcher pause`" if number in _STOPPING else ""
            self._passed_over(name, what or "it has no meaning here; SIGTERM drains")
        elif number == signal.SIGHUP:
            self._hang_up(self._reactions)
        else:
            self._is_stopping = True
            reason = name + (self._reactions.unseen if sender == _UNSEEN else "")
            (self._reactions.stop_now if number in _NOW else self._reactions.stop)(reason)

    def _hang_up(self, reactions: Reactions) -> None:
        is_closed = self._had_terminal and not _has_terminal()
        if reactions.reload is not None and not is_closed:
            reactions.reload()
        elif not self._ignores_hang_up and not self._is_stopping:  # a shell and the kernel both send one: still a drain
            self._is_stopping = True
            reactions.stop("SIGHUP")


def _sender(pid: int) -> int:
    """As `_act` wants it. The kernel and processes of other pid namespaces, which no attempt is in, have no number."""
    if pid <= 0 or pid == os.getpid() or not procfs.IS_THERE:
        return 0
    if is_of_an_attempt(pid):
        return pid
    return _UNSEEN if procfs.facts_of(pid) is None else 0


def is_of_an_attempt(pid: int) -> bool:
    """Whether an agent started it: it, or one above it, has a mark that is not ours too, or it descends from us."""
    me = os.getpid()
    if pid == me or not procfs.IS_THERE:
        return False
    for _ in range(_GENERATIONS):
        if pid == me:
            return True
        mark = procfs.mark_of(pid)
        if mark and mark != INHERITED_MARK:
            return True
        facts = procfs.facts_of(pid)
        if facts is None or facts.parent == 0:
            return False
        pid = facts.parent
    return False


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal that is still open (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


signals = Signals()
