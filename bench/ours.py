"""The worker under test: the real entry file, started as a user starts it, with its settings by environment.

`--tree FOLDER` measures the worker of another checkout with this bench, so that two versions can be compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench import inbox
from bench.errors import BenchError
from bench.processes import Started

#: Everything else is the worker's own default. Logs are on and go to a file; metrics take a port, so they are
#: asked for with `--set ENABLE_METRICS=true`.
SETTINGS = {
    "PROVIDER": "command",
    "AGENT_COMMAND": "cat",
    "MAX_CONCURRENT_TASKS": "3",
    "LOG_LEVEL": "INFO",
    "ENABLE_METRICS": "false",
}


@dataclass(frozen=True)
class Ours:
    """Our worker as a contender. `settings` win over SETTINGS."""

    tree: Path
    python: str
    settings: tuple[tuple[str, str], ...] = ()
    name: str = "ours"
    ends_by_itself: bool = False

    def present(self) -> bool:
        """Whether the tree has a worker at all."""
        return (self.tree / "worker_watcher.py").is_file()

    def with_settings(self, **settings: str) -> Ours:
        """The same worker with settings below those of the command line."""
        return Ours(self.tree, self.python, (*settings.items(), *self.settings))

    def environment(self, root: Path) -> dict[str, str]:
        return {**os.environ, **SETTINGS, **dict(self.settings), "WATCHER_ROOT": str(root)}

    def fill(self, folder: Path, count: int) -> None:
        inbox.fill(folder, count)

    def start(self, folder: Path) -> Started:
        """Start it on `folder`, which is also its working folder: no .env of a checkout is read."""
        folder.mkdir(parents=True, exist_ok=True)
        command = [self.python, str(self.tree / "worker_watcher.py"), inbox.WORKER]
        return Started(command, self.environment(folder), folder, folder / "worker.log")

    def outcomes(self, folder: Path) -> Iterable[Path]:
        return inbox.outcomes(inbox.results(folder))

    def check(self, folder: Path, count: int, exit_code: int) -> None:
        if exit_code != 0:
            log = (folder / "worker.log").read_text(errors="replace")[-2000:]
            raise BenchError(f"the worker ended with {exit_code} after SIGTERM:\n{log}")
        inbox.check_drained(folder, count)


def ours(tree: Path, python: str, settings: Iterable[tuple[str, str]]) -> Ours:
    """The worker of a tree. Raises BenchError when it has none."""
    found = Ours(tree.resolve(), python, tuple(settings))
    if not found.present():
        raise BenchError(f"no worker_watcher.py in {found.tree}; name a checkout with --tree")
    return found
