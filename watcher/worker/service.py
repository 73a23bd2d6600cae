"""Assemble one process of one worker and run it: settings in, parts chosen. Returns the exit code.

Assembly only. 0: drained and stopped; 4: the worker's folders were taken away again and again. Raises SettingError,
NameTaken and WorkerTrouble, which `watcher.cli.entry_files` turns into the exit codes 2, 3 and 5.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from watcher import __version__
from watcher.clock import Clock, SystemClock
from watcher.errors import LockLost, SettingError, WorkerTrouble, is_trouble
from watcher.formats.heartbeat import UNSEEN_SENDER
from watcher.formats.task import WORKER_PATTERN
from watcher.policy.budget_limits import all_unbound
from watcher.policy.restart import Losses
from watcher.runner.providers.user_providers import all_providers
from watcher.store.folders import WorkerFolders
from watcher.store.heartbeat_writer import Beats
from watcher.store.layout import HOLDS
from watcher.store.queue import DirectorySpool
from watcher.store.spending import Spending
from watcher.store.task_reader import ignore_lease_breaks
from watcher.store.worker_locks import Incarnation
from watcher.system.process_fence import IN_FORCE, fence
from watcher.system.processes import become_subreaper
from watcher.system.signals import Reactions, signals
from watcher.telemetry.events import Bus, Event, TaskSettled, passed_over
from watcher.telemetry.logs import EventLog, configure_logging, lines_dropped
from watcher.telemetry.metrics_endpoint import start_endpoint
from watcher.worker.executor import Executor
from watcher.worker.loop import Worker
from watcher.worker.operator_commands import ControlDesk
from watcher.worker.parts import WorkerParts
from watcher.worker.provider_gates import Gates
from watcher.worker.runner_choice import Runners

if TYPE_CHECKING:
    from watcher.telemetry.metrics_endpoint import MetricsEndpoint
    from watcher.telemetry.statistics_push import StatisticsPush
    from watcher.telemetry.worker_metrics import WorkerMetrics
    from watcher_config import Loaded, WatcherConfig


class Zones(Protocol):
    """The drop zones that a worker's process serves beside its tasks; no call blocks for long or raises."""

    def start(self) -> None:
        """Begin to serve; once more does nothing."""

    def reload(self) -> None:
        """Read the file of zones again."""

    def drain(self) -> None:
        """Take no more files."""

    def close(self) -> None:
        """Finish what has ended by now."""


