"""What people see: text for records made by hand."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from watcher.cli import first_steps, tables, terminal
from watcher.cli.tables import BatchProgress
from watcher.cli.terminal import TerminalStyle
from watcher.formats.task import parse_task
from watcher.store.overview import Overview, RunningTask, WorkerOverview
from watcher.store.workers import Process, State
from watcher_config import folders, read_layers

WIDE = TerminalStyle(width=200)
COLOURED = TerminalStyle(width=200, colour=True)
ALIVE = Process("marie", None, "healthy", None, 192.0, 2.0, 10.0, "closed")
MARIE = WorkerOverview("marie", "healthy", 192.0, 4, 1, 2, 0, 17, 3, 0, 5, "closed", 42.0, (ALIVE,))
RUNNING = RunningTask("brief-1", "marie", None, 2, 75.0, 3.0)


def overview(*workers: WorkerOverview, **changes: Any) -> Overview:
    return replace(Overview(0.0, "/srv/agents", workers, ()), **changes)


def lines_of(*workers: WorkerOverview, look: TerminalStyle = WIDE, **changes: Any) -> list[str]:
    return tables.status_lines(overview(*workers, **changes), look)


def row_of(lines: list[str], name: str) -> list[str]:
    """The cells of the row that begins with this name."""
    (line,) = (line for line in lines if line.split("  ")[0].strip() == name)
    return re.split(r"\s{2,}", line.strip())


def served(state: State, **changes: Any) -> WorkerOverview:
    """Marie with one process in this state."""
    process = replace(ALIVE, state=state, **{k: v for k, v in changes.items() if k in ("reason", "held_until")})
    rest = {k: v for k, v in changes.items() if k not in ("reason", "held_until")}
    return replace(MARIE, state=state, processes=(process,), **rest)


# --- the table


def test_row_of_a_worker_has_everything_a_person_asks_for() -> None:
    lines = lines_of(MARIE)
    assert re.split(r"\s{2,}", lines[0]) == [
        "WORKER", "STATE", "PENDING", "RUNNING", "DONE", "FAILED", "DLQ", "BREAKER", "OLDEST WAITING",
    ]  # fmt: skip
    assert row_of(lines, "marie") == ["marie", "healthy for 3 min", "4", "2", "17", "3", "5", "closed", "42 s"]


def test_counts_stand_right_under_their_titles_however_large_they_are() -> None:
    lines = lines_of(MARIE, replace(MARIE, worker="anga", pending=1_000_000, done=123_456_789))
    ends = {line.index(text) + len(text) for line, text in zip(lines, ["PENDING", " 4", "1000000"], strict=False)}
    assert len(ends) == 1


@pytest.mark.parametrize(
    ("state", "seconds", "text"),
    [
        ("dead", 180.0, "DEAD for 3 min"),
        ("dead", None, "DEAD"),
        ("stopped", 5.0, "stopped 5.0 s ago"),
        ("absent", None, "not started"),
        ("held", 7200.0, "held, up 2 h"),
        ("healthy", 7200.0, "healthy for 2 h"),
        ("unknown", 3.0, "unknown"),
    ],
)
def test_state_says_how_it_is_and_for_how_long(state: State, seconds: float | None, text: str) -> None:
    assert row_of(lines_of(replace(MARIE, state=state, for_seconds=seconds)), "marie")[1] == text


def test_nothing_waiting_and_no_breaker_show_as_a_dash() -> None:
    row = row_of(lines_of(replace(MARIE, breaker=None, oldest_pending_seconds=None)), "marie")
    assert row[-2:] == ["-", "-"]


def test_instances_stand_below_their_worker() -> None:
    first = replace(ALIVE, instance="1")
    second = replace(ALIVE, instance="2", state="dead", for_seconds=60.0)
    task = replace(RUNNING, instance="1")
    lines = lines_of(replace(MARIE, processes=(first, second)), running=(task,))
    assert row_of(lines, "marie")[1] == "1 alive, 1 DEAD"
    at = next(number for number, line in enumerate(lines) if line.startswith("marie "))
    assert re.split(r"\s{2,}", lines[at + 1].strip()) == ["@1", "healthy for 3 min", "1", "closed"]
    assert re.split(r"\s{2,}", lines[at + 2].strip()) == ["@2", "DEAD for 60 s"]


def test_no_worker_at_all_says_what_to_do() -> None:
    text = "\n".join(lines_of())
    assert "/srv/agents" in text
    assert "--setup" in text


def test_running_task_shows_what_it_does_and_since_when_without_control_characters() -> None:
    doing = replace(RUNNING, last_event="tool Ba\x1b[31msh", last_event_age_seconds=12.0)
    (line,) = [line for line in lines_of(MARIE, running=(doing,)) if line.startswith("brief-1")]
    assert "tool Ba" in line and line.endswith("(12 s)") and "\x1b" not in line


@pytest.mark.parametrize("width", [20, 40, 80, 100])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    held = served("held", reason="\u4f60\u597d " * 100, pending=9)
    long = replace(MARIE, worker="w" * 64)
    running = (replace(RUNNING, task_id="t" * 128, worker="w" * 64),)
    for look in (TerminalStyle(width=width), TerminalStyle(width=width, colour=True)):
        for line in lines_of(held, long, look=look, running=running, problems=("p" * 500,)):
            assert terminal.width_of(without_colour(line)) <= width


def test_colour_is_only_ever_added() -> None:
    workers = (MARIE, served("dead"), served("held", reason="x"))
    plain = lines_of(*workers, running=(RUNNING,))
    coloured = lines_of(*workers, look=COLOURED, running=(RUNNING,))
    assert [without_colour(line) for line in coloured] == plain
    assert any("\x1b[31mDEAD" in line for line in coloured)
    assert not any("\x1b" in line for line in plain)


# --- what runs, and advice


def test_running_tasks_show_since_when_and_when_they_last_wrote() -> None:
    lines = lines_of(MARIE, running=(RUNNING, replace(RUNNING, task_id="y", instance="2", output_age_seconds=None)))
    assert row_of(lines, "brief-1") == ["brief-1", "marie", "2", "75 s", "3.0 s ago", "-"]
    assert row_of(lines, "y") == ["y", "marie@2", "2", "75 s", "-", "-"]


def test_long_list_of_running_tasks_is_cut_and_says_so() -> None:
    lines = lines_of(MARIE, running=tuple(replace(RUNNING, task_id=f"t{n}") for n in range(100)))
    assert sum(line.startswith("t") for line in lines) == 15
    assert "... and 85 more" in lines


def test_healthy_worker_needs_no_word() -> None:
    assert len(lines_of(MARIE)) == 2


def test_reason_of_a_worker_that_is_not_well_is_told_with_its_end() -> None:
    text = "\n".join(lines_of(served("held", reason="claude: usage_limit", held_until="2026-11-21T23:33:00Z")))
    assert "marie is held: claude: usage_limit; until 2026-11-21T23:33:00Z" in text


def test_tasks_that_nobody_serves_come_with_the_command_that_helps() -> None:
    for worker in (served("dead"), served("stopped"), replace(MARIE, state="absent", processes=())):
        assert (
            "marie: 4 tasks waiting and no process serves them; start one: python worker_watcher.py marie"
            in lines_of(worker)
        )


def test_tasks_of_a_killed_process_are_not_lost_and_the_person_hears_it() -> None:
    (line,) = (line for line in lines_of(served("dead", orphaned=2)) if "orphaned" in line)
    assert "none lost" in line
    assert "python worker_watcher.py marie" in line
    assert any("will be taken back soon" in line for line in lines_of(replace(MARIE, orphaned=1)))


def test_advice_is_wrapped_so_that_its_command_can_be_read() -> None:
    lines = lines_of(served("dead", orphaned=2), look=TerminalStyle(width=50))
    assert len(lines) > 4
    assert "python worker_watcher.py marie" in " ".join(line.strip() for line in lines)


def test_frozen_process_is_told_without_being_called_dead() -> None:
    lines = lines_of(replace(MARIE, processes=(replace(ALIVE, beat_age_seconds=120.0),)))
    assert any("last heartbeat is 2 min old" in line for line in lines)
    assert not any("DEAD" in line for line in lines)


def test_problems_and_files_that_are_no_results_are_told() -> None:
    lines = lines_of(replace(MARIE, unread=2), problems=("heartbeats/x.json: not a heartbeat",))
    assert "marie: 2 files among its results that cannot be read as one" in lines
    assert "heartbeats/x.json: not a heartbeat" in lines


# --- text of strangers


def test_text_of_a_stranger_cannot_move_the_cursor_or_hide_itself() -> None:
    evil = "\x1b[2J\x1b]0;title\x07\rfake\x08\x9b31m\u202egnp.exe"
    for text in (
        terminal.clean(evil),
        tables.result_text({"stdout": evil, "stderr": evil, "status": "failed", "detail": evil}, Path("/x"), WIDE),
        tables.letter_line({"dlq_reason": evil, "dlq_detail": evil, "task_id": evil}),
        "\n".join(lines_of(served("held", reason=evil), problems=(evil,))),
    ):
        assert re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text) is None
        assert "fake" in text


def test_newlines_and_tabs_of_an_answer_stay() -> None:
    assert terminal.clean("a\r\n\tb\n") == "a\n\tb\n"


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [("abc", 3, "abc"), ("abcd", 3, "a.."), ("\u4f60\u597d\u4f60", 5, "\u4f60.."), ("a\nb", 9, "a b"), ("abc", 1, ".")],
)
def test_text_is_cut_to_cells_not_to_characters(text: str, width: int, shown: str) -> None:
    assert terminal.cut(text, width) == shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 s"), (0.02, "20 ms"), (0.3, "0.3 s"), (9.94, "9.9 s"), (9.96, "10 s"), (99.0, "99 s"), (100.0, "2 min"),
     (5999.0, "100 min"), (6000.0, "2 h"), (172_800.0, "2 d"), (8_640_000.0, "100 d")],
)  # fmt: skip
def test_duration_is_short_and_has_one_unit(seconds: float, text: str) -> None:
    assert terminal.duration(seconds) == text


# --- one task


def result(**changes: Any) -> dict[str, Any]:
    fields = {
        "task_id": "x", "worker": "marie", "status": "completed", "exit_code": 0, "stdout": "the answer\n",
        "stderr": "", "duration_seconds": 2.34, "started_at": "2026-11-21T23:33:00Z", "attempts": 1, "reason": None,
        "provider": "claude",
    }  # fmt: skip
    return fields | changes


def test_completed_result_reads_as_its_line_its_answer_and_its_file() -> None:
    assert tables.result_text(result(), Path("/r/x.json"), WIDE).splitlines() == [
        "marie/x completed in 2.3 s, attempt 1, exit 0, claude", "the answer", "file: /r/x.json",
    ]  # fmt: skip


def test_failed_result_says_why_and_shows_what_it_complained() -> None:
    failed = result(status="failed", reason="exit_code", exit_code=3, stderr="no map\n", detail="it said: no map")
    assert tables.result_text(failed, Path("/r/x.json"), WIDE).splitlines() == [
        "marie/x failed (exit_code) in 2.3 s, attempt 1, exit 3, claude", "it said: no map", "the answer",
        "--- stderr", "no map", "file: /r/x.json",
    ]  # fmt: skip


def test_complaints_of_a_completed_task_are_mentioned_not_shown() -> None:
    text = tables.result_text(result(stderr="deprecated!"), Path("/r/x.json"), WIDE)
    assert "deprecated" not in text
    assert "stderr" in text


def test_cut_answer_says_where_all_of_it_is() -> None:
    text = tables.result_text(result(stdout_truncated=True, stdout_path="/r/.output/x.stdout"), Path("/r/x.json"), WIDE)
    assert "(stdout was cut; all of it is in /r/.output/x.stdout)" in text


def test_task_that_never_ran_shows_no_duration() -> None:
    line = tables.result_line(result(status="failed", reason="dependency_failed", started_at=None, exit_code=None))
    assert line == "marie/x failed (dependency_failed), attempt 1, claude"


def test_dead_letter_is_one_line_with_its_reason() -> None:
    letter = {"task_id": "x", "worker": "marie", "dlq_reason": "worker_died", "retry_count": 1, "dlq_detail": "a\nb"}
    assert tables.letter_line(letter) == "marie/x worker_died after 1 retry: a b"


# --- a batch, and things that are redrawn


@pytest.mark.parametrize(("ended", "hashes"), [(0, 0), (5, 20), (10, 40)])
def test_bar_grows_with_what_has_ended(ended: int, hashes: int) -> None:
    line = tables.progress_line(BatchProgress(10, ended, 1 if ended else 0), 3.0, WIDE)
    assert line.count("#") == hashes
    assert f"{ended}/10 ended" in line


@pytest.mark.parametrize("width", [10, 30, 40, 80])
def test_bar_fits_its_terminal(width: int) -> None:
    assert len(tables.progress_line(BatchProgress(1000, 999, 0), 3.0, TerminalStyle(width=width))) <= width


def test_summary_names_the_failed_and_the_unended() -> None:
    text = tables.batch_summary(BatchProgress(10, 8, 2), 4.0, Path("/r"), Path("/d"))
    assert "6 completed, 2 failed" in text
    assert "2.0 tasks/s" in text
    assert "2 not ended yet" in text
    assert "dead letters: /d" in text
    assert "dead letters" not in tables.batch_summary(BatchProgress(1, 1), 1.0, Path("/r"), Path("/d"))


def test_redrawn_lines_take_the_place_of_the_last_ones() -> None:
    view = Terminal()
    view.write("before\n")
    view.write(terminal.redraw(["a long line", "b", "c"], 0))
    view.write(terminal.redraw(["x", "y"], 3))
    view.write("after\n")
    assert view.text() == ["before", "x", "y", "after"]


def test_frame_fits_the_screen_and_leaves_nothing_of_the_last_one() -> None:
    view = Terminal()
    view.write(terminal.status_frame([f"old line {n}" for n in range(9)], 10))
    view.write(terminal.status_frame(["new"], 10))
    assert view.text() == ["new"]
    view.write(terminal.status_frame([f"line {n}" for n in range(50)], 10))
    assert len(view.text()) == 9
    assert view.text()[-1] == "... 42 more lines"


# --- first steps


def test_setup_names_what_was_made_and_what_comes_next() -> None:
    text = first_steps.setup_text([Path("/s/tasks/anga")], [Path("/s/dlq/anga")], ["anga"], Path("/s"))
    assert "made   /s/tasks/anga" in text
    assert "1 folder was there already" in text
    assert "python worker_watcher.py anga" in text


def test_setup_says_when_everybody_on_the_machine_can_read_results(request: pytest.FixtureRequest) -> None:
    before = os.umask(0o022)
    request.addfinalizer(lambda: os.umask(before) and None)
    assert "umask 077; chmod -R go-rwx /s " in first_steps.setup_text([], [], ["anga"], Path("/s"))
    os.umask(0o077)
    assert "umask" not in first_steps.setup_text([], [], ["anga"], Path("/s"))


def test_pasted_examples_make_tasks_that_a_worker_accepts(tmp_path: Path) -> None:
    places = folders(read_layers(environ={"WATCHER_ROOT": str(tmp_path / "my agents")}, env_file=os.devnull))
    inbox = places.tasks / "marie"
    inbox.mkdir(parents=True)
    # Only what writes files: the commands further down would wait for a worker.
    blocks = re.findall(r"(?m)^cat > .*\n(?:(?!END$).*\n)*END\n(?:mv .*\n)?", first_steps.examples_text(places))
    subprocess.run(["/bin/sh", "-e"], input="".join(blocks), text=True, check=True, cwd=tmp_path, timeout=60)
    tasks = {path.stem: parse_task(path.read_bytes(), path.stem, "marie") for path in inbox.iterdir()}
    assert len(tasks) == len(blocks) >= 8
    assert tasks["urgent"].priority == 100
    assert "{{outline.stdout}}" in tasks["text"].description
    assert tasks["text"].dependencies == ("outline",)
    assert tasks["tonight"].not_before is not None
    assert tasks["step-1"].agent_id == tasks["step-2"].agent_id


def test_every_line_of_the_examples_is_a_comment_or_a_command(tmp_path: Path) -> None:
    places = folders(read_layers(environ={"WATCHER_ROOT": str(tmp_path)}, env_file=os.devnull))
    subprocess.run(["/bin/sh", "-n"], input=first_steps.examples_text(places), text=True, check=True, timeout=60)


def without_colour(line: str) -> str:
    return re.sub(r"\x1b\[\d+m", "", line)


class Terminal:
    """As much of a terminal as the drawing code uses: it refuses every sequence that it does not know."""

    def __init__(self) -> None:
        self._lines: list[str] = [""]
        self._row = self._column = 0

    def write(self, text: str) -> None:
        for piece in re.findall(r"\x1b\[\d*[A-Za-z]|[^\x1b]", text):
            self._obey(piece)

    def _obey(self, piece: str) -> None:
        if piece == "\n":
            self._row, self._column = self._row + 1, 0
            self._lines += [""] * (self._row + 1 - len(self._lines))
        elif piece == "\r":
            self._column = 0
        elif piece == "\x1b[H":
            self._row = self._column = 0
        elif piece == "\x1b[K":
            self._lines[self._row] = self._lines[self._row][: self._column]
        elif piece == "\x1b[J":
            self._lines[self._row] = self._lines[self._row][: self._column]
            del self._lines[self._row + 1 :]
        elif piece.endswith("F") and piece[2:-1].isdigit():
            self._row, self._column = self._row - int(piece[2:-1]), 0
            assert self._row >= 0
        else:
            assert len(piece) == 1, piece
            line = self._lines[self._row]
            self._lines[self._row] = line[: self._column] + piece + line[self._column + 1 :]
            self._column += 1

    def text(self) -> list[str]:
        """The lines without the empty ones at the end."""
        lines = list(self._lines)
        while lines and not lines[-1]:
            lines.pop()
        return lines
