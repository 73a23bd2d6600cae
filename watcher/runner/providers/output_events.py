"""Say what a Reading of an agent CLI's events is, and read those of gemini, codex and opencode.

One reader for each shape of machine-readable output, all giving a Reading; `claude_events` has claude's, `json_fields`
reads any other JSON. A reader never raises for what it reads and decides nothing (`judging` does, from the Reading):
what has another type than expected is left out. The shapes were recorded from gemini 0.61.0, codex 0.169.0 and opencode
1.18.33 (tests/data/providers).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from watcher.formats.result import Usage
from watcher.runner.providers.early_stops import Begun

Event = dict[str, Any]
#: Longer names are cut: they come from a command and go into results.
LONGEST_NAME = 200


@dataclass(slots=True)
class Reading:
    """What machine-readable output says. `signs` are facts as `kind -> value` for the rules of a provider:

    `error` (the CLI's word for an API error), `status` (HTTP), `terminal` (why a turn ended), `subtype` (of the final
    event), `limit` (`rejected` when a usage limit is reached; `resets_at` is then wall seconds, if told). `denied`
    names the tools that were not allowed; `has_acted` says that some tool ran. `version`, `login`, `mode` and `mcp`
    (server -> state) are what the CLI tells of itself.

    `ends` has the CLI's own words for why it ended, by field (`halves` knows them); `lost` names work that was begun
    and not done; `asked_nobody` says that no model was asked; `remarks` are for people who read of a success.
    """

    answer: str | None = None
    is_finished: bool = False
    is_error: bool = False
    message: str = ""
    signs: dict[str, str] = field(default_factory=dict)
    resets_at: float | None = None
    usage: Usage | None = None
    has_acted: bool = False
    denied: tuple[str, ...] = ()
    version: str = ""
    login: str = ""
    mode: str = ""
    mcp: dict[str, str] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    asked_nobody: bool = False
    remarks: tuple[str, ...] = ()


Reader = Callable[[Iterator[Event]], Reading]


def read_gemini(found: Iterator[Event]) -> Reading:
    """Events of gemini. The answer is what it said after its last tool call, as claude's is."""
    out = Reading()
    about = Usage()
    parts: list[str] = []
    before: list[str] = []
    begun = Begun()
    for event in found:
        kind = event.get("type")
        if kind == "message" and event.get("role") == "assistant" and isinstance(event.get("content"), str):
            parts.append(event["content"])
        elif kind == "init":
            about.model, about.session_id = name(event.get("model")), name(event.get("session_id"))
        elif kind == "tool_use":
            out.has_acted = True
            before, parts = parts or before, []
            begun.begin_tool(event.get("tool_id"), event.get("tool_name"))
        elif kind == "tool_result":
            out.denied += _gemini_denial(event)
            begun.end_tool(event.get("tool_id"))
        elif kind == "error" and isinstance(event.get("message"), str):
            out.message = event["message"]
            _read_gemini_warning(event["message"], out)
        elif kind == "result":
            out.is_finished = True
            out.is_error = event.get("status") != "success"
            out.ends |= ends(event, "status", "finish_reason", "finishReason", "stop_reason")
            out.message = error_message(event) or out.message
            out.usage = _gemini_usage(event.get("stats"), about)
        elif "response" in event or ("error" in event and kind is None):  # the one object of `-o json`
            about.session_id = name(event.get("session_id"))
            parts = _read_gemini_object(event, out, about)
    if parts or before or out.is_finished:
        out.answer = "".join(parts or before)
    if out.is_error:
        _read_gemini_error(out)
    if out.usage is None and about != Usage():
        out.usage = about
    out.remarks += begun.remarks()
    return out


#: What gemini says of a run that it breaks off, and then ends as a success.
_GEMINI_STOPS = {"Loop detected, stopping execution": "stopped", "Maximum session turns exceeded": "max_turns"}


def _read_gemini_warning(message: str, out: Reading) -> None:
    if message in _GEMINI_STOPS:
        out.ends["error"] = _GEMINI_STOPS[message]
    else:
        out.remarks = (*out.remarks, f"it said: {message[:LONGEST_NAME]}")


#: Tools of gemini itself that it hides from the model in a mode or by a policy that forbids them.
_GEMINI_ACTS = {"run_shell_command", "write_file", "replace"}


def _gemini_denial(event: Event) -> tuple[str, ...]:
    tool = str(event.get("tool_id")).partition("__")[0]
    kind = member(event, "error").get("type")
    is_hidden = kind == "tool_not_registered" and tool in _GEMINI_ACTS
    return (tool,) if is_hidden or kind == "policy_violation" else ()


