"""Follow what a running task prints, as it prints it, until the task has ended: `watcher tail ID`.

One that waits is waited for; one that is tried again is followed again. How it ended is told on stderr. A command with
machine-readable output prints its events. Control characters other than newline and tab show as U+FFFD, so that no
output can act on your terminal; --json copies every byte into a pipe or a file. Exit code 0: it completed; 1: it ended
otherwise.
"""

from __future__ import annotations

import argparse
import codecs
import io
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watcher.cli import command_output
from watcher.cli.terminal import clean
from watcher.system import no_links

if TYPE_CHECKING:
    from watcher.client import TaskResult
    from watcher.settings.folders import Folders

_LOOK_EVERY_SECONDS = 0.1
_ASK_EVERY_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="ID", type=command_output.utf8, help="the task's id, or worker/id")
    parser.add_argument("--json", action="store_true", help="the output as it is, then the result as one JSON line")


def run(options: argparse.Namespace) -> int:
    from watcher.cli.tables import result_line
    from watcher.client import Client
    from watcher.store.tasks import resolve

    places = command_output.places()
    worker, task_id = resolve(places, options.task)
    client = Client(folders=places)
    follower = _Follower(places, worker, task_id, is_raw=options.json and not sys.stdout.isatty())
    while (result := client.result((worker, task_id))) is None:
        follower.look()
        time.sleep(_LOOK_EVERY_SECONDS)
    follower.finish(result)
    if options.json:
        command_output.say_json(dict(result.fields))
    else:
        command_output.tell(result_line(result.fields))
    return 0 if result.is_completed else 1


class _Follower:
    """Copies what one task prints to stdout, attempt by attempt."""

    def __init__(self, places: Folders, worker: str, task_id: str, is_raw: bool) -> None:
        self._is_raw = is_raw
        self._decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("replace"), translate=True)
        self._places = places
        self._worker = worker
        self._task_id = task_id
        self._claim: Path | None = None
        self._fd = -1
        self._shown = b""
        self._asked_at = float("-inf")
        self._is_told = False

    def look(self) -> None:
        """Show what is new; find the output of the attempt that runs now."""
        if self._claim is not None and not self._claim.exists():
            self._drop()
        if self._fd < 0:
            self._open()
        self._copy()

    def finish(self, result: TaskResult) -> None:
        """What was printed between the last look and the end is in the result, where that holds what was printed."""
        self._drop()
        whole = result.stdout.encode("utf-8", "replace")
        if whole.startswith(self._shown):
            self._write(whole[len(self._shown) :], is_last=True)

    def _open(self) -> None:
        from watcher.store.tasks import on_their_way

        running = [s for s in on_their_way(self._places, self._worker, self._task_id) if s.state == "running"]
        if not running:
            if not self._is_told:
                self._is_told = True
                command_output.tell(f"{self._worker}/{self._task_id} does not run yet; waiting for it")
            return
        told = self._told_output(running[0].incarnation)
        if told is None:
            self._ask_for_a_beat(running[0].incarnation)
            return
        try:
            self._fd = no_links.open_file(told, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return  # it has just ended
        self._claim, self._shown = running[0].path, b""

    def _told_output(self, incarnation: str | None) -> str | None:
        """Where its worker's heartbeat says that it prints to, if that is where its worker's claims are."""
        from watcher.store.workers import read_beats

        for beat in read_beats(self._places.heartbeats, time.time(), [], self._worker):
            path: Any = beat.active(self._task_id).get("stdout_path")
            if beat.incarnation == incarnation and isinstance(path, str) and Path(path).parent.name == incarnation:
                return path
        return None

    def _ask_for_a_beat(self, incarnation: str | None) -> None:
        """A heartbeat comes every few seconds; the output is wanted now."""
        from watcher.store.operator_commands import tell

        if time.monotonic() - self._asked_at >= _ASK_EVERY_SECONDS:
            self._asked_at = time.monotonic()
            tell(self._places.control, self._worker, "beat", incarnation=incarnation)

    def _copy(self) -> None:
        while self._fd >= 0 and (chunk := os.read(self._fd, 1 << 16)):
            # The file is emptied for the next task right after this one: what is read then is not ours.
            if self._claim is None or not self._claim.exists():
                self._drop()
                return
            self._shown += chunk
            self._write(chunk)

    def _drop(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._claim = -1, None

    def _write(self, chunk: bytes, is_last: bool = False) -> None:
        if self._is_raw:
            sys.stdout.buffer.write(chunk)
        else:  # a character may come in two chunks; what a progress bar draws over itself becomes lines
            sys.stdout.write(clean(self._decoder.decode(chunk, is_last)))
        sys.stdout.flush()
