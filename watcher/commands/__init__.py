"""The commands of `watcher`, one module each; `watcher.cli` lists them and says what a module holds."""
