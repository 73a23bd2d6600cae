"""What one incarnation of a worker is made of, before anything runs: chosen and made by `worker.service`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from watcher.runner.runner_interface import Runner
from watcher.store.heartbeat_writer import Beats
from watcher.store.queue import DirectorySpool
from watcher.store.spending import Spending
from watcher.store.worker_locks import Incarnation
from watcher.worker.provider_gates import Gates


@dataclass(slots=True)
class WorkerParts:
    """`unbound`: which providers the budgets do not bound, and why."""

    incarnation: Incarnation
    spool: DirectorySpool
    runner: Runner
    gates: Gates
    beats: Beats
    spending: Spending | None = None
    unbound: Mapping[str, str] = field(default_factory=dict)
