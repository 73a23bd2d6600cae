"""The handler of `bench.handlers`: it answers with the time at which it began, or with what it was given.

`python clockhandler.py clock` or `echo`; it speaks the protocol with `watcher.handler`, found through PYTHONPATH.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from watcher.handler import handler, serve


@handler("default")
def answer(event: dict[str, Any]) -> str:
    """Nanoseconds of the wall clock, or the description."""
    return str(time.time_ns()) if sys.argv[1] == "clock" else str(event["description"])


if __name__ == "__main__":
    serve()
