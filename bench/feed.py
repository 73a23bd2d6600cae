"""A steady stream of tasks from a process of its own, until SIGTERM: `feed.py INBOX PER_SECOND`.

The gaps are drawn between half and one and a half of the mean, so that no other rhythm can lock onto the
stream.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from bench.inbox import stage


def main() -> None:
    folder, per_second = Path(sys.argv[1]), float(sys.argv[2])
    draw = random.Random(1)
    number, due = 0, time.monotonic()
    while True:
        due += draw.uniform(0.5, 1.5) / per_second
        time.sleep(max(0.0, due - time.monotonic()))
        hidden, final = stage(folder, f"feed-{number:07d}")
        os.rename(hidden, final)
        number += 1


if __name__ == "__main__":
    main()
