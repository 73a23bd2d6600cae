"""Make the runners that one process of a worker needs, from its settings.

Every worker has the one that starts a process for each attempt. Providers that speak the Agent Client Protocol and
HANDLER_COMMAND are kept running beside it; a router sends each attempt to the runner of its provider. What a worker
does not use is not imported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from watcher.clock import Clock
from watcher.runner.oneshot import OneShotRunner
from watcher.runner.prestart import attending
from watcher.runner.providers.provider import Provider, environment_for
from watcher.runner.runner_interface import Runner, Workplace
from watcher.settings.layers import process_environment
from watcher.store.worker_locks import Incarnation
from watcher.telemetry.events import Bus

if TYPE_CHECKING:
    from watcher.settings.worker import WatcherConfig


class Runners:
    """Makes the runner of one worker, again for each of its incarnations."""

    def __init__(
        self, config: WatcherConfig, worker: str, providers: Mapping[str, Provider], clock: Clock, bus: Bus
    ) -> None:
        self._config = config
        self._worker = worker
        self._providers = providers
        self._clock = clock
        self._bus = bus

    def make(self, folder: Path, incarnation: Incarnation) -> Runner:
        """The runner for everything; `folder` is the claim folder. Processes that are kept warm begin to start.

        Called on the loop thread, which is told what happens to them.
        """
        config = self._config
        place = Workplace(
            folder, process_environment(), self._worker, incarnation.id, incarnation.busy_fd, str(incarnation.busy_path)
        )
        once = OneShotRunner(self._providers, config, place, self._clock)
        if once.prestart is not None:
            self._bus.join(attending(once.prestart))
            once.expect(config.provider, config.model or None, self._worker)
        runner: Runner = once
        if any(provider.protocol == "acp" for provider in self._providers.values()):
            runner = self._with_acp(once, place)
        if config.handler_command:
            runner = self._with_pool(runner, self._providers["handler"], place)
        return runner

    def _with_acp(self, once: Runner, place: Workplace) -> Runner:
        """Providers that speak the Agent Client Protocol are kept running."""
        from watcher.runner.acp.runner import AcpRunner
        from watcher.runner.warm.runner import Router

        speaking = {name: provider for name, provider in self._providers.items() if provider.protocol == "acp"}
        runner = AcpRunner(speaking, once, self._config, place, self._clock)
        return Router(once, dict.fromkeys(speaking, runner))

    def _with_pool(self, once: Runner, provider: Provider, place: Workplace) -> Runner:
        """Keep HANDLER_COMMAND running for the tasks of the provider handler; everything else stays as it was."""
        from watcher.policy.pool_size import PoolLimits
        from watcher.runner.warm.handler_process import start_of
        from watcher.runner.warm.pool import HandlerPool, PoolSettings
        from watcher.runner.warm.runner import HANDLER, Router, WarmRunner

        config = self._config
        settings = PoolSettings(
            start=start_of(
                provider,
                environment_for(provider, place.environ, config.agent_env) | {"WATCHER_WORKER": self._worker},
                place.pass_fds,
                config.max_output_bytes,
            ),
            mark_prefix=f"{place.id}.h",
            limits=PoolLimits(config.handler_pool_min, config.handler_pool_size, config.handler_pool_max),
            busy_lock=place.busy_lock,
            request_seconds=config.handler_request_timeout,
            start_seconds=config.handler_start_timeout,
            grace_seconds=config.kill_grace,
            max_requests=config.handler_max_requests,
            max_age_seconds=config.handler_max_age,
            max_memory_bytes=config.handler_max_memory,
            max_waiting=config.max_concurrent_tasks,
            max_printed_bytes=config.max_attempt_output_bytes,
        )
        warm = WarmRunner(
            lambda tell: HandlerPool(config.handler_pool_size, settings, self._clock, tell),
            once,
            config,
            place.folder,
            self._clock,
            self._bus.emit,
            asyncio.get_running_loop().call_soon_threadsafe,
        )
        warm.start()
        return Router(once, {HANDLER: warm})
