"""Make tables of workers, tasks and batches: records in, text out. Prints nothing, reads nothing, knows no clock.

Every line is cut and cleaned as `terminal` promises; colour says nothing that the words do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watcher.cli.first_steps import DEMO, WORKER
from watcher.cli.terminal import TerminalStyle, clean, count, cut, duration, one_line, pad, table, width_of, wrap

if TYPE_CHECKING:
    from watcher.store.overview import Overview, RunningTask, WorkerOverview
    from watcher.store.workers import Process

_STATE_COLOURS = {
    "healthy": "green", "starting": "green", "degraded": "yellow", "held": "yellow", "paused": "yellow",
    "draining": "yellow", "dead": "red", "unknown": "red", "stopped": "dim", "absent": "dim",
}  # fmt: skip
#: What a person can take in at a look; `--json` has all of them.
_RUNNING_AT_MOST = 15
_NAME_WIDTH = 24


# --- the state of everything


def status_lines(overview: Overview, look: TerminalStyle) -> list[str]:
    """The table of workers, what runs now, and what a person should know or do."""
    if not overview.workers:
        return [
            cut(f"No worker and no task in {clean(overview.root)}.", look.width),
            f"Make the folders with: {DEMO} --setup",
        ]
    lines = _worker_table(overview, look)
    running = _running_lines(overview.running, look)
    if running:
        lines += ["", *running]
    advice = _advice(overview)
    if advice:
        lines += ["", *(part for line in advice for part in wrap(line, look.width))]
    return lines


def listener_lines(is_running: bool, status: Mapping[str, Any]) -> list[str]:
    """Below the table: whether a listener runs, and what only the listener knows. `status`: its last word."""
    if not is_running:
        taken_at = one_line(str(status.get("taken_at") or ""))
        last = f"; last seen {taken_at}." if taken_at else "."
        return [f"listener: not running{last}"]
    first = f"listener: running (pid {status.get('pid')}), {status.get('known_files')} outcomes read"
    if status.get("unread_files"):
        first += f", {status['unread_files']} to read"
    lines = [one_line(first)]
    found = status.get("processes")
    for process in found if isinstance(found, list) else []:
        if isinstance(process, dict) and process.get("state") in ("stale", "dead", "unknown"):
            instance = f"@{process['instance']}" if process.get("instance") else ""
            seconds = process.get("silent_seconds")
            silent = f": silent for {seconds:.0f} s" if isinstance(seconds, int | float) else ""
            lines.append("  " + one_line(f"{process.get('worker')}{instance} is {process['state']}{silent}"))
    if status.get("trouble"):
        lines.append("  " + one_line(f"in trouble: {status['trouble']}"))
    return lines


def _worker_table(overview: Overview, look: TerminalStyle) -> list[str]:
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


def _running_lines(running: Sequence[RunningTask], look: TerminalStyle) -> list[str]:
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
    return cut(one_line(task.last_event), 40) + ("" if age is None else f" ({duration(age)})")


def _advice(overview: Overview) -> list[str]:
    """A line for each thing that is not as it should be, and what to do."""
    out: list[str] = []
    for worker in overview.workers:
        for process in worker.processes:
            out += about_process(process)
        out += _about_tasks(worker)
    return out + [one_line(problem) for problem in overview.problems]


def about_process(process: Process) -> list[str]:
    """A line for each thing about this process that is not as it should be."""
    out = []
    if process.reason and process.state != "healthy":
        until = f"; until {one_line(process.held_until)}" if process.held_until else ""
        out.append(f"{process.name} is {process.state}: {one_line(process.reason)}{until}")
    silence = silence_text(process)
    return [*out, f"{process.name} {silence}"] if silence else out


def silence_text(process: Process) -> str:
    """What is to be said of a process that lives and does not beat; empty when it beats."""
    if not process.is_silent:
        return ""
    age, interval = duration(process.beat_age_seconds or 0.0), duration(process.interval_seconds or 0.0)
    return f"is alive, but its last heartbeat is {age} old (one every {interval}): frozen, or two clocks differ"


def _about_tasks(worker: WorkerOverview) -> list[str]:
    out = []
    start = f"{WORKER} {worker.worker}"
    if any(process.is_alive for process in worker.processes):
        if worker.orphaned:
            out.append(f"{worker.worker}: {count(worker.orphaned, 'task')} of a killed process will be taken back soon")
    elif worker.orphaned:
        text = f"{count(worker.orphaned, 'task')} orphaned by a killed process, {worker.pending} waiting, none lost"
        out.append(f"{worker.worker}: {text}; start it again: {start}")
    elif worker.pending:
        out.append(
            f"{worker.worker}: {count(worker.pending, 'task')} waiting and no process serves them; start one: {start}"
        )
    if worker.held:
        out.append(f"{worker.worker}: {count(worker.held, 'task')} held; let one start: watcher release ID")
    if worker.ignored:
        files = count(worker.ignored, "file")
        out.append(f"{worker.worker}: {files} in its inbox that no worker takes; see: watcher list {worker.worker}")
    if worker.unread:
        out.append(f"{worker.worker}: {count(worker.unread, 'file')} among its results that cannot be read as one")
    return out


# --- one task


def result_text(result: Mapping[str, Any], path: Path, look: TerminalStyle) -> str:
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
    return one_line(f"{result.get('worker')}/{result.get('task_id')} {status}{why}{took}, {', '.join(facts)}")


def _stream(result: Mapping[str, Any], name: str, title: str) -> list[str]:
    text = clean(str(result.get(name) or "")).rstrip("\n")
    lines = ([title] if title and text else []) + ([text] if text else [])
    if result.get(f"{name}_truncated"):
        where = f"; all of it is in {clean(str(result[f'{name}_path']))}" if result.get(f"{name}_path") else ""
        lines.append(f"({name} was cut{where})")
    return lines


def refused_text(letter: Mapping[str, Any], path: Path, look: TerminalStyle) -> str:
    """A dead letter without a result: why the file was not taken."""
    return f"{look.paint(letter_line(letter), 'red')}\nfile: {clean(str(path))}"


def letter_line(letter: Mapping[str, Any]) -> str:
    """One line: whose, why, after how many retries."""
    who = f"{letter.get('worker')}/{letter.get('task_id')}"
    retries = letter.get("retry_count") or 0
    after = f" after {count(retries, 'retry', 'retries')}" if isinstance(retries, int) and retries else ""
    detail = f": {letter['dlq_detail']}" if letter.get("dlq_detail") else ""
    return one_line(f"{who} {letter.get('dlq_reason')}{after}{detail}")


# --- a batch


@dataclass(slots=True)
class BatchProgress:
    """How far a batch is. `failed` are part of `ended`."""

    total: int
    ended: int = 0
    failed: int = 0


def progress_line(tally: BatchProgress, seconds: float, look: TerminalStyle) -> str:
    """A bar with its numbers on one line."""
    numbers = f" {tally.ended}/{tally.total} ended, {tally.failed} failed, {duration(seconds)}"
    room = min(40, look.width - len(numbers) - 3)
    if room < 4:
        return cut(numbers.strip(), look.width)
    filled = room * tally.ended // max(1, tally.total)
    bar = look.paint("#" * filled, "yellow" if tally.failed else "green")
    return f"[{bar}{'.' * (room - filled)}]{numbers}"


def batch_summary(tally: BatchProgress, seconds: float, results: Path, letters: Path) -> str:
    rate = f", {tally.ended / seconds:.1f} tasks/s" if seconds > 0 and tally.ended else ""
    lines = [f"{tally.ended - tally.failed} completed, {tally.failed} failed in {duration(seconds)}{rate}"]
    if tally.ended < tally.total:
        lines.append(f"{tally.total - tally.ended} not ended yet; they continue without this command")
    lines.append(f"results: {results}")
    return "\n".join(lines + ([f"dead letters: {letters}"] if tally.failed else []))
