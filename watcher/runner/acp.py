"""Talk to an agent by the Agent Client Protocol (https://agentclientprotocol.com): a new session for each task.

One message a line, JSON-RPC 2.0, in both directions: the agent asks us too, with numbers of its own, so what has a
method is a question whatever its number. Each permission is granted, as elsewhere agents are told not to ask; files and
terminals are not offered, so every other question is answered with "method not found".

An answer to anything but the open question, a line that is no message, silence beyond the deadline: the conversation is
over, and its process must be ended, so a late answer cannot be taken for the next task's. Raises WireBroken.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

from watcher import __version__
from watcher.formats import strictjson
from watcher.runner.jsonrpc import METHOD_NOT_FOUND, RpcError
from watcher.runner.warm import Start, WarmProcess
from watcher.runner.wire import WireBroken

#: The code of "log in first", in the protocol.
AUTH_REQUIRED = -32000
_VERSION = 1
_SHOWN = 200
#: What is kept of an answer: more cannot be a result, and would be held in memory.
_MOST_CHARACTERS = 64 << 20


@dataclass(slots=True)
class Turn:
    """What one task came to. `answer` is what the agent said after its last tool call, or else before it."""

    stop_reason: str
    answer: str
    has_acted: bool
    session: str


@dataclass(slots=True)
class _Heard:
    """What has come of the session that is open."""

    session: str = ""
    parts: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    characters: int = 0
    has_acted: bool = False

    def text(self) -> str:
        return "".join(self.parts) if "".join(self.parts).strip() else "".join(self.before)


class AcpProcess:
    """An agent process. Used by one thread at a time; only `process.abort` may be called by any."""

    def __init__(self, start: Start, mark: str, now: float) -> None:
        """Start it; `initialize` comes next. Raises OSError."""
        self.process = WarmProcess(start, mark, now)
        self.process.wire.also_drain(self.process.tail)
        self._heard = _Heard()

    def initialize(self, deadline: float) -> RpcError | None:
        """The first words. Returns the error if it answers with one."""
        capabilities = {"fs": {"readTextFile": False, "writeTextFile": False}, "terminal": False}
        client = {"name": "watcher", "version": __version__}
        params = {"protocolVersion": _VERSION, "clientCapabilities": capabilities, "clientInfo": client}
        answer = self._call("initialize", params, deadline)
        if isinstance(answer, RpcError):
            return answer
        if answer.get("protocolVersion") != _VERSION:
            raise WireBroken("bad_answer", f"it speaks version {answer.get('protocolVersion')!r}, we speak {_VERSION}")
        return None

    def open(self, cwd: str, deadline: float) -> RpcError | None:
        """Begin a session that knows nothing of any other."""
        self._heard = _Heard()
        answer = self._call("session/new", {"cwd": cwd, "mcpServers": []}, deadline)
        if isinstance(answer, RpcError):
            return answer
        session = answer.get("sessionId")
        if not isinstance(session, str) or not session:
            raise WireBroken("bad_answer", "its new session has no sessionId")
        self._heard.session = session
        return None

    def prompt(self, text: str, deadline: float) -> Turn | RpcError:
        """Have the task done in the session that is open."""
        self.process.requests += 1
        heard = self._heard
        params = {"sessionId": heard.session, "prompt": [{"type": "text", "text": text}]}
        answer = self._call("session/prompt", params, deadline)
        if isinstance(answer, RpcError):
            return answer
        return Turn(str(answer.get("stopReason")), heard.text(), heard.has_acted, heard.session)

    def cancel(self) -> None:
        """Tell it that the task is to end; it is ended next, so this only lets it tidy up."""
        if self._heard.session:
            params = {"sessionId": self._heard.session}
            line = strictjson.dumps({"jsonrpc": "2.0", "method": "session/cancel", "params": params})
            with contextlib.suppress(WireBroken):
                self.process.wire.send(line, time.monotonic())
        self.process.wire.close_stdin()

    def _call(self, method: str, params: dict[str, Any], deadline: float) -> dict[str, Any] | RpcError:
        number = self.process.ask(method, params, deadline)
        while True:
            message = _message(self.process.wire.receive(deadline))
            if "method" in message:
                self._asked(message, deadline)
                continue
            if message.get("id") != number or isinstance(message.get("id"), bool):
                raise WireBroken("bad_answer", f"an answer to {message.get('id')!r:.60}, which is not open")
            error = message.get("error")
            if error is not None:
                return _error(error)
            result = message.get("result")
            if result is not None and not isinstance(result, dict):
                raise WireBroken("bad_answer", f"the result of {method} is no object")
            return result or {}

    def _asked(self, message: dict[str, Any], deadline: float) -> None:
        """A question, or news if it has no number."""
        params = message.get("params")
        params = params if isinstance(params, dict) else {}
        method = message["method"]
        if "id" not in message:
            if method == "session/update" and params.get("sessionId") == self._heard.session:
                self._learn(params.get("update"))
            return
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        if method == "session/request_permission":
            answer["result"] = {"outcome": _granted(params.get("options"))}
        else:
            answer["error"] = {"code": METHOD_NOT_FOUND, "message": f"not offered here: {method}"[:_SHOWN]}
        self.process.wire.send(strictjson.dumps(answer), deadline)

    def _learn(self, update: Any) -> None:
        heard = self._heard
        kind = update.get("sessionUpdate") if isinstance(update, dict) else None
        if kind == "tool_call":
            heard.has_acted = True
            heard.before, heard.parts = heard.parts or heard.before, []
        elif kind == "agent_message_chunk":
            content = update.get("content")
            text = content.get("text") if isinstance(content, dict) else None
            if isinstance(text, str):
                heard.parts.append(text)
                heard.characters += len(text)
                if heard.characters > _MOST_CHARACTERS:
                    raise WireBroken("answer_too_long", f"it has said more than {_MOST_CHARACTERS} characters")


def _granted(options: Any) -> dict[str, str]:
    """The option that allows it, once rather than always; without any we cannot agree."""
    found: dict[object, str] = {}
    for option in options if isinstance(options, list) else []:
        if isinstance(option, dict) and isinstance(option.get("optionId"), str):
            found.setdefault(option.get("kind"), option["optionId"])
    chosen = found.get("allow_once", found.get("allow_always"))
    return {"outcome": "cancelled"} if chosen is None else {"outcome": "selected", "optionId": chosen}


def _message(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("method", ""), str):
        shown = line[:_SHOWN].decode("utf-8", "replace").strip()
        raise WireBroken("bad_answer", f"a line that is no message of JSON-RPC: {shown!r}")
    return found


def _error(error: Any) -> RpcError:
    if not isinstance(error, dict) or not isinstance(error.get("code"), int):
        raise WireBroken("bad_answer", "an error without a code")
    data = error.get("data")
    more = data.get("details") or data.get("message") if isinstance(data, dict) else data
    said = [str(part) for part in (error.get("message"), more) if isinstance(part, str) and part]
    return RpcError(error["code"], ": ".join(dict.fromkeys(said)))
