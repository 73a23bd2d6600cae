"""List the agent CLIs that need no description, and all providers of a worker by name.

Each is a TOML file beside this one (`claude.toml`, ...) in the language of `provider_file`, with its versions. Each is
told never to ask, and each gets its prompt on a stdin that ends.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from watcher.runner.providers.provider import Prompt, Provider, Rule
from watcher.runner.providers.provider_file import read_tables

#: In the order in which people see them. A file may name patterns of those before it.
_NAMES = ("claude", "gemini", "cursor-agent", "codex", "opencode", "qwen")


def _read(name: str, known: Mapping[str, Provider]) -> Provider:
    file = Path(__file__).with_name(f"{name}.toml")
    provider = read_tables(file, str(file), known, is_own=True)[name]
    return replace(provider, setting=f"{name.partition('-')[0].upper()}_COMMAND")  # CURSOR_COMMAND of cursor-agent


def _read_all() -> dict[str, Provider]:
    found: dict[str, Provider] = {}
    for name in _NAMES:
        found[name] = _read(name, found)
    return found


BUILT_IN: Mapping[str, Provider] = _read_all()


@cache
def acp_rules() -> tuple[Rule, ...]:
    """How agents of the Agent Client Protocol fail, whatever their program is."""
    return _read("acp", BUILT_IN).rules


def built_in(commands: Mapping[str, Sequence[str]] | None = None, prompt: Prompt = "stdin") -> dict[str, Provider]:
    """The providers by name. `commands` gives some of them another command, as words (`shlex.split` for a text).

    The name `command` is any program: the prompt goes where `prompt` says, its output is text, exit 0 is success. It
    is there only when `commands` has it. So is any other name that is not built in.
    """
    return with_commands(BUILT_IN, commands or {}, prompt)


def handler_provider(command: Sequence[str]) -> Provider:
    """The provider of warm handlers; run once, when it cannot be kept warm, it is any program."""
    return Provider(
        "handler", tuple(command), environment=("PYTHONPATH", "VIRTUAL_ENV", "NODE_PATH"), setting="HANDLER_COMMAND"
    )


def _provider_of(name: str, command: tuple[str, ...], prompt: Prompt) -> Provider:
    if name == "handler":
        return handler_provider(command)
    if name == "acp":
        return Provider(name, command, setting="ACP_COMMAND", protocol="acp")
    return Provider(name, command, prompt=prompt)


def with_commands(
    known: Mapping[str, Provider], commands: Mapping[str, Sequence[str]], prompt: Prompt = "stdin"
) -> dict[str, Provider]:
    """`known`, with these commands instead of their own; a built-in command that is given changes nothing."""
    out = dict(known)
    for name, words in commands.items():
        given = tuple(shlex.split(words)) if isinstance(words, str) else tuple(words)
        provider = out.get(name)
        if not given:
            continue
        if provider is None:
            out[name] = _provider_of(name, given, prompt)
        elif name not in BUILT_IN or given != BUILT_IN[name].command:
            out[name] = replace(provider, command=given, other_names=())
    return out
