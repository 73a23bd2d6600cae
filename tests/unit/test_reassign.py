"""The waiting tasks of a dead worker go to its substitute: each once, and none too early."""

from __future__ import annotations

import fcntl
import json
import os
from types import ModuleType
from typing import Any

import pytest

from tests.collecting import Site, site
from watcher.store import reassign as reassign_module
from watcher.store import submitting
from watcher.store.reassign import Reassigner

__all__ = ["site"]


def reassigned(site: Site, seconds: float | None = 100.0) -> list[str]:
    service = Reassigner(site.folders["tasks"], site.folders["results"], ["marie:anga"], 50.0, site.clock, site.memory)
    news = service.check(lambda _worker: seconds, {"marie"})
    return [str(t["task_id"]) for notice, _ in news.notices for t in notice.fields["tasks"]]


def inbox(site: Site, worker: str) -> list[str]:
    place = site.folders["tasks"] / worker
    return sorted(path.name for path in place.glob("*.json")) if place.exists() else []


def test_tasks_stay_while_a_command_of_the_dead_worker_may_still_run(site: Site) -> None:
    """It holds the second lock, and a task of the same agent_id must not start beside it."""
    site.task("a", agent_id="release")
    claims = site.folders["tasks"] / "marie" / ".claims"
    claims.mkdir()
    with (claims / f"{'0' * 32}.busy").open("w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        assert reassigned(site) == [] and inbox(site, "marie") == ["a.json"]
    assert reassigned(site) == ["a"]


def test_tasks_move_only_from_a_worker_that_has_been_dead_long_enough(site: Site) -> None:
    site.task("a", worker="marie", metadata={"k": 1}, dependencies=["done", "b", "marie/b", "else"])
    site.task("b")
    (site.folders["tasks"] / "marie" / ".claims").mkdir()
    site.result("done")
    assert reassigned(site, None) == reassigned(site, 49.0) == []
    assert inbox(site, "marie") == ["a.json", "b.json"]
    assert reassigned(site) == ["a", "b"]
    assert (inbox(site, "marie"), inbox(site, "anga")) == ([], ["a.json", "b.json"])
    moved = json.loads((site.folders["tasks"] / "anga" / "a.json").read_text())
    assert moved["metadata"] == {"reassigned_from": "marie", "k": 1}
    assert moved["dependencies"] == ["marie/done", "b", "b", "else"]
    assert not (site.folders["tasks"] / "marie" / ".reassign").exists()


def test_nothing_moves_while_a_lock_of_the_worker_is_held(site: Site) -> None:
    import fcntl

    site.task("a")
    claims = site.folders["tasks"] / "marie" / ".claims"
    claims.mkdir()
    for name in ("name.lock", f"{'a' * 32}.lock"):
        fd = os.open(claims / name, os.O_CREAT | os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert reassigned(site) == []
        os.close(fd)
    assert reassigned(site) == ["a"]


def test_task_whose_id_the_substitute_has_stays(site: Site) -> None:
    (site.folders["tasks"] / "marie" / ".claims").mkdir()
    for stem in ("waits", "runs", "done", "free"):
        site.task(stem)
    site.task("waits", "anga")
    site.task("runs~1-0", "anga", f".claims/{'0' * 32}")
    site.result("done", "anga")
    assert reassigned(site) == ["free"]
    assert inbox(site, "marie") == ["done.json", "runs.json", "waits.json"]


def test_copy_that_the_substitute_runs_already_is_not_published_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_arguments: object) -> bool:
        raise Killed

    (site.folders["tasks"] / "marie" / ".claims").mkdir()
    site.task("a")
    with monkeypatch.context() as patch:
        patch.setattr(reassign_module.Folder, "remove", die)  # published, and not yet removed where it came from
        with pytest.raises(Killed):
            reassigned(site)
    anga = site.folders["tasks"] / "anga"
    (anga / ".claims" / ("0" * 32)).mkdir(parents=True)
    (anga / "a.json").rename(anga / ".claims" / ("0" * 32) / "a~1-0.json")
    assert reassigned(site, None) == ["a"]
    assert (inbox(site, "marie"), inbox(site, "anga")) == ([], [])


@pytest.mark.parametrize(
    ("module", "step"), [(reassign_module, "move"), (submitting, "move_new"), (submitting, "fsync_file")]
)
def test_kill_while_moving_loses_and_doubles_nothing(
    site: Site, module: ModuleType, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    (site.folders["tasks"] / "marie" / ".claims").mkdir()
    for stem in "abc":
        site.task(stem)
    calls: list[int] = []
    real = getattr(module, step)

    def second_dies(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(module, step, second_dies)
        with pytest.raises(Killed):
            reassigned(site)
    held = [p.stem for p in (site.folders["tasks"] / "marie" / ".reassign").rglob("*.json")]
    there = [name[:-5] for name in (*inbox(site, "marie"), *inbox(site, "anga"))]
    assert sorted({*held, *there}) == ["a", "b", "c"]
    reassigned(site)
    assert (inbox(site, "marie"), inbox(site, "anga")) == ([], ["a.json", "b.json", "c.json"])
