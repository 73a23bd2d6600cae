"""Run the listener's loop: find every outcome and every dead worker, and report each once.

One flag, as in the worker's loop: events set it, and timers. Each turn reads what was named, in portions, so that
heartbeats are judged while 100,000 old results are read; what is found goes through `Recorder.record`, which makes it
durable and told in one step. Scans find what events missed; looks at the inboxes say whether batches are complete.

Raises LockLost when the listener's locks were taken away. Trouble of the machine (full disk, no descriptors) is said
and waited out: nothing is remembered that was not told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from watcher.clock import Clock, rfc3339
from watcher.errors import WatcherError, WorkerTrouble
from watcher.formats import strict_json
from watcher.formats.task import WORKER_PATTERN
from watcher.listener.batches import Batches, Graphs
from watcher.listener.overdue import Lateness
from watcher.listener.worker_health import WorkerHealth
from watcher.policy import scan_interval as scanning
from watcher.settings.listener import OrchestratorConfig
from watcher.store.layout import LISTENER_STATUS
from watcher.store.listener_database import Ledger
from watcher.store.listener_lock import ListenerLock
from watcher.store.new_outcomes import Collector
from watcher.store.notice_publisher import Findings, Recorder
from watcher.store.outcome_totals import Finished, by_status
from watcher.store.reassign import Reassigner
from watcher.store.retention import Pruner
from watcher.store.waiting_tasks import Sight, WaitingTasks
from watcher.system import no_links
from watcher.system.files import Folder, replace
from watcher.system.inotify import Waker
from watcher.telemetry.events import Emit, ListenerStarted, ListenerStopped, TroubleBegan, TroubleEnded, WakeDegraded
from watcher.telemetry.listener_metrics import ListenerMetrics, Numbers
from watcher.telemetry.record_guard import RecordGuard

#: Files read and told in one step: enough to share the flush, few enough to judge heartbeats in between.
_PORTION = 1000
#: Scans and looks may take this share of the time at most.
_SHARE = 0.02
_FIRST_LOOK_SECONDS = 0.2
_STATUS_SECONDS = 1.0
_PRUNE_SECONDS = 300.0
_TROUBLE_PAUSE_SECONDS = 1.0
_WORKER = re.compile(WORKER_PATTERN)


@dataclass(slots=True)
class Services:
    """What assembly has made."""

    lock: ListenerLock
    ledger: Ledger
    recorder: Recorder
    collector: Collector
    worker_health: WorkerHealth
    waiting: WaitingTasks
    batches: Batches
    graphs: Graphs
    lateness: Lateness
    pruner: Pruner
    reassigner: Reassigner


class Orchestrator:
    """The loop of the one listener."""

    def __init__(
        self,
        config: OrchestratorConfig,
        services: Services,
        clock: Clock,
        emit: Emit,
        metrics: ListenerMetrics | None,
        about: str,
    ) -> None:
        """`about` is told when it starts."""
        self._config = config
        self._about = about
        self._ended_in = {"results": config.result_dir, "dlq": config.dlq_dir}
        self._s = services
        self._clock = clock
        self._emit = emit
        self._guard = RecordGuard(emit)
        self._metrics = metrics
        self._waker: Waker | None = None
        self._stop_reason: str | None = None
        self._began = self._turned_at = clock.monotonic()
        self._last_scan = float("-inf")
        self._scan_due = self._beat_due = self._look_due = self._prune_due = self._status_due = 0.0
        self._next_look = 0.0
        self._watch_is_new = False
        self._seen = 0
        self._looked_at = -1
        self._trouble: tuple[str, float] | None = None
        self._wake_problem: str | None = None
        self._caught_up = False
        self._workers: set[str] = set(config.workers)

    async def run(self, once: bool = False) -> None:
        """Listen until `stop`; with `once`, until everything that is there now was read and told."""
        self._waker = Waker(asyncio.get_running_loop())
        self._emit(ListenerStarted(os.getpid(), self._about))
        self._s.recorder.recover()
        try:
            while self._stop_reason is None:
                try:
                    await self._turn()
                    self._tell_trouble(None)
                except Exception as error:
                    if isinstance(error, WatcherError) and not isinstance(error, WorkerTrouble):
                        raise  # a lock that is lost: somebody else listens
                    self._tell_trouble(f"{type(error).__name__}: {error}")
                    self._scan_due = 0.0  # what was found may have been dropped
                    await self._wait(_TROUBLE_PAUSE_SECONDS)
                    continue
                if once and self._is_done():
                    break
                await self._wait(self._pause())
        finally:
            self._finish()

    def stop(self, reason: str) -> None:
        self._stop_reason = reason
        if self._waker is not None:
            self._waker.flag.set()

    # --- probes

    def is_ready(self) -> tuple[bool, str]:
        """Watching, and the last scan is within the interval (generously)."""
        if self._last_scan == float("-inf"):
            return False, "first scan under way"
        late = self.last_scan_age()
        if not scanning.is_ready(late, self._interval()):
            return False, f"last scan {late:.0f} s ago"
        return (True, "ready") if self._trouble is None else (False, self._trouble[0])

    def is_alive(self) -> tuple[bool, str]:
        late = self._clock.monotonic() - self._turned_at
        return scanning.is_alive(late), f"last turn {late:.0f} s ago"

    def last_scan_age(self) -> float:
        return self._clock.monotonic() - max(self._last_scan, self._began)

    def oldest_unread_age(self) -> float:
        written = self._s.collector.oldest_unread()
        return 0.0 if written is None else max(0.0, self._clock.wall() - written)

    def oldest_notice_age(self) -> float:
        """Lists the folder of the notices; only for a scrape."""
        oldest = None
        with no_links.entries_in(self._s.recorder.path) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name.endswith(".json"):
                    try:
                        written = entry.stat(follow_symlinks=False).st_mtime
                    except FileNotFoundError:
                        continue
                    oldest = written if oldest is None else min(oldest, written)
        return 0.0 if oldest is None else max(0.0, self._clock.wall() - oldest)

    # --- one turn

    async def _turn(self) -> None:
        assert self._waker is not None  # set before the first turn
        names, lost = self._waker.take()
        for key, name in names:
            folder, _, worker = key.partition("/")
            self._s.collector.notice(folder, worker, name)
        if lost:
            self._emit(WakeDegraded("events were lost; scanning"))
        self._beats()
        now = self._clock.monotonic()
        if lost or now >= self._scan_due:
            await self._scan()
        await self._collect()
        if self._clock.monotonic() >= self._look_due or self._wants_look():
            await self._look()
        if self._clock.monotonic() >= self._prune_due and self._caught_up:
            await self._spread(self._s.pruner.prune(self._must_stay))
            self._prune_due = self._clock.monotonic() + _PRUNE_SECONDS
        self._show()

    def _beats(self) -> None:
        now = self._turned_at = self._clock.monotonic()
        if now < self._beat_due:
            return
        worker_health = self._s.worker_health
        news = worker_health.tick()
        if not news.is_empty:
            self._s.recorder.record(news)
            worker_health.recorded(news)
        for worker in worker_health.workers() - self._workers if not self._config.workers else ():
            self._add_worker(worker)
        self._beat_due = now + min(0.5, max(0.05, worker_health.shortest_interval() / 4))

    async def _scan(self) -> None:
        began = self._clock.monotonic()
        self._s.lock.check()
        self._discover()
        self._keep_watching()
        await self._spread(self._s.collector.scan(sorted(self._workers)))
        self._watch_is_new = False
        self._keep_watching()  # the scan has seen which folders are others now
        now = self._clock.monotonic()
        self._last_scan = now
        # What came between the scan and a watch that was set after it made no event.
        self._scan_due = now if self._watch_is_new else now + max(self._interval(), (now - began) / _SHARE)

    async def _collect(self) -> None:
        """Read and tell everything that was found, in portions."""
        collector = self._s.collector
        while collector.backlog and self._stop_reason is None:
            news, done = collector.take(_PORTION)
            if not news.is_empty:
                self._s.recorder.record(news)
            collector.taken(done)
            self._s.graphs.add(news.entry.edges)
            if self._s.graphs.is_any or any(outcome.batch_id is not None for outcome, _ in news.entry.outcomes):
                self._seen += len(news.entry.outcomes)
            if collector.backlog:
                self._beats()
                self._show()
                await asyncio.sleep(0)
        self._caught_up = True
        self._s.recorder.settle()

    async def _look(self) -> None:
        """What is on its way, and what that says about batches, graphs and lateness."""
        s = self._s
        began = self._clock.monotonic()
        seen = self._seen
        await self._spread(s.waiting.look(sorted(self._workers)))
        await self._collect_named()
        s.batches.refresh()
        sight = s.waiting.sight
        with self._guard.over("dependencies"):
            learnt = Findings()
            s.graphs.learn(sight, learnt)
            self._record(learnt)
        with self._guard.over("batches"):
            batch_news = s.batches.check(sight)
            self._record(batch_news)
            s.batches.told(batch_news)
        with self._guard.over("graphs"):
            graph_news = s.graphs.check(sight, self._seen, self._outcome)
            self._record(graph_news)
            s.graphs.told(graph_news)
        with self._guard.over("late tasks"):
            late_news = s.lateness.check(sight, self._workers)
            self._record(late_news)
            s.lateness.recorded(late_news)
        with self._guard.over("tasks of dead workers"):
            self._record(s.reassigner.check(s.worker_health.dead_for, self._workers))
        self._looked_at = seen
        now = self._clock.monotonic()
        self._look_due = now + max(self._interval(), (now - began) / _SHARE)
        self._next_look = now + max(_FIRST_LOOK_SECONDS, (now - began) / _SHARE)

    def _wants_look(self) -> bool:
        """Whether outcomes came, or a batch may have settled, since the last look."""
        if self._clock.monotonic() < self._next_look:
            return False
        return self._looked_at != self._seen or self._settling_in() == 0.0

    def _settling_in(self) -> float | None:
        waits = [w for w in (self._s.batches.settling_in(), self._s.graphs.settling_in()) if w is not None]
        return min(waits, default=None)

    async def _collect_named(self) -> None:
        """A task that left its claim during the look has its result by now: read it before judging the look."""
        assert self._waker is not None
        await self._spread(self._s.collector.scan(sorted(self._workers)))
        await self._collect()

    def _record(self, news: Findings) -> None:
        if not news.is_empty:
            self._s.recorder.record(news)

    def _outcome(self, worker: str, task_id: str) -> Finished | None:
        ledger = self._s.ledger
        found = ledger.find(worker, "results", f"{task_id}.json")
        if found is None:
            found = ledger.find(worker, "dlq", f"{task_id}.json")
        return None if found is None or found.status == "with_result" else found

    def _must_stay(self, worker: str, task_id: str) -> bool:
        """A result that was not noticed yet, or that a task on its way depends on."""
        if not self._s.ledger.has_outcome(worker, task_id):
            return True
        names = {task_id, f"{worker}/{task_id}"}
        return any(names.intersection(t.facts.dependencies) for t in self._s.waiting.sight.tasks.values())

    # --- who and where

    def _discover(self) -> None:
        if self._config.workers:
            return
        for parent in (*self._ended_in.values(), self._config.task_dir):
            try:
                with no_links.entries_in(parent) as entries:
                    found = {e.name for e in entries if _WORKER.fullmatch(e.name) and e.is_dir(follow_symlinks=False)}
            except OSError:
                continue
            for worker in found - self._workers:
                self._add_worker(worker)

    def _add_worker(self, worker: str) -> None:
        self._workers.add(worker)
        self._watch(worker)

    def _watch(self, worker: str) -> None:
        assert self._waker is not None
        for folder, parent in self._ended_in.items():
            path = parent / worker
            is_new = not self._waker.is_watching(f"{folder}/{worker}") and no_links.is_folder(path)
            if is_new and self._waker.watch(f"{folder}/{worker}", path):
                self._watch_is_new = True
                self._scan_due = 0.0  # what came before the watch

    def _keep_watching(self) -> None:
        assert self._waker is not None
        for worker, folder in self._s.collector.replaced():
            self._waker.unwatch(f"{folder}/{worker}")
        for worker in self._workers:
            self._watch(worker)
        if self._waker.problem != self._wake_problem:
            self._wake_problem = self._waker.problem
            if self._wake_problem is not None:
                self._emit(WakeDegraded(self._wake_problem))

    # --- waiting

    async def _spread(self, steps: Iterator[None]) -> None:
        """Go through something long, with heartbeats judged in between."""
        for _ in steps:
            self._beats()
            await asyncio.sleep(0)

    def _interval(self) -> float:
        has_events = self._waker is not None and self._waker.mode == "events"
        return scanning.interval(has_events, self._config.scan_interval, self._config.poll_interval)

    def _pause(self) -> float:
        now = self._clock.monotonic()
        dues = [self._scan_due, self._beat_due, self._look_due]
        settling = self._settling_in()
        if self._looked_at != self._seen:
            dues.append(self._next_look)
        if settling is not None:
            dues.append(max(now + settling, self._next_look))
        return max(0.005, min(dues) - now)

    async def _wait(self, seconds: float) -> None:
        assert self._waker is not None
        flag = self._waker.flag
        if not flag.is_set():
            timer = asyncio.get_running_loop().call_later(min(seconds, scanning.TURN_SECONDS), flag.set)
            await flag.wait()
            timer.cancel()

    def _is_done(self) -> bool:
        """For `once`: everything was read, and no batch is about to be told."""
        return self._caught_up and self._looked_at == self._seen and self._settling_in() is None

    # --- what is shown

    def _show(self) -> None:
        now = self._clock.monotonic()
        if now < self._status_due:
            return
        self._status_due = now + _STATUS_SECONDS
        self._write_status()
        if self._metrics is not None:
            self._metrics.numbers = self._numbers()

    def _write_status(self) -> None:
        sight = self._s.waiting.sight
        waiting, running = _by_place(sight)
        status = {
            "taken_at": rfc3339(self._clock.wall()),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "caught_up": self._caught_up and not self._s.collector.backlog,
            "unread_files": self._s.collector.backlog,
            "known_files": self._s.collector.known_count(),
            "trouble": None if self._trouble is None else self._trouble[0],
            "wake": self._waker.mode if self._waker is not None else "none",
            "processes": [view.as_json() for view in self._s.worker_health.views()],
            "pending": waiting,
            "running": running,
            "batches": {b: {"on_their_way": p.on_their_way} for b, p in list(self._s.batches.progress.items())[:100]},
        }
        folder = Folder(self._config.state_dir)
        try:
            replace(folder, LISTENER_STATUS, strict_json.dumps(status), "listener")
        finally:
            folder.close()

    def _numbers(self) -> Numbers:
        waiting, running = _by_place(self._s.waiting.sight)
        totals = self._s.ledger.totals("worker")
        batches = self._s.ledger.totals("batch_id") if self._s.batches.progress else {}
        progress = {}
        for batch, found in list(self._s.batches.progress.items())[:50]:
            ended = batches[batch].total if batch in batches else 0
            progress[batch] = (ended, found.on_their_way)
        return Numbers(
            health=Counter(view.state for view in self._s.worker_health.views()),
            tasks=by_status(totals),
            pending=waiting,
            running=running,
            notices=self._s.ledger.notices(),
            batches=progress,
            open_batches=len(self._s.batches.open),
            backlog=self._s.collector.backlog,
        )

    def _tell_trouble(self, detail: str | None) -> None:
        now = self._clock.monotonic()
        if detail is not None and self._trouble is None:
            self._trouble = (detail, now)
            self._emit(TroubleBegan(detail))
        elif detail is None and self._trouble is not None:
            self._emit(TroubleEnded(now - self._trouble[1]))
            self._trouble = None

    def _finish(self) -> None:
        with contextlib.suppress(OSError):
            self._write_status()
        if self._waker is not None:
            self._waker.close()
        self._emit(ListenerStopped(self._stop_reason or "all was read"))


def _by_place(sight: Sight) -> tuple[dict[str, int], dict[str, int]]:
    """Tasks that wait and tasks in a claim, by worker."""
    waiting: Counter[str] = Counter()
    running: Counter[str] = Counter()
    for task in sight.tasks.values():
        (running if task.incarnation is not None else waiting)[task.worker] += 1
    return dict(waiting), dict(running)
