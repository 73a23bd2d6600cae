"""Record what real agent CLIs print and how they exit, against the stub model: the table in tests/data/providers.

    python -m tests.record claude --program PATH [--only CASE] [--suffix -0.24]

Runs each case of `tests/record_cases.py` in an empty folder with a throw-away HOME, and writes the case's folder with
`stdout`, `stderr` and `case.json`. Paths, ids and times that change with each run are made the same. What a case must
be judged as is in its `case.json` under `expected`, which recording again keeps. Needs no account and no network.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.record_cases import CLIS, Case, Cli
from tests.stub_model import StubModel

DATA = Path(__file__).parent / "data" / "providers"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("provider", choices=list(CLIS))
    parser.add_argument("--program", required=True, type=Path, help="the real program")
    parser.add_argument("--only", action="append", help="record only this case; may be given again")
    parser.add_argument("--suffix", default="", help="ends each case's name, so that older recordings stay")
    options = parser.parse_args()
    cli = CLIS[options.provider]
    version = _version(options.program)
    for case in cli.cases:
        if not options.only or case.name in options.only:
            _record(options.provider, cli, case, options.program.absolute(), version, options.suffix)
    return 0


def _version(program: Path) -> str:
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "HOME": home},
        )  # fmt: skip
    found = re.search(r"\d+\.\d+\.\d+", done.stdout)
    assert found, done
    return found.group()


def _record(provider: str, cli: Cli, case: Case, program: Path, version: str, suffix: str) -> None:
    stub = StubModel(always=case.always)
    place = Path(tempfile.mkdtemp(prefix="record-"))
    try:
        code, stdout, stderr = _run(cli, case, program, stub.url, place)
    finally:
        stub.close()
    words = " ".join((*cli.arguments(case), *cli.more(case, "http://127.0.0.1:8000")))
    folder = DATA / provider / f"{case.name}{suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    kept = json.loads((folder / "case.json").read_text()) if (folder / "case.json").exists() else {}
    made: dict[str, Any] = {
        "source": f"recorded with {provider} {version}",
        "about": case.about,
        "command": f"{provider} {words}".strip(),
        "output": case.output,
        "exit_code": code,
        "recorded_at": int(time.time()),
        "told_reset": int(told.group(1)) if (told := re.search(r"reset (\d+)", case.always)) else None,
        "expected": kept.get("expected"),
    }
    (folder / "case.json").write_text(json.dumps(made, indent=2) + "\n")
    for name, raw in (("stdout", stdout), ("stderr", stderr)):
        (folder / name).write_text(_scrubbed(raw, place, program, stub.url))
    shutil.rmtree(place, ignore_errors=True)
    print(f"{provider}/{case.name}: exit code {code}, {len(stdout)} and {len(stderr)} bytes", flush=True)


def _run(cli: Cli, case: Case, program: Path, url: str, place: Path) -> tuple[int, bytes, bytes]:
    home, work = place / "home", place / "work"
    home.mkdir()
    work.mkdir()
    for name, text in {**cli.files(url), **case.files}.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "TZ": "UTC"}
    environment |= {
        name: text.replace("STUB-URL", url) for name, text in {**cli.environment, **case.environment}.items()
    }
    environment = {name: text for name, text in environment.items() if text}
    argv = [str(program), *cli.arguments(case), *cli.more(case, url)]
    child = subprocess.Popen(
        argv, cwd=work, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    timer = threading.Timer(case.seconds, os.killpg, (child.pid, case.ended_by or signal.SIGKILL))
    timer.start()
    try:
        stdout, stderr = child.communicate(case.prompt.encode(), timeout=300)
    finally:
        timer.cancel()
    if timer.finished.is_set() and not case.ended_by and child.returncode == -signal.SIGKILL:
        print(f"{case.name}: still running after {case.seconds:g} s", file=sys.stderr)
    return child.returncode, stdout, stderr


def _scrubbed(raw: bytes, place: Path, program: Path, url: str) -> str:
    """The same text for each recording, without a place of this machine."""
    text = raw.decode("utf-8", "replace")
    installed = program.resolve().parents[3] if "node_modules" in str(program) else program.parent
    for found, instead in (
        (str(place / "home"), "/agent-home"), (str(place / "work"), "/project"), (url, "http://127.0.0.1:8000"),
        (url.partition("://")[2], "127.0.0.1:8000"),
        (str(program), "/opt/agent"), (str(program.resolve()), "/opt/agent"),
        (str(installed), "/opt"),
    ):  # fmt: skip
        text = text.replace(found, instead)
    text = text.replace(re.sub(r"[^a-zA-Z0-9]", "-", str(place / "work")), "-home-agent-work")
    text = re.sub(r"/tmp/[A-Za-z0-9._-]+", "/tmp/x", text)
    return re.sub(r"(?<=file://)/[^\s:]*node_modules|(?<=[\s(])/[^\s:(]*/node_modules", "/opt/node_modules", text)


if __name__ == "__main__":
    sys.exit(main())
