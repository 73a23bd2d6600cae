#!/usr/bin/env python3
"""Give tasks to workers and look at what becomes of them: `python demo_watcher.py --task marie "List files" --wait`."""

import sys

from watcher.cli.demo_flags import main

if __name__ == "__main__":
    sys.exit(main())
