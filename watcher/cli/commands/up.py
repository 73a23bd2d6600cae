"""Start workers and the listener, and keep them running: `watcher up marie anga fabien --listener`.

A process that crashes is started again, later each time; one that crashes MAX_RESTARTS times in a row is left alone and
the others go on. All logs come out here, each line with its worker. Every minute one line says who is healthy.

SIGTERM or Ctrl-C drains the workers and then ends the listener; a second time: now. SIGHUP restarts all, one after the
other. `--count 3` runs three instances of each worker, `--min 1 --max 5` as many as the tasks need and the machine
bears. Settings come from the environment and .env, as for the workers.

Exit codes: 0 stopped, and all went well; 1 something failed for good or ended badly; 2 a setting is wrong; 5 the
machine refused something at the start.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import re
import sys
from collections.abc import Callable

from watcher import __version__
from watcher.cli import entry_files
from watcher.clock import SystemClock
from watcher.errors import SettingError
from watcher.formats.task import WORKER_PATTERN
from watcher.policy.restart import RestartRules, Restarts
from watcher.policy.scaling import Scaler, ScalingRules
from watcher.settings.layers import Layers, process_environment, read_layers
from watcher.settings.listener import OrchestratorConfig
from watcher.settings.supervisor import SupervisorConfig
from watcher.settings.worker import WatcherConfig
from watcher.supervisor.adopted_children import SUPERVISED, own_name
from watcher.supervisor.child import Charge, SupervisedChild
from watcher.supervisor.child_log import Say, make_say
from watcher.supervisor.instances import WorkerInstances
from watcher.supervisor.loop import Supervisor, SupervisorOptions
from watcher.system.machine_load import Machine
from watcher.system.processes import become_subreaper
from watcher.system.signals import signals
from watcher.telemetry.events import Bus
from watcher.telemetry.logs import EventLog, configure_logging

#: How the listener is called in the log; its own lines say so too.
_LISTENER = "orchestrator"
_MOST_INSTANCES = 1000
#: An instance that may be drained at any time finishes what it runs: see WorkerInstances.
_OWN_GRACE_SECONDS = 86_400
_FLAGS = {
    "log_level": "LOG_LEVEL",
    "log_format": "LOG_FORMAT",
    "max_restarts": "MAX_RESTARTS",
    "restart_delay": "RESTART_DELAY",
    "healthy_after": "RESTART_RESET_AFTER",
    "max_cpu": "MAX_CPU_PERCENT",
    "max_memory": "MAX_MEMORY_PERCENT",
}
_PASSED_ON = {"log_level": "--log-level", "log_format": "--log-format"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workers", nargs="+", metavar="NAME", help="workers to run, like marie anga")
    parser.add_argument("--listener", action="store_true", help="run orchestrator_listener.py too")
    parser.add_argument("--count", type=_number, metavar="N", help="instances of each worker, @1 to @N")
    parser.add_argument("--min", type=_number, metavar="N", help="at least so many instances of each worker")
    parser.add_argument("--max", type=_number, metavar="N", help="at most so many, by the number of tasks that wait")
    parser.add_argument("--max-cpu", metavar="P", help="percent of CPU above which instances go (MAX_CPU_PERCENT)")
    parser.add_argument("--max-memory", metavar="P", help="percent of memory, the same (MAX_MEMORY_PERCENT)")
    parser.add_argument("--grow-after", type=_seconds, default=5.0, metavar="S", help="slots must be full so long")
    parser.add_argument("--shrink-after", type=_seconds, default=60.0, metavar="S", help="and free so long")
    parser.add_argument("--max-restarts", metavar="N", help="restarts in a row (MAX_RESTARTS)")
    parser.add_argument("--restart-delay", metavar="S", help="seconds before the first restart (RESTART_DELAY)")
    parser.add_argument(
        "--healthy-after", metavar="S", help="seconds until crashes are forgotten (RESTART_RESET_AFTER)"
    )
    parser.add_argument("--start-timeout", type=_seconds, default=60.0, metavar="S", help="first beat in a roll: 60")
    parser.add_argument("--report-every", type=_seconds, default=60.0, metavar="S", help="who is healthy: 60")
    parser.add_argument("--log-level", metavar="L", help="DEBUG, INFO, WARNING, ERROR or CRITICAL (LOG_LEVEL)")
    parser.add_argument("--log-format", metavar="F", help="json or text (LOG_FORMAT)")


def run(options: argparse.Namespace) -> int:
    signals.block()
    return entry_files.run("watcher up", lambda: asyncio.run(_Assembly(options).supervisor().run()))


class _Assembly:
    """Settings in, parts chosen."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        given = {name: getattr(options, flag) for flag, name in _FLAGS.items() if getattr(options, flag) is not None}
        layers: Layers = read_layers(given)
        self.config = WatcherConfig(layers)
        self.rules = SupervisorConfig(layers)
        self.state = OrchestratorConfig(layers).state_dir
        self.least, self.most = _bounds(options)
        self.clock = SystemClock()
        self.bus = Bus()
        _check_names(options.workers)

    def supervisor(self) -> Supervisor:
        """Everything, ready to run; nothing is started yet."""
        config, options = self.config, self.options
        become_subreaper()
        self.bus.join(EventLog(configure_logging(config.log_level, config.log_format, "supervisor")))
        say = make_say(config.log_format == "json")
        workers = [self._instances(worker, index, say) for index, worker in enumerate(options.workers)]
        listener = self._child(self._listener(), say) if options.listener else None
        return Supervisor(
            SupervisorOptions(
                look_interval=min(1.0, max(0.1, config.heartbeat_interval / 2)),
                report_interval=options.report_every,
                start_timeout=options.start_timeout,
                shutdown_grace=config.shutdown_grace,
                kill_grace=config.kill_grace,
                about=f"version {__version__}, {', '.join(options.workers)} below {config.watcher_root}",
            ),
            workers,
            listener,
            Machine(),
            self.clock,
            self.bus.emit,
        )

    def _instances(self, worker: str, index: int, say: Say) -> WorkerInstances:
        is_scaled = self.most is not None and self.most > self.least
        scaler = None
        if self.most is not None and is_scaled:
            scaler = Scaler(
                ScalingRules(
                    self.least,
                    self.most,
                    self.config.max_concurrent_tasks,
                    self.rules.max_cpu_percent,
                    self.rules.max_memory_percent,
                    self.options.grow_after,
                    self.options.shrink_after,
                )
            )

        def make(number: int) -> SupervisedChild:
            return self._child(self._worker(worker, index, number, is_scaled), say)

        return WorkerInstances(worker, self.config.folders.heartbeats, self.least, make, scaler, self.bus.emit)

    def _child(self, charge: Charge, say: Say) -> SupervisedChild:
        rules = RestartRules(
            first_delay_seconds=self.rules.restart_delay,
            limit=self.rules.max_restarts,
            reset_after_seconds=self.rules.restart_reset_after,
        )
        return SupervisedChild(charge, Restarts(rules), say, self.clock, self.bus.emit)

    def _worker(self, worker: str, index: int, number: int, is_scaled: bool) -> Charge:
        instance = str(number) if self.most is not None else self.config.watcher_instance
        name = f"{worker}@{instance}" if instance else worker
        environment = {**process_environment(), SUPERVISED: own_name()}
        if is_scaled:
            environment["SHUTDOWN_GRACE"] = str(_OWN_GRACE_SECONDS)
        argv = [*_program("worker_watcher"), worker, *(["--instance", instance] if instance else [])]
        argv += self._passed_on() + self._port(index * (self.most or 1) + number - 1)
        return Charge(name, tuple(argv), environment, self.config.folders.heartbeats / f"{name}.json", is_scaled)

    def _listener(self) -> Charge:
        argv = [*_program("orchestrator_listener"), *self._passed_on()]
        argv += self._port(len(self.options.workers) * (self.most or 1))
        environment = {**process_environment(), SUPERVISED: own_name()}
        return Charge(_LISTENER, tuple(argv), environment, self.state / "listener.json")

    def _passed_on(self) -> list[str]:
        pairs = ((flag, getattr(self.options, option)) for option, flag in _PASSED_ON.items())
        return [word for flag, value in pairs if value is not None for word in (flag, value)]

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


