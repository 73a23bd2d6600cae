"""What people type and see: the `watcher` command, tables, the demo."""
