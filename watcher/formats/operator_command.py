"""The command: what anyone may drop into `control/<worker>/<any name>.json` to steer a worker.

`pause` is also a state: while `control/<worker>/paused.json` is there, that worker starts nothing. Everything else is
consumed when it is done. Unknown fields are kept in the file and ignored.

`parse_command` raises InvalidCommand with what is wrong.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from watcher.errors import WatcherError
from watcher.formats import strict_json, task
from watcher.formats.fields import Choice, FieldError, Kind, Named, Object, Optional, Text, fields_of
from watcher.formats.record import schema_of
from watcher.formats.task import ID_PATTERN, Priority

Word = Literal["pause", "resume", "drain", "cancel", "hold", "release", "prio", "edit", "beat"]
WORDS: tuple[Word, ...] = ("pause", "resume", "drain", "cancel", "hold", "release", "prio", "edit", "beat")
#: Commands about one task; they need `task_id`.
ABOUT_TASKS: frozenset[Word] = frozenset({"cancel", "hold", "release", "prio", "edit"})
#: What may be touched as an empty file without an ending: `touch control/marie/pause`.
PLAIN_WORDS: tuple[Word, ...] = ("pause", "resume", "drain", "beat")
#: The state that a pause is.
#: No edit may change whose task it is.
_FIXED = frozenset({"task_id", "worker"})


class InvalidCommand(WatcherError):
    """A file in `control/<worker>/` is no command. Reaction: put it aside, say why."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `changes` are fields of the task and their new values, None takes a field away. With `instance` or
    `incarnation` it is for that process alone."""

    word: Annotated[Word, Choice(WORDS), Named("command")]
    task_id: Annotated[str, Optional(Text(128, 1, ID_PATTERN, "the task's id"))] = ""
    priority: Annotated[int | None, Optional(Priority())] = None
    changes: Annotated[dict[str, Any] | None, Optional(Object())] = None
    reason: Annotated[str | None, Optional(Text(2048))] = None
    by: Annotated[str | None, Optional(Text(256))] = None
    instance: Annotated[str | None, Optional(Text(64, 1))] = None
    incarnation: Annotated[str | None, Optional(Text(32, 32, "[0-9a-f]*"))] = None

    def why(self) -> str:
        """For results, heartbeats and logs: who asked and why, as far as that was told."""
        who = f"by {self.by}" if self.by else "by command"
        return f"{who}: {self.reason}" if self.reason else who


FIELDS: dict[str, Kind] = fields_of(Command)


def parse_command(raw: bytes) -> Command | None:
    """Read a file of a control folder; None when it is an object without the word `command`: a state."""
    try:
        value = strict_json.loads(raw)
    except strict_json.NotStrictJson as error:
        raise InvalidCommand(str(error)) from None
    if not isinstance(value, dict):
        raise InvalidCommand('a command is one JSON object: {"command": "pause"}')
    return command_of(value) if isinstance(value.get("command"), str) else None


def command_of(value: dict[str, Any]) -> Command:
    """Check an object that should be a command."""
    checked: dict[str, Any] = {}
    for name, kind in FIELDS.items():
        try:
            checked[name] = kind.check(value.get(name))
        except FieldError as error:
            raise InvalidCommand(f"{name} {error}") from None
    word = cast(Word, checked.pop("command"))
    if word in ABOUT_TASKS and checked["task_id"] is None:
        raise InvalidCommand(f"{word} needs task_id")
    if word == "prio" and checked["priority"] is None:
        raise InvalidCommand("prio needs priority")
    if word in ("pause", "resume") and (checked["instance"] or checked["incarnation"]):
        raise InvalidCommand(f"{word} is for all processes of a worker: leave instance and incarnation out")
    changes = checked["changes"]
    if word == "edit" and (not changes or _FIXED & changes.keys()):
        raise InvalidCommand("edit needs changes: fields of the task and their new values, not task_id and not worker")
    checked["task_id"] = checked["task_id"] or ""
    return Command(word, **checked)


def schema() -> dict[str, Any]:
    """The JSON Schema of a command file."""
    out = schema_of(Command, "command", "What control/<worker>/<any name>.json holds.")
    out["properties"]["changes"] = {"anyOf": [{"type": "object", "properties": _changes()}, {"type": "null"}]}
    needs = {"cancel hold release": [], "prio": ["priority"], "edit": ["changes"]}
    out["allOf"] = [
        {
            "if": {"properties": {"command": {"enum": words.split()}}},
            "then": {
                "required": ["task_id", *more],
                "properties": {n: {"not": {"type": "null"}} for n in ["task_id", *more]},
            },
        }
        for words, more in needs.items()
    ]
    return out


def _changes() -> dict[str, Any]:
    fields = {name: Optional(kind) for name, kind in task.FIELDS.items() if name not in _FIXED}
    return {name: kind.schema() for name, kind in fields.items()}
