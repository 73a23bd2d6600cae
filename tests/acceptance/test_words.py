"""Words that a task's tools print hold nobody: the task fails and counts, and those behind it run."""

from __future__ import annotations

import pytest

from tests.acceptance.conftest import Site

LINES = [
    ("gemini", "GEMINI_COMMAND", "FAILED tests/test_limits.py::test_maxRequestsPerDay"),
    ("gemini", "GEMINI_COMMAND", "assert response.error == API_KEY_INVALID"),
    ("claude", "CLAUDE_COMMAND", "Iteration limit reached in tests/loop.py"),
    ("claude", "CLAUDE_COMMAND", "OAuth token refresh test failed: see tests/test_oauth.py"),
    ("claude", "CLAUDE_COMMAND", "error: unknown option --strict"),
    ("cursor-agent", "CURSOR_COMMAND", "HTTP/1.1 401 Unauthorized  <- curl of an API under test"),
    ("codex", "CODEX_COMMAND", "unexpected status 401 of GET /admin"),
    ("opencode", "OPENCODE_COMMAND", "Error: Unauthorized"),
    ("qwen", "QWEN_COMMAND", "Missing API key in fixture users.json"),
]
GOOD = {
    "gemini": '{"type":"message","role":"assistant","content":"x"}\n{"type":"result","status":"success"}',
    "codex": '{"type":"item.completed","item":{"type":"agent_message","text":"x"}}\n{"type":"turn.completed"}',
    "opencode": '{"type":"text","part":{"text":"x"}}\n{"type":"step_finish","part":{"reason":"stop"}}',
}
CLAUDES = '{"type":"result","subtype":"success","is_error":false,"result":"x"}'


@pytest.mark.parametrize("stream", [1, 2])
@pytest.mark.parametrize(("provider", "setting", "line"), LINES, ids=[f"{name}-{line}" for name, _, line in LINES])
def test_task_that_prints_words_of_a_limit_fails_alone(
    site: Site, provider: str, setting: str, line: str, stream: int
) -> None:
    agent = f"""
echo "$WATCHER_TASK_ID $WATCHER_ATTEMPT" >> "$SITE/notes"
case "$WATCHER_TASK_ID" in bad) echo '{line}' >&{stream}; exit 1;; esac
cat <<'EOF'
{GOOD.get(provider, CLAUDES)}
EOF
"""
    settings = {"PROVIDER": provider, setting: site.script(agent, provider), "AGENT_COMMAND": None}
    site.start("marie", MAX_CONCURRENT_TASKS="1", MAX_RETRIES="1", INITIAL_RETRY_DELAY="0.01", **settings)
    for stem in ("bad", "next", "last"):
        site.drop(stem)
    assert [site.result(stem)["status"] for stem in ("next", "last")] == ["completed", "completed"]
    result = site.result("bad")
    assert (result["reason"], result["attempts"]) == ("max_retries_exceeded", 2)
    assert sum(note.startswith("bad ") for note in site.noted()) == 2
    holds = site.root / "control" / "holds"
    assert [path.name for path in holds.glob("*.json")] == []
