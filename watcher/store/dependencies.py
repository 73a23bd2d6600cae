"""Tell whether the results that a task depends on are there, at its own worker or any.

A dependency is `id` (own worker first, then any) or `worker/id`. It is met by a completed result and broken by any
other one. Folders are listed, not asked for single names: over a network file system a name that was missed once
stays missing for half a minute, while a listing is fresh.

The text of a dependency's result fills `{{id.stdout}}` in a description once, literally, and only for ids that the
task declares. One that is declared as `worker/id` is meant by `{{id.stdout}}` too, unless another one has that id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from watcher.errors import InvalidTask, WorkerTrouble, is_trouble, tells_nothing
from watcher.formats.result import parse_result
from watcher.store.results import stored_status
from watcher.system import no_links
from watcher.system.files import read_regular

_REFERENCE = re.compile(r"\{\{\s*((?:[A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*)\.stdout\s*\}\}")
#: A result holds more than the stdout that is wanted, and escapes make that longer; this much and four prompts fit.
_REST_OF_A_RESULT_BYTES = 4 << 20


@dataclass(slots=True)
class Needs:
    """A blocked task: what it still waits for, since when (monotonic seconds), when it came (wall seconds)."""

    name: str
    missing: dict[str, None]
    since: float
    arrived_at: float


@dataclass(slots=True)
class Results:
    """Finds results of any worker below one root."""

    root: Path
    worker: str
    _listings: dict[str, set[str]] = field(default_factory=dict)
    _workers: list[str] | None = None
    _statuses: dict[Path, tuple[tuple[int, int], str]] = field(default_factory=dict)
    #: Since the last `refresh` the machine was too short of something (descriptors) to list everything.
    is_blind: bool = False

    def refresh(self) -> None:
        """Forget the listings; the next question reads the folders again."""
        self._listings.clear()
        self._statuses.clear()
        self._workers = None
        self.is_blind = False

    def note(self, worker: str, name: str) -> None:
        """A result has appeared; known listings learn it without being read again."""
        if self._workers is not None and worker not in self._workers:
            self._workers = None
        if worker in self._listings:
            self._listings[worker].add(name)

    def workers(self) -> list[str]:
        """All workers that have a results folder, our own first."""
        if self._workers is None:
            names = sorted(n for n in self._names(self.root) if not n.startswith("."))
            self._workers = [self.worker, *(n for n in names if n != self.worker)]
        return self._workers

    def find(self, dependency: str) -> Path | None:
        """The result file that answers a dependency, or None."""
        owner, _, stem = dependency.rpartition("/")
        for worker in [owner] if owner else self.workers():
            if f"{stem}.json" in self._listing(worker):
                return self.root / worker / f"{stem}.json"
        return None

    def status(self, dependency: str) -> str | None:
        """The status of a dependency's result; None while there is none (or it cannot be read now)."""
        path = self.find(dependency)
        if path is None:
            return None
        try:
            found = no_links.look_at(path)
        except OSError:
            return None
        known = self._statuses.get(path)
        if known is not None and known[0] == (found.st_ino, found.st_mtime_ns):
            return known[1]
        status = stored_status(path)
        if status is not None:
            self._statuses[path] = ((found.st_ino, found.st_mtime_ns), status)
        return status

    def _listing(self, worker: str) -> set[str]:
        found = self._listings.get(worker)
        if found is None:
            found = self._listings[worker] = set(self._names(self.root / worker))
        return found

    def _names(self, folder: Path) -> list[str]:
        try:
            return no_links.names_in(folder)
        except OSError as error:
            self.is_blind = self.is_blind or tells_nothing(error)
            return []


def look(results: Results, dependencies: Iterable[str]) -> tuple[dict[str, None], str | None]:
    """Which dependencies are still missing, and a broken one (`id is failed`) if there is any."""
    missing: dict[str, None] = {}
    for dependency in dependencies:
        status = results.status(dependency)
        if status is None:
            missing[dependency] = None
        elif status != "completed":
            return missing, f"{dependency} is {status}"
    return missing, None


def sources(description: str, dependencies: Iterable[str], results: Results) -> dict[str, Path]:
    """Where the text of each dependency is that a description may name: what `fill` needs, without reading any."""
    if "{{" not in description:
        return {}
    found = ((name, results.find(dependency)) for name, dependency in _by_name(dependencies).items())
    return {name: path for name, path in found if path is not None}


def fill(description: str, found: Mapping[str, Path], max_bytes: int) -> str:
    """Put each declared dependency's stdout where the description names it. Text that was filled in is not read again.

    How large the whole would be is known before it is made, and no more than that is read. Raises InvalidTask
    (`prompt_too_large`; `dependency_unreadable` when a result that is named cannot be read), and WorkerTrouble when
    the machine is short of something.
    """
    size = len(description.encode("utf-8", "replace"))
    texts: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for reference in _REFERENCE.finditer(description) if found else ():
        name = reference[1]
        if name not in found:
            continue
        if name not in texts:
            texts[name] = _stdout_of(name, found[name], 4 * max_bytes + _REST_OF_A_RESULT_BYTES)
            sizes[name] = len(texts[name].encode("utf-8", "replace"))
        size += sizes[name] - (reference.end() - reference.start())
        if size > max_bytes + len(description):  # what is still to be taken out cannot make up for it
            break
    if texts and size > max_bytes:
        text = f"with the texts of its dependencies the prompt has more than {max_bytes} bytes"
        raise InvalidTask("prompt_too_large", f"{text}; MAX_PROMPT_BYTES allows no more: name fewer or shorter ones")
    if not texts:
        return description
    return _REFERENCE.sub(lambda reference: texts.get(reference[1], reference[0]), description)


def unfilled(description: str, dependencies: Iterable[str]) -> list[str]:
    """The names in `{{name.stdout}}` that mean no declared dependency, or more than one: `fill` leaves them."""
    if "{{" not in description:
        return []
    declared = _by_name(dependencies)
    return [name for name in dict.fromkeys(_REFERENCE.findall(description)) if name not in declared]


def _by_name(dependencies: Iterable[str]) -> dict[str, str]:
    """What a description may call each dependency: as it is declared, or by its id where only one is meant."""
    declared = set(dependencies)
    stems = Counter(dependency.rpartition("/")[2] for dependency in declared)
    names = {dependency.rpartition("/")[2]: dependency for dependency in declared}
    return {stem: name for stem, name in names.items() if stems[stem] == 1} | {name: name for name in declared}


def _stdout_of(dependency: str, path: Path, limit: int) -> str:
    try:
        raw = read_regular(path, limit + 1)
        if len(raw) > limit:
            raise InvalidTask("prompt_too_large", f"the result of {dependency} has more than {limit} bytes")
        return str(parse_result(raw).get("stdout", ""))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and is_trouble(error):
            raise WorkerTrouble(f"read the result of {dependency}", error) from error
        raise InvalidTask("dependency_unreadable", f"the result of {dependency} cannot be read: {error}") from error
