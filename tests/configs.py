"""Settings for tests: a config, or a group of one, with these values and the defaults for the rest.

Nothing is read and nothing is checked, so a test may take a value that no worker would be given.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from watcher.settings.config_base import LayeredConfig
from watcher.settings.layers import FOLDERS
from watcher.settings.worker import WatcherConfig

C = TypeVar("C", bound=LayeredConfig)


def made(kind: type[C], **values: object) -> C:
    unknown = values.keys() - kind.model_fields.keys()
    assert not unknown, f"{kind.__name__} has no {unknown}"
    return kind.model_construct(**values)


def worker_config(root: Path, **values: object) -> WatcherConfig:
    """The config of a worker whose folders lie below this root."""
    folders = {name.lower(): root / folder for name, folder in FOLDERS.items()}
    return made(WatcherConfig, **{"watcher_root": root, "state_dir": root / "state", **folders, **values})
