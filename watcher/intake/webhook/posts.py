"""Turn a post into a task: its bytes, its id, and how a repetition of the post is recognised.

The id of a task whose sender names its delivery is derived from that name, so that the same delivery is the same task
for ever. It is a hash: nothing that a caller sends becomes part of a path except an id that the format allows. The
bytes hold nothing that differs between two tries of one delivery.

Raises Refusal.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from watcher.errors import InvalidTask
from watcher.formats import strict_json
from watcher.formats.task import ID_PATTERN, WORKER_PATTERN, task_from_fields
from watcher.intake.webhook.access import Refusal
from watcher.intake.webhook.durable_posts import Submission
from watcher.intake.webhook.payload_hooks import Hook, Unmapped
from watcher.store.submitting import new_task_id

KEY_HEADER = "Idempotency-Key"
KEY_PATTERN = r"[!-~](?:[ -~]{0,253}[!-~])?"


def parse(body: bytes) -> Any:
    """The body as strict JSON."""
    try:
        return strict_json.loads(body, is_bounded=True)
    except strict_json.NotStrictJson as error:
        raise Refusal(400, "invalid_json", str(error)) from None


def from_task(fields: Any, key: str | None, max_bytes: int) -> Submission:
    """A post to /tasks: the fields of a task file, `worker` among them. `key`: Idempotency-Key, without one."""
    if not isinstance(fields, dict):
        raise Refusal(422, "invalid_field", 'post one object: {"worker": "...", "description": "..."}')
    worker, task_id = fields.get("worker"), fields.get("task_id")
    if not isinstance(worker, str) or re.fullmatch(WORKER_PATTERN, worker) is None:
        raise Refusal(422, "invalid_field", "worker must name a worker: letters, digits, dot, dash, underscore")
    identity = None
    if task_id is not None:
        if not isinstance(task_id, str) or re.fullmatch(ID_PATTERN, task_id) is None:
            raise Refusal(422, "invalid_field", "task_id: use letters, digits, dot, dash, underscore, at most 128")
        identity = f"task:{worker}/{task_id}"
    elif key is not None:
        if re.fullmatch(KEY_PATTERN, key) is None:
            raise Refusal(422, "invalid_key", f"{KEY_HEADER} must be 1 to 255 printable ASCII characters")
        identity = f"key:{key}"
        task_id = _derived("key", identity)
    return _submission(worker, task_id or new_task_id(), fields, identity, None, max_bytes)


def from_hook(hook: Hook, payload: Any, body: bytes, headers: Mapping[str, str], max_bytes: int) -> Submission:
    """A post to /webhook/<hook>, of which `Hook.ignores` has said that it makes a task."""
    try:
        fields = hook.task(payload)
        delivery = hook.delivery(payload, headers)
    except Unmapped as error:
        raise Refusal(422, "payload_lacks_field", str(error)) from None
    identity = None if delivery is None else f"hook:{hook.name}:{delivery}"
    task_id = new_task_id() if identity is None else _derived(hook.name, identity)
    return _submission(hook.worker, task_id, fields, identity, body, max_bytes)


def _submission(
    worker: str, task_id: str, fields: dict[str, Any], identity: str | None, body: bytes | None, max_bytes: int
) -> Submission:
    try:
        data = strict_json.dumps({**fields, "task_id": task_id, "worker": worker}, errors="strict")
        task_from_fields(strict_json.loads(data), task_id, worker)
    except InvalidTask as error:
        raise Refusal(422, error.reason, error.detail) from None
    except ValueError as error:
        raise Refusal(422, "invalid_field", str(error)) from None
    if len(data) > max_bytes:
        raise Refusal(413, "task_too_large", f"the task has {len(data)} bytes, at most {max_bytes} are taken")
    return Submission(worker, task_id, data, identity, hashlib.sha256(data if body is None else body).digest())


def _derived(prefix: str, identity: str) -> str:
    return f"{prefix}-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
