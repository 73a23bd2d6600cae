"""What values settings may have: the rules and conversions that `watcher/settings` and its neighbours put
together.

A rule takes text as the environment has it, or a value that is made already, and raises ValueError with what must be
written instead. Nothing here reads a setting.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator

from watcher.errors import SettingError
from watcher.formats import task
from watcher.formats.fields import Text
from watcher.settings.instance_name import own_instance

DAY = 86_400.0
#: What a result's `stdout` may hold; more could not be read back.
MAX_BYTES = 1 << 26

HOST = Text(255, 1, r"[A-Za-z0-9:][A-Za-z0-9.:%_-]*", "a host name or an IP address")
INSTANCE = Text(64, 1, r"[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits, dot, dash, underscore")
ACCOUNT = Text(128, 1, r"[^\0\n]+", "one line, such as team-a")
TOKEN = Text(4096, 1, r"[!-~]+", "one word without spaces")
VARIABLES = re.compile(r"[A-Za-z_*?\[][A-Za-z0-9_*?\[\]!-]*")


def fold(words: tuple[str, ...]) -> BeforeValidator:
    """Take a word in any case and give it in ours."""
    known = {word.casefold(): word for word in words}
    return BeforeValidator(lambda value: known.get(str(value).strip().casefold(), value))


def split_command(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise ValueError(f"must be a command that splits as in a shell ({error})") from None


def some_command(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not value[0]:
        raise ValueError("must be a command: a program and its arguments")
    return value


def split_variables(value: object) -> object:
    if not isinstance(value, str):
        return value
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if not all(VARIABLES.fullmatch(name) for name in names):
        raise ValueError("must be names of variables with commas between (* and ? match), no values")
    return names


def split_folders(value: object) -> object:
    if not isinstance(value, str):
        return value
    paths = [os.path.expanduser(path) for path in value.split(os.pathsep) if path]
    if not all(os.path.isabs(path) and "\0" not in path for path in paths):
        raise ValueError(f"must be absolute folders with {os.pathsep!r} between")
    return tuple(Path(os.path.abspath(path)) for path in paths)


def some_file(value: object) -> object:
    if not isinstance(value, str):
        return value
    path = os.path.abspath(os.path.expanduser(value))
    if "\0" in path or not os.path.isfile(path):
        raise ValueError("must be a file that is there")
    return Path(path)


def split_workers(value: object) -> object:
    if not isinstance(value, str):
        return value
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if not all(re.fullmatch(task.WORKER_PATTERN, name) for name in names):
        raise ValueError("must be names of workers with commas between: letters, digits, dot, dash, underscore")
    return names


def split_hosts(value: object) -> object:
    if not isinstance(value, str):
        return value
    names = tuple(dict.fromkeys(name.strip().lower() for name in value.split(",") if name.strip()))
    if not all(re.fullmatch(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?|[0-9a-f:]+", name) for name in names):
        raise ValueError("must be names of hosts with commas between, without port: worker-marie,metrics.example.org")
    return names


def split_substitutes(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = tuple(pair.strip() for pair in value.split(",") if pair.strip())
    names = [pair.split(":") for pair in pairs]
    good = all(len(pair) == 2 and all(re.fullmatch(task.WORKER_PATTERN, n) for n in pair) for pair in names)
    if not good or any(pair[0] == pair[1] for pair in names) or len({pair[0] for pair in names}) < len(names):
        raise ValueError("must say who stands in for whom, each worker once: marie:anga,fabien:anga")
    return pairs


def address_template(value: str) -> str:
    """An address with nothing in it that would be sent to another place than it seems, and no password."""
    if not value:
        return value
    try:
        plain = value.format(worker="w", instance="i", agent_id="a")
        parts = urlsplit(plain)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, KeyError, IndexError, AttributeError):
        is_good = False
    if not is_good or not value.isascii() or not plain.isprintable() or " " in plain or "{" in value.split("/")[2]:
        raise ValueError(
            "must be http://HOST/PATH or https://HOST/PATH, with {worker}, {instance}, {agent_id} in the path"
        )
    if parts.username is not None or parts.fragment:
        raise ValueError("must not hold a name, a password or a #: give the token as STATS_TOKEN")
    return value


def own_name(value: object) -> object:
    try:
        return own_instance(value) if isinstance(value, str) else value
    except SettingError as error:
        raise ValueError(str(error)) from None


def expand_user(value: str) -> str:
    return os.path.expanduser(value)


def matches(kind: Text, optional: bool = False) -> AfterValidator:
    """The rule of a field of the wire format; with `optional`, or nothing at all."""
    return AfterValidator(lambda value: value if optional and not value else kind.check(value))


LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
LogFormat = Literal["json", "text"]
Prompt = Literal["stdin", "argument", "file"]
FifoMode = Literal["relaxed", "per_agent", "strict"]
MaybeCommand = Annotated[tuple[str, ...], BeforeValidator(split_command)]
Command = Annotated[MaybeCommand, AfterValidator(some_command)]
