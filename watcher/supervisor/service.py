"""The supervisor: settings in, parts chosen, run. Returns the exit code.

Assembly only. 0: stopped, and all went well; 1: something failed for good or ended badly. Raises SettingError and
WorkerTrouble, which `watcher.cli.entry_files` turns into the exit codes 2 and 5.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys

from watcher.clock import SystemClock
from watcher.errors import SettingError
from watcher.policy.restart import RestartRules, Restarts
from watcher.policy.scaling import Scaler, ScalingRules
from watcher.settings.layers import Layers, process_environment
from watcher.settings.listener import OrchestratorConfig
from watcher.settings.supervisor import SupervisorConfig
from watcher.settings.worker import WatcherConfig
from watcher.store.layout import LISTENER_STATUS, NOTICES, heartbeat
from watcher.supervisor.adopted_children import SUPERVISED, own_name
from watcher.supervisor.child import Charge, SupervisedChild
from watcher.supervisor.child_log import make_say
from watcher.supervisor.instances import WorkerInstances
from watcher.supervisor.loop import Supervisor, Wanted
from watcher.system.machine_load import Machine
from watcher.system.processes import become_subreaper
from watcher.telemetry.events import Bus
from watcher.telemetry.logs import EventLog, configure_logging

#: An instance that may be drained at any time finishes what it runs: see WorkerInstances.
_OWN_GRACE_SECONDS = 86_400


class SupervisorService:
    """Everything of one supervisor."""

    def __init__(self, wanted: Wanted, layers: Layers) -> None:
        self.wanted = wanted
        self.config = WatcherConfig(layers)
        self.rules = SupervisorConfig(layers)
        self.state = OrchestratorConfig(layers).state_dir
        self.clock = SystemClock()
        self.bus = Bus()
        self.bus.join(EventLog(configure_logging(self.config.log_level, self.config.log_format, "supervisor")))
        self.say = make_say(self.config.log_format == "json")
        self.is_scaled = wanted.most is not None and wanted.most > wanted.least

    def run(self) -> int:
        """Serve until told to stop; returns the exit code."""
        become_subreaper()
        wanted = self.wanted
        workers = [self._instances(worker, index) for index, worker in enumerate(wanted.workers)]
        listener = self._child(self._listener()) if wanted.with_listener else None
        supervisor = Supervisor(wanted, self.config, workers, listener, Machine(), self.clock, self.bus.emit)
        return asyncio.run(supervisor.run())

    def _instances(self, worker: str, index: int) -> WorkerInstances:
        def make(number: int) -> SupervisedChild:
            return self._child(self._worker(worker, index, number))

        scaler = Scaler(self._scaling_rules()) if self.is_scaled else None
        return WorkerInstances(worker, self.config.folders.heartbeats, self.wanted.least, make, scaler, self.bus.emit)

    def _scaling_rules(self) -> ScalingRules:
        wanted, rules = self.wanted, self.rules
        return ScalingRules(
            wanted.least,
            wanted.most or wanted.least,
            self.config.max_concurrent_tasks,
            rules.max_cpu_percent,
            rules.max_memory_percent,
            wanted.grow_after,
            wanted.shrink_after,
        )

    def _child(self, charge: Charge) -> SupervisedChild:
        rules = RestartRules(
            first_delay_seconds=self.rules.restart_delay,
            limit=self.rules.max_restarts,
            reset_after_seconds=self.rules.restart_reset_after,
        )
        return SupervisedChild(charge, Restarts(rules), self.say, self.clock, self.bus.emit)

    def _worker(self, worker: str, index: int, number: int) -> Charge:
        most = self.wanted.most
        instance = str(number) if most is not None else self.config.watcher_instance
        name = f"{worker}@{instance}" if instance else worker
        environment = {**process_environment(), SUPERVISED: own_name()}
        if self.is_scaled:
            environment["SHUTDOWN_GRACE"] = str(_OWN_GRACE_SECONDS)
        argv = [*_program("worker_watcher"), worker, *(["--instance", instance] if instance else [])]
        argv += [*self.wanted.flags, *self._port(index * (most or 1) + number - 1)]
        beats = self.config.folders.heartbeats / heartbeat(worker, instance)
        return Charge(name, tuple(argv), environment, beats, self.is_scaled)

    def _listener(self) -> Charge:
        offset = len(self.wanted.workers) * (self.wanted.most or 1)
        argv = [*_program("orchestrator_listener"), *self.wanted.flags, *self._port(offset)]
        environment = {**process_environment(), SUPERVISED: own_name()}
        return Charge(NOTICES, tuple(argv), environment, self.state / LISTENER_STATUS)

    def _port(self, offset: int) -> list[str]:
        """A port that somebody set is the first one's; the others get those above it. An unset one moves by itself."""
        wanted = self.config.metrics
        if not wanted.enable_metrics or not wanted.port_was_set or wanted.metrics_port == 0:
            return []
        port = wanted.metrics_port + offset
        if port > 65_535:
            raise SettingError(f"METRICS_PORT={wanted.metrics_port}: too high for one port each; set a lower one, or 0")
        return ["--metrics-port", str(port)]


def _program(module: str) -> list[str]:
    """The entry file that belongs to this very code, whatever the current folder holds."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise SettingError(f"{module} is not installed beside this package; install the whole suite")
    return [sys.executable, found.origin]
