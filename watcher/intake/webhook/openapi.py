"""Write the OpenAPI description of the HTTP endpoint from the records that check what is posted, and a page of it.

The page is plain HTML made here: it needs no script and nothing from another server, so it works where there is no way
out. OpenAPI 3.1 takes JSON Schema as it is (https://spec.openapis.org/oas/v3.1.0).
"""

from __future__ import annotations

import html
from typing import Any

from watcher import __version__
from watcher.formats import result, task
from watcher.intake.webhook.posts import KEY_PATTERN
from watcher.intake.webhook.queries import MAX_STREAM_SECONDS, MAX_WAIT_SECONDS

Json = dict[str, Any]

_ID = {"type": "string", "pattern": f"^{task.ID_PATTERN}$", "maxLength": 128}
_WORKER = {"type": "string", "pattern": f"^{task.WORKER_PATTERN}$", "maxLength": 64}
_COUNT = {"type": "integer", "minimum": 0}
#: Strict JSON has no NUL in any string, at any depth (`formats.strict_json`).
_NO_NUL = "^[^\\u0000]*$"
_STRICT = {"$ref": "#/components/schemas/StrictJson"}

_WORDS = {
    400: "The request or its JSON cannot be read.",
    401: "The token or the signature is missing or wrong.",
    403: "Refused: no token is set and Host is not the loopback, or a page of another site sent the request.",
    404: "Not found; `reason` says what: unknown_task, unknown_worker, unknown_hook, no_result.",
    405: "This path does not take this method.",
    408: "The request came too slowly.",
    409: "The id is that of another task, or several workers have a task of this id.",
    413: "The body, or the task made of it, is larger than MAX_TASK_BYTES.",
    415: "The body is not application/json.",
    422: "The body is not a valid task, or a parameter is out of range; `detail` says which.",
    429: "Too many tasks wait for this worker; Retry-After says when to try again.",
    503: "Too many requests, or the machine cannot store tasks now. Nothing was accepted; Retry-After: when to retry.",
}
_ALWAYS = (400, 401, 403, 408, 503)


