"""Start each provider once, for real, and say whether it works here: `watcher doctor`.

Asks for one word with the worker's own settings (environment and .env), in an empty folder, and ends what takes longer
than --timeout; a command of your own runs in the current folder, as a worker started there runs it. Says the program
and its version, how it is logged in, whether it may act without asking, which MCP servers failed, how long it took and
what it cost; and for what is wrong, the cure. --no-call starts no model call.
Without --provider: the worker's default provider and every other one whose program is installed.

Exit code 0: all are well (warnings included); 1: some are not; 2: a setting or a name is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from watcher.cli import command_output
from watcher.cli.provider_check import CheckSettings, Doctor, Finding
from watcher.clock import SystemClock
from watcher.errors import SettingError
from watcher.policy.budget_limits import unbound
from watcher.runner.providers.provider import Provider, environment_for, find_program
from watcher.runner.providers.user_providers import all_providers
from watcher.settings.layers import process_environment
from watcher.settings.worker import load_watcher_config
from watcher.store.tasks import on_their_way, workers
from watcher.system.process_fence import IN_FORCE, fence
from watcher.system.processes import become_subreaper

if TYPE_CHECKING:
    from watcher.settings.folders import Folders
    from watcher.settings.worker import WatcherConfig

_INDENT = " " * 14


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--provider", action="append", metavar="NAME", help="check this provider; may be repeated")
    parser.add_argument("--no-call", action="store_true", help="only look: program, version, login; no model call")
    parser.add_argument("--timeout", type=_seconds, default=90.0, metavar="S", help="seconds a call may take (90)")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(options: argparse.Namespace) -> int:
    config = load_watcher_config().config
    environ = process_environment()
    wanted = _wanted(config, environ, options.provider)
    # A look has its own time limit and starts nothing ahead.
    own = config.model_copy(update={"stall_timeout": 0.0, "warm_agents": 0})
    settings = CheckSettings(own, environ, config.model or None, options.timeout, calls=not options.no_call)
    become_subreaper()
    if config.agent_sudo:
        fence.leave_open()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # so that nothing stays behind
        signal.signal(number, signal.default_int_handler)
    _tell_ignored(config.folders)
    findings = _examine(Doctor(settings, SystemClock()), wanted, is_quiet=options.json or not sys.stderr.isatty())
    for finding, provider in zip(findings, wanted, strict=False):
        finding.budget = unbound(provider, config.limits) or ""
    is_well = all(finding.state != "ill" for finding in findings)
    if options.json:
        told = {
            "is_well": is_well,
            "fence": fence.state(),
            "providers": [finding.as_json() for finding in findings],
        }
        command_output.say(json.dumps(told, indent=2))
    else:
        command_output.say(render(findings, called=not options.no_call))
        if fence.state() != IN_FORCE:
            command_output.say(f"fence         WARNING     {fence.state()}")
    return 0 if is_well else 1


def _tell_ignored(places: Folders) -> None:
    """Files that wait for ever, because no worker takes them."""
    with contextlib.suppress(OSError):  # folders that cannot be read are no matter of a provider
        for worker in workers(places):
            for sighting in on_their_way(places, worker):
                if sighting.state == "ignored":
                    command_output.tell(f"note: {sighting.path}: {sighting.detail}")


def render(findings: Iterable[Finding], called: bool = True) -> str:
    """The findings for people: a line for each provider, and below it what it told and what to do."""
    width = min(120, max(60, shutil.get_terminal_size((100, 24)).columns))
    lines = [line for finding in findings for line in _lines(finding, width)]
    return "\n".join(
        lines if called else [*lines, "", "no model call was made; only a call shows a missing login or a limit"]
    )


def _lines(finding: Finding, width: int) -> list[str]:
    word = {"well": "works", "warning": "WARNING", "ill": "NOT WORKING"}[finding.state]
    took = "" if finding.seconds is None else f"{finding.seconds:.1f} s"
    head = f"{finding.provider:<13} {word:<11} {took:>7}  {finding.version or '-'}  {finding.program or 'not found'}"
    usage = finding.usage or {}
    tokens = f"{usage.get('input_tokens', 0)} tokens in, {usage.get('output_tokens', 0)} out" if usage else ""
    cost = f"${usage['cost_usd']:.4f}" if usage.get("cost_usd") else ""
    facts = (
        ("login", finding.login), ("permissions", finding.permissions), ("trust", finding.trust),
        ("model", finding.model), ("", tokens),
        ("", cost), ("budget:", finding.budget), ("answered", repr(finding.answer) if finding.answer else ""),
        *(("MCP", f"{name} {state}") for name, state in finding.mcp.items()),
    )  # fmt: skip
    told = "; ".join(f"{name} {text}".strip() for name, text in facts if text)
    cure = f"{finding.reason}: {finding.detail}" if finding.reason else ""
    below = [
        line
        for text in (told, cure)
        for line in textwrap.wrap(
            text, width, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False
        )
    ]
    return [head, *below]


def _wanted(config: WatcherConfig, environ: Mapping[str, str], names: list[str] | None) -> list[Provider]:
    known = all_providers(config.commands, config.agent_prompt, config.providers_file, config.provider)
    for name in names or ():
        if name not in known:
            raise SettingError(f"no provider {name!r}; name one of {', '.join(known)}")
    if names:
        return [known[name] for name in dict.fromkeys(names)]
    found = [provider for provider in known.values() if _is_installed(provider, environ, config.agent_env)]
    default = known[config.provider]
    return [default, *(provider for provider in found if provider is not default)]


def _is_installed(provider: Provider, environ: Mapping[str, str], more: tuple[str, ...]) -> bool:
    return find_program(provider, environment_for(provider, environ, more)["PATH"]) is not None


def _examine(doctor: Doctor, wanted: list[Provider], is_quiet: bool) -> list[Finding]:
    """In a thread, as the runner needs it; Ctrl-C and TERM end what runs before they end us."""
    findings: list[Finding] = []
    problems: list[OSError] = []
    # Not `join`: interrupted by a signal, it takes the thread for ended (CPython 3.11).
    is_over = threading.Event()

    def work() -> None:
        try:
            for provider in wanted:
                if not doctor.is_stopped:
                    if not is_quiet:
                        command_output.tell(f"asking {provider.name} ...")
                    findings.append(doctor.examine(provider))
        except OSError as error:
            problems.append(error)
        finally:
            is_over.set()

    threading.Thread(target=work, name="doctor", daemon=True).start()
    try:
        is_over.wait()
    except KeyboardInterrupt:
        doctor.stop()
        while not is_over.wait(0.2):
            doctor.stop()  # again: a command may have been just about to start
        raise
    if problems:  # no room for the temporary folder, for one; `cli` tells it
        raise problems[0]
    return findings


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of seconds from 1 to 86400")
    return seconds
