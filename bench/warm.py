"""What it saves to start claude before its task: the real program, offline, its model a stub on loopback.

Warm and cold take turns, so a busy machine slows both. A sample is one attempt through the worker's own runner: from
the call of `run` to the moment at which the model is asked (the program is there and has read its task), and to the
outcome. A warm one is taken only when one is ready, as between tasks that come seldom; its start costs the same CPU,
only earlier. The stub answers at once: what a real model takes comes on top of both.

    python -m bench.warm --samples 12 [--claude PATH]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

from tests.acceptance.realcli import program_of
from tests.stub_model import StubModel
from tests.stub_wires import Error, Json, Reply
from watcher.clock import SystemClock
from watcher.runner.oneshot import OneShotRunner
from watcher.runner.providers.built_in import built_in
from watcher.runner.runner_interface import Attempt, Workplace
from watcher.settings.worker_groups import RunnerSettings
from watcher.system import processes

_READY_SECONDS = 60.0


class Timing(StubModel):
    """Notes when it was asked last."""

    asked_at = 0.0

    def answer(self, body: Json) -> Reply | Error | str:
        self.asked_at = time.perf_counter()
        return super().answer(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--claude", default=str(program_of("claude") or ""))
    options = parser.parse_args()
    if not options.claude:
        raise SystemExit("no claude here: pip install '.[claude]', or give --claude PATH")
    processes.become_subreaper()
    stub, place = Timing(), Path(tempfile.mkdtemp(prefix="bench-warm-"))
    worker = threading.Thread(target=_measure, args=(options, stub, place))  # commands start in no main thread
    worker.start()
    worker.join()
    stub.close()
    shutil.rmtree(place)


def _measure(options: argparse.Namespace, stub: Timing, place: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"], "HOME": str(place), "IS_SANDBOX": "1", "ANTHROPIC_API_KEY": "not-a-key",
        "ANTHROPIC_BASE_URL": stub.url,
    }  # fmt: skip
    here = Workplace(place, environ, id=f"{os.getpid():016x}{'b' * 16}", default_cwd=place)
    runners = {
        how: OneShotRunner(
            built_in({"claude": (options.claude,)}),
            RunnerSettings.model_construct(warm_agents=1 if how == "warm" else 0),
            here,
            SystemClock(),
        )
        for how in ("cold", "warm")
    }
    runners["warm"].expect("claude", None, "bench")
    rows: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    for number in range(options.samples + 1):
        _until_ready(runners["warm"])
        for how in ("warm", "cold"):
            sample = _sample(runners[how], stub, f"{how}{number}")
            if number:  # the first reads the program from the disk
                rows[how].append(sample)
            if how == "warm":
                _until_ready(runners["warm"])  # else the next one starts beside the cold one and slows it
    for runner in runners.values():
        runner.close()
    _show(rows)


def _until_ready(runner: OneShotRunner) -> None:
    end = time.monotonic() + _READY_SECONDS
    while runner.prestart is not None and not runner.prestart.ready():
        if time.monotonic() > end:
            raise SystemExit(f"it does not get ready: {runner.remark()}")
        time.sleep(0.01)


def _sample(runner: OneShotRunner, stub: Timing, name: str) -> tuple[float, float]:
    attempt = Attempt(name, "bench", 1, f"{os.getpid():016x}{'c' * 16}.{name}", "[[say hi]]", "claude", 120.0)
    began = time.perf_counter()
    outcome = runner.run(attempt)
    ended = time.perf_counter()
    if outcome.stdout.text != "hi":
        raise SystemExit(f"{name}: {outcome.ending}")
    return (stub.asked_at - began) * 1000, (ended - began) * 1000


def _show(rows: dict[str, list[tuple[float, float]]]) -> None:
    print(f"{'ms, median (min-max)':24} {'model asked':>22} {'outcome':>22}")
    for how, samples in rows.items():
        cells = []
        for column in (0, 1):
            values = [sample[column] for sample in samples]
            cells.append(f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})")
        print(f"{how:24} {cells[0]:>22} {cells[1]:>22}")
    print(f"load {os.getloadavg()[0]:.1f}, {len(rows['warm'])} samples each")


if __name__ == "__main__":
    main()
