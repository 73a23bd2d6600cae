"""Route the HTTP requests (an ASGI application): posts become tasks, and their outcomes can be asked for.

Promise: 202 is answered only after the task is durable in its inbox, and 200 to a repetition only when it was; what the
agents do has no part in it. Everything a caller can cause is bounded: bytes read, posts at work, requests that wait.

Answers that are no success are problem documents (RFC 9457) with a stable `reason`. No prompt, payload or secret is
logged. Who may call is `access`'s matter, what is put in `posts`', how `durable_posts`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from watcher.errors import WorkerTrouble
from watcher.formats import strict_json
from watcher.intake.webhook import openapi, posts
from watcher.intake.webhook.access import SIGNATURE_HEADER, Access, Refusal
from watcher.intake.webhook.durable_posts import Accepter, Submission
from watcher.intake.webhook.event_stream import TaskNews, workers_of
from watcher.intake.webhook.payload_hooks import Hook
from watcher.intake.webhook.queries import ReadingRoutes, json_answer
from watcher.settings.webhook import WebhookConfig
from watcher.telemetry.events import Emit, RequestRefused, TaskAccepted
from watcher.telemetry.webhook_metrics import WebhookMetrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)

FULL_RETRY_SECONDS = 5
TROUBLE_RETRY_SECONDS = 10
#: Refusals are logged at most so often; the rest is counted.
_REFUSALS_LOGGED_PER_SECOND = 5.0
#: Reading a body of this size may take a millisecond.
_LARGE_BODY_BYTES = 32 << 10
_T = TypeVar("_T")
_STATUS = {"accepted": 202, "copy": 200}
_ALWAYS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


@dataclass(slots=True)
class EndpointParts:
    """What the application is made of."""

    config: WebhookConfig
    access: Access
    hooks: Mapping[str, Hook]
    accepter: Accepter
    news: TaskNews
    metrics: WebhookMetrics
    emit: Emit


class Endpoint:
    """The application: `app` is what a server serves. `waiting` is how many long polls and streams are open."""

    def __init__(self, parts: EndpointParts) -> None:
        self._parts = parts
        self._bounds = _Bounds(parts.config)
        self._refusals = _Refusals(parts.emit)
        reading = ReadingRoutes(parts.config, parts.news, parts.access)
        self._reading = reading
        routes = [
            Route("/tasks", self.post_task, methods=["POST"]),
            Route("/webhook/{hook}", self.post_hook, methods=["POST"]),
            Route("/tasks/{task_id}", reading.get_task, methods=["GET"]),
            Route("/results/{task_id}", reading.get_result, methods=["GET"]),
            Route("/workers", reading.get_workers, methods=["GET"]),
            Route("/events", reading.get_events, methods=["GET"]),
            Route("/healthz", reading.get_health, methods=["GET"]),
            Route("/openapi.json", self.get_openapi, methods=["GET"]),
            Route("/docs", self.get_docs, methods=["GET"]),
        ]
        handlers: Any = {
            Refusal: self._refused,
            HTTPException: self._refused_by_router,
            WorkerTrouble: self._in_trouble,
            ClientDisconnect: _left,
            Exception: _failed,
        }
        inner = Starlette(routes=routes, exception_handlers=handlers)
        inner.router.redirect_slashes = False
        paths = {route.endpoint: route.path for route in routes}
        self.app: ASGIApp = partial(_measured, inner, paths, parts.metrics)
        self._schema = openapi.openapi(parts.config.webhook_workers)

    @property
    def waiting(self) -> int:
        return self._reading.waiting

    # --- posts

    async def post_task(self, request: Request) -> Response:
        body = await self._signed_body(request, None, SIGNATURE_HEADER)
        with self._bounds.slot():
            key = request.headers.get(posts.KEY_HEADER)
            limit = self._parts.config.max_task_bytes
            submission = await _understood(body, lambda: posts.from_task(posts.parse(body), key, limit))
            return await self._accept(submission, "tasks")

    async def post_hook(self, request: Request) -> Response:
        hook = self._parts.hooks.get(request.path_params["hook"])
        if hook is None:
            raise Refusal(404, "unknown_hook", "no hook of this name is in WEBHOOK_HOOKS_FILE")
        body = await self._signed_body(request, hook.secret, hook.signature_header)
        with self._bounds.slot():
            payload = await _understood(body, lambda: posts.parse(body))
            why = hook.ignores(payload, request.headers.get("X-GitHub-Event"))
            if why is not None:
                self._parts.metrics.judged(hook.name, "ignored")
                return json_answer(200, {"status": "ignored", "detail": why})
            limit = self._parts.config.max_task_bytes
            submission = await _understood(body, lambda: posts.from_hook(hook, payload, body, request.headers, limit))
            return await self._accept(submission, hook.name)

    async def _accept(self, submission: Submission, source: str) -> Response:
        allowed = self._parts.config.webhook_workers
        if submission.worker not in workers_of(self._parts.config.folders, allowed):
            raise Refusal(404, "unknown_worker", "this worker has no inbox here, or is not in WEBHOOK_WORKERS")
        verdict = await self._parts.accepter.accept(submission)
        self._parts.metrics.judged(source, verdict.outcome)
        if verdict.outcome == "full":
            text = f"{self._parts.config.webhook_max_pending} tasks or more wait for this worker; try again later"
            raise Refusal(429, "inbox_full", text, {"Retry-After": str(FULL_RETRY_SECONDS)})
        if verdict.outcome == "conflict":
            text = f"{verdict.task_id!r} of {verdict.worker} is another task; take another id"
            raise Refusal(409, "duplicate_id", text)
        is_copy = verdict.outcome == "copy"
        self._parts.emit(TaskAccepted(verdict.task_id, verdict.worker, source, is_copy))
        if not is_copy:
            self._parts.news.tell("task.accepted", verdict.worker, verdict.task_id)
        where = f"/tasks/{verdict.task_id}?worker={verdict.worker}"
        answer = {"status": "accepted", "task_id": verdict.task_id, "worker": verdict.worker, "is_copy": is_copy}
        return json_answer(_STATUS[verdict.outcome], answer, {"Location": where})

    async def _signed_body(self, request: Request, secret: bytes | None, header: str) -> bytes:
        """The whole body, of a caller who may post. What can be refused before it is read, is."""
        access, headers = self._parts.access, request.headers
        access.check_poster_early(headers, secret, header)
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            raise Refusal(415, "not_json", "Content-Type must be application/json")
        access.check_sender(headers, kind, secret)
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refusal(415, "encoded", "send the body as it is, without Content-Encoding")
        body = await self._bounds.read(request)
        access.check_poster(headers, body, secret, header)
        return body

    # --- descriptions

    async def get_openapi(self, request: Request) -> Response:
        self._parts.access.check_host(request.headers)
        return json_answer(200, self._schema)

    async def get_docs(self, request: Request) -> Response:
        self._parts.access.check_host(request.headers)
        return HTMLResponse(
            openapi.page(self._schema),
            headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )

    # --- refusals

    async def _refused(self, request: Request, refusal: Refusal) -> Response:
        self._refusals.log(request, refusal.status, refusal.reason)
        return problem(refusal.status, refusal.reason, str(refusal), refusal.headers)

    async def _refused_by_router(self, request: Request, error: HTTPException) -> Response:
        reason = {404: "no_such_path", 405: "no_such_method"}.get(error.status_code, "bad_request")
        self._refusals.log(request, error.status_code, reason)
        return problem(error.status_code, reason, error.detail, error.headers)

    async def _in_trouble(self, request: Request, trouble: WorkerTrouble) -> Response:
        """The machine is at fault; what it is stands in the log, not in the answer."""
        _log.error("%s", trouble, extra={"event": "webhook.trouble"})
        text = "the machine cannot store tasks now; nothing was accepted, try again later"
        return problem(503, "trouble", text, {"Retry-After": str(TROUBLE_RETRY_SECONDS)})


async def _understood(body: bytes, step: Callable[[], _T]) -> _T:
    """What a step makes of a body; a large one is read on a thread, so that others are answered meanwhile."""
    return await asyncio.to_thread(step) if len(body) > _LARGE_BODY_BYTES else step()


class _Bounds:
    """How many posts are at work, and how many bytes of bodies are held while they come."""

    def __init__(self, config: WebhookConfig) -> None:
        self._most = config.webhook_max_concurrent
        self._max_bytes = config.max_task_bytes
        self._seconds = config.webhook_read_timeout
        self._at_work = 0
        self._held_bytes = 0

    @contextmanager
    def slot(self) -> Iterator[None]:
        if self._at_work >= self._most:
            raise _busy()
        self._at_work += 1
        try:
            yield
        finally:
            self._at_work -= 1

    async def read(self, request: Request) -> bytes:
        """The body, in time and within the bounds. Raises Refusal, ClientDisconnect."""
        if self._at_work >= self._most:
            raise _busy()
        told = request.headers.get("Content-Length", "0")
        if len(told) > 15 or (told.isdigit() and int(told) > self._max_bytes):
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    self._held_bytes += len(chunk)
                    if size > self._max_bytes:
                        raise self._too_large()
                    if self._held_bytes > self._max_bytes * self._most:
                        raise _busy()
                    chunks.append(chunk)
        except TimeoutError:
            raise Refusal(408, "slow_body", f"the body did not arrive within {self._seconds:g} s") from None
        finally:
            self._held_bytes -= size
        return b"".join(chunks)

    def _too_large(self) -> Refusal:
        return Refusal(413, "too_large", f"a body may have {self._max_bytes} bytes (MAX_TASK_BYTES)")


def _busy() -> Refusal:
    return Refusal(503, "busy", "too many posts at once; try again in a moment", {"Retry-After": "1"})


@dataclass(slots=True)
class _Refusals:
    """Logs refusals, at most a few each second."""

    emit: Emit
    not_logged: int = 0
    _credit: float = field(default=_REFUSALS_LOGGED_PER_SECOND)
    _at: float = field(default_factory=time.monotonic)

    def log(self, request: Request, status: int, reason: str) -> None:
        now = time.monotonic()
        self._credit = min(_REFUSALS_LOGGED_PER_SECOND, self._credit + (now - self._at) * _REFUSALS_LOGGED_PER_SECOND)
        self._at = now
        if self._credit < 1:
            self.not_logged += 1
            return
        self._credit -= 1
        route = "/" + request.url.path.split("/")[1][:20] if "endpoint" in request.scope else "other"
        self.emit(RequestRefused(route, status, reason, self.not_logged))
        self.not_logged = 0


async def _measured(
    inner: ASGIApp, paths: dict[Callable[..., Awaitable[Response]], str], metrics: WebhookMetrics, scope: Scope,
    receive: Receive, send: Send,
) -> None:  # fmt: skip
    """Count each request and time it; every answer gets the headers that all have."""
    began = time.monotonic()
    status = 499  # the caller left before there was an answer

    async def sent(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            message["headers"] = [*message.get("headers", []), *_ALWAYS]
        await send(message)

    try:
        await inner(scope, receive, sent)
    finally:
        route = paths.get(scope.get("endpoint"), "other")  # type: ignore[arg-type]  # a path that is none has no endpoint
        metrics.answered(route, scope["method"], status, time.monotonic() - began)


def problem(status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that is no success (RFC 9457)."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "reason": reason,
        "detail": detail,
    }
    return Response(strict_json.dumps(body), status, dict(headers or {}), "application/problem+json")


async def _left(request: Request, error: ClientDisconnect) -> Response:
    """Nobody is there to read this."""
    return problem(400, "disconnected", "the request ended before its body")


async def _failed(request: Request, error: Exception) -> Response:
    """A defect of ours; the server logs it."""
    return problem(500, "internal", "internal error; see the log of the endpoint")
