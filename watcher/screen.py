"""What people see in a terminal: records in, text out. It prints nothing, reads nothing and knows no clock.

Text from files is shown without control characters, so that no output of an agent can move the cursor or recolour the
screen. Lines are cut at the width that is given, counted in cells, because a wrapped line breaks a screen that is
redrawn in place. Colour is only ever added: every line reads the same without.
"""

from __future__ import annotations

import os
import re
import shlex
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from watcher.overview import Overview, RunningTask, WorkerOverview
    from watcher.presence import Process
    from watcher_config import Folders

_WORKER = "python worker_watcher.py"
_DEMO = "python demo_watcher.py"

#: ANSI, as every terminal since the VT100 has it (ECMA-48).
ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_COLOURS = {"red": 31, "green": 32, "yellow": 33, "dim": 2, "bold": 1}
_STATE_COLOURS = {
    "healthy": "green", "starting": "green", "degraded": "yellow", "held": "yellow", "paused": "yellow",
    "draining": "yellow", "dead": "red", "unknown": "red", "stopped": "dim", "absent": "dim",
}  # fmt: skip
#: What a person can take in at a look; `--json` has all of them.
_RUNNING_AT_MOST = 15
_NAME_WIDTH = 24
_ADVICE_LINES = 3
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class Look:
    """How wide a line may be, in cells, how many lines there are, and whether colour is welcome."""

    width: int = 100
    height: int = 30
    colour: bool = False

    def paint(self, text: str, name: str) -> str:
        return f"\x1b[{_COLOURS[name]}m{text}\x1b[0m" if self.colour and text else text


# --- the state of everything


def status_lines(overview: Overview, look: Look) -> list[str]:
    """The table of workers, what runs now, and what a person should know or do."""
    if not overview.workers:
        return [
            cut(f"No worker and no task in {clean(overview.root)}.", look.width),
            f"Make the folders with: {_DEMO} --setup",
        ]
    lines = _worker_table(overview, look)
    running = _running_lines(overview.running, look)
    if running:
        lines += ["", *running]
    advice = _advice(overview)
    if advice:
        lines += ["", *(part for line in advice for part in wrap(line, look.width))]
    return lines


