"""Obey the commands in one worker's control folder, and know whether the worker is paused.

A command is consumed when it is done, never before: a worker that is killed in between obeys again, and every command
may be obeyed twice. Several processes of one worker share the folder. A pause is a file that all of them see; a cancel
waits for the process that runs the task; a drain is for every process that was there when it came, and the last of
them consumes it. What cannot be obeyed goes to `.refused`, with a line in the log that says why. What is neither a
command nor a file of the worker's own is left alone, and told once.

Belongs to the loop thread. File trouble leaves a command for the next look; nothing here raises.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from watcher.clock import Clock
from watcher.errors import InvalidTask, LockLost, is_trouble
from watcher.formats import strict_json
from watcher.formats.operator_command import (
    PLAIN_WORDS,
    WORDS,
    Command,
    InvalidCommand,
    command_of,
    parse_command,
)
from watcher.store.in_hand import StillWritten
from watcher.store.layout import NO_COMMAND, PAUSED, REFUSED
from watcher.system.files import Folder, move_new, replace
from watcher.telemetry.events import (
    CommandDone,
    CommandRefused,
    Emit,
    FileIgnored,
    HintFailed,
    WorkerPaused,
    WorkerResumed,
)
from watcher.worker.executor import Executor
from watcher.worker.parts import WorkerParts

if TYPE_CHECKING:
    from watcher.settings.worker import WatcherConfig

#: Files of this folder that are no commands.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,200}\.json")
_MAX_BYTES = 2 << 20
#: No file's name has a slash.
_FOLDER_TROUBLE = "/folder"
#: Between two looks while a command waits for something: at first, and at most.
_LOOK_AGAIN_SECONDS = (0.05, 1.0)


@dataclass(frozen=True, slots=True)
class _Done:
    """Obeyed: consume it."""

    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Later:
    """It waits for something. With `refusal`, only for a while; then that is why it is refused."""

    refusal: str | None = None
    is_ours: bool = False


@dataclass(slots=True)
class _Open:
    """A command that is not done yet; monotonic seconds."""

    since: float
    again_at: float
    pause: float = _LOOK_AGAIN_SECONDS[0]


class ControlDesk:
    """Looks at `control/<worker>/` when it is told to, and obeys."""

    def __init__(self, config: WatcherConfig, parts: WorkerParts, executor: Executor, clock: Clock, emit: Emit) -> None:
        self._folder = Folder(config.control_dir / parts.incarnation.worker)
        self._settle_seconds = config.settle_seconds
        self._incarnation = parts.incarnation
        self._spool = parts.spool
        self._executor = executor
        self._clock = clock
        self._emit = emit
        self._open: dict[str, _Open] = {}
        self._told: set[str] = set()
        self._began_ns = parts.incarnation.began_ns()
        self._on_drain: Callable[[str], None] = lambda reason: None
        #: Why nothing is started, None when it is not paused.
        self.paused: str | None = None
        #: Whether somebody wants to see a heartbeat now.
        self.wants_beat = False

    def on_drain(self, call: Callable[[str], None]) -> None:
        """What a drain calls, with its reason."""
        self._on_drain = call

    @property
    def path(self) -> Path:
        return self._folder.path

    def close(self) -> None:
        """Consume the drain that ends this process, if no other process waits to obey it."""
        with contextlib.suppress(OSError):
            for name in filter(_is_command_name, self._folder.names()):
                with contextlib.suppress(OSError, InvalidCommand):
                    command = self._command(name)
                    if command is not None and command.word == "drain" and not self._is_for_others(name, command):
                        self._folder.remove(name)
        self._folder.close()

    def next_due_in(self) -> float | None:
        """Seconds until a command that waits should be looked at again; None when none waits."""
        if not self._open:
            return None
        return max(0.0, min(entry.again_at for entry in self._open.values()) - self._clock.monotonic())

    def look(self) -> None:
        """Obey what is there, the oldest first."""
        try:
            self._folder.mend()
            names = self._folder.names()
            self._look_at_pause(PAUSED in names)
            for name in sorted(filter(_is_command_name, names), key=self._age):
                self._obey(name)
            for name in filter(_is_strange, names):
                self._wonder_at(name)
            for name in self._open.keys() - set(names):
                del self._open[name]
            self._told.intersection_update({*names, _FOLDER_TROUBLE})
        except OSError as error:
            self._tell_once(_FOLDER_TROUBLE, f"control: {error.strerror or error}")
        else:
            self._told.discard(_FOLDER_TROUBLE)

    # --- pause

    def _look_at_pause(self, is_paused: bool) -> None:
        if not is_paused:
            if self.paused is not None:
                self.paused = None
                self.wants_beat = True
                self._executor.pause(is_paused=False)
                self._emit(WorkerResumed())
            return
        reason = self._pause_reason()
        if reason != self.paused:
            self.paused = reason
            self.wants_beat = True
            self._executor.pause(is_paused=True)
            self._emit(WorkerPaused(reason))

    def _pause_reason(self) -> str:
        """What the file says; one that says nothing, or nothing that can be read, pauses all the same."""
        with contextlib.suppress(OSError, strict_json.NotStrictJson, InvalidCommand):
            value = strict_json.loads(self._folder.read(PAUSED, _MAX_BYTES))
            if isinstance(value, dict):
                told = {name: value.get(name) for name in ("reason", "by")}
                return f"paused {command_of({'command': 'pause', **told}).why()}"
        return f"paused: {self._folder.path / PAUSED} is there"

    # --- commands

    def _age(self, name: str) -> tuple[int, str]:
        try:
            return os.stat(name, dir_fd=self._folder.fd, follow_symlinks=False).st_mtime_ns, name
        except FileNotFoundError:
            return 0, name

    def _obey(self, name: str) -> None:
        now = self._clock.monotonic()
        entry = self._open.get(name)
        if entry is not None and entry.again_at > now:
            return
        try:
            what = self._try(name)
        except FileNotFoundError:
            self._open.pop(name, None)  # another process of this worker was faster
            return
        except OSError as error:
            what = _Later(None if is_trouble(error) else f"{error.strerror or error}")
        except LockLost:
            raise
        except Exception as error:  # noqa: BLE001 - one command's trouble, never the loop's end
            what = _Later(f"the worker failed over it: {type(error).__name__}: {error}")
        if isinstance(what, _Later):
            self._wait_for(name, entry or _Open(now, now), what, now)
            return
        self._open.pop(name, None)

    def _wait_for(self, name: str, entry: _Open, what: _Later, now: float) -> None:
        if what.refusal is None:
            entry.since = now  # it may wait for an hour, and then for a moment not be found
        elif now - entry.since >= self._settle_seconds:
            self._open.pop(name, None)
            self._refuse(name, what.refusal)
            return
        entry.again_at = now + entry.pause
        entry.pause = _LOOK_AGAIN_SECONDS[0] if what.is_ours else min(entry.pause * 2, _LOOK_AGAIN_SECONDS[1])
        self._open[name] = entry

    def _wonder_at(self, name: str) -> None:
        """Say once that this file does nothing, unless it is renamed or removed soon by whoever writes it."""
        now = self._clock.monotonic()
        if name in self._told:
            return
        entry = self._open.setdefault(name, _Open(now, now + self._settle_seconds))
        if now >= entry.again_at:
            del self._open[name]
            self._told.add(name)
            self._emit(FileIgnored(ascii(name), _why_no_command(name)))

    def _try(self, name: str) -> _Done | _Later | None:
        """Obey one file; None when it is no business of this process. Raises OSError."""
        try:
            command = self._command(name)
        except InvalidCommand as error:
            return _Later(str(error))
        if command is None:
            if name not in self._told:
                self._told.add(name)
                self._emit(FileIgnored(ascii(name), 'not a command: it has no "command"; it is left alone'))
            return None
        if not self._is_for_us(command):
            return _Later() if self._is_for_somebody(command) else self._finish(name, command, "nobody it is for lives")
        try:
            what = self._do(name, command)
        except InvalidTask as error:
            self._refuse(name, error.detail)
            return None
        except StillWritten as error:
            return _Later(str(error))
        return self._finish(name, command, what.detail) if isinstance(what, _Done) else what

    def _command(self, name: str) -> Command | None:
        if name in PLAIN_WORDS:
            return Command(name)
        return parse_command(self._folder.read(name, _MAX_BYTES))

    def _do(self, name: str, command: Command) -> _Done | _Later | None:
        word, task_id = command.word, command.task_id
        if word == "pause":
            return self._pause(command)
        if word == "resume":
            self._folder.remove(PAUSED)
            self._look_at_pause(is_paused=False)
            return _Done()
        if word == "drain":
            return self._drain(name, command)
        if word == "beat":
            self.wants_beat = True
            return _Done()
        if word == "cancel":
            return self._cancel(command)
        if word == "hold":
            standing = self._spool.hold(task_id)
        elif word == "release":
            standing = self._spool.release_held(task_id)
        else:
            changes = command.changes if word == "edit" else {"priority": command.priority}
            standing = self._spool.edit(task_id, changes or {})
        return self._verdict(word, task_id, standing)

    def _pause(self, command: Command) -> _Done:
        told = {"reason": command.reason, "by": command.by}
        replace(self._folder, PAUSED, strict_json.dumps(told), self._incarnation.id, durable=True)
        self._look_at_pause(is_paused=True)
        return _Done()

    def _drain(self, name: str, command: Command) -> _Done | _Later | None:
        """Whoever was there when it came obeys; `close` consumes it. One that came before us is not for us."""
        if command.incarnation is None and self._age(name)[0] < self._began_ns:
            return _Later() if self._is_for_others(name, command) else _Done("it came before this process")
        self._on_drain(f"drained {command.why()}")
        return None

    def _cancel(self, command: Command) -> _Done | _Later:
        task_id, detail = command.task_id, f"cancelled {command.why()}"
        if self._executor.cancel(task_id, detail):
            return _Later(is_ours=True)
        found = self._spool.cancel(task_id, detail)
        if not isinstance(found, str):
            self._executor.end(found)
            return _Later(is_ours=True)
        if found == "ended":
            return _Done("it has ended")
        if found == "unknown":
            return _Later(f"no task {task_id!r} waits or runs here")
        return _Later(is_ours=found == "runs")

    def _verdict(self, word: str, task_id: str, standing: str) -> _Done | _Later:
        wanted = {"hold": ("held",), "release": ("waits",)}.get(word, ("waits", "held"))
        if standing in wanted:
            return _Done()
        why = {
            "runs": "runs already; cancel it instead, and submit it again",
            "runs_elsewhere": "runs already; cancel it instead, and submit it again",
            "changing": "is changed by another command just now; try again",
            "ended": "has ended; rerun it instead",
            "waits": "does not wait where it could be changed; try again",
            "unknown": "is not there",
        }.get(standing, "is not there")
        return _Later(f"{word}: task {task_id!r} {why}")

    # --- for whom

    def _is_for_us(self, command: Command) -> bool:
        if command.incarnation is not None and command.incarnation != self._incarnation.id:
            return False
        return command.instance is None or command.instance == self._incarnation.instance

    def _is_for_somebody(self, command: Command) -> bool:
        """Whether a living process of this worker may be meant."""
        for notes in self._incarnation.others():
            right = command.incarnation in (None, notes.get("incarnation"))
            if right and command.instance in (None, notes.get("instance")):
                return True
        return False

    def _is_for_others(self, name: str, drain: Command) -> bool:
        """Whether another living process was there when this drain came, so that it must see it."""
        came = self._age(name)[0]
        return any(
            drain.instance in (None, notes.get("instance")) and drain.incarnation in (None, notes.get("incarnation"))
            for notes in self._incarnation.others(came)
        )

    # --- the end of a command

    def _finish(self, name: str, command: Command, detail: str) -> _Done:
        if self._folder.remove(name) and command.word != "beat":
            self._emit(CommandDone(command.word, command.task_id, detail or command.why()))
        return _Done(detail)

    def _refuse(self, name: str, why: str) -> None:
        """Keep the file for whoever wrote it, out of the way."""
        aside = Folder(self._folder.path / REFUSED)
        try:
            with contextlib.suppress(FileNotFoundError):
                for number in range(1, 1000):
                    new_name = name if number == 1 else f"{name}~{number}"
                    if move_new(self._folder, name, aside, new_name):
                        break
                self._emit(CommandRefused(ascii(name), why))
        finally:
            aside.close()

    def _tell_once(self, key: str, detail: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._emit(HintFailed("", detail))


def _is_command_name(name: str) -> bool:
    return NO_COMMAND.fullmatch(name) is None and (_NAME.fullmatch(name) is not None or name in PLAIN_WORDS)


def _is_strange(name: str) -> bool:
    """Whether a file is no command, no state, and nothing that its writer has hidden."""
    return not (name.startswith(".") or NO_COMMAND.fullmatch(name) or _is_command_name(name))


def _why_no_command(name: str) -> str:
    if name in WORDS:
        return f'not a command: {name} needs a task: a file like c.json with {{"command": "{name}", "task_id": ...}}'
    if name.endswith(".json"):
        return "not a command: its name must be letters, digits and . _ @ + -, and begin with a letter or digit"
    words = ", ".join(PLAIN_WORDS)
    return f"not a command: a file without an ending is one of {words}; every other command is JSON, in a file *.json"
