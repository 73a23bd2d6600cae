"""Define the settings that several programs share, each once: a name means the same wherever it is read.

A config inherits the groups that it has. The order in which people see its settings is that of its `names`, whichever
group they come from. A group is never made by itself, so it has no `__init__`: a config calls that of LayeredConfig.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

from pydantic import BeforeValidator, Field

from watcher.formats import task
from watcher.settings.config_base import LayeredConfig, MetricsConfig
from watcher.settings.folders import Folders
from watcher.settings.value_types import DAY, HOST, MAX_BYTES, LogFormat, LogLevel, fold, matches, split_hosts


class FolderSettings(LayeredConfig):
    """Where everything lies: every program has these."""

    watcher_root: Path = Field(description="folder that holds all the others")
    task_dir: Path = Field(description="folder of the tasks, one folder a worker")
    trigger_dir: Path = Field(description="folder of the receipts and notices")
    result_dir: Path = Field(description="folder of the results")
    heartbeat_dir: Path = Field(description="folder of the heartbeats")
    dlq_dir: Path = Field(description="folder of the dead letters")
    control_dir: Path = Field(description="folder of the operator's commands")

    @property
    def folders(self) -> Folders:
        """The folders in one record."""
        return Folders(
            root=self.watcher_root,
            tasks=self.task_dir,
            triggers=self.trigger_dir,
            results=self.result_dir,
            heartbeats=self.heartbeat_dir,
            dlq=self.dlq_dir,
            control=self.control_dir,
        )


class ServiceSettings(FolderSettings):
    """What the worker, the listener and the HTTP endpoint share: what they tell, and when they look."""

    log_level: Annotated[LogLevel, fold(get_args(LogLevel))] = Field("INFO", description="least level that is logged")
    log_format: Annotated[LogFormat, fold(get_args(LogFormat))] = Field(
        "json", description="json, or text for a terminal"
    )
    enable_metrics: bool = Field(True, description="serve Prometheus metrics")
    metrics_port: int = Field(9090, ge=0, le=65_535, description="TCP port of the metrics; 0: a free one")
    metrics_host: Annotated[str, matches(HOST)] = Field("127.0.0.1", description="address that the metrics listen on")
    metrics_allowed_hosts: Annotated[tuple[str, ...], BeforeValidator(split_hosts)] = Field(
        (), description="names in Host that are answered besides the loopback's; empty elsewhere: every name"
    )
    scan_interval: float = Field(5.0, ge=0.05, le=3600, description="seconds between two scans of the inbox")
    poll_interval: float = Field(
        0.2, ge=0.01, le=60, description="seconds between two scans where there are no file events"
    )

    @property
    def metrics(self) -> MetricsConfig:
        """What the metrics endpoint needs."""
        return MetricsConfig(
            self.enable_metrics,
            self.metrics_host,
            self.metrics_port,
            "metrics_port" in self.model_fields_set,
            self.metrics_allowed_hosts,
        )


class SettlingSettings(LayeredConfig):
    """How long a file may be none of ours until it is judged: whoever reads files of others has this."""

    settle_seconds: float = Field(
        2.0, ge=0, le=600, description="seconds without change before a broken file is refused"
    )


class KillSettings(LayeredConfig):
    """How a command is ended."""

    kill_grace: float = Field(5.0, ge=0, le=600, description="seconds between TERM and KILL for a command")


class TeamSettings(ServiceSettings, SettlingSettings, KillSettings):
    """What a worker and the listener share beyond that: the listener judges a worker by the worker's own times."""

    state_dir: Path = Field(description="folder of the listener's database and of what the drop zones remember")
    heartbeat_interval: float = Field(10.0, ge=0.1, le=3600, description="seconds between two heartbeats")
    task_timeout: float = Field(600.0, ge=0.1, le=task.MAX_TIMEOUT_SECONDS, description="seconds one attempt may take")


class TakingSettings(LayeredConfig):
    """What a worker and the HTTP endpoint share: both take tasks from others, and finish what they have begun."""

    max_task_bytes: int = Field(1 << 20, ge=64, le=MAX_BYTES, description="bytes of a task file, at most")
    shutdown_grace: float = Field(30.0, ge=0, le=DAY, description="seconds that running tasks get at a stop")
