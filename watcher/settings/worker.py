"""The settings of a worker, with their types, ranges and meanings. Durations are seconds, sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, cast, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from watcher.formats import task
from watcher.formats.fields import Text
from watcher.policy.budget_limits import BudgetLimits
from watcher.settings.config_base import LayeredConfig, Loaded, load
from watcher.settings.layers import SETTINGS, Layers, read_layers
from watcher.settings.shared_groups import TeamSettings
from watcher.settings.value_types import (
    ACCOUNT,
    DAY,
    INSTANCE,
    TOKEN,
    Command,
    MaybeCommand,
    Prompt,
    address_template,
    expand_user,
    fold,
    matches,
    own_name,
    some_file,
)
from watcher.settings.worker_groups import QueueSettings, RunnerSettings


class WatcherConfig(TeamSettings, QueueSettings, RunnerSettings):
    """Every setting of a worker, valid. The attribute is the setting's name in lower case.

    `WatcherConfig()` reads the layers itself, without flags; `WatcherConfig(layers)` takes what was read
    before. Keywords (`max_retries=0`) count as flags. Commands are tuples, split as a shell would and never
    run by one. Raises SettingError with a line for each setting that is wrong.
    """

    names: ClassVar[tuple[str, ...]] = SETTINGS

    max_concurrent_tasks: int = Field(3, ge=1, le=1000, description="tasks that run at once")

    circuit_breaker_threshold: int = Field(5, ge=1, le=10_000, description="failures in a row that stop a provider")
    circuit_breaker_timeout: float = Field(
        60.0, ge=0.1, le=DAY, description="seconds until a stopped provider is tried again"
    )

    max_cost_per_task: float = Field(
        0.0, ge=0, le=1e6, description="USD that all attempts of a task may cost, where the provider tells; 0: any"
    )
    daily_budget: float = Field(
        0.0, ge=0, le=1e6, description="USD that this worker may spend in a day (UTC), where providers tell; 0: any"
    )
    max_tokens_per_task: int = Field(
        0, ge=0, le=10**12, description="tokens that all attempts of a task may use, where the provider tells; 0: any"
    )
    model: Annotated[str, matches(cast(Text, task.FIELDS["model"]), optional=True)] = Field(
        "", description="model of a task that names none; empty leaves it to the provider"
    )
    provider_account: Annotated[str, matches(ACCOUNT, optional=True)] = Field(
        "", description="which login of the providers this worker uses, when there are several; holds are per account"
    )
    claude_command: Command = Field(("claude",), description="command of the provider claude")
    gemini_command: Command = Field(("gemini",), description="command of the provider gemini")
    cursor_command: Command = Field(("cursor-agent",), description="command of the provider cursor-agent")
    codex_command: Command = Field(("codex",), description="command of the provider codex")
    opencode_command: Command = Field(("opencode",), description="command of the provider opencode")
    qwen_command: Command = Field(("qwen",), description="command of the provider qwen")
    providers_file: Annotated[Path | None, BeforeValidator(some_file)] = Field(
        None, description="TOML file that describes more providers, or changes these (docs/providers.md)"
    )
    agent_command: MaybeCommand = Field((), description="command of the provider command: any program")
    agent_prompt: Annotated[Prompt, fold(get_args(Prompt))] = Field(
        "stdin", description="how the provider command gets its prompt: stdin, argument or file"
    )
    agent_sudo: bool = Field(
        False, description="let agents use sudo and other setuid programs; then they can also signal this worker"
    )
    acp_command: MaybeCommand = Field(
        (), description="command of the provider acp: an agent that speaks the Agent Client Protocol"
    )
    handler_command: MaybeCommand = Field(
        (), description="command of the provider handler: a program that is kept running and answers many tasks"
    )
    handler_pool_size: int = Field(3, ge=1, le=1000, description="handlers kept running")
    handler_pool_min: int = Field(1, ge=1, le=1000, description="handlers kept running when there is nothing to do")
    handler_pool_max: int = Field(10, ge=1, le=1000, description="handlers, at most, when many tasks wait for one")
    handler_request_timeout: float = Field(
        300.0, ge=0.1, le=task.MAX_TIMEOUT_SECONDS, description="seconds a handler may take for one task"
    )
    handler_start_timeout: float = Field(
        30.0, ge=0.1, le=3600, description="seconds a handler may take to start and answer its first ping"
    )
    handler_max_requests: int = Field(
        10_000, ge=0, le=1 << 40, description="tasks after which a handler is replaced; 0: never"
    )
    handler_max_age: float = Field(
        3600.0, ge=0, le=31 * DAY, description="seconds after which a handler is replaced; 0: never"
    )
    handler_max_memory: int = Field(
        1 << 30, ge=0, le=1 << 50, description="resident bytes above which a handler is replaced; 0: never"
    )

    queue_size: int = Field(
        100, ge=0, le=100_000, description="short tasks claimed ahead of those that run, at most; 0: none"
    )
    max_given_back: int = Field(
        3, ge=1, le=100, description="times a task may blame its account or the machine wrongly until it has failed"
    )
    watcher_instance: Annotated[str, BeforeValidator(own_name), matches(INSTANCE, optional=True)] = Field(
        "",
        description="name of this process when several serve one worker name; @hostname: the machine's or container's",
    )

    stats_url: Annotated[str, AfterValidator(address_template)] = Field(
        "",
        description="where outcomes are told by PATCH; {worker}, {instance}, {agent_id} are filled; empty: nowhere",
    )
    stats_token: Annotated[str, matches(TOKEN, optional=True)] = Field(
        "", description="bearer token sent along, which is never shown"
    )
    zones_file: Annotated[str, AfterValidator(expand_user)] = Field(
        "", description="file of drop zones that this worker's process serves; empty: none"
    )

    def __init__(self, layers: Layers | None = None, **values: object) -> None:
        LayeredConfig.__init__(self, layers, **values)

    @property
    def limits(self) -> BudgetLimits:
        """The budgets."""
        return BudgetLimits(self.max_cost_per_task, self.daily_budget, self.max_tokens_per_task)

    @property
    def commands(self) -> dict[str, tuple[str, ...]]:
        """The command of each provider that has a setting for it; an empty one is not set."""
        return {
            "claude": self.claude_command,
            "gemini": self.gemini_command,
            "cursor-agent": self.cursor_command,
            "codex": self.codex_command,
            "opencode": self.opencode_command,
            "qwen": self.qwen_command,
            "command": self.agent_command,
            "handler": self.handler_command,
            "acp": self.acp_command,
        }

    @model_validator(mode="after")
    def _has_the_command_it_names(self) -> WatcherConfig:
        if self.provider == "command" and not self.agent_command:
            raise ValueError("AGENT_COMMAND is not set: PROVIDER=command needs the command to run")
        if self.provider == "acp" and not self.acp_command:
            raise ValueError("ACP_COMMAND is not set: PROVIDER=acp needs the command to run")
        if self.provider == "handler" and not self.handler_command:
            raise ValueError("HANDLER_COMMAND is not set: PROVIDER=handler needs the command to keep running")
        if self.agent_prompt != "file" and any("{prompt_file}" in word for word in self.agent_command):
            raise ValueError("AGENT_COMMAND names {prompt_file}: that stands for something only with AGENT_PROMPT=file")
        return self

    @model_validator(mode="after")
    def _has_a_pool_within_its_limits(self) -> WatcherConfig:
        if not self.handler_pool_min <= self.handler_pool_size <= self.handler_pool_max:
            raise ValueError(
                "HANDLER_POOL_SIZE must lie between HANDLER_POOL_MIN and HANDLER_POOL_MAX, but is "
                f"{self.handler_pool_size} with {self.handler_pool_min} and {self.handler_pool_max}"
            )
        return self


def load_watcher_config(
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    env_file: Path | str | None = None,
) -> Loaded[WatcherConfig]:
    """Read the layers (arguments as for `read_layers`) and check them all.

    Raises SettingError with a line for each setting that is wrong.
    """
    return load(WatcherConfig, read_layers(flags, environ, env_file))
