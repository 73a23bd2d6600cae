"""Make one Outcome of a command that has ended: read its two files, have its ending judged.

An ending that is known without its output (stopped, stalled, out of time) stands; any other is for `judging` to say.
The files are those of a slot: what an outcome keeps of them is the caller's from then on. Raises OSError when they
cannot be read.
"""

from __future__ import annotations

from dataclasses import dataclass

from watcher.policy.after_attempt import Ending, Failure
from watcher.runner.attempt_files import Slot
from watcher.runner.printed_text import bounded_text, events, shortened
from watcher.runner.providers.failure_words import Printed
from watcher.runner.providers.judging import judge
from watcher.runner.providers.output_events import Reading
from watcher.runner.providers.provider import OutputFormat, Provider
from watcher.runner.runner_interface import Outcome, Output
from watcher.system import processes

#: Where words of a failure are looked for: they stand near an end of what was printed.
_PRINTED_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class EndedCommand:
    """A command that is over: what it was, how its output is to be read, its exit code, and `cut_short`, its ending
    when we ended it."""

    provider: Provider
    output: OutputFormat
    exit_code: int
    cut_short: Ending | None


def outcome_of(ended: EndedCommand, slot: Slot, at_most_bytes: int, now: float) -> Outcome:
    """The outcome, but for its times and leftovers; `now` is wall seconds, `at_most_bytes` bounds each text."""
    provider, code = ended.provider, ended.exit_code
    stdout, stderr, reading = _collect(ended, slot, at_most_bytes)
    is_unknown = code == processes.EXIT_UNKNOWN
    if ended.cut_short is not None:
        ending = ended.cut_short
    elif is_unknown:
        ending = Ending(Failure.TRANSIENT, "exit_unknown", f"{provider.name}: something else took its exit code")
    else:
        ending = judge(provider, code, reading, lambda: _printed(slot), now, stdout.size_bytes)
    usage = None if reading is None else reading.usage
    return Outcome(ending, None if is_unknown else code, stdout, stderr, 0.0, 0.0, usage, reading=reading)


def _collect(ended: EndedCommand, slot: Slot, at_most_bytes: int) -> tuple[Output, Output, Reading | None]:
    reader = ended.provider.reader
    size = slot.stdout.size()
    reading = None
    if reader is not None and ended.output != "text":
        reading = reader(events(slot.stdout.fd, size, ended.output, ended.provider.mentions))
    if reading is not None and reading.answer is not None:
        text, truncated = shortened(reading.answer, at_most_bytes)
        stdout = Output(text, size, truncated, slot.stdout.keep())
    else:
        stdout = slot.stdout.output(size, at_most_bytes)
    return stdout, slot.stderr.output(slot.stderr.size(), at_most_bytes), reading


def _printed(slot: Slot) -> Printed:
    stdout, _ = bounded_text(slot.stdout.fd, slot.stdout.size(), _PRINTED_BYTES)
    stderr, _ = bounded_text(slot.stderr.fd, slot.stderr.size(), _PRINTED_BYTES)
    return Printed(stdout, stderr)
