"""Show what was done and what it cost: totals by worker, agent, provider and batch, for all time and the last hour.

Comes from the listener's books (orchestrator_listener.py). With --html FILE as a page with plots. Exit code 1: no
listener has counted anything yet.
"""

from __future__ import annotations

import argparse
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from watcher.cli import command_output
from watcher.errors import SettingError
from watcher.settings.folders import state_folder
from watcher.settings.layers import read_layers

if TYPE_CHECKING:
    from watcher.settings.folders import Folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--html", metavar="FILE", help="write a page with plots")
    command_output.add_json(parser)


def run(options: argparse.Namespace) -> int:
    return report(command_output.places(), options.html, as_json=options.json)


def report(places: Folders, html: str | None, *, as_json: bool) -> int:
    """Print the report or write its page; returns the exit code."""
    from watcher.cli.report import report_html, report_text
    from watcher.store.listener_state import read_points, read_view

    state = state_folder(read_layers(), places.root)
    try:
        view = read_view(state)
    except sqlite3.Error as error:
        text = f"cannot read what the listener has counted in {state}: {error}; stop it, remove its database, start it"
        raise SettingError(text) from error
    if view is None:
        command_output.tell(f"no listener has counted anything in {state}; run: python orchestrator_listener.py --once")
        return 1
    if as_json:
        command_output.say_json(view.as_json())
    elif html is None:
        command_output.say(report_text(view))
    else:
        Path(html).write_text(report_html(view, read_points(state), str(places.root)), encoding="utf-8")
        command_output.say(html)
    return 0
