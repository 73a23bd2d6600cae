"""Find every result and dead letter, once: by events, and by scans that compare names and inodes with what is known.

A file is read once in its life. A name that is known with its inode is not looked at again, a known name with another
inode is read and compared: a restored copy changes nothing, a task that was run again is a new outcome. A file that
cannot be read as what it should be is tried again until it has settled, then reported once, and again only when it
changes. Nothing that lies in these folders is fatal.

Raises WorkerTrouble when the machine is short of descriptors or memory: then nothing can be told from what was read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watcher.clock import Clock, parse_rfc3339, rfc3339
from watcher.errors import SHORTAGES, WorkerTrouble
from watcher.formats import dead_letter, strict_json
from watcher.formats import result as result_format
from watcher.formats.fields import FieldError, Kind
from watcher.formats.receipt_and_notice import Notice
from watcher.formats.task import TASK_FILE_NAME
from watcher.store.listener_database import Key, Ledger
from watcher.store.notice_publisher import Findings
from watcher.store.outcome_totals import Finished
from watcher.system import no_links
from watcher.system.files import Folder, read_up_to
from watcher.telemetry.events import Emit, FileIgnored, FolderFound, FolderLost

FOLDERS = ("results", "dlq")
_LETTER_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})(?:~(\d{1,5}))?\.json")
_MAX_BYTES = 160 << 20  # a result holds two streams of up to 64 MiB
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: A folder whose time stamp has not moved is listed all the same once in so many seconds: stamps are coarse on some
#: file systems, and cached by the clients of others.
_LIST_ANYWAY_SECONDS = 60.0
_STAMP_SETTLES_NS = 2_000_000_000


@dataclass(slots=True)
class _Place:
    """One folder of one worker: what is known in it, and its time stamp at the last listing."""

    key: tuple[str, str]
    path: Path
    known: dict[str, int]
    folder: Folder | None = None
    stamp: int = -1
    listed_at: float = float("-inf")
    was_there: bool = False
    is_lost: bool = False


class Collector:
    """Keeps what is still to be read, and reads it in portions."""

    def __init__(
        self, folders: dict[str, Path], ledger: Ledger, clock: Clock, emit: Emit, settle_seconds: float
    ) -> None:
        self._folders = folders
        self._ledger = ledger
        self._clock = clock
        self._emit = emit
        self._settle = settle_seconds
        self._places: dict[tuple[str, str], _Place] = {}
        self._found: dict[Key, None] = {}
        self._unsettled: dict[Key, float] = {}
        self._replaced: set[tuple[str, str]] = set()
        self._ignored: set[tuple[str, str, str, int]] = set()
        for worker, folder, name, inode in ledger.known():
            self._place(worker, folder).known[name] = inode

    @property
    def backlog(self) -> int:
        """How many files wait to be read."""
        return len(self._found)

    def oldest_unread(self) -> float | None:
        """When the next file to be read was written (wall seconds)."""
        with contextlib.suppress(StopIteration, OSError, RuntimeError):
            worker, folder, name = next(iter(self._found))
            return no_links.look_at(self._folders[folder] / worker / name).st_mtime
        return None

    def replaced(self) -> set[tuple[str, str]]:
        """Places (worker, folder) that are other folders now than when they were opened, since the last call."""
        found, self._replaced = self._replaced, set()
        return found

    def known_count(self) -> int:
        return sum(len(place.known) for place in self._places.values())

    def notice(self, folder: str, worker: str, name: str) -> None:
        """An event named this file."""
        if _is_wanted(folder, name):
            self._found[(worker, folder, name)] = None

    def scan(self, workers: Iterable[str]) -> Iterator[None]:
        """List the folders of these workers; yields between two, so that a long scan holds nobody up."""
        now = self._clock.monotonic()
        for key in [key for key, due in self._unsettled.items() if now >= due]:
            del self._unsettled[key]
            self._found[key] = None
        for worker in workers:
            for folder in FOLDERS:
                yield from self._scan(worker, folder)

    def take(self, limit: int) -> tuple[Findings, list[tuple[Key, int | None]]]:
        """Read up to `limit` files. The second value goes back to `taken` once the first is recorded."""
        news = Findings()
        done: list[tuple[Key, int | None]] = []
        for key in list(self._found)[:limit] if limit < len(self._found) else list(self._found):
            try:
                inode = self._read(key, news)
            except OSError as error:
                if error.errno in SHORTAGES:
                    raise WorkerTrouble(f"read {key[1]}/{key[0]}/{key[2]}", error) from error
                inode = self._report(key, (0, 0), "unreadable", error.strerror or str(error), news)
            except WorkerTrouble:
                raise
            except Exception as error:  # noqa: BLE001 - one file's trouble, never the loop's end
                inode = self._report(key, (0, 0), "not_understood", f"{type(error).__name__}: {error}", news)
            done.append((key, inode))
        return news, done

    def taken(self, done: list[tuple[Key, int | None]]) -> None:
        """What was read is recorded: remember it."""
        for key, inode in done:
            self._found.pop(key, None)
            if inode is not None:
                self._place(key[0], key[1]).known[key[2]] = inode

    # --- listing

    def _place(self, worker: str, folder: str) -> _Place:
        place = self._places.get((worker, folder))
        if place is None:
            place = self._places[(worker, folder)] = _Place((worker, folder), self._folders[folder] / worker, {})
        return place

    def _scan(self, worker: str, folder: str) -> Iterator[None]:
        place = self._place(worker, folder)
        if not self._open(place):
            return
        assert place.folder is not None
        stamp = os.fstat(place.folder.fd).st_mtime_ns
        now = self._clock.monotonic()
        if stamp == place.stamp and now - place.listed_at < _LIST_ANYWAY_SECONDS:
            return
        known, there = place.known, 0
        try:
            with os.scandir(place.folder.fd) as entries:
                for number, entry in enumerate(entries):
                    name = entry.name
                    if known.get(name) == entry.inode():
                        there += 1
                    elif _is_wanted(folder, name):
                        key = (worker, folder, name)
                        if key not in self._unsettled:
                            self._found[key] = None
                    elif not name.startswith("."):
                        self._ignore(worker, folder, name, entry.inode())
                    if number % 5000 == 4999:
                        yield
            if there < len(known):
                self._forget_gone(place)
        except OSError as error:
            if error.errno in SHORTAGES:
                raise WorkerTrouble(f"list {place.path}", error) from error
            self._lose(place, error.strerror or str(error))
            return
        # A stamp that is younger than its own grain may stay the same through the next change.
        settled = self._clock.wall() * 1e9 - stamp > _STAMP_SETTLES_NS
        place.stamp, place.listed_at = (stamp if settled else -1), now

    def _forget_gone(self, place: _Place) -> None:
        """Names that are gone leave the memory; the ledger keeps them, in case that they come back."""
        assert place.folder is not None
        there = set(place.folder.names())
        for name in [name for name in place.known if name not in there]:
            del place.known[name]

    def _open(self, place: _Place) -> bool:
        try:
            is_other = place.folder is not None and not place.folder.is_current()
        except OSError as error:
            raise WorkerTrouble(f"look at {place.path}", error) from error
        if place.folder is not None and is_other:
            self._replaced.add(place.key)
            place.folder.close()
            place.folder, place.stamp = None, -1
        if place.folder is None:
            try:
                place.folder = Folder(place.path, create=False)
            except OSError as error:
                if error.errno in SHORTAGES:
                    raise WorkerTrouble(f"open {place.path}", error) from error
                if place.was_there or not isinstance(error, FileNotFoundError):
                    self._lose(place, error.strerror or str(error))
                return False
            if place.is_lost:
                self._emit(FolderFound(str(place.path)))
            place.was_there, place.is_lost, place.stamp = True, False, -1
        return True

    def _lose(self, place: _Place, why: str) -> None:
        """What is known in it stays known: the same files may come back with it."""
        if not place.is_lost:
            self._emit(FolderLost(str(place.path), why))
        if place.folder is not None:
            place.folder.close()
        place.folder, place.is_lost, place.stamp = None, True, -1

    def _ignore(self, worker: str, folder: str, name: str, inode: int) -> None:
        """Say once that something lies there that is none of ours."""
        key = (worker, folder, name, inode)
        if key not in self._ignored and len(self._ignored) < 10_000:
            self._ignored.add(key)
            self._emit(FileIgnored(f"{folder}/{worker}/{name}", "its name is not that of a task"))

    # --- reading

    def _read(self, key: Key, news: Findings) -> int | None:
        """Put what a file tells into `news`; returns its inode, None when it is gone or not settled."""
        worker, folder, name = key
        place = self._place(worker, folder)
        if not self._open(place):
            return None
        assert place.folder is not None
        try:
            fd = os.open(name, _FLAGS, dir_fd=place.folder.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:  # what O_NOFOLLOW says of a link
                raise
            return self._report(key, (0, 0), "not_regular", "it is a symbolic link", news)
        try:
            info = os.fstat(fd)
            raw = b"" if not stat.S_ISREG(info.st_mode) else read_up_to(fd, min(info.st_size + 1, _MAX_BYTES + 1))
        finally:
            os.close(fd)
        mark = (info.st_ino, info.st_mtime_ns)
        if not stat.S_ISREG(info.st_mode):
            return self._report(key, mark, "not_regular", "it is no regular file", news)
        if len(raw) > _MAX_BYTES:
            return self._report(key, mark, "too_large", f"it has more than {_MAX_BYTES} bytes", news)
        try:
            fields = _parse(folder, raw)
            outcome = _outcome(key, info.st_ino, raw, fields)
        except (strict_json.NotStrictJson, FieldError) as error:
            return self._refuse(key, info, str(error), news)
        self._take_in(outcome, fields, info.st_mtime, news)
        return info.st_ino

    def _take_in(self, outcome: Finished, fields: dict[str, Any], written_at: float, news: Findings) -> None:
        key = (outcome.worker, outcome.folder, outcome.name)
        old = self._ledger.find(*key)
        if self._ledger.oddity(*key) is not None:
            news.entry.oddities[key] = None
        if old is not None and old.print == outcome.print:
            if old.inode != outcome.inode:
                news.entry.moved.append((key, outcome.inode))
            return
        news.entry.outcomes.append((outcome, old))
        news.entry.edges += _edges(outcome, fields)
        if outcome.status != "with_result" and (old is not None or written_at >= self._ledger.silent_before):
            news.notices.append((self._task_notice(outcome, fields), written_at))

    def _task_notice(self, outcome: Finished, fields: dict[str, Any]) -> Notice:
        refused = outcome.folder == "dlq"
        worker, stem = outcome.worker, outcome.name.removesuffix(".json")
        path = str(self._folders[outcome.folder] / worker / outcome.name)
        told: dict[str, Any] = {
            "worker": worker,
            "task_id": outcome.task_id,
            "status": outcome.status,
            "reason": outcome.reason,
            "detail": _text(fields.get("dlq_detail" if refused else "detail"), 8192),
            "duration_seconds": None if outcome.duration_us is None else outcome.duration_us / 1e6,
            "finished_at": None if outcome.finished_us is None else rfc3339(outcome.finished_us / 1e6),
            "attempts": outcome.attempts,
            "agent_id": outcome.agent_id,
            "batch_id": outcome.batch_id,
            "provider": outcome.provider,
            "cost_usd": outcome.cost_nano / 1e9,
            ("dead_letter_path" if refused else "result_path"): path,
        }
        kind = "task_refused" if refused else "task_done"
        # `~` is in no id, so that the notice of a refused file never has the name of a result's.
        file = f"{worker}--{stem.partition('~')[0]}" + (f"~dlq{stem.partition('~')[2]}" if refused else "")
        return Notice(kind, file, f"{kind}/{worker}/{stem}/{outcome.print}", self._clock.wall(), told)

    # --- what cannot be read

    def _refuse(self, key: Key, info: os.stat_result, why: str, news: Findings) -> int | None:
        """Not what it should be: perhaps somebody is still writing it."""
        age = self._clock.wall() - info.st_mtime
        if 0 <= age < self._settle:
            self._unsettled[key] = self._clock.monotonic() + self._settle - age
            return None
        return self._report(key, (info.st_ino, info.st_mtime_ns), "invalid", why, news)

    def _report(self, key: Key, mark: tuple[int, int], reason: str, detail: str, news: Findings) -> int | None:
        """Tell once that this file is of no use; it is known from then on, until it changes."""
        worker, folder, name = key
        text = f"{mark[0]}-{mark[1]}"
        if self._ledger.oddity(*key) != text:
            news.entry.oddities[key] = text
            self._emit(FileIgnored(f"{folder}/{worker}/{name}", f"{reason}: {detail}"))
            path = str(self._folders[folder] / worker / name)
            told = {"worker": worker, "path": path, "reason": reason, "detail": detail[:8192]}
            stem = f"file_unreadable~{worker}--{name.removesuffix('.json').replace('~', '-')}~{folder}"
            notice_id = f"file_unreadable/{worker}/{folder}/{name}/{text}"
            news.notices.append((Notice("file_unreadable", stem, notice_id, self._clock.wall(), told), None))
        return mark[0]


def _is_wanted(folder: str, name: str) -> bool:
    pattern = TASK_FILE_NAME if folder == "results" else _LETTER_NAME
    return pattern.fullmatch(name) is not None


def _parse(folder: str, raw: bytes) -> dict[str, Any]:
    if folder == "results":
        return result_format.parse_result(raw)
    return dead_letter.parse(raw)


def _outcome(key: Key, inode: int, raw: bytes, fields: dict[str, Any]) -> Finished:
    """The facts of a result or a dead letter. A field that is not what the format says counts as not there."""
    worker, folder, name = key
    stem = name.removesuffix(".json").partition("~")[0]
    print_ = hashlib.blake2b(raw, digest_size=12).hexdigest()
    if folder == "dlq":
        with_result = isinstance(fields.get("dlq_result"), dict)
        return Finished(
            worker, folder, name, inode, print_, stem,
            status="with_result" if with_result else "refused",
            reason=_text(fields["dlq_reason"], 64),
            batch_id=_checked(fields, "batch_id"),
            agent_id=_checked(fields, "agent_id"),
            finished_us=_moment_us(fields.get("dlq_timestamp")),
        )  # fmt: skip
    if fields["task_id"] != stem or fields["worker"] != worker:
        raise FieldError(f"it says that it is {fields['worker']}/{fields['task_id']}, which is not where it lies")
    found = fields.get("usage")
    usage = found if isinstance(found, dict) else {}  # each number of it is checked below
    duration = _checked(fields, "duration_seconds")
    return Finished(
        worker, folder, name, inode, print_, stem,
        status=fields["status"],
        reason=_checked(fields, "reason"),
        batch_id=_checked(fields, "batch_id"),
        agent_id=_checked(fields, "agent_id"),
        provider=_checked(fields, "provider"),
        started_us=_moment_us(fields.get("started_at")),
        finished_us=_moment_us(fields.get("timestamp")),
        duration_us=None if duration is None else round(duration * 1e6),
        attempts=_checked(fields, "attempts") or 0,
        retries=_checked(fields, "retry_count") or 0,
        input_tokens=_whole(usage.get("input_tokens")),
        output_tokens=_whole(usage.get("output_tokens")),
        cost_nano=_nano(usage.get("cost_usd")),
    )  # fmt: skip


def _edges(outcome: Finished, fields: dict[str, Any]) -> list[tuple[str, str, str]]:
    listed = fields.get("dependencies")
    if not isinstance(listed, list) or outcome.folder != "results":
        return []
    return [(outcome.worker, outcome.task_id, name) for name in listed[:20_000] if isinstance(name, str)]


def _checked(fields: dict[str, Any], name: str) -> Any:
    kind: Kind = result_format.FIELDS[name]
    try:
        return kind.check(fields.get(name))
    except FieldError:
        return None


def _text(value: object, limit: int) -> str | None:
    return value[:limit] if isinstance(value, str) and value else None


def _moment_us(value: object) -> int | None:
    if isinstance(value, str):
        with contextlib.suppress(ValueError, OverflowError):
            moment = round(parse_rfc3339(value) * 1e6)
            return moment if 0 < moment < 1 << 60 else None
    return None


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 50 else 0


def _nano(value: object) -> int:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e6
    return round(value * 1e9) if good else 0  # type: ignore[operator]  # it is a number by now
