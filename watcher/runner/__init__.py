"""How an agent is run: one process per task (`oneshot`), and what each provider's command line means."""
