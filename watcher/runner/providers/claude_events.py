"""Read the events of claude, and of cursor-agent and qwen, which are made after it.

A reader never raises for what it reads and decides nothing (see `output_events`). The shapes were recorded from claude
2.1.330 and qwen 0.15.10 and 0.24.4 (tests/data/providers); cursor-agent's is documented at
https://cursor.com/docs/cli/reference/output-format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from watcher.formats.result import Usage
from watcher.runner.providers.early_stops import Begun
from watcher.runner.providers.output_events import (
    LONGEST_NAME,
    Event,
    Reading,
    count,
    ends,
    error_message,
    member,
    name,
    number,
    usage_of,
)

#: Lines of claude's stream that matter to its reader; parsing all of them would cost what the agent's tools returned.
MENTIONS = (
    b'"result"', b'"rate_limit_event"', b'"error"', b'"init"', b'"tool_use"', b'"tool_result"', b'"tool_call"',
    b'"task_started"', b'"task_updated"', b'"task_notification"', b'"preserveText"',
)  # fmt: skip


def read_claude(found: Iterator[Event]) -> Reading:
    """Events of claude, and of cursor-agent, which is made after it."""
    out = Reading()
    about = Usage()
    begun = Begun()
    for event in found:
        kind = event.get("type")
        _read_claude_work(event, out, begun)
        if kind == "result":
            _read_claude_result(event, out)
            out.usage = _claude_usage(event, about)
        elif kind == "system" and event.get("subtype") == "init":
            _read_claude_init(event, out, about)
        elif kind == "rate_limit_event":
            _read_claude_limit(event.get("rate_limit_info"), out)
        elif kind == "assistant":
            if isinstance(event.get("error"), str):
                out.signs["error"] = event["error"]
                out.message = _text_of(event.get("message")) or out.message
            out.has_acted = out.has_acted or _uses_a_tool(event.get("message"))
    if out.usage is None and (about.model or about.session_id):
        out.usage = about
    out.lost, out.remarks = begun.lost(), begun.remarks()
    return out


#: Tools with which claude's agent ends its own background work.
_CLAUDE_STOPS = {"KillShell", "KillBash", "TaskStop"}


def _read_claude_work(event: Event, out: Reading, begun: Begun) -> None:
    """Tools and background tasks. A task that a tool runs in the foreground is told as one too; `is_backgrounded`,
    there or in a later patch, tells them apart."""
    kind, subtype, patch = event.get("type"), event.get("subtype"), member(event, "patch")
    for source in (event, patch):
        if isinstance(source.get("is_backgrounded"), bool):
            begun.move_behind(event.get("task_id"), source["is_backgrounded"])
    if kind == "system" and subtype == "task_started":
        about = event.get("description") or event.get("task_type")
        is_behind = event.get("is_backgrounded") is True
        begun.begin_work(event.get("task_id"), about, event.get("tool_use_id"), is_behind)
    elif kind == "system" and subtype == "task_notification":
        begun.end_work(event.get("task_id"), event.get("status"))
    elif kind == "system" and subtype == "task_updated" and patch.get("status") in ("completed", "failed", "killed"):
        begun.end_work(event.get("task_id"), patch["status"])
    elif kind == "result":
        begun.answer()
    elif kind == "tool_call":  # cursor-agent's
        out.has_acted = True
        if subtype == "started":
            begun.begin_tool(event.get("call_id"), next(iter(member(event, "tool_call")), "a tool"))
        else:
            begun.end_tool(event.get("call_id"))
    elif kind in ("assistant", "user"):
        for block in _blocks(event.get("message")):
            if block.get("type") == "tool_use":
                is_behind = member(block, "input").get("run_in_background") is True
                begun.begin_tool(block.get("id"), block.get("name"), is_behind)
                if block.get("name") in _CLAUDE_STOPS:
                    begun.stopped_by_agent(member(block, "input").values())
            elif block.get("type") == "tool_result":
                begun.end_tool(block.get("tool_use_id"))


_QWEN_ERROR = re.compile(r"\[API Error: ([^\[]*)\]\s*\Z")


_QWEN_STATUS = re.compile(r"(?:\w+ )?(\d{3})\b")


def read_qwen(found: Iterator[Event]) -> Reading:
    """Events of qwen: those of claude, but input that came from the cache is counted in `input_tokens`, and a failed
    API call is told as `[API Error: 401 ...]`: as the error of its final event, and before 0.24 as a success whose
    answer ends so."""
    seen: list[Event] = []
    joined = (
        0  # a model that ran out of tokens is asked to go on, a few times; what the last one ended with is not told
    )

    def remembering() -> Iterator[Event]:
        nonlocal joined
        for event in found:
            if event.get("type") == "result":
                seen.append(event)
            joined += member(event, "data").get("preserveText") is True
            yield event

    out = read_claude(remembering())
    if joined:
        out.remarks = (*out.remarks, f"its answer was cut and gone on with {joined} times, so its end may be missing")
    if seen and out.usage is not None:
        out.usage.input_tokens = count(member(seen[-1], "usage").get("input_tokens"))
    told = error_message(seen[-1]) if seen else ""
    error = _QWEN_ERROR.search(told if out.is_error else out.answer or "")
    out.message = told or out.message
    if error is not None:
        out.is_error = True
        out.message = error.group(1)
        status = _QWEN_STATUS.match(out.message)
        if status is not None:
            out.signs["status"] = status.group(1)
    return out


def _read_claude_init(event: Event, out: Reading, about: Usage) -> None:
    out.version = name(event.get("claude_code_version")) or name(event.get("qwen_code_version")) or ""
    out.login = name(event.get("apiKeySource")) or ""
    out.mode = name(event.get("permissionMode")) or name(event.get("permission_mode")) or ""
    servers = event.get("mcp_servers")
    for server in servers if isinstance(servers, list) else []:
        if isinstance(server, dict) and isinstance(server.get("name"), str):
            out.mcp[server["name"][:LONGEST_NAME]] = str(server.get("status"))[:LONGEST_NAME]
    about.model, about.session_id = name(event.get("model")), name(event.get("session_id"))


def _read_claude_result(event: Event, out: Reading) -> None:
    """Exit 0 and subtype `success` prove nothing: a run that was not logged in says both, and `is_error`."""
    out.is_finished = True
    subtype = event.get("subtype")
    is_error = event.get("is_error")
    out.is_error = is_error if isinstance(is_error, bool) else subtype != "success"
    for sign, key in (
        ("subtype", "subtype"),
        ("status", "api_error_status"),
        ("terminal", "terminal_reason"),
        ("ended", "stop_reason"),
    ):
        value = event.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool):
            out.signs[sign] = str(value)
    answer = event.get("result")
    out.answer = answer if isinstance(answer, str) else None
    out.asked_nobody = event.get("num_turns") == 0 and not out.is_error
    out.ends = ends(event, "subtype", "stop_reason", "terminal_reason")
    if out.ends.get("terminal_reason") == "completed" and out.ends.get("stop_reason") == "tool_use":
        del out.ends["stop_reason"]  # an answer by a schema is a tool call
    denials = event.get("permission_denials")
    found = [d.get("tool_name") for d in denials if isinstance(d, dict)] if isinstance(denials, list) else []
    out.denied = tuple(name for name in found if isinstance(name, str))
    if out.is_error:
        errors = event.get("errors")
        said = [e for e in errors if isinstance(e, str)] if isinstance(errors, list) else []
        out.message = out.answer or "; ".join(said) or out.message


def _read_claude_limit(info: object, out: Reading) -> None:
    """See `rate_limit_info` in the Agent SDK's types: `resetsAt` is seconds since the epoch."""
    if not isinstance(info, dict):
        return
    if info.get("status") == "rejected":
        out.signs["limit"] = "rejected"
        out.resets_at = number(info.get("resetsAt"))
    else:
        out.signs.pop("limit", None)
        out.resets_at = None


