"""Report when a worker becomes silent, stale or dead: heartbeats read as they change, judged on our own clock.

A beat is read when its file has another inode or time stamp; everything else costs one stat. Locks are asked only when
a process has missed a beat. What was told of a process is in the ledger, so that a restart of ours tells nothing twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from watcher.clock import Clock
from watcher.formats.receipt_and_notice import Notice
from watcher.policy.health import FLAP_WINDOW_SECONDS, Health, Signs, is_overdue, is_silent, judge, recovery_wait
from watcher.store import workers as presence
from watcher.store.folders import History
from watcher.store.listener_database import Ledger
from watcher.store.notice_publisher import Findings
from watcher.telemetry.events import Emit, FileIgnored, WorkerJudged, WorkerMissed
from watcher.telemetry.record_guard import RecordGuard

_HELD = "held"


@dataclass(slots=True)
class Member:
    """One process, as its last beat says, and how we find it. Monotonic seconds."""

    name: str
    worker: str
    instance: str | None
    beat: dict[str, Any] = field(default_factory=dict)
    file_mark: tuple[int, int] = (0, 0)
    moved_at: float = 0.0
    has_moved: bool = False
    health: Health = Health.UNKNOWN
    since: float = 0.0
    told: str = "ok"
    told_held: str = ""
    deaths: list[float] = field(default_factory=list)

    @property
    def incarnation(self) -> str:
        return str(self.beat.get("incarnation"))


@dataclass(frozen=True, slots=True)
class MemberView:
    """A process for status and metrics. `state` is ours, `says` the beat's own word."""

    worker: str
    instance: str | None
    state: str
    says: str | None
    reason: str | None
    for_seconds: float
    silent_seconds: float
    queue_size: int
    active_tasks: int
    incarnation: str
    pid: int | None
    host: str | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class WorkerHealth:
    """All processes of which a heartbeat is there. `wanted` empty: every worker."""

    def __init__(
        self, heartbeats: Path, tasks: Path, wanted: Iterable[str], ledger: Ledger, clock: Clock, emit: Emit,
        default_interval: float,
    ) -> None:  # fmt: skip
        self._folder = heartbeats
        self._tasks = tasks
        self._wanted = frozenset(wanted)
        self._clock = clock
        self._emit = emit
        self._guard = RecordGuard(emit)
        self._default_interval = default_interval
        self._told = ledger.told("worker:")
        self._held = ledger.told("held:")
        self._unreadable: dict[str, tuple[int, int]] = {}
        self.members: dict[str, Member] = {}

    def workers(self) -> set[str]:
        return {member.worker for member in self.members.values()}

    def shortest_interval(self) -> float:
        """Of those that live; the default when nobody does."""
        alive = (Health.HEALTHY, Health.STALE, Health.UNKNOWN)
        intervals = [self._interval(m) for m in self.members.values() if m.health in alive]
        return min(intervals, default=self._default_interval)

    def tick(self) -> Findings:
        """Read what changed, judge everybody; what people must know comes back as news. Raises WorkerTrouble."""
        self._read_beats()
        news = Findings()
        for member in self.members.values():
            with self._guard.over(f"heartbeat of {member.worker}"):
                self._judge(member, news)
        return news

    def recorded(self, news: Findings) -> None:
        """What `tick` gave is recorded."""
        for key, value in news.entry.told.items():
            kind, _, name = key.partition(":")
            member = self.members.get(name)
            if member is not None and kind == "worker":
                member.told = value or "ok"
            elif member is not None:
                member.told_held = value or ""

    def dead_for(self, worker: str) -> float | None:
        """Seconds since the last of a worker's processes was found dead; None while any may live, or none died."""
        mine = [m for m in self.members.values() if m.worker == worker]
        if not mine or any(m.health not in (Health.DEAD, Health.STOPPED) for m in mine):
            return None
        dead = [m.since for m in mine if m.health is Health.DEAD]
        return self._clock.monotonic() - max(dead) if dead else None

    def views(self) -> list[MemberView]:
        now = self._clock.monotonic()
        return [
            MemberView(
                worker=m.worker,
                instance=m.instance,
                state=m.health.value,
                says=m.beat.get("status"),
                reason=m.beat.get("reason") if isinstance(m.beat.get("reason"), str) else None,
                for_seconds=round(now - m.since, 3),
                silent_seconds=round(now - m.moved_at, 3),
                queue_size=_number(m.beat.get("queue_size")),
                active_tasks=_number(m.beat.get("active_tasks")) if m.health is not Health.DEAD else 0,
                incarnation=m.incarnation,
                pid=_number(m.beat.get("pid")) or None,
                host=m.beat.get("host") if isinstance(m.beat.get("host"), str) else None,
            )
            for m in list(self.members.values())
        ]

    # --- reading

    def _read_beats(self) -> None:
        found = presence.beat_marks(self._folder)
        if found is None:
            return
        for name, mark in found.items():
            member = self.members.get(name)
            if (member is None or member.file_mark != mark) and self._unreadable.get(name) != mark:
                with self._guard.over(f"heartbeats/{name}.json"):
                    self._read_beat(name, mark, member)
        for name in self.members.keys() - found.keys():
            # A beat that somebody removed says nothing any more; one that died with it was told before.
            del self.members[name]

    def _read_beat(self, name: str, mark: tuple[int, int], member: Member | None) -> None:
        worker, _, instance = name.partition("@")
        if self._wanted and worker not in self._wanted:
            return
        try:
            found = presence.read_beat(self._folder / f"{name}.json")
        except (OSError, ValueError) as error:
            self._unreadable[name] = mark
            self._emit(FileIgnored(f"heartbeats/{name}.json", f"not a heartbeat: {error}"))
            return
        if found is None:
            return
        beat = found[0]
        now = self._clock.monotonic()
        if member is None:
            told, held = self._told.get(f"worker:{name}", "ok"), self._held.get(f"held:{name}", "")
            member = self.members[name] = Member(
                name, worker, instance or None, moved_at=now, since=now, told=told, told_held=held
            )
        elif _life(member.beat) != _life(beat):
            member.moved_at, member.has_moved = now, True
        member.beat, member.file_mark = beat, mark

    # --- judging

    def _judge(self, member: Member, news: Findings) -> None:
        now = self._clock.monotonic()
        signs = Signs(
            silent_seconds=now - member.moved_at,
            interval_seconds=self._interval(member),
            says_stopped=member.beat.get("status") == "stopped",
            has_moved=member.has_moved,
        )
        if member.health is Health.DEAD and member.told == "dead" and is_silent(signs) and not signs.says_stopped:
            return  # only a new beat can change that
        claims: list[presence.Claims] = []
        if not signs.says_stopped and (is_silent(signs) or not member.has_moved):
            claims = presence.read_claims(self._tasks / member.worker, [])
            lives = next((c.lives for c in claims if c.incarnation == member.incarnation), False)
            signs = Signs(signs.silent_seconds, signs.interval_seconds, False, signs.has_moved, lives)
        health = judge(signs)
        if health is not member.health:
            self._turn(member, health, signs)
        self._tell_life(member, signs, claims, news)
        self._tell_hold(member, news)

    def _turn(self, member: Member, health: Health, signs: Signs) -> None:
        now = self._clock.monotonic()
        if health is Health.DEAD:
            member.deaths = [t for t in member.deaths if now - t < FLAP_WINDOW_SECONDS] + [now]
        detail = "" if health in (Health.HEALTHY, Health.STOPPED) else f"silent for {signs.silent_seconds:.1f} s"
        kind = WorkerMissed if health in (Health.STALE, Health.DEAD) else WorkerJudged
        self._emit(kind(member.worker, member.instance, health.value, member.health.value, detail))
        member.health, member.since = health, now

    def _tell_life(self, member: Member, signs: Signs, claims: list[presence.Claims], news: Findings) -> None:
        now = self._clock.monotonic()
        if member.health is Health.DEAD and member.told != "dead":
            held = next((c.names for c in claims if c.incarnation == member.incarnation), [])
            told = _silence(signs) | {"claims": _task_ids(held), "reason": "its heartbeat stopped"}
            if signs.is_locked is False:
                told["reason"] = "its heartbeat stopped and its lock is free: the process is gone"
            self._tell("worker_dead", member, told, "dead", news)
        elif member.health is Health.STALE and member.told == "ok" and is_overdue(signs):
            told = _silence(signs) | {
                "reason": "no heartbeat, but its lock is held: the process or its machine is frozen"
            }
            self._tell("worker_stale", member, told, "stale", news)
        elif member.health in (Health.HEALTHY, Health.STOPPED) and member.told != "ok":
            wait = recovery_wait(len(member.deaths), signs.interval_seconds) if member.told == "dead" else 0.0
            if member.health is Health.STOPPED or (member.has_moved and now - member.since >= wait):
                told = {"status": str(member.beat.get("status")), "reason": f"was {member.told}"}
                self._tell("worker_recovered", member, told, "ok", news)

    def _tell_hold(self, member: Member, news: Findings) -> None:
        """A hold is told once, and again when its reason or its end changes."""
        if member.health is not Health.HEALTHY:
            return
        beat = member.beat
        mark = f"{beat.get('reason')} {beat.get('held_until')}" if beat.get("status") == _HELD else ""
        if mark == member.told_held:
            return
        key, until = f"held:{member.name}", beat.get("held_until")
        news.entry.told[key] = mark or None
        told = {"reason": _text(beat.get("reason")), "held_until": until if isinstance(until, str) else None}
        kind = "worker_held" if mark else "worker_resumed"
        news.notices.append((self._notice(kind, member, told if mark else {}), None))

    def _tell(self, kind: str, member: Member, told: dict[str, Any], state: str, news: Findings) -> None:
        news.entry.told[f"worker:{member.name}"] = None if state == "ok" else state
        news.notices.append((self._notice(kind, member, told), None))

    def _notice(self, kind: str, member: Member, told: dict[str, Any]) -> Notice:
        sequence = member.beat.get("sequence")
        fields: dict[str, Any] = {"worker": member.worker, "instance": member.instance}
        fields |= {"incarnation": member.incarnation, "pid": _number(member.beat.get("pid")) or None}
        fields["host"] = _text(member.beat.get("host"))
        stem = f"{kind}~{member.name}~{re.sub('[^0-9a-f]', '', member.incarnation)[:12]}-{sequence}"
        notice_id = f"{kind}/{member.name}/{member.incarnation}/{sequence}"
        return Notice(kind, stem, notice_id, self._clock.wall(), fields | told)

    def _interval(self, member: Member) -> float:
        told = member.beat.get("heartbeat_interval_seconds")
        good = isinstance(told, (int, float)) and not isinstance(told, bool) and 0.01 <= told <= 3600
        return float(told) if good else self._default_interval  # type: ignore[arg-type]  # a number by now


def _life(beat: dict[str, Any]) -> tuple[object, object]:
    return beat.get("incarnation"), beat.get("sequence")


def _silence(signs: Signs) -> dict[str, Any]:
    return {"silent_seconds": round(signs.silent_seconds, 3), "interval_seconds": signs.interval_seconds}


def _task_ids(names: list[str]) -> list[str]:
    return sorted(history.stem for history in map(History.of, names) if history is not None)


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _text(value: object) -> str | None:
    return value[:2048] if isinstance(value, str) else None
