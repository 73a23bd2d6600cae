"""Give a tool a claim folder and locks in a worker's inbox for a moment, as a worker has, but no name.

So a tool may take tasks in hand while workers run, and when it is killed its locks are free and a worker puts back
what it had. Makes the worker's folders when they are not there; leave it by `with`.
Raises SettingError when the folders cannot be used.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from watcher.store.folders import WorkerFolders
from watcher.store.worker_locks import Incarnation

if TYPE_CHECKING:
    from watcher.settings.folders import Folders


class ToolClaimFolder:
    """`with ToolClaimFolder(folders, "marie", "edit") as places:` gives the folders; `purpose` is a note for people."""

    def __init__(self, folders: Folders, worker: str, purpose: str) -> None:
        self._incarnation = Incarnation(folders.tasks / worker, worker, None, visit=purpose)
        try:
            self._places = WorkerFolders(
                folders.tasks, folders.triggers, folders.results, folders.dlq, worker, self._incarnation.id, visit=True
            )
        except BaseException:
            self._incarnation.close()
            raise

    def __enter__(self) -> WorkerFolders:
        return self._places

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._places.leave()
        self._places.close()
        self._incarnation.close()
