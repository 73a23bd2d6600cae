"""Where a task is while it moves."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from watcher.cli import main
from watcher.intake.webhook import lookup
from watcher.store import changes, tasks, workers
from watcher.store.worker_locks import Incarnation
from watcher_config import folders, read_layers


def test_task_that_goes_back_for_a_retry_between_two_listings_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = folders(read_layers(environ={"WATCHER_ROOT": str(tmp_path)}, env_file=os.devnull))
    inbox = places.tasks / "marie"
    claim = inbox / ".claims" / ("a" * 32) / "x~1-0.json"
    for folder in (claim.parent, inbox / ".retry"):
        folder.mkdir(parents=True)
    claim.write_text('{"description": "x"}')
    read_claims = workers.read_claims

    def moved_just_before(*given: Any) -> list[workers.Claims]:
        if claim.exists():
            claim.rename(inbox / ".retry" / "x~1-0-0.json")
        return read_claims(*given)

    monkeypatch.setattr(workers, "read_claims", moved_just_before)
    assert tasks.resolve(places, "x") == ("marie", "x")


PLACES = [
    ("tasks/marie/x.json", {"description": "x"}, "waiting", "waiting"),
    ("tasks/marie/x.json", {"description": "x", "not_before": "2990-01-01T00:00:00Z"}, "scheduled", "scheduled"),
    ("tasks/marie/x.json", {"description": "x", "dependencies": ["y"]}, "blocked", "blocked"),
    ("tasks/marie/x.json", {"timeout": "soon"}, "unreadable", "waiting"),
    ("tasks/marie/.held/x.json", {"description": "x"}, "held", "held"),
    ("tasks/marie/.held/x~1-0-0.json", {"description": "x"}, "held", "held"),
    ("tasks/marie/.retry/x~1-0-0.json", {"description": "x"}, "retrying", "retrying"),
    ("tasks/marie/.reassign/anga/x.json", {"description": "x"}, "changing", "waiting"),
    ("tasks/marie/.claims/LIVING/x~1-0.json", {"description": "x"}, "running", "running"),
    (f"tasks/marie/.claims/{'a' * 32}/x~1-0.json", {"description": "x"}, "orphaned", "waiting"),
    ("results/marie/x.json", {"task_id": "x", "worker": "marie", "status": "completed"}, "ended", "completed"),
    ("dlq/marie/x.json", {"task_id": "x", "worker": "marie", "dlq_reason": "invalid_json"}, "dead_letter", "refused"),
]


@pytest.mark.parametrize(("where", "text", "state", "told"), PLACES, ids=[f"{p[0]}-{p[2]}" for p in PLACES])
def test_commands_and_the_endpoint_agree_where_a_task_is(
    where: str, text: dict[str, Any], state: str, told: str, tmp_path: Path
) -> None:
    places = folders(read_layers(environ={"WATCHER_ROOT": str(tmp_path)}, env_file=os.devnull))
    living = Incarnation(places.tasks / "marie", "marie", None)
    path = tmp_path / where.replace("LIVING", living.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(text))
    try:
        assert [(s.state, s.path) for s in tasks.find(places, "x")] == [(state, path)]
        found = lookup.find(places, "marie", "x")
        assert found is not None and (found.state, found.path) == (told, path)
        assert lookup.find(places, "marie", "y") is None
    finally:
        living.close()


@pytest.mark.parametrize(
    ("where", "standing"),
    [
        ("tasks/marie/x.json", "cancelled"),
        ("tasks/marie/.retry/x~1-0-0.json", "cancelled"),
        ("tasks/marie/.held/x.json", "cancelled"),
        (f"tasks/marie/.claims/{'a' * 32}/x~1-0.json", "runs_elsewhere"),
        (f"tasks/marie/.claims/{'a' * 32}/x~1-0-0.json", "changing"),
        ("results/marie/x.json", "ended"),
        ("tasks/marie/xx.json", "unknown"),
    ],
)
def test_what_waits_is_cancelled_and_of_the_rest_is_told_how_it_stands(
    where: str, standing: str, tmp_path: Path
) -> None:
    places = folders(read_layers(environ={"WATCHER_ROOT": str(tmp_path)}, env_file=os.devnull))
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_text('{"description": "x"}')
    assert changes.cancel(places, "marie", "x", "by a test") == standing
    assert path.exists() == (standing != "cancelled")
    assert (places.results / "marie/x.json").exists() == (standing in ("cancelled", "ended"))


FOREIGN = [b"", b"[]", b"{}", b'{"a": ', b"\xff", b'{"task_id": "x", "worker": "marie", "status": "fine"}']


@pytest.mark.parametrize("raw", FOREIGN)
@pytest.mark.parametrize(("folder", "kind"), [("results", "result"), ("dlq", "dead letter")])
def test_a_file_that_is_none_of_ours_is_told_with_the_reason(
    raw: bytes, folder: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("WATCHER_ROOT", str(tmp_path))
    path = tmp_path / folder / "marie" / "x.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(raw)
    assert main.main(["show", "x"]) == 0
    assert f"marie/x foreign: not a {kind} of ours: " in capsys.readouterr().out
    for command in (["tail", "x"], ["cancel", "x"], ["rerun", "x"], ["hold", "x"]):
        assert main.main(command) in (1, 2)  # and none of them waits for ever
        assert f"{path}: not a {kind} of ours" in capsys.readouterr().err
    listing = ["results"] if folder == "results" else ["redrive", "--all"]
    main.main(listing)
    assert f"left out {path}: not a {kind} of ours" in capsys.readouterr().err


def test_an_empty_heartbeat_is_one_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHER_ROOT", str(tmp_path))
    (tmp_path / "heartbeats").mkdir()
    (tmp_path / "heartbeats" / "marie.json").touch()
    assert main.main(["health", "marie"]) == 1
    assert "no heartbeat found" in capsys.readouterr().out


@pytest.mark.parametrize("raw", [b"[]", b"{}", b"\xff"])
def test_a_heartbeat_that_is_none_is_told_with_the_reason(
    raw: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHER_ROOT", str(tmp_path))
    (tmp_path / "heartbeats").mkdir()
    (tmp_path / "heartbeats" / "marie.json").write_bytes(raw)
    assert main.main(["health", "marie"]) == 1
    assert "not a heartbeat of ours: " in capsys.readouterr().out
    main.main(["workers"])
    assert "not a heartbeat of ours: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["X.JSON", "x.Json", "x.json.txt", "x y.txt", "x.json ", "x", "x.yaml", ".x.json"])
def test_a_name_that_no_worker_takes_is_listed_with_a_better_one(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHER_ROOT", str(tmp_path))
    path = tmp_path / "tasks" / "marie" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"description": "x"}')
    os.utime(path, (time.time() - 120,) * 2)
    assert main.main(["list"]) == 0
    said = capsys.readouterr().out
    assert "ignored" in said and re.search(r"rename it to [A-Za-z0-9][A-Za-z0-9._-]*\.json", said)
    assert main.main(["list", "--state", "ignored", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(path)


@pytest.mark.parametrize("name", ["-x.json", "x y.json", "x" * 140 + ".json", "é.json"])
def test_a_name_that_is_refused_is_listed_until_a_worker_refuses_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHER_ROOT", str(tmp_path))
    path = tmp_path / "tasks" / "marie" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"description": "x"}')
    assert main.main(["list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], "at most 128" in told["detail"]) == ("unreadable", True)