class WorkerService:
    """Everything of one process: the parts that outlive an incarnation, and the one that runs now.

    `make_zones` checks the drop zones of the settings and makes what serves them from the first incarnation on; None:
    there are none.
    """

    def __init__(
        self, name: str, loaded: Loaded[WatcherConfig], make_zones: Callable[[WatcherConfig, Clock], Zones | None]
    ) -> None:
        self.name = name
        self.config: WatcherConfig = loaded.config
        config = self.config
        self.providers = all_providers(config.commands, config.agent_prompt, config.providers_file, config.provider)
        self.clock = SystemClock()
        self.bus = Bus()
        self.log = configure_logging(self.config.log_level, self.config.log_format, name)
        self.bus.join(EventLog(self.log))
        self.bus.join(self._note)
        self.worker: Worker | None = None
        self.metrics: WorkerMetrics | None = None
        self.endpoint: MetricsEndpoint | None = None
        self.push: StatisticsPush | None = None
        self.stopping = False
        self.has_settled = False
        self._make_zones = make_zones
        self.zones: Zones | None = None

    def run(self) -> int:
        """Serve until told to stop; returns the exit code."""
        ignore_lease_breaks()
        become_subreaper()
        if self.config.agent_sudo:
            fence.leave_open()
        self.zones = self._make_zones(self.config, self.clock)
        self._start_metrics()
        self._start_push()
        try:
            return self._serve_again_and_again()
        finally:
            if self.push is not None:
                self.push.close()
            if self.zones is not None:
                self.zones.close()

    def _serve_again_and_again(self) -> int:
        losses = Losses()
        while True:
            self.has_settled, began = False, self.clock.monotonic()
            try:
                asyncio.run(self._serve())
                return 0
            except LockLost as lost:
                # Not `exception`: where it was noticed tells nobody anything, the message says what to do.
                self.log.error("%s", lost, extra={"event": "worker.lock_lost"})  # noqa: TRY400
                if self.stopping:
                    return 0
                if not losses.may_go_on(self.clock.monotonic() - began, self.has_settled):
                    return 4

    def _note(self, event: Event) -> None:
        if isinstance(event, TaskSettled):
            self.has_settled = True

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        reload = None if self.zones is None else self.zones.reload
        unseen = UNSEEN_SENDER if fence.state() != IN_FORCE else ""
        signals.attach(loop, Reactions(self._stop, self._stop_now, reload, unseen), passed_over(self.bus.emit))
        with _starting(self.name):
            instance = self.config.watcher_instance or None
            incarnation = Incarnation(self.config.folders.tasks / self.name, self.name, instance)
        places = gates = beats = spending = control = None
        try:
            with _starting(self.name):
                places = self._places(incarnation)
                places.probe()
                gates = self._gates(incarnation)
                spending = self._spending(incarnation)
                beats = self._beats(incarnation)
                self.worker, control = self._assemble(places, incarnation, gates, beats, spending)
            if self.zones is not None:
                self.zones.start()
            gc.collect()
            gc.freeze()
            await self.worker.run()
        finally:
            self.worker = None
            for part in (beats, gates, spending):
                if part is not None:
                    part.close()
            if places is not None:
                places.leave()
                places.close()
            incarnation.close()
            if control is not None:
                control.close()  # last: of two processes that a drain ends together, one must see that it is alone

    def _places(self, incarnation: Incarnation) -> WorkerFolders:
        folders = self.config.folders
        places = WorkerFolders(folders.tasks, folders.triggers, folders.results, folders.dlq, self.name, incarnation.id)
        places.shared += [folders.heartbeats, folders.control / HOLDS, folders.control / self.name]
        return places

    def _gates(self, incarnation: Incarnation) -> Gates:
        def jitter(seconds: float) -> float:
            return random.uniform(0.0, min(30.0, 0.05 * seconds))  # noqa: S311 - no secret

        return Gates(self.config, incarnation, self.clock, self.bus.emit, jitter)

    def _spending(self, incarnation: Incarnation) -> Spending:
        config = self.config
        return Spending(
            config.folders.control,
            self.name,
            incarnation.id,
            self.clock,
            self.bus.emit,
            config.limits,
        )

    def _beats(self, incarnation: Incarnation) -> Beats:
        config = self.config
        return Beats(
            config.folders.heartbeats,
            self.name,
            config.watcher_instance or None,
            incarnation.id,
            config.heartbeat_interval,
            self.clock,
            lambda: self.endpoint.port if self.endpoint is not None else None,
        )

    def _assemble(
        self, places: WorkerFolders, incarnation: Incarnation, gates: Gates, beats: Beats, spending: Spending
    ) -> tuple[Worker, ControlDesk]:
        config = self.config
        runner = Runners(config, self.name, self.providers, self.clock, self.bus).make(places.mine.path, incarnation)
        spool = DirectorySpool(places, config, self.clock, self.bus.emit)
        unbound = all_unbound(self.providers.values(), config.limits)
        parts = WorkerParts(incarnation, spool, runner, gates, beats, spending, unbound)
        executor = Executor(config, parts, self.clock, self.bus.emit)
        self.bus.join(beats)
        control = ControlDesk(config, parts, executor, self.clock, self.bus.emit)
        worker = Worker(config, parts, executor, control, self.clock, self.bus.emit, self._about())
        if self.metrics is not None:
            self.metrics.read_at_scrape(
                queue_size=spool.waiting,
                active_tasks=executor.active,
                oldest_pending_age_seconds=worker.oldest_pending_age,
                heartbeat_age_seconds=beats.age,
                last_scan_age_seconds=worker.last_scan_age,
                log_lines_dropped=lines_dropped,
                spent_today_usd=spending.spent_today,
                daily_budget_usd=spending.budget_today,
            )
        return worker, control

    def _about(self) -> str:
        config = self.config
        metrics = f", metrics on port {self.endpoint.port}" if self.endpoint is not None else ""
        return (
            f"version {__version__}, provider {config.provider}, {config.max_concurrent_tasks} at once, "
            f"inbox {config.folders.tasks / self.name}{metrics}"
        )

    def _start_metrics(self) -> None:
        wanted = self.config.metrics
        if not wanted.enable_metrics:
            return
        from watcher.telemetry.disk_space import DiskSpace
        from watcher.telemetry.worker_metrics import WorkerMetrics

        self.metrics = WorkerMetrics(self.name, providers=(self.config.provider,))
        places = self.config.folders
        self.metrics.registry.register(DiskSpace({"tasks": places.tasks, "results": places.results}))
        self.bus.join(self.metrics)
        self.endpoint = start_endpoint(
            self.metrics.registry,
            wanted,
            ready=lambda: self.worker.is_ready() if self.worker is not None else (False, "starting"),
            alive=lambda: self.worker.is_alive() if self.worker is not None else (True, "starting"),
            log=self.log,
        )

    def _start_push(self) -> None:
        if not self.config.stats_url:
            return
        from watcher.telemetry.statistics_push import StatisticsPush

        config = self.config
        self.push = StatisticsPush(config.stats_url, config.stats_token, self.name, config.watcher_instance or None)
        self.bus.join(self.push)
        if self.metrics is not None:
            self.metrics.read_statistics(self.push.numbers)
        self.push.start()

    def _stop(self, reason: str) -> None:
        self.stopping = True
        if self.zones is not None:
            self.zones.drain()
        if self.worker is not None:
            self.worker.stop(reason)

    def _stop_now(self, reason: str) -> None:
        self._stop(reason)
        if self.worker is not None:
            self.worker.stop_now(reason)


@contextlib.contextmanager
def _starting(name: str) -> Iterator[None]:
    """What the system refuses before the worker serves is told in one line."""
    try:
        yield
    except OSError as error:
        where = "" if error.filename is None else f" at {error.filename}"
        if not is_trouble(error):
            cure = "set the folders to some that this user may make or write in"
            raise SettingError(f"start worker {name!r}{where}: {error.strerror or error}; {cure}") from error
        raise WorkerTrouble(f"start worker {name!r}{where}", error) from error


def checked_name(name: str | None) -> str:
    if name is None:
        raise SettingError("no worker's name was given: say whom to serve: python worker_watcher.py marie")
    if re.fullmatch(WORKER_PATTERN, name) is None:
        raise SettingError(
            f"worker name {name!r}: give one, of at most 64 letters, digits, dots, dashes, underscores, a letter "
            "or digit first: python worker_watcher.py marie"
        )
    return name
