"""Settings as a worker loads them, for tests: from what a test hands in and the empty folder that it stands in."""

from __future__ import annotations

from pathlib import Path

import pytest

from watcher.errors import SettingError
from watcher.settings.config_base import Loaded, Setting
from watcher.settings.worker import WatcherConfig, load_watcher_config

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test stands in an empty folder: no `.env` of anybody is read."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(flags: dict[str, str] | None = None, env: dict[str, str] | None = None) -> Loaded[WatcherConfig]:
    return load_watcher_config(flags or {}, env or {})


def refusal(flags: dict[str, str] | None = None, env: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingError) as caught:
        load(flags, env)
    return str(caught.value)


def setting(loaded: Loaded[WatcherConfig], name: str) -> Setting:
    (found,) = (s for s in loaded.settings if s.name == name)
    return found
