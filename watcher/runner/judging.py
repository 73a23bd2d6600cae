"""What an attempt came to that ended by itself: success needs evidence, and a failure gets its class.

Success is: we did not end it, an exit code that means success and, where the output is machine-readable, a final event
without an error flag, no tool that was refused, and an answer unless some tool ran. Exit 0 alone proves nothing: gemini
killed by our TERM exits 0, and qwen tells a refused key as a success.

A failure is classed by the first rule that fits, and rules are tried in the order of their evidence: facts from events,
then exit codes, then words; within each, as they stand. Words are only looked for at the start of a line, so that an
agent that writes about a failure does not cause one. What no rule knows is transient.

Pure: no file, no clock.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

from watcher.policy.disposition import Ending, Evidence, Failure
from watcher.runner.providers import Provider, Rule
from watcher.runner.reading import harmless
from watcher.runner.resets import told_time
from watcher.runner.shapes import Reading

#: What people read of a failure; the whole of it is in the result's output.
_MESSAGE_CHARACTERS = 600
#: With this code every program says that something went wrong, so it is no evidence of its own.
_COMMON_EXIT_CODE = 1
#: A usage limit that ends later than this is a misread number.
_LONGEST_LIMIT_SECONDS = 40 * 86_400.0
_NAMES_OF_SIGNALS = {number.value: number.name for number in signal.Signals}
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_DENIED = "allow them in the command or in the agent's settings, or set denials_are_fine for the provider"
#: States of an MCP server in which its tools are not there.
_MCP_WITHOUT_TOOLS = ("failed", "needs-auth", "disconnected")


def judge(
    provider: Provider,
    exit_code: int,
    reading: Reading | None,
    printed: Callable[[], str],
    now: float,
    stdout_bytes: int = 1,
) -> Ending:
    """What an attempt came to that ended by itself. `printed` gives the text to look for words in, when needed.

    `reading` is None where the output is plain text. A success may have a `detail` that people should read.
    """
    if exit_code < 0:
        return _killed(provider, -exit_code)
    is_good_exit = exit_code in provider.good_exit_codes
    if is_good_exit and (reading is None or (reading.is_finished and not reading.is_error)):
        return _lacking(provider, reading, stdout_bytes) or Ending(None, detail=_remark(provider, reading))
    text = printed()
    for rule in sorted(provider.rules, key=_evidence):
        fit = _fit(rule, exit_code, reading, text)
        if fit is not None:
            return _ending(provider, rule, fit, exit_code, reading, text, now)
    message = _message(reading, text)
    if is_good_exit:
        return _unfinished(provider, reading, message, stdout_bytes)
    return Ending(Failure.TRANSIENT, "exit_code", _detail(provider, f"exit code {exit_code}", message))


def missing_mcp(reading: Reading) -> list[str]:
    """The MCP servers whose tools the agent did not have, with their states."""
    return [f"{name} ({state})" for name, state in reading.mcp.items() if state in _MCP_WITHOUT_TOOLS]


def _killed(provider: Provider, number: int) -> Ending:
    name = _NAMES_OF_SIGNALS.get(number, f"signal {number}")
    hint = " (somebody else sent it; when memory is short, the kernel does)" if name == "SIGKILL" else ""
    return Ending(Failure.TRANSIENT, "killed_by_signal", f"{provider.name}: ended by {name}{hint}")


def _lacking(provider: Provider, reading: Reading | None, stdout_bytes: int) -> Ending | None:
    """What is missing for a success where nothing says failure."""
    if reading is not None and reading.denied and not provider.denials_are_fine:
        tools = ", ".join(dict.fromkeys(reading.denied))
        what = f"it was not allowed to use {tools}, so the work may not be done"
        return Ending(Failure.PERMANENT, "denied", _detail(provider, what, _DENIED))
    if not provider.needs_answer:
        return None
    is_empty = stdout_bytes == 0 if reading is None else not ((reading.answer or "").strip() or reading.has_acted)
    return (
        Ending(Failure.TRANSIENT, "no_output", _detail(provider, "it ended well but said nothing"))
        if is_empty
        else None
    )


def _unfinished(provider: Provider, reading: Reading | None, message: str, stdout_bytes: int) -> Ending:
    if reading is not None and reading.is_error:
        return Ending(Failure.TRANSIENT, "agent_error", _detail(provider, message or "it tells an error, not which"))
    reason = "no_output" if stdout_bytes == 0 else "no_result"
    return Ending(Failure.TRANSIENT, reason, _detail(provider, "it ended without a final result", message))


def _remark(provider: Provider, reading: Reading | None) -> str | None:
    missing = [] if reading is None else missing_mcp(reading)
    if not missing:
        return None
    return _detail(provider, f"it ran without the tools of the MCP servers {', '.join(missing)}; see `watcher doctor`")


def _evidence(rule: Rule) -> int:
    return 0 if rule.signs else 1 if rule.exit_codes else 2


@dataclass(slots=True)
class _Fit:
    """That a rule fits, and by which words."""

    words: re.Match[str] | None


def _fit(rule: Rule, exit_code: int, reading: Reading | None, text: str) -> _Fit | None:
    if rule.exit_codes and exit_code not in rule.exit_codes:
        return None
    if rule.signs:
        signs = {} if reading is None else reading.signs
        if not any(f"{kind}:{value}" in rule.signs for kind, value in signs.items()):
            return None
    if rule.pattern is None:
        return _Fit(None)
    words = rule.pattern.search(text)
    return None if words is None else _Fit(words)


def _ending(
    provider: Provider, rule: Rule, fit: _Fit, exit_code: int, reading: Reading | None, text: str, now: float
) -> Ending:
    message = _message(reading, text) or f"exit code {exit_code}"
    resets_at = None if reading is None else reading.resets_at
    if fit.words is not None:
        message = message if reading is not None and reading.message else _line_around(text, fit.words.start())
        resets_at = told_time(fit.words, now) if resets_at is None else resets_at
    is_told = rule.failure is Failure.LIMIT and resets_at is not None
    if not is_told or not now - 86_400 < (resets_at or 0.0) < now + _LONGEST_LIMIT_SECONDS:
        resets_at = None
    cure = rule.cure.replace("{provider}", provider.name)
    is_sure = rule.signs or (rule.exit_codes and exit_code != _COMMON_EXIT_CODE)
    evidence: Evidence = "strong" if is_sure else "weak"
    return Ending(rule.failure, rule.reason, _detail(provider, message, cure), resets_at=resets_at, evidence=evidence)


def _message(reading: Reading | None, text: str) -> str:
    """The provider's own words, else the last line of what was printed, else what a JSON object there says."""
    if reading is not None and reading.message:
        return reading.message.strip()
    end = text.rstrip()[-_MESSAGE_CHARACTERS * 4 :]
    last = end[end.rfind("\n") + 1 :].strip()
    if last in ("}", "]"):
        said = re.findall(r'"message"\s*:\s*("(?:[^"\\]|\\.)*")', end)
        with contextlib.suppress(ValueError):
            return str(json.loads(said[-1])) if said else last
    return last


def _line_around(text: str, place: int) -> str:
    end = text.find("\n", place)
    return text[text.rfind("\n", 0, place) + 1 : len(text) if end < 0 else end].strip()


def _detail(provider: Provider, *parts: str) -> str:
    said = [" ".join(_COLOUR.sub("", harmless(part)).split())[:_MESSAGE_CHARACTERS] for part in parts if part]
    return f"{provider.name}: " + "; ".join(said)
