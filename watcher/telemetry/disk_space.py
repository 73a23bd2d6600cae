"""Measure how much room is left where results and tasks lie, when somebody scrapes.

A folder that cannot be asked now (it is away, its server is down) has no series: a monitor tells that from a full disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class DiskSpace(Collector):
    """`watcher_disk_free_bytes{folder}` and `watcher_disk_size_bytes{folder}`; `folders` by the label's value.

    Free is what an unprivileged process may still use. It blocks the scraper's thread, and nothing else, while a
    network file system does not answer.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = dict(folders)

    def describe(self) -> Iterable[Metric]:
        return self._families()

    def collect(self) -> Iterable[Metric]:
        free, size = self._families()
        for label, path in self._folders.items():
            try:
                space = os.statvfs(path)
            except OSError:
                continue
            free.add_metric((label,), space.f_bavail * space.f_frsize)
            size.add_metric((label,), space.f_blocks * space.f_frsize)
        return (free, size)

    def _families(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily("watcher_disk_free_bytes", "Bytes that may still be written here.", labels=("folder",)),
            GaugeMetricFamily("watcher_disk_size_bytes", "Size of the file system here.", labels=("folder",)),
        )
