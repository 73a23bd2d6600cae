"""Answer whether a worker is well, by the exit code: `watcher health marie`, for container probes and scripts.

Well is: its heartbeat moves and it could claim a task; also while it is paused, held or draining, unless --strict is
given. The heartbeat's age decides at once; one that is late is watched for up to --within seconds. With several
processes of one worker (marie@1, marie@2) one that is well is enough; name one to ask about it alone, as
WATCHER_INSTANCE in the environment does: so each container asks about itself. `--listener` asks about
orchestrator_listener.py instead.

Exit code 0: well; 1: not.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from watcher.cli import command_output
from watcher.cli.terminal import one_line
from watcher.errors import SettingError
from watcher.settings.folders import folders, state_folder
from watcher.settings.instance_name import own_instance
from watcher.settings.layers import read_layers
from watcher.store.root_check import UnusableRoot

if TYPE_CHECKING:
    from watcher.cli.health_probe import ProbeAnswer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("worker", metavar="NAME", nargs="?", help="the worker, like marie or marie@2")
    parser.add_argument("--instance", metavar="I", help="one of several processes of this worker")
    parser.add_argument("--within", metavar="S", type=_seconds, default=0.0, help="watch a late heartbeat for so long")
    parser.add_argument("--strict", action="store_true", help="also unhealthy: degraded, paused, held, draining")
    parser.add_argument("--listener", action="store_true", help="ask about the listener, not about a worker")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(options: argparse.Namespace) -> int:
    if options.listener == (options.worker is not None):
        raise SettingError("give a worker's name, or --listener")
    if options.listener:
        return _listener(options)
    from watcher.cli.health_probe import ProbeAnswer, probe

    name, _, instance = options.worker.partition("@")
    layers = read_layers()
    ours = layers.given.get("WATCHER_INSTANCE")
    wanted = options.instance or instance or (own_instance(ours.value) if ours is not None else None)
    places = folders(layers)
    try:
        command_output.check_root(places)
    except UnusableRoot as error:
        return _say(options, False, [ProbeAnswer(options.worker, False, str(error))])
    found = probe(places, name, wanted, options.within, options.strict)
    if not found:
        found = [
            ProbeAnswer(options.worker, False, "no heartbeat found; was it started, and with the same WATCHER_ROOT?")
        ]
    return _say(options, any(health.is_well for health in found), found)


def _say(options: argparse.Namespace, is_well: bool, found: list[ProbeAnswer]) -> int:
    if options.json:
        told: dict[str, Any] = {"is_well": is_well, "processes": [health.as_json() for health in found]}
        command_output.say_json(told)
    else:
        for health in found:
            command_output.say(f"{health.name}: {'healthy' if health.is_well else 'unhealthy'}: {one_line(health.why)}")
    return 0 if is_well else 1


def _listener(options: argparse.Namespace) -> int:
    """The listener beats nowhere; its lock says whether it lives."""
    from watcher.cli.health_probe import ProbeAnswer
    from watcher.store.listener_state import is_running

    layers = read_layers()
    state = state_folder(layers, folders(layers).root)
    lives = is_running(state)
    why = "it holds its lock" if lives else f"nobody holds the listener's lock in {state}"
    return _say(options, lives, [ProbeAnswer("listener", lives, why)])


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: seconds from 0 to 3600")
    return value
