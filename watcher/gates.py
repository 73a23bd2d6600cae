"""The gates of all providers, kept on disk: a hold and an open breaker survive a restart.

`control/holds/<provider>.json` is a hold, seen by every worker of the root; deleting it lifts it.
`control/<worker>/breakers.json` is this worker's open breakers. Both are small, rarely written and read at start and
once a beat. A file that cannot be read counts as absent and is replaced: a gate is caution, not data.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from watcher.atomicfile import Folder, replace
from watcher.clock import Clock, parse_rfc3339, rfc3339
from watcher.events import BreakerMoved, Emit, ProviderHeld, ProviderResumed
from watcher.policy.breaker import Breaker, BreakerState
from watcher.policy.hold import Gate, Hold

_BREAKERS = "breakers.json"
_MAX_BYTES = 1 << 20
#: A stored hold that ends later than this is a clock that jumped or a foreign file: it is asked again by then.
_LONGEST_HOLD_SECONDS = 8 * 24 * 3600.0
#: Facts of this process, its machine or its user: the other workers of the root look for themselves.
_OWN_REASONS = frozenset({"command_missing", "refuses_root", "unknown_provider", "unusable"})


class Gates:
    """One gate per provider that was ever asked for."""

    def __init__(
        self, control: Path, worker: str, owner: str, threshold: int, timeout_seconds: float, clock: Clock, emit: Emit
    ) -> None:
        self._holds = Folder(control / "holds")
        self._mine = Folder(control / worker)
        self._owner = owner
        self._threshold = threshold
        self._timeout = timeout_seconds
        self._clock = clock
        self._emit = emit
        self._gates: dict[str, Gate] = {}
        self._on_disk: set[str] = set()
        self._restore_breakers()
        self.refresh()

    def close(self) -> None:
        self._holds.close()
        self._mine.close()

    def gate(self, provider: str) -> Gate:
        gate = self._gates.get(provider)
        if gate is None:
            gate = self._gates[provider] = Gate(Breaker(self._threshold, self._timeout))
        return gate

    def closed_to(self) -> tuple[set[str], bool]:
        """Providers for which nothing may start now, and whether some may start only one (a probe)."""
        now = self._clock.monotonic()
        excluded: set[str] = set()
        probing = False
        for provider, gate in self._gates.items():
            allowed = gate.allows(now)
            if allowed == 0:
                excluded.add(provider)
            elif allowed is not None:
                probing = True
        return excluded, probing

    def started(self, provider: str) -> None:
        gate = self.gate(provider)
        now = self._clock.monotonic()
        gate.started(now)
        if gate.state(now) is BreakerState.HALF_OPEN:
            self._emit(BreakerMoved(provider, BreakerState.HALF_OPEN.value, gate.breaker.failures))

    def succeeded(self, provider: str) -> None:
        self._changed(provider, lambda gate: gate.succeeded())

    def failed(self, provider: str) -> None:
        self._changed(provider, lambda gate: gate.failed(self._clock.monotonic()))

    def told_nothing(self, provider: str) -> None:
        self.gate(provider).told_nothing()

    def hold(self, provider: str, reason: str, detail: str | None, until: float | None, probe_in: float | None) -> None:
        """Hold a provider until wall time `until`; without one, probe again after `probe_in` seconds (None: never)."""
        now = self._clock.monotonic()
        wait = probe_in if until is None else min(max(0.0, until - self._clock.wall()), _LONGEST_HOLD_SECONDS)
        new = Hold(reason, detail, until, None if wait is None else now + wait)
        known = self.gate(provider).hold
        self.gate(provider).held(new)
        self._store_hold(provider, new)
        if known is None or (known.reason, known.until) != (reason, until):
            self._emit(ProviderHeld(provider, reason, detail or "", None if until is None else rfc3339(until)))

    def lift(self, provider: str) -> None:
        """The provider works again, or somebody says so."""
        gate = self.gate(provider)
        if gate.hold is not None:
            gate.lift()
            self._remove_hold(provider)
            self._emit(ProviderResumed(provider))

    def refresh(self) -> None:
        """Take over holds that others wrote, and lift those whose file somebody removed."""
        self._holds.mend()
        self._mine.mend()
        names = {n.removesuffix(".json") for n in self._holds.names() if n.endswith(".json") and n[0] != "."}
        for provider in names:
            self._on_disk.add(provider)
            if self.gate(provider).hold is None:
                hold = self._read_hold(provider)
                if hold is not None:
                    self.gate(provider).held(hold)
                    until = None if hold.until is None else rfc3339(hold.until)
                    self._emit(ProviderHeld(provider, hold.reason, hold.detail or "", until))
        for provider, gate in self._gates.items():
            # What was never stored (a full disk, a hold of our own) was not removed by anybody.
            if gate.hold is not None and provider in self._on_disk and provider not in names:
                self._on_disk.discard(provider)
                gate.lift()
                self._emit(ProviderResumed(provider))

    def holds(self) -> dict[str, Hold]:
        return {provider: gate.hold for provider, gate in self._gates.items() if gate.hold is not None}

    def worst_state(self) -> BreakerState:
        """Of all breakers the one that stops most: open, then half open, then closed."""
        now = self._clock.monotonic()
        states = {gate.state(now) for gate in self._gates.values()}
        for state in (BreakerState.OPEN, BreakerState.HALF_OPEN):
            if state in states:
                return state
        return BreakerState.CLOSED

    def are_failures_pending(self) -> bool:
        """Whether the last attempt of some provider failed."""
        return any(gate.breaker.failures for gate in self._gates.values())

    def due_in(self, since: float) -> float | None:
        """Seconds until some gate opens by itself that was closed at `since` (monotonic seconds).

        One that was open by then waits for a task that may never come, not for time.
        """
        dues = [since + wait for gate in self._gates.values() if (wait := gate.due_in(since))]
        return max(0.0, min(dues) - self._clock.monotonic()) if dues else None

    def _changed(self, provider: str, change: Callable[[Gate], bool]) -> None:
        gate = self.gate(provider)
        now = self._clock.monotonic()
        before, failures = gate.breaker.opened_at, gate.breaker.failures
        lifted = change(gate)
        if lifted:
            self._remove_hold(provider)
            self._emit(ProviderResumed(provider))
        if gate.breaker.opened_at != before:
            self._emit(BreakerMoved(provider, gate.state(now).value, max(failures, gate.breaker.failures)))
            self._store_breakers()

    def _store_hold(self, provider: str, hold: Hold) -> None:
        if hold.reason in _OWN_REASONS:
            return
        is_stored = self._store(
            self._holds,
            f"{provider}.json",
            {
                "provider": provider,
                "reason": hold.reason,
                "detail": hold.detail,
                "until": None if hold.until is None else rfc3339(hold.until),
                "since": rfc3339(self._clock.wall()),
            },
        )
        if is_stored:
            self._on_disk.add(provider)

    def _read_hold(self, provider: str) -> Hold | None:
        try:
            value = json.loads(self._holds.read(f"{provider}.json", _MAX_BYTES))
            until = None if value.get("until") is None else parse_rfc3339(value["until"])
            reason, detail = str(value["reason"]), value.get("detail")
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return None
        now = self._clock.monotonic()
        wait = None if until is None else min(max(0.0, until - self._clock.wall()), _LONGEST_HOLD_SECONDS)
        # A hold without an end was stored by a process that is gone, or by a person: probe at the breaker's pace.
        return Hold(reason, detail, until, now + (self._timeout if wait is None else wait))

    def _remove_hold(self, provider: str) -> None:
        self._on_disk.discard(provider)
        with contextlib.suppress(OSError):
            self._holds.remove(f"{provider}.json")

    def _store_breakers(self) -> None:
        wall, now = self._clock.wall(), self._clock.monotonic()
        open_ones: dict[str, Any] = {}
        for provider, gate in self._gates.items():
            wait = gate.breaker.due_in(now)
            if wait is not None:
                open_ones[provider] = {"failures": gate.breaker.failures, "probe_at": rfc3339(wall + wait)}
        self._store(self._mine, _BREAKERS, open_ones)

    def _restore_breakers(self) -> None:
        try:
            stored = json.loads(self._mine.read(_BREAKERS, _MAX_BYTES))
            found = {
                str(provider): (int(entry["failures"]), parse_rfc3339(entry["probe_at"]) - self._clock.wall())
                for provider, entry in stored.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        now = self._clock.monotonic()
        for provider, (failures, wait) in found.items():
            self.gate(provider).breaker.restore(failures, wait, now)
            self._emit(BreakerMoved(provider, self.gate(provider).state(now).value, failures))

    def _store(self, folder: Folder, name: str, value: object) -> bool:
        # A full disk must not stop a gate from working; only its memory of it is lost then.
        with contextlib.suppress(OSError):
            replace(folder, name, json.dumps(value).encode() + b"\n", self._owner)
            return True
        return False
