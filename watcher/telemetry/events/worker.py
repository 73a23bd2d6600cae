"""The life of a worker: it starts, is told something, meets trouble and stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from watcher.telemetry.events.base import Event


@dataclass(slots=True)
class WorkerStarted(Event):
    """Its folder is its own; the first scan begins."""

    name: ClassVar[str] = "worker.started"
    incarnation: str
    pid: int
    detail: str


@dataclass(slots=True)
class FenceMissing(Event):
    """Commands run without the fence that keeps them from signalling this worker; `detail` says why and what to do."""

    name: ClassVar[str] = "fence.missing"
    level: ClassVar[str] = "warning"
    detail: str


@dataclass(slots=True)
class SignalPassedOver(Event):
    """A signal that is not obeyed: it has no meaning here, or an agent's process sent it. `detail` says which."""

    name: ClassVar[str] = "signal.passed_over"
    level: ClassVar[str] = "warning"
    signal: str
    detail: str


@dataclass(slots=True)
class WorkerDraining(Event):
    """It claims nothing more; what runs may end."""

    name: ClassVar[str] = "worker.draining"
    reason: str
    active_tasks: int


@dataclass(slots=True)
class WorkerStopped(Event):
    """Nothing runs any more. `released_tasks`: ended and given back untouched."""

    name: ClassVar[str] = "worker.stopped"
    reason: str
    released_tasks: int


@dataclass(slots=True)
class WorkerPaused(Event):
    """It starts nothing until it is resumed; what runs goes on."""

    name: ClassVar[str] = "worker.paused"
    level: ClassVar[str] = "warning"
    reason: str


@dataclass(slots=True)
class WorkerResumed(Event):
    """It starts tasks again."""

    name: ClassVar[str] = "worker.resumed"


@dataclass(slots=True)
class CommandDone(Event):
    """A file of the control folder was obeyed and consumed. `detail` says what came of it."""

    name: ClassVar[str] = "command.done"
    command: str
    task_id: str
    detail: str


@dataclass(slots=True)
class CommandRefused(Event):
    """A file of the control folder could not be obeyed; it lies in `.refused` there."""

    name: ClassVar[str] = "command.refused"
    level: ClassVar[str] = "error"
    file: str
    detail: str


@dataclass(slots=True)
class TroubleBegan(Event):
    """The machine is short of something; nothing is claimed until it clears and no attempt is counted."""

    name: ClassVar[str] = "worker.trouble_began"
    level: ClassVar[str] = "error"
    detail: str


@dataclass(slots=True)
class TroubleEnded(Event):
    """`seconds`: since it began."""

    name: ClassVar[str] = "worker.trouble_ended"
    seconds: float


@dataclass(slots=True)
class WakeDegraded(Event):
    """Events of the file system are not available or were lost; the scan goes on finding what is there."""

    name: ClassVar[str] = "wake.degraded"
    level: ClassVar[str] = "warning"
    detail: str
