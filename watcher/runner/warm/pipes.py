"""Own the pipes of one handler: lines to its stdin and from its stdout, bounded, with deadlines; the end of its stderr.

A Wire is used by one thread at a time; only `wake` may be called by any. It never blocks longer than its deadline,
whatever the other side does: not reading, not writing, flooding, half a line. What it has read is kept to
`max_line_bytes`. A Tail is drained by whoever comes by, so that no handler ever blocks on its stderr.

Raises WireBroken with a reason: `handler_crashed`, `handler_answer_too_long`, `output_too_large`,
`timeout` or `stopped`. It ends no
process.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time

from watcher.policy.output_limit import OUTPUT_TOO_LARGE
from watcher.runner.printed_text import harmless

#: What is kept of a handler's stderr: its last words.
TAIL_BYTES = 64 << 10
_READ_BYTES = 1 << 16
#: A drain reads this much and then lets others have their turn: a flood goes on for ever.
_DRAIN_BYTES = 1 << 20


class WireBroken(Exception):
    """The conversation is over; the handler cannot be trusted with another task."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Wire:
    """Both directions of one handler. It owns its descriptors."""

    def __init__(self, stdin_fd: int, stdout_fd: int, max_line_bytes: int) -> None:
        self.stdout_fd = stdout_fd
        self._stdin_fd = stdin_fd
        self._max = max_line_bytes
        self._held = bytearray()
        self._looked = 0
        self._wake_fd, self._woken_by = os.pipe()
        self._is_stopped = False
        self._tail: Tail | None = None
        self._total = 0
        self._allowed: tuple[int, int, Tail] | None = None
        os.set_blocking(stdin_fd, False)
        os.set_blocking(stdout_fd, False)
        self._reading = select.poll()
        self._reading.register(stdout_fd, select.POLLIN)
        self._reading.register(self._wake_fd, select.POLLIN)

    def also_drain(self, tail: Tail) -> None:
        """Whoever waits here keeps this stderr empty; for a process that nobody else looks after."""
        self._tail = tail
        self._reading.register(tail.fd, select.POLLIN)

    def allow(self, most_bytes: int, tail: Tail) -> None:
        """From now on the other side may print so much, here and to this stderr, until the next call or `allow_all`."""
        self._allowed = (self._total + tail.position(), most_bytes, tail)

    def allow_all(self) -> None:
        """Nobody asks it anything, so nobody counts."""
        self._allowed = None

    def has_too_much(self) -> bool:
        """Any thread: whether it has printed more than that."""
        allowed = self._allowed
        if allowed is None:
            return False
        began, most, tail = allowed
        return self._total + tail.position() - began > most

    def wake(self) -> None:
        """Any thread: whoever waits here, now or later, gets WireBroken `stopped`."""
        self._is_stopped = True
        with contextlib.suppress(OSError):
            os.write(self._woken_by, b"x")

    def is_quiet(self) -> bool:
        """Whether the other side lives and has said nothing that nobody asked for."""
        return not self._held and not self._reading.poll(0)

    def has_begun_a_line(self) -> bool:
        """Whether the beginning of a line has come, and not yet its end."""
        return bool(self._held)

    def send(self, line: bytes, deadline: float | None = None) -> None:
        """Write a line; `deadline` is on the monotonic clock. Raises WireBroken."""
        rest = memoryview(line)
        while True:
            try:
                rest = rest[os.write(self._stdin_fd, rest) :]
            except BlockingIOError:
                pass
            except OSError as error:
                raise WireBroken("handler_crashed", f"it no longer takes requests: {error.strerror}") from None
            if not rest:
                return
            self._wait_to_write(deadline)

    def receive(self, deadline: float | None = None) -> bytes:
        """The next line, without its end. Raises WireBroken."""
        while (line := self.take_line()) is None:
            self._wait(self._reading, deadline)
            self.fill()
        return line

    def take_line(self) -> bytes | None:
        """A line that has come already, or None."""
        end = self._held.find(b"\n", self._looked)
        if end < 0:
            self._looked = len(self._held)
            return None
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        self._looked = 0
        return line

    def fill(self) -> None:
        """Read what is there; call it when something is. Raises WireBroken at the end of stdout, and when a line is
        too long."""
        try:
            chunk = os.read(self.stdout_fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not chunk:
            raise WireBroken("handler_crashed", "it closed its standard output")
        self._held += chunk
        self._total += len(chunk)
        self._refuse_too_much()
        held = len(self._held)
        if held > self._max and (held > 2 * self._max or self._held.find(b"\n", self._looked) < 0):
            raise WireBroken("handler_answer_too_long", f"its answer is longer than {self._max} bytes")

    def close_stdin(self) -> None:
        """Say that there is nothing more to come."""
        if self._stdin_fd >= 0:
            os.close(self._stdin_fd)
            self._stdin_fd = -1

    def close(self) -> None:
        self.close_stdin()
        for fd in (self.stdout_fd, self._wake_fd, self._woken_by):
            os.close(fd)

    def _wait_to_write(self, deadline: float | None) -> None:
        """The pipe is full. What the other side says meanwhile is read, else both would wait for each other."""
        poller = select.poll()
        poller.register(self._stdin_fd, select.POLLOUT)
        poller.register(self.stdout_fd, select.POLLIN)
        poller.register(self._wake_fd, select.POLLIN)
        if self._tail is not None:
            poller.register(self._tail.fd, select.POLLIN)
        if self.stdout_fd in self._wait(poller, deadline):
            self.fill()

    def _refuse_too_much(self) -> None:
        if self._allowed is not None and self.has_too_much():
            most = self._allowed[1]
            detail = f"it printed more than {most} bytes for one task (MAX_ATTEMPT_OUTPUT_BYTES)"
            raise WireBroken(OUTPUT_TOO_LARGE, detail)

    def _wait(self, poller: select.poll, deadline: float | None) -> list[int]:
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise WireBroken("timeout", "no answer in time")
            ready = [fd for fd, _ in poller.poll(None if left is None else min(left, 86_400.0) * 1000 + 1)]
            self._refuse_too_much()
            if self._is_stopped:
                raise WireBroken("stopped", "ended on request")
            if self._tail is not None and self._tail.fd in ready:
                ready.remove(self._tail.fd)
                if not self._tail.drain():
                    for one in {poller, self._reading}:
                        one.unregister(self._tail.fd)
                    self._tail = None
                self._refuse_too_much()
            if ready:
                return ready


class Tail:
    """The last words of a handler on its stderr."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._lock = threading.Lock()
        self._kept = bytearray()
        self._total = 0
        self._is_over = False

    def drain(self) -> bool:
        """Read what is there. Returns False when the other side has closed it."""
        with self._lock:
            left = _DRAIN_BYTES
            while left > 0 and not self._is_over:
                try:
                    chunk = os.read(self.fd, _READ_BYTES)
                except BlockingIOError:
                    break
                self._is_over = not chunk
                self._total += len(chunk)
                left -= len(chunk)
                self._kept += chunk
                if len(self._kept) > TAIL_BYTES:
                    del self._kept[: len(self._kept) - TAIL_BYTES]
                if len(chunk) < _READ_BYTES:
                    break
            return not self._is_over

    def position(self) -> int:
        """How much has been written up to now."""
        return self._total

    def since(self, position: int) -> str:
        """What was written after `position`; of a long text the end, and how much is missing."""
        if self._total == position:
            return ""
        with self._lock:
            wanted = self._total - position
            text = bytes(self._kept[-wanted:]).decode("utf-8", "replace")
            lost = wanted - len(self._kept)
        return harmless(text) if lost <= 0 else f"[{lost} bytes left out]\n{harmless(text)}"

    def last_line(self) -> str:
        """For people: how it ended."""
        with self._lock:
            text = bytes(self._kept[-2000:]).decode("utf-8", "replace").rstrip()
        return harmless(text.rpartition("\n")[2].strip())

    def close(self) -> None:
        with self._lock:
            self._is_over = True
            os.close(self.fd)
