"""The adoption of orphans, which a process does once for all: each test has a family of its own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

from watcher.system import leftover_processes, processes


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> Iterator[leftover_processes._Family]:
    """Orphans are adopted while a test runs and no longer; in the end nobody is missing and nobody left."""
    fresh = leftover_processes._Family()
    monkeypatch.setattr(leftover_processes, "_family", fresh)
    assert processes.become_subreaper()
    yield fresh
    ctypes.CDLL(None).prctl(leftover_processes._PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    os.close(fresh._children_fd or -1)
    assert (fresh.started, fresh.running) == (set(), {})
