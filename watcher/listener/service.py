"""Assemble the listener and run it: settings in, parts chosen. Returns the exit code.

Assembly only. 0: stopped, or with `once` everything was read and told; 4: its lock was taken away. Raises SettingError,
NameTaken and WorkerTrouble, which `watcher.cli.entry_files` turns into the exit codes 2, 3 and 5.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from watcher import __version__
from watcher.clock import SystemClock
from watcher.errors import LockLost
from watcher.listener.batches import Batches, Graphs
from watcher.listener.loop import Orchestrator, Services
from watcher.listener.overdue import Lateness
from watcher.listener.worker_health import WorkerHealth
from watcher.policy.overdue import OverdueLimits
from watcher.store.layout import NOTICES
from watcher.store.listener_database import Ledger
from watcher.store.listener_lock import ListenerLock
from watcher.store.new_outcomes import Collector
from watcher.store.notice_publisher import Recorder
from watcher.store.reassign import Reassigner
from watcher.store.retention import Pruner, Retention
from watcher.store.waiting_tasks import WaitingTasks
from watcher.system.signals import Reactions, signals
from watcher.telemetry.events import Bus, LedgerRebuilt, passed_over
from watcher.telemetry.logs import EventLog, configure_logging
from watcher.telemetry.metrics_endpoint import start_endpoint

if TYPE_CHECKING:
    from watcher.telemetry.listener_metrics import ListenerMetrics
    from watcher.telemetry.metrics_endpoint import MetricsEndpoint
    from watcher_config import Loaded, OrchestratorConfig


class ListenerService:
    """Everything of the one listener."""

    def __init__(self, loaded: Loaded[OrchestratorConfig]) -> None:
        self.config = loaded.config
        self.clock = SystemClock()
        self.bus = Bus()
        self.log = configure_logging(self.config.log_level, self.config.log_format, NOTICES)
        self.bus.join(EventLog(self.log))
        self.orchestrator: Orchestrator | None = None
        self.metrics: ListenerMetrics | None = None
        self.endpoint: MetricsEndpoint | None = None

    def run(self, once: bool) -> int:
        """Listen until told to stop; returns the exit code."""
        config = self.config
        lock = ListenerLock(config.folders.triggers / NOTICES, state=config.state_dir)
        ledger = None
        try:
            silent_before = self.clock.wall() - config.trigger_retention if config.trigger_retention else 0.0
            ledger = Ledger(config.state_dir, silent_before)
            if ledger.rebuilt is not None:
                self.bus.emit(LedgerRebuilt(f"{ledger.path}: {ledger.rebuilt}"))
            if config.enable_metrics and not once:
                self._start_metrics()
            self.orchestrator = self._assemble(lock, ledger)
            asyncio.run(self._listen(self.orchestrator, once))
            return 0
        except LockLost as lost:
            self.log.error("%s", lost, extra={"event": "listener.lock_lost"})  # noqa: TRY400 - it says it all
            return 4
        finally:
            if ledger is not None:
                ledger.close()
            lock.close()

    async def _listen(self, orchestrator: Orchestrator, once: bool) -> None:
        signals.attach(
            asyncio.get_running_loop(), Reactions(orchestrator.stop, orchestrator.stop), passed_over(self.bus.emit)
        )
        await orchestrator.run(once)

    def _assemble(self, lock: ListenerLock, ledger: Ledger) -> Orchestrator:
        config, clock, emit, places = self.config, self.clock, self.bus.emit, self.config.folders
        folders = {"tasks": places.tasks, "triggers": places.triggers, "results": places.results, "dlq": places.dlq}
        services = Services(
            lock=lock,
            ledger=ledger,
            recorder=Recorder(places.triggers, ledger, clock, emit),
            collector=Collector(folders, ledger, clock, emit, config.settle_seconds),
            worker_health=WorkerHealth(
                places.heartbeats, places.tasks, config.workers, ledger, clock, emit, config.heartbeat_interval
            ),
            waiting=WaitingTasks(places.tasks, clock),
            batches=Batches(ledger, clock, emit, config.batch_settle_seconds),
            graphs=Graphs(ledger, clock, emit, config.batch_settle_seconds),
            lateness=Lateness(
                ledger,
                clock,
                emit,
                OverdueLimits(config.pending_alert_after, config.blocked_alert_after, config.kill_grace + 5.0),
                config.task_timeout,
                ledger.has_outcome,
            ),
            pruner=Pruner(
                folders | {"heartbeats": places.heartbeats},
                Retention(config.trigger_retention, config.result_retention, config.dlq_retention),
                clock,
                emit,
            ),
            reassigner=Reassigner(places.tasks, places.results, config.reassign, config.reassign_after, clock, emit),
        )
        return Orchestrator(config, services, clock, emit, self.metrics, self._about())

    def _about(self) -> str:
        who = ", ".join(self.config.workers) or "all workers"
        metrics = f", metrics on port {self.endpoint.port}" if self.endpoint is not None else ""
        return f"version {__version__}, {who} below {self.config.watcher_root}{metrics}"

    def _start_metrics(self) -> None:
        from watcher.telemetry.disk_space import DiskSpace
        from watcher.telemetry.listener_metrics import ListenerMetrics

        self.metrics = ListenerMetrics(
            lambda: self.orchestrator.oldest_unread_age() if self.orchestrator is not None else 0.0,
            lambda: self.orchestrator.oldest_notice_age() if self.orchestrator is not None else 0.0,
            lambda: self.orchestrator.last_scan_age() if self.orchestrator is not None else 0.0,
        )
        self.metrics.registry.register(DiskSpace({"state": self.config.state_dir}))
        self.endpoint = start_endpoint(
            self.metrics.registry,
            self.config.metrics,
            ready=lambda: self.orchestrator.is_ready() if self.orchestrator is not None else (False, "starting"),
            alive=lambda: self.orchestrator.is_alive() if self.orchestrator is not None else (True, "starting"),
            log=self.log,
        )
