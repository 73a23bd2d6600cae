"""Who sent a signal, as far as that can be told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from watcher.system import signals

pytestmark = pytest.mark.skipif(not signals.procfs.IS_THERE, reason="needs /proc")


def test_sender_is_somebody_else_a_descendant_or_not_to_be_seen() -> None:
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert signals._sender(ended.pid) == signals._UNSEEN
        assert signals._sender(child.pid) == child.pid
        assert signals._sender(os.getppid()) == signals._sender(0) == signals._sender(os.getpid()) == 0
    finally:
        child.communicate(b"\n")
