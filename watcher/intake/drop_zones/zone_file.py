"""Check `drops.yaml`, which names the drop zones and how much is processed at once, before anything is touched.

All problems are told together, each with its line. Relative folders start at the folder of the file itself. The rules
for what goes into a task (worker, provider, model, priority, ...) are those of the task format. Raises ZoneFileError.
It makes no folder and reads no dropped file.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from watcher.formats import strict_json
from watcher.formats.fields import Choice, FieldError, Flag, Kind, Number, Text
from watcher.formats.task import FIELDS, MAX_TIMEOUT_SECONDS
from watcher.intake.drop_zones.prompt_template import Template
from watcher.intake.drop_zones.yaml_lines import Marked, ZoneFileError, read_marked

MAX_FILE_BYTES = 1 << 20
#: Names of our own folders inside a zone's folder; what begins with a dot is never taken as a drop.
PROCESSING, ASIDE, DONE = ".processing", ".aside", ".done"
EVENTS = ("created", "modified", "moved")

_TASK_KEYS = ("provider", "model", "priority", "agent_id", "timeout", "cwd", "max_retries", "metadata")
_ZONE_KEYS = (
    "name", "dirs", "patterns", "events", "worker", "prompt", *_TASK_KEYS,
    "on_done", "move_to", "recursive", "settle", "max_bytes",
)  # fmt: skip
_PROCESSING: dict[str, Kind] = {
    "max_workers": Number(1, 1000, integer=True),
    "queue_size": Number(1, 100_000, integer=True),
    "timeout": Number(0.1, MAX_TIMEOUT_SECONDS),
}
_NAME = Text(64, 1, r"[^\x00-\x1f/]*[A-Za-z0-9][^\x00-\x1f/]*", "with a letter or digit, no slash")
_KINDS: dict[str, Kind] = {
    "name": _NAME,
    "worker": FIELDS["worker"],
    "prompt": Text(1 << 19, 1),
    "on_done": Choice(("keep", "move", "delete")),
    "move_to": Text(4096, 1),
    "recursive": Flag(),
    "settle": Number(0, 600),
    "max_bytes": Number(1, 1 << 50, integer=True),
    **{name: FIELDS[name] for name in _TASK_KEYS},
}


@dataclass(frozen=True, slots=True)
class Processing:
    """How much at once. `timeout` is the seconds that a file's task may take, when its zone says nothing else."""

    max_workers: int = 3
    queue_size: int = 100
    timeout: float = 300.0


@dataclass(frozen=True, slots=True)
class Zone:
    """One drop zone. `fields` go into each task as they are. `settle` is the seconds that a closed file must rest."""

    name: str
    dirs: tuple[Path, ...]
    worker: str
    prompt: Template
    patterns: tuple[str, ...] = ("*",)
    events: frozenset[str] = frozenset(("created", "modified"))
    fields: dict[str, Any] = field(default_factory=dict)
    on_done: str = "keep"
    move_to: Path | None = None
    recursive: bool = True
    settle: float = 0.1
    max_bytes: int | None = None
    priority: int = 0

    @property
    def slug(self) -> str:
        """The name as it stands in task ids and folders."""
        return slug(self.name, 40)

    @property
    def takes_hold(self) -> bool:
        """Whether a file belongs to the zone from its claim on, and leaves its place then."""
        return self.on_done != "keep"


@dataclass(frozen=True, slots=True)
class ZoneFile:
    """The whole file, valid."""

    path: Path
    zones: tuple[Zone, ...]
    processing: Processing


def slug(name: str, limit: int) -> str:
    """Letters, digits, dot, dash and underscore of a name, for a task id; never empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:limit].strip("-._") or "x"


def load_zone_file(path: Path, reserved: Iterable[Path] = ()) -> ZoneFile:
    """Read and check `drops.yaml`. `reserved` are folders of the suite, which no zone may lie in or contain."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ZoneFileError(f"{path}: cannot read the drop zones: {error.strerror or error}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ZoneFileError(f"{path}: more than {MAX_FILE_BYTES} bytes; this is not a file of drop zones")
    checker = _Checker(path, [Path(os.path.realpath(one)) for one in reserved])
    found = checker.file(read_marked(raw, str(path)))
    if checker.problems:
        raise ZoneFileError("\n".join(text for _, text in sorted(checker.problems, key=lambda one: one[0])))
    return found


