"""Where a task is while it moves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from watcher import presence, whereabouts
from watcher_config import folders, read_layers


def test_task_that_goes_back_for_a_retry_between_two_listings_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = folders(read_layers(environ={"WATCHER_ROOT": str(tmp_path)}, env_file=os.devnull))
    inbox = places.tasks / "marie"
    claim = inbox / ".claims" / ("a" * 32) / "x~1-0.json"
    for folder in (claim.parent, inbox / ".retry"):
        folder.mkdir(parents=True)
    claim.write_text('{"description": "x"}')
    read_claims = presence.read_claims

    def moved_just_before(*given: Any) -> list[presence.Claims]:
        if claim.exists():
            claim.rename(inbox / ".retry" / "x~1-0-0.json")
        return read_claims(*given)

    monkeypatch.setattr(presence, "read_claims", moved_just_before)
    assert whereabouts.resolve(places, "x") == ("marie", "x")
