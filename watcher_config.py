"""The settings under their documented names: `from watcher_config import WatcherConfig`.

They live in `watcher.settings`: where they come from in `layers`, their types and ranges in the others. Importing this
module stays cheap: pydantic comes with the first use of a typed config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from watcher.settings.folders import Folders, folders, state_folder
from watcher.settings.instance_name import own_instance
from watcher.settings.layers import Given, Layers, process_environment, read_layers

if TYPE_CHECKING:
    from watcher.settings.programs import (
        Loaded,
        LoadedOrchestrator,
        MetricsConfig,
        OrchestratorConfig,
        Setting,
        WatcherConfig,
        load_orchestrator_config,
        load_watcher_config,
        render_config,
    )

__all__ = [
    "Folders", "Given", "Layers", "Loaded", "LoadedOrchestrator", "MetricsConfig", "OrchestratorConfig", "Setting",
    "WatcherConfig",
    "folders", "load_orchestrator_config", "load_watcher_config", "own_instance", "process_environment", "read_layers",
    "render_config", "state_folder",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """The typed settings, which need pydantic, on first use (PEP 562)."""
    if name in __all__:
        from watcher.settings import programs

        return getattr(programs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