class _Checker:
    """Collects what is wrong, so that one look at the messages mends the whole file."""

    def __init__(self, path: Path, reserved: list[Path]) -> None:
        self._path = path
        self._reserved = reserved
        self.problems: list[tuple[int, str]] = []

    def file(self, top: Marked) -> ZoneFile:
        members = self._mapping(top, ("zones", "processing"), "the file")
        processing = self._processing(members.get("processing"))
        zones: list[tuple[Zone, Marked]] = []
        listed = members.get("zones")
        if listed is None or not isinstance(listed.value, list) or not listed.value:
            self._say((listed or top).line, "zones: must be a list of at least one zone, each `- name: ...`")
        else:
            zones = [(zone, one) for n, one in enumerate(listed.value) if (zone := self._zone(one, n))]
        self._together(zones)
        return ZoneFile(self._path, tuple(zone for zone, _ in zones), processing)

    def _processing(self, given: Marked | None) -> Processing:
        if given is None or given.value is None:
            return Processing()
        members = self._mapping(given, tuple(_PROCESSING), "processing")
        kinds = [(name, value, _PROCESSING[name]) for name, value in members.items() if name in _PROCESSING]
        checked = {name: self._check(value, kind, f"processing.{name}") for name, value, kind in kinds}
        return Processing(**{name: value for name, value in checked.items() if value is not None})

    def _zone(self, given: Marked, number: int) -> Zone | None:
        before = len(self.problems)
        name = given.value.get("name") if isinstance(given.value, dict) else None
        where = f"zones[{number}]"
        where = f"zone {name.value!r}" if name is not None and isinstance(name.value, str) else where
        members = self._mapping(given, _ZONE_KEYS, where)
        for needed in ("name", "dirs", "worker", "prompt"):
            if needed not in members:
                self._say(given.line, f"{where}: {needed} is missing")
        plain = {
            key: self._check(value, _KINDS[key], f"{where}: {key}") for key, value in members.items() if key in _KINDS
        }
        left_out = {*_TASK_KEYS, "prompt", "move_to"} - {"priority"}
        values = {key: value for key, value in plain.items() if key not in left_out}
        for key, kind in (("dirs", self._dir), ("patterns", self._pattern), ("events", self._event)):
            if key in members:
                values[key] = self._several(members[key], f"{where}: {key}", kind)
        if "prompt" in members:
            values["prompt"] = self._prompt(members["prompt"], where)
        if "events" in values:
            values["events"] = frozenset(values["events"])
        values["fields"] = {key: members[key].plain() for key in _TASK_KEYS if key in members}
        for key in values["fields"]:
            self._writable(members[key], f"{where}: {key}")
        self._no_drop(members.get("metadata"), where)
        values["move_to"] = self._move_to(members, where)
        return Zone(**values) if len(self.problems) == before else None

    def _move_to(self, members: dict[str, Marked], where: str) -> Path | None:
        given = members.get("move_to")
        if given is None or not isinstance(given.value, str):
            return None
        on_done = members.get("on_done")
        if on_done is None or on_done.value != "move":
            self._say(given.line, f"{where}: move_to needs on_done: move")
        path = Path(os.path.expanduser(given.value))
        return Path(os.path.realpath(path)) if path.is_absolute() else path

    def _together(self, zones: list[tuple[Zone, Marked]]) -> None:
        """What one zone must not be beside another, or beside the suite's own folders."""
        names: dict[str, int] = {}
        for zone, given in zones:
            key, line = zone.slug.casefold(), _line(given, "name")
            if key in names:  # an alias stands in the line of what it repeats
                text = f"its name is that of the zone in line {names[key]}, or looks the same in task ids"
                self._say(line, f"zone {zone.name!r}: {text}")
            names.setdefault(key, line)
            for folder in zone.dirs:
                self._not_reserved(zone, folder, _line(given, "dirs"))
                self._not_found_again(zone, folder, _line(given, "move_to"))
        self._no_circle(zones)

    def _no_circle(self, zones: list[tuple[Zone, Marked]]) -> None:
        """Zones may hand their finished files on, but not round and round: each turn would cost money."""
        next_of = {
            zone.name: {other.name for other, _ in zones if other is not zone and _hands_to(zone, other)}
            for zone, _ in zones
        }
        for zone, given in zones:
            reached, ahead = set[str](), set(next_of[zone.name])
            while ahead:
                name = ahead.pop()
                reached.add(name)
                ahead |= next_of[name] - reached
            if zone.name in reached:
                line = _line(given, "move_to")
                self._say(line, f"zone {zone.name!r}: move_to: its files come back to it through other zones, for ever")

    def _not_reserved(self, zone: Zone, folder: Path, line: int) -> None:
        real = Path(os.path.realpath(folder))
        for ours in self._reserved:
            if real.is_relative_to(ours) or (zone.recursive and ours.is_relative_to(real)):
                text = f"must not lie in or above {ours}, a folder of the suite; choose another"
                self._say(line, f"zone {zone.name!r}: dirs: {folder} {text}")

    def _not_found_again(self, zone: Zone, folder: Path, line: int) -> None:
        """A finished file must not become a drop of its own zone again, for ever."""
        target = done_folder(zone, folder)
        if zone.on_done == "move" and any(_covers(zone, base, target) for base in zone.dirs):
            text = f"move_to: {target} lies in the zone itself; choose another folder or a hidden one like {DONE}"
            self._say(line, f"zone {zone.name!r}: {text}")

    def _mapping(self, given: Marked, known: tuple[str, ...], where: str) -> dict[str, Marked]:
        if not isinstance(given.value, dict):
            self._say(given.line, f"{where} must be a mapping of {', '.join(known)}")
            return {}
        for name, value in given.value.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                self._say(value.line, f"{where}: unknown key {name!r}; {hint}")
        return dict(given.value)

    def _check(self, given: Marked, kind: Kind, where: str) -> Any:
        try:
            return kind.check(given.plain())
        except FieldError as error:
            self._say(given.line, f"{where} {error}")
            return None

    def _several(self, given: Marked, where: str, one: Callable[[Marked, str], Any]) -> tuple[Any, ...]:
        """A list, or one value alone."""
        listed = given.value if isinstance(given.value, list) else [given]
        if not listed:
            self._say(given.line, f"{where} must have at least one member")
        return tuple(one(member, where) for member in listed)

    def _dir(self, given: Marked, where: str) -> Path:
        text = self._check(given, Text(4096, 1, r"[^\x00]*"), where)
        # Links are resolved here, once: below a zone's folder none is followed.
        return Path(os.path.realpath(self._path.absolute().parent / os.path.expanduser(text or "")))

    def _pattern(self, given: Marked, where: str) -> Any:
        return self._check(given, Text(255, 1), where)

    def _event(self, given: Marked, where: str) -> Any:
        if given.value == "deleted":
            self._say(given.line, f"{where}: deleted: a file that is gone cannot be given to an agent; drop the word")
            return None
        return self._check(given, Choice(EVENTS), where)

    def _prompt(self, given: Marked, where: str) -> Template | None:
        if not isinstance(given.value, str):
            return None  # told already
        try:
            return Template.parse(given.value)
        except ValueError as error:
            self._say(given.line, f"{where}: prompt: {error}")
            return None

    def _no_drop(self, given: Marked | None, where: str) -> None:
        if given is not None and isinstance(given.value, dict) and "drop" in given.value:
            text = "metadata.drop tells which file the task was made of; choose another key"
            self._say(given.value["drop"].line, f"{where}: {text}")

    def _writable(self, given: Marked, where: str) -> None:
        try:
            strict_json.loads(strict_json.dumps(given.plain(), errors="strict"))
        except (TypeError, ValueError) as error:
            self._say(given.line, f"{where} cannot be written as JSON: {error}")

    def _say(self, line: int, text: str) -> None:
        self.problems.append((line, f"{self._path}:{line}: {text}"))


def _line(given: Marked, key: str) -> int:
    """Where this key's value stands, or the whole mapping when it has none."""
    return given.value[key].line if key in given.value else given.line


def _covers(zone: Zone, base: Path, folder: Path) -> bool:
    """Whether a file that lies in `folder` would be a drop of this zone."""
    if not folder.is_relative_to(base):
        return False
    below = folder.relative_to(base).parts
    return not below or (zone.recursive and not any(part.startswith(".") for part in below))


def _hands_to(zone: Zone, other: Zone) -> bool:
    targets = [done_folder(zone, folder) for folder in zone.dirs] if zone.on_done == "move" else []
    return any(_covers(other, base, target) for target in targets for base in other.dirs)


def done_folder(zone: Zone, folder: Path) -> Path:
    """Where files of this folder of the zone go when their task has completed, with `on_done: move`."""
    return Path(os.path.abspath(folder / (zone.move_to or DONE)))
