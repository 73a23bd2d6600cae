"""Show people and monitors what happens: logs, metrics and the heartbeat, all fed by events. Nothing here decides.

This file stays empty of imports: `metrics` and `endpoint` cost 26 ms and 5 MiB, so the worker imports them
only when metrics are on.
"""
