"""Collect the listener's Prometheus metrics when somebody scrapes.

Labels are bounded: workers and states, never a task; at most 50 open batches, the rest is not shown one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from watcher.policy.health import Health

MAX_BATCHES = 50


@dataclass(slots=True)
class Numbers:
    """What is shown; the loop makes a new one, the scraper's thread only reads it."""

    health: Counter[str] = field(default_factory=Counter)
    tasks: Mapping[tuple[str, str], int] = field(default_factory=dict)
    pending: Mapping[str, int] = field(default_factory=dict)
    running: Mapping[str, int] = field(default_factory=dict)
    notices: Mapping[str, int] = field(default_factory=dict)
    batches: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    open_batches: int = 0
    backlog: int = 0


class ListenerMetrics(Collector):
    """`numbers` is replaced by the loop; the functions are called at each scrape, on the scraper's thread."""

    def __init__(
        self, oldest_unread_age: Callable[[], float], oldest_notice_age: Callable[[], float],
        last_scan_age: Callable[[], float],
    ) -> None:  # fmt: skip
        self.numbers = Numbers()
        self._gauges = (
            ("oldest_unread_result_age_seconds", "Age of the oldest result the listener has not read yet; 0: none.",
             oldest_unread_age),
            ("oldest_notice_age_seconds", "Age of the oldest notice that nobody has taken away; 0: none.",
             oldest_notice_age),
            ("last_scan_age_seconds", "Time since all folders were last compared with what is known.", last_scan_age),
        )  # fmt: skip
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        numbers = self.numbers
        yield _gauge(
            "workers", "Worker processes by health.", "state", {h.value: numbers.health[h.value] for h in Health}
        )
        tasks = CounterMetricFamily(
            "watcher_listener_tasks_total", "Results and refused files that were noticed.", labels=("worker", "status")
        )
        for (worker, status), count in list(numbers.tasks.items()):
            tasks.add_metric((worker, status), count)
        yield tasks
        yield _gauge("pending_tasks", "Tasks that wait, by worker.", "worker", numbers.pending)
        yield _gauge("running_tasks", "Tasks in a claim, by worker.", "worker", numbers.running)
        notices = CounterMetricFamily("watcher_listener_notices_total", "Notices written.", labels=("kind",))
        for kind, count in list(numbers.notices.items()):
            notices.add_metric((kind,), count)
        yield notices
        batches = GaugeMetricFamily(
            "watcher_listener_batch_tasks", "Tasks of batches that are not told yet.", labels=("batch", "state")
        )
        for batch, (ended, waiting) in list(numbers.batches.items())[:MAX_BATCHES]:
            batches.add_metric((batch, "ended"), ended)
            batches.add_metric((batch, "on_their_way"), waiting)
        yield batches
        yield GaugeMetricFamily("watcher_listener_open_batches", "Batches not told yet.", numbers.open_batches)
        yield GaugeMetricFamily("watcher_listener_unread_files", "Found and not read yet.", numbers.backlog)
        for name, text, read in self._gauges:
            yield GaugeMetricFamily(f"watcher_listener_{name}", text, read())


def _gauge(name: str, text: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"watcher_listener_{name}", text, labels=(label,))
    for key, value in list(values.items()):
        family.add_metric((key,), value)
    return family
