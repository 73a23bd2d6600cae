"""What the HTTP endpoint does: it takes posts, and refuses some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from watcher.telemetry.events.base import Event


@dataclass(slots=True)
class WebhookStarted(Event):
    """It takes posts now."""

    name: ClassVar[str] = "webhook.started"
    host: str
    port: int
    detail: str


@dataclass(slots=True)
class WebhookStopped(Event):
    """It takes no posts any more."""

    name: ClassVar[str] = "webhook.stopped"
    reason: str


@dataclass(slots=True)
class TaskAccepted(Event):
    """A post is durable in an inbox; `is_copy`: it was before. `source` is the hook, or `tasks`."""

    name: ClassVar[str] = "task.accepted"
    task_id: str
    of_worker: str
    source: str
    is_copy: bool


@dataclass(slots=True)
class RequestRefused(Event):
    """`not_logged` says how many more were refused since the last such line: they may be as many as somebody likes."""

    name: ClassVar[str] = "request.refused"
    level: ClassVar[str] = "warning"
    route: str
    status: int
    reason: str
    not_logged: int
