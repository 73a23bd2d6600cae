"""What becomes of the agents that do the work: whether they may be used, what they cost, which are kept warm."""

from __future__ import annotations

from dataclasses import dataclass

from watcher.telemetry.events.base import Event


@dataclass(slots=True)
class BreakerMoved(Event):
    """`state` is `closed`, `open` or `half_open`."""

    name = "breaker.moved"
    level = "warning"
    sentence = "circuit breaker of {provider} is {state}, failures in a row: {failures}"
    provider: str
    state: str
    failures: int


@dataclass(slots=True)
class ProviderHeld(Event):
    """Nothing is claimed for the provider until `until` (RFC 3339) or, when that is None, until it works again."""

    name = "provider.held"
    level = "error"
    sentence = "{provider} is held"
    provider: str
    reason: str
    detail: str
    until: str | None


@dataclass(slots=True)
class ProviderResumed(Event):
    """Its hold is over."""

    name = "provider.resumed"
    sentence = "{provider} may be used again"
    provider: str


@dataclass(slots=True)
class SpendingRecorded(Event):
    """An attempt has cost this much more, as its provider tells."""

    name = "spending.recorded"
    level = "debug"
    sentence = "{task_id} has cost {cost_usd:.4f} USD more on {provider}"
    task_id: str
    provider: str
    cost_usd: float


@dataclass(slots=True)
class BudgetReached(Event):
    """Nothing is claimed until `until` (RFC 3339): the worker has spent what it may in one day."""

    name = "budget.reached"
    level = "warning"
    sentence = "{spent_usd:.4f} of {budget_usd:.4f} USD spent today, claiming nothing until {until}"
    spent_usd: float
    budget_usd: float
    until: str


@dataclass(slots=True)
class BudgetLifted(Event):
    """A new day has begun, or the budget of this one was raised."""

    name = "budget.lifted"
    sentence = "there is money again, {spent_usd:.4f} of {budget_usd:.4f} USD spent today"
    spent_usd: float
    budget_usd: float


@dataclass(slots=True)
class BudgetUnbound(Event):
    """A budget is set that some providers do not tell enough for. Said once, at the start."""

    name = "budget.unbound"
    level = "warning"
    sentence = "a budget that is set cannot bound {provider}"
    provider: str
    detail: str


@dataclass(slots=True)
class StallNotWatched(Event):
    """STALL_TIMEOUT does not apply: what the provider prints tells nothing until it ends. Said once a provider."""

    name = "stall.not_watched"
    level = "warning"
    sentence = "STALL_TIMEOUT does not apply to {provider}"
    provider: str
    detail: str


@dataclass(slots=True)
class HandlerStarted(Event):
    """A warm handler has answered its first ping."""

    name = "handler.started"
    level = "debug"
    sentence = "handler {handler_pid} is warm"
    handler_pid: int


@dataclass(slots=True)
class HandlerEnded(Event):
    """A warm handler was ended in good order: it was worn out, or not needed any more."""

    name = "handler.ended"
    level = "debug"
    sentence = "handler {handler_pid} ended after {requests} requests, left behind: {leftovers}"
    handler_pid: int
    reason: str
    requests: int
    leftovers: int


@dataclass(slots=True)
class HandlerFailed(Event):
    """A warm handler crashed, was late or broke the protocol, and is gone. Its task's failure is told by itself."""

    name = "handler.failed"
    level = "warning"
    sentence = "handler {handler_pid} failed after {requests} requests, left behind: {leftovers}"
    handler_pid: int
    reason: str
    detail: str
    requests: int
    leftovers: int


@dataclass(slots=True)
class HandlersCold(Event):
    """The command cannot be kept warm: until it can, each task gets a process of its own."""

    name = "handler.fell_back"
    level = "warning"
    sentence = "no handler can be kept warm, each task gets a process of its own"
    detail: str


@dataclass(slots=True)
class PoolResized(Event):
    """The monitor wants another number of warm handlers."""

    name = "pool.resized"
    sentence = "handlers wanted: {size}, before: {was}, requests waiting: {waiting}"
    size: int
    was: int
    waiting: int
