"""`python -m watcher <command>`: the same as `watcher <command>`."""

from __future__ import annotations

import sys

from watcher.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
