"""Run a team of named AI agents from plain folders: `from watcher import Client`.

The package behind the entry files and the `watcher` command. This file imports nothing at first: a submit must start
fast, so every part is loaded by the one who uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watcher.client import AsyncClient, Client, TaskFailed, TaskFields, TaskRef, TaskResult

__version__ = "0.1.0"

__all__ = ["AsyncClient", "Client", "TaskFailed", "TaskFields", "TaskRef", "TaskResult", "__version__"]


def __getattr__(name: str) -> object:
    """The Python client, on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from watcher import client

    return getattr(client, name)
