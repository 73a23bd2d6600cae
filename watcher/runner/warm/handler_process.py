"""Own one warm handler process: started once, asked many times, ended with all that it left behind.

States: `starting` (it has not answered its first ping), `idle`, `busy`, `checking` (a ping is open), `failed`,
`retiring`. It is used by one thread at
a time; only `abort` may be called by any. A handler that was late, said something that is no answer, or ended is
`failed` for ever: an answer that comes late can so never be taken for another task's. An answer that comes twice is
passed over, and the process is `tainted`: it finishes its task and is replaced. Empty lines and notifications are
passed over too, as long as they are not a flood.

`call` raises WireBroken. `end` returns when no process of the handler is alive.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from watcher.runner.providers.provider import Provider, find_program
from watcher.runner.warm import jsonrpc
from watcher.runner.warm.jsonrpc import Answer, BadAnswer, RpcError
from watcher.runner.warm.pipes import Tail, Wire, WireBroken
from watcher.system import processes

State = Literal["starting", "idle", "busy", "checking", "failed", "retiring"]
#: The longest answer: more is a mistake of the handler's, and would be held in memory several times.
MAX_LINE_BYTES = 16 << 20
#: So many lines that want nothing are passed over between two requests.
_MOST_IDLE_LINES = 10_000
#: While a request runs its handler's memory is looked at so often.
_WEIGH_SECONDS = 0.25
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Start:
    """How handlers are started. Of `pass_fds` one is the worker's busy lock."""

    argv: Sequence[str]
    environment: Mapping[bytes, bytes]
    cwd: str | None = None
    program: str | None = None
    pass_fds: tuple[int, ...] = ()
    max_line_bytes: int = MAX_LINE_BYTES


def start_of(
    provider: Provider, environment: Mapping[str, str], pass_fds: tuple[int, ...], max_output_bytes: int
) -> Start:
    """How a provider's command is kept warm. An answer may be as large as a result, escaped, and then some."""
    return Start(
        argv=provider.command,
        environment={os.fsencode(name): os.fsencode(value) for name, value in environment.items()},
        program=find_program(provider, environment["PATH"]),
        pass_fds=pass_fds,
        max_line_bytes=max(MAX_LINE_BYTES, 2 * max_output_bytes),
    )