def _claude_usage(event: Event, about: Usage) -> Usage | None:
    """Anthropic counts input that came from or went into the cache apart from `input_tokens`; a person means all."""
    usage = member(event, "usage")
    cached = _first_count(usage, "cache_read_input_tokens", "cacheReadTokens")
    parts = (
        _first_count(usage, "input_tokens", "inputTokens"),
        _first_count(usage, "cache_creation_input_tokens", "cacheWriteTokens"),
        cached,
    )
    known = [part for part in parts if part is not None]
    models = event.get("modelUsage")
    outputs = _first_count(usage, "output_tokens", "outputTokens")
    if not sum(known) and not outputs and isinstance(models, dict) and models:
        # A run that its own budget ended tells its tokens by model only.
        return _claude_usage_of_models(event, models, about)
    model = about.model or (name(next(iter(models))) if isinstance(models, dict) and models else None)
    return usage_of(
        sum(known) if known else None,
        outputs,
        number(event.get("total_cost_usd")),
        cached,
        count(event.get("num_turns")),
        model,
        name(event.get("session_id")) or about.session_id,
    )


def _claude_usage_of_models(event: Event, models: Event, about: Usage) -> Usage | None:
    def total(*names: str) -> int | None:
        found = [count(model.get(kind)) for model in models.values() if isinstance(model, dict) for kind in names]
        return sum(known) if (known := [one for one in found if one is not None]) else None

    cached = total("cacheReadInputTokens")
    return usage_of(
        total("inputTokens", "cacheReadInputTokens", "cacheCreationInputTokens"),
        total("outputTokens"),
        number(event.get("total_cost_usd")),
        cached,
        count(event.get("num_turns")),
        about.model or name(next(iter(models), None)),
        name(event.get("session_id")) or about.session_id,
    )


def _first_count(usage: Event, *names: str) -> int | None:
    return next((found for name in names if (found := count(usage.get(name))) is not None), None)


def _text_of(message: object) -> str:
    texts = [block.get("text") for block in _blocks(message)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _uses_a_tool(message: object) -> bool:
    return any(block.get("type") == "tool_use" for block in _blocks(message))


def _blocks(message: object) -> list[Event]:
    content = message.get("content") if isinstance(message, dict) else None
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
