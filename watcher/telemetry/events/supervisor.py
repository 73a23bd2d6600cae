"""The life of a supervisor and of the processes in its care."""

from __future__ import annotations

from dataclasses import dataclass

from watcher.telemetry.events.base import Event


@dataclass(slots=True)
class SupervisorStarted(Event):
    """`detail` says what it serves, in words."""

    name = "supervisor.started"
    sentence = "supervisor started, pid {pid}"
    pid: int
    detail: str


@dataclass(slots=True)
class SupervisorStopping(Event):
    """It was asked to end, and asks its `children` to."""

    name = "supervisor.stopping"
    sentence = "stopping, processes: {children}"
    reason: str
    children: int


@dataclass(slots=True)
class SupervisorStopped(Event):
    """It looks after nothing any more."""

    name = "supervisor.stopped"
    sentence = "supervisor stopped"
    reason: str


@dataclass(slots=True)
class ChildStarted(Event):
    """A supervised process: `child` is `marie`, `marie@2` or `orchestrator` (the listener)."""

    name = "child.started"
    sentence = "{child} started, pid {pid}"
    child: str
    pid: int


@dataclass(slots=True)
class ChildEnded(Event):
    """It ended because it was asked to."""

    name = "child.ended"
    sentence = "{child} has ended, pid {pid}"
    child: str
    pid: int
    reason: str


@dataclass(slots=True)
class ChildRestarting(Event):
    """It ended by itself, or could not start; it is started again after `delay_seconds`. `crashes`: in a row."""

    name = "child.restarting"
    level = "warning"
    sentence = "{child} is started again in {delay_seconds:.1f} s, crashes in a row: {crashes}"
    child: str
    reason: str
    crashes: int
    delay_seconds: float


@dataclass(slots=True)
class ChildAwaited(Event):
    """A process that outlived its supervisor, `pid`, does its work; it is started when that one has ended."""

    name = "child.awaited"
    level = "warning"
    sentence = "{child} is served by pid {pid}, which outlived its supervisor"
    child: str
    pid: int
    reason: str


@dataclass(slots=True)
class ChildLeft(Event):
    """Somebody else asked it to end; it is not started again before a person says so."""

    name = "child.left"
    level = "warning"
    sentence = "{child} is left alone until SIGHUP"
    child: str
    reason: str


@dataclass(slots=True)
class ChildGivenUp(Event):
    """It failed for good and is not started again before a person says so; the others go on."""

    name = "child.given_up"
    level = "error"
    sentence = "{child} is not started again before SIGHUP, the others go on"
    child: str
    reason: str


@dataclass(slots=True)
class ChildrenRolled(Event):
    """All were restarted, one after the other."""

    name = "children.rolled"
    sentence = "processes restarted one after the other: {children}"
    children: int


@dataclass(slots=True)
class RollBrokenOff(Event):
    """The new process of one did not come up; those that were not restarted yet (`left`) run on as they are."""

    name = "children.roll_broken_off"
    level = "error"
    sentence = "restarting one after the other was broken off, left as they are: {left}"
    left: int
    reason: str


@dataclass(slots=True)
class InstancesScaled(Event):
    """A worker is to have another number of instances."""

    name = "instances.scaled"
    sentence = "instances of {of_worker}: {instances}, were {was}"
    of_worker: str
    instances: int
    was: int
    reason: str
