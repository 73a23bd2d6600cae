"""The settings of `watcher webhook`, with types, ranges and meanings; where they come from is for `watcher_config`.

A config is complete and valid or it is not made: SettingError lists every setting that is wrong. The token is read from
its file here, once, and never shown: not in the table of settings, not in an error, not in a log.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from watcher.errors import SettingError
from watcher.settings.config_base import LayeredConfig, Loaded, load
from watcher.settings.layers import WEBHOOK_SETTINGS, Layers, read_layers
from watcher.settings.shared_groups import ServiceSettings, TakingSettings
from watcher.settings.value_types import DAY, HOST, matches, split_workers

#: A token shorter than this can be guessed.
MIN_TOKEN_CHARS = 16
_MAX_SECRET_BYTES = 65_536


def _home(value: object) -> object:
    return os.path.abspath(os.path.expanduser(value)) if isinstance(value, str) and value else None


_MaybeFile = Annotated[Path | None, BeforeValidator(_home)]


class WebhookConfig(ServiceSettings, TakingSettings):
    """Every setting of the HTTP endpoint, valid; what it shares with a worker has the same name, range and default."""

    names: ClassVar[tuple[str, ...]] = WEBHOOK_SETTINGS

    webhook_host: Annotated[str, matches(HOST)] = Field("127.0.0.1", description="address that posts are taken on")
    webhook_port: int = Field(8787, ge=0, le=65_535, description="TCP port of the endpoint; 0: a free one")
    webhook_token: SecretStr = Field(SecretStr(""), description="bearer token that callers must show")
    webhook_token_file: _MaybeFile = Field(None, description="file with such tokens, one a line")
    webhook_hooks_file: _MaybeFile = Field(None, description="TOML file that says how foreign payloads become tasks")
    webhook_workers: Annotated[tuple[str, ...], BeforeValidator(split_workers)] = Field(
        (), description="workers that may be given tasks, commas between; empty: those that have an inbox"
    )
    webhook_max_pending: int = Field(
        10_000, ge=1, le=10_000_000, description="tasks waiting in an inbox beyond which posts are put off (429)"
    )
    webhook_max_concurrent: int = Field(64, ge=1, le=10_000, description="posts worked on at once; more get 503")
    webhook_max_connections: int = Field(512, ge=8, le=100_000, description="open connections; more get 503")
    webhook_read_timeout: float = Field(10.0, ge=0.1, le=600, description="seconds for a request's head, and its body")
    webhook_retention: float = Field(
        30 * DAY, ge=0, le=3650 * DAY, description="seconds that deliveries are known again without their result"
    )
    state_dir: Path = Field(description="folder of the memory of deliveries")

    def __init__(self, layers: Layers | None = None, **values: object) -> None:
        LayeredConfig.__init__(self, layers, **values)

    @model_validator(mode="after")
    def _has_a_good_token(self) -> WebhookConfig:
        """Not a rule of the field: its error would show the value."""
        if 0 < len(self.webhook_token.get_secret_value()) < MIN_TOKEN_CHARS:
            raise ValueError(f"WEBHOOK_TOKEN has fewer than {MIN_TOKEN_CHARS} characters; take a long random one")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can reach the endpoint."""
        if self.webhook_host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.webhook_host.partition("%")[0]).is_loopback
        except ValueError:
            return False

    def tokens(self) -> tuple[bytes, ...]:
        """The tokens that are good; none when no token is set. Reads WEBHOOK_TOKEN_FILE; raises SettingError."""
        given = self.webhook_token.get_secret_value()
        lines = [given] if given else []
        if self.webhook_token_file is not None:
            found = read_secret(self.webhook_token_file, "WEBHOOK_TOKEN_FILE").split()
            if not found or any(len(token) < MIN_TOKEN_CHARS for token in found):
                raise SettingError(
                    f"WEBHOOK_TOKEN_FILE={self.webhook_token_file}: must hold one token a line, "
                    f"each of {MIN_TOKEN_CHARS} characters or more"
                )
            lines += found
        return tuple(line.encode() for line in lines)


def read_secret(path: Path, what: str) -> str:
    """The text of a file that holds a secret. Raises SettingError, which never shows the text."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_SECRET_BYTES).decode().strip()
    except UnicodeDecodeError:
        raise SettingError(f"{what}={path}: not UTF-8 text; write the secret as text") from None
    except OSError as error:
        raise SettingError(f"{what}={path}: cannot be read: {error.strerror}; name a file that is there") from None


def load_webhook_config(flags: Mapping[str, str] | None = None) -> Loaded[WebhookConfig]:
    """Read the layers (`flags` as for `read_layers`) and check them all. Raises SettingError."""
    return load(WebhookConfig, read_layers(flags))
