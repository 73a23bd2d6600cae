"""The one place where a test looks again and again: for what other processes and threads do without telling us."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: A machine that is busy with something else may need this long; nothing here waits so long when all is well.
PATIENCE_SECONDS = 120.0


def wait_for(
    what: str, look: Callable[[], T], seconds: float = PATIENCE_SECONDS, tell: Callable[[], str] = lambda: ""
) -> T:
    """Look again and again until there is something. Raises AssertionError after `seconds`, with `what` it waited for
    and what `tell` says then."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}\n{tell()}".rstrip()
        time.sleep(0.01)  # between two looks: other processes give no event to wait for
    return found
