"""Tell how a supervised process is, from its file: a worker's heartbeat or the listener's status.

Life is judged as everywhere (policy/health): by how long the file's sequence has not moved, on our own monotonic clock.
Only the word of the process that is meant counts: an older process of the same name may have left its last beat there.
Reads only; a file that is missing or cannot be read is silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watcher.policy.health import Health, Signs, judge
from watcher.store.workers import read_notes

#: Where the file does not say how often it is written: the listener's status.
_DEFAULT_INTERVAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Condition:
    """`is_alive`: it beats. `is_healthy`: and says that all is well; else `reason` says what is not."""

    is_alive: bool
    is_healthy: bool
    reason: str = ""


class ChildHealth:
    """Looks at one file again and again. Times are monotonic seconds of the caller."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._moved_at: float | None = None
        self._token: object = None
        self.fields: dict[str, Any] = {}

    def forget(self) -> None:
        """A new process begins: what was seen was another's."""
        self._moved_at = self._token = None
        self.fields = {}

    def look(self, pid: int | None, now: float) -> None:
        """Read the file; `pid` is the process whose word counts (None: anybody's)."""
        value = read_notes(self._path)
        if value is None or (pid is not None and value.get("pid") != pid):
            return
        token = (value.get("pid"), value.get("sequence"), value.get("timestamp", value.get("taken_at")))
        if token != self._token:
            self._token, self._moved_at, self.fields = token, now, value

    @property
    def has_beaten(self) -> bool:
        return self._moved_at is not None

    def count(self, name: str) -> int:
        """A number that it tells (`queue_size`, `active_tasks`), 0 when it tells none."""
        value = self.fields.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0

    def condition(self, now: float) -> Condition:
        """How it is now."""
        if self._moved_at is None:
            return Condition(False, False, "no heartbeat yet")
        silent = now - self._moved_at
        if judge(Signs(silent, self._interval(), is_locked=True)) is not Health.HEALTHY:
            return Condition(False, False, f"no heartbeat for {silent:.0f} s")
        trouble = self._trouble()
        return Condition(True, not trouble, trouble)

    def _interval(self) -> float:
        value = self.fields.get("heartbeat_interval_seconds")
        return float(value) if isinstance(value, (int, float)) and value > 0 else _DEFAULT_INTERVAL_SECONDS

    def _trouble(self) -> str:
        status = self.fields.get("status", "healthy")
        if status == "healthy":
            return str(self.fields.get("trouble") or "")
        return ": ".join(str(word) for word in (status, self.fields.get("reason")) if word)
