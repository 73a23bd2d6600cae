"""A look at what a command prints: what it is called, what it costs to look, what is never shown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from watcher.runner.live_view import LOOK_BYTES, LiveView, is_answer, name_of
from watcher.runner.stall_timer import StallWatch

NOW = 1_800_000_000.0


class Output:
    """A file that grows, and a look at it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.look = LiveView()

    def write(self, *events: object, end: bytes = b"\n") -> None:
        os.write(self.fd, b"\n".join(e if isinstance(e, bytes) else json.dumps(e).encode() for e in events) + end)

    def seen(self, now: float = NOW) -> tuple[str | None, float | None]:
        live = self.look.again(self.fd, now)
        return live.event, live.at


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Output]:
    made = Output(tmp_path / "stdout")
    yield made
    os.close(made.fd)


def tool(name: str) -> dict[str, Any]:
    return {"type": "assistant", "message": {"content": [{"type": "text"}, {"type": "tool_use", "name": name}]}}


@pytest.mark.parametrize(
    ("event", "name"),
    [
        ({"type": "system", "subtype": "init"}, "init"),
        (tool("Bash"), "tool Bash"),
        ({"type": "assistant", "message": {"content": [{"type": "text", "text": "secret"}]}}, "text"),
        ({"type": "user", "message": {}}, "tool_result"),
        ({"type": "result", "subtype": "success"}, "result"),
        ({"type": "tool_use", "tool_name": "run_shell_command", "parameters": {}}, "tool run_shell_command"),
        ({"type": "tool_call", "tool_call": {"shellToolCall": {"args": {}}}}, "tool shellToolCall"),
        ({"type": "tool_use", "part": {"type": "tool", "tool": "bash"}}, "tool bash"),
        ({"type": "item.started", "item": {"type": "command_execution"}}, "tool command_execution"),
        ({"type": "item.started", "item": {"type": "reasoning"}}, "item.started"),
        ({"type": "turn.completed", "usage": {}}, "turn.completed"),
        ({"type": "x" * 500}, "x" * 80),
        ({"type": "a\x1b[31mb\nc"}, "a_31mb_c"),
        ({"type": 7}, None),
        ({"message": "x"}, None),
        ({"type": "tool_use", "tool_name": 7, "part": []}, "tool_use"),
        ({"type": "assistant", "message": [1]}, "text"),
        ({"type": "tool_call", "tool_call": "x"}, "tool_call"),
    ],
)
def test_events_are_named_in_a_few_words(event: dict[str, Any], name: str | None) -> None:
    assert name_of(event) == name


def test_last_event_is_told_with_when_it_was_first_seen(output: Output) -> None:
    assert output.seen() == (None, None)
    output.write({"type": "system", "subtype": "init"}, tool("Bash"))
    assert output.seen(NOW) == ("tool Bash", NOW)
    assert output.seen(NOW + 10) == ("tool Bash", NOW)
    output.write(tool("Bash"))
    assert output.seen(NOW + 20) == ("tool Bash", NOW + 20)


def test_line_that_is_half_written_is_read_when_it_is_whole(output: Output) -> None:
    output.write(tool("Bash"))
    output.write(b'{"type": "sys', end=b"")
    assert output.seen()[0] == "tool Bash"
    output.write(b'tem", "subtype": "api_retry"}')
    assert output.seen()[0] == "api_retry"


def test_what_is_no_event_leaves_the_last_one_standing(output: Output) -> None:
    output.write(tool("Bash"), b"plain words", b"{broken", b"[1]", b'{"a": 1}', b"\xff", b"")
    assert output.seen()[0] == "tool Bash"


def test_one_look_reads_a_mebibyte_at_most_and_finds_the_end(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        output.write({"type": "tool_use", "tool_name": f"t{number}", "x": "y" * 100_000})
    read = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda *a: read.append(len(part := real(*a))) or part)
    assert output.seen()[0] == "tool t39"
    assert sum(read) <= LOOK_BYTES
    read.clear()
    assert output.seen()[0] == "tool t39" and sum(read) == 0


def test_line_of_many_mebibytes_is_passed_over(output: Output) -> None:
    output.write(b"x" * (3 * LOOK_BYTES), end=b"")
    for _ in range(3):
        assert output.seen() == (None, None)
    output.write(b"", tool("Grep"))
    assert output.seen()[0] == "tool Grep"


def test_file_that_was_emptied_is_read_from_its_beginning(output: Output) -> None:
    output.write(tool("Bash"), tool("Bash"))
    output.seen()
    os.ftruncate(output.fd, 0)
    output.write(tool("Grep"))
    assert output.seen()[0] == "tool Grep"


def test_costs_are_totals_or_steps(output: Output) -> None:
    assert output.look.again(output.fd, NOW).cost_usd is None
    output.write({"type": "step_finish", "part": {"cost": 0.25}}, {"type": "step_finish", "part": {"cost": 0.5}})
    assert output.look.again(output.fd, NOW).cost_usd == 0.75
    output.write({"type": "result", "total_cost_usd": 2}, {"type": "x", "cost": "much"}, {"type": "x", "cost": -1})
    assert output.look.again(output.fd, NOW).cost_usd == 2


@pytest.mark.parametrize(
    ("event", "answer"),
    [
        ({"type": "assistant", "message": {"model": "m"}}, True),
        ({"type": "assistant", "error": "rate_limit", "message": {}}, False),
        ({"type": "assistant", "message": {"model": "<synthetic>"}}, False),
        ({"type": "message", "role": "assistant"}, True),
        ({"type": "message", "role": "user"}, False),
        ({"type": "system", "subtype": "init"}, False),
        ({"type": "rate_limit_event"}, False),
        ({"type": "result"}, False),
        ({"type": "thread.started"}, False),
    ],
)
def test_answer_is_what_a_model_said(event: dict[str, Any], answer: bool) -> None:
    assert is_answer(event) is answer


# --- the stall rule


def test_silence_of_the_whole_limit_is_a_stall() -> None:
    watch = StallWatch(40)
    assert watch.pause_seconds == 10
    assert [watch.is_stalled((0, 0), now) for now in (0, 10, 39.9, 40)] == [False, False, False, True]


def test_every_output_starts_the_silence_anew() -> None:
    watch = StallWatch(40)
    for now in range(0, 1000, 39):
        assert not watch.is_stalled((now, 0), now)
    assert not watch.is_stalled((975, 0), 1014) and watch.is_stalled((975, 0), 975 + 40 + 39)
