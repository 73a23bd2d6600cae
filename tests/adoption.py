"""The adoption of orphans, which a process does once for all: each test has a family of its own."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest

from watcher import childproc, leftovers


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> Iterator[leftovers._Family]:
    """Orphans are adopted while a test runs and no longer; in the end nobody is missing and nobody left."""
    fresh = leftovers._Family()
    monkeypatch.setattr(leftovers, "_family", fresh)
    assert childproc.become_subreaper()
    yield fresh
    ctypes.CDLL(None).prctl(leftovers._PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    os.close(fresh._children_fd or -1)
    assert (fresh.started, fresh.running) == (set(), {})
