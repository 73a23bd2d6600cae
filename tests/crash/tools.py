"""The programs of the crash tests that are made from C: the agent that keeps a run log, and the library of faults."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


@functools.cache
def _build_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="watcher-crash-"))


@functools.cache
def _compiled(source: str, target: str, *options: str) -> Path | None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    path = _build_folder() / target
    if compiler is None:
        return None
    command = [compiler, "-O2", "-o", str(path), str(HERE / source), *options]
    done = subprocess.run(command, capture_output=True, check=False)
    return path if done.returncode == 0 else None


@functools.cache  # made once: a script that is written again while workers start it is empty for a moment
def agent_program() -> Path:
    """The agent: in C where there is a compiler, else (or with CRASH_AGENT=sh) the same as a shell script."""
    found = _compiled("agent.c", "agent", "-static") or _compiled("agent.c", "agent")
    if found is not None and os.environ.get("CRASH_AGENT") != "sh":
        return found
    script = _build_folder() / "agent.sh"
    shutil.copyfile(HERE / "agent.sh", script)
    script.chmod(0o755)
    return script


@functools.cache
def faults_library() -> Path | None:
    """The library that kills a worker at a file-system call, or None where it cannot be had or has no effect."""
    library = _compiled("faults.c", "faults.so", "-shared", "-fPIC", "-ldl")
    if library is None:
        return None
    probe = _build_folder() / "probe"
    probe.mkdir(exist_ok=True)
    environment = {"LD_PRELOAD": str(library), "FAULTS_ROOT": str(probe), "FAULTS_TRACE": str(probe) + ".trace"}
    command = [sys.executable, "-c", f"import os; os.rename({str(probe)!r} + '/a', {str(probe)!r} + '/b')"]
    subprocess.run(command, env=environment, capture_output=True, check=False)
    trace = Path(environment["FAULTS_TRACE"])
    return library if trace.exists() and "rename a" in trace.read_text() else None


def remove_tools() -> None:
    shutil.rmtree(_build_folder(), ignore_errors=True)