def _worker_table(overview: Overview, look: Look) -> list[str]:
    header = ["WORKER", "STATE", "PENDING", "RUNNING", "DONE", "FAILED", "DLQ", "BREAKER", "OLDEST WAITING"]
    rows: list[list[str]] = []
    states: list[str] = []
    for worker in overview.workers:
        rows.append(_worker_row(worker))
        states.append(worker.state)
        if len(worker.processes) > 1 or any(process.instance for process in worker.processes):
            for process in worker.processes:
                rows.append(_process_row(process, overview.running))
                states.append(process.state)
    widths = [max(width_of(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [look.paint(cut(_row(header, widths), look.width), "bold")]
    for row, state in zip(rows, states, strict=True):
        line = cut(_row(row, widths), look.width)
        start, end = widths[0] + 2, widths[0] + 2 + len(row[1])
        if len(line) >= end:  # the state is not cut off; names of workers and states are ASCII
            line = line[:start] + look.paint(line[start:end], _STATE_COLOURS[state]) + line[end:]
        lines.append(line)
    return lines


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Words to the left, counts to the right."""
    parts = [pad(c, w) if i in (0, 1, 7, 8) else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return "  ".join(parts).rstrip()


def _worker_row(worker: WorkerOverview) -> list[str]:
    alive = sum(process.is_alive for process in worker.processes)
    dead = sum(process.state == "dead" for process in worker.processes)
    if len(worker.processes) > 1 and alive + dead > 1:
        state = ", ".join([f"{alive} alive"] * (alive > 0) + [f"{dead} DEAD"] * (dead > 0))
    else:
        state = state_text(worker.state, worker.for_seconds)
    counts = (worker.pending, worker.running, worker.done, worker.failed, worker.dead_letters)
    oldest = "-" if worker.oldest_pending_seconds is None else duration(worker.oldest_pending_seconds)
    return [cut(worker.worker, _NAME_WIDTH), state, *map(str, counts), breaker_text(worker.breaker), oldest]


def _process_row(process: Process, running: Iterable[RunningTask]) -> list[str]:
    name = cut(f"  @{process.instance}" if process.instance else "  (no instance)", _NAME_WIDTH)
    mine = sum(task.worker == process.worker and task.instance == process.instance for task in running)
    count = str(mine) if process.is_alive else ""
    state = state_text(process.state, process.for_seconds)
    return [name, state, "", count, "", "", "", breaker_text(process.breaker) if process.is_alive else "", ""]


def state_text(state: str, seconds: float | None) -> str:
    """A state and for how long: `healthy for 3 min`, `paused, up 3 min`, `DEAD for 2 h`, `stopped 5 s ago`."""
    if state in ("absent", "unknown"):
        return "not started" if state == "absent" else "unknown"
    word = "DEAD" if state == "dead" else state
    if seconds is None:
        return word
    if state == "stopped":
        return f"stopped {duration(seconds)} ago"
    return f"{word} for {duration(seconds)}" if state in ("healthy", "dead") else f"{word}, up {duration(seconds)}"


def breaker_text(breaker: str | None) -> str:
    return "-" if breaker is None else breaker.replace("_", " ")


def _running_lines(running: Sequence[RunningTask], look: Look) -> list[str]:
    if not running:
        return []
    header = ["RUNNING NOW", "WORKER", "ATTEMPT", "SINCE", "LAST OUTPUT", "DOING"]
    rows = [
        [
            cut(task.task_id, 48),
            cut(task.worker if task.instance is None else f"{task.worker}@{task.instance}", _NAME_WIDTH),
            str(task.attempt),
            "-" if task.for_seconds is None else duration(task.for_seconds),
            "-" if task.output_age_seconds is None else f"{duration(task.output_age_seconds)} ago",
            _doing(task),
        ]
        for task in running[:_RUNNING_AT_MOST]
    ]
    lines = table(header, rows, look)
    more = len(running) - _RUNNING_AT_MOST
    return [*lines, f"... and {more} more"] if more > 0 else lines


def _doing(task: RunningTask) -> str:
    """The last event that its worker has seen, and for how long that has been so."""
    if task.last_event is None:
        return "-"
    age = task.last_event_age_seconds
    return cut(clean(task.last_event), 40) + ("" if age is None else f" ({duration(age)})")


def _advice(overview: Overview) -> list[str]:
    """A line for each thing that is not as it should be, and what to do."""
    out: list[str] = []
    for worker in overview.workers:
        for process in worker.processes:
            out += _about_process(process)
        out += _about_tasks(worker)
    return out + [clean(problem) for problem in overview.problems]


def _about_process(process: Process) -> list[str]:
    out = []
    if process.reason and process.state != "healthy":
        until = f"; until {clean(process.held_until)}" if process.held_until else ""
        out.append(f"{process.name} is {process.state}: {clean(process.reason)}{until}")
    if process.is_silent:
        age, interval = duration(process.beat_age_seconds or 0.0), duration(process.interval_seconds or 0.0)
        text = f"lives, but its last heartbeat is {age} old (one every {interval}): frozen, or two clocks differ"
        out.append(f"{process.name} {text}")
    return out


def _about_tasks(worker: WorkerOverview) -> list[str]:
    out = []
    start = f"{_WORKER} {worker.worker}"
    if any(process.is_alive for process in worker.processes):
        if worker.orphaned:
            out.append(f"{worker.worker}: {count(worker.orphaned, 'task')} of a killed process will be taken back soon")
    elif worker.orphaned:
        text = f"{count(worker.orphaned, 'task')} orphaned by a killed process, {worker.pending} waiting, none lost"
        out.append(f"{worker.worker}: {text}; start it again: {start}")
    elif worker.pending:
        out.append(f"{worker.worker}: {count(worker.pending, 'task')} waiting and nobody serves them: {start}")
    if worker.held:
        out.append(f"{worker.worker}: {count(worker.held, 'task')} held; let one start: watcher release ID")
    if worker.unread:
        out.append(f"{worker.worker}: {count(worker.unread, 'file')} among its results that cannot be read as one")
    return out


def status_frame(lines: Sequence[str], height: int) -> str:
    """A whole screen, drawn over the last one without flicker; cut at the height."""
    shown = list(lines[: max(1, height - 1)])
    if len(shown) < len(lines):
        shown[-1] = f"... {len(lines) - len(shown) + 1} more lines"
    return _HOME + "".join(f"{line}{_CLEAR_LINE}\r\n" for line in shown) + _CLEAR_BELOW


def redraw(lines: Sequence[str], drawn: int) -> str:
    """These lines in the place of the `drawn` last ones; the cursor ends below them."""
    up = f"\x1b[{drawn}F" if drawn else ""
    return up + "".join(f"{line}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_BELOW


# --- one task


def result_text(result: Mapping[str, Any], path: Path, look: Look) -> str:
    """A result as a person reads it: how it ended, what the agent said, and where the file is."""
    completed = result.get("status") == "completed"
    lines = [look.paint(result_line(result), "green" if completed else "red")]
    if result.get("detail"):
        lines.append(clean(str(result["detail"])))
    lines += _stream(result, "stdout", "")
    if not completed:
        lines += _stream(result, "stderr", "--- stderr")
    elif str(result.get("stderr") or "").strip():
        lines.append(look.paint("(it wrote to stderr too: see the file)", "dim"))
    return "\n".join([*lines, look.paint(f"file: {clean(str(path))}", "dim")])


def result_line(result: Mapping[str, Any]) -> str:
    """One line: whose task, how it ended, why, how long it took."""
    status = str(result.get("status"))
    reason = result.get("reason")
    why = f" ({reason})" if reason and reason != status else ""
    facts = [f"attempt {result.get('attempts')}"]
    if result.get("exit_code") is not None:
        facts.append(f"exit {result['exit_code']}")
    if result.get("provider"):
        facts.append(str(result["provider"]))
    seconds = result.get("duration_seconds")
    took = f" in {duration(seconds)}" if isinstance(seconds, (int, float)) and result.get("started_at") else ""
    return clean(f"{result.get('worker')}/{result.get('task_id')} {status}{why}{took}, {', '.join(facts)}")


def _stream(result: Mapping[str, Any], name: str, title: str) -> list[str]:
    text = clean(str(result.get(name) or "")).rstrip("\n")
    lines = ([title] if title and text else []) + ([text] if text else [])
    if result.get(f"{name}_truncated"):
        where = f"; all of it is in {clean(str(result[f'{name}_path']))}" if result.get(f"{name}_path") else ""
        lines.append(f"({name} was cut{where})")
    return lines


def refused_text(letter: Mapping[str, Any], path: Path, look: Look) -> str:
    """A dead letter without a result: why the file was not taken."""
    return f"{look.paint(letter_line(letter), 'red')}\nfile: {clean(str(path))}"


def letter_line(letter: Mapping[str, Any]) -> str:
    """One line: whose, why, after how many retries."""
    who = f"{letter.get('worker')}/{letter.get('task_id')}"
    retries = letter.get("retry_count") or 0
    after = f" after {count(retries, 'retry', 'retries')}" if isinstance(retries, int) and retries else ""
    detail = f": {letter['dlq_detail']}" if letter.get("dlq_detail") else ""
    return clean(f"{who} {letter.get('dlq_reason')}{after}{detail}".replace("\n", " "))


# --- a batch


@dataclass(slots=True)
class Tally:
    """How far a batch is. `failed` are part of `ended`."""

    total: int
    ended: int = 0
    failed: int = 0


def progress_line(tally: Tally, seconds: float, look: Look) -> str:
    """A bar with its numbers on one line."""
    numbers = f" {tally.ended}/{tally.total} ended, {tally.failed} failed, {duration(seconds)}"
    room = min(40, look.width - len(numbers) - 3)
    if room < 4:
        return cut(numbers.strip(), look.width)
    filled = room * tally.ended // max(1, tally.total)
    bar = look.paint("#" * filled, "yellow" if tally.failed else "green")
    return f"[{bar}{'.' * (room - filled)}]{numbers}"


def batch_summary(tally: Tally, seconds: float, results: Path, letters: Path) -> str:
    rate = f", {tally.ended / seconds:.1f} tasks/s" if seconds > 0 and tally.ended else ""
    lines = [f"{tally.ended - tally.failed} completed, {tally.failed} failed in {duration(seconds)}{rate}"]
    if tally.ended < tally.total:
        lines.append(f"{tally.total - tally.ended} not ended yet: they go on without this command")
    lines.append(f"results: {results}")
    return "\n".join(lines + ([f"dead letters: {letters}"] if tally.failed else []))


# --- first steps


def setup_text(made: Sequence[Path], there: Sequence[Path], workers: Sequence[str]) -> str:
    """What `--setup` did and what comes next."""
    lines = [f"made   {path}" for path in made]
    if there:
        lines.append(f"{count(len(there), 'folder')} {'was' if len(there) == 1 else 'were'} there already")
    first = workers[0]
    lines += [
        "",
        "Next:",
        f"  {_WORKER} {first:<24}   # serve {first}, in a terminal of its own; Ctrl-C ends it",
        f'  {_DEMO} --task {first} "List files" --wait',
        f"  {_DEMO} --status",
        "",
        f"Without an account: PROVIDER=command AGENT_COMMAND='python watcher/standin.py' {_WORKER} {first}",
    ]
    return "\n".join(lines)


def examples_text(folders: Folders, worker: str = "marie") -> str:
    """Things to paste into a shell. Lines that start with # explain, the others run."""
    inbox, results, letters = (folders.tasks / worker, folders.results / worker, folders.dlq / worker)
    quoted = {name: shlex.quote(os.fspath(path)) for name, path in
              (("inbox", inbox), ("results", results), ("dlq", letters), ("beats", folders.heartbeats))}  # fmt: skip
    return _EXAMPLES.format(worker=worker, task=_DEMO, serve=_WORKER, **quoted)


_EXAMPLES = """\
# --- a task by hand: only "description" is needed; the file's name is the task's id
cat > {inbox}/hello.json <<'END'
{{ "description": "List the files in this folder" }}
END

# --- the same with a rename: nobody ever sees half a file
cat > {inbox}/.hello2.tmp <<'END'
{{ "description": "Say hello" }}
END
mv {inbox}/.hello2.tmp {inbox}/hello2.json

# --- priority: critical, high, normal, low or a number from -1000 to 1000; a higher one is taken first
cat > {inbox}/urgent.json <<'END'
{{ "description": "Look at the failing build", "priority": "critical", "timeout": 120 }}
END

# --- one task after others: it waits for their results, and their answers are filled in
cat > {inbox}/outline.json <<'END'
{{ "description": "Write an outline about lighthouses" }}
END
cat > {inbox}/text.json <<'END'
{{ "description": "Write the text for this outline: {{{{outline.stdout}}}}", "dependencies": ["outline"] }}
END
# (a task of another worker is named like anga/outline, in both places)

# --- not before a time
cat > {inbox}/tonight.json <<END
{{ "description": "Summarise the day", "not_before": "$(date -u -d '+10 minutes' +%Y-%m-%dT%H:%M:%SZ)" }}
END

# --- in order: tasks with one agent_id run one at a time, oldest first
cat > {inbox}/step-1.json <<'END'
{{ "description": "Step one", "agent_id": "release" }}
END
cat > {inbox}/step-2.json <<'END'
{{ "description": "Step two", "agent_id": "release" }}
END

# --- the same from the command line
{task} --task {worker} "List files" --wait
{task} --task {worker} "Fix it" --priority high --timeout 300 --after outline,step-1 --meta ticket=42
git diff | {task} --task {worker} - --id review-42
{task} --batch 10 --worker {worker} --text "Task {{n}} of {{total}}: say hello"

# --- what became of them
ls {results}              # one file for each task that ended; never changed after
cat {results}/hello.json  # status, stdout, stderr, exit_code, attempts, ...
ls {dlq}                  # what failed for good or could not be read, and why (dlq_reason, dlq_detail)
ls {beats}                # one heartbeat for each worker process
{task} --status
{task} --watch            # Ctrl-C ends it

# --- workers and settings: flag, environment, .env, default; the first one that is there wins
# {serve} {worker} --max-concurrent 5 --log-format text
# {serve} {worker} --print-config
# WATCHER_ROOT=/srv/agents CLAUDE_COMMAND="claude --verbose" {serve} {worker}
# PROVIDER=command AGENT_COMMAND='python watcher/standin.py' {serve} {worker}    # without an account"""


# --- small things


def table(header: Sequence[str], rows: Sequence[Sequence[str]], look: Look) -> list[str]:
    """Columns as wide as they must be, two spaces between; the last one takes what is left."""
    widths = [max(width_of(row[column]) for row in [header, *rows]) for column in range(len(header) - 1)]
    widths.append(0)
    plain = ["  ".join(map(pad, row, widths)).rstrip() for row in [header, *rows]]
    return [look.paint(cut(plain[0], look.width), "bold"), *(cut(line, look.width) for line in plain[1:])]


def duration(seconds: float) -> str:
    """About how long, in one unit: `20 ms`, `0.3 s`, `45 s`, `12 min`, `5 h`, `4 d`."""
    if 0 < seconds < 0.095:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for limit, size, unit in ((100.0, 1, "s"), (6000.0, 60, "min"), (172_800.0, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def clean(text: str) -> str:
    """Text of a stranger without what a terminal would obey; newlines and tabs stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def width_of(text: str) -> int:
    """How many cells of a terminal this takes."""
    return len(text) if text.isascii() else sum(_cells(c) for c in text)


def pad(text: str, width: int) -> str:
    return text + " " * (width - width_of(text))


def cut(text: str, width: int) -> str:
    """This text on one line of at most so many cells; what is missing shows as `..`."""
    text = text.replace("\n", " ").replace("\t", " ")
    if width_of(text) <= width:
        return text
    kept, used = "", 0
    for character in text:
        used += _cells(character)
        if used > width - 2:
            break
        kept += character
    return f"{kept}.."[: max(0, width)]


def wrap(text: str, width: int) -> list[str]:
    """This text on as many lines as it needs, at most a few; commands stand at its end, so it is not simply cut."""
    lines = textwrap.wrap(text, max(20, width), subsequent_indent="  ", max_lines=_ADVICE_LINES, placeholder=" ..")
    return [cut(line, width) for line in lines]


def _cells(character: str) -> int:
    """Unicode Standard Annex 11: wide and full-width characters take two cells, combining ones none."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
