"""How a bench reads its arguments and tells what it found: a table on stdout and, with --json, a file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import place as places
from bench.errors import BenchError

REPO = Path(__file__).resolve().parent.parent


def arguments(about: str) -> argparse.ArgumentParser:
    """A parser with what every bench takes."""
    parser = argparse.ArgumentParser(description=about.strip().splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--place", default="auto", choices=places.KINDS, help="what to measure on (auto: ext4 loop)")
    parser.add_argument("--size", default="2G", help="size of the filesystem, sparse (2G)")
    parser.add_argument("--base", type=Path, help="folder for the backing file (the temporary folder)")
    parser.add_argument("--python", default=sys.executable, help="interpreter for the worker and the raw loops")
    parser.add_argument("--tree", type=Path, default=REPO, help="checkout whose worker is measured (this one)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        type=_setting,
        help="a setting of the worker, e.g. --set LOG_LEVEL=WARNING; may be repeated",
    )
    return parser


def bench_environment() -> dict[str, str]:
    """For a process that runs a module of this package from another working folder."""
    return {**os.environ, "PYTHONPATH": str(REPO)}


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1_minute": os.getloadavg()[0],
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


class Report:
    """Collects what one bench found. `load_1_minute` before and after tells how much to trust absolutes."""

    def __init__(self, name: str, options: argparse.Namespace, place: places.Place) -> None:
        self._json: Path | None = options.json
        settings = dict(options.set)
        self.figures: dict[str, Any] = {}
        self._whole: dict[str, Any] = {
            "bench": name,
            "machine": machine(),
            "place": {"kind": place.kind, "note": place.note},
            "settings": settings,
            "figures": self.figures,
        }
        self._load = self._whole["machine"]["load_1_minute"]
        print(f"{name} on {place.note}" + (f"; {settings}" if settings else ""))

    def end(self) -> None:
        """Say how busy the machine was and write the file."""
        after = os.getloadavg()[0]
        self._whole["machine"]["load_1_minute_after"] = after
        about = self._whole["machine"]
        print(f"{about['cores']} cores, {about['cpu']}, Linux {about['kernel']}, ", end="")
        print(f"load {self._load:.1f} -> {after:.1f}")
        if self._json is not None:
            self._json.write_text(json.dumps(self._whole, indent=1) + "\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table: first column left, the others right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    print(line(head))
    print("|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|")
    for row in rows:
        print(line(row))


def run(main: Callable[[], None]) -> None:
    """Run a bench; a BenchError becomes one line and exit code 1."""
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
