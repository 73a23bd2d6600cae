"""The settings that the supervisor has for itself; the rest it takes from those of its workers."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from watcher.settings.config_base import LayeredConfig
from watcher.settings.layers import SUPERVISOR_SETTINGS, Layers
from watcher.settings.shared_groups import FolderSettings
from watcher.settings.value_types import (
    DAY,
)


class SupervisorConfig(FolderSettings):
    """Every setting that the supervisor has for itself; the rest it takes from those of its workers."""

    names: ClassVar[tuple[str, ...]] = SUPERVISOR_SETTINGS

    max_restarts: int = Field(10, ge=0, le=10_000, description="restarts in a row of a process that crashes")
    restart_delay: float = Field(
        1.0, ge=0.01, le=3600, description="seconds before the first restart; twice as long each time, at most 60"
    )
    restart_reset_after: float = Field(
        60.0, ge=0, le=DAY, description="seconds a process must have been well until earlier crashes are forgotten"
    )
    max_cpu_percent: float = Field(
        80.0, ge=1, le=100, description="percent of the machine's CPUs above which instances are drained"
    )
    max_memory_percent: float = Field(90.0, ge=1, le=100, description="the same for its memory")

    def __init__(self, layers: Layers | None = None, **values: object) -> None:
        LayeredConfig.__init__(self, layers, **values)
