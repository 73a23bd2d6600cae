"""Whatever goes wrong with one task is that task's trouble: its worker serves the others, beats and obeys."""

from __future__ import annotations

import json

from tests.acceptance.conftest import Site


def test_prompt_that_would_be_gigabytes_costs_its_own_task_and_no_other(site: Site) -> None:
    worker = site.start(AGENT_COMMAND="cat", MAX_RETRIES=1)
    site.drop("big")
    (site.root / "results" / "marie").mkdir(parents=True, exist_ok=True)
    result = site.result("big") | {"task_id": "huge", "stdout": "x" * 900_000}
    (site.root / "results" / "marie" / "huge.json").write_text(json.dumps(result))
    site.drop("poison", dependencies=["huge"], description="{{huge.stdout}}" * 60_000)
    site.drop("after")
    letter = site.dead_letter("poison")
    assert letter["dlq_reason"] == "prompt_too_large" and "MAX_PROMPT_BYTES" in letter["dlq_detail"]
    assert site.result("after")["status"] == "completed"
    assert worker.stop() == 0
