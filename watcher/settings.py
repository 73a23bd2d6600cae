"""The settings with their types, ranges and meanings, and the table of them that people read.

It never touches the environment: values come from the Layers of `watcher_config`, through a source of
pydantic-settings. A config is complete and valid or it is not made: SettingError lists every setting that is
wrong. A config never changes after. Durations are seconds, sizes are bytes.

`import watcher_config` is the way here; importing this module costs what pydantic costs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, cast, get_args, get_origin
from urllib.parse import urlsplit

from annotated_types import Ge, Le
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from watcher.errors import SettingError
from watcher.formats import task
from watcher.formats.fields import Text
from watcher_config import (
    ALL_SETTINGS,
    FOLDERS,
    LISTENER_SETTINGS,
    ROOT,
    SETTINGS,
    SUPERVISOR_SETTINGS,
    Folders,
    Given,
    Layers,
    Misspelt,
    Source,
    own_instance,
    read_layers,
    refuse,
    resolve_folders,
    state_folder,
    told,
)

_DAY = 86_400.0
#: What a result's `stdout` may hold; more could not be read back.
_MAX_BYTES = 1 << 26

_HOST = Text(255, 1, r"[A-Za-z0-9:][A-Za-z0-9.:%_-]*", "a host name or an IP address")
_INSTANCE = Text(64, 1, r"[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits, dot, dash, underscore")
_ACCOUNT = Text(128, 1, r"[^\0\n]+", "one line, such as team-a")
_TOKEN = Text(4096, 1, r"[!-~]+", "one word without spaces")
_VARIABLES = re.compile(r"[A-Za-z_*?\[][A-Za-z0-9_*?\[\]!-]*")


def _fold(words: tuple[str, ...]) -> BeforeValidator:
    """Take a word in any case and give it in ours."""
    known = {word.casefold(): word for word in words}
    return BeforeValidator(lambda value: known.get(str(value).strip().casefold(), value))


def _split_command(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise ValueError(f"must be a command that splits as in a shell ({error})") from None


def _some_command(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not value[0]:
        raise ValueError("must be a command: a program and its arguments")
    return value


def _split_variables(value: object) -> object:
    if not isinstance(value, str):
        return value
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if not all(_VARIABLES.fullmatch(name) for name in names):
        raise ValueError("must be names of variables with commas between (* and ? match), no values")
    return names


def _split_folders(value: object) -> object:
    if not isinstance(value, str):
        return value
    paths = [os.path.expanduser(path) for path in value.split(os.pathsep) if path]
    if not all(os.path.isabs(path) and "\0" not in path for path in paths):
        raise ValueError(f"must be absolute folders with {os.pathsep!r} between")
    return tuple(Path(os.path.abspath(path)) for path in paths)


def _some_file(value: object) -> object:
    if not isinstance(value, str):
        return value
    path = os.path.abspath(os.path.expanduser(value))
    if "\0" in path or not os.path.isfile(path):
        raise ValueError("must be a file that is there")
    return Path(path)


def _split_workers(value: object) -> object:
    if not isinstance(value, str):
        return value
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if not all(re.fullmatch(task.WORKER_PATTERN, name) for name in names):
        raise ValueError("must be names of workers with commas between: letters, digits, dot, dash, underscore")
    return names


def _split_substitutes(value: object) -> object:
    if not isinstance(value, str):
        return value
    pairs = tuple(pair.strip() for pair in value.split(",") if pair.strip())
    names = [pair.split(":") for pair in pairs]
    good = all(len(pair) == 2 and all(re.fullmatch(task.WORKER_PATTERN, n) for n in pair) for pair in names)
    if not good or any(pair[0] == pair[1] for pair in names) or len({pair[0] for pair in names}) < len(names):
        raise ValueError("must say who stands in for whom, each worker once: marie:anga,fabien:anga")
    return pairs


def _stats_url(value: str) -> str:
    """An address with nothing in it that would be sent to another place than it seems, and no password."""
    if not value:
        return value
    try:
        plain = value.format(worker="w", instance="i", agent_id="a")
        parts = urlsplit(plain)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, KeyError, IndexError, AttributeError):
        is_good = False
    if not is_good or not value.isascii() or not plain.isprintable() or " " in plain or "{" in value.split("/")[2]:
        raise ValueError(
            "must be http://HOST/PATH or https://HOST/PATH, with {worker}, {instance}, {agent_id} in the path"
        )
    if parts.username is not None or parts.fragment:
        raise ValueError("must not hold a name, a password or a #: give the token as STATS_TOKEN")
    return value


def _own_name(value: object) -> object:
    try:
        return own_instance(value) if isinstance(value, str) else value
    except SettingError as error:
        raise ValueError(str(error)) from None


def _expand_user(value: str) -> str:
    return os.path.expanduser(value)


def _same(name: str) -> Any:
    """A setting that the listener shares with a worker."""
    return copy(WatcherConfig.model_fields[name])


def _matches(kind: Text, optional: bool = False) -> AfterValidator:
    """The rule of a field of the wire format; with `optional`, or nothing at all."""
    return AfterValidator(lambda value: value if optional and not value else kind.check(value))


_LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
_LogFormat = Literal["json", "text"]
_Prompt = Literal["stdin", "argument", "file"]
_FifoMode = Literal["relaxed", "per_agent", "strict"]
_MaybeCommand = Annotated[tuple[str, ...], BeforeValidator(_split_command)]
_Command = Annotated[_MaybeCommand, AfterValidator(_some_command)]


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """What the metrics endpoint needs. A port that nobody set may give way to another when it is taken."""

    enable_metrics: bool
    metrics_host: str
    metrics_port: int
    port_was_set: bool


class _LayersSource(PydanticBaseSettingsSource):
    """Hands pydantic what was given, as text; the folders come resolved."""

    def __init__(self, settings_cls: type[BaseSettings], layers: Layers) -> None:
        super().__init__(settings_cls)
        found, _ = resolve_folders(layers)
        known = settings_cls.model_fields
        self._values: dict[str, object] = {
            name.lower(): given.value for name, given in layers.given.items() if name.lower() in known
        }
        self._values[ROOT.lower()] = found.root
        self._values.update({name.lower(): getattr(found, attribute) for name, attribute in FOLDERS.items()})
        if "state_dir" in known:
            self._values["state_dir"] = state_folder(layers, found.root)

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self._values)


class _LayeredConfig(BaseSettings):
    """How a config is made of layers; what is in it stands in the classes below."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, hide_input_in_errors=True)
    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, layers: Layers | None = None, **values: object) -> None:
        layers = _with_keywords(type(self), read_layers() if layers is None else layers, values)
        _, problems = resolve_folders(layers)
        problems = layers.misspellings(self.names) + problems
        try:
            super().__init__(layers=layers)
        except ValidationError as error:
            problems += _explain(type(self), error, layers)
        refuse(problems)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the layers: the sources of pydantic-settings would read the environment by their own rules."""
        layers = cast(InitSettingsSource, init_settings).init_kwargs["layers"]
        return (_LayersSource(settings_cls, layers),)

    @property
    def folders(self) -> Folders:
        """The folders in one record."""
        return Folders(
            root=getattr(self, ROOT.lower()),
            **{attribute: getattr(self, name.lower()) for name, attribute in FOLDERS.items()},
        )

    @property
    def metrics(self) -> MetricsConfig:
        """What the metrics endpoint needs."""
        return MetricsConfig(
            **{name: getattr(self, name) for name in ("enable_metrics", "metrics_host", "metrics_port")},
            port_was_set="metrics_port" in self.model_fields_set,
        )


class WatcherConfig(_LayeredConfig):
    """Every setting of a worker, valid. The attribute is the setting's name in lower case.

    `WatcherConfig()` reads the layers itself, without flags; `WatcherConfig(layers)` takes what was read
    before. Keywords (`max_retries=0`) count as flags. Commands are tuples, split as a shell would and never
    run by one. Raises SettingError with a line for each setting that is wrong.
    """

    names: ClassVar[tuple[str, ...]] = SETTINGS

    max_concurrent_tasks: int = Field(3, ge=1, le=1000, description="tasks that run at once")
    task_timeout: float = Field(600.0, ge=0.1, le=task.MAX_TIMEOUT_SECONDS, description="seconds one attempt may take")
    heartbeat_interval: float = Field(10.0, ge=0.1, le=3600, description="seconds between two heartbeats")

    max_retries: int = Field(3, ge=0, le=100, description="attempts after the first one of a task")
    retry_backoff: float = Field(2.0, ge=1, le=100, description="factor between one retry delay and the next")
    initial_retry_delay: float = Field(1.0, ge=0, le=_DAY, description="seconds before the first retry")
    max_retry_delay: float = Field(300.0, ge=0, le=_DAY, description="seconds before a retry, at most")
    retry_jitter: float = Field(0.1, ge=0, le=1, description="random share of a retry delay added, at most")

    circuit_breaker_threshold: int = Field(5, ge=1, le=10_000, description="failures in a row that stop a provider")
    circuit_breaker_timeout: float = Field(
        60.0, ge=0.1, le=_DAY, description="seconds until a stopped provider is tried again"
    )

    max_cost_per_task: float = Field(
        0.0, ge=0, le=1e6, description="USD that all attempts of a task may cost, where the provider tells; 0: any"
    )
    daily_budget: float = Field(
        0.0, ge=0, le=1e6, description="USD that this worker may spend in a day (UTC), where providers tell; 0: any"
    )
    stall_timeout: float = Field(
        0.0, ge=0, le=_DAY, description="seconds without output after which an attempt is ended and retried; 0: never"
    )

    watcher_root: Path = Field(description="folder that holds all the others")
    task_dir: Path = Field(description="folder of the tasks, one folder a worker")
    trigger_dir: Path = Field(description="folder of the receipts and notices")
    result_dir: Path = Field(description="folder of the results")
    heartbeat_dir: Path = Field(description="folder of the heartbeats")
    dlq_dir: Path = Field(description="folder of the dead letters")
    control_dir: Path = Field(description="folder of the operator's commands")

    log_level: Annotated[_LogLevel, _fold(get_args(_LogLevel))] = Field(
        "INFO", description="least level that is logged"
    )
    log_format: Annotated[_LogFormat, _fold(get_args(_LogFormat))] = Field(
        "json", description="json, or text for a terminal"
    )
    enable_metrics: bool = Field(True, description="serve Prometheus metrics")
    metrics_port: int = Field(9090, ge=0, le=65_535, description="TCP port of the metrics; 0: a free one")
    metrics_host: Annotated[str, _matches(_HOST)] = Field("127.0.0.1", description="address that the metrics listen on")

    provider: Annotated[str, _matches(cast(Text, task.FIELDS["provider"]))] = Field(
        "claude", description="provider of a task that names none"
    )
    model: Annotated[str, _matches(cast(Text, task.FIELDS["model"]), optional=True)] = Field(
        "", description="model of a task that names none; empty leaves it to the provider"
    )
    provider_account: Annotated[str, _matches(_ACCOUNT, optional=True)] = Field(
        "", description="which login of the providers this worker uses, when there are several; holds are per account"
    )
    claude_command: _Command = Field(("claude",), description="command of the provider claude")
    gemini_command: _Command = Field(("gemini",), description="command of the provider gemini")
    cursor_command: _Command = Field(("cursor-agent",), description="command of the provider cursor-agent")
    codex_command: _Command = Field(("codex",), description="command of the provider codex")
    opencode_command: _Command = Field(("opencode",), description="command of the provider opencode")
    qwen_command: _Command = Field(("qwen",), description="command of the provider qwen")
    providers_file: Annotated[Path | None, BeforeValidator(_some_file)] = Field(
        None, description="TOML file that describes more providers, or changes these (docs/providers.md)"
    )
    agent_command: _MaybeCommand = Field((), description="command of the provider command: any program")
    agent_prompt: Annotated[_Prompt, _fold(get_args(_Prompt))] = Field(
        "stdin", description="how the provider command gets its prompt: stdin, argument or file"
    )
    agent_env: Annotated[tuple[str, ...], BeforeValidator(_split_variables)] = Field(
        (), description="more variables that commands may see: names or globs, commas between"
    )
    allowed_cwd: Annotated[tuple[Path, ...], BeforeValidator(_split_folders)] = Field(
        (), description=f"folders that a task's cwd must lie in, {os.pathsep!r} between; empty allows all"
    )

    handler_command: _MaybeCommand = Field(
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
        3600.0, ge=0, le=31 * _DAY, description="seconds after which a handler is replaced; 0: never"
    )
    handler_max_memory: int = Field(
        1 << 30, ge=0, le=1 << 50, description="resident bytes above which a handler is replaced; 0: never"
    )

    fifo_mode: Annotated[_FifoMode, _fold(get_args(_FifoMode))] = Field(
        "per_agent", description="order of tasks: relaxed, per_agent (in order within an agent_id) or strict"
    )
    queue_size: int = Field(
        100, ge=0, le=100_000, description="short tasks claimed ahead of those that run, at most; 0: none"
    )
    scan_interval: float = Field(5.0, ge=0.05, le=3600, description="seconds between two scans of the inbox")
    poll_interval: float = Field(
        0.2, ge=0.01, le=60, description="seconds between two scans where there are no file events"
    )
    settle_seconds: float = Field(
        2.0, ge=0, le=600, description="seconds without change before a broken file is refused"
    )
    max_task_bytes: int = Field(1 << 20, ge=64, le=_MAX_BYTES, description="bytes of a task file, at most")
    max_output_bytes: int = Field(
        1 << 20, ge=64, le=_MAX_BYTES, description="bytes of stdout, and of stderr, kept in a result"
    )
    dependency_timeout: float = Field(
        3600.0, ge=0, le=31 * _DAY, description="seconds to wait for a dependency that nobody submitted"
    )
    max_worker_deaths: int = Field(
        3, ge=1, le=100, description="workers that may die on one task until it is a dead letter"
    )
    shutdown_grace: float = Field(30.0, ge=0, le=_DAY, description="seconds that running tasks get at a stop")
    kill_grace: float = Field(5.0, ge=0, le=600, description="seconds between TERM and KILL for a command")
    min_free_bytes: int = Field(
        16 << 20, ge=0, le=1 << 50, description="bytes free on the disk below which nothing is claimed"
    )
    watcher_instance: Annotated[str, BeforeValidator(_own_name), _matches(_INSTANCE, optional=True)] = Field(
        "",
        description="name of this process when several serve one worker name; @hostname: the machine's or container's",
    )

    stats_url: Annotated[str, AfterValidator(_stats_url)] = Field(
        "",
        description="where outcomes are told by PATCH; {worker}, {instance}, {agent_id} are filled; empty: nowhere",
    )
    stats_token: Annotated[str, _matches(_TOKEN, optional=True)] = Field(
        "", description="bearer token sent along, which is never shown"
    )
    zones_file: Annotated[str, AfterValidator(_expand_user)] = Field(
        "", description="file of drop zones that this worker's process serves; empty: none"
    )
    state_dir: Path = Field(description="folder of the listener's database and of what the drop zones remember")

    def __init__(self, layers: Layers | None = None, **values: object) -> None:
        super().__init__(layers, **values)

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
        }

    @model_validator(mode="after")
    def _has_the_command_it_names(self) -> WatcherConfig:
        if self.provider == "command" and not self.agent_command:
            raise ValueError("AGENT_COMMAND is not set: PROVIDER=command needs the command to run")
        if self.provider == "handler" and not self.handler_command:
            raise ValueError("HANDLER_COMMAND is not set: PROVIDER=handler needs the command to keep running")
        return self

    @model_validator(mode="after")
    def _has_a_pool_within_its_limits(self) -> WatcherConfig:
        if not self.handler_pool_min <= self.handler_pool_size <= self.handler_pool_max:
            raise ValueError(
                "HANDLER_POOL_SIZE must lie between HANDLER_POOL_MIN and HANDLER_POOL_MAX, but is "
                f"{self.handler_pool_size} with {self.handler_pool_min} and {self.handler_pool_max}"
            )
        return self


class OrchestratorConfig(_LayeredConfig):
    """Every setting of the listener, valid; what it shares with a worker has the same name, range and default."""

    names: ClassVar[tuple[str, ...]] = LISTENER_SETTINGS

    workers: Annotated[tuple[str, ...], BeforeValidator(_split_workers)] = Field(
        (), description="workers to listen to, commas between; empty: all, as they appear"
    )
    state_dir: Path = _same("state_dir")
    watcher_root: Path = _same("watcher_root")
    task_dir: Path = _same("task_dir")
    trigger_dir: Path = _same("trigger_dir")
    result_dir: Path = _same("result_dir")
    heartbeat_dir: Path = _same("heartbeat_dir")
    dlq_dir: Path = _same("dlq_dir")
    control_dir: Path = _same("control_dir")
    log_level: _LogLevel = _same("log_level")
    log_format: _LogFormat = _same("log_format")
    enable_metrics: bool = _same("enable_metrics")
    metrics_port: int = _same("metrics_port")
    metrics_host: str = _same("metrics_host")
    scan_interval: float = _same("scan_interval")
    poll_interval: float = _same("poll_interval")
    settle_seconds: float = _same("settle_seconds")
    heartbeat_interval: float = _same("heartbeat_interval")
    task_timeout: float = _same("task_timeout")
    kill_grace: float = _same("kill_grace")
    pending_alert_after: float = Field(
        900.0, ge=0, le=31 * _DAY, description="seconds a task may wait until a notice says so; 0: never"
    )
    blocked_alert_after: float = Field(
        60.0, ge=0, le=31 * _DAY, description="the same for a task whose dependency nobody has submitted"
    )
    batch_settle_seconds: float = Field(
        1.0, ge=0, le=3600, description="seconds a batch must have been complete until a notice says so"
    )
    reassign: Annotated[tuple[str, ...], BeforeValidator(_split_substitutes)] = Field(
        (), description="who gets the pending tasks of a dead worker: marie:anga,fabien:anga; empty: nobody"
    )
    reassign_after: float = Field(
        300.0, ge=0, le=31 * _DAY, description="seconds a worker must have been dead until its tasks move"
    )
    trigger_retention: float = Field(
        _DAY, ge=0, le=3650 * _DAY, description="seconds that receipts and notices are kept; 0: for ever"
    )
    result_retention: float = Field(0.0, ge=0, le=3650 * _DAY, description="seconds that results are kept; 0: for ever")
    dlq_retention: float = Field(
        0.0, ge=0, le=3650 * _DAY, description="seconds that dead letters are kept; 0: for ever"
    )

    def __init__(self, layers: Layers | None = None, **values: object) -> None:
        super().__init__(layers, **values)


class SupervisorConfig(_LayeredConfig):
    """Every setting that the supervisor has for itself; the rest it takes from those of its workers."""

    names: ClassVar[tuple[str, ...]] = SUPERVISOR_SETTINGS

    watcher_root: Path = _same("watcher_root")
    task_dir: Path = _same("task_dir")
    trigger_dir: Path = _same("trigger_dir")
    result_dir: Path = _same("result_dir")
    heartbeat_dir: Path = _same("heartbeat_dir")
    dlq_dir: Path = _same("dlq_dir")
    control_dir: Path = _same("control_dir")
    max_restarts: int = Field(10, ge=0, le=10_000, description="restarts in a row of a process that crashes")
    restart_delay: float = Field(
        1.0, ge=0.01, le=3600, description="seconds before the first restart; twice as long each time, at most 60"
    )
    restart_reset_after: float = Field(
        60.0, ge=0, le=_DAY, description="seconds a process must have been well until earlier crashes are forgotten"
    )
    max_cpu_percent: float = Field(
        80.0, ge=1, le=100, description="percent of the machine's CPUs above which instances are drained"
    )
    max_memory_percent: float = Field(90.0, ge=1, le=100, description="the same for its memory")

    def __init__(self, layers: Layers | None = None, **values: object) -> None:
        super().__init__(layers, **values)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it is in force. `value` is text as the environment would have it."""

    name: str
    value: str
    source: Source
    meaning: str
    allowed: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """The config, and for each setting where it came from. `env_file` is the `.env` that was read, if any."""

    config: WatcherConfig
    settings: tuple[Setting, ...]
    env_file: Path | None


