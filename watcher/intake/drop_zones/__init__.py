"""Drop zones: files that become tasks."""
