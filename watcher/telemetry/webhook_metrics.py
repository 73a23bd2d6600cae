"""The HTTP endpoint's Prometheus metrics. Labels are bounded: routes as they are written, never what a caller sent."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GROUPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_METHODS = frozenset({"GET", "HEAD", "POST"})


class WebhookMetrics:
    """Counts what the endpoint does; the functions are called at each scrape, on the scraper's thread."""

    def __init__(self, connections: Callable[[], int], streams: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "watcher_webhook_requests_total", "Requests by route and status.", ("route", "method", "status"),
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "watcher_webhook_request_duration_seconds", "From a request's head to the end of its answer.", ("route",),
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._tasks = Counter(
            "watcher_webhook_tasks_total",
            "Posts by what became of them.",
            ("source", "outcome"),
            registry=self.registry,
        )
        self._groups = Histogram(
            "watcher_webhook_group_size", "Posts that were made durable together.", buckets=_GROUPS,
            registry=self.registry,
        )  # fmt: skip
        self._commits = Histogram(
            "watcher_webhook_commit_duration_seconds", "What making a group durable took.", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._cut = Counter(
            "watcher_webhook_connections_refused_total", "Connections that were refused or cut off.", ("reason",),
            registry=self.registry,
        )  # fmt: skip
        for name, text, read in (
            ("watcher_webhook_connections", "Connections that are open.", connections),
            ("watcher_webhook_waiting_requests", "Long polls and event streams that are open.", streams),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request has its whole answer, or its caller left (status 499)."""
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def judged(self, source: str, outcome: str) -> None:
        """A post was accepted, a copy, a conflict, or met a full inbox."""
        self._tasks.labels(source, outcome).inc()

    def committed(self, posts: int, seconds: float) -> None:
        """A group is durable; called on the accepting thread."""
        self._groups.observe(posts)
        self._commits.observe(seconds)

    def cut(self, reason: str) -> None:
        """A connection was refused or cut off."""
        self._cut.labels(reason).inc()