def openapi(workers: tuple[str, ...]) -> Json:
    """The whole description; `workers` are those that may be given tasks, when the settings name them."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Watcher webhook",
            "version": __version__,
            "description": "Give tasks to agents over HTTP. 202 means that the task is durable in its inbox.",
        },
        "paths": {
            "/tasks": {"post": _post_task()},
            "/webhook/{hook}": {"post": _post_hook()},
            "/tasks/{task_id}": {"get": _get_task()},
            "/results/{task_id}": {"get": _get_result()},
            "/workers": {"get": _get_workers()},
            "/events": {"get": _get_events()},
            "/healthz": {"get": _get_health()},
        },
        "components": {
            "schemas": {
                "Task": _task(workers),
                "StrictJson": _strict_json(),
                "StrictObject": _strict_object(),
                "Accepted": _accepted(),
                "State": _state(),
                "Result": _without_marker(result.schema()),
                "Workers": _workers(),
                "Problem": _problem(),
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A token of WEBHOOK_TOKEN or its file."},
                "signature": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-Hub-Signature-256",
                    "description": "`sha256=` and the HMAC-SHA256 of the raw body, with a token or the hook's secret.",
                },
            },
        },
        "security": [{"bearer": []}, {"signature": []}, {}],
    }


def _post_task() -> Json:
    key = {"type": "string", "pattern": f"^{KEY_PATTERN}$"}
    return {
        "operationId": "postTask",
        "summary": "Submit a task",
        "description": "The body is a task as in a task file, with its worker. The same task_id, or the same "
        "Idempotency-Key, with the same content is the same task: it is answered 200 and not run again.",
        "parameters": [_parameter("Idempotency-Key", "header", key, "names this task instead of a task_id")],
        "requestBody": _body({"$ref": "#/components/schemas/Task"}),
        "responses": _accepted_responses(),
    }


def _post_hook() -> Json:
    hook = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"}
    responses = _accepted_responses()
    ignored = _object(status={"const": "ignored"}, detail={"type": "string"})
    responses["200"]["content"]["application/json"]["schema"] = {
        "anyOf": [{"$ref": "#/components/schemas/Accepted"}, ignored]
    }
    responses["200"]["description"] += " Or the hook is not for such payloads."
    return {
        "operationId": "postHook",
        "summary": "Submit a payload that a hook turns into a task",
        "description": "WEBHOOK_HOOKS_FILE says how. X-GitHub-Delivery, Idempotency-Key or Webhook-Id names it.",
        "parameters": [_parameter("hook", "path", hook, "the name of the hook")],
        "requestBody": _body({}),
        "responses": responses,
    }


def _get_task() -> Json:
    return {
        "operationId": "getTask",
        "summary": "Get the state of a task",
        "parameters": [_parameter("task_id", "path", _ID, "its id"), _worker_parameter()],
        "responses": _responses({200: ("Where it is.", "State")}, 404, 409, 422),
    }


def _get_result() -> Json:
    wait = {"type": "number", "minimum": 0, "maximum": MAX_WAIT_SECONDS, "multipleOf": 0.5}
    return {
        "operationId": "getResult",
        "summary": "Get the result of a task",
        "parameters": [
            _parameter("task_id", "path", _ID, "its id"),
            _worker_parameter(),
            _parameter("wait", "query", wait, "seconds to wait for the result"),
        ],
        "responses": _responses(
            {200: ("The result.", "Result"), 202: ("There is no result yet.", "State")}, 404, 409, 422
        ),
    }


def _get_workers() -> Json:
    return {
        "operationId": "getWorkers",
        "summary": "List workers with their counts",
        "responses": _responses({200: ("At most one second old.", "Workers")}),
    }


def _get_events() -> Json:
    wait = {"type": "number", "minimum": 0, "maximum": MAX_STREAM_SECONDS, "multipleOf": 0.5}
    responses = _responses({}, 404, 422)
    responses["200"] = {
        "description": "Events task.accepted, task.started, task.settled and task.dead_lettered, whose data names "
        "task_id, worker and at (and status); events.missed when some are not known any more.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
    return {
        "operationId": "getEvents",
        "summary": "Stream task events (server-sent events)",
        "parameters": [
            _worker_parameter(),
            _parameter("wait", "query", wait, "seconds after which the stream ends; without it, it does not"),
            _parameter("Last-Event-ID", "header", {"type": "string", "pattern": "^[!-~]+$"}, "go on after this event"),
        ],
        "responses": responses,
    }


def _get_health() -> Json:
    health = {"type": "object", "required": ["status"], "properties": {"status": {"enum": ["ok", "stopping"]}}}
    answer = {"description": "Whether posts are taken.", "content": {"application/json": {"schema": health}}}
    responses = {"200": answer, "503": answer} | {str(s): v for s, v in _responses({}).items() if s in ("400", "408")}
    return {
        "operationId": "getHealth",
        "summary": "Check that the endpoint is up",
        "security": [{}],
        "responses": responses,
    }


# --- pieces


def _accepted_responses() -> Json:
    responses = _responses(
        {202: ("The task is durable in its inbox.", "Accepted"), 200: ("Accepted before.", "Accepted")},
        404, 409, 413, 415, 422, 429,
    )  # fmt: skip
    given = {"task_id": "$response.body#/task_id", "worker": "$response.body#/worker"}
    links = {name: {"operationId": name, "parameters": given} for name in ("getTask", "getResult")}
    responses["202"]["links"] = responses["200"]["links"] = links
    return responses


def _responses(good: dict[int, tuple[str, str]], *more: int) -> Json:
    out: Json = {}
    for status, (text, name) in good.items():
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
        out[str(status)] = {"description": text, "content": content}
    for status in sorted((*_ALWAYS, *more)):
        content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        out[str(status)] = {"description": _WORDS[status], "content": content}
    return out


def _parameter(name: str, place: str, schema: Json, text: str) -> Json:
    return {"name": name, "in": place, "required": place == "path", "schema": schema, "description": text}


def _worker_parameter() -> Json:
    return _parameter("worker", "query", _WORKER, "the worker, when several may have this id")


def _body(schema: Json) -> Json:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _task(workers: tuple[str, ...]) -> Json:
    schema = _without_marker(task.schema())
    schema["required"] = ["worker", "description"]
    properties = dict(schema["properties"])
    properties["worker"] = {"enum": list(workers)} if workers else _WORKER
    # A description of blanks alone is no task. How long it may be is MAX_TASK_BYTES' matter, for the task as a whole.
    blank_or_not = "[^\\u0000]*"
    pattern = f"^{blank_or_not}[^\\s\\u0000]{blank_or_not}$"
    properties["description"] = {"type": "string", "minLength": 1, "pattern": pattern}
    for name in ("agent_id", "batch_id"):
        text, null = properties[name]["anyOf"]
        properties[name] = {"anyOf": [text | {"pattern": _NO_NUL}, null]}
    properties["metadata"] = {"anyOf": [{"$ref": "#/components/schemas/StrictObject"}, {"type": "null"}]}
    schema["properties"] = properties
    # Unknown fields are kept.
    schema |= {"propertyNames": {"pattern": _NO_NUL}, "additionalProperties": _STRICT}
    schema["examples"] = [
        {"worker": workers[0] if workers else "marie", "description": "Say hello", "priority": "high"}
    ]
    return schema


def _strict_json() -> Json:
    return {
        "anyOf": [
            {"type": ["null", "boolean", "number"]},
            {"type": "string", "pattern": _NO_NUL},
            {"type": "array", "items": _STRICT},
            {"$ref": "#/components/schemas/StrictObject"},
        ]
    }


def _strict_object() -> Json:
    return {"type": "object", "propertyNames": {"pattern": _NO_NUL}, "additionalProperties": _STRICT}


def _accepted() -> Json:
    return _object(status={"const": "accepted"}, task_id=_ID, worker=_WORKER, is_copy={"type": "boolean"})


def _state() -> Json:
    words = ["waiting", "scheduled", "blocked", "held", "retrying", "running", *result.STATUSES, "refused"]
    schema = _object(task_id=_ID, worker=_WORKER, state={"enum": words}, has_ended={"type": "boolean"})
    schema["properties"]["attempts"] = _COUNT
    return schema


def _workers() -> Json:
    one = _object(
        worker=_WORKER, state={"type": "string"}, pending=_COUNT, retrying=_COUNT, running=_COUNT, orphaned=_COUNT,
        done=_COUNT, failed=_COUNT, dead_letters=_COUNT, breaker={"type": ["string", "null"]},
        oldest_pending_seconds={"type": ["number", "null"]},
    )  # fmt: skip
    return _object(taken_at={"type": "string"}, workers={"type": "array", "items": one})


def _problem() -> Json:
    text = {"type": "string"}
    return _object(type=text, title=text, status={"type": "integer"}, reason=text, detail=text)


def _object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}


def _without_marker(schema: Json) -> Json:
    return {key: value for key, value in schema.items() if key != "$schema"}


# --- the page


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{background:#8882;padding:.1em .3em;border-radius:3px}table{border-collapse:collapse}"
    "td,th{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0}h2{margin-top:2rem}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8bf}}"
)


def page(description: Json) -> str:
    """The description for people."""
    parts = [f"<h1>{_e(description['info']['title'])}</h1><p>{_e(description['info']['description'])} "]
    parts.append('For programs: <a href="openapi.json">openapi.json</a>.</p>')
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts += _operation(f"{method.upper()} {path}", operation)
    parts.append("<h2>Fields of a task</h2>" + _table(("field", "what it may be"), _fields(description)))
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f"{head}<title>{_e(description['info']['title'])}</title><style>{_STYLE}</style>{''.join(parts)}</html>"


def _operation(title: str, operation: Json) -> list[str]:
    given = [(p["name"], f"{p['in']}: {p['description']}") for p in operation.get("parameters", ())]
    answers = [(status, answer["description"]) for status, answer in sorted(operation["responses"].items())]
    return [
        f"<h2><code>{_e(title)}</code></h2><p>{_e(operation['summary'])}. {_e(operation.get('description', ''))}</p>",
        _table(("parameter", ""), given) if given else "",
        _table(("status", "meaning"), answers),
    ]


def _fields(description: Json) -> list[tuple[str, str]]:
    schema = description["components"]["schemas"]["Task"]
    rows = []
    for name, rule in schema["properties"].items():
        kinds = [one for one in rule.get("anyOf", [rule]) if one.get("type") != "null"]
        text = " or ".join(_rule(one) for one in kinds)
        rows.append((name, f"{text}{' (required)' if name in schema['required'] else ''}"))
    return rows


def _rule(rule: Json) -> str:
    if "anyOf" in rule:
        return " or ".join(_rule(one) for one in rule["anyOf"])
    if "$ref" in rule:
        return "object"
    if "enum" in rule:
        return "one of " + ", ".join(map(str, rule["enum"]))
    low, high = rule.get("minimum"), rule.get("maximum")
    return f"{rule.get('type', 'any')}{'' if low is None else f' from {low:g} to {high:g}'}"


def _table(header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td><code>{_e(first)}</code><td>{_e(second)}" for first, second in rows)
    return f"<table><tr><th>{header[0]}<th>{header[1]}{body}</table>"


def _e(text: str) -> str:
    return html.escape(text)
