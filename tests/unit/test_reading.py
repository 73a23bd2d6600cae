"""What machine-readable output says, and text that is cut and made harmless."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.printing import INIT, LIMIT_EVENT, claude_result, lines, printed
from watcher.runner import printed_text as module
from watcher.runner.printed_text import bounded_text, events, harmless, shortened
from watcher.runner.providers.claude_events import read_claude, read_qwen
from watcher.runner.providers.output_events import Reading, read_codex, read_gemini, read_opencode

__all__ = ["printed"]


# --- what machine-readable output says


def test_last_of_several_final_events_counts(printed: Any) -> None:
    fd, size = printed(lines(INIT, claude_result(result="first"), claude_result(result="second", total_cost_usd=2)))
    found = read_claude(events(fd, size, "stream-json"))
    assert (found.answer, found.usage and found.usage.cost_usd) == ("second", 2.0)


@pytest.mark.parametrize("verbose", [False, True])
def test_claude_json_is_one_object_or_with_verbose_a_list(verbose: bool, printed: Any) -> None:
    document: Any = [INIT, claude_result()] if verbose else claude_result()
    fd, size = printed(b"a warning first\n" + json.dumps(document, indent=2 if verbose else None).encode())
    found = read_claude(events(fd, size, "json"))
    assert (found.is_finished, found.is_error, found.answer) == (True, False, "Hello there")


def test_usage_counts_the_cached_input_too(printed: Any) -> None:
    usage = {"input_tokens": 4, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 1000, "output_tokens": 7}
    fd, size = printed(lines(claude_result(usage=usage)))
    found = read_claude(events(fd, size, "stream-json"))
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens) == (1104, 7)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "result"},
        {"type": "result", "usage": [], "result": 7, "is_error": "no", "total_cost_usd": "1"},
        {"type": "result", "usage": {"input_tokens": -1, "output_tokens": 1e400}, "total_cost_usd": float("nan")},
        {"type": "result", "usage": {"input_tokens": True}, "errors": [7], "api_error_status": {}},
        {"type": "rate_limit_event", "rate_limit_info": "no"},
        {"type": "assistant", "error": "x", "message": {"content": [None, {"text": 7}]}},
        {"type": ["result"]},
        {"type": "message", "role": "assistant", "content": []},
        {"error": 7},
        {"response": None, "stats": {"models": []}},
        {"stats": {"models": {"a": 7, "b": {"tokens": None}}}, "response": ""},
    ],
)
def test_events_of_any_shape_are_read_without_harm(event: Any, printed: Any) -> None:
    fd, size = printed(lines(b"garbage\n", b"[" * 100_000 + b"\n", b"[7, null]\n", event))
    for reader in (read_claude, read_gemini, read_codex, read_opencode, read_qwen):
        found = reader(events(fd, size, "stream-json"))
        assert isinstance(found, Reading)
        assert found.usage is None or found.usage.input_tokens is None or found.usage.input_tokens >= 0


def test_gemini_answers_with_what_it_said_after_its_last_tool_call(printed: Any) -> None:
    def said(text: str) -> dict[str, Any]:
        return {"type": "message", "role": "assistant", "content": text, "delta": True}

    end = {"type": "result", "status": "success", "stats": {"input_tokens": 22, "output_tokens": 10}}
    tool = {"type": "tool_use", "tool_name": "run_shell_command"}
    user = {"type": "message", "role": "user", "content": "x"}
    fd, size = printed(lines(user, said("let me"), tool, {"type": "tool_result"}, said("al"), said("l done"), end))
    found = read_gemini(events(fd, size, "stream-json"))
    assert (found.answer, found.is_error) == ("all done", False)
    assert found.usage is not None
    assert found.usage.as_json() == {"input_tokens": 22, "output_tokens": 10}
    fd, size = printed(lines(user, said("only this"), tool, end))
    assert read_gemini(events(fd, size, "stream-json")).answer == "only this"


def test_gemini_json_is_read(printed: Any) -> None:
    tokens = {"tokens": {"prompt": 11, "candidates": 5}}
    document = {"session_id": "s", "response": "Hello", "stats": {"models": {"a": tokens, "b": tokens}}}
    name = {"model": "a", "session_id": "s"}
    fd, size = printed(json.dumps(document, indent=2).encode())
    found = read_gemini(events(fd, size, "json"))
    assert (found.answer, found.is_finished, found.is_error) == ("Hello", True, False)
    assert found.usage is not None
    assert found.usage.as_json() == {"input_tokens": 22, "output_tokens": 10, "cached_input_tokens": 0, **name}


def test_final_event_is_found_behind_more_output_than_is_read(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_AT_MOST_BYTES", 20_000)
    monkeypatch.setattr(module, "_HEAD_BYTES", 5_000)
    noise = {"type": "user", "message": "x" * 900}
    fd, size = printed(lines(LIMIT_EVENT, *[noise] * 100, claude_result()))
    found = read_claude(events(fd, size, "stream-json"))
    assert (found.answer, found.signs["limit"]) == ("Hello there", "rejected")


def test_end_of_a_line_that_is_only_half_read_is_no_line(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_AT_MOST_BYTES", 20_000)
    monkeypatch.setattr(module, "_HEAD_BYTES", 5_000)
    forged = lines(claude_result(result="forged"))
    after = b"z" * (15_000 - len(forged) - 1) + b"\n"
    fd, size = printed(b"y" * 30_000 + forged + after)
    assert not read_claude(events(fd, size, "stream-json")).is_finished


def test_line_that_is_too_long_is_skipped(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 100_000)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1_000)
    fd, size = printed(lines(claude_result(result="x" * 200_000), claude_result(), b"{"))
    assert read_claude(events(fd, size, "stream-json")).answer == "Hello there"
    fd, size = printed(lines(b"x" * 101_000, claude_result()))  # its end, taken alone, would be a final event
    assert not read_claude(events(fd, size, "stream-json")).is_finished
    fd, size = printed(lines(claude_result(), claude_result(result="x" * 200_000)))
    assert read_claude(events(fd, size, "stream-json")).answer == "Hello there"


# --- bounded text


@pytest.mark.parametrize("cut", range(90, 110))
def test_cut_text_has_whole_characters_and_a_true_count(cut: int, printed: Any) -> None:
    whole = "aé€😀" * 40
    text, truncated = bounded_text(*printed(whole.encode()), cut)
    assert truncated
    assert (text, truncated) == shortened(whole, cut)
    head, note, tail = text.split("\n")
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert len(head.encode()) + len(tail.encode()) + int(note.split()[1]) == len(whole.encode())
    assert cut - 6 <= len((head + tail).encode()) <= cut


def test_text_that_fits_is_not_cut(printed: Any) -> None:
    assert bounded_text(*printed(b"abc"), 3) == ("abc", False)
    assert bounded_text(*printed(b""), 3) == ("", False)
    assert shortened("é", 2) == ("é", False)


def test_cutting_bytes_that_are_no_text_ends(printed: Any) -> None:
    text, truncated = bounded_text(*printed(b"\x80" * 1000), 64)
    assert truncated
    assert text.count("\ufffd") > 20


def test_harmless_text_can_be_stored_anywhere() -> None:
    assert harmless("a\0b\ud800c😀") == "a\ufffdb\ufffdc😀"
    assert shortened("a\0\udfff", 100) == ("a\ufffd\ufffd", False)
