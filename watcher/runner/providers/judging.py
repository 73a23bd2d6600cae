"""Judge an attempt that ended by itself: success needs evidence, and a failure gets its class.

Success is: we did not end it, an exit code that means success and, where the output is machine-readable, a final event
without an error flag, no tool that was refused, and an answer unless some tool ran. Exit 0 alone proves nothing: gemini
killed by our TERM exits 0, and qwen tells a refused key as a success.

A failure is classed by the first rule that fits, and rules are tried in the order of their evidence: facts from events,
then exit codes, then words; within each, as they stand. Words count only where the CLI itself speaks (`words`), so
that an agent or a test run that writes about a failure does not cause one. What no rule knows is transient.

Rules that people give for a command with plain text hold at exit 0 too: some CLIs have no other sign of a failure.

Pure: no file, no clock.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Callable, Sequence

from watcher.policy.after_attempt import Ending, Evidence, Failure
from watcher.runner.printed_text import harmless
from watcher.runner.providers.cures import CURES
from watcher.runner.providers.early_stops import half_of, is_known
from watcher.runner.providers.failure_words import Printed, Words, find_words
from watcher.runner.providers.output_events import Reading
from watcher.runner.providers.provider import Provider, Rule
from watcher.runner.providers.reset_times import told_time

#: What people read of a failure; the whole of it is in the result's output.
_MESSAGE_CHARACTERS = 600
#: With this code every program says that something went wrong, so it is no evidence of its own.
_COMMON_EXIT_CODE = 1
#: A usage limit that ends later than this is a misread number.
_LONGEST_LIMIT_SECONDS = 40 * 86_400.0
_NAMES_OF_SIGNALS = {number.value: number.name for number in signal.Signals}
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
#: States of an MCP server in which its tools are not there.
_MCP_WITHOUT_TOOLS = ("failed", "needs-auth", "disconnected")


def judge(
    provider: Provider,
    exit_code: int,
    reading: Reading | None,
    printed: Callable[[], Printed],
    now: float,
    stdout_bytes: int = 1,
) -> Ending:
    """What an attempt came to that ended by itself. `printed` gives what words are looked for in, when needed.

    `reading` is None where the output is plain text. A success may have a `detail` that people should read.
    """
    if exit_code < 0:
        return _killed(provider, -exit_code)
    is_good_exit = exit_code in provider.good_exit_codes
    if is_good_exit and (reading is None or (reading.is_finished and not reading.is_error)):
        ending = _told_in_text(provider, exit_code, printed, now) if reading is None else None
        ending = ending or _lacking(provider, reading, stdout_bytes)
        return ending or Ending(None, detail=_remark(provider, reading))
    text = printed()
    ending = _by_rules(provider, provider.rules, exit_code, reading, text, now)
    if ending is not None:
        return ending
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
        return Ending(Failure.PERMANENT, "denied", _detail(provider, what, CURES["denied"]))
    half = None if reading is None else _half(provider, reading)
    if half is not None or not provider.needs_answer:
        return half
    is_empty = stdout_bytes == 0 if reading is None else not ((reading.answer or "").strip() or reading.has_acted)
    return (
        Ending(Failure.TRANSIENT, "no_output", _detail(provider, "it ended well but said nothing"))
        if is_empty
        else None
    )


def _half(provider: Provider, reading: Reading) -> Ending | None:
    """What stopped early, or never began, although its final event tells no error."""
    if reading.asked_nobody:
        return Ending(Failure.PERMANENT, "not_run", _detail(provider, "it asked no model", CURES["not_run"]))
    for where, word in reading.ends.items():
        half = half_of(word)
        if half is not None:
            failure = Failure.TRANSIENT if half == "unfinished" else Failure.PERMANENT
            cure = "" if half == "unfinished" else CURES[half]
            return Ending(failure, half, _detail(provider, f"it stopped before its end: {where} {word}", cure))
    if reading.lost:
        what = f"it ended while this was not done: {', '.join(dict.fromkeys(reading.lost))}"
        return Ending(Failure.TRANSIENT, "unfinished", _detail(provider, what, CURES["unfinished"]))
    return None


def _unfinished(provider: Provider, reading: Reading | None, message: str, stdout_bytes: int) -> Ending:
    if reading is not None and reading.is_error:
        return Ending(Failure.TRANSIENT, "agent_error", _detail(provider, message or "it tells an error, not which"))
    reason = "no_output" if stdout_bytes == 0 else "no_result"
    return Ending(Failure.TRANSIENT, reason, _detail(provider, "it ended without a final result", message))


def _remark(provider: Provider, reading: Reading | None) -> str | None:
    if reading is None:
        return None
    odd = [f"{where} {word}" for where, word in reading.ends.items() if not is_known(word)]
    remarks = [f"it ended for a reason that is not known here: {', '.join(odd)}"] if odd else []
    remarks += reading.remarks
    missing = missing_mcp(reading)
    if missing:
        remarks.append(f"it ran without the tools of the MCP servers {', '.join(missing)}; see `watcher doctor`")
    return _detail(provider, *remarks) if remarks else None


def _evidence(rule: Rule) -> int:
    return 0 if rule.signs else 1 if rule.exit_codes else 2


def _told_in_text(provider: Provider, exit_code: int, printed: Callable[[], Printed], now: float) -> Ending | None:
    """What the rules that people gave say of a plain text whose exit code is good."""
    rules = [rule for rule in provider.rules if rule.pattern is not None and not rule.where]
    return _by_rules(provider, rules, exit_code, None, printed(), now) if rules else None


def _by_rules(
    provider: Provider, rules: Sequence[Rule], exit_code: int, reading: Reading | None, printed: Printed, now: float
) -> Ending | None:
    for rule in sorted(rules, key=_evidence):
        if _fits(rule, exit_code, reading):
            words = None if rule.pattern is None else find_words(provider, rule, printed, reading)
            if rule.pattern is None or words is not None:
                return _ending(provider, rule, words, exit_code, reading, printed, now)
    return None


def _fits(rule: Rule, exit_code: int, reading: Reading | None) -> bool:
    """Whether all but its words fit."""
    if rule.exit_codes and exit_code not in rule.exit_codes:
        return False
    signs = {} if reading is None else reading.signs
    return not rule.signs or any(f"{kind}:{value}" in rule.signs for kind, value in signs.items())


def _ending(
    provider: Provider,
    rule: Rule,
    words: Words | None,
    exit_code: int,
    reading: Reading | None,
    printed: Printed,
    now: float,
) -> Ending:
    message = _message(reading, printed) or f"exit code {exit_code}"
    resets_at = None if reading is None else reading.resets_at
    if words is not None:
        message = message if reading is not None and reading.message else words.line
        resets_at = told_time(words.match, now) if resets_at is None else resets_at
    is_told = rule.failure is Failure.LIMIT and resets_at is not None
    if not is_told or not now - 86_400 < (resets_at or 0.0) < now + _LONGEST_LIMIT_SECONDS:
        resets_at = None
    cure = rule.cure.replace("{provider}", provider.name)
    is_own_code = bool(rule.exit_codes) and exit_code != _COMMON_EXIT_CODE
    is_sure = rule.signs or is_own_code or (words is not None and words.is_of_event)
    evidence: Evidence = "strong" if is_sure else "weak"
    return Ending(rule.failure, rule.reason, _detail(provider, message, cure), resets_at=resets_at, evidence=evidence)


def _message(reading: Reading | None, printed: Printed) -> str:
    """The provider's own words, else the last line of what was printed, else what a JSON object there says."""
    if reading is not None and reading.message:
        return reading.message.strip()
    end = printed.everything(reading).rstrip()[-_MESSAGE_CHARACTERS * 4 :]
    last = end[end.rfind("\n") + 1 :].strip()
    if last in ("}", "]"):
        said = re.findall(r'"message"\s*:\s*("(?:[^"\\]|\\.)*")', end)
        with contextlib.suppress(ValueError):
            return str(json.loads(said[-1])) if said else last
    return last


def _detail(provider: Provider, *parts: str) -> str:
    said = [" ".join(_COLOUR.sub("", harmless(part)).split())[:_MESSAGE_CHARACTERS] for part in parts if part]
    return f"{provider.name}: " + "; ".join(said)
