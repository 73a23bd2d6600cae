"""What becomes of the agents that do the work: whether they may be used, what they cost, which are kept warm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from watcher.telemetry.events.base import Event


@dataclass(slots=True)
class BreakerMoved(Event):
    """`state` is `closed`, `open` or `half_open`."""

    name: ClassVar[str] = "breaker.moved"
    level: ClassVar[str] = "warning"
    provider: str
    state: str
    failures: int


@dataclass(slots=True)
class ProviderHeld(Event):
    """Nothing is claimed for the provider until `until` (RFC 3339) or, when that is None, until it works again."""

    name: ClassVar[str] = "provider.held"
    level: ClassVar[str] = "error"
    provider: str
    reason: str
    detail: str
    until: str | None


@dataclass(slots=True)
class ProviderResumed(Event):
    """Its hold is over."""

    name: ClassVar[str] = "provider.resumed"
    provider: str


@dataclass(slots=True)
class SpendingRecorded(Event):
    """An attempt has cost this much more, as its provider tells."""

    name: ClassVar[str] = "spending.recorded"
    level: ClassVar[str] = "debug"
    task_id: str
    provider: str
    cost_usd: float


@dataclass(slots=True)
class BudgetReached(Event):
    """Nothing is claimed until `until` (RFC 3339): the worker has spent what it may in one day."""

    name: ClassVar[str] = "budget.reached"
    level: ClassVar[str] = "warning"
    spent_usd: float
    budget_usd: float
    until: str


@dataclass(slots=True)
class BudgetLifted(Event):
    """A new day has begun, or the budget of this one was raised."""

    name: ClassVar[str] = "budget.lifted"
    spent_usd: float
    budget_usd: float


@dataclass(slots=True)
class BudgetUnbound(Event):
    """A budget is set that some providers do not tell enough for. Said once, at the start."""

    name: ClassVar[str] = "budget.unbound"
    level: ClassVar[str] = "warning"
    provider: str
    detail: str


@dataclass(slots=True)
class StallNotWatched(Event):
    """STALL_TIMEOUT does not apply: what the provider prints tells nothing until it ends. Said once a provider."""

    name: ClassVar[str] = "stall.not_watched"
    level: ClassVar[str] = "warning"
    provider: str
    detail: str


@dataclass(slots=True)
class HandlerStarted(Event):
    """A warm handler has answered its first ping."""

    name: ClassVar[str] = "handler.started"
    level: ClassVar[str] = "debug"
    handler_pid: int


@dataclass(slots=True)
class HandlerEnded(Event):
    """A warm handler was ended in good order: it was worn out, or not needed any more."""

    name: ClassVar[str] = "handler.ended"
    level: ClassVar[str] = "debug"
    handler_pid: int
    reason: str
    requests: int
    leftovers: int


@dataclass(slots=True)
class HandlerFailed(Event):
    """A warm handler crashed, was late or broke the protocol, and is gone. Its task's failure is told by itself."""

    name: ClassVar[str] = "handler.failed"
    level: ClassVar[str] = "warning"
    handler_pid: int
    reason: str
    detail: str
    requests: int
    leftovers: int


@dataclass(slots=True)
class HandlersCold(Event):
    """The command cannot be kept warm: until it can, each task gets a process of its own."""

    name: ClassVar[str] = "handler.fell_back"
    level: ClassVar[str] = "warning"
    detail: str


@dataclass(slots=True)
class PoolResized(Event):
    """The monitor wants another number of warm handlers."""

    name: ClassVar[str] = "pool.resized"
    size: int
    was: int
    waiting: int
