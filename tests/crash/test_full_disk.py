"""A task that fills the disk by what it prints: it is ended and counted, and everybody else on that disk goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash.disks import fill, free_bytes, mount
from tests.crash.harness import Site

__all__ = ["mount"]
pytestmark = [pytest.mark.crash, pytest.mark.needs_mount, pytest.mark.timeout(400)]

MakeSite = Callable[..., Site]
#: More than any disk here holds.
FLOOD = f"say {1 << 40}"


def site_on(disk: Path, make_site: MakeSite, **settings: object) -> Site:
    site = make_site(MAX_RETRIES=1, TASK_TIMEOUT=600, **settings)
    site.root = disk / "root"
    return site


def drop_flood(site: Site, description: str, worker: str = "marie") -> None:
    """A task that can never succeed; it has two attempts."""
    task = site.drop(f"flood-of-{worker}", f"gate full {description}", worker, priority="critical")
    task.expect, task.failures, task.dead_letter = "failed", 2, True


def ending(site: Site, worker: str = "marie") -> tuple[Any, ...]:
    result = json.loads((site.root / "results" / worker / f"flood-of-{worker}.json").read_bytes())
    return result["status"], result["reason"], result["detail"].partition(" on attempt ")[0], result["attempts"]


@pytest.mark.parametrize("how", ["stops at the full disk", "goes on", "goes on and hears no TERM"])
def test_task_that_fills_the_disk_is_ended_and_counted_and_all_others_of_the_volume_go_on(
    make_site: MakeSite, mount: Callable[..., Path], how: str
) -> None:
    disk = mount("ext4", 30)
    site = site_on(disk, make_site)
    words = {"stops at the full disk": "", "goes on": "stubborn ", "goes on and hears no TERM": "deaf stubborn "}[how]
    drop_flood(site, words + FLOOD)
    for number in range(6):
        site.drop(f"t{number}", "gate full say 1000", "anga" if number % 2 else "marie")
    for worker in ("marie", "anga"):
        site.start(worker, MAX_CONCURRENT_TASKS=2)
    site.wait_for(lambda: len(site.runs()) == 4, "four that run")
    site.open_gate("full")
    site.wait_for(lambda: site.result("flood-of-marie"), "its outcome")
    assert ending(site) == ("failed", "max_retries_exceeded", "output_too_large", 2)
    site.finish()
    assert len(site.runs("flood-of-marie")) == 2
    assert free_bytes(disk) > 15 << 20, "what it printed is gone"


def test_workers_of_one_volume_that_all_fill_it_come_to_an_end(make_site: MakeSite, mount: Callable[..., Path]) -> None:
    site = site_on(mount("ext4", 30), make_site)
    for worker in ("marie", "anga", "fabien"):
        drop_flood(site, "stubborn " + FLOOD, worker)
        site.start(worker)
    site.wait_for(lambda: len(site.runs()) == 3, "three floods")
    site.open_gate("full")
    site.finish()
    for worker in ("marie", "anga", "fabien"):
        assert ending(site, worker)[2:] == ("output_too_large", 2)


def test_outcome_gives_up_its_whole_output_when_the_disk_has_no_room_for_the_result(
    make_site: MakeSite, mount: Callable[..., Path]
) -> None:
    disk = mount("ext4", 30)
    site = site_on(disk, make_site, MAX_OUTPUT_BYTES=1 << 20)
    site.settings["HEARTBEAT_DIR"] = site.base / "heartbeats"
    process = site.start()
    site.drop("large", f"say {6 << 20} gate full")
    outputs = site.inbox().glob
    site.wait_for(lambda: [1 for p in outputs(".claims/*/*.stdout") if p.stat().st_size == 6 << 20], "its output")
    fill(disk)
    site.open_gate("full")
    site.wait_for(lambda: site.result("large"), f"its result\n{process.text()}")
    result = site.result("large")
    assert result is not None and (result["status"], result["stdout_truncated"]) == ("completed", True)
    assert "stdout_path" not in result and 0 < len(result["stdout"]) < 20_000
    assert not list((site.root / "results/marie/.output").iterdir())
    (disk / "ballast").unlink()
    site.finish()
