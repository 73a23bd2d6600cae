"""What one process of a worker sees of another between two of its steps, and what it does with commands."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.configs import made, worker_config
from tests.doubles import HandClock, Memory
from tests.gating import cleared, gates, trip
from tests.powercut import PowerCut
from watcher.errors import LockLost
from watcher.formats.task import parse_task
from watcher.settings.worker_groups import QueueSettings
from watcher.store import operator_commands, queue, rescue, result_writer, run_again
from watcher.store.folders import History, WorkerFolders, original_name
from watcher.store.queue import DirectorySpool
from watcher.store.queue_interface import Settlement
from watcher.store.submitting import submit
from watcher.store.worker_locks import Incarnation
from watcher.system.files import Folder
from watcher.telemetry.events import LeftoversKilled
from watcher.worker.loop import Worker
from watcher.worker.operator_commands import ControlDesk
from watcher_config import Folders, folders, read_layers

__all__ = ["cleared"]


@dataclass
class Process:
    """One process of marie, without its loop."""

    site: Folders
    instance: str
    clock: HandClock = field(default_factory=lambda: HandClock(time.time() + 3600))
    memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        site = self.site
        self.incarnation = Incarnation(site.tasks / "marie", "marie", self.instance)
        self.places = WorkerFolders(site.tasks, site.triggers, site.results, site.dlq, "marie", self.incarnation.id)
        self.spool = DirectorySpool(self.places, made(QueueSettings, provider="command"), self.clock, self.memory)

    def submit(self, text: str = "x") -> None:
        submit(self.site.tasks, "marie", {"task_id": "t", "description": text})

    def scan(self) -> None:
        for _ in self.spool.scan():
            pass

    def claim(self) -> list[str]:
        """What it claims of what it has seen."""
        return [claim.task.description for claim in self.spool.claim(9, ()).claims]

    def close(self) -> None:
        self.places.close()
        self.incarnation.close()


@pytest.fixture
def site(tmp_path: Path) -> Folders:
    return folders(read_layers({"WATCHER_ROOT": str(tmp_path)}))


@pytest.fixture
def pair(site: Folders) -> Iterator[tuple[Process, Process]]:
    made = Process(site, "one"), Process(site, "two")
    yield made
    for process in made:
        process.close()


Pair = tuple[Process, Process]


def test_command_for_a_task_that_another_process_runs_says_so(pair: Pair) -> None:
    one, two = pair
    one.submit()
    one.scan()
    assert one.claim() == ["x"]
    assert two.spool.cancel("t", "x") == "runs_elsewhere"
    assert two.spool.hold("t") == "runs_elsewhere"


def test_task_whose_id_another_process_runs_waits_for_its_outcome(pair: Pair) -> None:
    one, two = pair
    one.submit()
    one.scan()
    assert one.claim() == ["x"]
    two.submit("other")
    two.scan()
    assert two.claim() == []


@pytest.mark.parametrize("way", ["claim to retry", "retry to claim"])
def test_task_whose_id_moves_between_two_looks_is_met(pair: Pair, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = pair
    two.submit("other")
    two.scan()
    claim, back = one.places.mine.path / "t~1-0.json", two.places.retry.path / "t~1-0-0.json"
    source, target = (claim, back) if way == "claim to retry" else (back, claim)
    source.write_text("{}")
    real = Folder.names

    def names(folder: Folder) -> list[str]:
        before = real(folder)
        if folder is not two.places.retry or target.exists():
            return before
        source.rename(target)  # after the listing for what comes, before it for what goes
        return before if way == "claim to retry" else real(folder)

    monkeypatch.setattr(Folder, "names", names)
    assert two.claim() == []
    assert target.exists() or way == "claim to retry"


def test_file_that_is_exchanged_before_its_claim_is_judged_anew(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = pair
    one.submit("read")
    one.scan()
    inbox, real = one.places.inbox.path, queue.move

    def move(*arguments: Any) -> bool:
        (inbox / ".new").write_text('{"description": "not read"}')
        os.replace(inbox / ".new", inbox / "t.json")
        return real(*arguments)

    monkeypatch.setattr(queue, "move", move)
    assert one.claim() == []
    monkeypatch.setattr(queue, "move", real)
    assert json.loads((inbox / "t.json").read_text())["description"] == "not read"


def test_task_whose_writer_has_it_open_is_left_for_a_while(pair: Pair) -> None:
    one, _ = pair
    one.submit()
    with (one.places.inbox.path / "t.json").open("a"):
        one.scan()
        assert one.claim() == []
    one.clock.pass_seconds(1)
    one.scan()
    assert one.claim() == ["x"]


def test_task_that_is_given_back_replaces_none_of_its_name(pair: Pair) -> None:
    one, _ = pair
    one.submit()
    one.scan()
    [claim] = one.spool.claim(9, ()).claims
    one.submit("other")
    one.spool.release(claim, "x")
    assert json.loads((one.places.inbox.path / "t.json").read_text())["description"] == "other"
    assert len(one.places.retry.names()) == 1


def test_task_that_has_its_result_is_not_run_again_by_its_rescuer(pair: Pair) -> None:
    one, _ = pair
    raw = b'{"description": "x"}'
    sha256 = parse_task(raw, "t", "marie").sha256
    _result(one.places, sha256)
    dead = one.places.claims.path / ("b" * 32)
    dead.mkdir()
    (dead / "t~1-0.json").write_bytes(raw)
    assert rescue.rescue(one.places, one.memory) == [] and not dead.exists()
    assert one.places.retry.names() == []


def test_task_that_was_to_run_again_does_not_while_its_result_stands(pair: Pair) -> None:
    one, _ = pair
    told = _result(one.places, "0" * 64)
    again = {"description": "x", "x_history": [{name: told[name] for name in ("timestamp", "task_sha256")}]}
    dead = one.places.claims.path / ("b" * 32)
    dead.mkdir()
    (dead / History("t").in_hand(was_held=False)).write_text(json.dumps(again))
    assert rescue.rescue(one.places, one.memory) == []
    assert not dead.exists() and not one.places.inbox.has("t.json")


def test_task_that_is_claimed_is_not_run_again(pair: Pair, site: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = pair
    _result(one.places, "0" * 64)
    one.places.mine.write_new("t~1-0.json", b"{}")
    monkeypatch.setattr(run_again, "_SETTLING_SECONDS", 0.0)
    with pytest.raises(run_again.CannotRunAgain, match="already waits, is held or runs"):
        run_again.rerun(site, "marie", "t")


def _result(places: WorkerFolders, sha256: str) -> dict[str, Any]:
    told = {
        "task_id": "t", "worker": "marie", "status": "completed", "exit_code": 0, "stdout": "", "stderr": "",
        "duration_seconds": 1.0, "timestamp": "2026-01-01T00:00:00Z", "retry_count": 0, "attempts": 1,
        "task_sha256": sha256, "submitted": {"description": "x"},
    }  # fmt: skip
    places.results.write_new("t.json", json.dumps(told).encode())
    return told


@pytest.mark.parametrize("is_same", [True, False])
def test_only_its_own_result_counts_as_published_by_an_earlier_try(pair: Pair, is_same: bool) -> None:
    one, _ = pair
    event = LeftoversKilled("", 1)
    one.places.mine.write_new("t~1-0.json", b"{}")
    one.places.results.write_new("t.json", b"ours" if is_same else b"theirs")
    events, error = result_writer.Settler(one.places).settle(
        [Settlement("t", "t~1-0.json", None, b"ours", None, event)]
    )
    assert error is None and (events == [event]) is is_same


def test_original_that_is_there_stays(pair: Pair) -> None:
    one, _ = pair
    one.places.mine.write_new("t~1-0.json", b"this")
    name = original_name(one.places.mine, "t~1-0.json")
    one.places.originals.write_new(name, b"that")
    settlement = Settlement("t", "t~1-0.json", None, None, None, LeftoversKilled("", 1), keep_original=True)
    result_writer._keep_original(one.places, settlement)
    assert one.places.originals.read(name, 9) == b"that" and not one.places.mine.has("t~1-0.json")


# --- commands, and who we think we are


@pytest.fixture
def desk(pair: Pair, site: Folders) -> ControlDesk:
    one = pair[0]
    parts = Mock(incarnation=one.incarnation, spool=one.spool)
    return ControlDesk(worker_config(site.root, control_dir=site.control), parts, Mock(), one.clock, one.memory)


def test_commands_are_read_from_the_folder_that_is_there_now(desk: ControlDesk, site: Folders) -> None:
    (site.control / "marie").rename(site.control / "away")
    operator_commands.pause(site.control, "marie", "x")
    desk.look()
    assert desk.paused is not None


def test_pause_by_command_is_safe_when_it_is_obeyed(
    desk: ControlDesk, site: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator_commands.tell(site.control, "marie", "pause")
    cut = PowerCut(monkeypatch)
    seen: list[str] = []
    control = site.control / "marie"

    def look(name: str, _: int | None) -> None:
        if name.startswith("pause-"):
            seen.extend([*cut.unsafe(control / operator_commands.PAUSED), "looked"])

    cut.before_removal = look
    desk.look()
    assert seen == ["looked"]


def test_refused_command_replaces_no_earlier_one(desk: ControlDesk, site: Folders) -> None:
    for text in ("one", "two"):
        (site.control / "marie/x.json").write_text(text)
        desk._refuse("x.json", "no command")
    assert sorted(path.read_text() for path in (site.control / "marie/.refused").iterdir()) == ["one", "two"]


def test_breakers_are_kept_in_the_folder_that_is_there_now(site: Folders) -> None:
    made = gates(site.control, HandClock())
    (site.control / "marie").rename(site.control / "away")
    made.refresh()
    trip(made)
    assert (site.control / "marie/breakers.json").exists()


def test_scan_ends_a_process_that_has_lost_its_locks() -> None:
    parts = Mock()
    parts.incarnation.worker = "marie"
    parts.incarnation.check.side_effect = LockLost("")
    with pytest.raises(LockLost):
        Worker(worker_config(Path("root")), parts, Mock(), Mock(), HandClock(), Memory())._begin_scan()
