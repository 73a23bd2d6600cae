"""The task: what anyone may drop into `tasks/<worker>/<id>.json`.

Only `description` is required: the id is the file's stem and the worker is the folder. Unknown fields are kept and
reported, never dropped. A task id is never used as a path that came from inside a file: it is the stem of a name that
already passed `TASK_FILE_NAME`.

`parse_task` raises InvalidTask with a stable reason: `invalid_json`, `invalid_field`, `missing_description`,
`id_mismatch`, `worker_mismatch`.
"""

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from watcher.errors import InvalidTask
from watcher.formats import strict_json
from watcher.formats.fields import (
    Choice,
    FieldError,
    Kind,
    ListOf,
    Moment,
    Number,
    Object,
    Optional,
    Text,
    fields_of,
    record_schema,
)

#: What the name of a task file looks like; everything else in an inbox is not a task.
TASK_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.json")
ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
WORKER_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

#: Names that editors, writers and network file systems leave for a moment; not worth a word.
_FLEETING = ("#",)
_FLEETING_ENDS = ("~", ".swp", ".swx", ".tmp", ".part", ".crdownload", "4913")


def why_no_task_name(name: str) -> str | None:
    """Why no worker takes a file of this name, and what to do; None for a task's name and for what is there only for a
    moment. A name in `.json` that is no task's is refused when a worker finds it, all others lie there for ever."""
    if TASK_FILE_NAME.fullmatch(name) or name.startswith(_FLEETING) or name.endswith(_FLEETING_ENDS):
        return None
    if name.endswith(".json") and not name.startswith("."):
        return "a task file is named like its id: letters, digits, dot, dash, underscore, at most 128, then .json"
    if name.startswith("."):
        is_meant = name.endswith(".json") and TASK_FILE_NAME.fullmatch(name[1:]) is not None
        return f"hidden from workers by its dot; rename it to {name[1:]}" if is_meant else None
    stem = name[:-5] if name.lower().endswith(".json") else name.replace(".json.", ".").rpartition(".")[0] or name
    better = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip(".-_")[:128]
    hint = f"; rename it to {better}.json" if better else ""
    return f"not a task: its name does not end in .json{hint}"


#: Named priorities as numbers; a higher number is taken earlier, and any whole number in range may be used.
PRIORITIES = {"critical": 100, "high": 50, "normal": 0, "low": -50}
PRIORITY_RANGE = (-1000, 1000)


class Priority:
    """A named priority or a whole number; it becomes the number."""

    def check(self, value: object) -> int:
        if isinstance(value, str) and value in PRIORITIES:
            return PRIORITIES[value]
        try:
            number: int = Number(*PRIORITY_RANGE, integer=True).check(value)
        except FieldError:
            raise FieldError(f"must be one of {', '.join(PRIORITIES)} or a whole number from -1000 to 1000") from None
        return number

    def schema(self) -> dict[str, Any]:
        number = Number(*PRIORITY_RANGE, integer=True)
        return {"anyOf": [Choice(tuple(PRIORITIES)).schema(), number.schema()]}


MAX_TIMEOUT_SECONDS = 31 * 24 * 3600.0

#: What a task that runs again carries along: one object for each earlier run, the oldest first.
PAST = "x_history"


@dataclass(slots=True)
class Task:
    """One task as it runs. `submitted` is the whole object as it was written, unknown fields included."""

    task_id: Annotated[
        str, Text(128, 1, ID_PATTERN, "letters, digits, dot, dash, underscore; the file's name without .json")
    ]
    worker: Annotated[str, Text(64, 1, WORKER_PATTERN, "the folder's name")]
    description: Annotated[str, Text(1 << 20, 1)]
    sha256: str
    timeout: Annotated[float | None, Number(0.1, MAX_TIMEOUT_SECONDS)] = None
    priority: Annotated[int, Priority()] = 0
    dependencies: Annotated[
        tuple[str, ...], ListOf(Text(193, 1, f"(?:{WORKER_PATTERN}/)?{ID_PATTERN}", "an id, or worker/id"), 20_000)
    ] = ()
    metadata: Annotated[dict[str, Any] | None, Object()] = None
    agent_id: Annotated[str | None, Text(128, 1)] = None
    provider: Annotated[str | None, Text(64, 1, r"[A-Za-z0-9][A-Za-z0-9._-]*")] = None
    model: Annotated[
        str | None,
        Text(128, 1, r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]*", "no leading dash: it is an argument"),
    ] = None
    cwd: Annotated[str | None, Text(4096, 1, r"/.*", "an absolute path")] = None
    not_before: Annotated[float | None, Moment()] = None
    batch_id: Annotated[str | None, Text(128, 1)] = None
    max_retries: Annotated[int | None, Number(0, 100, integer=True)] = None
    submitted: dict[str, Any] = field(default_factory=dict)

    def unknown_fields(self) -> list[str]:
        """Names that this version does not know; they stay in the file and in a dead letter."""
        return [name for name in self.submitted if name not in FIELDS and not name.startswith(("dlq_", "x_"))]


