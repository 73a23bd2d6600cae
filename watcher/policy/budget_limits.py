"""Own which providers the budgets cannot bound, for the log, the heartbeat and the doctor.

A budget counts what a provider tells. Most tell no cost, some no tokens, and plain text tells neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class TellsCost(Protocol):
    """What a budget must know of a provider."""

    @property
    def name(self) -> str: ...

    def tells_of(self) -> frozenset[str]:
        """Which of `cost` and `tokens` it always tells."""


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """The budgets of the settings; 0 is none."""

    max_cost_per_task: float = 0.0
    daily_budget: float = 0.0
    max_tokens_per_task: int = 0

    def of_money(self) -> str:
        """The names of the settings that count money, for a sentence."""
        given = (("MAX_COST_PER_TASK", self.max_cost_per_task), ("DAILY_BUDGET", self.daily_budget))
        return " and ".join(name for name, amount in given if amount)


NO_LIMITS = BudgetLimits()


def unbound(provider: TellsCost, limits: BudgetLimits) -> str | None:
    """Which budgets do not bound this provider, and what does; None: all that are set do."""
    told, parts = provider.tells_of(), []
    if limits.of_money() and "cost" not in told:
        cure = "" if limits.max_tokens_per_task or "tokens" not in told else "; MAX_TOKENS_PER_TASK would"
        parts.append(f"{limits.of_money()} cannot bound {provider.name}, which does not always report a cost{cure}")
    if limits.max_tokens_per_task and "tokens" not in told:
        parts.append(f"MAX_TOKENS_PER_TASK cannot bound {provider.name}, which reports no tokens")
    return "; ".join(parts) or None


def all_unbound(providers: Iterable[TellsCost], limits: BudgetLimits) -> dict[str, str]:
    """The same for each provider that some budget does not bound, by name."""
    found = ((provider.name, unbound(provider, limits)) for provider in providers)
    return {name: words for name, words in found if words is not None}
