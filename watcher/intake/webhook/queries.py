"""Answer the questions that callers ask over HTTP: where a task is, its result, the workers, the event stream.

Nothing here writes. Folders are read on other threads, so that a large one delays no post. A long poll or a stream ends
when its caller leaves, its time is over or the endpoint stops; so many may be open at once, and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from watcher.errors import WorkerTrouble
from watcher.formats import strict_json
from watcher.formats.task import TASK_FILE_NAME, WORKER_PATTERN
from watcher.intake.webhook import lookup as lookup
from watcher.intake.webhook.access import Access, Refusal
from watcher.intake.webhook.event_stream import Story, TaskNews, workers_of
from watcher.settings.webhook import WebhookConfig
from watcher.store.overview import OverviewReader
from watcher.store.results import read_stored

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

#: The longest long poll, and the longest stream that was given an end, in seconds.
MAX_WAIT_SECONDS = 60.0
MAX_STREAM_SECONDS = 86_400.0
#: A comment on an idle stream, so that proxies keep it and a caller that is gone is noticed.
BEAT_SECONDS = 15.0
#: One look at all workers is good for so long.
_LOOK_SECONDS = 1.0
_RETRY_MILLISECONDS = 2000
_SHOWN = (
    "worker", "state", "pending", "retrying", "running", "orphaned", "done", "failed", "dead_letters", "breaker",
    "oldest_pending_seconds",
)  # fmt: skip
_EVENT_ID = re.compile(r"([0-9a-f]{8})-(\d{1,15})")


class ReadingRoutes:
    """Handlers of GET requests. `waiting` is how many of them wait for something to happen."""

    def __init__(self, config: WebhookConfig, news: TaskNews, access: Access) -> None:
        self._config = config
        self._folders = config.folders
        self._news = news
        self._access = access
        self._lookout = OverviewReader(config.folders)
        self._looked: tuple[float, dict[str, Any]] = (float("-inf"), {})
        self._looking = asyncio.Lock()
        self._most_waiting = config.webhook_max_connections // 2
        self.waiting = 0

    # --- handlers

    async def get_task(self, request: Request) -> Response:
        self._access.check_reader(request.headers)
        return json_answer(200, (await self._find(request)).as_json())

    async def get_result(self, request: Request) -> Response:
        """The result, as it lies in its file; 202 and the state when there is none yet."""
        self._access.check_reader(request.headers)
        end = time.monotonic() + _seconds(request, "wait", MAX_WAIT_SECONDS, 0.0)
        found = await self._find(request)
        if not found.has_ended and end > time.monotonic():
            with self._place():
                found = await self._until_ended(request, found, end)
        if found.state == "refused":
            raise Refusal(404, "no_result", "it was refused and has only a dead letter, which says why")
        if not found.has_result:
            return json_answer(202, found.as_json())
        try:
            raw = await asyncio.to_thread(read_stored, found.path)
        except FileNotFoundError:
            raise Refusal(404, "unknown_task", "its result was removed just now") from None
        return Response(raw, media_type="application/json")

    async def get_workers(self, request: Request) -> Response:
        self._access.check_reader(request.headers)
        async with self._looking:
            looked_at, shown = self._looked
            if time.monotonic() - looked_at > _LOOK_SECONDS:
                shown = await asyncio.to_thread(self._look)
                self._looked = (time.monotonic(), shown)
        return json_answer(200, shown)

    async def get_events(self, request: Request) -> Response:
        self._access.check_reader(request.headers)
        worker = self._worker(request)
        seconds = _seconds(request, "wait", MAX_STREAM_SECONDS, None)
        self._check_place()
        return _EventStream(self._stream(request.headers.get("Last-Event-ID"), worker, seconds), self)

    async def get_health(self, request: Request) -> Response:
        self._access.check_host(request.headers)
        return json_answer(
            503 if self._news.is_closed else 200, {"status": "stopping" if self._news.is_closed else "ok"}
        )

    # --- finding

    async def _find(self, request: Request) -> lookup.Found:
        """The task that the path names, at the worker that the query names or the only one that has it."""
        task_id = str(request.path_params["task_id"])
        worker = self._worker(request)
        if TASK_FILE_NAME.fullmatch(f"{task_id}.json") is None:
            raise _unknown()
        workers = [worker] if worker is not None else self._workers()
        found = await asyncio.to_thread(lookup.find_all, self._folders, workers, task_id)
        if not found:
            self._check_tasks()
            raise _unknown()
        if len(found) > 1:
            names = ", ".join(one.worker for one in found)
            raise Refusal(409, "several_workers", f"{names} have a task of this id; say which: ?worker=...")
        return found[0]

    async def _until_ended(self, request: Request, found: lookup.Found, end: float) -> lookup.Found:
        woken = self._news.expect(found.task_id)
        gone = asyncio.create_task(_gone(request.receive, woken))
        try:
            while True:
                woken.clear()
                now = await asyncio.to_thread(lookup.find, self._folders, found.worker, found.task_id)
                if now is None:
                    raise _unknown()
                rest = end - time.monotonic()
                if now.has_ended or rest <= 0 or self._news.is_closed or gone.done():
                    return now
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rest):
                        await woken.wait()
        finally:
            gone.cancel()
            self._news.forget(found.task_id, woken)

    def _worker(self, request: Request) -> str | None:
        worker = request.query_params.get("worker")
        if worker is None:
            return None
        if re.fullmatch(WORKER_PATTERN, worker) is None:
            raise Refusal(422, "invalid_field", "worker: use letters, digits, dot, dash, underscore")
        if worker not in self._workers():
            raise Refusal(404, "unknown_worker", "this worker has no inbox here, or is not in WEBHOOK_WORKERS")
        return worker

    def _workers(self) -> list[str]:
        return workers_of(self._folders, self._config.webhook_workers)

    def _check_tasks(self) -> None:
        """Raise WorkerTrouble when there is nothing to look into: then no answer would be true."""
        try:
            os.stat(self._folders.tasks)
        except OSError as error:
            raise WorkerTrouble(f"look into {self._folders.tasks}", error) from error

    def _look(self) -> dict[str, Any]:
        self._check_tasks()
        whole = self._lookout.look().as_json()
        allowed = set(self._workers())
        workers = [{name: one[name] for name in _SHOWN} for one in whole["workers"] if one["worker"] in allowed]
        return {"taken_at": whole["taken_at"], "workers": workers}

    # --- waiting

    def _check_place(self) -> None:
        if self.waiting >= self._most_waiting:
            text = "too many long polls and streams are open; try again in a moment"
            raise Refusal(503, "too_many_waiting", text, {"Retry-After": "5"})

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        self._check_place()
        with self.counted():
            yield

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def _stream(self, last_id: str | None, worker: str | None, seconds: float | None) -> AsyncIterator[str]:
        """The text of a stream, in pieces that are whole events."""
        news = self._news
        number, has_missed = self._resume(last_id)
        end = None if seconds is None else time.monotonic() + seconds
        yield f"retry: {_RETRY_MILLISECONDS}\n\n"
        while True:
            stories, is_gap = news.since(number)
            if has_missed or is_gap:
                before = stories[0].number - 1 if stories else news.last
                yield f"id: {news.run_id}-{before}\nevent: events.missed\ndata: {{}}\n\n"
                has_missed = False
            number = news.last
            told = "".join(_event(news.run_id, one) for one in stories if worker in (None, one.worker))
            if told:
                yield told
            rest = BEAT_SECONDS if end is None else min(BEAT_SECONDS, end - time.monotonic())
            if rest <= 0 or news.is_closed:
                return
            if not await news.more_than(number, rest) and not news.is_closed:
                yield ": beat\n\n"

    def _resume(self, last_id: str | None) -> tuple[int, bool]:
        """From which number on to tell, and whether what came before is not known any more."""
        if not last_id:
            return self._news.last, False
        given = _EVENT_ID.fullmatch(last_id)
        if given is None or given[1] != self._news.run_id or int(given[2]) > self._news.last:
            return self._news.last, True  # of an endpoint that is no more
        return int(given[2]), False


class _EventStream(Response):
    """Sends a stream piece by piece until it ends or the caller leaves."""

    def __init__(self, pieces: AsyncIterator[str], reading: ReadingRoutes) -> None:
        self._pieces = pieces
        self._reading = reading
        self.background = None
        self.status_code = 200
        self.init_headers({"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"})

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """A stream has no length."""
        self.raw_headers = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_gone(receive, asyncio.Event()))
        try:
            with self._reading.counted():
                await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not sending.done():
                sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def json_answer(status: int, value: Any, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(strict_json.dumps(value), status, dict(headers or {}), "application/json")


async def _gone(receive: Receive, woken: asyncio.Event) -> None:
    """Returns, and sets the event, when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    woken.set()


def _event(run_id: str, story: Story) -> str:
    return f"id: {run_id}-{story.number}\nevent: {story.kind}\ndata: {story.data}\n\n"


def _seconds(request: Request, name: str, most: float, default: Any) -> Any:
    """A number of seconds in the query."""
    given = request.query_params.get(name)
    if given is None:
        return default
    if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", given, re.ASCII) is None or float(given) > most:
        raise Refusal(422, "invalid_field", f"{name} must be a number of seconds from 0 to {most:g}")
    return float(given)


def _unknown() -> Refusal:
    return Refusal(404, "unknown_task", "no task of this id is known here")
