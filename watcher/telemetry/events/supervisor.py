"""The life of a supervisor and of the processes in its care."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from watcher.telemetry.events.base import Event


@dataclass(slots=True)
class SupervisorStarted(Event):
    """`detail` says what it serves, in words."""

    name: ClassVar[str] = "supervisor.started"
    pid: int
    detail: str


@dataclass(slots=True)
class SupervisorStopping(Event):
    """It was asked to end, and asks its `children` to."""

    name: ClassVar[str] = "supervisor.stopping"
    reason: str
    children: int


@dataclass(slots=True)
class SupervisorStopped(Event):
    """It looks after nothing any more."""

    name: ClassVar[str] = "supervisor.stopped"
    reason: str


@dataclass(slots=True)
class ChildStarted(Event):
    """A supervised process: `child` is `marie`, `marie@2` or `orchestrator` (the listener)."""

    name: ClassVar[str] = "child.started"
    child: str
    pid: int


@dataclass(slots=True)
class ChildEnded(Event):
    """It ended because it was asked to."""

    name: ClassVar[str] = "child.ended"
    child: str
    pid: int
    reason: str


@dataclass(slots=True)
class ChildRestarting(Event):
    """It ended by itself, or could not start; it is started again after `delay_seconds`. `crashes`: in a row."""

    name: ClassVar[str] = "child.restarting"
    level: ClassVar[str] = "warning"
    child: str
    reason: str
    crashes: int
    delay_seconds: float


@dataclass(slots=True)
class ChildAwaited(Event):
    """A process that outlived its supervisor, `pid`, does its work; it is started when that one has ended."""

    name: ClassVar[str] = "child.awaited"
    level: ClassVar[str] = "warning"
    child: str
    pid: int
    reason: str


@dataclass(slots=True)
class ChildLeft(Event):
    """Somebody else asked it to end; it is not started again before a person says so."""

    name: ClassVar[str] = "child.left"
    level: ClassVar[str] = "warning"
    child: str
    reason: str


@dataclass(slots=True)
class ChildGivenUp(Event):
    """It failed for good and is not started again before a person says so; the others go on."""

    name: ClassVar[str] = "child.given_up"
    level: ClassVar[str] = "error"
    child: str
    reason: str


@dataclass(slots=True)
class ChildrenRolled(Event):
    """All were restarted, one after the other."""

    name: ClassVar[str] = "children.rolled"
    children: int


@dataclass(slots=True)
class RollBrokenOff(Event):
    """The new process of one did not come up; those that were not restarted yet (`left`) run on as they are."""

    name: ClassVar[str] = "children.roll_broken_off"
    level: ClassVar[str] = "error"
    left: int
    reason: str


@dataclass(slots=True)
class InstancesScaled(Event):
    """A worker is to have another number of instances."""

    name: ClassVar[str] = "instances.scaled"
    of_worker: str
    instances: int
    was: int
    reason: str
