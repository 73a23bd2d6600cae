"""Make a config of layers, say what is wrong with it, and write the table of it that people read.

It never touches the environment: values come from the Layers of `watcher_config`, through a source of
pydantic-settings. A config is complete and valid or it is not made: SettingError lists every setting that is
wrong. A config never changes after. What settings there are stands in `watcher/settings`.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from watcher.settings.folders import resolve_folders, state_folder
from watcher.settings.layers import (
    ALL_SETTINGS,
    FOLDERS,
    ROOT,
    Given,
    Layers,
    Misspelt,
    Source,
    read_layers,
    refuse,
    told,
)


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """What the metrics endpoint needs. A port that nobody set may give way to another when it is taken."""

    enable_metrics: bool
    metrics_host: str
    metrics_port: int
    port_was_set: bool
    allowed_hosts: tuple[str, ...] = ()


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


class LayeredConfig(BaseSettings):
    """How a config is made of layers; what is in it stands in the classes that inherit this.

    `names` are its settings, in the order in which people see them.
    """

    # Built at its first use: a program uses one config of those that it imports, and a group of settings is never used.
    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", str_strip_whitespace=True, hide_input_in_errors=True, defer_build=True
    )
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

    @classmethod
    def fields(cls) -> list[tuple[str, FieldInfo]]:
        """The settings in the order of `names`, which is not that of the classes they come from."""
        return [(name.lower(), cls.model_fields[name.lower()]) for name in cls.names]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as it is in force. `value` is text as the environment would have it."""

    name: str
    value: str
    source: Source
    meaning: str
    allowed: str


def in_force(config: LayeredConfig, layers: Layers) -> tuple[Setting, ...]:
    return tuple(
        Setting(
            name=field_name.upper(),
            value=_as_text(field_name, getattr(config, field_name)),
            source=layers.source(field_name.upper()),
            meaning=field.description or "",
            allowed=_allowed(field),
        )
        for field_name, field in config.fields()
    )


C_co = TypeVar("C_co", bound=LayeredConfig, covariant=True)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[C_co]):
    """A config, and for each setting where it came from. `env_file` is the `.env` that was read, if any."""

    config: C_co
    settings: tuple[Setting, ...]
    env_file: Path | None


def load(kind: Callable[[Layers], C_co], layers: Layers) -> Loaded[C_co]:
    """The config of this kind, from layers that were read.

    Raises SettingError with a line for each setting that is wrong.
    """
    config = kind(layers)
    return Loaded(config, in_force(config, layers), layers.env_file)


def render_config(loaded: Loaded[LayeredConfig], as_json: bool = False) -> str:
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


def _with_keywords(kind: type[LayeredConfig], layers: Layers, values: Mapping[str, object]) -> Layers:
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


def _explain(kind: type[LayeredConfig], error: ValidationError, layers: Layers) -> list[str]:
    """A line for each thing that pydantic found; its own words name types, ours name what to write."""
    lines = []
    places = {field_name: place for place, (field_name, _) in enumerate(kind.fields())}
    found = error.errors(include_url=False, include_input=False)
    for wrong in sorted(found, key=lambda wrong: places.get(str(wrong["loc"][0]), 0) if wrong["loc"] else -1):
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
