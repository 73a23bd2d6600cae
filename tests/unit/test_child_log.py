"""Lines of other processes in our log: whole, bounded, labelled, and JSON unharmed."""

from __future__ import annotations

import io
import json

from watcher.supervisor.child_log import Lines, make_say
from watcher.telemetry.logs import configure_logging, lines_dropped


def test_lines_come_whole_however_the_bytes_arrive() -> None:
    lines = Lines()
    assert [lines.feed(piece) for piece in (b"a", b"b\nc\r\n", b"\nd")] == [[], [b"ab", b"c"], [b""]]
    assert (lines.end(), lines.end()) == ([b"d"], [])


def test_line_without_end_is_passed_on_in_pieces_and_never_kept() -> None:
    lines = Lines(limit=4)
    assert lines.feed(b"x" * 10) == [b"xxxx", b"xxxx"]
    assert lines.feed(b"x\n123456789\n") == [b"xxx", b"1234", b"5678", b"9"]


def said(as_json: bool, *lines: bytes) -> list[str]:
    stream = io.StringIO()
    configure_logging("INFO", "json" if as_json else "text", "supervisor", stream)
    say = make_say(as_json)
    for line in lines:
        say("marie", line)
    return stream.getvalue().splitlines()


def test_text_lines_get_the_label_and_lose_what_moves_a_cursor() -> None:
    assert said(False, b"hello", b"", b"  ", b"red \x1b[31m", "grün".encode()) == [
        "[marie] hello", "[marie] red \\x1b[31m", "[marie] grün",
    ]  # fmt: skip


def test_json_lines_pass_unharmed_and_others_become_records() -> None:
    raw = '{"worker":"marie","event":"task.settled","text":"ü\\u00fc"}'
    first, second = said(True, raw.encode(), b"Traceback (most recent call last):")
    assert first == raw
    record = json.loads(second)
    assert (record["event"], record["child"], record["worker"]) == ("child.said", "marie", "supervisor")
    assert record["message"] == "Traceback (most recent call last):"


def test_bytes_that_are_no_text_stay_readable() -> None:
    assert said(False, b"\xff ok") == ["[marie] \\xff ok"]


def test_line_that_cannot_be_written_is_counted_and_raises_nothing() -> None:
    stream = io.StringIO()
    configure_logging("INFO", "text", "supervisor", stream)
    say = make_say(False)
    stream.close()
    say("marie", b"lost")
    assert lines_dropped() == 1
