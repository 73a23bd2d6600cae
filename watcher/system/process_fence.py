"""Fence what an agent starts: it can signal itself and its own processes, and nothing else of this machine.

An agent that tidies up with a broad `pkill`, or with `kill $PPID`, would otherwise stop the worker that runs it, and
the task would run again for ever. Linux's Landlock has a domain for that (LANDLOCK_SCOPE_SIGNAL, and with it abstract
sockets): kernel 6.12, no privilege, no package. A domain holds for the thread that enters it and all that this thread
starts, so `processes` starts each command in a thread of its own that enters and then ends (landlock(7)). Nothing
inside gains privileges: `no_new_privs`, which Landlock asks for, is set where there is no Landlock too.

No file and no port is closed, so the sandbox of an agent CLI works inside. Entering raises OSError when the machine is
short of memory. It protects against accidents; a process of the same user that means harm has other ways.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import threading

#: The same numbers on every architecture that has them (the generic table), alpha aside.
_CREATE_RULESET, _RESTRICT_SELF = 444, 446
#: linux/landlock.h
_VERSION = 1
_SCOPES = 0b11  # ABSTRACT_UNIX_SOCKET, SIGNAL
_ABI_OF_SCOPES = 6
_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
#: What the heartbeat and the doctor say when the fence is there.
IN_FORCE = "in force"


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("ports", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


# PyDLL keeps the interpreter's lock: these calls take some microseconds, handing the lock over takes more.
_libc = ctypes.PyDLL(None, use_errno=True)


class Fence:
    """How commands are fenced in this process. There is one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ruleset = -1
        self._problem: str | None = None
        self._is_known = False
        self._is_open = False

    def leave_open(self) -> None:
        """From now on commands start without it: they may then use sudo, and may signal whom they like."""
        self._is_open = True

    def state(self) -> str:
        """`in force`, or what commands that start now lack and why, for people."""
        if self._is_open:
            return "AGENT_SUDO=yes: agents may signal any process of this user, this worker too"
        return self._find_problem() or IN_FORCE

    def enter(self) -> None:
        """Put the calling thread, and what it starts from now on, into a domain of its own. Raises OSError.

        There is no way back, so the thread must end soon. Without Landlock, `no_new_privs` is all that is set.
        """
        if self._is_open:
            return
        problem = self._find_problem()
        _call(_libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if problem is None:
            _call(_libc.syscall, _RESTRICT_SELF, self._ruleset, 0)

    def _find_problem(self) -> str | None:
        with self._lock:
            if not self._is_known:
                self._problem = self._try()
                self._is_known = True
            return self._problem

    def _try(self) -> str | None:
        """Enter once, in a thread that is thrown away: what the kernel says decides, not its version."""
        try:
            abi = _call(_libc.syscall, _CREATE_RULESET, None, 0, _VERSION)
            if abi < _ABI_OF_SCOPES:
                return _without(f"Landlock is version {abi} here, and {_ABI_OF_SCOPES} is needed")
            attributes = _RulesetAttributes(0, 0, _SCOPES)
            size = ctypes.c_size_t(ctypes.sizeof(attributes))
            self._ruleset = _call(_libc.syscall, _CREATE_RULESET, ctypes.byref(attributes), size, 0)
        except (OSError, AttributeError) as error:
            return _without(_words(error))
        failed: list[OSError] = []

        def enter() -> None:
            try:
                _call(_libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
                _call(_libc.syscall, _RESTRICT_SELF, self._ruleset, 0)
            except OSError as error:
                failed.append(error)

        trial = threading.Thread(target=enter)
        trial.start()
        trial.join()
        return _without(_words(failed[0])) if failed else None


def _call(function: ctypes._FuncPointer, *arguments: object) -> int:
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = int(function(*words))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _words(error: OSError | AttributeError) -> str:
    number = error.errno if isinstance(error, OSError) else errno.ENOSYS
    if number == errno.EOPNOTSUPP:
        return "Landlock is turned off (add landlock to the kernel's lsm=)"
    if number == errno.E2BIG:
        return "this process is in 16 Landlock domains already"
    known = {errno.ENOSYS: "the kernel has no Landlock", errno.EPERM: "a seccomp filter forbids Landlock"}
    return known.get(number or 0, f"Landlock: {error}")


def _without(why: str) -> str:
    return f"agents can signal this worker: {why}; Linux 6.12 or newer has what stops them ({platform.release()} here)"


fence = Fence()
