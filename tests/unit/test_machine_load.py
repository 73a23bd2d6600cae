"""How busy the machine is, with and without psutil; what cannot be told bounds nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from watcher.system import machine_load
from watcher.system.machine_load import Machine, MachineLoad


class Times(NamedTuple):
    user: float
    idle: float
    iowait: float
    guest: float


class Source:
    """What psutil gives, with numbers of ours."""

    def __init__(self, *times: Times) -> None:
        self._times = iter(times)

    def cpu_times(self) -> Times:
        return next(self._times)

    def virtual_memory(self) -> SimpleNamespace:
        return SimpleNamespace(percent=42.5)


def test_psutil_tells_cpu_between_two_looks_and_memory_now() -> None:
    found = Machine(Source(Times(10, 90, 0, 5), Times(40, 150, 10, 5)))
    assert found.look() == MachineLoad(None, 42.5)
    assert found.look() == MachineLoad(30.0, 42.5)


def test_proc_tells_the_same_without_psutil(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat, memory = tmp_path / "stat", tmp_path / "meminfo"
    monkeypatch.setattr(machine_load, "_STAT", stat)
    monkeypatch.setattr(machine_load, "_MEMINFO", memory)
    memory.write_text("MemTotal:  1000 kB\nMemFree: 10 kB\nMemAvailable:   250 kB\n")
    stat.write_text("cpu  10 0 0 90 0 0 0 0 5 0\ncpu0 1 1 1\n")
    found = Machine(None)
    assert found.look() == MachineLoad(None, 75.0)
    stat.write_text("cpu  30 0 10 150 10 0 0 0 5 0\n")
    assert found.look() == MachineLoad(30.0, 75.0)


def test_real_machine_is_between_nothing_and_all() -> None:
    found = Machine(None).look()
    assert found.memory_percent is None or 0 <= found.memory_percent <= 100


def test_machine_that_cannot_tell_gives_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_load, "_STAT", tmp_path / "none")
    assert Machine(None).look() == MachineLoad()
    (tmp_path / "none").write_text("cpu\n")
    assert Machine(None).look() == MachineLoad()
