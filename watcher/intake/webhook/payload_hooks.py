"""Make a task of a payload that another service designed, as a TOML file of hooks describes.

A template is filled once and literally: what comes from the payload is never looked at for more templates, and it
reaches only `description`, `agent_id`, `batch_id` and `metadata`. Worker, provider, model, folder and limits are the
file's alone, so no payload chooses where or as what something runs. Secrets stand in the environment or in a file of
their own, never in this one.

Raises SettingError at the start for a file that cannot be used, Unmapped for a payload that does not fit.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from watcher.errors import InvalidTask, SettingError, WatcherError
from watcher.formats.task import WORKER_PATTERN, task_from_fields
from watcher.settings.webhook import MIN_TOKEN_CHARS, read_secret

HOOK_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
#: Where senders put the identity of a delivery, in the order in which they are looked for.
DELIVERY_HEADERS = ("X-GitHub-Delivery", "Idempotency-Key", "Webhook-Id")

_PLACE = re.compile(r"\{\{\s*([^{}]*?)(\?)?\s*\}\}")
_PATH = re.compile(r"[\w-]+(?:\.[\w-]+)*")
_TEMPLATES = ("description", "agent_id", "batch_id")
_FIXED = ("priority", "timeout", "provider", "model", "cwd", "max_retries")
_OTHER = (
    "worker",
    "secret_env",
    "secret_file",
    "signature_header",
    "delivery_header",
    "id",
    "events",
    "when",
    "metadata",
)


class Unmapped(WatcherError):
    """A payload has not what its hook needs. Reaction: refuse it and say what is missing."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """`{{a.b.0}}`: a value of the payload; with `?` behind it, it may be missing."""

    path: tuple[str, ...]
    is_optional: bool

    def find(self, payload: object) -> Any:
        """The value, None when it is null or missing and may be. Raises Unmapped."""
        value = find(payload, self.path)
        if value is None and not self.is_optional:
            raise Unmapped(f"the payload has no {'.'.join(self.path)}; write a ? behind it where it may be missing")
        return value


Template = tuple[str | Placeholder, ...]


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook. `when` maps a path to the values it may have; `id_path` is where the payload names itself."""

    name: str
    worker: str
    secret: bytes | None = field(repr=False)
    description: Template
    texts: Mapping[str, Template] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    id_path: tuple[str, ...] | None = None
    signature_header: str = "X-Hub-Signature-256"
    delivery_headers: tuple[str, ...] = DELIVERY_HEADERS
    events: tuple[str, ...] = ()
    when: Mapping[tuple[str, ...], tuple[Any, ...]] = field(default_factory=dict)

    def ignores(self, payload: object, event: str | None) -> str | None:
        """Why this payload makes no task; None when it makes one. `event` is the header X-GitHub-Event."""
        if self.events and event not in self.events:
            return f"the event is none of {', '.join(self.events)}"
        for path, allowed in self.when.items():
            value = find(payload, path)
            if not any(type(value) is type(one) and value == one for one in allowed):
                return f"{'.'.join(path)} has none of the values that this hook is for"
        return None

    def task(self, payload: object) -> dict[str, Any]:
        """The fields of the task. Raises Unmapped when the payload lacks one."""
        fields: dict[str, Any] = {"description": fill(self.description, payload)}
        for name, template in self.texts.items():
            text = fill(template, payload)
            if text:
                fields[name] = text
        fields.update(self.fixed)
        if self.metadata:
            fields["metadata"] = {name: _value(template, payload) for name, template in self.metadata.items()}
        return fields

    def delivery(self, payload: object, headers: Mapping[str, str]) -> str | None:
        """What this delivery calls itself; None when it does not. Raises Unmapped without the id that it must have."""
        if self.id_path is not None:
            value = Placeholder(self.id_path, is_optional=False).find(payload)
            if isinstance(value, (dict, list, bool)) or value == "":
                raise Unmapped(f"{'.'.join(self.id_path)} in the payload must be a text or a number")
            return f"id:{value}"
        return next((f"delivery:{headers[name]}" for name in self.delivery_headers if headers.get(name)), None)


def find(payload: object, path: tuple[str, ...]) -> Any:
    """The value at a path; None when it is not there. A number is a place in a list."""
    value: Any = payload
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isascii() and step.isdigit() and len(step) < 9 and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def fill(template: Template, payload: object) -> str:
    """The text of a template. Objects and lists become compact JSON."""
    return "".join(part if isinstance(part, str) else _text(part.find(payload)) for part in template)


def parse_template(text: str) -> Template:
    """Take a template apart. Raises ValueError for braces that name no path."""
    parts: list[str | Placeholder] = []
    end = 0
    for found in _PLACE.finditer(text):
        if _PATH.fullmatch(found[1]) is None:
            raise ValueError(
                f"{found[0]!r} names no path: write {{{{a.b.0}}}}, or {{{{a.b?}}}} where it may be missing"
            )
        parts += [text[end : found.start()], Placeholder(tuple(found[1].split(".")), found[2] is not None)]
        end = found.end()
    parts.append(text[end:])
    if any("{{" in part for part in parts if isinstance(part, str)):
        raise ValueError("there is a {{ without its }}")
    return tuple(part for part in parts if part != "")


