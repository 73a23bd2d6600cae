"""Whatever goes wrong with one task is that task's trouble: its worker serves the others, beats and obeys."""

from __future__ import annotations

import json

import pytest

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


#: Raises where the worker handles the task `poison`, in the place that the setting INJECT names.
_INJECTION = """
import importlib, os, sys
place, _, kind = os.environ.get("WATCHER_TEST_INJECT", "").partition("=")
if place and os.path.basename(sys.argv[0]) == "worker_watcher.py":
    import builtins
    module_name, _, name = place.rpartition(":")
    module = importlib.import_module(module_name)
    owner, _, attribute = name.rpartition(".")
    target = getattr(module, owner) if owner else module
    true = getattr(target, attribute)
    def wrapped(*args, **named):
        if any("poison" in str(getattr(a, "task_id", a))[:300] for a in (*args, *named.values())):
            if kind == "SIGKILL":
                os.kill(os.getpid(), 9)
            raise getattr(builtins, kind)("injected")
        return true(*args, **named)
    setattr(target, attribute, wrapped)
"""

PLACES = [
    "watcher.store.inbox_index:parse_task", "watcher.store.queue:parse_task",
    "watcher.store.inbox_index:read_task_file",
    "watcher.store.queue:read_task_file", "watcher.store.queue:DirectorySpool._claim",
    "watcher.store.queue:unfilled", "watcher.worker.executor:Executor._begin", "watcher.worker.executor:settlement",
    "watcher.store.queue:fill", "watcher.store.blocked:Blocked.add",
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["MemoryError", "RecursionError", "KeyError"])
def test_defect_over_one_task_ends_that_task_and_lets_the_others_run(site: Site, place: str, kind: str) -> None:
    (site.home / "sitecustomize.py").write_text(_INJECTION)
    inject = {"PYTHONPATH": str(site.home), "WATCHER_TEST_INJECT": f"{place}={kind}"}
    site.drop("base")
    site.drop("poison", dependencies=["base"], description="poison {{base.stdout}}", agent_id="L")
    worker = site.start(AGENT_COMMAND="cat", MAX_RETRIES=1, MAX_CONCURRENT_TASKS=2, **inject)
    # Short memory counts against a task only when another one could be read since, so others keep coming.
    refused = site.root / "dlq" / "marie" / "poison.json"
    for number in range(500):
        site.drop(f"good-{number}", agent_id="L")
        assert site.result(f"good-{number}")["status"] == "completed"
        if number >= 4 and refused.exists():
            break
    letter = site.dead_letter("poison")
    assert "injected" in letter["dlq_detail"]
    site.pass_beats(2)
    assert worker.stop() == 0


@pytest.mark.parametrize("first", ["poison", "innocent-1"])
def test_who_only_ran_beside_a_task_that_kills_its_worker_is_not_blamed(site: Site, first: str) -> None:
    (site.home / "sitecustomize.py").write_text(_INJECTION)
    inject = {"PYTHONPATH": str(site.home), "WATCHER_TEST_INJECT": "watcher.runner.command_line:Planner.plan=SIGKILL"}
    wait = 'echo "$WATCHER_TASK_ID" >> "$SITE/notes"; while test ! -e "$SITE/go"; do sleep 0.02; done'
    site.drop(first)
    for stem in {"innocent-1", "innocent-2", "poison"} - {first}:
        site.drop(stem)
    settings = {"AGENT_COMMAND": site.script(wait), "MAX_CONCURRENT_TASKS": 3, **inject}
    for deaths in range(1, 4):
        if deaths == 3:
            (site.home / "go").touch()
        worker = site.launch("marie", **settings)
        assert worker.ended() == -9, f"death {deaths}"
    worker = site.start("marie", **settings)
    assert site.dead_letter("poison")["dlq_reason"] == "worker_died"
    ended = {stem: site.result(stem) for stem in ("innocent-1", "innocent-2")}
    assert {stem: result["status"] for stem, result in ended.items()} == dict.fromkeys(ended, "completed"), ended
    assert worker.stop() == 0
