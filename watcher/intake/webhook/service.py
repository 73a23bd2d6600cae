"""Assemble the HTTP endpoint: from settings to a server that takes posts, and down again in the right order.

At a stop: no new connections; long polls and streams are let go; posts that are being taken are finished and answered,
for SHUTDOWN_GRACE at most; then the accepting thread ends with an empty queue. Raises SettingError.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from watcher import __version__
from watcher.clock import SystemClock
from watcher.errors import SettingError
from watcher.intake.webhook.access import Access
from watcher.intake.webhook.deliveries import Memory
from watcher.intake.webhook.durable_posts import Accepter
from watcher.intake.webhook.event_stream import TaskNews, workers_of
from watcher.intake.webhook.http_routes import Endpoint, EndpointParts
from watcher.intake.webhook.http_server import ConnectionLimits, Server, check_descriptors, listen
from watcher.intake.webhook.payload_hooks import Hook, load_hooks
from watcher.settings.webhook import WebhookConfig
from watcher.system.files import Folder, replace
from watcher.system.signals import Reactions, signals
from watcher.telemetry.events import Bus, WebhookStarted, WebhookStopped, passed_over
from watcher.telemetry.logs import EventLog, configure_logging
from watcher.telemetry.metrics_endpoint import MetricsEndpoint
from watcher.telemetry.webhook_metrics import WebhookMetrics


class WebhookService:
    """One endpoint; `run` serves until a signal. `environment` is where hooks find their secrets."""

    def __init__(self, config: WebhookConfig, environment: Mapping[str, str], port_file: Path | None = None) -> None:
        self._config = config
        self._environment = environment
        self._port_file = port_file
        self._bus = Bus()
        self._server: Server | None = None
        self._endpoint: Endpoint | None = None
        self._reason = "it ended by itself"

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises SettingError when a setting cannot be used."""
        config = self._config
        self._bus.join(EventLog(_logging(config)))
        check_descriptors(config.webhook_max_connections)
        hooks, access = self._rules()
        async with AsyncExitStack() as undo:
            listening = undo.enter_context(listen(config.webhook_host, config.webhook_port))
            port = int(listening.getsockname()[1])
            metrics = WebhookMetrics(self._connection_count, self._waiting_count)
            metrics_port = self._serve_metrics(metrics, undo)
            parts = await self._parts(hooks, access, metrics, undo)
            self._endpoint = Endpoint(parts)
            limits = ConnectionLimits(config.webhook_max_connections, config.webhook_read_timeout, metrics.cut)
            self._server = Server(self._endpoint.app, listening, limits, config.shutdown_grace)
            self._listen_to_signals(self._server, parts.news)
            self._bus.emit(WebhookStarted(config.webhook_host, port, self._about(hooks, access, metrics_port)))
            _write_port(self._port_file, port)
            await self._server.run_until_stopped()
        self._bus.emit(WebhookStopped(self._reason))

    def _rules(self) -> tuple[dict[str, Hook], Access]:
        """The hooks and who may call. Raises SettingError when anybody could."""
        config = self._config
        path = config.webhook_hooks_file
        hooks = {} if path is None else load_hooks(path, self._environment)
        unsigned = [hook.name for hook in hooks.values() if hook.secret is None]
        tokens = config.tokens()
        if not tokens and not config.is_loopback and (unsigned or not hooks):
            what = f"hooks without a secret: {', '.join(unsigned)}" if unsigned else "no token is set"
            raise SettingError(
                f"WEBHOOK_HOST={config.webhook_host}: others could give tasks to agents ({what}); "
                "set WEBHOOK_TOKEN or WEBHOOK_TOKEN_FILE, or WEBHOOK_HOST=127.0.0.1"
            )
        for hook in hooks.values():
            if config.webhook_workers and hook.worker not in config.webhook_workers:
                raise SettingError(f"{path}: [hooks.{hook.name}]: worker {hook.worker} is not in WEBHOOK_WORKERS")
        return hooks, Access(tokens, config.is_loopback)

    async def _parts(
        self, hooks: dict[str, Hook], access: Access, metrics: WebhookMetrics, undo: AsyncExitStack
    ) -> EndpointParts:
        config, clock = self._config, SystemClock()
        memory = Memory(config.state_dir, config.webhook_retention)
        undo.callback(memory.close)
        try:
            accepter = Accepter(config.folders, memory, config.webhook_max_pending, clock, metrics.committed)
        except OSError as error:
            raise SettingError(f"TASK_DIR: cannot use {config.task_dir}: {error.strerror}; make it writable") from error
        undo.push_async_callback(accepter.close)
        news = TaskNews(
            config.folders, lambda: workers_of(config.folders, config.webhook_workers), clock,
            config.scan_interval, config.poll_interval,
        )  # fmt: skip
        undo.callback(news.close)
        await news.start()
        looking = asyncio.create_task(news.run())
        undo.push_async_callback(_cancelled, looking)
        return EndpointParts(config, access, hooks, accepter, news, metrics, self._bus.emit)

    def _serve_metrics(self, metrics: WebhookMetrics, undo: AsyncExitStack) -> int | None:
        """The port, which is another one when nobody chose it and the usual one is taken."""
        wanted = self._config.metrics
        if not wanted.enable_metrics:
            return None
        endpoint = MetricsEndpoint(
            metrics.registry,
            wanted.metrics_host,
            wanted.metrics_port,
            wanted.port_was_set,
            self._is_ready,
            allowed_hosts=wanted.allowed_hosts,
        )
        endpoint.start()
        undo.callback(endpoint.stop)
        return endpoint.port

    def _listen_to_signals(self, server: Server, news: TaskNews) -> None:
        def stop(name: str) -> None:
            self._reason = name
            news.close()
            server.force_exit = server.should_exit  # the second one waits for nobody
            server.should_exit = True

        def stop_now(name: str) -> None:
            stop(name)
            server.force_exit = True

        signals.attach(asyncio.get_running_loop(), Reactions(stop, stop_now), passed_over(self._bus.emit))

    def _is_ready(self) -> tuple[bool, str]:
        is_up = self._server is not None and self._server.started and not self._server.should_exit
        return (True, "ready") if is_up else (False, "not taking posts")

    def _connection_count(self) -> int:
        return 0 if self._server is None else self._server.connection_count()

    def _waiting_count(self) -> int:
        return 0 if self._endpoint is None else self._endpoint.waiting

    def _about(self, hooks: dict[str, Hook], access: Access, metrics_port: int | None) -> str:
        who = ", ".join(self._config.webhook_workers) or "every worker with an inbox"
        key = "token" if access.tokens else "no token"
        rules = f"{key}, hooks: {', '.join(hooks) or 'none'}, for {who}"
        metrics = f", metrics on port {metrics_port}" if metrics_port is not None else ""
        return f"version {__version__}, pid {os.getpid()}, {rules}{metrics}"


def _logging(config: WebhookConfig) -> logging.Logger:
    """Our log, for the libraries too: what they say as an error is one of our lines."""
    ours = configure_logging(config.log_level, config.log_format, "webhook")
    for name in ("uvicorn.error", "asyncio"):
        theirs = logging.getLogger(name)
        theirs.handlers = list(ours.handlers)
        theirs.propagate = False
        theirs.setLevel(logging.ERROR)  # below that is what any caller can cause
    return ours


def _write_port(path: Path | None, port: int) -> None:
    if path is None:
        return
    folder = Folder(Path(os.path.realpath(path.parent)))
    try:
        replace(folder, path.name, f"{port}\n".encode(), str(os.getpid()))
    finally:
        folder.close()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
