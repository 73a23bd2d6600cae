"""What Linux does for the suite: files, processes, /proc, inotify. Knows no task."""
