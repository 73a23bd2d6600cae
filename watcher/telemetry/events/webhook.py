"""What the HTTP endpoint does: it takes posts, and refuses some."""

from __future__ import annotations

from dataclasses import dataclass

from watcher.telemetry.events.base import Event


@dataclass(slots=True)
class WebhookStarted(Event):
    """It takes posts now."""

    name = "webhook.started"
    sentence = "taking posts on {host} port {port}"
    host: str
    port: int
    detail: str


@dataclass(slots=True)
class WebhookStopped(Event):
    """It takes no posts any more."""

    name = "webhook.stopped"
    sentence = "no longer taking posts"
    reason: str


@dataclass(slots=True)
class TaskAccepted(Event):
    """A post is durable in an inbox; `is_copy`: it was before. `source` is the hook, or `tasks`."""

    name = "task.accepted"
    sentence = "{of_worker}/{task_id} accepted from {source}, a copy: {is_copy}"
    task_id: str
    of_worker: str
    source: str
    is_copy: bool


@dataclass(slots=True)
class RequestRefused(Event):
    """`not_logged` says how many more were refused since the last such line: they may be as many as somebody likes."""

    name = "request.refused"
    level = "warning"
    sentence = "{route} refused with {status}, others not logged: {not_logged}"
    route: str
    status: int
    reason: str
    not_logged: int
