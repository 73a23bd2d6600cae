"""A model API on loopback without a model: enough of Anthropic's Messages API for a real CLI to finish real turns.

The latest user text steers it by words in double brackets: `[[say TEXT]]` answers that, `[[tool NAME JSON]]` first asks
for one tool call and answers after its result, `[[status N]]` answers with that HTTP error, `[[status N times K]]` only
the first K times that these words are seen. Anything else is answered with `done`. Keeps no header and no key.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_ERRORS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 529: "overloaded_error"}


class StubModel:
    """Serves until `close`; `url` is what ANTHROPIC_BASE_URL wants; `calls` counts the turns it was asked for.

    Before `limited_until` (wall seconds) each turn is refused as a subscription's usage limit is; `refused` counts.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.limited_until = 0
        self.refused = 0
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._json(200, {})

            def do_GET(self) -> None:
                self._json(404, {"type": "error", "error": {"type": "not_found_error", "message": "no such page"}})

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                body = json.loads(raw or b"{}")
                if self.path.partition("?")[0].endswith("count_tokens"):
                    self._json(200, {"input_tokens": 7})
                    return
                if time.time() < stub.limited_until:
                    stub.refused += 1
                    error = {"type": "rate_limit_error", "message": "This request would exceed your account's limit."}
                    self._json(429, {"type": "error", "error": error}, stub.limit_headers())
                    return
                status, content, stop = stub.answer(body)
                if status != 200:
                    kind = _ERRORS.get(status, "api_error")
                    self._json(status, {"type": "error", "error": {"type": kind, "message": f"the stub says {status}"}})
                elif body.get("stream"):
                    self._stream(_events(content, stop, str(body.get("model"))))
                else:
                    self._json(200, _message(content, stop, str(body.get("model"))))

            def _json(self, status: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                for name, text in (headers or {}).items():
                    self.send_header(name, text)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def _stream(self, events: list[dict[str, Any]]) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                self.close_connection = True
                for event in events:
                    self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def limit_headers(self) -> dict[str, str]:
        """What tells a CLI with a login that the limit of its account is reached, and until when."""
        name = "anthropic-ratelimit-unified"
        return {
            f"{name}-status": "rejected",
            f"{name}-reset": str(self.limited_until),
            f"{name}-representative-claim": "five_hour",
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any], str]:
        """(HTTP status, content block, stop reason) for one request."""
        text, has_result = _latest_user(body.get("messages") or [])
        with self._lock:
            self.calls += 1
            wanted = re.findall(r"\[\[(say|tool|status) (.*?)\]\]", text, re.S)
            kind, argument = wanted[-1] if wanted else ("say", "done")
            self._seen[argument] += 1
            seen = self._seen[argument]
        if kind == "status":
            code, _, times = argument.partition(" times ")
            if not times or seen <= int(times):
                return int(code), {}, ""
            return 200, {"type": "text", "text": "done after all"}, "end_turn"
        if kind == "tool" and not has_result and body.get("tools"):
            name, _, arguments = argument.partition(" ")
            block = {"type": "tool_use", "id": f"toolu_{seen:08d}", "name": name, "input": json.loads(arguments)}
            return 200, block, "tool_use"
        return 200, {"type": "text", "text": argument if kind == "say" else "made it"}, "end_turn"


def _latest_user(messages: list[Any]) -> tuple[str, bool]:
    """The texts of the user since the last answer (all of them when it has none), and whether a tool has answered."""
    everything: list[str] = []
    tail: list[str] = []
    has_result = False
    for message in messages:
        if message.get("role") == "assistant":
            tail, has_result = [], False
            continue
        content = message.get("content")
        blocks = content if isinstance(content, list) else [{"type": "text", "text": str(content)}]
        for block in blocks:
            has_result = has_result or block.get("type") == "tool_result"
            tail.append(str(block.get("text", "")))
            everything.append(str(block.get("text", "")))
    text = "\n".join(tail)
    return (text if "[[" in text else "\n".join(everything)), has_result


def _message(content: dict[str, Any], stop: str, model: str) -> dict[str, Any]:
    return {
        "id": "msg_stub",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [content],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": 11, "output_tokens": 5},
    }


def _events(content: dict[str, Any], stop: str, model: str) -> list[dict[str, Any]]:
    start = {**_message(content, stop, model), "content": [], "stop_reason": None}
    if content["type"] == "tool_use":
        empty = {**content, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(content["input"])}
    else:
        empty = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": content["text"]}
    return [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": empty},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