FIELDS: dict[str, Kind] = fields_of(Task)
_NULLABLE = frozenset(FIELDS) - {"description"}


def unknown_field(name: str) -> str:
    """What to say of a field that this version does not know: it is kept, and may be a slip."""
    import difflib  # after all else: every submit imports this module

    near = difflib.get_close_matches(name, FIELDS, n=1)
    return f'unknown field "{name}"' + (f" (did you mean {near[0]}?)" if near else ", kept")


def refuse_to_unset(submitted: dict[str, Any], changes: dict[str, Any]) -> None:
    """Raise InvalidTask when `changes` takes away (None) what is no field of a task and not in this one either."""
    for name in (name for name, value in changes.items() if value is None and name not in (*FIELDS, *submitted)):
        import difflib  # after all else: every submit imports this module

        near = difflib.get_close_matches(name, [*FIELDS, *submitted], n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(FIELDS)}"
        raise InvalidTask(
            "invalid_field", f"{name!r} is no field of a task, and this one has none of that name; {hint}"
        )


def parse_task(raw: bytes, stem: str, worker: str) -> Task:
    """Read the bytes of `tasks/<worker>/<stem>.json`. Raises InvalidTask."""
    try:
        value = strict_json.loads(raw, is_bounded=True)
    except strict_json.NotStrictJson as error:
        raise InvalidTask("invalid_json", str(error)) from None
    if not isinstance(value, dict):
        raise InvalidTask("invalid_json", 'the file must hold one JSON object: { "description": "..." }')
    task = task_from_fields(value, stem, worker)
    task.sha256 = hashlib.sha256(raw).hexdigest()
    return task


def task_from_fields(value: dict[str, Any], stem: str, worker: str) -> Task:
    """Check an object that should be a task (its `sha256` is left empty). Raises InvalidTask."""
    checked: dict[str, Any] = {}
    for name, kind in FIELDS.items():
        if name not in value:
            continue
        given = value[name]
        if given is None and name in _NULLABLE:
            continue
        try:
            checked[name] = kind.check(given)
        except FieldError as error:
            raise InvalidTask("invalid_field", f"{name} {error}") from None
    if not checked.get("description", "").strip():
        raise InvalidTask("missing_description", "a task needs a description: what the agent shall do")
    if checked.setdefault("task_id", stem) != stem:
        raise InvalidTask(
            "id_mismatch",
            f"task_id {checked['task_id']!r} is not the file's name {stem!r}; rename the file or drop the field",
        )
    if checked.setdefault("worker", worker) != worker:
        raise InvalidTask(
            "worker_mismatch",
            f"the task is for {checked['worker']!r} and lies in the folder of {worker!r}; move it or drop the field",
        )
    return Task(sha256="", submitted=value, **checked)


#: What a refused file keeps, if it can be read.
MARKS = ("batch_id", "agent_id", "metadata")


def marks_of(raw: bytes) -> dict[str, Any]:
    """What a file that is no task says of whose it is: those of MARKS that a task may have so.

    Whoever waits for a batch must find its refused members in it. Reads any JSON, not only the strict kind: the file
    may have been refused for that very reason.
    """
    if strict_json.has_too_many_values(raw):  # its reader would be busy for seconds
        return {}
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError, MemoryError):
        return {}
    marks: dict[str, Any] = {}
    for name in MARKS if isinstance(value, dict) else ():
        with contextlib.suppress(FieldError, ValueError, TypeError, RecursionError):
            given = strict_json.loads(strict_json.dumps(value.get(name), errors="strict"))
            FIELDS[name].check(given)
            marks[name] = given
    return marks


def schema() -> dict[str, Any]:
    """The JSON Schema of a task file."""
    fields: dict[str, Kind] = {n: Optional(k) if n in _NULLABLE else k for n, k in FIELDS.items()}
    return record_schema("task", "What tasks/<worker>/<id>.json holds.", fields, ("description",))
