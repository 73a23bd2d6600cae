"""The orchestrator's listener: says once what became of each task, finds dead workers and overdue tasks."""
