"""The settings of the listener, with their types, ranges and meanings. Durations are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from watcher.settings.config_base import LayeredConfig, Loaded, load
from watcher.settings.layers import LISTENER_SETTINGS, Layers, read_layers
from watcher.settings.shared_groups import TeamSettings
from watcher.settings.value_types import (
    DAY,
    split_substitutes,
    split_workers,
)


class OrchestratorConfig(TeamSettings):
    """Every setting of the listener, valid; what it shares with a worker has the same name, range and default."""

    names: ClassVar[tuple[str, ...]] = LISTENER_SETTINGS

    workers: Annotated[tuple[str, ...], BeforeValidator(split_workers)] = Field(
        (), description="workers to listen to, commas between; empty: all, as they appear"
    )
    pending_alert_after: float = Field(
        900.0, ge=0, le=31 * DAY, description="seconds a task may wait until a notice says so; 0: never"
    )
    blocked_alert_after: float = Field(
        60.0, ge=0, le=31 * DAY, description="the same for a task whose dependency nobody has submitted"
    )
    batch_settle_seconds: float = Field(
        1.0, ge=0, le=3600, description="seconds a batch must have been complete until a notice says so"
    )
    reassign: Annotated[tuple[str, ...], BeforeValidator(split_substitutes)] = Field(
        (), description="who gets the pending tasks of a dead worker: marie:anga,fabien:anga; empty: nobody"
    )
    reassign_after: float = Field(
        300.0, ge=0, le=31 * DAY, description="seconds a worker must have been dead until its tasks move"
    )
    trigger_retention: float = Field(
        DAY, ge=0, le=3650 * DAY, description="seconds that receipts and notices are kept; 0: for ever"
    )
    result_retention: float = Field(0.0, ge=0, le=3650 * DAY, description="seconds that results are kept; 0: for ever")
    dlq_retention: float = Field(
        0.0, ge=0, le=3650 * DAY, description="seconds that dead letters are kept; 0: for ever"
    )

    def __init__(self, layers: Layers | None = None, **values: object) -> None:
        LayeredConfig.__init__(self, layers, **values)


def load_orchestrator_config(
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    env_file: Path | str | None = None,
) -> Loaded[OrchestratorConfig]:
    """Read the layers (arguments as for `read_layers`) and check them all.

    Raises SettingError with a line for each setting that is wrong.
    """
    return load(OrchestratorConfig, read_layers(flags, environ, env_file))
