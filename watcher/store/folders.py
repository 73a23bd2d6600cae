"""Own the folders of one worker, held open, and the file names that carry a task's history.

A task's counters live in its file's name, so that one rename moves the task and its history together and the bytes
stay as they were submitted: `x.json` is new; `x~2-1.json` in a claim folder is running its attempt 2 after one worker
died; `x~2-1-1763768000123.json` in `.retry` waits until that wall time in milliseconds. `~` is in no task id.
A claim whose name has that third number does not run: somebody has it in hand, to change or to end it, and a rescuer
puts it back as it was. `h` after the number says that it came from `.held`. `+0-2-1-7` before the ending is what is
remembered of give-backs (`policy.give_back_limit`): words 0, facts 2, counted 1, holds refuted 7 by then.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from watcher.errors import LockLost, SettingError
from watcher.policy.give_back_limit import GiveBackCounts
from watcher.store import layout
from watcher.store.abandoned_files import remove_abandoned
from watcher.store.layout import CLAIMS, HELD, INCARNATION, ORIGINALS, OUTPUT, RETRY, TEMPORARY
from watcher.system import no_links
from watcher.system.files import Folder, move, publish_new

_NAME = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})~(\d{1,9})-(\d{1,9})(?:-(\d{1,15})(h)?)?"
    r"(\+(\d{1,9})-(\d{1,9})-(\d{1,9})-(\d{0,9}))?\.json"
)


@dataclass(frozen=True, slots=True)
class History:
    """A task file's name, taken apart. `attempts` counts started attempts that count; `due` is wall seconds; `given`
    is what is remembered of its give-backs.

    `is_in_hand` and `is_held` say of a claim that it is not run, and that it was held before.
    """

    stem: str
    attempts: int = 0
    deaths: int = 0
    due: float = 0.0
    is_in_hand: bool = field(default=False, compare=False)
    is_held: bool = field(default=False, compare=False)
    given: GiveBackCounts | None = None

    @classmethod
    def of(cls, name: str) -> History | None:
        """Read a name from the inbox, `.retry` or a claim folder; None when it is no such name."""
        found = _NAME.fullmatch(name)
        if found is None:
            return cls(name[:-5]) if "~" not in name and name.endswith(".json") else None
        due = int(found[4]) / 1000 if found[4] else 0.0
        given = None
        if found[6]:
            given = GiveBackCounts(int(found[7]), int(found[8]), int(found[9]), int(found[10]) if found[10] else None)
        return cls(found[1], int(found[2]), int(found[3]), due, found[4] is not None, found[5] is not None, given)

    def claimed(self) -> str:
        """The name in a claim folder, for the attempt number `attempts`."""
        return f"{self.stem}~{self.attempts}-{self.deaths}{self._note()}.json"

    def waiting(self) -> str:
        """The name in `.retry`."""
        return f"{self._due()}{self._note()}.json"

    def in_hand(self, *, was_held: bool) -> str:
        """The name in a claim folder of a task that is not run but changed."""
        return f"{self._due()}{'h' if was_held else ''}{self._note()}.json"

    def is_new(self) -> bool:
        """Whether there is nothing to remember, so that it waits in the inbox under its own name."""
        return not (self.attempts or self.deaths or self.due or self.given)

    def _due(self) -> str:
        return f"{self.stem}~{self.attempts}-{self.deaths}-{round(self.due * 1000)}"

    def _note(self) -> str:
        given = self.given
        if given is None:
            return ""
        return f"+{given.words}-{given.facts}-{given.counted}-{'' if given.seen is None else given.seen}"


class WorkerFolders:
    """Every folder that a worker uses, open. `mine` is the claim folder of this incarnation."""

    def __init__(
        self,
        tasks: Path,
        triggers: Path,
        results: Path,
        dlq: Path,
        worker: str,
        incarnation: str,
        *,
        visit: bool = False,
    ) -> None:
        """For a `visit` the hidden folders may be another user's: they are those of the worker, wherever it runs."""
        self.worker = worker
        self.incarnation = incarnation
        self.results_root = results
        self.tasks_root = tasks
        is_ours = not visit
        with contextlib.ExitStack() as undo:
            self.inbox = _open(tasks / worker, undo)
            self.claims = _open(tasks / worker / CLAIMS, undo, is_ours)
            self.retry = _open(tasks / worker / RETRY, undo, is_ours)
            self.held = _open(tasks / worker / HELD, undo, is_ours)
            self.mine = _open(tasks / worker / CLAIMS / incarnation, undo, is_ours)
            self.results = _open(results / worker, undo)
            self.results_tmp = _open(results / worker / TEMPORARY, undo, is_ours)
            self.output = _open(results / worker / OUTPUT, undo, is_ours)
            self.dlq = _open(dlq / worker, undo)
            self.dlq_tmp = _open(dlq / worker / TEMPORARY, undo, is_ours)
            self.originals = _open(dlq / worker / ORIGINALS, undo, is_ours)
            self.triggers = _open(triggers / worker, undo)
            self._undo = undo.pop_all()
        #: Folders of other rooms in which this worker's processes write through temporary files of ours.
        self.shared: list[Path] = []

    def leave(self) -> None:
        """Remove this incarnation's claim folder with its outputs.

        Claims that are still in it stay for a rescuer, and so does what cannot be removed now.
        """
        with contextlib.suppress(OSError):
            self.sweep(self.incarnation)
        with contextlib.suppress(OSError):
            for name in self.mine.names():
                if "~" not in name and not name.endswith("!.json"):
                    self.mine.remove(name)
            os.rmdir(self.incarnation, dir_fd=self.claims.fd)

    def close(self) -> None:
        self._undo.close()

    def claims_changed(self) -> int:
        """A number that changes when a claim folder comes or goes."""
        return os.fstat(self.claims.fd).st_mtime_ns

    def other_incarnations(self) -> list[str]:
        """The claim folders of other processes, living or dead."""
        return [n for n in self.claims.names() if INCARNATION.fullmatch(n) and n != self.incarnation]

    def claims_of(self, incarnation: str) -> list[str]:
        """What another process has claimed now."""
        return no_links.names_in(self.claims.path / incarnation)

    def mend(self) -> list[str]:
        """Open anew what was deleted or replaced under us; returns the names of those folders.

        Raises LockLost when it was the claim folder, with which the claims are gone, OSError when it cannot be done.
        """
        if not self.mine.is_current():
            raise LockLost(f"the claim folder {self.mine.path} was deleted or replaced; starting anew")
        others = (
            self.retry,
            self.held,
            self.results,
            self.results_tmp,
            self.output,
            self.dlq,
            self.dlq_tmp,
            self.originals,
        )
        return [str(folder.path) for folder in (*others, self.triggers) if folder.mend()]

    def temporary_folders(self) -> tuple[Folder, ...]:
        return (self.results_tmp, self.dlq_tmp)

    def sweep(self, incarnation: str) -> None:
        """Remove the temporary files of an incarnation that is dead or leaves. Raises OSError."""
        for folder in (self.inbox, self.retry, self.results_tmp, self.results, self.dlq_tmp, self.dlq):
            folder.remove(layout.probe(incarnation))  # by name: some of these are too large to list
        for folder in (*self.temporary_folders(), self.triggers, self.claims):
            for name in folder.names():
                if layout.is_hidden_of(name, incarnation):
                    folder.remove(name)
        for path in self.shared:
            for name in no_links.names_in(path):
                if name.startswith(".") and layout.is_hidden_of(name, incarnation):
                    with contextlib.suppress(FileNotFoundError):
                        no_links.remove(path / name)

    def remove_abandoned(self, now: float) -> list[str]:
        """Remove what killed tools left here under hidden names, an hour ago; returns their names."""
        gone = [name for folder in (self.inbox, self.triggers) for name in remove_abandoned(folder, now)]
        for path in self.shared:
            with contextlib.suppress(OSError):
                folder = Folder(path, create=False)
                try:
                    gone += remove_abandoned(folder, now)
                finally:
                    folder.close()
        return gone

    def probe(self) -> None:
        """Try each rename of the protocol once. Raises SettingError that names the folders which do not fit."""
        name = layout.probe(self.incarnation)
        steps = (
            (self.inbox, self.mine, "TASK_DIR", move),
            (self.inbox, self.retry, "TASK_DIR", move),
            (self.results_tmp, self.results, "RESULT_DIR", publish_new),
            (self.dlq_tmp, self.dlq, "DLQ_DIR", publish_new),
        )
        for source, target, setting, step in steps:
            try:
                source.write_new(name, b"")
                step(source, name, target, name)
                os.utime(name, (0, 0), dir_fd=target.fd)
            except OSError as error:
                raise SettingError(
                    f"{setting}: cannot write to {source.path} and move on to {target.path}: "
                    f"{error.strerror or error}; the folder must be writable and one file system"
                ) from error
            finally:
                for folder in (source, target):
                    with contextlib.suppress(OSError):
                        folder.remove(name)