@dataclass(frozen=True, slots=True)
class LoadedOrchestrator:
    """The same for the listener."""

    config: OrchestratorConfig
    settings: tuple[Setting, ...]
    env_file: Path | None


def load_watcher_config(
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    env_file: Path | str | None = None,
) -> Loaded:
    """Read the layers (arguments as for `read_layers`) and check them all.

    Raises SettingError with a line for each setting that is wrong.
    """
    layers = read_layers(flags, environ, env_file)
    config = WatcherConfig(layers)
    return Loaded(config, _in_force(config, layers), layers.env_file)


def load_orchestrator_config(
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    env_file: Path | str | None = None,
) -> LoadedOrchestrator:
    """The same for the listener."""
    layers = read_layers(flags, environ, env_file)
    config = OrchestratorConfig(layers)
    return LoadedOrchestrator(config, _in_force(config, layers), layers.env_file)


def _in_force(config: _LayeredConfig, layers: Layers) -> tuple[Setting, ...]:
    return tuple(
        Setting(
            name=field_name.upper(),
            value=_as_text(field_name, getattr(config, field_name)),
            source=layers.source(field_name.upper()),
            meaning=field.description or "",
            allowed=_allowed(field),
        )
        for field_name, field in type(config).model_fields.items()
    )


class InForce(Protocol):
    """Any config that was loaded, as its table is made of it."""

    @property
    def settings(self) -> tuple[Setting, ...]: ...

    @property
    def env_file(self) -> Path | None: ...


