"""Which budgets bound which providers, and how many tokens a running command has used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.recorded import recorded
from watcher.policy.budget_limits import BudgetLimits, all_unbound, unbound
from watcher.runner.live_view import LiveView
from watcher.runner.providers.built_in import BUILT_IN, built_in
from watcher.runner.tokens import TokenCount


def test_budgets_say_which_providers_they_cannot_bound() -> None:
    money = all_unbound(BUILT_IN.values(), BudgetLimits(max_cost_per_task=1.0))
    assert set(money) == {"gemini", "cursor-agent", "codex", "opencode", "qwen"}
    assert "MAX_COST_PER_TASK cannot bound codex" in money["codex"] and "MAX_TOKENS_PER_TASK would" in money["codex"]
    assert "MAX_TOKENS" not in money["cursor-agent"]
    both = unbound(BUILT_IN["cursor-agent"], BudgetLimits(1.0, 5.0, 1000))
    assert both is not None and both.startswith("MAX_COST_PER_TASK and DAILY_BUDGET cannot")
    assert both.endswith("MAX_TOKENS_PER_TASK cannot bound cursor-agent, which reports no tokens")
    assert set(all_unbound(BUILT_IN.values(), BudgetLimits(max_tokens_per_task=1))) == {"cursor-agent"}
    assert all_unbound(BUILT_IN.values(), BudgetLimits()) == {}


def test_plain_text_tells_nothing_to_bound() -> None:
    known = built_in({"claude": "claude --output-format text", "command": "mine"})
    for name in ("claude", "command"):
        assert unbound(known[name], BudgetLimits(max_cost_per_task=1.0, max_tokens_per_task=1)) is not None


@pytest.mark.parametrize("provider", ["claude", "codex", "opencode", "qwen"])
def test_tokens_of_a_running_command_are_those_that_its_end_tells(provider: str, tmp_path: Path) -> None:
    case = next(case for case in recorded() if case.name == f"{provider}/tool")
    usage = case.fields["expected"]["usage"]
    fd = os.open(case.folder / "stdout", os.O_RDONLY)
    live = LiveView().again(fd, 0.0)
    os.close(fd)
    answers = 2 if provider == "claude" else 1  # the stub gives each answer of claude's API the same id
    assert (live.tokens or 0) * answers == usage["input_tokens"] + usage["output_tokens"]


def test_answer_that_is_told_twice_counts_once() -> None:
    count = TokenCount()
    for used in (0, 7):
        message = {"id": "m", "usage": {"input_tokens": 10, "output_tokens": used, "cache_read_input_tokens": 3}}
        count.learn({"type": "assistant", "message": message})
    assert count.total == 20
    for event in ({"type": "assistant", "message": 7}, {"type": "step_finish", "part": {"tokens": {"input": "x"}}}, {}):
        count.learn(json.loads(json.dumps(event)))
    assert count.total == 20
