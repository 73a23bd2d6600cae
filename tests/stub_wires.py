"""How four model APIs write one answer: Anthropic Messages, OpenAI Responses and Chat Completions, Gemini.

Each wire turns a Reply into the events of its stream, and an Error into its status, headers and body. Enough of each
for claude, codex, opencode, qwen and gemini to finish real turns and to meet real failures; nothing more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
INPUT_TOKENS, OUTPUT_TOKENS = 11, 5
_ANTHROPIC_KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 429: "rate_limit_error", 529: "overloaded_error",
}  # fmt: skip
_GOOGLE_STATES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE",
}  # fmt: skip


@dataclass(slots=True)
class Reply:
    """One answer of the model: a text, or one tool call (`tool`, `arguments`). `ends` is the API's own word for why it
    ended, when that is another than usual."""

    text: str = ""
    tool: str = ""
    arguments: Json | None = None
    number: int = 0
    ends: str = ""


@dataclass(slots=True)
class Error:
    """One refusal. `reset` is when a usage limit ends (epoch seconds); `kind` is the API's own word for the error."""

    status: int
    message: str
    kind: str = ""
    reset: int | None = None


class Anthropic:
    """POST /v1/messages"""

    named = True
    done = False

    def error(self, error: Error) -> tuple[Json, dict[str, str]]:
        kind = error.kind or _ANTHROPIC_KINDS.get(error.status, "api_error")
        headers = {}
        if error.reset is not None:
            headers = {
                "anthropic-ratelimit-unified-status": "rejected",
                "anthropic-ratelimit-unified-reset": str(error.reset),
                "anthropic-ratelimit-unified-representative-claim": "five_hour",
            }
        return {"type": "error", "error": {"type": kind, "message": error.message}}, headers

    def whole(self, reply: Reply, model: str) -> Json:
        content: Json = {"type": "text", "text": reply.text}
        if reply.tool:
            block_id = f"toolu_{reply.number:08d}"
            content = {"type": "tool_use", "id": block_id, "name": reply.tool, "input": reply.arguments}
        return {
            "id": "msg_stub",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [content],
            "stop_reason": reply.ends or ("tool_use" if reply.tool else "end_turn"),
            "stop_sequence": None,
            "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS},
        }

    def stream(self, reply: Reply, model: str) -> list[Json]:
        whole = self.whole(reply, model)
        content = whole["content"][0]
        if reply.tool:
            empty = {**content, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(content["input"])}
        else:
            empty = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": content["text"]}
        stop = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
        return [
            {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}},
            {"type": "content_block_start", "index": 0, "content_block": empty},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": stop, "usage": {"output_tokens": OUTPUT_TOKENS}},
            {"type": "message_stop"},
        ]


class _OpenAI:
    def error(self, error: Error) -> tuple[Json, dict[str, str]]:
        body: Json = {"message": error.message, "type": error.kind or "api_error", "code": error.kind or None}
        if error.reset is not None:
            body["resets_at"] = error.reset
        return {"error": body}, {}


class Responses(_OpenAI):
    """POST /v1/responses"""

    named = True
    done = False

    def whole(self, reply: Reply, model: str) -> Json:
        item: Json = {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": reply.text, "annotations": []}],
        }
        if reply.tool:
            item = {
                "type": "function_call",
                "id": "fc_1",
                "call_id": f"call_{reply.number}",
                "name": reply.tool,
                "arguments": json.dumps(reply.arguments),
                "status": "completed",
            }
        return {
            "id": "resp_stub",
            "object": "response",
            "created_at": 1,
            "model": model,
            "status": "incomplete" if reply.ends else "completed",
            "incomplete_details": {"reason": reply.ends} if reply.ends else None,
            "output": [item],
            "usage": {
                "input_tokens": INPUT_TOKENS,
                "input_tokens_details": {"cached_tokens": 3},
                "output_tokens": OUTPUT_TOKENS,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
            },
        }

    def stream(self, reply: Reply, model: str) -> list[Json]:
        whole = self.whole(reply, model)
        item = whole["output"][0]
        begun = {**whole, "output": [], "status": "in_progress"}
        at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
        events = [
            {"type": "response.created", "response": begun},
            {"type": "response.output_item.added", "output_index": 0, "item": {**item, "status": "in_progress"}},
        ]
        if not reply.tool:
            part = {"type": "output_text", "text": "", "annotations": []}
            events += [
                {"type": "response.content_part.added", **at, "part": part},
                {"type": "response.output_text.delta", **at, "delta": reply.text},
                {"type": "response.output_text.done", **at, "text": reply.text},
                {"type": "response.content_part.done", **at, "part": item["content"][0]},
            ]
        events += [
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": f"response.{whole['status']}", "response": whole},
        ]
        return [{**event, "sequence_number": number} for number, event in enumerate(events)]