def render_config(loaded: InForce, as_json: bool = False) -> str:
    """The settings in force for people: a table, or one JSON object. What looks like a secret is hidden."""
    if as_json:
        rows = [
            {
                "setting": setting.name,
                "value": told(setting.name, setting.value),
                "source": setting.source,
                "meaning": setting.meaning,
                "allowed": setting.allowed,
            }
            for setting in loaded.settings
        ]
        env_file = None if loaded.env_file is None else str(loaded.env_file.absolute())
        return json.dumps({"env_file": env_file, "settings": rows}, indent=2)
    header = ("SETTING", "VALUE", "FROM", "MEANING")
    table = [header, *((s.name, told(s.name, s.value) or "-", s.source, s.meaning) for s in loaded.settings)]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]) for row in table]
    return "\n".join(lines) + ("" if loaded.env_file is None else f"\n\n.env is {loaded.env_file.absolute()}")


def _with_keywords(kind: type[_LayeredConfig], layers: Layers, values: Mapping[str, object]) -> Layers:
    """Keywords as flags; a name that is no setting is kept, to be refused with the rest."""
    if not values:
        return layers
    fields = kind.model_fields
    unknown = tuple(Misspelt(name, "flag", None) for name in values if name not in fields)
    given = dict(layers.given)
    for name, value in values.items():
        given[name.upper()] = Given(_as_text(name, value), "flag")
    given = {name: found for name, found in given.items() if name in ALL_SETTINGS}
    return Layers(given, layers.misspelt + unknown, layers.env_file)


