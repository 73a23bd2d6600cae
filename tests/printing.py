"""What agent CLIs print, for tests: recorded from claude 2.1.330 (shortened), and how it is judged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from watcher.policy.after_attempt import Ending
from watcher.runner.printed_text import events
from watcher.runner.providers.built_in import built_in
from watcher.runner.providers.failure_words import Printed
from watcher.runner.providers.judging import judge

NOW = 1_795_300_000.0  # 2026-11-21T22:26:40Z
INIT = {"type": "system", "subtype": "init", "cwd": "/w", "session_id": "s", "apiKeySource": "none"}


def lines(*given: Any) -> bytes:
    return b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in given)


@pytest.fixture
def printed(tmp_path: Path) -> Iterator[Any]:
    """Puts bytes into a file, as a command's output is, and gives its descriptor and size."""
    fds = []

    def put(raw: bytes) -> tuple[int, int]:
        path = tmp_path / f"out{len(fds)}"
        path.write_bytes(raw)
        fds.append(os.open(path, os.O_RDONLY))
        return fds[-1], len(raw)

    yield put
    for fd in fds:
        os.close(fd)


def claude_result(**more: Any) -> dict[str, Any]:
    """As it is recorded: `type` stands near the end."""
    given = {
        "duration_api_ms": 84,
        "session_id": "s",
        "total_cost_usd": 0.000144,
        "usage": {
            "input_tokens": 11,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 5,
        },
        "permission_denials": [],
        "terminal_reason": "completed",
        "is_error": False,
        "num_turns": 1,
        "subtype": "success",
        "api_error_status": None,
        "result": "Hello there",
        "type": "result",
    }
    return given | more


def claude_failure(word: str, text: str, status: int | None, terminal: str = "api_error") -> bytes:
    """What claude prints for an API error, `subtype` "success" included."""
    return lines(
        INIT,
        {"type": "assistant", "message": {"content": [{"type": "text", "text": text}]}, "error": word},
        claude_result(is_error=True, result=text, api_error_status=status, terminal_reason=terminal),
    )


LIMIT_EVENT = {
    "type": "rate_limit_event",
    "rate_limit_info": {"status": "rejected", "resetsAt": int(NOW) + 3600, "rateLimitType": "five_hour"},
}


def judged(
    provider: str, code: int, stdout: bytes, stderr: str, printed: Any, output: str = "stream-json", words: str = ""
) -> Ending:
    """`words` are more words of its command."""
    known = built_in({provider: (*built_in()[provider].command, *words.split())})[provider]
    assert known.reader is not None
    fd, size = printed(stdout)
    found = None if output == "text" else known.reader(events(fd, size, output, known.mentions))
    return judge(known, code, found, lambda: Printed(stdout.decode(), stderr), NOW, size)
