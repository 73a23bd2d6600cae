"""The commands of `watcher`, one module each; `watcher.cli.main` lists them and says what a module holds."""
