"""The endpoint's settings: one list of names, defaults that the example file shows, and a token that nothing shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from watcher.errors import SettingError
from watcher.settings.layers import WEBHOOK_SETTINGS
from watcher.settings.webhook import WebhookConfig, load_webhook_config
from watcher_config import read_layers, render_config

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "0123456789-token-ab"


def config(**given: str) -> WebhookConfig:
    return WebhookConfig(read_layers(environ=given, env_file="/dev/null"))


def test_names_in_config_and_in_reader_are_the_same_and_in_the_same_order() -> None:
    assert sorted(name.upper() for name in WebhookConfig.model_fields) == sorted(WEBHOOK_SETTINGS)
    assert tuple(setting.name for setting in load_webhook_config().settings) == WEBHOOK_SETTINGS
    assert all(field.description for field in WebhookConfig.model_fields.values())


def test_example_file_shows_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (REPOSITORY / ".env.example").read_text().splitlines()
    shown = [line[1:] for line in lines if line[:1] == "#" and line[1:2].isupper()]
    (tmp_path / "all.env").write_text("\n".join(shown))
    monkeypatch.chdir(tmp_path)
    assert WebhookConfig(read_layers(environ={}, env_file="all.env")) == config()


def test_a_misspelt_name_is_refused_with_the_one_meant() -> None:
    with pytest.raises(SettingError, match="did you mean WEBHOOK_TOKEN"):
        config(WEBHOOK_TOKN=TOKEN)


def test_a_token_is_in_no_table_and_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WEBHOOK_TOKEN", TOKEN)
    monkeypatch.setenv("WATCHER_ENV_FILE", "/dev/null")
    loaded = load_webhook_config()
    assert loaded.config.tokens() == (TOKEN.encode(),)
    assert TOKEN not in render_config(loaded) + render_config(loaded, as_json=True) + repr(loaded)
    with pytest.raises(SettingError) as refused:
        config(WEBHOOK_TOKEN="short-one", WEBHOOK_PORT="none")
    assert "short-one" not in str(refused.value)


def test_a_file_may_hold_several_tokens_and_must_hold_good_ones(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}-1\n{TOKEN}-2\n")
    assert config(WEBHOOK_TOKEN_FILE=str(file)).tokens() == (f"{TOKEN}-1".encode(), f"{TOKEN}-2".encode())
    for text in ("", "too-short\n"):
        file.write_text(text)
        with pytest.raises(SettingError, match="16 characters") as refused:
            config(WEBHOOK_TOKEN_FILE=str(file)).tokens()
        assert "too-short" not in str(refused.value)
    with pytest.raises(SettingError, match="cannot be read"):
        config(WEBHOOK_TOKEN_FILE=str(tmp_path / "none")).tokens()


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("example.org", False), ("192.168.0.1", False)],
)  # fmt: skip
def test_only_addresses_that_nobody_else_reaches_count_as_loopback(host: str, is_loopback: bool) -> None:
    assert config(WEBHOOK_HOST=host).is_loopback is is_loopback


def test_a_port_that_kubernetes_set_is_explained() -> None:
    with pytest.raises(SettingError, match="service called webhook"):
        config(WEBHOOK_PORT="tcp://10.0.0.1:80")