def _bounds(options: argparse.Namespace) -> tuple[int, int | None]:
    """How many instances at first, and at most; None where each worker is one process without an instance."""
    if options.count is not None and (options.min is not None or options.max is not None):
        raise SettingError("--count fixes the number of instances; give it, or --min and --max")
    if options.count is not None:
        return options.count, options.count
    if options.max is None and options.min is not None:
        raise SettingError("--min needs --max: how many instances at most")
    if options.max is None:
        return 1, None
    least: int = 1 if options.min is None else options.min
    if least > options.max:
        raise SettingError(f"--min {least} is more than --max {options.max}")
    return least, options.max


def _check_names(workers: list[str]) -> None:
    for worker in workers:
        if re.fullmatch(WORKER_PATTERN, worker) is None:
            raise SettingError(f"worker name {worker!r}: letters, digits, dot, dash, underscore")
        if worker == _LISTENER:
            raise SettingError(f"worker name {worker!r}: its receipts would lie among the notices; take another name")
    if len(set(workers)) < len(workers):
        raise SettingError("a worker is named twice; --count 2 runs two instances of it")


def _bounded(kind: Callable[[str], float], least: float, most: float, what: str) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be {what} from {least:g} to {most:g}")
        return value

    return convert


_number = _bounded(int, 1, _MOST_INSTANCES, "a whole number")
_seconds = _bounded(float, 0.05, 86_400.0, "a number of seconds")