class WarmProcess:
    """A handler process and the conversation with it."""

    def __init__(self, start: Start, mark: str, now: float) -> None:
        """Start it. Raises OSError as `processes.spawn`; then nothing is left open."""
        self.mark = mark
        self.state: State = "starting"
        self.is_tainted = False
        self.requests = 0
        self.began = now
        self.idle_since = now
        self.leftovers = 0
        self._number = 0
        self._idle_lines = 0
        self._is_over = False
        processes.attempt_began(mark)
        try:
            self._child, self.wire, self.tail = _spawned(start, mark)
        except BaseException:
            processes.attempt_over(None, mark)
            raise
        self.pid = self._child.pid
        self._statm = _opened(f"/proc/{self.pid}/statm")  # kept open: it is read after each request

    def ask(self, method: str, params: dict[str, Any] | None = None, deadline: float | None = None) -> int:
        """Send a request; returns its number, which the answer must have. Raises WireBroken."""
        self._number += 1
        self._idle_lines = 0
        self.wire.send(jsonrpc.request(self._number, method, params or {}), deadline)
        return self._number

    def answer_in(self, line: bytes) -> Answer | None:
        """The answer to the last request, or None for a line to pass over: one that wants nothing, or the answer to a
        request that was answered before. Raises WireBroken."""
        try:
            answer = jsonrpc.parse_answer(line)
        except BadAnswer as bad:
            raise WireBroken("handler_bad_answer", str(bad)) from None
        if answer is None:
            self._idle_lines += 1
            if self._idle_lines > _MOST_IDLE_LINES:
                raise WireBroken("handler_bad_answer", f"more than {_MOST_IDLE_LINES} lines that are no answer")
            return None
        if answer.number == self._number or (answer.error is not None and answer.number == -1):
            return answer
        if 0 < answer.number < self._number:
            self.is_tainted = True
            return None
        raise WireBroken("handler_bad_answer", f"an answer to request {answer.number}, which nobody made")

    def call(self, method: str, params: dict[str, Any], timeout_seconds: float, most_bytes: int = 0) -> Any:
        """Ask and wait for the result, while its memory stays below `most_bytes` (0: whatever it takes). Raises
        WireBroken; returns an RpcError when the answer is one."""
        deadline = time.monotonic() + timeout_seconds
        self.requests += 1
        self.ask(method, params, deadline)
        while True:
            answer = self.answer_in(self._receive(deadline, most_bytes))
            if answer is not None:
                return answer.result if answer.error is None else answer.error

    def is_quiet(self) -> bool:
        """Whether it lives and has said nothing since its last answer that somebody could take for one."""
        try:
            while not self.wire.is_quiet():
                self.wire.fill()
                while (line := self.wire.take_line()) is not None:
                    if self.answer_in(line) is not None or self.is_tainted:
                        return False
                if self.wire.has_begun_a_line():
                    return False
        except WireBroken:
            return False
        return True

    def abort(self) -> None:
        """Any thread: whoever waits for its answer gets WireBroken `stopped`."""
        self.wire.wake()

    def memory_bytes(self) -> int:
        """Its resident memory, without its children's; 0 where that is not known."""
        try:
            return int(os.pread(self._statm, 200, 0).split()[1]) * _PAGE_BYTES
        except (OSError, ValueError, IndexError):
            return 0

    def retire(self) -> None:
        """Ask it to end by itself, and return at once."""
        self.state = "retiring"
        with contextlib.suppress(WireBroken):  # it has ended already, or reads nothing: then signals do it
            self.wire.send(jsonrpc.notification(jsonrpc.SHUTDOWN), time.monotonic())
        self.wire.close_stdin()

    def has_ended(self) -> bool:
        """Whether the process is over; does not wait."""
        return self._child.wait(0) is not None

    def ask_to_end(self, grace_seconds: float) -> None:
        """TERM, and return at once; `end` sends the KILL."""
        self._child.end(grace_seconds)

    def end(self, patience_seconds: float, grace_seconds: float) -> int | None:
        """Wait so long for its own end, then TERM, after the grace KILL, then whatever escaped. Blocks; returns the
        exit code, None when nobody knows it. `leftover_processes` says how many processes it had left behind."""
        if not self._is_over:
            if self._child.wait(patience_seconds) is None:
                self._child.end(grace_seconds)
                self._child.wait()
            self.leftovers = processes.attempt_over(self._child, self.mark)
            self.tail.drain()
            self._is_over = True
        code = self._child.wait(0)
        return None if code == processes.EXIT_UNKNOWN else code

    def close(self) -> None:
        """Give its descriptors back; `end` was called, and nobody waits for them any more."""
        self.wire.close()
        self.tail.close()
        statm, self._statm = self._statm, -1
        if statm >= 0:
            os.close(statm)

    def _receive(self, deadline: float, most_bytes: int) -> bytes:
        while most_bytes > 0 and (look_at := time.monotonic() + _WEIGH_SECONDS) < deadline:
            try:
                return self.wire.receive(look_at)
            except WireBroken as broken:
                if broken.reason != "timeout":
                    raise
            if (found := self.memory_bytes()) > most_bytes:
                raise WireBroken("handler_too_large", f"it takes {found >> 20} MiB of memory, over {most_bytes >> 20}")
        return self.wire.receive(deadline)


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _spawned(start: Start, mark: str) -> tuple[processes.Child, Wire, Tail]:
    environment = {**start.environment, processes.MARK.encode(): mark.encode()}
    ours: list[int] = []
    theirs: list[int] = []
    try:
        for reads_here in (False, True, True):
            reading, writing = os.pipe()
            ours.append(reading if reads_here else writing)
            theirs.append(writing if reads_here else reading)
        wire = Wire(ours[0], ours[1], start.max_line_bytes)
        try:
            tail = Tail(ours[2])
            child = processes.spawn(
                start.argv, environment, start.cwd, theirs[0], theirs[1], theirs[2], start.pass_fds, start.program
            )
        except BaseException:
            wire.close()
            del ours[:2]
            raise
        return child, wire, tail
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)


__all__ = ["RpcError", "Start", "State", "WarmProcess", "start_of"]
