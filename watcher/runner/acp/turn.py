"""Read what an agent says in one ACP turn: which part is the answer, and how the turn ended.

The answer is what the agent said after its last tool call. What holds no letter and no digit (a lone ".") is no answer
of its own: it ends what was said before that call. Chunks with one `messageId` are one message, wherever tool calls
stand between them. Never part of it: thoughts, plans, notices, what a subagent says, what comes before the task was
given, what belongs to another session; and, from an agent that numbers its messages, text without a number, which is
its program's own.

A turn that "ended" has failed when its program says so (codex-acp's `systemError`), when no model has said a word and
none was used (`usage` is null), or when the program's own last word is an HTTP status. A missing number or a null alone
proves nothing: there are agents that give neither. A tool that still runs when the turn ends makes it unfinished.

Pure: no file, no clock, no descriptor. What has another type than expected is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from watcher.formats.result import Usage
from watcher.runner.acp.faults import fault_in, is_fault, status_of_codex
from watcher.runner.printed_text import harmless
from watcher.runner.providers.output_events import Reading, count, name, number

Event = dict[str, Any]
_RUNNING, _WAITING = "in_progress", "pending"
_LONGEST_TITLE = 80
_MOST_TITLES = 5
#: A description that an agent's own program takes for a command, as `/help`; a path is none.
_COMMAND = re.compile(r"/[A-Za-z][\w:-]*(?=\s|$)")
_STOPS = {
    "refusal": "the agent refuses to do it",
    "max_tokens": "its answer was cut off at the limit of tokens",
    "max_turn_requests": "it has asked its model as often as it may",
    "cancelled": "its turn was cancelled, and not by us",
}


@dataclass(slots=True)
class Turn:
    """What one task came to. `reading` is for judging; `whole` is all that was said, if that is more than the answer;
    `notices` are words of the agent's program; `remark` is for people although all is well."""

    reading: Reading
    whole: str = ""
    notices: str = ""
    remark: str = ""


@dataclass(slots=True)
class _Message:
    has_number: bool
    stretch: int
    parts: list[str]

    def text(self) -> str:
        return "".join(self.parts)


