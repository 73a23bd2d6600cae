"""Run a team of named AI agents from plain folders.

The package behind the entry files `worker_watcher.py` and `demo_watcher.py`. This file stays empty of imports: a
submit must start fast, so every part is imported by the one who uses it.
"""

__version__ = "0.1.0"
