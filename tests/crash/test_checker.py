"""The checker of the crash tests can fail: each promise is broken once by hand, and it says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash.harness import Site
from tests.crash.promises import broken_promises

MARK = "0" * 32 + ".1"


@pytest.fixture
def settled(site: Site) -> Site:
    """A site with one completed task, as a worker would leave it."""
    site.drop("a", "say 1")
    (site.root / "tasks/marie/a.json").unlink()
    _write(site.root / "results/marie/a.json", _result())
    _log(site, "S a 1 100 1000 {} 0 0", "E a 1 100 2000 {} 0")
    return site


def _result(**changes: Any) -> dict[str, Any]:
    return {"task_id": "a", "status": "completed", "reason": None, "retry_count": 0, "attempts": 1, **changes}


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _log(site: Site, *lines: str) -> None:
    with site.run_log.open("a") as log:
        log.writelines(line.format(MARK) + "\n" for line in lines)


def test_nothing_is_broken_when_all_is_well(settled: Site) -> None:
    assert broken_promises(settled) == []


def _lose_result(site: Site) -> None:
    (site.root / "results/marie/a.json").unlink()


def _fail_result(site: Site) -> None:
    _write(site.root / "results/marie/a.json", _result(status="failed", reason="exit_code"))


def _burn_attempt(site: Site) -> None:
    _write(site.root / "results/marie/a.json", _result(retry_count=1))


def _add_letter(site: Site) -> None:
    _write(site.root / "dlq/marie/a.json", {"description": "say 1"})


def _run_again(site: Site) -> None:
    _log(site, "S a 1 101 3000 {} 0 0", "E a 1 101 4000 {} 0")


def _run_at_once(site: Site) -> None:
    _log(site, "S a 1 101 1500 {} 0 0", "E a 1 101 4000 {} 0")


def _run_beside_a_leftover(site: Site) -> None:
    _log(site, "S a 1 101 3000 {} 0 1")


def _run_after_result(site: Site) -> None:
    _log(site, "S a 1 101 3000 {} 1 0")


def _run_a_stranger(site: Site) -> None:
    _log(site, "S b 1 101 3000 {} 0 0")


def _leave_temporary(site: Site) -> None:
    _write(site.root / "results/marie/.tmp/1.00000000000000000000000000000000", {})


def _leave_claim(site: Site) -> None:
    (site.root / "tasks/marie/.claims" / ("0" * 32)).mkdir(parents=True)


def _leave_lock(site: Site) -> None:
    _write(site.root / "tasks/marie/.claims" / ("0" * 32 + ".lock"), {})


def _tear_heartbeat(site: Site) -> None:
    (site.root / "heartbeats").mkdir()
    (site.root / "heartbeats/marie.json").write_text('{"worker": ')


def _change_result(site: Site) -> None:
    site.look()
    _write(site.root / "results/marie/a.json", _result(detail="changed"))


BREAKS = {
    "has no result": _lose_result,
    "is failed (exit_code), not completed": _fail_result,
    "an attempt was burnt": _burn_attempt,
    "has 1 dead letters, not 0": _add_letter,
    "ran again although": _run_again,
    "overlap": _run_at_once,
    "began while another run of it was alive": _run_beside_a_leftover,
    "began when its result was visible": _run_after_result,
    "was run and never submitted": _run_a_stranger,
    "left behind: results/marie/.tmp/1.": _leave_temporary,
    "left behind: claim folder": _leave_claim,
    "left behind: tasks/marie/.claims/0": _leave_lock,
    "not whole: heartbeats/marie.json": _tear_heartbeat,
    "changed after it was visible": _change_result,
}


@pytest.mark.parametrize("word", BREAKS)
def test_broken_promise_is_named(settled: Site, word: str) -> None:
    BREAKS[word](settled)
    assert any(word in line for line in broken_promises(settled)), broken_promises(settled)


def test_refused_file_without_its_bytes_is_named(make_site: Callable[..., Site]) -> None:
    site = make_site()
    site.drop_raw("x.json", b"raw")
    (site.root / "tasks/marie/x.json").unlink()
    _write(site.root / "dlq/marie/x.json", {"dlq_original": ".originals/x.1"})
    (site.root / "dlq/marie/.originals").mkdir()
    (site.root / "dlq/marie/.originals/x.1").write_bytes(b"row")
    assert broken_promises(site) == ["x: the dead letter's original is not what was submitted"]
    (site.root / "dlq/marie/.originals/x.1").write_bytes(b"raw")
    assert broken_promises(site) == []


def test_process_that_lives_is_named(settled: Site) -> None:
    code = "import sys; print(flush=True); sys.stdin.read()"
    environment = {**os.environ, "WHERE": str(settled.run_log)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        assert [line for line in broken_promises(settled) if f"process {process.pid} lives" in line]
        process.communicate()
    assert broken_promises(settled) == []


def test_agent_keeps_the_log_that_is_checked(site: Site) -> None:
    site.drop("a", "sleep 20 fail 1")
    site.start()
    site.finish()
    first, second = site.runs("a")
    assert first.end is not None and second.end is not None
    assert first.start < first.end <= second.start < second.end
    assert (first.code, second.code, first.attempt, second.attempt) == (1, 0, 1, 2)
    assert len(first.incarnation) == 32 and first.mark != second.mark
