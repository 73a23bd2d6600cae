"""One command for everything that people do by hand: `watcher <command> ...`, or `python -m watcher <command> ...`.

A command is a module of `watcher.cli.commands` with `add_arguments(parser)` and `run(options) -> exit code`; its
docstring is its help. It is imported when it is called, so that each costs only what it needs. This module knows names
and summaries, and does nothing else; `cli.command_output` turns errors into one line on stderr.

Exit codes: 0 done; 1 done, and the answer is bad (a task failed, a file is no task, a worker is dead); 2 the command
line, a setting or a name is wrong, or a folder cannot be used; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from watcher import __version__
from watcher.cli import command_output
from watcher.cli.terminal import Parser

#: Every command: where it is, and what it does in one line. People see them in this order.
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("watcher.cli.commands.up", "start several workers and the listener, and keep them running"),
    "budget": ("watcher.cli.commands.budget", "show what a worker has spent today, and let it spend more"),
    "submit": ("watcher.cli.commands.submit", "give a worker a task"),
    "list": ("watcher.cli.commands.list", "list tasks that wait or run"),
    "show": ("watcher.cli.commands.show", "show where a task is and what is known of it"),
    "tail": ("watcher.cli.commands.tail", "follow what a running task prints"),
    "results": ("watcher.cli.commands.results", "list tasks that have ended, newest first"),
    "cancel": ("watcher.cli.commands.cancel", "end tasks that wait or run"),
    "hold": ("watcher.cli.commands.hold", "keep waiting tasks, or a provider, from starting"),
    "release": ("watcher.cli.commands.release", "let held tasks start"),
    "prio": ("watcher.cli.commands.prio", "change the priority of a waiting task"),
    "edit": ("watcher.cli.commands.edit", "change fields of a waiting task"),
    "rerun": ("watcher.cli.commands.rerun", "run tasks again that have ended"),
    "redrive": ("watcher.cli.commands.redrive", "put dead letters back in line"),
    "purge": ("watcher.cli.commands.purge", "remove old results, dead letters and archives"),
    "workers": ("watcher.cli.commands.workers", "list worker processes and their state"),
    "pause": ("watcher.cli.commands.pause", "keep a worker from starting tasks"),
    "resume": ("watcher.cli.commands.resume", "end a pause, or the hold of a provider"),
    "drain": ("watcher.cli.commands.drain", "let a worker finish what runs and end"),
    "qshape": ("watcher.cli.commands.qshape", "show how old waiting tasks are, by worker and priority"),
    "report": ("watcher.cli.commands.report", "show totals, times and costs"),
    "health": ("watcher.cli.commands.health", "ask whether a worker is well, for container probes"),
    "doctor": (
        "watcher.cli.commands.doctor",
        "start each provider once and report whether it works, with the cure if not",
    ),
    "validate": ("watcher.cli.commands.validate", "check task files and say what is wrong with them"),
    "webhook": ("watcher.cli.commands.webhook", "take tasks over HTTP, and answer with their results"),
    "completion": ("watcher.cli.commands.completion", "print the completion for bash, zsh or fish"),
    "zones": ("watcher.cli.commands.zones", "make a task of each file that is dropped into a folder"),
}


class CommandModule(Protocol):
    """What a module of `watcher.cli.commands` holds."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, options: argparse.Namespace) -> int: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command_output.forgive_terminals()
    return command_output.concluded("watcher", lambda: _do(words))


def load(name: str) -> CommandModule:
    """The module of a command that is in COMMANDS."""
    return cast(CommandModule, importlib.import_module(COMMANDS[name][0]))


def parser_of(name: str, command: CommandModule) -> argparse.ArgumentParser:
    """The command's parser, complete."""
    parser = Parser(
        prog=f"watcher {name}",
        description=(command.__doc__ or COMMANDS[name][1]).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    return parser


def _do(words: list[str]) -> int:
    if words[:1] == ["help"] and len(words) > 1:
        words = [words[1], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        command_output.say(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        command_output.say(f"watcher {__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`watcher help` lists all commands"
        command_output.tell(f"no command {name!r}; {hint}")
        return 2
    return _call(name, rest)


def _call(name: str, rest: list[str]) -> int:
    command = load(name)
    options = parser_of(name, command).parse_args(rest)
    return command_output.concluded(f"watcher {name}", lambda: command.run(options))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage: watcher COMMAND ...", "", *lines, "", "`watcher help COMMAND` explains one."])
