"""The names of files and folders below WATCHER_ROOT. This module owns them; every other module asks it."""

from __future__ import annotations
