"""Keep the gates of all providers on disk: a hold and an open breaker survive a restart.

`control/holds/<account>.json` is a hold, seen by every worker of the root; deleting it lifts it. When its time is over,
one probe goes first over all of them, then a ramp: see `policy.provider_gate` and `probe_permits`. The folder is looked
at again before each claim when its time stamp has moved, so a hold is seen at once where it is local, and at the next
beat elsewhere. `control/<worker>/breakers.json` is this worker's open breakers. All are small and rarely written. A
file that cannot be read counts as absent and is replaced: a gate is caution, not data.

A hold that only one task has met may be doubted. When another task succeeds that was started after that, the hold is
refuted: how often that was is kept there too, `.<account>~well`, and a task that was given back before it and blames
the account once more is itself to blame.

Loop thread only, but for `may_start`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from watcher.clock import Clock, rfc3339
from watcher.formats.breakers import dump_breakers, parse_breakers
from watcher.policy.breaker import Breaker, BreakerState
from watcher.policy.claim_order import doubted, undoubted
from watcher.policy.health import lease_seconds
from watcher.policy.provider_gate import Gate, Hold, next_pause
from watcher.store.hold_cache import KnownHolds, try_to_replace
from watcher.store.holds import StoredHold, key_of, safe_account, split_name, split_ramp_name
from watcher.store.layout import BREAKERS, HOLDS
from watcher.store.probe_permits import Permits
from watcher.store.worker_locks import Incarnation
from watcher.system.files import Folder
from watcher.telemetry.events import BreakerMoved, Emit, ProviderHeld, ProviderResumed

if TYPE_CHECKING:
    from watcher.settings.worker import WatcherConfig

_MAX_BYTES = 1 << 20
#: A stored hold that ends later than this is a clock that jumped or a foreign file: it is asked again by then.
_LONGEST_HOLD_SECONDS = 8 * 24 * 3600.0
#: Facts of this process, its machine or its user: the other workers of the root look for themselves.
OWN_REASONS = frozenset({"command_missing", "command_not_executable", "refuses_root", "unknown_provider", "unusable"})
#: A permit that was taken for a task which did not come is not asked for again before this.
_UNUSED_SECONDS = 1.0


class Gates:
    """One gate per provider that was ever asked for.

    `jitter` is what to add to the end of a hold of so many seconds, so that not everybody wakes in the same instant.
    """

    def __init__(
        self,
        config: WatcherConfig,
        owner: Incarnation,
        clock: Clock,
        emit: Emit,
        jitter: Callable[[float], float] = lambda seconds: 0.0,
    ) -> None:
        holds = Folder(config.control_dir / HOLDS)
        self._known = KnownHolds(holds, owner.id, safe_account(config.provider_account), clock)
        self._mine = Folder(config.control_dir / owner.worker)
        self._owner = owner.id
        self._config = config
        self._jitter = jitter
        self._clock = clock
        self._emit = emit
        self._gates: dict[str, Gate] = {}
        self._permits = Permits(holds, owner.id, lease_seconds(config.heartbeat_interval), clock)
        self._probes: dict[str, tuple[str, str | None]] = {}
        self._in_hand: dict[str, str] = {}
        self._not_before: dict[str, float] = {}
        self._unused: dict[str, float] = {}
        #: For each provider whose hold is doubted: what was started since, until one of that succeeds.
        self._begun_since: dict[str, set[str]] = {}
        #: Which attempt refuted a hold of each provider last.
        self._refuted_by: dict[str, str] = {}
        self._restore_breakers()
        self.refresh()

    def close(self) -> None:
        self._permits.close()
        self._known.folder.close()
        self._mine.close()

    def gate(self, provider: str) -> Gate:
        gate = self._gates.get(provider)
        if gate is None:
            gate = self._gates[provider] = Gate(
                Breaker(self._config.circuit_breaker_threshold, self._config.circuit_breaker_timeout)
            )
        return gate

    # --- may it start?

    def closed_to(self, has_undoubted: Callable[[str], bool] | None = None) -> tuple[set[str], bool]:
        """For what nothing may start now (as in `policy.claim_order`), and whether some may start only one (a probe).

        `has_undoubted` tells whether a task of a provider is ready that was never given back: such a one probes a hold
        first, and without one who was given back longest ago.
        """
        self._look_again()
        now = self._clock.monotonic()
        excluded: set[str] = set()
        probing = False
        for provider, gate in self._gates.items():
            allowed = gate.allows(now)
            waits = allowed is not None and now < max(self._not_before.get(provider, 0), self._unused.get(provider, 0))
            if allowed == 0 or waits:
                excluded.add(provider)
            elif allowed is not None:
                probing = True
                if gate.hold is not None and has_undoubted is not None:
                    is_early = not gate.is_due(now)
                    excluded.add((doubted if is_early or has_undoubted(provider) else undoubted)(provider))
        return excluded, probing

    def refused_permits(self, excluded: Collection[str], has_ready: Callable[[Collection[str]], bool]) -> set[str]:
        """Ask for the permits that probes need now. Returns the providers to leave out, for somebody else has theirs.

        `excluded` and `has_ready` tell for which providers a task waits: no permit is taken for nothing.
        """
        now = self._clock.monotonic()
        wanted = {
            provider
            for provider, gate in self._gates.items()
            if provider not in excluded and self._known.is_shared(provider) and gate.allows(now)
        }
        refused: set[str] = set()
        for provider in wanted:
            others = {*excluded, *(wanted - {provider})}
            if provider not in self._in_hand and (not has_ready(others) or not self._take_permit(provider)):
                refused.add(provider)
        return refused

    def put_back_permits(self) -> None:
        """Give back what `refused_permits` took and no task used."""
        for provider, permit in list(self._in_hand.items()):
            del self._in_hand[provider]
            self._permits.give_back(permit)
            self._unused[provider] = self._clock.monotonic() + _UNUSED_SECONDS

    def may_start(self, provider: str, mark: str) -> bool:
        """Whether nothing has held the provider since the attempt was claimed. Any thread; costs one system call."""
        if mark in self._probes:
            return True
        gate = self._gates.get(provider)
        if gate is not None and gate.hold is not None:
            return False
        try:
            return not self._known.may_be_held(provider)
        except OSError:
            return True  # the attempt itself will meet what is wrong with this machine

    # --- what attempts tell

    def started(self, provider: str, mark: str = "") -> None:
        gate = self.gate(provider)
        now = self._clock.monotonic()
        if provider in self._begun_since:
            self._begun_since[provider].add(mark)
        if gate.started(now):
            self._probes[mark] = (provider, self._in_hand.pop(provider, None))
        if gate.state(now) is BreakerState.HALF_OPEN:
            self._emit(BreakerMoved(provider, BreakerState.HALF_OPEN.value, gate.breaker.failures))

    def succeeded(self, provider: str, mark: str = "") -> None:
        if mark in self._begun_since.get(provider, ()):
            del self._begun_since[provider]
            self._refuted_by[provider] = mark
            self._known.refuted(provider)
        probe = self._probes.pop(mark, None)
        self._changed(provider, lambda gate: gate.succeeded(probe is not None))
        self._end_probe(probe)

    def failed(self, provider: str, mark: str = "") -> None:
        probe = self._probes.pop(mark, None)
        self._changed(provider, lambda gate: gate.failed(self._clock.monotonic(), probe is not None))
        self._end_probe(probe)

    def told_nothing(self, provider: str, mark: str = "") -> None:
        probe = self._probes.pop(mark, None)
        self.gate(provider).told_nothing(probe is not None)
        self._end_probe(probe)

    def answered(self, provider: str, mark: str) -> None:
        """A probe that still runs has been answered: who waits for its end would wait for hours."""
        if mark in self._probes:
            self.succeeded(provider, mark)

    def hold(
        self,
        provider: str,
        reason: str,
        detail: str | None,
        until: float | None,
        probe_in: float | None,
        mark: str = "",
        *,
        task: str = "",
        is_doubtful: bool = False,
    ) -> bool:
        """Hold a provider until wall time `until`; without one, probe again after `probe_in` seconds, then after
        twice as long and so on (None: never). Returns whether only this task has met it.

        An end that is over already is none: who believed it would try again and again. `task` has met it; when that is
        doubtful and nobody else has, others may try at once whether it is so.
        """
        gate, now, wall = self.gate(provider), self._clock.monotonic(), self._clock.wall()
        known, is_probe = gate.hold, mark in self._probes
        is_own = reason in OWN_REASONS
        if known is not None and self._says_more(known, provider, is_own, is_probe):
            self.told_nothing(provider, mark)
            return False
        is_alone = bool(task) and (known is None or known.task == task)
        is_doubted = is_alone and is_doubtful
        if until is not None and until < wall:
            until = None  # nor is it for those who read the file: each would try at once, and write it anew
        pause = None if probe_in is None or is_own else next_pause(known, probe_in, was_probe=is_probe)
        wait = (pause or probe_in) if until is None else until - wall
        if until is not None and wait is not None and is_probe and known is not None and not is_own:
            wait = max(wait, known.pause_seconds or 0.0)  # the time that was told before did not hold either
            until = wall + wait
        wait = None if wait is None else min(wait, _LONGEST_HOLD_SECONDS)
        due = None if wait is None else now + wait + self._jitter(wait)
        new = Hold(reason, detail, until, due, is_own, pause, task if is_alone else "", is_doubted)
        self._doubt(provider, is_doubted=is_doubted)
        gate.held(new)
        if not is_own:
            self._known.store(provider, new)
        self._drop_probes(provider)
        if known is None or (known.reason, known.until) != (reason, until):
            self._emit(ProviderHeld(provider, reason, detail or "", None if until is None else rfc3339(until)))
        return is_alone

    def refutations(self, provider: str, mark: str) -> tuple[int, int]:
        """How often a hold of the provider's account was refuted: by others than this attempt, and in all."""
        times = self._known.refutations(provider)
        return times - (self._refuted_by.get(provider) == mark), times

    def _doubt(self, provider: str, *, is_doubted: bool) -> None:
        """From now on what is started tells whether the hold is right, if it is doubted at all."""
        self._begun_since.pop(provider, None)
        if is_doubted:
            self._begun_since[provider] = set()

    def _says_more(self, known: Hold, provider: str, is_own: bool, is_probe: bool) -> bool:
        """Whether the hold that is there says more than what was met now: a person's word, or what a probe tells."""
        if is_own and not known.is_own:
            return True
        is_word = known.until_monotonic is None and not known.is_own
        return not is_probe and (is_word or any(probe[0] == provider for probe in self._probes.values()))

    def lift(self, provider: str) -> None:
        """The provider works again, or somebody says so."""
        gate = self.gate(provider)
        if gate.hold is not None:
            gate.lift()
            self._drop_probes(provider)
            self._known.remove(provider)
            self._emit(ProviderResumed(provider))

    # --- what others do

    def refresh(self) -> None:
        """Take over holds and ramps that others wrote, and lift what somebody removed."""
        self._mine.mend()
        names, changed_ns = self._known.names()
        held, ramping = self._known.held(names), self._known.ramping(names)
        self._permits.observe(names)
        for provider in ramping:
            self.gate(provider)
        for provider in held:
            self._take_over_hold(provider)
        for provider, gate in self._gates.items():
            # What was never stored (a full disk, a hold of our own) was not removed by anybody.
            if gate.hold is not None and self._known.has_hold(provider) and provider not in held:
                gate.lift()
                self._known.forget(provider)
                self._emit(ProviderResumed(provider))
            if gate.hold is None:
                gate.ramp = self._known.ramp(provider, gate.ramp, provider in ramping)
        whose = (split_name(name) or split_ramp_name(name) for name in names)
        self._permits.clear(names, {key_of(*found) for found in whose if found is not None})
        self._not_before.clear()
        self._known.looked(changed_ns)

    def renew_permits(self) -> None:
        """Once a beat: this process lives and still uses what it has."""
        self._permits.renew()

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
        """Whether the last attempt of some provider failed, or it is only just coming back."""
        return any(gate.breaker.failures or gate.is_probed() for gate in self._gates.values())

    def due_in(self, since: float) -> float | None:
        """Seconds until some gate opens by itself that was closed at `since` (monotonic seconds).

        One that was open by then waits for a task that may never come, not for time.
        """
        dues = [since + wait for gate in self._gates.values() if (wait := gate.due_in(since))]
        dues += [at for at in (*self._not_before.values(), *self._unused.values()) if at > since]
        return max(0.0, min(dues) - self._clock.monotonic()) if dues else None

    # --- probes

    def _take_permit(self, provider: str) -> bool:
        gate = self.gate(provider)
        self._permits.observe(self._known.folder.names())
        permit = self._permits.take(self._known.key(provider), gate.at_once())
        if permit is not None and self._known.is_unchanged(provider):
            self._in_hand[provider] = permit
            return True
        if permit is not None:  # another probe has come to its end meanwhile: what follows is no longer what we knew
            self._permits.give_back(permit)
            self.refresh()
        self._not_before[provider] = self._clock.monotonic() + self._permits.look_again_in()
        return False

    def _end_probe(self, probe: tuple[str, str | None] | None) -> None:
        """Only now: who gets the place must find what this probe has changed."""
        if probe is not None and probe[1] is not None:
            self._permits.give_back(probe[1])

    def _drop_probes(self, provider: str) -> None:
        """What runs is no probe any more: its places are free for those who probe next."""
        for mark in [mark for mark, probe in self._probes.items() if probe[0] == provider]:
            self._end_probe(self._probes.pop(mark))
        permit = self._in_hand.pop(provider, None)
        if permit is not None:
            self._permits.give_back(permit)

    def _changed(self, provider: str, change: Callable[[Gate], bool]) -> None:
        gate = self.gate(provider)
        before, failures, ramp = gate.breaker.opened_at, gate.breaker.failures, gate.ramp
        lifted = change(gate)
        if gate.ramp != ramp:
            self._known.store_ramp(provider, gate.ramp)
        if lifted:
            self._known.remove(provider)
            self._emit(ProviderResumed(provider))
        if gate.breaker.opened_at != before:
            state = gate.state(self._clock.monotonic())
            self._emit(BreakerMoved(provider, state.value, max(failures, gate.breaker.failures)))
            self._store_breakers()

    # --- files

    def _look_again(self) -> None:
        try:
            if self._known.has_moved():
                self.refresh()
        except OSError:
            return  # the next beat looks as well, and says what is wrong

    def _take_over_hold(self, provider: str) -> None:
        news = self._known.news(provider)
        if news is None:
            return
        stored, is_another = news
        gate = self.gate(provider)
        known = gate.hold
        is_same = known is not None and (known.reason, known.until) == (stored.reason, stored.until)
        if is_same and not is_another:
            return
        self._doubt(provider, is_doubted=stored.is_doubted)
        gate.held(self._as_known_here(stored))
        self._drop_probes(provider)
        if not is_same:
            until = None if stored.until is None else rfc3339(stored.until)
            self._emit(ProviderHeld(provider, stored.reason, stored.detail or "", until))

    def _as_known_here(self, stored: StoredHold) -> Hold:
        if stored.waits_for_word:
            return Hold(stored.reason, stored.detail, None, None)
        wall = self._clock.wall()
        pause = stored.pause_seconds or self._config.circuit_breaker_timeout
        # Without an end it is tried again after its pause, which a clock that was set neither ends nor prolongs.
        left = min(pause, (stored.since or wall) + pause - wall) if stored.until is None else stored.until - wall
        wait = min(max(0.0, left), _LONGEST_HOLD_SECONDS)
        due = self._clock.monotonic() + wait + self._jitter(wait)
        return Hold(
            stored.reason, stored.detail, stored.until, due,
            pause_seconds=stored.pause_seconds, is_doubted=stored.is_doubted, task=stored.task,
        )  # fmt: skip

    def _store_breakers(self) -> None:
        wall, now = self._clock.wall(), self._clock.monotonic()
        waits = ((provider, gate.breaker, gate.breaker.due_in(now)) for provider, gate in self._gates.items())
        open_ones = {name: (breaker.failures, wall + wait) for name, breaker, wait in waits if wait is not None}
        try_to_replace(self._mine, BREAKERS, dump_breakers(open_ones), self._owner)

    def _restore_breakers(self) -> None:
        try:
            found = parse_breakers(self._mine.read(BREAKERS, _MAX_BYTES))
        except OSError:
            return
        now, wall = self._clock.monotonic(), self._clock.wall()
        for provider, (failures, probe_at) in found.items():
            self.gate(provider).breaker.restore(failures, probe_at - wall, now)
            self._emit(BreakerMoved(provider, self.gate(provider).state(now).value, failures))
