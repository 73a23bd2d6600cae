"""The life of a worker: it starts, is told something, meets trouble and stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from watcher.telemetry.events.base import Emit, Event


@dataclass(slots=True)
class WorkerStarted(Event):
    """Its folder is its own; the first scan begins."""

    name = "worker.started"
    sentence = "worker started, pid {pid}"
    incarnation: str
    pid: int
    detail: str


@dataclass(slots=True)
class FenceMissing(Event):
    """Commands run without the fence that keeps them from signalling this worker; `detail` says why and what to do."""

    name = "fence.missing"
    level = "warning"
    sentence = "commands can signal this worker"
    detail: str


@dataclass(slots=True)
class SignalPassedOver(Event):
    """A signal that is not obeyed: it has no meaning here, or an agent's process sent it. `detail` says which."""

    name = "signal.passed_over"
    level = "warning"
    sentence = "{signal} passed over"
    signal: str
    detail: str


def passed_over(emit: Emit) -> Callable[[str, str], None]:
    """For `system.signals`, which knows no events."""
    return lambda signal, detail: emit(SignalPassedOver(signal, detail))


@dataclass(slots=True)
class WorkerDraining(Event):
    """It claims nothing more; what runs may end."""

    name = "worker.draining"
    sentence = "worker is draining, tasks running: {active_tasks}"
    reason: str
    active_tasks: int


@dataclass(slots=True)
class WorkerStopped(Event):
    """Nothing runs any more. `released_tasks`: ended and given back untouched."""

    name = "worker.stopped"
    sentence = "worker stopped, tasks given back: {released_tasks}"
    reason: str
    released_tasks: int


@dataclass(slots=True)
class WorkerPaused(Event):
    """It starts nothing until it is resumed; what runs goes on."""

    name = "worker.paused"
    level = "warning"
    sentence = "worker paused, it starts nothing"
    reason: str


@dataclass(slots=True)
class WorkerResumed(Event):
    """It starts tasks again."""

    name = "worker.resumed"
    sentence = "worker resumes"


@dataclass(slots=True)
class CommandDone(Event):
    """A file of the control folder was obeyed and consumed. `detail` says what came of it."""

    name = "command.done"
    sentence = "command {command} {task_id} obeyed"
    command: str
    task_id: str
    detail: str


@dataclass(slots=True)
class CommandRefused(Event):
    """A file of the control folder could not be obeyed; it lies in `.refused` there."""

    name = "command.refused"
    level = "error"
    sentence = "command {file} refused and put aside"
    file: str
    detail: str


@dataclass(slots=True)
class TroubleBegan(Event):
    """The machine is short of something; nothing is claimed until it clears and no attempt is counted."""

    name = "worker.trouble_began"
    level = "error"
    sentence = "trouble with this machine, claiming nothing"
    detail: str


@dataclass(slots=True)
class TroubleEnded(Event):
    """`seconds`: since it began."""

    name = "worker.trouble_ended"
    sentence = "trouble is over after {seconds:.3f} s"
    seconds: float


@dataclass(slots=True)
class WakeDegraded(Event):
    """Events of the file system are not available or were lost; the scan goes on finding what is there."""

    name = "wake.degraded"
    level = "warning"
    sentence = "file events are not complete, scanning instead"
    detail: str
