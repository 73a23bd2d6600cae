"""Talk to an agent by the Agent Client Protocol (https://agentclientprotocol.com): a new session for each task.

One message a line, JSON-RPC 2.0, in both directions: the agent asks us too, with numbers of its own, so what has a
method is a question whatever its number. Each permission is granted, as elsewhere agents are told not to ask; files and
terminals are not offered, so every other question is answered with "method not found". Notices are offered: warnings of
the agent's own program then come apart from what its model says.

Some agents say things before their task has come, and some end a turn before all of it is on its way: both are listened
for, a moment longer than it is quiet. An answer to anything but the open question, a line that is no message, silence
beyond the deadline: the conversation is over, and its process must be ended, so a late answer cannot be taken for the
next task's. Raises WireBroken.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from watcher import __version__
from watcher.formats import strict_json
from watcher.runner.acp.turn import Heard, Turn
from watcher.runner.providers.output_events import name
from watcher.runner.warm.handler_process import Start, WarmProcess
from watcher.runner.warm.jsonrpc import METHOD_NOT_FOUND, BadAnswer, RpcError, parse_line
from watcher.runner.warm.pipes import WireBroken

#: The code of "log in first", in the protocol.
AUTH_REQUIRED = -32000
_VERSION = 1
_SHOWN = 200
#: What is kept of an answer: more cannot be a result, and would be held in memory.
_MOST_CHARACTERS = 64 << 20
#: A turn is over when nothing has come for so long after its end; longer when there is no answer, or a tool still runs.
_QUIET_SECONDS = 0.2
_PATIENCE_SECONDS = 2.0
#: Whoever goes on talking is not listened to for longer than this.
_LATE_SECONDS = 5.0
#: An agent that takes longer to forget a session is taken for dead, and another one is started.
_CLOSE_SECONDS = 10.0
#: An agent that has never spoken before its task is believed not to, after its first session.
_AT_ONCE_SECONDS = 0.001
#: Agents of these names number the messages of their model, and nothing else.
_NUMBERING = ("codex-acp", "claude-agent-acp")


class AcpProcess:
    """An agent process. Used by one thread at a time; only `process.abort` may be called by any."""

    def __init__(self, start: Start, mark: str, now: float) -> None:
        """Start it; `initialize` comes next. Raises OSError."""
        self.process = WarmProcess(start, mark, now)
        self.process.wire.also_drain(self.process.tail)
        self.heard = Heard()
        self.is_over = False
        #: Its ways to log in.
        self.methods: tuple[str, ...] = ()
        self._closes = False
        self._numbers = False
        self._speaks_first = True

    def initialize(self, deadline: float) -> RpcError | None:
        """The first words. Returns the error if it answers with one."""
        capabilities = {
            "fs": {"readTextFile": False, "writeTextFile": False},
            "terminal": False,
            "session": {"notices": {}},
        }
        client = {"name": "watcher", "version": __version__}
        params = {"protocolVersion": _VERSION, "clientCapabilities": capabilities, "clientInfo": client}
        answer = self._call("initialize", params, deadline)
        if isinstance(answer, RpcError):
            return answer
        if answer.get("protocolVersion") != _VERSION:
            raise WireBroken("bad_answer", f"it speaks version {answer.get('protocolVersion')!r}, we speak {_VERSION}")
        methods = answer.get("authMethods")
        found = [name(one.get("id")) for one in methods if isinstance(one, dict)] if isinstance(methods, list) else []
        self.methods = tuple(filter(None, found))
        can = answer.get("agentCapabilities")
        of_sessions = can.get("sessionCapabilities") if isinstance(can, dict) else None
        self._closes = isinstance(of_sessions, dict) and of_sessions.get("close") is not None
        info = answer.get("agentInfo")
        self._numbers = isinstance(info, dict) and str(info.get("name")).endswith(_NUMBERING)
        return None

    def authenticate(self, method: str, deadline: float) -> RpcError | None:
        """Have it log in by one of its ways. Returns the error if it refuses, or does not come to an end."""
        try:
            answer = self._call("authenticate", {"methodId": method}, deadline)
        except WireBroken as broken:
            if broken.reason != "timeout":
                raise
            self.is_over = True
            return RpcError(AUTH_REQUIRED, f"its login by {method!r} did not end; name one that needs no person")
        return RpcError(AUTH_REQUIRED, f"{method}: {answer.message}") if isinstance(answer, RpcError) else None

    def open(self, cwd: str, deadline: float) -> RpcError | None:
        """Begin a session that knows nothing of any other. The one before is closed: some agents keep a process of
        200 MB for each."""
        before, self.heard = self.heard.session, Heard()
        if before and self._closes:
            self._close(before, deadline)
        answer = self._call("session/new", {"cwd": cwd, "mcpServers": []}, deadline)
        if isinstance(answer, RpcError):
            return answer
        session = answer.get("sessionId")
        if not isinstance(session, str) or not session:
            raise WireBroken("bad_answer", "its new session has no sessionId")
        self.heard = Heard(session, self._numbers)
        quiet = _QUIET_SECONDS if self._speaks_first else _AT_ONCE_SECONDS
        self._listen(lambda: quiet, deadline)
        self._speaks_first = self.heard.has_spoken_first()
        return None

    def prompt(self, text: str, deadline: float) -> Turn | RpcError:
        """Have the task done in the session that is open."""
        self.process.requests += 1
        heard = self.heard
        heard.is_asked = True
        params = {"sessionId": heard.session, "prompt": [{"type": "text", "text": text}]}
        answer = self._call("session/prompt", params, deadline)
        if isinstance(answer, RpcError):
            return answer
        try:
            self._listen(lambda: _QUIET_SECONDS if heard.is_whole() else _PATIENCE_SECONDS, deadline)
        except WireBroken:  # the turn had ended by then, so it counts
            self.is_over = True
        self._numbers = heard.numbers
        return heard.turn(answer, text)

    def cancel(self) -> None:
        """Tell it that the task is to end; it is ended next, so this only lets it tidy up."""
        if self.heard.session:
            params = {"sessionId": self.heard.session}
            line = strict_json.dumps({"jsonrpc": "2.0", "method": "session/cancel", "params": params})
            with contextlib.suppress(WireBroken):
                self.process.wire.send(line, time.monotonic())
        self.process.wire.close_stdin()

    def _call(self, method: str, params: dict[str, Any], deadline: float) -> dict[str, Any] | RpcError:
        number = self.process.ask(method, params, deadline)
        while True:
            message = _message(self.process.wire.receive(deadline))
            if message is None:
                continue
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

    def _close(self, session: str, deadline: float) -> None:
        try:
            self._call("session/close", {"sessionId": session}, min(deadline, time.monotonic() + _CLOSE_SECONDS))
        except WireBroken as broken:
            if broken.reason != "timeout":
                raise
            raise WireBroken("handler_crashed", "it did not close its session in time") from None

    def _listen(self, quiet: Callable[[], float], deadline: float) -> None:
        """Hear what comes until nothing of this session has come for so long."""
        last = time.monotonic()
        until = min(deadline, last + _LATE_SECONDS)
        while time.monotonic() < until:
            try:
                message = _message(self.process.wire.receive(min(until, last + quiet())))
            except WireBroken as broken:
                if broken.reason == "timeout":
                    return
                raise
            if message is None:
                continue
            if "method" not in message:
                raise WireBroken("bad_answer", f"an answer to {message.get('id')!r:.60}, which is not open")
            if self._asked(message, deadline):
                last = time.monotonic()

    def _asked(self, message: dict[str, Any], deadline: float) -> bool:
        """A question, or news if it has no number. Returns whether it is of the session that is open."""
        params = message.get("params")
        params = params if isinstance(params, dict) else {}
        method = message["method"]
        if "id" not in message:
            if method != "session/update" or params.get("sessionId") != self.heard.session:
                return False
            self.heard.learn(params.get("update"))
            if self.heard.characters > _MOST_CHARACTERS:
                raise WireBroken("answer_too_long", f"it has said more than {_MOST_CHARACTERS} characters")
            return True
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        if method == "session/request_permission":
            answer["result"] = {"outcome": _granted(params.get("options"))}
        else:
            answer["error"] = {"code": METHOD_NOT_FOUND, "message": f"not offered here: {method}"[:_SHOWN]}
        self.process.wire.send(strict_json.dumps(answer), deadline)
        return True


def _granted(options: Any) -> dict[str, str]:
    """The option that allows it, once rather than always; without any we cannot agree."""
    found: dict[object, str] = {}
    for option in options if isinstance(options, list) else []:
        if isinstance(option, dict) and isinstance(option.get("optionId"), str):
            found.setdefault(option.get("kind"), option["optionId"])
    chosen = found.get("allow_once", found.get("allow_always"))
    return {"outcome": "cancelled"} if chosen is None else {"outcome": "selected", "optionId": chosen}


def _message(line: bytes) -> dict[str, Any] | None:
    """What stands in a line; None for an empty one."""
    try:
        found = parse_line(line)
    except BadAnswer as bad:
        raise WireBroken("bad_answer", str(bad)) from None
    if found is None:
        return None
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
    return RpcError(error["code"], ": ".join(dict.fromkeys(said)), data)
