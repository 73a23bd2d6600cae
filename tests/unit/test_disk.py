"""Free room as a metric."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry

from watcher.telemetry.disk_space import DiskSpace


def _registry(**folders: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(DiskSpace(folders))
    return registry


def test_size_is_that_of_the_file_system_and_free_is_less(tmp_path: Path) -> None:
    registry = _registry(results=tmp_path)
    size = registry.get_sample_value("watcher_disk_size_bytes", {"folder": "results"})
    free = registry.get_sample_value("watcher_disk_free_bytes", {"folder": "results"})
    space = os.statvfs(tmp_path)
    assert size == space.f_blocks * space.f_frsize
    assert free is not None and 0 <= free <= size


def test_folder_that_is_away_has_no_series_and_costs_no_other(tmp_path: Path) -> None:
    registry = _registry(away=tmp_path / "away", results=tmp_path)
    assert registry.get_sample_value("watcher_disk_free_bytes", {"folder": "away"}) is None
    assert registry.get_sample_value("watcher_disk_free_bytes", {"folder": "results"}) is not None
