"""A model API on loopback without a model: enough of four APIs for real CLIs to finish real turns (see `stub_wires`).

The latest user text steers it by words in double brackets:

    [[say TEXT]]            answer that                    [[tool NAME JSON]]  ask for one tool call, then answer
    [[hang]]                take the request, never answer  [[cut]]             break off in the middle of the stream
    [[ends WORD TEXT]]      answer TEXT, with the API's own WORD for why it ended (max_tokens, length, MAX_TOKENS, ...)
    [[status N]]            answer with that HTTP error; more words may follow, in this order:
                            `times K` only the first K times, `reset EPOCH` as a usage limit that ends then,
                            `kind WORD` the API's own word for the error, `saying TEXT` its message

Anything else is answered with `done`. `always` gives the words for every request instead. Keeps no header and no key.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.stub_wires import Error, Gemini, Json, Reply, Wire, smallest, wire_of

_ORDER = re.compile(r"\[\[(say|tool|ends|status|hang|cut)\b ?(.*?)\]\](?!\])", re.S)
_STATUS = re.compile(r"(\d+)(?: times (\d+))?(?: reset (\d+))?(?: kind (\S+))?(?: saying (.*))?", re.S)


class StubModel:
    """Serves until `close`; `url` is the API's address without a path; `calls` counts the turns it was asked for.

    Before `limited_until` (wall seconds) each turn is refused as a subscription's usage limit is; `refused` counts.
    """

    def __init__(self, always: str = "") -> None:
        self.calls = 0
        self.limited_until = 0
        self.refused = 0
        self.always = always
        self.closing = threading.Event()
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.stub = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, body: Json) -> Reply | Error | str:
        """What one request gets: an answer, a refusal, or the word `hang`; `cut` stands before an answer's text."""
        if time.time() < self.limited_until:
            self.refused += 1
            return Error(429, "This request would exceed your account's limit.", reset=self.limited_until)
        text, has_result = _latest_user(body)
        with self._lock:
            self.calls += 1
            wanted = _ORDER.findall(self.always) or _ORDER.findall(text)
            kind, argument = wanted[-1] if wanted else ("say", "done")
            self._seen[argument] += 1
            seen = self._seen[argument]
        if kind == "status":
            return _refusal(argument, seen)
        if kind == "tool":
            name, _, arguments = argument.partition(" ")
            if has_result or not body.get("tools"):
                return Reply("made it")
            return Reply(tool=name, arguments=_loads(arguments), number=seen)
        if kind == "ends":
            word, _, text = argument.partition(" ")
            return Reply(text, ends=word)
        return Reply(argument) if kind == "say" else kind


def _refusal(argument: str, seen: int) -> Reply | Error:
    found = _STATUS.match(argument)
    assert found is not None, argument
    code, times, reset, kind, message = found.groups()
    if times is not None and seen > int(times):
        return Reply("done after all")
    message = message or f"the stub says {code}"
    return Error(int(code), message, kind or "", None if reset is None else int(reset))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    stub: StubModel

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed in the middle of a turn is what tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._json(200, {})

    def do_GET(self) -> None:
        if self.headers.get("upgrade"):  # codex tries a websocket first
            self._json(426, {"error": {"message": "no websocket here"}})
        elif self.path.partition("?")[0].endswith("/models"):
            self._json(200, {"object": "list", "data": [], "models": []})
        else:
            self._json(404, {"type": "error", "error": {"type": "not_found_error", "message": "no such page"}})

    def do_POST(self) -> None:
        body = _loads(self._body() or b"{}")
        path = self.path.partition("?")[0]
        wire = wire_of(path)
        if wire is None:
            self._json(200 if "ount" in path else 404, {"input_tokens": 7, "totalTokens": 7})
            return
        if path.startswith("/v1beta/models/"):
            body["model"] = path.rpartition("/")[2].partition(":")[0]
        self._answer(wire, body, "stream" in path or bool(body.get("stream")))

    def _answer(self, wire: Wire, body: Json, streams: bool) -> None:
        model = str(body.get("model"))
        given = self.server.stub.answer(body)
        settings = body.get("generationConfig") or {}
        schema = settings.get("responseJsonSchema") or settings.get("responseSchema")
        if given == "hang":
            self.server.stub.closing.wait(600)
        elif isinstance(given, Error):
            content, headers = wire.error(given)
            self._json(given.status, content, headers)
        elif schema and isinstance(wire, Gemini):
            self._json(200, wire.whole(Reply(json.dumps(smallest(schema))), model))
        else:
            reply = given if isinstance(given, Reply) else Reply("this is cut off before its end")
            if streams:
                self._stream(wire, wire.stream(reply, model), is_cut=given == "cut")
            else:
                self._json(200, wire.whole(reply, model), is_cut=given == "cut")

    def _json(self, status: int, value: Json, headers: dict[str, str] | None = None, is_cut: bool = False) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if is_cut else data)
        self.close_connection = self.close_connection or is_cut

    def _stream(self, wire: Wire, events: list[Json], is_cut: bool) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        for event in events[: len(events) // 2] if is_cut else events:
            head = f"event: {event['type']}\n" if wire.named else ""
            self.wfile.write(f"{head}data: {json.dumps(event)}\n\n".encode())
        if wire.done and not is_cut:
            self.wfile.write(b"data: [DONE]\n\n")

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        out = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            out += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return out


def _loads(raw: bytes | str) -> Json:
    value = json.loads(raw)
    assert isinstance(value, dict)
    return value


def _latest_user(body: Json) -> tuple[str, bool]:
    """The texts of the user since the last answer (all of them when it has none), and whether a tool has answered."""
    turns = body.get("messages") or body.get("input") or body.get("contents") or []
    everything: list[str] = []
    tail: list[str] = []
    has_result = False
    for turn in turns if isinstance(turns, list) else [{"role": "user", "content": turns}]:
        if turn.get("role") in ("assistant", "model") or turn.get("type") in ("function_call", "reasoning"):
            tail, has_result = [], False
        elif turn.get("role") not in ("system", "developer"):
            has_result = has_result or _is_tool_result(turn)
            found = _texts(turn)
            tail += found
            everything += found
    text = "\n".join(tail)
    return (text if "[[" in text else "\n".join(everything)), has_result


def _is_tool_result(turn: Json) -> bool:
    if turn.get("role") == "tool" or turn.get("type") == "function_call_output":
        return True
    blocks = turn.get("content") or turn.get("parts")
    found = [block for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []
    return any(block.get("type") == "tool_result" or "functionResponse" in block for block in found)


def _texts(node: Any) -> list[str]:
    """Every text of a turn, however deep its API puts it."""
    if isinstance(node, str):
        return [node]
    if isinstance(node, list):
        return [text for member in node for text in _texts(member)]
    if isinstance(node, dict):
        return [text for name in ("text", "content", "parts", "output") for text in _texts(node.get(name))]
    return []
