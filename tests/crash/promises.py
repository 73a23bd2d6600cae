"""Whether the promises held: believes nothing but the folders, the run log and /proc.

Call it when every task has its outcome and every worker has stopped. test_checker.py proves that it can complain.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.crash.records import Run, Submitted

if TYPE_CHECKING:
    from tests.crash.harness import Site

#: What a stopped worker may leave below the root, beside results, dead letters and receipts of tasks.
_STAYS = re.compile(
    r"tasks/[^/]+/\.claims/(name|instance-[^/]+)\.lock"
    r"|heartbeats/[^/.][^/]*\.json"
    r"|control/holds/[^/.][^/]*\.json"
    r"|control/[^/]+/breakers\.json"
)


def broken_promises(site: Site) -> list[str]:
    """Every broken promise as one line. Call it when every task has its outcome and every worker has stopped."""
    return [
        *_broken_outcomes(site),
        *_broken_runs(site),
        *_broken_files(site),
        *(f"process {pid} lives: {command_of(pid)}" for pid in site.living()),
    ]


def _broken_outcomes(site: Site) -> Iterator[str]:
    for (worker, task_id), task in site.submitted.items():
        result = site.result(task_id, worker)
        letters = _dead_letters(site, worker, task_id)
        if task.expect == "ended":
            if result is None and not letters:
                yield f"{task_id}: has no outcome"
        elif task.expect == "refused":
            yield from _broken_refusal(site, task, result, letters)
        elif result is None:
            yield f"{task_id}: has no result"
        else:
            yield from _broken_result(task, result, letters)


def _broken_refusal(
    site: Site, task: Submitted, result: dict[str, Any] | None, letters: dict[str, dict[str, Any]]
) -> Iterator[str]:
    if result is not None:
        yield f"{task.task_id}: was refused and has a result"
    if not 1 <= len(letters) <= task.drops:
        yield f"{task.task_id}: was dropped {task.drops} times and has {len(letters)} dead letters"
    for letter in letters.values():
        original = site.root / "dlq" / task.worker / str(letter.get("dlq_original"))
        if not original.is_file() or original.read_bytes() != task.raw:
            yield f"{task.task_id}: the dead letter's original is not what was submitted"


def _broken_result(task: Submitted, result: dict[str, Any], letters: dict[str, dict[str, Any]]) -> Iterator[str]:
    died = result["reason"] == "worker_died"
    status = "failed" if died else task.expect
    if result["status"] != status:
        yield f"{task.task_id}: is {result['status']} ({result['reason']}), not {status}"
    if died and result["attempts"] < 3:
        yield f"{task.task_id}: given up after {result['attempts']} deaths"
    expected = max(0, task.failures - 1) if task.dead_letter else task.failures
    if result["retry_count"] != expected and not died:
        yield f"{task.task_id}: retry_count is {result['retry_count']}, not {expected}: an attempt was burnt"
    wanted = 1 if task.dead_letter or died else 0
    if len(letters) != wanted:
        yield f"{task.task_id}: has {len(letters)} dead letters, not {wanted}"
    for letter in letters.values():
        fields = json.loads(task.raw)
        if any(letter.get(name) != value for name, value in fields.items()):
            yield f"{task.task_id}: the dead letter is not the task as submitted"


def _dead_letters(site: Site, worker: str, task_id: str) -> dict[str, dict[str, Any]]:
    folder = site.root / "dlq" / worker
    paths = [folder / f"{task_id}.json", *folder.glob(f"{task_id}~*.json")]
    return {path.name: json.loads(path.read_bytes()) for path in paths if path.exists()}


def _broken_runs(site: Site) -> Iterator[str]:
    """Never two runs of a task at once, never one after its result, and a second only with a reason."""
    # A process that lost its locks goes on as a new incarnation; the ones before are as dead as killed ones.
    dead = {i for p in site.processes for i in (p.incarnations() if p.fate == "killed" else p.incarnations()[:-1])}
    gone = dead | {i for process in site.processes if process.fate != "running" for i in process.incarnations()}
    by_task: dict[str, list[Run]] = defaultdict(list)
    for run in site.runs():
        by_task[run.task_id].append(run)
        if run.visible:
            yield f"{run.task_id}: run {run.pid} began when its result was visible"
        if run.overlap:
            yield f"{run.task_id}: run {run.pid} began while another run of it was alive"
    known = {task_id for _, task_id in site.submitted}
    for task_id, runs in by_task.items():
        if task_id not in known:
            yield f"{task_id}: was run and never submitted"
        for first, second in itertools.pairwise(runs):
            if first.end is not None and second.start < first.end:
                yield f"{task_id}: runs {first.pid} and {second.pid} overlap"
            failed = first.code is not None and first.code != 0
            cut = first.end is None and first.incarnation in gone
            if not (failed or cut or first.incarnation in dead):
                yield f"{task_id}: ran again although run {first.pid} ended with {first.code} and its worker lived on"


def _broken_files(site: Site) -> Iterator[str]:
    """Nothing but outcomes, receipts, heartbeats and holds is left; what can be seen is whole and did not change."""
    stays = set()
    for worker, task_id in site.submitted:
        stays |= {f"results/{worker}/{task_id}.json", f"triggers/{worker}/{task_id}.json"}
        for name, letter in _dead_letters(site, worker, task_id).items():
            stays |= {f"dlq/{worker}/{name}", f"dlq/{worker}/{letter.get('dlq_original')}"}
        result = site.result(task_id, worker) or {}
        stays |= {os.path.relpath(result[n], site.root) for n in ("stdout_path", "stderr_path") if result.get(n)}
    for path in site.root.rglob("*"):
        name = str(path.relative_to(site.root))
        if path.is_dir():
            if re.search(r"\.claims/[0-9a-f]{32}$", name):
                yield f"left behind: claim folder {name}"
            continue
        if name not in stays and not _STAYS.fullmatch(name):
            yield f"left behind: {name}"
        if path.suffix == ".json" and not path.name.startswith("."):
            try:
                json.loads(path.read_bytes())
            except ValueError as error:
                yield f"not whole: {name}: {error}"
    for path, raw in site.seen.items():
        if not path.exists() or path.read_bytes() != raw:
            yield f"changed after it was visible: {path.name}"


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return "gone"