class Chat(_OpenAI):
    """POST /v1/chat/completions"""

    named = False
    done = True

    def whole(self, reply: Reply, model: str) -> Json:
        message: Json = {"role": "assistant", "content": reply.text or None}
        if reply.tool:
            message["tool_calls"] = [self._call(reply)]
        choice = {"index": 0, "message": message, "finish_reason": self._finish(reply)}
        return {**self._head(model), "object": "chat.completion", "usage": self._usage(), "choices": [choice]}

    def stream(self, reply: Reply, model: str) -> list[Json]:
        delta: Json = {"content": reply.text}
        if reply.tool:
            delta = {"tool_calls": [{"index": 0, **self._call(reply)}]}
        return [
            self._chunk(model, {"role": "assistant", "content": ""}),
            self._chunk(model, delta),
            self._chunk(model, {}, self._finish(reply)),
            {**self._chunk(model, {}), "choices": [], "usage": self._usage()},
        ]

    def _finish(self, reply: Reply) -> str:
        return reply.ends or ("tool_calls" if reply.tool else "stop")

    def _head(self, model: str) -> Json:
        return {"id": "chatcmpl-stub", "created": 1, "model": model}

    def _usage(self) -> Json:
        total = INPUT_TOKENS + OUTPUT_TOKENS
        return {
            "prompt_tokens": INPUT_TOKENS,
            "completion_tokens": OUTPUT_TOKENS,
            "total_tokens": total,
            "prompt_tokens_details": {"cached_tokens": 3},
        }

    def _call(self, reply: Reply) -> Json:
        function = {"name": reply.tool, "arguments": json.dumps(reply.arguments)}
        return {"id": f"call_{reply.number}", "type": "function", "function": function}

    def _chunk(self, model: str, delta: Json, finish: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**self._head(model), "object": "chat.completion.chunk", "choices": [choice]}


class Gemini:
    """POST /v1beta/models/M:generateContent and :streamGenerateContent"""

    named = False
    done = False

    def error(self, error: Error) -> tuple[Json, dict[str, str]]:
        state = _GOOGLE_STATES.get(error.status, "INTERNAL")
        body: Json = {"code": error.status, "message": error.message, "status": state}
        if error.kind:
            kind = "type.googleapis.com/google.rpc."
            violations = [{"quotaId": error.kind}]
            body["details"] = [{"@type": kind + "QuotaFailure", "violations": violations}]
        return {"error": body}, {}

    def whole(self, reply: Reply, model: str) -> Json:
        part: Json = {"text": reply.text}
        if reply.tool:
            part = {"functionCall": {"name": reply.tool, "args": reply.arguments}}
        usage = {
            "promptTokenCount": INPUT_TOKENS,
            "cachedContentTokenCount": 3,
            "candidatesTokenCount": OUTPUT_TOKENS,
            "totalTokenCount": INPUT_TOKENS + OUTPUT_TOKENS,
        }
        candidate = {"content": {"role": "model", "parts": [part]}, "index": 0, "finishReason": reply.ends or "STOP"}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": model, "responseId": "stub"}

    def stream(self, reply: Reply, model: str) -> list[Json]:
        if reply.tool:
            return [self.whole(reply, model)]
        half = len(reply.text) // 2
        first = self.whole(Reply(reply.text[:half]), model)
        del first["candidates"][0]["finishReason"]
        return [first, self.whole(Reply(reply.text[half:], ends=reply.ends), model)]


Wire = Anthropic | Responses | Chat | Gemini


def wire_of(path: str) -> Wire | None:
    """The API that a request path belongs to."""
    if path.endswith("/messages"):
        return Anthropic()
    if path.endswith("/responses"):
        return Responses()
    if path.endswith("/chat/completions"):
        return Chat()
    return Gemini() if path.endswith("enerateContent") else None


def smallest(schema: Json) -> Any:
    """The smallest value that a simple JSON Schema allows: gemini's router wants JSON by one."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = str(schema.get("type", "object")).lower()
    if kind == "object":
        return {name: smallest(member) for name, member in (schema.get("properties") or {}).items()}
    return {"array": [], "number": 0.5, "integer": 1, "boolean": False}.get(kind, "stub")
