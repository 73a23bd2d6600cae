"""What a submitter reads: results, receipts, dead letters, and what becomes of an id that comes twice."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from pathlib import Path

import pytest

from tests.acceptance.conftest import Site, is_alive, read
from tests.schemacheck import fits
from tests.waiting import wait_for
from watcher.clock import parse_rfc3339
from watcher.formats.schemas import all_schemas

RESULT_FIELDS = {
    "task_id", "worker", "status", "exit_code", "stdout", "stderr", "duration_seconds", "timestamp", "retry_count",
    "started_at", "attempts", "reason", "provider", "usage", "stdout_truncated", "stderr_truncated", "agent_id",
    "batch_id", "metadata", "incarnation", "task_sha256", "submitted",
}  # fmt: skip
RECEIPT_FIELDS = {"kind", "task_id", "worker", "timestamp", "attempt", "incarnation"}


def test_result_and_receipt_have_every_documented_field_with_what_was_asked_and_done(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script('cat; echo " said to stderr" >&2; sleep 0.1; exit 0'))
    raw = site.drop("all", agent_id="writer", batch_id="b-1", metadata={"ticket": [1, None]}, description="Grüße 🙂")
    result, receipt, beat = site.result("all"), read(site.root / "triggers" / "marie" / "all.json"), site.beat()
    assert set(result) == RESULT_FIELDS and fits(all_schemas()["result"], result)
    assert (result["task_id"], result["worker"], result["provider"]) == ("all", "marie", "command")
    assert (result["status"], result["reason"], result["exit_code"]) == ("completed", None, 0)
    assert (result["stdout"], result["stderr"]) == ("Grüße 🙂", " said to stderr\n")
    assert (result["attempts"], result["retry_count"], result["usage"]) == (1, 0, None)
    assert (result["stdout_truncated"], result["stderr_truncated"]) == (False, False)
    assert (result["agent_id"], result["batch_id"], result["metadata"]) == ("writer", "b-1", {"ticket": [1, None]})
    assert result["task_sha256"] == hashlib.sha256(raw).hexdigest()
    assert result["incarnation"] == beat["incarnation"] == receipt["incarnation"]
    took = parse_rfc3339(result["timestamp"]) - parse_rfc3339(result["started_at"])
    assert 0.1 <= result["duration_seconds"] <= took + 0.01
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", result[f]) for f in ("timestamp", "started_at"))
    assert set(receipt) == RECEIPT_FIELDS and fits(all_schemas()["receipt"], receipt)
    assert (receipt["kind"], receipt["task_id"], receipt["attempt"]) == ("task_taken", "all", 1)
    assert parse_rfc3339(receipt["timestamp"]) <= parse_rfc3339(result["timestamp"])


def test_command_sees_its_task_and_nothing_of_the_workers_environment_that_is_not_allowed(site: Site) -> None:
    site.start(AGENT_COMMAND="env", NOT_FOR_YOU="hidden", MY_TOOL="seen", AGENT_ENV="MY_*", MODEL="a-model")
    site.drop("env")
    seen = dict(line.split("=", 1) for line in site.result("env")["stdout"].splitlines())
    assert {name: seen.get(name) for name in ("WATCHER_TASK_ID", "WATCHER_WORKER", "WATCHER_ATTEMPT")} == {
        "WATCHER_TASK_ID": "env", "WATCHER_WORKER": "marie", "WATCHER_ATTEMPT": "1",
    }  # fmt: skip
    assert (seen["MY_TOOL"], seen["HOME"], seen["WATCHER_MODEL"]) == ("seen", str(site.home), "a-model")
    assert set(seen).isdisjoint({"NOT_FOR_YOU", "AGENT_COMMAND", "WATCHER_ROOT", "MODEL"})
    site.drop("own-model", model="another")
    assert "WATCHER_MODEL=another" in site.result("own-model")["stdout"].splitlines()
    site.drop("own-provider", provider="command")
    assert "WATCHER_MODEL" not in site.result("own-provider")["stdout"], "a model belongs to its provider"


def test_result_keeps_head_and_tail_of_a_long_output_and_names_the_file_with_all_of_it(site: Site) -> None:
    say = 'printf "HEAD"; head -c 5000 /dev/zero | tr "\\0" x; printf "TAIL"; echo short >&2'
    site.start(AGENT_COMMAND=site.script(say), MAX_OUTPUT_BYTES=1000)
    site.drop("long")
    result = site.result("long")
    assert result["stdout_truncated"] is True and result["stderr_truncated"] is False
    assert result["stdout"].startswith("HEADxxx") and result["stdout"].endswith("xxxTAIL")
    assert 1000 <= len(result["stdout"]) < 1200
    assert Path(result["stdout_path"]).read_text() == "HEAD" + "x" * 5000 + "TAIL"
    assert result["stderr"] == "short\n" and "stderr_path" not in result
    assert str(site.root / "results" / "marie") in result["stdout_path"]


def test_failing_task_runs_four_times_with_growing_pauses_and_is_then_a_dead_letter(site: Site) -> None:
    run = 'echo "$WATCHER_ATTEMPT $(date +%s.%N)" >> "$SITE/notes"; cat; echo "no such file" >&2; exit 3'
    site.start(AGENT_COMMAND=site.script(run), INITIAL_RETRY_DELAY="0.1")
    raw = site.drop("bad", colour="blue", priority="high")
    result, letter = site.result("bad"), site.dead_letter("bad")
    runs = [line.split() for line in site.noted()]
    assert [number for number, _ in runs] == ["1", "2", "3", "4"]
    times = [float(at) for _, at in runs]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(gap >= least for gap, least in zip(gaps, (0.1, 0.2, 0.4), strict=True)), gaps
    assert (result["status"], result["exit_code"], result["stderr"]) == ("failed", 3, "no such file\n")
    assert (result["retry_count"], result["attempts"], result["reason"]) == (3, 4, "max_retries_exceeded")
    assert {name: letter[name] for name in json.loads(raw)} == json.loads(raw), "the task as it was submitted"
    assert (letter["task_id"], letter["worker"]) == ("bad", "marie")
    assert (letter["dlq_reason"], letter["retry_count"]) == ("max_retries_exceeded", 3)
    assert "no such file" in letter["dlq_detail"] and parse_rfc3339(letter["dlq_timestamp"])
    assert letter["dlq_result"] | {"submitted": json.loads(raw)} == result and fits(
        all_schemas()["dead-letter"], letter
    )
    stats = site.beat_that(lambda beat: beat["stats"]["tasks_dlq"], what="with a dead letter")["stats"]
    assert stats == {"tasks_processed": 1, "tasks_failed": 1, "tasks_retried": 3, "tasks_dlq": 1}


def test_task_that_works_on_its_third_attempt_is_completed(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script('test "$WATCHER_ATTEMPT" -ge 3 && echo done'))
    site.drop("third")
    result = site.result("third")
    assert (result["status"], result["stdout"], result["retry_count"]) == ("completed", "done\n", 2)
    site.drop("no-retry", max_retries=0)
    assert site.result("no-retry")["status"] == "failed"
    assert site.dead_letters() == ["no-retry"]


def test_task_that_takes_too_long_is_ended_with_all_its_processes(site: Site) -> None:
    hang = 'trap "" TERM; sleep 3000 & echo $! >> "$SITE/notes"; echo $$ >> "$SITE/notes"; echo begun; wait; sleep 3000'
    site.start(AGENT_COMMAND=site.script(hang), TASK_TIMEOUT="3600")
    site.drop("slow", timeout=8, max_retries=0)  # so that it says its word also on a slow machine
    result = site.result("slow")
    assert (result["status"], result["stdout"]) == ("timeout", "begun\n")
    assert "timeout" in result["detail"] and result["duration_seconds"] >= 8
    assert site.dead_letter("slow")["dlq_result"]["status"] == "timeout"
    assert len(site.noted()) == 2 and [pid for pid in map(int, site.noted()) if is_alive(pid)] == []


def test_same_task_again_is_dropped_and_another_task_of_its_id_is_a_dead_letter(shared: Site) -> None:
    raw = shared.drop("twice")
    first = shared.result("twice")
    (shared.inbox() / "twice.json").write_bytes(raw)
    wait_for("the copy to be dropped", lambda: "twice" not in shared.pending())
    assert "twice" not in shared.dead_letters()
    shared.drop("twice", description="something else")
    letter = shared.dead_letter("twice")
    assert (letter["dlq_reason"], letter["description"]) == ("duplicate_id", "something else")
    assert shared.result("twice") == first and shared.pending() == []


def test_what_can_never_run_is_a_dead_letter_that_says_what_to_do(shared: Site) -> None:
    shared.drop("stranger", provider="nobody")
    shared.drop("nowhere", cwd="/nowhere/at/all")
    (shared.inbox() / "array.json").write_text("[1]")
    assert shared.dead_letter("stranger")["dlq_reason"] == "unknown_provider"
    assert "or describe it in PROVIDERS_FILE" in shared.dead_letter("stranger")["dlq_detail"]
    assert shared.dead_letter("nowhere")["dlq_reason"] == "bad_cwd"
    assert "make it" in shared.dead_letter("nowhere")["dlq_detail"]
    assert [shared.result(stem)["attempts"] for stem in ("stranger", "nowhere")] == [1, 1]
    assert shared.dead_letter("array")["dlq_reason"] == "invalid_json"


def test_empty_and_binary_output_are_stored(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script('case "$WATCHER_TASK_ID" in odd) printf "a\\377\\000b";; esac'))
    site.drop("odd")
    site.drop("silent")
    assert site.result("odd")["stdout"] == "a\ufffd\ufffdb"
    assert site.result("silent")["stdout"] == ""


@pytest.mark.parametrize(("how", "expected"), [("argument", "-n Grüße"), ("file", "-n Grüße"), ("stdin", "-n Grüße")])
def test_prompt_reaches_the_command_as_the_setting_says(site: Site, how: str, expected: str) -> None:
    take = {"argument": 'printf %s "$1"', "file": 'cat "$1"', "stdin": "cat"}[how]
    site.start(AGENT_COMMAND=site.script(take), AGENT_PROMPT=how)
    site.drop("prompt", description="-n Grüße")
    assert site.result("prompt")["stdout"].strip() == expected
