"""Tell one task what the budgets allow: may it begin, must it be ended, may it be tried again.

The books are `spending`; here is what follows from them for the executor. Without books everything may go on. It
raises nothing and runs nothing: who asks carries the answer out.
"""

from __future__ import annotations

from watcher.policy.after_attempt import Disposition, Ending, Failure, Retry, Settle
from watcher.runner.runner_interface import Live, Outcome
from watcher.store.queue_interface import Claim
from watcher.store.spending import BUDGET_EXCEEDED, DAILY_BUDGET, Allowance, Spending
from watcher.worker.slot_threads import Running


class Budgets:
    """The budgets of one worker; `spending` None keeps no books."""

    def __init__(self, spending: Spending | None) -> None:
        self._spending = spending

    def are_set(self) -> bool:
        """Whether anything is limited at all."""
        return self._spending is not None and self._spending.has_limits

    def is_day_over(self) -> bool:
        """Whether nothing starts because the day's money is spent."""
        return self._spending is not None and self._spending.is_day_over_budget()

    def instead_of_beginning(self, task_id: str) -> Settle | None:
        """How a task ends whose attempts have cost what they may; None when it may begin."""
        spending = self._spending
        if spending is None or not spending.is_task_over_budget(task_id):
            return None
        return Settle("failed", BUDGET_EXCEEDED, spending.words_about(task_id), dead_letter=True)

    def allowance(self, task_id: str) -> Allowance | None:
        """What the next attempt may cost; None for any amount."""
        return None if self._spending is None else self._spending.allowance(task_id)

    def heed(self, running: Running, live: Live) -> tuple[Failure, str] | None:
        """Count what a running task has cost so far; returns as what, and why, it must be ended."""
        if self._spending is None or (live.cost_usd is None and live.tokens is None):
            return None
        claim = running.claim
        self._spending.record(claim.task.task_id, claim.provider, running.attempt.mark, live.cost_usd, live.tokens)
        if self._spending.is_task_over_budget(claim.task.task_id):
            return Failure.PERMANENT, BUDGET_EXCEEDED
        return (Failure.STOPPED, DAILY_BUDGET) if self._spending.is_day_over_budget() else None

    def count(self, running: Running, outcome: Outcome) -> None:
        """An attempt is over: before anything else is stored, what it cost must be known, whatever kills us next.

        One that ended with the day's money, not with its own, has not failed: tomorrow there is more.
        """
        if self._spending is None:
            return
        task_id, mark = running.claim.task.task_id, running.attempt.mark
        usage = outcome.usage
        cost = None if usage is None else usage.cost_usd
        tokens = None if usage is None else (usage.input_tokens or 0) + (usage.output_tokens or 0)
        self._spending.record(task_id, running.claim.provider, mark, cost, tokens)
        self._spending.attempt_over(mark)
        was_the_days = outcome.ending.reason == BUDGET_EXCEEDED and running.has_the_days_money
        if was_the_days and not self._spending.is_task_over_budget(task_id):
            outcome.ending = Ending(Failure.STOPPED, DAILY_BUDGET, outcome.ending.detail)

    def within(self, claim: Claim, what: Disposition) -> Disposition:
        """No retry for a task whose attempts have cost what they may; its dead letter says what they have cost."""
        if isinstance(what, Retry) or (isinstance(what, Settle) and what.reason == BUDGET_EXCEEDED):
            return self.instead_of_beginning(claim.task.task_id) or what
        return what

    def settled(self, task_id: str) -> None:
        """The task is over and stored."""
        if self._spending is not None:
            self._spending.settled(task_id)
