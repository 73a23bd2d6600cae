"""Load providers that people describe: a TOML file with a table for each, checked before anything runs.

`[providers.NAME]` describes a provider, or changes some keys of a built-in one of that name; `like = "claude"` starts
from a built-in one under a new name. docs/providers.md lists the keys.

Raises SettingError with the file, the table and the key. An unknown key is an error: a misspelt one would be a rule
that never applies.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from watcher.errors import SettingError
from watcher.formats.fields import Choice, FieldError, Flag, Kind, ListOf, Number, Object, Text
from watcher.formats.result import USAGE_FIELDS
from watcher.policy.after_attempt import Failure
from watcher.runner.providers.built_in import BUILT_IN, with_commands
from watcher.runner.providers.json_fields import FieldReader
from watcher.runner.providers.output_events import (
    Reader,
    read_claude,
    read_codex,
    read_gemini,
    read_opencode,
    read_qwen,
)
from watcher.runner.providers.provider import OUTPUTS, PROMPT_FILE, Prompt, Provider, Rule

#: How a process may be kept warm between tasks; empty: each task starts one of its own.
PROTOCOLS = ("acp", "claude", "")
_NAME = Text(64, 1, r"[a-z0-9][a-z0-9._-]*", "small letters, digits, dot, dash, underscore")
_WORD = Text(4096, 1)
_LINE = Text(400)
_PATH = Text(200)
_VARIABLE = Text(100, 1, r"[A-Za-z_*?\[][A-Za-z0-9_*?\[\]!-]*", "a variable's name or a glob")
_CLASSES = {kind.value: kind for kind in (Failure.TRANSIENT, Failure.PERMANENT, Failure.AUTH, Failure.LIMIT)}
_READERS: Mapping[str, Reader] = {
    "claude": read_claude,
    "gemini": read_gemini,
    "codex": read_codex,
    "opencode": read_opencode,
    "qwen": read_qwen,
}
_EXIT_CODES = ListOf(Number(0, 255, integer=True), 64)

_KEYS: Mapping[str, Kind] = {
    "like": Choice(tuple(BUILT_IN)),
    "prompt": Choice(("stdin", "argument", "file")),
    "prompt_flag": _WORD,
    "model_flag": _WORD,
    "output": Choice(tuple(OUTPUTS)),
    "reader": Choice((*_READERS, "fields")),
    "environment": ListOf(_VARIABLE, 200),
    "version": ListOf(_WORD, 20),
    "login": ListOf(_WORD, 20),
    "protocol": Choice(PROTOCOLS),
    "auth_method": Text(200, 1),
    "fields": Object(),
    "success": Object(),
    "variables": Object(),
}
_FIELDS: Mapping[str, Kind] = {
    "answer": _PATH,
    "joins_answer": Flag(),
    "final": _PATH,
    "error": _PATH,
    "error_flag": _PATH,
    "resets_at": _PATH,
    "ended": _PATH,
    "usage": Object(),
    "signs": Object(),
}
_SUCCESS: Mapping[str, Kind] = {"exit_codes": _EXIT_CODES, "needs_answer": Flag(), "denials_are_fine": Flag()}
_FAILURE: Mapping[str, Kind] = {
    "class": Choice(tuple(_CLASSES)),
    "reason": Text(64, 1, "[a-z][a-z0-9_]*", "small letters, digits, underscore"),
    "cure": _LINE,
    "signs": ListOf(Text(200, 3, "[^:]+:.+", "kind:value"), 64),
    "exit_codes": _EXIT_CODES,
    "pattern": Text(1000, 1),
}


def all_providers(
    commands: Mapping[str, Sequence[str]], prompt: Prompt, file: Path | None, default: str | None = None
) -> dict[str, Provider]:
    """Every provider of a worker by name: the built-in ones, those of the file, and the commands of the settings,
    which win. Raises SettingError when the file is wrong or `default` is none of them."""
    found = with_commands(BUILT_IN if file is None else {**BUILT_IN, **read_file(file)}, commands, prompt)
    if default is not None and default not in found:
        known = ", ".join(found)
        raise SettingError(
            f"PROVIDER={default}: no such provider; name one of {known}, set the command of one of "
            "command (AGENT_COMMAND), handler (HANDLER_COMMAND) or acp (ACP_COMMAND), or describe it in PROVIDERS_FILE"
        )
    return found


def read_file(file: Path) -> dict[str, Provider]:
    """The providers of a file. Raises SettingError."""
    try:
        with file.open("rb") as stream:
            content = tomllib.load(stream)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError(f"PROVIDERS_FILE={file}: is no TOML: {error}") from None
    except OSError as error:
        raise SettingError(f"PROVIDERS_FILE={file}: cannot be read: {error.strerror}") from None
    tables = content.pop("providers", {})
    if content or not isinstance(tables, dict):
        wrong = next(iter(content), "providers")
        raise SettingError(f"PROVIDERS_FILE={file}: {wrong}: every table must be called [providers.NAME]")
    return {name: _Table(file, name, table).provider() for name, table in tables.items()}


class _Table:
    """One `[providers.NAME]`, and where to say that something in it is wrong."""

    def __init__(self, file: Path, name: str, table: object) -> None:
        self._file = file
        self._name = name
        self._check("", _NAME, name)
        self._table: dict[str, Any] = self._check("", Object(), table)
        self._base = BUILT_IN.get(self._table.get("like", name))

    def provider(self) -> Provider:
        """The record. What the table does not say comes from the built-in one that it is like, if any."""
        table = dict(self._table)
        command = table.pop("command", None)
        failures = table.pop("failures", None)
        given = self._members("", table, _KEYS)
        base = self._base or Provider(self._name, (), silent=frozenset({"json"}))
        made = replace(
            base,
            name=self._name,
            family=base.name if self._base is not None else "",
            setting=f"providers.{self._name}.command in PROVIDERS_FILE",
            command=base.command if command is None else self._command(command),
            other_names=base.other_names if command is None else (),
            environment=(*base.environment, *given.get("environment", ())),
            variables={**base.variables, **self._variables(given.get("variables", {}))},
            looks={**base.looks, **{key: tuple(given[key]) for key in ("version", "login") if key in given}},
            **{
                key: given[key]
                for key in ("prompt", "prompt_flag", "model_flag", "output", "protocol", "auth_method")
                if key in given
            },
        )
        if not made.command:
            raise self._wrong("command", "is missing: the program and its arguments")
        if made.prompt != "file" and any(PROMPT_FILE in word for word in made.command):
            raise self._wrong("command", f'{PROMPT_FILE} stands for something only with prompt = "file"')
        if made.protocol != "acp" and "auth_method" in given:
            raise self._wrong("auth_method", 'needs protocol = "acp"')
        if made.prompt != "argument" and "prompt_flag" in given:
            raise self._wrong("prompt_flag", 'needs prompt = "argument"')
        made = self._with_reader(made, given)
        rules = () if failures is None else self._rules(failures)
        return replace(made, rules=(*rules, *made.rules), **self._success(given.get("success", {})))

    def _command(self, value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            try:
                value = shlex.split(value)
            except ValueError as error:
                raise self._wrong("command", f"does not split as in a shell ({error})") from None
        words = self._check("command", ListOf(_WORD, 1000), value)
        if not words:
            raise self._wrong("command", "must be a program and its arguments")
        return tuple(words)

    def _with_reader(self, made: Provider, given: Mapping[str, Any]) -> Provider:
        kind = given.get("reader", "fields" if "fields" in given else None)
        if "fields" in given and kind != "fields":
            raise self._wrong("fields", 'are only for reader = "fields"')
        if kind == "fields":
            reader = self._field_reader(given.get("fields", {}))
            made = replace(made, reader=reader, mentions=(), tells=_tells(name for name, _ in reader.usage))
        elif kind is not None:
            made = replace(made, reader=_READERS[kind], mentions=(), tells=BUILT_IN[kind].tells)
        if made.output != "text" and made.reader is None:
            what = f'is missing: output = "{made.output}" needs one of {", ".join(_READERS)}, or the table `fields`'
            raise self._wrong("reader", what)
        if made.output == "text" and "fields" in given:
            raise self._wrong("fields", 'need output = "json" or "stream-json"')
        return made

    def _field_reader(self, value: object) -> FieldReader:
        fields = self._members("fields", self._check("fields", Object(), value), _FIELDS)
        usage = self._members("fields.usage", fields.pop("usage", {}), dict.fromkeys(USAGE_FIELDS, _PATH))
        signs = fields.pop("signs", {})
        for kind, path in signs.items():
            self._check(f"fields.signs.{kind}", _PATH, path)
        if not fields.get("answer"):
            raise self._wrong("fields.answer", "is missing: the path of the agent's answer, such as result.text")
        return FieldReader(**fields, usage=tuple(usage.items()), signs=tuple(signs.items()))

    def _success(self, value: object) -> dict[str, Any]:
        given = self._members("success", self._check("success", Object(), value), _SUCCESS)
        if "exit_codes" in given:
            given["good_exit_codes"] = frozenset(given.pop("exit_codes"))
        return given

    def _variables(self, value: Mapping[str, object]) -> dict[str, str]:
        for name, text in value.items():
            if re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) is None:
                raise self._wrong(f"variables.{name}", "is no name of a variable")
            self._check(f"variables.{name}", Text(4096, 0, r"[^\0]*"), text)
        return cast("dict[str, str]", dict(value))

    def _rules(self, value: object) -> tuple[Rule, ...]:
        if not isinstance(value, list):
            raise self._wrong("failures", f"must be tables: [[providers.{self._name}.failures]]")
        return tuple(self._rule(f"failures[{place}]", rule) for place, rule in enumerate(value))

    def _rule(self, key: str, value: object) -> Rule:
        given = self._members(key, self._check(key, Object(), value), _FAILURE)
        missing = [name for name in ("class", "reason") if name not in given]
        if missing:
            raise self._wrong(f"{key}.{missing[0]}", "is missing")
        if not any(given.get(name) for name in ("signs", "exit_codes", "pattern")):
            raise self._wrong(key, "needs signs, exit_codes or a pattern: it would fit every failure")
        try:
            pattern = re.compile(given["pattern"], re.M) if "pattern" in given else None
        except re.error as error:
            raise self._wrong(f"{key}.pattern", f"is no regular expression: {error}") from None
        return Rule(
            _CLASSES[given["class"]],
            given["reason"],
            given.get("cure", ""),
            frozenset(given.get("signs", ())),
            frozenset(given.get("exit_codes", ())),
            pattern,
        )

    def _members(self, place: str, table: Mapping[str, Any], kinds: Mapping[str, Kind]) -> dict[str, Any]:
        dot = f"{place}." if place else ""
        for name in table:
            if name not in kinds:
                known = ", ".join(kinds if place else ("command", *kinds, "failures"))
                raise self._wrong(f"{dot}{name}", f"is not known here; the keys are {known}")
        return {name: self._check(f"{dot}{name}", kinds[name], value) for name, value in table.items()}

    def _check(self, key: str, kind: Kind, value: object) -> Any:
        try:
            return kind.check(value)
        except FieldError as error:
            raise self._wrong(key, str(error)) from None

    def _wrong(self, key: str, what: str) -> SettingError:
        return SettingError(f"PROVIDERS_FILE={self._file}: [providers.{self._name}]{' ' if key else ''}{key}: {what}")


def _tells(usage: Iterable[str]) -> frozenset[str]:
    told = set(usage)
    named = {"cost": "cost_usd" in told, "tokens": bool(told & {"input_tokens", "output_tokens"})}
    return frozenset(name for name, is_told in named.items() if is_told)
