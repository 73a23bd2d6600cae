"""Find the facts of a failure in what an ACP agent says of it, as signs for the rules of `judging`.

The protocol has one code for a missing login and none for anything else, so each agent has its own way: the HTTP status
as the code (gemini), `data.errorKind` (claude-agent-acp), `data.codexErrorInfo` or a line of text (codex-acp), what the
API answered, as JSON. All were seen from gemini 0.61.0, claude-agent-acp 0.101.0 and codex-acp 2.6.0.

Only give it what the agent's program says of itself, never what its model says. Pure; it never raises.
"""

from __future__ import annotations

import json
import re
from typing import Any

from watcher.runner.providers.output_events import Reading
from watcher.runner.warm.jsonrpc import RpcError

_PREFIX = "Internal error: "
#: How the words of a program begin that tell of a failed call of its API.
_STATUS = re.compile(
    r"^(?:[Ee]rror: )?(?:Failed to authenticate\. )?(?:"
    r"\[?API Error: (?:Request rejected \()?|exceeded retry limit, last status: |unexpected status "
    r"|HTTP (?:error |status )?"
    r"|(?=\d{3} (?:\{|status code|Too Many|Bad Request|Unauthorized|Forbidden|Payment|Not Found|Internal|Bad Gateway"
    r"|Service|Gateway))"
    r")(?P<status>[45]\d\d)\b",
)


def fault_of(error: RpcError) -> Reading:
    """What an error that answers a request says."""
    reading = fault_in(error.message)
    signs = {"told": "error"}
    if 400 <= error.code < 600:
        signs["status"] = str(error.code)
    reading.signs |= signs | _signs_of_data(error.data)
    reading.message = reading.message or f"error {error.code}"
    return reading


def fault_in(text: str) -> Reading:
    """What a failure says in words; its message is for people."""
    said = text.strip().removeprefix(_PREFIX)
    reading = Reading(is_finished=True, is_error=True, message=said, signs={"told": "turn"})
    status = _STATUS.match(said)
    if status is not None:
        reading.signs["status"] = status["status"]
    answered = _object(said[said.find("{") :]) if "{" in said[:20] else {}
    told = answered.get("error")
    if isinstance(told, dict):
        reading.signs |= _signs_of_api(told)
        reading.message = told["message"] if isinstance(told.get("message"), str) else said
    return reading


def is_fault(text: str) -> bool:
    """Whether it begins with an HTTP status, or is what an API answers to a call that it refuses."""
    return len(fault_in(text).signs) > 1  # one is there always


def _signs_of_api(error: dict[str, Any]) -> dict[str, str]:
    """What an API answered: Anthropic, OpenAI and Google each have a code, a type or both."""
    out = {}
    code, kind = error.get("code"), error.get("type")
    if isinstance(code, int) and 400 <= code < 600:
        out["status"] = str(code)
    if isinstance(kind, str):
        out["error"] = kind.removesuffix("_error")
    if isinstance(code, str):
        out["code"] = code
    return out or {"error": "api"}


def _signs_of_data(data: Any) -> dict[str, str]:
    out: dict[str, str] = {}
    if not isinstance(data, dict):
        return out
    kind, info = data.get("errorKind"), data.get("codexErrorInfo")
    if isinstance(kind, str) and kind != "unknown":
        out["error"] = kind
    if isinstance(info, str):
        out["error"] = info
    status = status_of_codex(info)
    for name in ("status", "statusCode", "httpStatusCode"):
        status = status or _as_status(data.get(name))
    return out if status is None else out | {"status": status}


def status_of_codex(info: Any) -> str | None:
    """The HTTP status in codex's `codexErrorInfo`, as `{"responseStreamDisconnected": {"httpStatusCode": 402}}`."""
    parts = info.values() if isinstance(info, dict) else ()
    found = (_as_status(part.get("httpStatusCode")) for part in parts if isinstance(part, dict))
    return next(filter(None, found), None)


def _as_status(value: Any) -> str | None:
    return str(value) if isinstance(value, int) and 400 <= value < 600 else None


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