def load_hooks(path: Path, environment: Mapping[str, str]) -> dict[str, Hook]:
    """Every hook of a file, by its name. Raises SettingError with what is wrong and where."""
    where = f"WEBHOOK_HOOKS_FILE={path}"
    try:
        with path.open("rb") as file:
            whole = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError(f"{where}: not valid TOML: {error}") from None
    except OSError as error:
        raise SettingError(f"{where}: cannot be read: {error.strerror}; name a file that is there") from None
    tables = whole.get("hooks")
    if set(whole) != {"hooks"} or not isinstance(tables, dict):
        raise SettingError(f"{where}: must hold tables [hooks.NAME] and nothing else")
    hooks = {}
    for name, table in tables.items():
        try:
            hooks[name] = _hook(name, table, path.parent, environment)
        except ValueError as error:
            raise SettingError(f"{where}: [hooks.{name}]: {error}") from None
    return hooks


def _hook(name: str, table: object, folder: Path, environment: Mapping[str, str]) -> Hook:
    """One table, checked. Raises ValueError with what is wrong with it."""
    if re.fullmatch(HOOK_PATTERN, name) is None:
        raise ValueError("a name has letters, digits, dash and underscore")
    if not isinstance(table, dict):
        raise ValueError(f"must be a table, [hooks.{name}]")  # noqa: TRY004 - one kind of error for the whole file
    unknown = set(table) - {*_TEMPLATES, *_FIXED, *_OTHER}
    if unknown:
        raise ValueError(
            f"there is no {', '.join(sorted(unknown))}; known are {', '.join((*_OTHER, *_TEMPLATES, *_FIXED))}"
        )
    worker = _string(table, "worker")
    if worker is None or re.fullmatch(WORKER_PATTERN, worker) is None:
        raise ValueError("worker must name the worker that gets the tasks")
    texts = {key: parse_template(text) for key in _TEMPLATES if (text := _string(table, key)) is not None}
    if "description" not in texts:
        raise ValueError("description must say what the agent shall do")
    fixed = {key: table[key] for key in _FIXED if key in table}
    try:
        task_from_fields({"description": "x", **fixed}, "probe", worker)
    except InvalidTask as error:
        raise ValueError(error.detail) from None
    id_path = _string(table, "id")
    header = _string(table, "delivery_header")
    return Hook(
        name=name,
        worker=worker,
        secret=_secret(table, folder, environment),
        description=texts.pop("description"),
        texts=texts,
        fixed=fixed,
        metadata={key: _metadata(value) for key, value in _table(table, "metadata").items()},
        id_path=None if id_path is None else _path(id_path),
        signature_header=_string(table, "signature_header") or "X-Hub-Signature-256",
        delivery_headers=DELIVERY_HEADERS if header is None else (header,),
        events=_strings(table.get("events", [])),
        when={_path(key): _allowed(value) for key, value in _table(table, "when").items()},
    )


def _secret(table: dict[str, Any], folder: Path, environment: Mapping[str, str]) -> bytes | None:
    variable, file = _string(table, "secret_env"), _string(table, "secret_file")
    if variable is not None and file is not None:
        raise ValueError("take secret_env or secret_file, not both")
    if variable is not None:
        found = environment.get(variable, "").strip()
        what = f"the environment variable {variable}, which secret_env names,"
    elif file is not None:
        what = "the file that secret_file names"
        found = read_secret(folder / Path(file).expanduser(), "secret_file")
    else:
        return None
    if len(found) < MIN_TOKEN_CHARS:
        raise ValueError(f"{what} must hold the secret, of {MIN_TOKEN_CHARS} characters or more")
    return found.encode()


def _string(table: dict[str, Any], key: str) -> str | None:
    value = table.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise ValueError(f"{key} must be a text")
    return value


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("events must be a list of texts")
    return tuple(value)


def _table(table: dict[str, Any], key: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key} must be a table")  # noqa: TRY004 - one kind of error for the whole file
    return value


def _path(text: str) -> tuple[str, ...]:
    if _PATH.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no path: write names with dots between")
    return tuple(text.split("."))


def _allowed(value: object) -> tuple[Any, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, (str, bool, int)) for one in values):
        raise ValueError("when: a value must be a text, a whole number, true or false, or a list of these")
    return tuple(values)


def _metadata(value: object) -> object:
    """A template for a text; anything else stays as it is, if JSON has it."""
    if isinstance(value, str):
        return parse_template(value)
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("metadata: a value must be a text, a number, true, false, a list or a table") from None
    return value


def _value(template: object, payload: object) -> object:
    """What a template in the metadata gives: one place alone keeps its type."""
    if not isinstance(template, tuple):
        return template
    if len(template) == 1 and isinstance(template[0], Placeholder):
        return template[0].find(payload)
    return fill(template, payload)


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
