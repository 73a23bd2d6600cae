"""The folders below WATCHER_ROOT: one module for each fact that lies there, its only reader and writer."""
