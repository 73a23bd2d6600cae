"""Read the TOML tables in which providers are described, and check them before anything runs.

The built-in providers (the files beside this one) and those of people are written in it. `[providers.NAME]` describes a
provider, or changes some keys of a known one of that name; `like = "claude"` starts from a known one under a new name.
docs/providers.md lists the keys.

Raises SettingError with the file, the table and the key. An unknown key is an error: a misspelt one would be a rule
that never applies.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from watcher.errors import SettingError
from watcher.formats.fields import Choice, FieldError, Flag, Kind, ListOf, Number, Object, Text
from watcher.formats.result import USAGE_FIELDS
from watcher.policy.after_attempt import Failure
from watcher.runner.providers.claude_events import MENTIONS, read_claude, read_qwen
from watcher.runner.providers.cures import CURES
from watcher.runner.providers.json_fields import FieldReader
from watcher.runner.providers.output_events import Reader, read_codex, read_gemini, read_opencode
from watcher.runner.providers.provider import OUTPUTS, PROMPT_FILE, Argument, Prompt, Provider, Rule, Where

#: How a process may be kept warm between tasks; empty: each task starts one of its own.
PROTOCOLS = ("acp", "claude", "")
_READERS: Mapping[str, tuple[Reader, tuple[bytes, ...]]] = {
    "claude": (read_claude, MENTIONS),
    "gemini": (read_gemini, ()),
    "codex": (read_codex, ()),
    "opencode": (read_opencode, ()),
    "qwen": (read_qwen, MENTIONS),
}
_CLASSES = {kind.value: kind for kind in (Failure.TRANSIENT, Failure.PERMANENT, Failure.AUTH, Failure.LIMIT)}
#: `{{limit}}` in a pattern stands for a pattern of the same table, `{{claude.limit}}` for one of a known provider.
_NAMED = re.compile(r"\{\{(?:([a-z0-9-]+)\.)?([a-z_]+)\}\}")
#: A `^` is the start of any line.
_LINES = "(?m)"
_RANGE = re.compile(r"(.+:)(\d{1,3})-(\d{1,3})")


@dataclass(frozen=True, slots=True)
class _OneOrMore:
    """One text, or a list of them; it becomes a tuple."""

    member: Text

    def check(self, value: object) -> tuple[str, ...]:
        return ListOf(self.member, 50).check(value) if isinstance(value, list) else (self.member.check(value),)

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [self.member.schema(), ListOf(self.member, 50).schema()]}


@dataclass(frozen=True, slots=True)
class _TableOf:
    """A table of any names, whose values are all of one kind."""

    member: Kind
    names: Text

    def check(self, value: object) -> dict[str, Any]:
        out = {}
        for name, member in Object().check(value).items():
            try:
                out[self.names.check(name)] = self.member.check(member)
            except FieldError as error:
                raise FieldError(f"member {name} {error}") from None
        return out

    def schema(self) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.member.schema()}


_SNAKE = Text(64, 1, "[a-z][a-z0-9_]*", "small letters, digits, underscore")
_NAME = Text(64, 1, r"[a-z0-9][a-z0-9._-]*", "small letters, digits, dot, dash, underscore")
_WORD = Text(4096, 1)
_WORDS = ListOf(_WORD, 20)
_LINE = Text(400)
_PATH = Text(200)
_VARIABLE = Text(100, 1, r"[A-Za-z_*?\[][A-Za-z0-9_*?\[\]!-]*", "a variable's name or a glob")
_OUTPUT = Choice(tuple(OUTPUTS))
_PATTERN = _OneOrMore(Text(1000, 1))
_EXIT_CODES = ListOf(Number(0, 255, integer=True), 64)

#: Keys whose values stand in the record as they are.
_PLAIN: Mapping[str, Kind] = {
    "prompt": Choice(get_args(Prompt)),
    "prompt_flag": _WORD,
    "model_flag": _WORD,
    "budget_flag": _WORD,
    "other_names": _WORDS,
    "output": _OUTPUT,
    "output_flags": _WORDS,
    "output_words": _TableOf(_OUTPUT, _WORD),
    "protocol": Choice(PROTOCOLS),
    "auth_method": Text(200, 1),
    "waits_with": _WORDS,
    "reads_at_start": ListOf(_WORD, 100),
    "refuses_root_without": ListOf(_VARIABLE, 20),
}
_KEYS: Mapping[str, Kind] = {
    "like": _NAME,
    **_PLAIN,
    "arguments": ListOf(Object(), 50),
    "silent": ListOf(_OUTPUT, 3),
    "tells": ListOf(Choice(("cost", "tokens")), 2),
    "reader": Choice((*_READERS, "fields")),
    "environment": ListOf(_VARIABLE, 200),
    "version": _WORDS,
    "login": _WORDS,
    "fields": Object(),
    "success": Object(),
    "variables": Object(),
    "cures": _TableOf(_LINE, _SNAKE),
    "patterns": _TableOf(_PATTERN, _SNAKE),
}
_ARGUMENT: Mapping[str, Kind] = {"words": _WORDS, "unless": _WORDS, "only_for": _OUTPUT}
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
    "reason": _SNAKE,
    "cure": _LINE,
    "signs": ListOf(Text(200, 3, "[^:]+:.+", "kind:value"), 64),
    "exit_codes": _EXIT_CODES,
    "where": ListOf(Choice(get_args(Where)), 5),
    "pattern": _PATTERN,
}


def read_tables(file: Path, called: str, known: Mapping[str, Provider], is_own: bool = False) -> dict[str, Provider]:
    """The providers that a file describes. `called` stands before what is wrong; raises SettingError.

    `is_own`: the file is one of ours, whose patterns a test tries: compiling them all would cost each start 7 ms.
    """
    try:
        with file.open("rb") as stream:
            content = tomllib.load(stream)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError(f"{called}: is not valid TOML: {error}") from None
    except OSError as error:
        raise SettingError(f"{called}: cannot be read: {error.strerror}") from None
    tables = content.pop("providers", {})
    if content or not isinstance(tables, dict):
        wrong = next(iter(content), "providers")
        raise SettingError(f"{called}: {wrong}: every table must be called [providers.NAME]")
    return {name: _Table(called, name, table, known, is_own).provider() for name, table in tables.items()}


class _Table:
    """One `[providers.NAME]`, and where to say that something in it is wrong."""

    def __init__(self, called: str, name: str, table: object, known: Mapping[str, Provider], is_own: bool) -> None:
        self._called = called
        self._is_own = is_own
        self._name = name
        self._known = known
        self._check("", _NAME, name)
        self._table: dict[str, Any] = self._check("", Object(), table)
        self._patterns: Mapping[str, str] = {}

    def provider(self) -> Provider:
        """The record. What the table does not say comes from the known one that it is like, if any."""
        table = dict(self._table)
        command = table.pop("command", None)
        failures = table.pop("failures", None)
        given = self._members("", table, _KEYS)
        like = self._like(given.get("like"))
        base = like or Provider(self._name, (), silent=frozenset({"json"}))
        made = replace(
            base,
            name=self._name,
            family="" if like is None else like.name,
            setting=f"providers.{self._name}.command in PROVIDERS_FILE",
            command=base.command if command is None else self._command(command),
            other_names=base.other_names if command is None else (),
            environment=(*base.environment, *given.get("environment", ())),
            variables={**base.variables, **self._variables(given.get("variables", {}))},
            looks={**base.looks, **{key: given[key] for key in ("version", "login") if key in given}},
            silent=frozenset(given.get("silent", base.silent)),
        )
        made = replace(made, **{key: given[key] for key in _PLAIN if key in given})
        if not made.command:
            raise self._wrong("command", "is missing: the program and its arguments")
        if made.prompt != "file" and any(PROMPT_FILE in word for word in made.command):
            raise self._wrong("command", f'{PROMPT_FILE} stands for something only with prompt = "file"')
        if made.protocol != "acp" and "auth_method" in given:
            raise self._wrong("auth_method", 'needs protocol = "acp"')
        if made.prompt != "argument" and "prompt_flag" in given:
            raise self._wrong("prompt_flag", 'needs prompt = "argument"')
        made = self._with_reader(made, given)
        if "arguments" in given:
            made = replace(made, arguments=self._arguments(given["arguments"]))
        self._patterns = base.patterns
        self._read_patterns(given.get("patterns", {}))
        rules = () if failures is None else self._rules(failures, given.get("cures", {}))
        success = self._success(given.get("success", {}))
        return replace(made, patterns=self._patterns, rules=(*rules, *made.rules), **success)

    def _like(self, name: str | None) -> Provider | None:
        if name is None:
            return self._known.get(self._name)
        return self._known[self._check("like", Choice(tuple(self._known)), name)]

    def _command(self, value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            try:
                value = shlex.split(value)
            except ValueError as error:
                raise self._wrong("command", f"does not split as in a shell ({error})") from None
        words: tuple[str, ...] = self._check("command", ListOf(_WORD, 1000), value)
        if not words:
            raise self._wrong("command", "must be a program and its arguments")
        return words

    def _arguments(self, value: Iterable[Mapping[str, Any]]) -> tuple[Argument, ...]:
        given = [self._members(f"arguments[{place}]", one, _ARGUMENT) for place, one in enumerate(value)]
        for place, one in enumerate(given):
            if not one.get("words"):
                raise self._wrong(f"arguments[{place}].words", "is missing")
        return tuple(Argument(**one) for one in given)

    def _with_reader(self, made: Provider, given: Mapping[str, Any]) -> Provider:
        kind = given.get("reader", "fields" if "fields" in given else None)
        if "fields" in given and kind != "fields":
            raise self._wrong("fields", 'are only for reader = "fields"')
        if kind == "fields":
            fields = self._field_reader(given.get("fields", {}))
            made = replace(made, reader=fields, mentions=(), tells=_tells(name for name, _ in fields.usage))
        elif kind is not None:
            reader, mentions = _READERS[kind]
            tells = self._known[kind].tells if kind in self._known else frozenset()
            made = replace(made, reader=reader, mentions=mentions, tells=tells)
        if "tells" in given:
            made = replace(made, tells=frozenset(given["tells"]))
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

    def _variables(self, value: Mapping[str, Any]) -> Mapping[str, str]:
        for name, text in value.items():
            if re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) is None:
                raise self._wrong(f"variables.{name}", "is no name of a variable")
            self._check(f"variables.{name}", Text(4096, 0, r"[^\0]*"), text)
        return value

    def _read_patterns(self, given: Mapping[str, tuple[str, ...]]) -> None:
        """A pattern may name those that stand before it."""
        for name, texts in given.items():
            self._patterns = {**self._patterns, name: self._pattern(f"patterns.{name}", texts)}

    def _rules(self, value: object, cures: Mapping[str, str]) -> tuple[Rule, ...]:
        if not isinstance(value, list):
            raise self._wrong("failures", f"must be tables: [[providers.{self._name}.failures]]")
        return tuple(self._rule(f"failures[{place}]", rule, {**CURES, **cures}) for place, rule in enumerate(value))

    def _rule(self, key: str, value: object, cures: Mapping[str, str]) -> Rule:
        given = self._members(key, self._check(key, Object(), value), _FAILURE)
        missing = [name for name in ("class", "reason") if name not in given]
        if missing:
            raise self._wrong(f"{key}.{missing[0]}", "is missing")
        if not any(given.get(name) for name in ("signs", "exit_codes", "pattern")):
            raise self._wrong(key, "needs signs, exit_codes or a pattern: it would fit every failure")
        return Rule(
            _CLASSES[given["class"]],
            given["reason"],
            given.get("cure", cures.get(given["reason"], "")),
            _signs(given.get("signs", ())),
            frozenset(given.get("exit_codes", ())),
            _LINES + self._pattern(f"{key}.pattern", given["pattern"]) if "pattern" in given else None,
            given.get("where", ()),
        )

    def _pattern(self, key: str, texts: tuple[str, ...]) -> str:
        """One regular expression for all of them, with those that they name put in."""
        text = "|".join(_NAMED.sub(lambda named: self._named(key, named), text) for text in texts)
        try:
            if not self._is_own:
                re.compile(_LINES + text)
        except re.error as error:
            raise self._wrong(key, f"is no regular expression: {error}") from None
        return text

    def _named(self, key: str, named: re.Match[str]) -> str:
        owner, name = named.groups()
        if owner in self._known:
            known = self._known[owner].patterns
        elif owner is None and "patterns" in self._table:
            known = self._patterns
        else:
            return named[0]  # a file that knows nothing of names means what it says
        if name not in known:
            raise self._wrong(key, f"{named[0]} is no pattern that is known here")
        return known[name] if named[0] == named.string else f"(?:{known[name]})"

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
        return SettingError(f"{self._called}: [providers.{self._name}]{' ' if key else ''}{key}: {what}")


def _signs(given: Iterable[str]) -> frozenset[str]:
    """`status:500-599` stands for each status from 500 to 599, and for itself."""
    found = set(given)
    for one in given:
        ends = _RANGE.fullmatch(one)
        if ends is not None:
            found.update(f"{ends[1]}{number}" for number in range(int(ends[2]), int(ends[3]) + 1))
    return frozenset(found)


def _tells(usage: Iterable[str]) -> frozenset[str]:
    told = set(usage)
    named = {"cost": "cost_usd" in told, "tokens": bool(told & {"input_tokens", "output_tokens"})}
    return frozenset(name for name, is_told in named.items() if is_told)
