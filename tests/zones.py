"""Real drop zones for acceptance and crash tests: `python -m watcher zones` beside real workers of a Site."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import REPOSITORY, Process, Site, names
from tests.waiting import wait_for

#: Notes one line for each run, with the first line of what the prompt says; then answers with the whole prompt.
NOTING = 'prompt=$(cat); printf "%s\\n" "$prompt" | head -n 1 >> $SITE/notes; printf "%s" "$prompt"'
#: The same, but each run says that it began, and ends when the test makes the file `go`.
GATED = (
    'prompt=$(cat); line=$(printf "%s\\n" "$prompt" | head -n 1); echo "$line" >> $SITE/began\n'
    'while [ ! -e $SITE/go ]; do sleep 0.02; done; echo "$line" >> $SITE/notes; printf "%s" "$prompt"'
)
_BLOCK = re.compile(
    r"Queue: (\d+) pending \| (\d+) processing\nWorkers: (\d+)/(\d+) active\nCompleted: (\d+)\nErrors: (\d+)\n"
)
SECONDS = 180.0
_NUMBERS = itertools.count()


class Zones(Process):
    """One started `watcher zones`, what it printed and what it logged."""

    def __init__(self, site: Site, file: Path, arguments: tuple[str, ...], settings: dict[str, Any]) -> None:
        number = f"{file.stem}-{next(_NUMBERS)}"
        self._log = site.home / f"log-{number}"
        self._out = site.home / f"out-{number}"
        environment = site.environment({"LOG_LEVEL": "DEBUG", "PYTHONPATH": str(REPOSITORY), **settings})
        with self._log.open("w") as stderr, self._out.open("w") as stdout:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "watcher", "zones", str(file), "--status-interval", "0.05", *arguments],
                cwd=site.home, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            )  # fmt: skip
        self.pid = self.popen.pid

    def printed(self) -> str:
        return self._out.read_text()

    def blocks(self) -> list[tuple[int, ...]]:
        """Every status block: pending, processing, active, workers, completed, errors."""
        return [tuple(map(int, found)) for found in _BLOCK.findall(self.printed())]

    def last(self) -> tuple[int, ...]:
        found = self.blocks()
        return found[-1] if found else (0, 0, 0, 0, 0, 0)

    def block_that(self, what: str, **wanted: int) -> tuple[int, ...]:
        """Wait for a status block with these figures."""
        order = ("pending", "processing", "active", "workers", "completed", "errors")

        def look() -> tuple[int, ...] | None:
            last = self.last()
            is_it = self.blocks() and all(last[order.index(name)] == value for name, value in wanted.items())
            return last if is_it else None

        found = wait_for(f"a status block with {what} {wanted}, last {self.last()}", look, SECONDS)
        assert found is not None
        return found


def zones_file(site: Site, zones: str, name: str = "drops.yaml") -> Path:
    """Write a file of zones; `zones` is YAML whose folders start at the site's home."""
    path = site.home / name
    path.write_text(zones)
    return path


def start_zones(site: Site, zones: str, *arguments: str, file: str = "drops.yaml", **settings: Any) -> Zones:
    """Start `watcher zones` with this file; its folders are there when it returns."""
    process = Zones(site, zones_file(site, zones, file), arguments, settings)
    site.processes.append(process)
    if "--once" not in arguments:
        wait_for("the first status block", lambda: process.blocks() or process.popen.poll() is not None, SECONDS)
        assert process.popen.poll() is None, process.text()
    return process


def drop(folder: Path, name: str, text: str) -> Path:
    """Write a file as `cat > file` does."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def noted(site: Site, count: int, name: str = "notes") -> list[str]:
    """Wait until so many runs are noted; returns all."""
    wait_for(f"{count} runs", lambda: len(site.noted(name)) >= count, SECONDS)
    return site.noted(name)


def reason_of(aside: Path, name: str) -> dict[str, Any]:
    """Wait for a file that was put aside; returns what stands beside it."""
    wait_for(f"{name} aside", lambda: name in names(aside), SECONDS)
    value = json.loads((aside / f"{name}.reason.json").read_text())
    assert isinstance(value, dict)
    return value


def hidden(folder: Path) -> list[str]:
    """Names that begin with a dot, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) if folder.exists() else []
