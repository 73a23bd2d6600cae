"""The Python client for asyncio: the methods of `watcher.client.Client`, awaited.

File calls run on the loop's own threads, so that a slow disk never blocks the loop; pauses are asyncio's. A wait that
is cancelled stops waiting and leaves the task alone; to end the task, cancel it by its reference.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Unpack

from watcher.client import Client, TaskFields, TaskRef, TaskResult, awaited_of, read_result
from watcher.store import results as outcomes

if TYPE_CHECKING:
    from watcher.settings.folders import Folders


class AsyncClient:
    """See Client. Make it anywhere; await its methods on any loop."""

    def __init__(self, root: str | os.PathLike[str] | None = None, *, folders: Folders | None = None) -> None:
        self._client = Client(root, folders=folders)

    @property
    def folders(self) -> Folders:
        return self._client.folders

    async def submit(self, worker: str, description: str, **fields: Unpack[TaskFields]) -> TaskRef:
        """Put one task in, durably; returns which it is."""
        return await asyncio.to_thread(self._client.submit, worker, description, **fields)

    async def submit_fields(self, worker: str, fields: Mapping[str, Any]) -> TaskRef:
        """The same for the object that a task file holds."""
        return await asyncio.to_thread(self._client.submit_fields, worker, fields)

    async def submit_many(self, worker: str, many: Iterable[Mapping[str, Any]]) -> list[TaskRef]:
        """Several at once."""
        return await asyncio.to_thread(self._client.submit_many, worker, list(many))

    async def wait(self, ref: TaskRef | tuple[str, str], seconds: float | None = None) -> TaskResult:
        """Wait until this task has ended. Raises TimeoutError after `seconds`."""
        async for result in self.as_completed([ref], seconds=seconds):
            return result
        raise AssertionError("one task gives one result or a TimeoutError")

    async def as_completed(
        self, refs: Iterable[TaskRef | tuple[str, str]], *, seconds: float | None = None
    ) -> AsyncIterator[TaskResult]:
        """The results of these tasks, in the order in which they end. Raises TimeoutError after `seconds`."""
        awaited = await asyncio.to_thread(awaited_of, self.folders, list(refs))
        pace = outcomes.Pace(seconds)
        while True:
            began = time.monotonic()
            for outcome in await asyncio.to_thread(_look, awaited):
                pace.something_ended()
                yield await asyncio.to_thread(read_result, outcome)
            if not any(one.open for one in awaited):
                return
            await asyncio.sleep(pace.rest(began, awaited))

    async def map(
        self, worker: str, descriptions: Iterable[str], *, seconds: float | None = None, **fields: Unpack[TaskFields]
    ) -> list[TaskResult]:
        """Submit a task for each description and wait for all; their results in the same order."""
        refs = await asyncio.to_thread(self._client.submit_for_each, worker, list(descriptions), fields)
        found = {result.ref: result async for result in self.as_completed(refs, seconds=seconds)}
        return [found[ref] for ref in refs]

    async def result(self, ref: TaskRef | tuple[str, str]) -> TaskResult | None:
        """How this task ended; None while it has not."""
        return await asyncio.to_thread(self._client.result, ref)

    async def results(
        self, worker: str | None = None, *, status: str | None = None, batch_id: str | None = None
    ) -> AsyncIterator[TaskResult]:
        """What has ended, newest first, of one worker or of all. Files are read as they are asked for."""
        found = self._client.results(worker, status=status, batch_id=batch_id)
        while (result := await asyncio.to_thread(next, found, None)) is not None:
            yield result


def _look(awaited: list[outcomes.Awaited]) -> list[outcomes.Ended]:
    return [outcome for one in awaited for outcome in one.look()]
