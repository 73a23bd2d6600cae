"""Settle, retry or release a claim, at once or when the machine can.

Promise: an outcome that cannot be stored, or a claim that cannot be given back, stays here until the machine can do it,
and costs the task no attempt. Loop thread only; the committing thread of `slot_threads` stores outcomes and calls
`stored`. Raises nothing for trouble of the machine: `machine_trouble` learns of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from watcher.errors import WorkerTrouble
from watcher.policy.after_attempt import Retry
from watcher.policy.retry import RetryDelays
from watcher.store.queue_interface import Claim, Settlement, Spool
from watcher.telemetry.events import Emit, Event, TaskRetryScheduled
from watcher.worker.budgets import Budgets
from watcher.worker.machine_trouble import Trouble

#: A claim that trouble kept here and that goes back with its attempt counted.
_RETRY = "retry"


class Completer:
    """What has left `running` and is not yet out; `store` hands an outcome to the committing thread."""

    def __init__(
        self,
        spool: Spool,
        store: Callable[[Settlement], None],
        budgets: Budgets,
        delays: RetryDelays,
        trouble: Trouble,
        emit: Emit,
    ) -> None:
        self._spool = spool
        self._store = store
        self._budgets = budgets
        self._delays = delays
        self._trouble = trouble
        self._emit = emit
        self._unstored = 0
        self._stuck: list[Settlement] = []
        self._kept: list[tuple[Claim, str]] = []

    @property
    def unstored(self) -> int:
        """Outcomes that are not safe yet."""
        return self._unstored

    def blocked(self) -> int:
        """Outcomes that cannot be stored now, and claims that cannot be given back."""
        return len(self._stuck) + len(self._kept)

    def is_empty(self) -> bool:
        """Whether everything is out."""
        return not self._unstored and not self._kept

    def settle(self, settlement: Settlement) -> None:
        """Have the outcome stored; `stored` is called then."""
        self._unstored += 1
        self._store(settlement)

    def stored(self, batch: list[Settlement], events: list[Event | None], error: OSError | None) -> None:
        """The committing thread is done with a batch; an event that is None belongs to one that could not be stored."""
        for settlement, event in zip(batch, events, strict=True):
            if event is None:
                self._stuck.append(settlement)
                continue
            self._unstored -= 1
            self._spool.settled(settlement)
            self._budgets.settled(settlement.task_id)
            self._emit(event)
        if error is not None:
            self._trouble.begin(str(WorkerTrouble(f"store an outcome{_place(error)}", error)))

    def retry(self, claim: Claim, what: Retry) -> None:
        """Give it back with its attempt counted."""
        try:
            self._spool.retry_in(claim, what.delay_seconds)
        except WorkerTrouble as trouble:
            # The claim stays ours; it goes back when the machine is well again, with its attempt counted.
            self._trouble.begin(str(trouble))
            self._kept.append((claim, _RETRY))
            return
        self._emit(
            TaskRetryScheduled(claim.task.task_id, claim.provider, claim.attempt, what.reason, what.delay_seconds)
        )

    def release(self, claim: Claim, reason: str) -> None:
        """Give it back untouched."""
        try:
            self._spool.release(claim, reason)
        except WorkerTrouble as trouble:
            self._trouble.begin(str(trouble))
            self._kept.append((claim, reason))

    def try_again(self) -> bool:
        """Give back and store what trouble kept here. Returns False while it must be waited for."""
        claims, self._kept = self._kept, []
        for claim, reason in claims:
            if reason == _RETRY:
                self.retry(claim, Retry(self._delays.after(claim.attempt), reason))
            else:
                self.release(claim, reason)
        if self._stuck:
            stuck, self._stuck = self._stuck, []
            self._trouble.lengthen()
            for settlement in stuck:
                self._store(settlement)
            return False
        return self.is_empty()


def _place(error: OSError) -> str:
    """In which folder, where the error tells a whole path."""
    path = error.filename2 or error.filename
    return f" in {os.path.dirname(path)}" if isinstance(path, str) and os.path.isabs(path) else ""
