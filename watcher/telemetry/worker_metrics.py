"""Keep the worker's Prometheus metrics, fed by events.

Counters and histograms move when an event comes, on the loop thread. Queue size, running tasks and ages are
asked for when somebody scrapes, on the scraper's thread, so that an idle worker does nothing for them.

Every label has a bounded set of values (see `labels`). A task id is never a label.

Importing this module costs 26 ms and 5 MiB, nearly all of it http.server, urllib and gzip, which
prometheus_client loads whatever is used of it; the worker imports it only when metrics are on.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from watcher import __version__
from watcher.clock import parse_rfc3339
from watcher.formats.result import STATUSES
from watcher.policy.after_attempt import Failure
from watcher.policy.breaker import BreakerState
from watcher.telemetry import events
from watcher.telemetry.labels import NOT_A_PROVIDER, NOT_A_WORD, BoundedLabel, Children

#: Agents work for seconds to hours; a shell command or a warm runner for milliseconds.
DURATION_BUCKETS_SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800,
    3600, 7200, 14400,
)  # fmt: skip
#: Milliseconds while the worker is free; the depth of the backlog when it is not.
LATENCY_BUCKETS_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 14400,
)  # fmt: skip

#: Exposed as 0 from the start: `increase()` over a counter that is born at 1 misses the first failure. They
#: also keep their own label, whatever other reasons come before them.
KNOWN_REASONS = (
    "max_retries_exceeded", "permanent_failure", "timeout", "failed", "cancelled", "worker_died",
    "dependency_failed", "dependency_cycle", "duplicate_id", "id_mismatch", "invalid_json", "invalid_field",
    "missing_description", "budget_exceeded", "prompt_too_large", "given_back_too_often",
)  # fmt: skip

#: Which of several providers `watcher_circuit_breaker_state` shows: open starts nothing, half open one probe.
_BADNESS = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}

Read = Callable[[], float | None]


class WorkerMetrics:
    """Keeps the metrics of one worker in `registry`; call it with every event, on the loop thread.

    Without a `registry` it makes one of its own and adds the process metrics (`process_cpu_seconds_total`,
    `process_resident_memory_bytes`, `process_open_fds`, ...). `providers` are the configured ones: they are
    exposed from the start and keep their label, whatever names tasks bring.
    """

    def __init__(
        self, worker: str, registry: CollectorRegistry | None = None, *, providers: Iterable[str] = ()
    ) -> None:
        # `_created` series would double the counters for a reader that hardly exists. It is process-wide.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        if registry is None:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
        self.registry = registry
        self.worker = worker
        self._make_task_metrics()
        self._make_provider_metrics(tuple(providers))
        self._make_worker_metrics()
        self._handlers: dict[type[events.Event], Callable[[Any], None]] = {
            events.TaskClaimed: self._task_claimed,
            events.AttemptEnded: self._attempt_ended,
            events.TaskSettled: self._task_settled,
            events.TaskRefused: self._task_refused,
            events.TaskRetryScheduled: self._retry_scheduled,
            events.TaskReleased: self._task_released,
            events.TaskRescued: lambda _: self._rescued.inc(),
            events.TaskDropped: lambda _: self._dropped.inc(),
            events.OutcomeDiscarded: lambda _: self._discarded.inc(),
            events.FileIgnored: lambda _: self._ignored.inc(),
            events.LeftoversKilled: lambda event: self._leftovers.inc(_addable(event.processes)),
            events.BreakerMoved: self._breaker_moved,
            events.ProviderHeld: self._provider_held,
            events.ProviderResumed: self._provider_resumed,
            events.SpendingRecorded: self._spent,
            events.BudgetReached: lambda _: self._over_budget.set(1),
            events.BudgetLifted: lambda _: self._over_budget.set(0),
            events.TroubleBegan: lambda _: self._trouble.set(1),
            events.TroubleEnded: lambda _: self._trouble.set(0),
            events.HintFailed: lambda _: self._hints_failed.inc(),
            events.WakeDegraded: lambda _: self._wake_degraded.inc(),
        }

    def __call__(self, event: events.Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def read_at_scrape(
        self,
        *,
        queue_size: Read | None = None,
        active_tasks: Read | None = None,
        oldest_pending_age_seconds: Read | None = None,
        heartbeat_age_seconds: Read | None = None,
        last_scan_age_seconds: Read | None = None,
        log_lines_dropped: Read | None = None,
        spent_today_usd: Read | None = None,
        daily_budget_usd: Read | None = None,
    ) -> None:
        """Say where these values come from. Each function is called once a scrape, on the scraper's thread.

        None from a function shows 0 (where no task waits, none is old); an exception shows NaN and the scrape
        goes on. The heartbeat's age, the scan's and the dropped lines are exposed only when they are given.
        The two ages show a loop that hangs: the scraper's thread answers even then.
        """
        gauges = (
            (self._queue_size, queue_size),
            (self._active_tasks, active_tasks),
            (self._oldest_pending, oldest_pending_age_seconds),
            (self._heartbeat_age, heartbeat_age_seconds),
            (self._scan_age, last_scan_age_seconds),
            (self._spent_today, spent_today_usd),
            (self._daily_budget, daily_budget_usd),
        )
        for gauge, read in gauges:
            if read is not None:
                gauge.labels(self.worker).set_function(partial(_asked, read))
        if log_lines_dropped is not None:
            self._lines_dropped.read = log_lines_dropped

    def read_statistics(self, numbers: Callable[[], tuple[int, int]]) -> None:
        """Expose how many outcomes were told to STATS_URL and how many were dropped; asked at each scrape."""
        texts = ("Outcomes told to STATS_URL.", "Outcomes that STATS_URL did not take.")
        for index, name in enumerate(("watcher_statistics_sent_total", "watcher_statistics_dropped_total")):
            counter = _CounterOf(name, texts[index], self.worker)
            counter.read = partial(_nth, numbers, index)
            self.registry.register(counter)

    # What there is --------------------------------------------------------------------------------

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, ("worker", *labels), registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(name, help_text, ("worker", *labels), registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, help_text, ("worker",), buckets=buckets, registry=self.registry).labels(self.worker)

    def _make_task_metrics(self) -> None:
        worker = self.worker
        processed = self._counter("watcher_tasks_processed_total", "Tasks with a stored result.", "status")
        failed = self._counter(
            "watcher_tasks_failed_total",
            "Tasks that did not complete, and files that were no task.",
            "reason",
        )
        dead_letters = self._counter("watcher_dead_letters_total", "Dead letters written.", "reason")
        released = self._counter("watcher_tasks_released_total", "Tasks given back with no attempt counted.", "reason")
        reasons = BoundedLabel(NOT_A_WORD, KNOWN_REASONS)
        self._processed = Children(BoundedLabel(NOT_A_WORD, STATUSES), partial(processed.labels, worker))
        self._failed = Children(reasons, partial(failed.labels, worker))
        self._dead_letters = Children(reasons, partial(dead_letters.labels, worker))
        self._released = Children(reasons, partial(released.labels, worker))
        for status in STATUSES:
            self._processed[status].inc(0)
        for reason in KNOWN_REASONS:
            self._failed[reason].inc(0)
            self._dead_letters[reason].inc(0)
        self._duration = self._histogram(
            "watcher_task_duration_seconds",
            "How long the last attempt of a settled task ran.",
            DURATION_BUCKETS_SECONDS,
        )
        self._claim_latency = self._histogram(
            "watcher_task_claim_latency_seconds",
            "From the moment a task could start to its claim.",
            LATENCY_BUCKETS_SECONDS,
        )
        self._rescued = self._counter("watcher_tasks_rescued_total", "Tasks taken back from a dead process.").labels(
            worker
        )
        self._dropped = self._counter(
            "watcher_duplicates_dropped_total", "Copies of a task whose result is there already."
        ).labels(worker)
        self._discarded = self._counter(
            "watcher_outcomes_discarded_total", "Outcomes not published: the claim was no longer ours."
        ).labels(worker)
        output = self._counter("watcher_output_bytes_total", "Bytes that commands wrote.", "stream")
        self._stdout = output.labels(worker, "stdout")
        self._stderr = output.labels(worker, "stderr")

    def _make_provider_metrics(self, providers: tuple[str, ...]) -> None:
        self.failures = BoundedLabel(NOT_A_WORD, ("none", *(failure.value for failure in Failure)))
        self.attempts = self._counter(
            "watcher_task_attempts_total",
            "Ended attempts by failure class (none: a success).",
            "provider",
            "failure",
        )
        self.retries = self._counter("watcher_task_retries_total", "Failed attempts that are tried again.", "provider")
        self.tokens = self._counter(
            "watcher_provider_tokens_total",
            "Tokens the provider reported for settled tasks.",
            "provider",
            "kind",
        )
        self.cost_usd = self._counter(
            "watcher_provider_cost_usd_total",
            "Cost in USD the provider reported for settled tasks.",
            "provider",
        )
        self.spent_usd = self._counter(
            "watcher_spent_usd_total",
            "Cost in USD the provider reported for all attempts, also failed ones.",
            "provider",
        )
        self.provider_breaker = self._gauge(
            "watcher_provider_circuit_breaker_state", "0 closed, 1 open, 2 half open.", "provider"
        )
        self.held_until = self._gauge(
            "watcher_provider_held_until_timestamp_seconds",
            "When a held provider may be probed; 0: not held, +Inf: not before it is resumed.",
            "provider",
        )
        self._breaker_states: dict[str, BreakerState] = {}
        self._breaker = self._gauge(
            "watcher_circuit_breaker_state", "0 closed, 1 open, 2 half open; of several providers the worst."
        ).labels(self.worker)
        self._providers = Children(BoundedLabel(NOT_A_PROVIDER), partial(_Provider, self))
        for provider in providers:
            self._providers[provider].attempts[None].inc(0)

    def _make_worker_metrics(self) -> None:
        worker = self.worker
        self._queue_size = self._gauge("watcher_task_queue_size", "Tasks that wait, whatever they wait for.")
        self._active_tasks = self._gauge("watcher_active_tasks", "Tasks that run now.")
        self._oldest_pending = self._gauge(
            "watcher_oldest_pending_task_age_seconds",
            "Age of the task that has waited longest; 0: none waits.",
        )
        for gauge in (self._queue_size, self._active_tasks, self._oldest_pending):
            gauge.labels(worker).set(0)
        self._heartbeat_age = self._gauge("watcher_heartbeat_age_seconds", "Time since the last heartbeat.")
        self._scan_age = self._gauge("watcher_last_scan_age_seconds", "Time since the inbox was last listed.")
        self._trouble = self._gauge(
            "watcher_trouble", "1 while the machine is short of something, so that nothing is claimed."
        ).labels(worker)
        self._spent_today = self._gauge(
            "watcher_spent_today_usd", "Cost in USD of all processes of this worker since midnight UTC."
        )
        self._daily_budget = self._gauge("watcher_daily_budget_usd", "What one day may cost in USD; 0: any amount.")
        self._over_budget = self._gauge(
            "watcher_over_daily_budget", "1 while nothing is claimed because the day's budget is spent."
        ).labels(worker)
        self._ignored = self._counter(
            "watcher_files_ignored_total",
            "Files in the inbox that are left alone because of their name or kind.",
        ).labels(worker)
        self._leftovers = self._counter(
            "watcher_leftover_processes_killed_total",
            "Processes that a command left behind and that were ended.",
        ).labels(worker)
        self._hints_failed = self._counter(
            "watcher_hints_failed_total", "Receipts and notices that could not be written."
        ).labels(worker)
        self._wake_degraded = self._counter(
            "watcher_wake_degraded_total", "Times that events of the file system were lost or not available."
        ).labels(worker)
        self._lines_dropped = _CounterOf(
            "watcher_log_lines_dropped_total", "Log lines lost: stderr was closed, full or not read.", worker
        )
        self.registry.register(self._lines_dropped)
        build = Info("watcher_build", "The version that runs.", ("worker",), registry=self.registry)
        build.labels(worker).info({"version": __version__, "python_version": platform.python_version()})

    # What events do -------------------------------------------------------------------------------

    def _task_claimed(self, event: events.TaskClaimed) -> None:
        self._claim_latency.observe(_addable(event.latency_seconds))

    def _attempt_ended(self, event: events.AttemptEnded) -> None:
        self._providers[event.provider].attempts[event.failure].inc()
        if event.stdout_bytes > 0:
            self._stdout.inc(event.stdout_bytes)
        if event.stderr_bytes > 0:
            self._stderr.inc(event.stderr_bytes)

    def _task_settled(self, event: events.TaskSettled) -> None:
        self._processed[event.status].inc()
        if event.attempts > 0:  # what never ran has no duration
            self._duration.observe(_addable(event.duration_seconds))
        if event.status != "completed":
            self._failed[event.reason or event.status].inc()
        if event.dead_lettered:
            self._dead_letters[event.reason or event.status].inc()
        if event.input_tokens or event.output_tokens or event.cost_usd:
            self._count_usage(event)

    def _count_usage(self, event: events.TaskSettled) -> None:
        # Children are made with their first value: a provider that tells no cost has no series that says 0.
        provider = self._providers[event.provider].label
        if event.input_tokens:
            self.tokens.labels(self.worker, provider, "input").inc(_addable(event.input_tokens))
        if event.output_tokens:
            self.tokens.labels(self.worker, provider, "output").inc(_addable(event.output_tokens))
        if event.cost_usd:
            self.cost_usd.labels(self.worker, provider).inc(_addable(event.cost_usd))

    def _spent(self, event: events.SpendingRecorded) -> None:
        provider = self._providers[event.provider].label
        self.spent_usd.labels(self.worker, provider).inc(_addable(event.cost_usd))

    def _task_refused(self, event: events.TaskRefused) -> None:
        self._failed[event.reason].inc()
        self._dead_letters[event.reason].inc()

    def _retry_scheduled(self, event: events.TaskRetryScheduled) -> None:
        self._providers[event.provider].retries.inc()

    def _task_released(self, event: events.TaskReleased) -> None:
        self._released[event.reason].inc()

    def _breaker_moved(self, event: events.BreakerMoved) -> None:
        state = BreakerState(event.state)
        provider = self._providers[event.provider]
        provider.breaker.set(state.number)
        self._breaker_states[provider.label] = state
        self._breaker.set(max(self._breaker_states.values(), key=_BADNESS.__getitem__).number)

    def _provider_held(self, event: events.ProviderHeld) -> None:
        until = math.inf
        if event.until is not None:
            try:
                until = parse_rfc3339(event.until)
            except ValueError:
                until = math.inf  # that it is held is what matters
        self._providers[event.provider].held_until.set(until)

    def _provider_resumed(self, event: events.ProviderResumed) -> None:
        self._providers[event.provider].held_until.set(0)


class _Provider:
    """The children of one provider."""

    __slots__ = ("attempts", "breaker", "held_until", "label", "retries")

    def __init__(self, metrics: WorkerMetrics, label: str) -> None:
        worker = metrics.worker
        self.label = label
        self.attempts = Children(metrics.failures, partial(metrics.attempts.labels, worker, label))
        self.retries = metrics.retries.labels(worker, label)
        self.breaker = metrics.provider_breaker.labels(worker, label)
        self.held_until = metrics.held_until.labels(worker, label)


class _CounterOf(Collector):
    """A counter that somebody else keeps: `read` is called at each scrape; no series before it is set."""

    def __init__(self, name: str, help_text: str, worker: str) -> None:
        self._name = name
        self._help = help_text
        self._worker = worker
        self.read: Read | None = None

    def describe(self) -> list[Metric]:
        return [CounterMetricFamily(self._name, self._help, labels=("worker",))]

    def collect(self) -> list[Metric]:
        family = CounterMetricFamily(self._name, self._help, labels=("worker",))
        if self.read is not None:
            family.add_metric((self._worker,), _asked(self.read))
        return [family]


def _nth(numbers: Callable[[], tuple[int, ...]], index: int) -> float:
    return numbers()[index]


def _addable(value: float) -> float:
    """What a provider or a clock said, fit for a sum: one NaN or infinity would spoil it for ever."""
    return value if 0.0 < value < 1e15 else 0.0


def _asked(read: Read) -> float:
    try:
        value = read()
    except Exception:  # noqa: BLE001 - the loop changes what this reads; one odd value must not cost a scrape
        return math.nan
    return 0.0 if value is None else float(value)
