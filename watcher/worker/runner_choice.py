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
from watcher.runner.oneshot import OneShotRunner, OneShotSettings
from watcher.runner.prestart import PrestartSettings, attending
from watcher.runner.providers.provider import Provider, environment_for
from watcher.runner.runner_interface import Runner
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
        once = self._once(folder, incarnation)
        if once.prestart is not None:
            self._bus.join(attending(once.prestart))
            once.expect(config.provider, config.model or None, self._worker)
        runner: Runner = once
        if any(provider.protocol == "acp" for provider in self._providers.values()):
            runner = self._with_acp(once, folder, incarnation)
        if config.handler_command:
            runner = self._with_pool(runner, self._providers["handler"], folder, incarnation)
        return runner

    def _once(self, folder: Path, incarnation: Incarnation) -> OneShotRunner:
        """One process for each attempt."""
        config = self._config
        return OneShotRunner(
            self._providers,
            OneShotSettings(
                folder=folder,
                busy_fd=incarnation.busy_fd,
                environ=process_environment(),
                more_environment=config.agent_env,
                kill_grace_seconds=config.kill_grace,
                max_output_bytes=config.max_output_bytes,
                allowed_cwd=config.allowed_cwd,
                stall_timeout_seconds=config.stall_timeout,
                prestart=self._ahead(incarnation) if config.warm_agents else None,
                max_attempt_output_bytes=config.max_attempt_output_bytes,
                min_free_bytes=config.min_free_bytes,
            ),
            self._clock,
        )

    def _ahead(self, incarnation: Incarnation) -> PrestartSettings:
        """Agents that are started before their tasks."""
        return PrestartSettings(
            count=self._config.warm_agents,
            mark_prefix=f"{incarnation.id}.w",
            busy_lock=str(incarnation.busy_path),
            pass_fds=(incarnation.busy_fd,),
            grace_seconds=self._config.kill_grace,
        )

    def _with_acp(self, once: Runner, folder: Path, incarnation: Incarnation) -> Runner:
        """Providers that speak the Agent Client Protocol are kept running."""
        from watcher.runner.acp.runner import AcpRunner, AcpSettings
        from watcher.runner.warm.runner import Router

        config = self._config
        speaking = {name: provider for name, provider in self._providers.items() if provider.protocol == "acp"}
        settings = AcpSettings(
            folder=folder,
            worker=self._worker,
            environ=process_environment(),
            mark_prefix=f"{incarnation.id}.a",
            more_environment=config.agent_env,
            busy_lock=str(incarnation.busy_path),
            pass_fds=(incarnation.busy_fd,),
            grace_seconds=config.kill_grace,
            max_output_bytes=config.max_output_bytes,
            max_attempt_output_bytes=config.max_attempt_output_bytes,
            allowed_cwd=config.allowed_cwd,
            auth_method=config.acp_auth_method,
        )
        runner = AcpRunner(speaking, once, settings, self._clock)
        return Router(once, dict.fromkeys(speaking, runner))

    def _with_pool(self, once: Runner, provider: Provider, folder: Path, incarnation: Incarnation) -> Runner:
        """Keep HANDLER_COMMAND running for the tasks of the provider handler; everything else stays as it was."""
        from watcher.policy.pool_size import PoolLimits
        from watcher.runner.warm.handler_process import start_of
        from watcher.runner.warm.pool import HandlerPool, PoolSettings
        from watcher.runner.warm.runner import HANDLER, Router, WarmRunner, WarmRunnerSettings

        config = self._config
        settings = PoolSettings(
            start=start_of(
                provider,
                environment_for(provider, process_environment(), config.agent_env) | {"WATCHER_WORKER": self._worker},
                (incarnation.busy_fd,),
                config.max_output_bytes,
            ),
            mark_prefix=f"{incarnation.id}.h",
            limits=PoolLimits(config.handler_pool_min, config.handler_pool_size, config.handler_pool_max),
            busy_lock=str(incarnation.busy_path),
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
            WarmRunnerSettings(folder, config.max_output_bytes, config.allowed_cwd),
            self._clock,
            self._bus.emit,
            asyncio.get_running_loop().call_soon_threadsafe,
        )
        warm.start()
        return Router(once, {HANDLER: warm})
