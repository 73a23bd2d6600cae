"""Decide whether the account or the machine can be to blame for an attempt that was given back.

Knows what others have shown since: of an account by `provider_gates`, over all its workers and through restarts; of
this machine by the attempts of this process. `policy.give_back_limit` says what a give-back comes to. Loop thread only.
"""

from __future__ import annotations

from collections.abc import Collection

from watcher.policy.after_attempt import GiveBack, HoldProvider
from watcher.policy.give_back_limit import Alone, GaveBack
from watcher.store.queue_interface import Claim
from watcher.worker.provider_gates import OWN_REASONS, Gates
from watcher.worker.slot_threads import Running


class Blame:
    """What one worker's attempts blamed. `probe_seconds` is the shortest pause until a held account is tried again."""

    def __init__(self, gates: Gates, worker: str, probe_seconds: float) -> None:
        self._gates = gates
        self._worker = worker
        self._probe_seconds = probe_seconds
        self._begun = 0
        #: For each provider the youngest attempt that succeeded; for each task how far they had come when it was
        #: given back for something of this machine.
        self._succeeded: dict[str, int] = {}
        self._given_back: dict[str, int] = {}

    def began(self, mark: str) -> None:
        """An attempt begins; marks end in numbers that rise."""
        self._begun = _number(mark)

    def succeeded(self, provider: str, mark: str) -> None:
        """An attempt ended well."""
        self._succeeded[provider] = max(self._succeeded.get(provider, 0), _number(mark))

    def settled(self, task_id: str) -> None:
        """The task is over."""
        self._given_back.pop(task_id, None)

    def account(self, claim: Claim, mark: str, what: HoldProvider) -> GaveBack:
        """It blames its provider's account, which is held: in doubt when words alone say so, or not the first time."""
        is_own = what.reason in OWN_REASONS
        before, seen = self._gates.refutations(claim.provider, mark)
        given = claim.given
        if is_own:
            is_refuted = self._others_succeeded(claim, [claim.provider])
        else:
            is_refuted = given is not None and given.seen is not None and before > given.seen
        is_alone = self._gates.hold(
            claim.provider, what.reason, what.detail, what.until, self._probe_seconds, mark,
            task=f"{self._worker}/{claim.task.task_id}", is_doubtful=what.is_weak or given is not None,
        )  # fmt: skip
        alone: Alone | None = None
        if is_alone and not is_refuted:
            # A command that is missing starts nothing and costs nothing: it may be looked for until it is there.
            alone = "words" if what.is_weak else None if is_own else "facts"
        return GaveBack(what.reason, what.detail, is_refuted, alone, None if is_own else seen)

    def machine(self, running: Running, what: GiveBack, detail: str | None) -> GaveBack:
        """It blames this machine. Beside others that run it may be right although some of them succeed, for what is
        short may be enough for one: that refutes nothing, but is not believed for ever."""
        others = self._others_succeeded(running.claim, self._succeeded)
        alone: Alone | None = "facts" if others and not running.is_alone else None
        return GaveBack(what.reason, detail, others and running.is_alone, alone)

    def _others_succeeded(self, claim: Claim, providers: Collection[str]) -> bool:
        """Whether something did that was begun after this task had last been given back here."""
        since = self._given_back.get(claim.task.task_id)
        self._given_back[claim.task.task_id] = self._begun
        return since is not None and any(self._succeeded.get(provider, 0) > since for provider in providers)


def _number(mark: str) -> int:
    return int(mark.rpartition(".")[2])
