"""Run each attempt of one provider in a pool of warm handlers; Router sends each attempt to the runner of its provider.

The task becomes `{handler_name, event}`: the name is `metadata.handler` or `default`, the event holds the task's facts
and the filled-in description. What the handler answers becomes the outcome of the attempt, bounded as that of any
command. When `run` has returned, the handler either waits for its next task or is dead with all that it left behind;
what a healthy handler keeps running beside itself is its own.

A command that does not stay and answer a ping cannot be kept warm: its attempts are run by the other runner, one
process each, which is told by an event and by `remark`. Nothing here raises for what a handler does. Events are emitted
on the loop thread: as soon as `soon` (its `call_soon_threadsafe`) gets there, at the latest in `sweep` and `close`.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watcher.clock import Clock
from watcher.errors import WorkerTrouble, is_trouble
from watcher.policy.after_attempt import Ending, Failure
from watcher.runner.attempt_files import output_of
from watcher.runner.cwd import checked_cwd
from watcher.runner.printed_text import harmless
from watcher.runner.runner_interface import Attempt, Live, Outcome, Output, Runner, Unseen, without_output
from watcher.runner.warm.jsonrpc import FOR_GOOD, Executed, RpcError
from watcher.runner.warm.pool import HandlerFault, HandlerPool, NotWarm, PoolClosed, PoolFull, Reply, Ticket
from watcher.telemetry.events import Emit, Event

if TYPE_CHECKING:
    from watcher.settings.worker_groups import RunnerSettings

#: The name of the provider whose attempts run in the pool.
HANDLER = "handler"
#: The handler of a task whose metadata names none.
DEFAULT_NAME = "default"
_MESSAGE_CHARACTERS = 600
#: Tasks that need a handler by name wait so long for a command that cannot be kept warm now.
_COLD_HOLD_SECONDS = 60.0
#: Events that wait for the loop thread; a pool that fails faster than that tells the latest.
_MOST_EVENTS = 1000


class WarmRunner(Unseen):
    """A Runner (see `runner.runner_interface`) for the provider `handler`; `once` runs what cannot be kept warm."""

    def __init__(
        self,
        make_pool: Callable[[Callable[[Event], None]], HandlerPool],
        once: Runner,
        config: RunnerSettings,
        folder: Path,
        clock: Clock,
        emit: Emit,
        soon: Callable[[Callable[[], None]], object] = lambda call: None,
    ) -> None:
        self._happened: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self._soon = soon
        self._pool = make_pool(self._note)
        self._once = once
        self._config = config
        self._folder = folder
        self._clock = clock
        self._emit = emit
        self._lock = threading.Lock()
        self._running: dict[str, Ticket] = {}
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Begin to start the handlers; does not wait for them."""
        self._pool.start()

    def problem(self, provider: str) -> Ending | None:
        """Why attempts cannot run at all now, or None: the same for warm and for cold ones."""
        return self._once.problem(provider)

    def run(self, attempt: Attempt) -> Outcome:
        """Run it to its end. Blocks."""
        started_at, began = self._clock.wall(), self._clock.monotonic()
        outcome = self._refused(attempt) or self._warm(attempt) or self._once.run(attempt)
        outcome.started_at = started_at
        outcome.duration_seconds = max(0.0, self._clock.monotonic() - began)
        return outcome

    def stop(self, mark: str, failure: Failure, reason: str | None = None) -> None:
        """End the attempt early: its handler is killed. One that has answered by then keeps its outcome."""
        with self._lock:
            ticket = self._running.get(mark)
            if ticket is not None and ticket.failure is None:
                ticket.failure, ticket.why = failure, reason
        if ticket is not None:
            self._pool.stop(ticket)

    def sweep(self) -> int:
        """Tell what has happened in the pool; what handlers leave behind is ended by the pool itself."""
        self._tell()
        return 0

    def remark(self) -> str | None:
        """That the command is not kept warm, and why."""
        cold = self._pool.cold()
        return None if cold is None else f"{HANDLER}: one process for each task: {cold}"

    def close(self) -> None:
        """End all handlers."""
        self._pool.shutdown()
        self.sweep()

    def _note(self, event: Event) -> None:
        """On the thread of `pool_keeper`: something has happened."""
        self._happened.append(event)
        with contextlib.suppress(RuntimeError):  # the loop is closed; `close` has told or will tell
            self._soon(self._tell)

    def _tell(self) -> None:
        while self._happened:
            self._emit(self._happened.popleft())

    def _refused(self, attempt: Attempt) -> Outcome | None:
        if not isinstance(_name(attempt), str):
            what = "metadata.handler must be the name of a handler, as text; correct the task"
            return without_output(Ending(Failure.PERMANENT, "bad_handler_name", what))
        cwd = None if attempt.cwd is None else checked_cwd(attempt.cwd, self._config.allowed_cwd)
        return without_output(cwd) if isinstance(cwd, Ending) else None

    def _warm(self, attempt: Attempt) -> Outcome | None:
        """The outcome of the attempt in the pool; None when it must be run once instead."""
        ticket = Ticket()
        with self._lock:
            self._running[attempt.mark] = ticket
        try:
            reply = self._pool.execute(_name(attempt), _event(attempt), attempt.timeout_seconds, ticket)
            return self._outcome(reply)
        except HandlerFault as fault:
            return self._faulty(fault, ticket)
        except NotWarm as cold:
            return self._cold(attempt, ticket, cold)
        except PoolClosed as closed:
            return without_output(Ending(ticket.failure or Failure.STOPPED, ticket.why, str(closed)))
        except PoolFull as full:
            return without_output(Ending(Failure.TRANSIENT, "handler_queue_full", str(full)))
        except OSError as error:
            detail = str(WorkerTrouble(f"run {HANDLER} for {attempt.task_id}", error))
            if is_trouble(error):
                return without_output(Ending(Failure.TROUBLE, "worker_trouble", detail))
            return without_output(Ending(Failure.TRANSIENT, "handler_failed", detail))
        finally:
            with self._lock:
                del self._running[attempt.mark]

    def _cold(self, attempt: Attempt, ticket: Ticket, cold: NotWarm) -> Outcome | None:
        if ticket.failure is not None:
            return without_output(_on_request(ticket))
        name = _name(attempt)
        if name == DEFAULT_NAME:
            return None
        what = (
            f"{HANDLER}: the task names the handler {name!r}, but {cold}; mend HANDLER_COMMAND, it is tried again soon"
        )
        resets_at = self._clock.wall() + _COLD_HOLD_SECONDS
        # It is this task's wish that cannot be met; whether others meet the same, another task can tell.
        return without_output(Ending(Failure.AUTH, "handler_not_warm", what, resets_at=resets_at, evidence="weak"))

    def _outcome(self, reply: Reply) -> Outcome:
        answer = reply.answer
        if isinstance(answer, RpcError):
            failure = Failure.PERMANENT if answer.code in FOR_GOOD else Failure.TRANSIENT
            detail = f"{HANDLER}: error {answer.code}: {harmless(answer.message)[:_MESSAGE_CHARACTERS]}"
            stderr = self._output(reply.printed, "stderr")
            return Outcome(Ending(failure, "handler_error", detail), 1, Output(), stderr, 0.0, 0.0)
        said = answer.stderr + ("\n" if answer.stderr and reply.printed else "") + reply.printed
        stdout, stderr = self._output(answer.output, "stdout"), self._output(said, "stderr")
        return Outcome(_judge(answer, said), 0 if answer.success else 1, stdout, stderr, 0.0, 0.0)

    def _faulty(self, fault: HandlerFault, ticket: Ticket) -> Outcome:
        if fault.reason == "stopped":
            ending = _on_request(ticket)
        else:
            timed_out = fault.reason == "timeout"
            ending = Ending(Failure.TRANSIENT, fault.reason, harmless(fault.detail), timed_out=timed_out)
        outcome = Outcome(ending, fault.exit_code, Output(), self._output(fault.stderr, "stderr"), 0.0, 0.0)
        outcome.leftovers_killed = 0 if fault.reason == "stopped" else fault.leftovers_killed
        return outcome

    def _output(self, text: str, stream: str) -> Output:
        return output_of(text, self._config.max_output_bytes, self._folder, stream, self._numbers)


