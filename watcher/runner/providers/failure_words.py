"""Say where the words of a failure count: only where the CLI itself speaks.

stderr, and what no event is on stdout, also carry what tools, hooks and test runs print. So the words of a built-in
rule are looked for in the places that its `where` names, at the start of a line, and no place is open to them where
something else may have spoken:

- `event`: the message of the events that tell the failure. Nobody but the CLI writes it.
- `answer`: all of stdout, of a command that printed no event: how a CLI in text mode says why it failed.
- `start`: stderr of a command that printed nothing on stdout: it could not begin, so it has run no tool.
- `last`: the last line of stderr, unless a final event came: that tells what there is to tell.
- `stderr`: any line of stderr, for a rule that has a second sign (event, exit code), and for plain text.

A rule that people give themselves has no `where`: its words may stand anywhere. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from watcher.policy.after_attempt import Failure
from watcher.runner.providers.output_events import Reading
from watcher.runner.providers.provider import Provider, Rule, Where

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_OF_AN_EVENT = ("{", "[", '"', "}", "]")


@dataclass(frozen=True, slots=True)
class Printed:
    """The two streams of a command that has ended, or as much of their ends as is kept."""

    stdout: str = ""
    stderr: str = ""

    @property
    def has_event(self) -> bool:
        return any(line.startswith(("{", "[{")) for line in self.stdout.split("\n"))

    def everything(self, reading: Reading | None) -> str:
        """All of it but events, which quote whatever an agent has read; of these only the message."""
        if reading is None:
            return f"{self.stdout}\n{self.stderr}"
        lines = [line for line in self.stdout.split("\n") if not line.lstrip().startswith(_OF_AN_EVENT)]
        return "\n".join((reading.message, *lines, self.stderr))


@dataclass(frozen=True, slots=True)
class Words:
    """Words that fit, the line in which they stand, and whether an event has them."""

    match: re.Match[str]
    line: str
    is_of_event: bool = False


def find_words(provider: Provider, rule: Rule, printed: Printed, reading: Reading | None) -> Words | None:
    """The words of `rule`, in the first of its places where they are; None: nowhere. The rule has a pattern."""
    assert rule.pattern is not None
    pattern = re.compile(rule.pattern)  # only now: most rules are never needed, and `re` keeps those that are
    if not rule.where:
        text = printed.everything(reading)
        match = pattern.search(text)
        return None if match is None else _words(match, text)
    for place in rule.where:
        found = _in_place(place, rule, pattern, printed, reading)
        if found is not None and _is_of_its_command(provider, found.match):
            return found
    return None


def _in_place(
    place: Where, rule: Rule, pattern: re.Pattern[str], printed: Printed, reading: Reading | None
) -> Words | None:
    if place == "event":
        message = "" if reading is None else reading.message.strip()
        match = pattern.search(message) if rule.signs or rule.exit_codes else pattern.match(message)
        return None if match is None else Words(match, message, is_of_event=True)
    if place == "answer":
        # What ends a task at once needs more than words where events would have told it.
        is_open = reading is None or (not printed.has_event and rule.failure is not Failure.PERMANENT)
        match = pattern.fullmatch(_COLOUR.sub("", printed.stdout).strip()) if is_open else None
        return None if match is None else _words(match, match.string)
    stderr = _COLOUR.sub("", printed.stderr).strip()
    if place == "last":
        stderr = stderr[stderr.rfind("\n") + 1 :]
        is_open = reading is None or not reading.is_finished
    elif place == "start":
        is_open = not printed.stdout.strip()
    else:
        is_open = bool(rule.signs or rule.exit_codes) or reading is None
    match = pattern.search(stderr) if is_open else None
    return None if match is None else _words(match, stderr)


def _is_of_its_command(provider: Provider, match: re.Match[str]) -> bool:
    """A CLI that complains of an argument names one that we gave it; a tool that it ran names another."""
    named = match.groupdict().get("argument")
    if named is None:
        return True
    given = (*provider.argv()[0], provider.model_flag or "", provider.budget_flag or "", *provider.waits_with)
    return any(word.lstrip("-").partition("=")[0] == named.lstrip("-") for word in given if word)


def _words(match: re.Match[str], text: str) -> Words:
    end = text.find("\n", match.start())
    return Words(match, text[text.rfind("\n", 0, match.start()) + 1 : len(text) if end < 0 else end].strip())
