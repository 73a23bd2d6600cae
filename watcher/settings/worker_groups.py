"""The settings of a worker by the room that takes them. A group is the options record of its room: nothing is copied.

A room gets the worker's whole config and names the group in its types, so it can read no more than the group holds and
a test can make the group alone. Nothing here is imported by a room when it runs: commands that only read or submit do
without pydantic. How groups are used stands in `shared_groups`. Durations are seconds, sizes are bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, cast, get_args

from pydantic import BeforeValidator, Field

from watcher.formats import task
from watcher.formats.fields import Text
from watcher.policy.retry import RetryDelays
from watcher.settings.config_base import LayeredConfig
from watcher.settings.shared_groups import KillSettings, SettlingSettings, TakingSettings
from watcher.settings.value_types import DAY, MAX_BYTES, FifoMode, fold, matches, split_folders, split_variables


class RetrySettings(LayeredConfig):
    """When a failed attempt is followed by another."""

    max_retries: int = Field(3, ge=0, le=100, description="attempts after the first one of a task")
    retry_backoff: float = Field(2.0, ge=1, le=100, description="factor between one retry delay and the next")
    initial_retry_delay: float = Field(1.0, ge=0, le=DAY, description="seconds before the first retry")
    max_retry_delay: float = Field(300.0, ge=0, le=DAY, description="seconds before a retry, at most")
    retry_jitter: float = Field(0.1, ge=0, le=1, description="random share of a retry delay added, at most")

    @property
    def retry_delays(self) -> RetryDelays:
        """The delays between attempts."""
        return RetryDelays(self.initial_retry_delay, self.retry_backoff, self.max_retry_delay, self.retry_jitter)


class QueueSettings(TakingSettings, SettlingSettings, RetrySettings):
    """What the queue of one worker's tasks needs (`store.queue`)."""

    provider: Annotated[str, matches(cast(Text, task.FIELDS["provider"]))] = Field(
        "claude", description="provider of a task that names none"
    )
    fifo_mode: Annotated[FifoMode, fold(get_args(FifoMode))] = Field(
        "per_agent", description="order of tasks: relaxed, per_agent (in order within an agent_id) or strict"
    )
    max_prompt_bytes: int = Field(
        8 << 20, ge=64, le=MAX_BYTES, description="bytes of a prompt with the texts of its dependencies filled in"
    )
    dependency_timeout: float = Field(
        3600.0, ge=0, le=31 * DAY, description="seconds to wait for a dependency that nobody submitted"
    )
    max_worker_deaths: int = Field(
        3, ge=1, le=100, description="workers that may die on one task until it is a dead letter"
    )


class RunnerSettings(KillSettings):
    """What runs attempts: how commands are started, watched and ended (`watcher.runner`)."""

    agent_env: Annotated[tuple[str, ...], BeforeValidator(split_variables)] = Field(
        (), description="more variables that commands may see: names or globs, commas between"
    )
    allowed_cwd: Annotated[tuple[Path, ...], BeforeValidator(split_folders)] = Field(
        (), description=f"folders that a task's cwd must lie in, {os.pathsep!r} between; empty allows all"
    )
    stall_timeout: float = Field(
        0.0, ge=0, le=DAY, description="seconds without output after which an attempt is ended and retried; 0: never"
    )
    max_output_bytes: int = Field(
        1 << 20, ge=64, le=MAX_BYTES, description="bytes of stdout, and of stderr, kept in a result"
    )
    max_attempt_output_bytes: int = Field(
        256 << 20,
        ge=64,
        le=1 << 50,
        description="bytes that one attempt may print, stdout and stderr together; beyond them it is ended",
    )
    min_free_bytes: int = Field(
        16 << 20, ge=0, le=1 << 50, description="bytes free on the disk below which nothing is claimed"
    )
    acp_auth_method: str = Field(
        "", max_length=200, description="way in which the agent of ACP_COMMAND logs in when it wants that, as api-key"
    )
    warm_agents: int = Field(
        0, ge=0, le=100, description="processes of claude started ahead, each for one task; 0: each task starts its own"
    )