def _read_gemini_error(out: Reading) -> None:
    """`[API Error: text]`, where the text may be what the API answered, as JSON."""
    status = re.search(r'"code":\s*(\d{3})\b', out.message)
    if status is not None:
        out.signs["status"] = status.group(1)
    if out.message.startswith("[API Error: "):
        out.signs["error"] = "api"
    framed = re.fullmatch(r"\[API Error: (\{.*\})\].*", out.message, re.S)
    if framed is not None:
        out.message = error_message(_object(framed.group(1))) or out.message


def _read_gemini_object(event: Event, out: Reading, about: Usage) -> list[str]:
    out.is_finished = True
    out.is_error = event.get("error") is not None
    out.message = error_message(event)
    out.usage = _gemini_usage(event.get("stats"), about)
    tools = member(member(event, "stats"), "tools")
    out.has_acted = bool(count(tools.get("totalCalls")))
    warnings = event.get("warnings")
    for warning in warnings if isinstance(warnings, list) else []:
        if isinstance(warning, str):
            _read_gemini_warning(warning, out)
    return [event["response"]] if isinstance(event.get("response"), str) else []


_CODEX_ACTS = {"command_execution", "file_change", "mcp_tool_call", "web_search"}
_CODEX_STATUS = re.compile(r"(?:unexpected status|last status:) (\d{3})\b")


def read_codex(found: Iterator[Event]) -> Reading:
    """Events of `codex exec --json`. An `error` event may be a try that is repeated: `turn.completed` takes it back."""
    out = Reading()
    about = Usage()
    begun = Begun()
    for event in found:
        kind = event.get("type")
        item = member(event, "item")
        if kind == "thread.started":
            about.session_id = name(event.get("thread_id"))
        elif kind == "turn.started":
            out.lost = ("a turn",)
        elif kind == "item.started" and item.get("type") in _CODEX_ACTS:
            begun.begin_tool(item.get("id"), item.get("type"))
        elif kind == "item.completed":
            begun.end_tool(item.get("id"))
            if item.get("type") == "agent_message" and isinstance(item.get("text"), str):
                out.answer = item["text"]
            out.has_acted = out.has_acted or item.get("type") in _CODEX_ACTS
            if item.get("status") == "declined":
                out.denied = (*out.denied, str(item.get("type")))
        elif kind == "turn.completed":
            out.is_finished, out.is_error, out.lost = True, False, ()
            out.ends = ends(event, "status", "reason", "stop_reason")
            out.usage = _codex_usage(event.get("usage"), about)
        elif kind in ("turn.failed", "error"):
            out.is_finished = out.is_error = True
            said = error_message(event) or event.get("message")
            out.message = _codex_message(said if isinstance(said, str) else "", out)
    if out.usage is None and about.session_id:
        out.usage = about
    out.remarks = begun.remarks()
    return out


def _codex_message(said: str, out: Reading) -> str:
    status = _CODEX_STATUS.search(said)
    if status is not None:
        out.signs["status"] = status.group(1)
    half = re.fullmatch(r"Incomplete response returned, reason: (\w+)", said)
    if half is not None:
        out.signs["ended"] = half.group(1)
    if said.startswith("{"):  # what the API answered to a request that it refuses
        error = member(_object(said), "error")
        out.signs["error"] = "invalid_request"
        said = error["message"] if isinstance(error.get("message"), str) else said
    return said


def read_opencode(found: Iterator[Event]) -> Reading:
    """Events of `opencode run --format json`. A step that ends with tool calls is followed by another one."""
    out = Reading()
    total = Usage()
    parts: list[str] = []
    begun = Begun()
    for event in found:
        kind = event.get("type")
        part = member(event, "part")
        total.session_id = name(event.get("sessionID")) or total.session_id
        if kind == "step_start":
            out.is_finished, out.ends = False, {}
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif kind == "tool_use":
            out.has_acted = True
            parts = []
            out.denied += _opencode_denial(part)
            if member(part, "state").get("status") in ("completed", "error"):
                begun.end_tool(part.get("callID"))
            else:
                begun.begin_tool(part.get("callID"), part.get("tool"))
        elif kind == "step_finish":
            out.is_finished = part.get("reason") != "tool-calls"
            out.ends = ends(part, "reason")
            _add_opencode_step(part, total)
        elif kind == "error":
            out.is_finished = out.is_error = True
            _read_opencode_error(member(event, "error"), out)
    out.answer = "\n".join(parts) if parts or out.is_finished else None
    out.usage = total if total != Usage() else None
    out.remarks += begun.remarks()
    return out