def why_stuck(inbox: str | Path, folder: os.stat_result, file: os.stat_result, uid: int) -> str | None:
    """Why this user may not take a file out of a folder (EPERM of rename(2)), with the cure; None: nothing is known."""
    if not folder.st_mode & stat.S_ISVTX or uid in (folder.st_uid, file.st_uid):
        return None
    text = f"{inbox} is sticky, as /tmp is, and neither the folder nor the file belongs to the worker (uid {uid})"
    return f"{text}; chmod -t {inbox}, or chown it to the worker"


def bad_name_handle(folder: Folder, name: str) -> str | None:
    """The name in a claim folder of a file whose own name is no id; `!` keeps it from ever being one."""
    try:
        inode = os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None
    return f"bad-name-{inode}!.json"


def original_name(folder: Folder, handle: str) -> str:
    """The name of a refused file in `.originals`: the same after a crash between the dead letter and the move, and
    another one for every other file. Its inode alone would not do: the next file may get that number again."""
    found = os.stat(handle, dir_fd=folder.fd, follow_symlinks=False)
    return f"{handle.partition('~')[0].removesuffix('!.json')}.{found.st_ino}-{found.st_mtime_ns}"


def _open(path: Path, undo: contextlib.ExitStack, is_ours: bool = False) -> Folder:
    try:
        folder = Folder(path, private=is_ours)
    except OSError as error:
        raise SettingError(
            f"cannot use the folder {path}: {error.strerror or error}; create it or make it writable"
        ) from error
    undo.callback(folder.close)
    return folder
