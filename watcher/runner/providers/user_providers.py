"""List all providers of a worker: the built-in ones, those that people describe, and those of the settings.

Raises SettingError (see `provider_file`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from watcher.errors import SettingError
from watcher.runner.providers.built_in import BUILT_IN, with_commands
from watcher.runner.providers.provider import Prompt, Provider
from watcher.runner.providers.provider_file import read_tables


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
    return read_tables(file, f"PROVIDERS_FILE={file}", BUILT_IN)