#: opencode's own tools that its `permission` settings take away from the model.
_OPENCODE_ACTS = {"bash", "edit", "write", "patch", "apply_patch", "multiedit", "webfetch", "task"}
_OPENCODE_REFUSALS = ("The user rejected permission", "The user has specified a rule which prevents")


def _opencode_denial(part: Event) -> tuple[str, ...]:
    """A tool that is not there because it is forbidden is told as a call of the tool `invalid`."""
    state = member(part, "state")
    asked = member(state, "input")
    if part.get("tool") == "invalid" and asked.get("tool") in _OPENCODE_ACTS:
        return (str(asked["tool"]),) if "unavailable tool" in str(asked.get("error")) else ()
    is_refused = state.get("status") == "error" and str(state.get("error")).startswith(_OPENCODE_REFUSALS)
    return (str(part.get("tool"))[:LONGEST_NAME],) if is_refused else ()


def _add_opencode_step(part: Event, total: Usage) -> None:
    tokens = member(part, "tokens")
    cache = member(tokens, "cache")
    cached = count(cache.get("read")) or 0
    fresh = sum(count(value) or 0 for value in (tokens.get("input"), cache.get("write")))
    said = sum(count(value) or 0 for value in (tokens.get("output"), tokens.get("reasoning")))
    total.turns = (total.turns or 0) + 1
    total.input_tokens = (total.input_tokens or 0) + fresh + cached
    total.cached_input_tokens = (total.cached_input_tokens or 0) + cached
    total.output_tokens = (total.output_tokens or 0) + said
    cost = number(part.get("cost"))
    if cost:  # 0 also stands for a model whose price it does not know
        total.cost_usd = (total.cost_usd or 0.0) + cost


def _read_opencode_error(error: Event, out: Reading) -> None:
    data = member(error, "data")
    said = data.get("message")
    out.message = said if isinstance(said, str) else str(error.get("name") or "")
    for sign, value in (("error", error.get("name")), ("status", data.get("statusCode"))):
        if isinstance(value, str | int) and not isinstance(value, bool):
            out.signs[sign] = str(value)


def _gemini_usage(stats: object, about: Usage) -> Usage | None:
    if not isinstance(stats, dict):
        return about if about != Usage() else None
    models = stats.get("models")
    by_name = {n: m for n, m in models.items() if isinstance(m, dict)} if isinstance(models, dict) else {}
    model = about.model or (name(next(iter(by_name))) if by_name else None)
    if "input_tokens" in stats or "output_tokens" in stats:
        counts = (count(stats.get(name)) for name in ("input_tokens", "output_tokens", "cached"))
    else:
        tokens = [member(m, "tokens") for m in by_name.values() if isinstance(m.get("tokens"), dict)]
        if not tokens:
            return usage_of(None, None, None, None, None, model, about.session_id)
        counts = (sum(count(t.get(name)) or 0 for t in tokens) for name in ("prompt", "candidates", "cached"))
    inputs, outputs, cached = counts
    return usage_of(inputs, outputs, None, cached, None, model, about.session_id)


def _codex_usage(usage: object, about: Usage) -> Usage | None:
    usage = usage if isinstance(usage, dict) else {}
    counts = (count(usage.get(name)) for name in ("input_tokens", "output_tokens", "cached_input_tokens"))
    inputs, outputs, cached = counts
    return usage_of(inputs, outputs, None, cached, None, None, about.session_id)


def usage_of(
    inputs: int | None,
    outputs: int | None,
    cost_usd: float | None,
    cached: int | None,
    turns: int | None,
    model: str | None,
    session_id: str | None,
) -> Usage | None:
    made = Usage(
        input_tokens=inputs,
        cached_input_tokens=cached,
        output_tokens=outputs,
        cost_usd=cost_usd,
        turns=turns,
        model=model,
        session_id=session_id,
    )
    return None if made == Usage() else made


def ends(event: Event, *names: str) -> dict[str, str]:
    """The words in which an event says why something ended."""
    return {known: said for known in names if (said := name(event.get(known))) is not None}


def number(value: object) -> float | None:
    """A finite number that is not negative, or None: what a command prints may be anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) and found >= 0 else None


def count(value: object) -> int | None:
    """The same as a whole number that fits a sum."""
    found = number(value)
    return None if found is None or found > 1e15 else int(found)


def name(value: object) -> str | None:
    """A short text on one line, or None."""
    if not isinstance(value, str) or not value:
        return None
    return "".join(c if c.isprintable() else "\ufffd" for c in value[:LONGEST_NAME])


def member(event: object, name: str) -> Event:
    value = event.get(name) if isinstance(event, dict) else None
    return value if isinstance(value, dict) else {}


def _object(text: str) -> Event:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def error_message(event: Event) -> str:
    error = event.get("error")
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""
