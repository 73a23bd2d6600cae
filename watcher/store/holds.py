"""Own the hold files: `control/holds/<provider>.json`, or `<provider>@<account>.json`, one for each account.

A hold keeps every worker of the root from starting anything for that account. Workers write holds when a provider
refuses; `hold_provider` writes one by hand, `lift_hold` ends one, and so does removing the file. Each change is one
rename or unlink, so a reader sees a whole file or none. Beside it lie hidden files: the ramp after a hold, how often
one was refuted, and the permits of `probe_permits`.

An account is whatever tells two logins of one provider apart (`PROVIDER_ACCOUNT`). One that would make a bad file name
is rewritten, with a digest so that two never become one.

Raises OSError as the system gives it, and SettingError for a name that is no provider's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watcher.clock import parse_rfc3339, rfc3339
from watcher.errors import SettingError
from watcher.store.layout import HOLDS
from watcher.system.files import Folder, replace

#: What an operator's hold says when no other reason was given.
BY_OPERATOR = "operator"
_MAX_BYTES = 1 << 16
_PROVIDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PLAIN_ACCOUNT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_KEY = r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:@([A-Za-z0-9_-][A-Za-z0-9._-]{0,63}))?"
_NAME = re.compile(_KEY + r"\.json")
_RAMP = re.compile(rf"\.{_KEY}~ramp")


@dataclass(frozen=True, slots=True)
class StoredHold:
    """One hold as its file says it. Times are wall seconds; `until` None has no end that is known.

    `waits_for_word`: nobody probes by himself, it must be lifted. The last three are those of `policy.hold.Hold`.
    """

    provider: str
    account: str
    reason: str
    detail: str | None = None
    until: float | None = None
    since: float | None = None
    waits_for_word: bool = False
    pause_seconds: float | None = None
    is_doubted: bool = False
    task: str = ""

    def dump(self) -> bytes:
        out: dict[str, Any] = {
            "provider": self.provider,
            "reason": self.reason,
            "detail": self.detail,
            "until": None if self.until is None else rfc3339(self.until),
            "since": None if self.since is None else rfc3339(self.since),
        }
        if self.account:
            out["account"] = self.account
        if self.waits_for_word:
            out["probe"] = False
        if self.pause_seconds is not None:
            out["pause_seconds"] = self.pause_seconds
        if self.task:
            out |= {"task": self.task, "doubted": self.is_doubted}
        return json.dumps(out).encode() + b"\n"


def key_of(provider: str, account: str = "") -> str:
    """The name of an account's files without their ending: `claude`, or `claude@team-a`."""
    name = safe_account(account)
    return f"{provider}@{name}" if name else provider


def safe_account(account: str) -> str:
    """This account as a part of a file name; one that had to be changed ends in a digest of what it was."""
    text = account.strip()
    if not text or _PLAIN_ACCOUNT.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', text)[:48]}-{digest}"


def split_name(name: str) -> tuple[str, str] | None:
    """Provider and account of a hold's file name; None when it is none."""
    found = _NAME.fullmatch(name)
    return None if found is None else (found[1], found[2] or "")


def ramp_name(key: str) -> str:
    """The file that says how many may start at once after a hold."""
    return f".{key}~ramp"


def well_name(key: str) -> str:
    """The file that says how often a doubted hold of the account was refuted."""
    return f".{key}~well"


def split_ramp_name(name: str) -> tuple[str, str] | None:
    """Provider and account of a ramp's file name; None when it is none."""
    found = _RAMP.fullmatch(name)
    return None if found is None else (found[1], found[2] or "")


def hold_provider(
    control: Path,
    provider: str,
    *,
    account: str = "",
    reason: str = BY_OPERATOR,
    detail: str | None = None,
    until: float | None = None,
    now: float,
) -> Path:
    """Hold an account by hand, for every worker of the root; without `until` (wall seconds) until it is lifted.

    With one, a single task goes first then, to see. What runs already runs on. Returns the file.
    """
    if _PROVIDER.fullmatch(provider) is None:
        raise SettingError(f"hold {provider!r}: that is no name of a provider; `watcher validate` takes the same names")
    hold = StoredHold(provider, safe_account(account), reason, detail, until, now, waits_for_word=until is None)
    name = f"{key_of(provider, account)}.json"
    folder = Folder(control / HOLDS)
    try:
        replace(folder, name, hold.dump(), f"cli-{secrets.token_hex(6)}", durable=True)
        folder.remove(ramp_name(key_of(provider, account)))
    finally:
        folder.close()
    return control / HOLDS / name


def lift_hold(control: Path, provider: str, account: str = "") -> bool:
    """End a hold, or the ramp after one, at once and for all workers; returns whether the account was held."""
    folder = _opened(control)
    if folder is None:
        return False
    key = key_of(provider, account)
    try:
        folder.remove(ramp_name(key))
        return folder.remove(f"{key}.json")
    finally:
        folder.close()


def list_holds(control: Path) -> list[StoredHold]:
    """Every hold of the root that can be read, by provider and account."""
    folder = _opened(control)
    if folder is None:
        return []
    try:
        found = [read_hold(folder, name) for name in sorted(folder.names()) if split_name(name) is not None]
    finally:
        folder.close()
    return [hold for hold in found if hold is not None]


def read_hold(folder: Folder, name: str) -> StoredHold | None:
    """One hold; None when there is none or it cannot be read: a hold is caution, not data."""
    whose = split_name(name)
    try:
        value = json.loads(folder.read(name, _MAX_BYTES))
        until, since = _moment(value.get("until")), None
        with contextlib.suppress(ValueError, TypeError):
            since = _moment(value.get("since"))
        detail = value.get("detail")
        if whose is None or not isinstance(value["reason"], str):
            return None
        return StoredHold(
            *whose,
            value["reason"][:200],
            detail if isinstance(detail, str) else None,
            until,
            since,
            waits_for_word=value.get("probe") is False and until is None,
            pause_seconds=_pause(value.get("pause_seconds")),
            is_doubted=value.get("doubted") is True,
            task=task if isinstance(task := value.get("task"), str) else "",
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


def read_ramp(folder: Folder, key: str) -> int | None:
    """How many may start at once; None when nothing (readable) says so."""
    return _number(folder, ramp_name(key), "allowed")


def read_well(folder: Folder, key: str) -> int:
    """How often a doubted hold of the account was refuted; 0 when nothing (readable) says so."""
    return _number(folder, well_name(key), "times") or 0


def _number(folder: Folder, name: str, field: str) -> int | None:
    try:
        number = json.loads(folder.read(name, _MAX_BYTES))[field]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return number if type(number) is int and 1 <= number < 10**9 else None


def _pause(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < value < math.inf else None


def _moment(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError("a time is text")
    return parse_rfc3339(value)


def _opened(control: Path) -> Folder | None:
    try:
        return Folder(control / HOLDS, create=False)
    except FileNotFoundError:
        return None
