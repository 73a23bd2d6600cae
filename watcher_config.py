"""The settings under their documented names: `from watcher_config import WatcherConfig`.

They live in `watcher.settings`: where they come from in `layers`, their types and ranges in the others. Importing this
module stays cheap: pydantic comes with the first use of a typed config.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from watcher.settings.folders import Folders, folders, state_folder
from watcher.settings.instance_name import own_instance
from watcher.settings.layers import Given, Layers, process_environment, read_layers

if TYPE_CHECKING:
    from watcher.settings.config_base import Loaded, MetricsConfig, Setting, render_config
    from watcher.settings.listener import OrchestratorConfig, load_orchestrator_config
    from watcher.settings.worker import WatcherConfig, load_watcher_config

    LoadedOrchestrator = Loaded[OrchestratorConfig]

#: What needs pydantic, and the module that has it.
_TYPED = {
    "Loaded": "config_base", "LoadedOrchestrator": "config_base", "MetricsConfig": "config_base",
    "Setting": "config_base", "render_config": "config_base",
    "OrchestratorConfig": "listener", "load_orchestrator_config": "listener",
    "WatcherConfig": "worker", "load_watcher_config": "worker",
}  # fmt: skip
#: One record for all programs now; the old name stays.
_SAME = {"LoadedOrchestrator": "Loaded"}

__all__ = [
    "Folders", "Given", "Layers", "Loaded", "LoadedOrchestrator", "MetricsConfig", "OrchestratorConfig", "Setting",
    "WatcherConfig",
    "folders", "load_orchestrator_config", "load_watcher_config", "own_instance", "process_environment", "read_layers",
    "render_config", "state_folder",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """The typed settings, on first use (PEP 562)."""
    if name in _TYPED:
        return getattr(import_module(f"watcher.settings.{_TYPED[name]}"), _SAME.get(name, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
