"""What is done with a dropped file in the end, where another user exchanges it in the middle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from watcher.intake.drop_zones import finishing
from watcher.intake.drop_zones.arrivals import FileSignature
from watcher.intake.drop_zones.file_memory import ZoneMemory
from watcher.intake.drop_zones.file_to_task import DropRefused


def test_folder_that_came_under_the_name_of_a_refused_link_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "in"
    (base / ".x").mkdir(parents=True)
    (base / ".x" / "letter").write_text("not refused")
    (base / "sub").symlink_to("/")
    refused = FileSignature.of(os.lstat(base / "sub"))
    real = finishing.replace

    def exchange(*of: Any, **more: Any) -> None:
        real(*of, **more)
        (base / "sub").unlink()
        (base / ".x").rename(base / "sub")

    monkeypatch.setattr(finishing, "replace", exchange)
    memory = ZoneMemory.take(tmp_path / "state", "notes")
    assert memory is not None
    where = finishing.refuse(str(base / "sub"), base, "notes", refused, DropRefused("not_regular", "a link"), memory)
    memory.close()
    assert where is None
    assert (base / "sub" / "letter").read_text() == "not refused"
    assert os.listdir(base / ".aside") == []
