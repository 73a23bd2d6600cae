"""Thousands of files that refer to each other in any way: a worker beats, is alive, obeys, and ends each of them."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import Site
from tests.waiting import wait_for

Needs = dict[str, list[str]]


def chain(count: int, rnd: random.Random) -> Needs:
    order = list(range(count))
    rnd.shuffle(order)
    return {f"t{this}": [f"t{before}"] for before, this in itertools.pairwise(order)} | {f"t{order[0]}": []}


def star(count: int, rnd: random.Random) -> Needs:
    return {f"t{n}": ["t0"] if n else [] for n in range(count)}


def layers(count: int, rnd: random.Random) -> Needs:
    return {
        f"t{n}": [f"t{m}" for m in range((n // 50 - 1) * 50, n // 50 * 50)] if n >= 50 else [] for n in range(count)
    }


def ring(count: int, rnd: random.Random) -> Needs:
    return {f"t{n}": [f"t{(n + 1) % count}"] for n in range(count)}


def tangle(count: int, rnd: random.Random) -> Needs:
    names = [f"t{rnd.randrange(count)}" for _ in range(count)]
    return {f"t{n}": rnd.sample(names, rnd.randrange(6)) for n in range(count)}


def anything(count: int, rnd: random.Random) -> Iterator[tuple[str, bytes]]:
    """Tasks of all kinds with any references, and files that are none."""
    for number in range(count):
        near = [f"t{rnd.randrange(count)}" for _ in range(rnd.choice((0, 0, 1, 2, 5, 40)))]
        needs = near + rnd.choice(([], [], ["ghost"], ["anga/t1"], [f"t{number}"]))
        task: dict[str, Any] = {"description": rnd.choice(("x", "{{t1.stdout}} " * 50)), "dependencies": needs}
        task |= rnd.choice(
            ({}, {"agent_id": f"a{rnd.randrange(3)}"}, {"not_before": time.time() + 3600}, {"priority": 7})
        )
        task |= rnd.choice(({}, {}, {}, {"metadata": {"m": [[]] * 3000}}))
        raw = json.dumps(task).encode()
        yield f"t{number}", rnd.choice((raw,) * 20 + (raw[:-1], b"", b"[" * 9000, b"[" + b"[]," * 90_000 + b"[]]"))


def put(site: Site, stem: str, raw: bytes) -> None:
    hidden = site.inbox() / f".{stem}.new"
    hidden.write_bytes(raw)
    hidden.rename(site.inbox() / f"{stem}.json")


@pytest.mark.parametrize("when", ["at start", "live"])
@pytest.mark.parametrize("shape", [chain, star, layers, tangle, ring])
def test_graph_of_any_shape_is_worked_off(site: Site, shape: Any, when: str) -> None:
    needs = shape(1500, random.Random(shape.__name__))
    settings = {"AGENT_COMMAND": "true", "MAX_CONCURRENT_TASKS": 4, "LOG_LEVEL": "WARNING"}
    if when == "live":
        worker = site.start(**settings)
    for stem, names in needs.items():
        put(site, stem, json.dumps({"description": "x", "dependencies": names}).encode())
    if when == "at start":
        worker = site.start(**settings)
    wait_for("some results", lambda: len(site.results()) >= 100)
    beats = site.beat()["sequence"]
    site.pass_beats(3)
    assert site.beat()["sequence"] > beats
    if shape in (ring, tangle):
        wait_for("every task's end", lambda: len(site.results()) == len(needs))
        reasons = {site.result(stem)["reason"] for stem in needs}
        assert "dependency_cycle" in reasons and reasons <= {None, "dependency_cycle", "dependency_failed"}
    assert worker.stop() == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_any_files_leave_the_loop_turning(site: Site, seed: int) -> None:
    """The time between two beats is bounded generously: a loop that does not turn in slices needs minutes here."""
    for stem, raw in anything(2000, random.Random(seed)):
        put(site, stem, raw)
    worker = site.launch(
        "marie", AGENT_COMMAND="true", HEARTBEAT_INTERVAL=0.5, LOG_LEVEL="ERROR", MAX_TASK_BYTES=400_000
    )
    wait_for("the first result", lambda: site.results())
    longest, last, sequence = 0.0, time.monotonic(), site.beat()["sequence"]
    while len(site.results()) < 300:
        time.sleep(0.02)  # looks at a file that another process writes
        if site.beat()["sequence"] != sequence:
            longest, last, sequence = max(longest, time.monotonic() - last), time.monotonic(), site.beat()["sequence"]
    assert longest < 5
    asked = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - asked < 10