class Router:
    """A Runner that hands each attempt to the runner of its provider, else to the usual one."""

    def __init__(self, usual: Runner, special: Mapping[str, Runner]) -> None:
        self._usual = usual
        self._special = dict(special)
        self._all = [*dict.fromkeys(self._special.values()), usual]

    def problem(self, provider: str) -> Ending | None:
        """Why attempts of this provider cannot run at all now, or None."""
        return self._of(provider).problem(provider)

    def run(self, attempt: Attempt) -> Outcome:
        """Run it to its end. Blocks."""
        return self._of(attempt.provider).run(attempt)

    def stop(self, mark: str, failure: Failure, reason: str | None = None) -> None:
        """End the attempt early, wherever it runs."""
        for runner in self._all:
            runner.stop(mark, failure, reason)

    def live_output(self, mark: str) -> tuple[Path, float | None] | None:
        """Where a running attempt's output grows, if anybody knows."""
        return next((live for runner in self._all if (live := runner.live_output(mark)) is not None), None)

    def sweep(self) -> int:
        """End what escaped; returns how many processes that were."""
        return sum(runner.sweep() for runner in self._all)

    def live(self, mark: str) -> Live | None:
        """What a running attempt does just now, if anybody knows."""
        return next((live for runner in self._all if (live := runner.live(mark)) is not None), None)

    def unwatched(self) -> list[tuple[str, str]]:
        """Providers that the stall rule does not fit, of all runners."""
        return [one for runner in self._all for one in runner.unwatched()]

    def remark(self) -> str | None:
        """What people should know of any of them."""
        return "; ".join(filter(None, (runner.remark() for runner in self._all))) or None

    def close(self) -> None:
        """End and remove what is kept between attempts."""
        for runner in self._all:
            runner.close()

    def _of(self, provider: str) -> Runner:
        return self._special.get(provider, self._usual)


def _name(attempt: Attempt) -> Any:
    return (attempt.metadata or {}).get("handler", DEFAULT_NAME)


def _event(attempt: Attempt) -> dict[str, Any]:
    return {
        "task_id": attempt.task_id,
        "worker": attempt.worker,
        "attempt": attempt.number,
        "description": attempt.prompt,
        "metadata": attempt.metadata,
        "agent_id": attempt.agent_id,
        "cwd": attempt.cwd,
        "model": attempt.model,
    }


def _judge(answer: Executed, said: str) -> Ending:
    if answer.success:
        return Ending(None)
    last = harmless(said.rstrip().rpartition("\n")[2].strip())[:_MESSAGE_CHARACTERS]
    failure = Failure.PERMANENT if answer.permanent else Failure.TRANSIENT
    return Ending(failure, "handler_failed", f"{HANDLER}: {last or 'it answered success: false and said no more'}")


def _on_request(ticket: Ticket) -> Ending:
    return Ending(ticket.failure or Failure.STOPPED, ticket.why, f"{HANDLER}: ended on request")