class Heard:
    """All that has come of one session. A stretch is what is said between two tool calls. `numbers` says that the agent
    is known to number the messages of its model."""

    def __init__(self, session: str = "", numbers: bool = False) -> None:
        self.session = session
        self.numbers = numbers
        self.characters = 0
        self.is_asked = False
        self._messages: dict[str | int, _Message] = {}
        self._calls: dict[str, tuple[str, str]] = {}
        self._running: set[str] = set()
        self._notices: list[str] = []
        self._stretch = 0
        self._is_last_strange = False
        self._has_said = False
        self._has_crashed = False
        self._status: str | None = None
        self._cost: float | None = None
        self._open_steps = 0

    def learn(self, update: Any) -> None:
        """Take one `session/update` in."""
        if not isinstance(update, dict):
            return
        kind = update.get("sessionUpdate")
        if kind == "agent_message_chunk":
            self._say(update)
        elif kind == "notice":
            parts = (update.get("title"), update.get("description"))
            self._notice(": ".join(part for part in parts if isinstance(part, str) and part))
        elif kind in ("tool_call", "tool_call_update"):
            self._call(update)
        elif kind == "usage_update":
            cost = _member(update, "cost")
            self._cost = number(cost.get("amount")) if cost.get("currency") == "USD" else self._cost
        elif kind == "plan":
            steps = update.get("entries")
            steps = [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
            self._open_steps = sum(step.get("status") != "completed" for step in steps)
        elif kind == "session_info_update":
            self._codex(_member(_member(update, "_meta"), "codex"))

    def has_spoken_first(self) -> bool:
        """Whether anything was said before the task."""
        return bool(self._notices)

    def is_whole(self) -> bool:
        """Whether there is an answer and nothing still runs, so that not much can be on its way."""
        return self._has_said and not self._running

    def has_done_nothing(self) -> bool:
        """Whether no tool was called, so that the task can be given again without doing anything twice."""
        return not self._calls

    def usage(self) -> Usage:
        """What is known of a turn that never ended."""
        return Usage(cost_usd=self._cost, session_id=name(self.session))

    def turn(self, result: Event, prompt: str) -> Turn:
        """What the turn came to, now that its request was answered with `result`."""
        answer, said = self._answer(), self._texts(self._own())
        reading = self._fault(result, prompt) or Reading(is_finished=True)
        stop = result.get("stopReason")
        if not reading.is_error and stop != "end_turn":
            reading.is_error = True
            reading.message = _STOPS.get(str(stop), f"its turn ended with {str(stop)[:_LONGEST_TITLE]!r}")
            reading.signs["stop"] = str(stop)[:_LONGEST_TITLE]
        running = self._open(_RUNNING)
        if not reading.is_error and running:
            reading.is_error = True
            reading.message = f"its turn ended while this still ran: {running}"
            reading.signs["unfinished"] = "tool"
        reading.answer, reading.has_acted = answer, bool(self._calls)
        reading.usage = _usage(result, self._cost, self.session)
        whole = "" if len(said) < 2 else "\n\n".join(text.strip() for text in said)
        strange = [] if not self._numbered() else [message.text().strip() for message in self._strange()]
        return Turn(reading, whole, "\n".join((*self._notices, *strange)), self._remark())

    # --- what is heard

    def _say(self, update: Event) -> None:
        text = _text_of(update.get("content"))
        self.characters += len(text)
        if not self.is_asked:
            self._notice(text)
            return
        if _member(_member(update, "_meta"), "claudeCode").get("parentToolUseId") is not None:
            return
        id_ = update.get("messageId")
        has_number = isinstance(id_, str) and bool(id_)
        key: str | int = str(id_) if has_number else self._stretch
        message = self._messages.setdefault(key, _Message(has_number, self._stretch, []))
        message.parts.append(text)
        message.stretch = self._stretch
        self._is_last_strange = not has_number
        self._has_said = self._has_said or bool(text.strip())
        if has_number:
            self.numbers, self._status = True, None

    def _call(self, update: Event) -> None:
        id_ = str(update.get("toolCallId"))
        title, status = self._calls.get(id_, ("", _WAITING))
        if id_ not in self._calls:
            self._stretch += 1
            self._is_last_strange, self._status = False, None
        title = name(update.get("title")) or title
        status = name(update.get("status")) or status
        self._calls[id_] = (title[:_LONGEST_TITLE], status)
        (self._running.add if status == _RUNNING else self._running.discard)(id_)

    def _notice(self, text: str) -> None:
        if text.strip():
            self.characters += len(text)
            self._notices.append(text.strip())

    def _codex(self, news: Event) -> None:
        state = _member(news, "threadStatus").get("type")
        if isinstance(state, str):
            self._has_crashed = state == "systemError"
        self._status = status_of_codex(_member(news, "error").get("codexErrorInfo")) or self._status

    # --- what it comes to

    def _own(self) -> list[_Message]:
        """The messages of the model."""
        return self._numbered() or self._strange()

    def _numbered(self) -> list[_Message]:
        return [one for one in self._messages.values() if one.has_number and any(part.strip() for part in one.parts)]

    def _strange(self) -> list[_Message]:
        return [one for one in self._messages.values() if not one.has_number]

    def _texts(self, messages: list[_Message]) -> list[str]:
        """What was said in each stretch in which something was."""
        out: dict[int, list[str]] = {}
        for message in sorted(messages, key=lambda one: one.stretch):
            parts = out.setdefault(message.stretch, [])
            if parts and not parts[-1].endswith("\n"):
                parts.append("\n\n")
            parts.append(message.text())
        return [text for parts in out.values() if (text := "".join(parts)).strip()]

    def _answer(self) -> str:
        texts = self._texts(self._own())
        first = next((n for n in reversed(range(len(texts))) if any(map(str.isalnum, texts[n]))), 0)
        return "".join(texts[first:])

    def _open(self, status: str) -> str:
        titles = [title or "a tool" for title, state in self._calls.values() if state == status]
        more = f" and {len(titles) - _MOST_TITLES} more" if len(titles) > _MOST_TITLES else ""
        return ", ".join(titles[:_MOST_TITLES]) + more

    def _fault(self, result: Event, prompt: str) -> Reading | None:
        """That the turn has failed although it ended, and what is said of it."""
        strange, tokens = self._strange(), _tokens(result)
        last = strange[-1].text() if strange and self._is_last_strange else ""
        told = _member(_member(_member(_member(result, "_meta"), "jetbrains"), "air"), "sessionFailure")
        is_program_alone = bool(strange) and not self._numbered() and tokens is None
        is_command = not tokens and not self._calls and _COMMAND.match(prompt.lstrip()) is not None
        if told.get("severity") == "error":
            reading = fault_in(str(told.get("title")))
        elif self._has_crashed:
            reading = fault_in(last or "its program says that the turn failed")
        elif (is_program_alone or self._numbered()) and is_fault(last):
            reading = fault_in(last)
        elif is_command:
            said = "its program took the description for a command of its own, and asked no model"
            reading = Reading(is_finished=True, is_error=True, message=said, signs={"turn": "not_run"})
        elif is_program_alone and self.numbers:
            reading = fault_in(last)
        else:
            return None
        if self._status is not None:
            reading.signs.setdefault("status", self._status)
        return reading

    def _remark(self) -> str:
        waiting = self._open(_WAITING)
        said = [f"its turn ended before it told the end of: {waiting}"] if waiting else []
        if self._open_steps:
            said.append(f"{self._open_steps} steps of its plan are open")
        return "; ".join(said)


def _text_of(content: Any) -> str:
    """The text of a block of content, or where the file is that it names."""
    if not isinstance(content, dict):
        return ""
    resource = _member(content, "resource")
    found = {"text": content.get("text"), "resource": resource.get("text"), "resource_link": content.get("uri")}
    text = found.get(str(content.get("type")))
    return harmless(text) if isinstance(text, str) else ""


def _tokens(result: Event) -> int | None:
    """How many tokens the turn took; None when it is said that this is not known, -1 when nothing is said."""
    quota = _member(_member(result, "_meta"), "quota")
    if "usage" in result or "token_count" in quota:
        usage = result.get("usage") or quota.get("token_count")
        return sum(count(value) or 0 for value in usage.values()) if isinstance(usage, dict) else None
    return -1


def _usage(result: Event, cost: float | None, session: str) -> Usage:
    """All that is told. What came from a cache or was thought may be counted beside the rest: `totalTokens` tells."""
    usage = _member(result, "usage")
    quota = _member(_member(result, "_meta"), "quota")
    tokens = usage or _member(quota, "token_count")

    def told(*names: str) -> int | None:
        return next((found for one in names if (found := count(tokens.get(one))) is not None), None)

    inputs, outputs = told("inputTokens", "input_tokens"), told("outputTokens", "output_tokens")
    cached = told("cachedReadTokens", "cachedInputTokens", "cached_input_tokens")
    beside = (cached or 0) + (told("cachedWriteTokens", "cacheWriteInputTokens") or 0)
    thought = told("thoughtTokens", "reasoningOutputTokens") or 0
    total, known = told("totalTokens", "total_tokens"), (inputs or 0) + (outputs or 0)
    is_beside = (cached or 0) > (inputs or 0) if total is None else total in (known + beside, known + beside + thought)
    if inputs is not None and is_beside and total != known:
        inputs += beside
    if outputs is not None and thought and total == known + thought + (beside if is_beside else 0):
        outputs += thought
    models = quota.get("model_usage")
    models = [one for one in models if isinstance(one, dict)] if isinstance(models, list) else []
    model = name(models[0].get("model")) if models else None
    return Usage(
        input_tokens=inputs,
        cached_input_tokens=cached,
        output_tokens=outputs,
        cost_usd=cost,
        model=model,
        session_id=name(session),
    )


def _member(event: Any, key: str) -> Event:
    value = event.get(key) if isinstance(event, dict) else None
    return value if isinstance(value, dict) else {}
