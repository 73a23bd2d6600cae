"""Lines to and from a handler."""

from __future__ import annotations

import json
from typing import Any

import pytest

from watcher.runner.warm.jsonrpc import (
    Answer,
    BadAnswer,
    Executed,
    RpcError,
    notification,
    parse_answer,
    parse_executed,
    request,
)


def test_a_request_is_one_line_of_json_rpc() -> None:
    line = request(7, "execute_handler", {"handler_name": "default", "event": {"description": "two\nlines \ud800"}})
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "jsonrpc": "2.0",
        "id": 7,
        "method": "execute_handler",
        "params": {"handler_name": "default", "event": {"description": "two\nlines ?"}},
    }
    assert json.loads(notification("shutdown")) == {"jsonrpc": "2.0", "method": "shutdown"}


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ({"id": 3, "result": {"success": True}}, Answer(3, {"success": True})),
        ({"id": 3, "result": None}, Answer(3, None)),
        ({"id": 3, "error": {"code": -32601, "message": "no"}}, Answer(3, None, RpcError(-32601, "no"))),
        ({"id": None, "error": {"code": -32700, "message": "what?"}}, Answer(-1, None, RpcError(-32700, "what?"))),
    ],
)
def test_answers_are_read(said: dict[str, Any], answer: Answer) -> None:
    assert parse_answer(json.dumps({"jsonrpc": "2.0", **said}).encode()) == answer


@pytest.mark.parametrize(
    "line",
    [
        b"null", b"hello", b"[]", b"7", b"\xff\xfe", b"{", b"[" * 100_000, b"9" * 10_000, b'{"id": 1, "result": 1}',
        b'{"jsonrpc": "1.0", "id": 1, "result": 1}', b'{"jsonrpc": "2.0", "id": 1}',
        b'{"jsonrpc": "2.0", "id": 1, "result": 1, "error": {"code": 1, "message": "x"}}',
        b'{"jsonrpc": "2.0", "result": 1}', b'{"jsonrpc": "2.0", "id": true, "result": 1}',
        b'{"jsonrpc": "2.0", "id": "1", "result": 1}', b'{"jsonrpc": "2.0", "id": -5, "result": 1}',
        b'{"jsonrpc": "2.0", "id": 1, "id": 2, "result": {"success": true}}',
        b'{"jsonrpc": "2.0", "id": 1, "result": {"success": true, "output": {"a": 1, "a": 2}}}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "what"}', b'{"method": "log"}', b'{"jsonrpc": "2.0", "method": 7}',
        b'{"jsonrpc": "2.0", "id": 1, "error": "no"}', b'{"jsonrpc": "2.0", "id": 1, "error": {"code": "1"}}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_answer_is_refused_with_its_beginning(line: bytes) -> None:
    with pytest.raises(BadAnswer) as caught:
        parse_answer(line)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("line", [b"", b" \t", b"\r", b'{"jsonrpc": "2.0", "method": "log", "params": {"text": "hm"}}'])
def test_a_line_that_wants_nothing_is_passed_over(line: bytes) -> None:
    assert parse_answer(line) is None


@pytest.mark.parametrize(
    ("result", "executed"),
    [
        ({"success": True, "output": "x", "stderr": "y"}, Executed(True, "x", "y")),
        ({"success": True}, Executed(True, "", "")),
        ({"success": False, "output": [1], "stderr": None, "permanent": True}, Executed(False, "[1]", "", True)),
    ],
)
def test_results_are_read(result: dict[str, Any], executed: Executed) -> None:
    assert parse_executed(result) == executed


@pytest.mark.parametrize(
    "result",
    [None, [], "x", {}, {"success": 1}, {"success": True, "stderr": 1}, {"success": True, "output": float("nan")}],
)
def test_a_result_of_another_shape_is_refused(result: Any) -> None:
    with pytest.raises(BadAnswer):
        parse_executed(result)
