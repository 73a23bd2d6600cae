"""How a supervised process is, from what its file says and for how long that has not moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from watcher.supervisor.child_health import ChildHealth


def beat(path: Path, **fields: Any) -> None:
    told = {"pid": 7, "sequence": 1, "status": "healthy", "heartbeat_interval_seconds": 1.0, "queue_size": 5}
    path.write_text(json.dumps(told | fields))


def test_process_is_well_while_its_sequence_moves(tmp_path: Path) -> None:
    health = ChildHealth(tmp_path / "beat")
    assert health.condition(0.0).reason == "no heartbeat yet"
    for sequence in range(1, 5):
        beat(tmp_path / "beat", sequence=sequence)
        health.look(7, float(sequence))
        assert health.condition(float(sequence)).is_healthy
    assert health.count("queue_size") == 5
    health.look(7, 20.0)
    silent = health.condition(20.0)
    assert (silent.is_alive, silent.is_healthy, silent.reason) == (False, False, "no heartbeat for 16 s")


def test_word_of_an_older_process_of_the_name_does_not_count(tmp_path: Path) -> None:
    health = ChildHealth(tmp_path / "beat")
    beat(tmp_path / "beat", pid=6)
    health.look(7, 0.0)
    assert not health.has_beaten
    health.look(None, 0.0)
    assert health.has_beaten, "where anybody's word counts it does"


def test_process_that_beats_and_is_held_is_alive_and_not_healthy(tmp_path: Path) -> None:
    health = ChildHealth(tmp_path / "beat")
    beat(tmp_path / "beat", status="held", reason="claude: not logged in")
    health.look(7, 0.0)
    how = health.condition(0.0)
    assert (how.is_alive, how.is_healthy, how.reason) == (True, False, "held: claude: not logged in")


def test_status_of_the_listener_is_understood_too(tmp_path: Path) -> None:
    health = ChildHealth(tmp_path / "listener.json")
    (tmp_path / "listener.json").write_text('{"pid": 7, "taken_at": "1", "trouble": null}')
    health.look(7, 0.0)
    assert health.condition(0.0).is_healthy
    (tmp_path / "listener.json").write_text('{"pid": 7, "taken_at": "2", "trouble": "no space"}')
    health.look(7, 1.0)
    assert health.condition(1.0).reason == "no space"


def test_file_that_is_none_is_silence(tmp_path: Path) -> None:
    health = ChildHealth(tmp_path / "beat")
    for raw in (b"", b"[1]", b"\xff", b"{", b"[" * 100_000):
        (tmp_path / "beat").write_bytes(raw)
        health.look(None, 0.0)
    beat(tmp_path / "beat", queue_size="many", heartbeat_interval_seconds="often")
    health.look(7, 0.0)
    assert health.count("queue_size") == 0 and health.condition(1.0).is_healthy