def _explain(kind: type[_LayeredConfig], error: ValidationError, layers: Layers) -> list[str]:
    """A line for each thing that pydantic found; its own words name types, ours name what to write."""
    lines = []
    for wrong in error.errors(include_url=False, include_input=False):
        if not wrong["loc"]:
            lines.append(str(wrong["ctx"]["error"]))
            continue
        field_name = str(wrong["loc"][0])
        if wrong["type"] == "value_error":
            what = str(wrong["ctx"]["error"])
        else:
            what = "must be " + _allowed(kind.model_fields[field_name])
        lines.append(layers.problem(field_name.upper(), what + _service_link(layers, field_name)))
    return lines


def _service_link(layers: Layers, field_name: str) -> str:
    """Kubernetes gives pods NAME_PORT=tcp://... for each service: one called `metrics` sets METRICS_PORT."""
    given = layers.given.get(field_name.upper())
    if field_name.endswith("_port") and given is not None and given.value.startswith("tcp://"):
        service = field_name.removesuffix("_port")
        return f" (Kubernetes set it for a service called {service}: put enableServiceLinks: false in the pod)"
    return ""


def _allowed(field: FieldInfo) -> str:
    """What a setting may be, in words."""
    low = next((rule.ge for rule in field.metadata if isinstance(rule, Ge)), None)
    high = next((rule.le for rule in field.metadata if isinstance(rule, Le)), None)
    if field.annotation is bool:
        return "true or false (or 1, 0, yes, no, on, off)"
    if low is not None and high is not None:
        kind = "a whole number" if field.annotation is int else "a number"
        return f"{kind} from {_number(low)} to {_number(high)}"
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(get_args(field.annotation))
    return "a folder" if field.annotation is Path else "text"


def _number(value: object) -> str:
    return str(value).removesuffix(".0")


#: What stands between the members of a setting that is a list; all others are commands.
_BETWEEN = {"agent_env": ",", "workers": ",", "reassign": ",", "webhook_workers": ",", "allowed_cwd": os.pathsep}


def _as_text(field_name: str, value: object) -> str:
    """A value as the environment would have it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        between = _BETWEEN.get(field_name)
        return shlex.join(value) if between is None else between.join(map(str, value))
    return _number(value) if isinstance(value, float) else str(value)
