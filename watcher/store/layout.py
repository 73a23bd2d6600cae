"""The names of files and folders below WATCHER_ROOT. This module owns them; every other module asks it.

The folders of the settings (TASK_DIR, RESULT_DIR, ...) stand in `settings/folders`; docs/protocol.md says who writes
and who reads each file. Names only: no path is looked at here. A name that a release has written stays for ever.
"""

from __future__ import annotations

import re
import secrets
from typing import Final

from watcher.formats.task import WORKER_PATTERN

# --- tasks/<worker>/

CLAIMS: Final = ".claims"
RETRY: Final = ".retry"
HELD: Final = ".held"
REASSIGN: Final = ".reassign"

# --- tasks/<worker>/.claims/

NAME_LOCK: Final = "name.lock"
#: Endings: the lock that lives as long as a process, the one that its commands hold too, and its notes.
LOCK: Final = ".lock"
BUSY: Final = ".busy"
NOTES: Final = ".json"
INCARNATION: Final = re.compile(r"[0-9a-f]{32}")


def instance_lock(instance: str) -> str:
    """The lock that one process of a worker with several holds."""
    return f"instance-{instance}{LOCK}"


# --- results/<worker>/, dlq/<worker>/, triggers/<worker>/

ARCHIVE: Final = ".archive"
TEMPORARY: Final = ".tmp"
OUTPUT: Final = ".output"
ORIGINALS: Final = ".originals"
#: The folder of notices in TRIGGER_DIR, and the listener's name in logs.
NOTICES: Final = "orchestrator"

# --- heartbeats/

HEARTBEAT: Final = re.compile(rf"({WORKER_PATTERN})(?:@([A-Za-z0-9][A-Za-z0-9._-]{{0,63}}))?\.json")


def heartbeat(worker: str, instance: str | None) -> str:
    """The heartbeat of one process of a worker."""
    return f"{worker}@{instance}.json" if instance else f"{worker}.json"


# --- control/ and control/<worker>/

HOLDS: Final = "holds"
PAUSED: Final = "paused.json"
BREAKERS: Final = "breakers.json"
REFUSED: Final = ".refused"
SPENDING: Final = re.compile(r"spend-(\d{8})\.jsonl")
#: What a worker itself keeps among its commands.
NO_COMMAND: Final = re.compile(re.escape(PAUSED) + "|" + re.escape(BREAKERS) + r"|budget-.*\.json|spend-.*\.jsonl")


def spending(day: str) -> str:
    """What a worker spent on this day, YYYYMMDD."""
    return f"spend-{day}.jsonl"


def budget(day: str) -> str:
    """By how much the budget of this day was raised."""
    return f"budget-{day}.json"


# --- STATE_DIR

LISTENER_LOCK: Final = ".listener.lock"
LISTENER_STATUS: Final = "listener.json"
LISTENER_DATABASE: Final = "orchestrator.db"
WEBHOOK_DATABASE: Final = "webhook.db"

# --- hidden files of writers that are not done

#: Those of tools, also by the names of earlier versions. What has an incarnation in its name goes with the incarnation.
ABANDONED: Final = re.compile(
    r"\.(?:submit-|webhook-|reassign-)?[0-9a-f]{16}\.tmp|\..+\.(?:cli-[0-9a-f]{12}|[0-9a-f]{16})\.tmp"
)


def hidden_put() -> str:
    """A fresh name for a file that is renamed into view when its contents are durable."""
    return f".submit-{secrets.token_hex(8)}.tmp"


def is_hidden_of(name: str, incarnation: str) -> bool:
    """Whether an incarnation has not finished writing this file."""
    return name.endswith((f".{incarnation}", f".{incarnation}.tmp"))


def probe(incarnation: str) -> str:
    """An empty file with which a worker tries each rename once."""
    return f".probe-{incarnation}"
