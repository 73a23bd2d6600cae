"""A root that is not there, is a file, is empty or may not be read is told with the cure, never as an empty answer."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import demo_watcher
from watcher.cli import main
from watcher.client import Client
from watcher.store import root_check
from watcher.store.root_check import UnusableRoot, refusal_words
from watcher_config import folders, read_layers

READERS = [
    ["list"], ["show", "x"], ["tail", "x"], ["results"], ["cancel", "x"], ["hold", "x"], ["release", "x"], ["qshape"],
    ["prio", "x", "high"], ["edit", "x", "--timeout", "9"], ["rerun", "x"], ["redrive", "x"], ["redrive", "--all"],
    ["purge", "--results", "--older-than", "1d"], ["workers"], ["resume", "marie"], ["report"],
    ["drain", "marie"], ["health", "marie"], ["budget", "marie"],
    ["resume", "--provider", "claude"], ["--status"],
]  # fmt: skip
#: Commands that change something: what they cannot write is told with the owner and the cure.
WRITERS = [
    ["cancel", "w"], ["hold", "w"], ["release", "h"], ["prio", "w", "high"], ["edit", "w", "--timeout", "9"],
    ["rerun", "e"], ["redrive", "l"], ["redrive", "--all"], ["submit", "marie", "x"], ["submit", "anga", "x"],
    ["purge", "--results", "--worker", "marie", "--yes"], ["pause", "marie"], ["resume", "marie"],
    ["hold", "--provider", "claude"], ["budget", "marie", "--raise", "3"],
]  # fmt: skip


def _run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    if words[0] != "--status":
        return main.main(words)
    monkeypatch.setattr(sys, "argv", ["demo_watcher.py", *words])
    monkeypatch.setattr("watcher.cli.command_output._SPEAKER", ["watcher"])  # it changes who is heard
    return demo_watcher.main()


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("words", READERS, ids=" ".join)
@pytest.mark.parametrize("kind", ["missing", "file", "file_inside"])
def test_a_root_that_cannot_be_one_is_refused_with_the_cure(
    kind: str, words: list[str], flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root = tmp_path / "root"
    if kind == "file":
        root.write_text("")
    elif kind == "file_inside":
        (root / "results").mkdir(parents=True)
        (root / "tasks").write_text("")
    monkeypatch.setenv("WATCHER_ROOT", str(root))
    assert _run([*words, *flags], monkeypatch) == (1 if words[0] == "health" else 2)
    said = capsys.readouterr()
    assert str(root) in said.out + said.err and "WATCHER_ROOT" in said.out + said.err
    assert root.exists() is (kind != "missing"), "nothing is made in a place that may be the wrong one"


MAKERS = [["submit", "marie", "x"], ["pause", "marie"], ["hold", "--provider", "claude"]]


@pytest.mark.parametrize("words", MAKERS, ids=" ".join)
def test_what_may_come_before_the_first_worker_says_that_it_made_the_root(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WATCHER_ROOT", str(tmp_path / "new"))
    assert main.main(words) == 0
    assert f"{tmp_path / 'new'} did not exist and was made; is WATCHER_ROOT right?" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WATCHER_ROOT", str(tmp_path / "file"))
    assert main.main(words) == 2
    assert "a file lies where a folder must be" in capsys.readouterr().err


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_an_empty_root_is_said_to_be_one(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("watcher.cli.command_output._TOLD", set())
    monkeypatch.setenv("WATCHER_ROOT", str(tmp_path))
    _run(words, monkeypatch)
    said = capsys.readouterr().err
    assert f"{tmp_path} has none of the folders of a watcher: is WATCHER_ROOT right?" in said


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_the_client_says_it_too_and_waits_for_nothing(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    if kind == "file":
        root.write_text("")
    client = Client(root)
    for ask in (
        lambda: client.result(("marie", "x")),
        lambda: client.wait(("marie", "x")),
        lambda: [*client.results()],
    ):
        with pytest.raises(UnusableRoot, match="WATCHER_ROOT"):
            ask()


_AS_SOMEBODY = """
import json, os, sys
import demo_watcher
from watcher.cli import main as cli
for name in cli.COMMANDS:
    cli.load(name)
import watcher.store.run_again, watcher.client, watcher.worker.operator_commands, watcher.store.holds
import watcher.store.overview, watcher.cli.tables
import watcher.store.root_check, watcher.store.spending, watcher.store.submitting, watcher.store.operator_commands
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for words in json.loads(sys.argv[1]):
    print("#", *words, file=sys.stderr, flush=True)
    try:
        code = cli.main(words)
    except SystemExit as ended:
        code = ended.code
    print("#", code, file=sys.stderr, flush=True)
"""


def _as_somebody(root: Path, commands: list[list[str]]) -> list[tuple[str, int]]:
    """What each command said on stderr and its code, run by a user who may not write there; root becomes nobody."""
    home = Path(main.__file__).parents[1]
    environ = {**os.environ, "WATCHER_ROOT": str(root), "PYTHONPATH": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", _AS_SOMEBODY, json.dumps(commands)], env=environ, cwd="/", text=True,
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    told = done.stderr.split("\n# ")
    return [
        (said.partition("\n")[2], int(code.split("\n")[0])) for said, code in zip(told[::2], told[1::2], strict=True)
    ]


@pytest.fixture
def shared_root() -> Iterator[Path]:
    """A root with one task of each kind, in a folder that other users may enter: pytest's own is closed to them."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        root = Path(name) / "root"
        _fill(root)
        yield root


def _fill(root: Path) -> None:
    stored = {"task_id": "e", "worker": "marie", "status": "completed", "submitted": {"description": "x"}}
    letter = {"task_id": "l", "worker": "marie", "dlq_reason": "worker_died", "description": "x", "retry_count": 0}
    files = {
        "tasks/marie/w.json": {"description": "x"}, "tasks/marie/.held/h.json": {"description": "x"},
        "results/marie/e.json": stored, "dlq/marie/l.json": letter, "control/marie/paused.json": {},
        "heartbeats/.keep": {}, "triggers/marie/.keep": {}, "tasks/marie/.claims/.keep": {},
    }  # fmt: skip
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))


def _set_modes(root: Path, mode: int) -> None:
    for folder in [*(path for path in root.rglob("*") if path.is_dir()), root][:: -1 if mode & 0o200 else 1]:
        folder.chmod(mode)


def test_who_may_only_read_is_told_what_he_may_not_write_and_whose_it_is(shared_root: Path) -> None:
    _set_modes(shared_root, 0o555)
    try:
        told = _as_somebody(shared_root, WRITERS)
    finally:
        _set_modes(shared_root, 0o755)
    for words, (said, code) in zip(WRITERS, told, strict=True):
        assert code in (1, 2), words
        assert f"{shared_root}/" in said and "Permission denied: it belongs to " in said, (words, said)
        assert "give yourself the right" in said or "run this as that user" in said, (words, said)
        assert "Errno" not in said and ".tmp" not in said, (words, said)


def test_who_may_not_read_is_told_so_and_not_that_nothing_is_there(shared_root: Path) -> None:
    readers = [words for words in READERS if words[0] not in ("--status", "report")]
    _set_modes(shared_root, 0o311)
    try:
        told = _as_somebody(shared_root, readers)
    finally:
        _set_modes(shared_root, 0o755)
    assert all("may not be read by " in said or "Permission denied: it belongs to " in said for said, _ in told[:1])
    for words, (said, code) in zip(readers, told, strict=True):
        if words[0] in ("list", "show", "results", "cancel", "redrive", "workers", "qshape"):
            assert code != 0 and "Permission denied: it belongs to " in said, (words, said)


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "make room"), (errno.EROFS, "read-only"), (errno.EMFILE, "ulimit -n"),
        (errno.ENOTDIR, "move it"),
        (errno.ENOENT, "WATCHER_ROOT"), (errno.EIO, "kernel's log"), (errno.ENXIO, "try again"),
    ],
)  # fmt: skip
def test_every_refusal_of_the_system_has_a_cure(number: int, cure: str) -> None:
    said = refusal_words(OSError(number, os.strerror(number), "/srv/agents/tasks"))
    assert said.startswith(f"/srv/agents/tasks: {os.strerror(number)}; ") and cure in said
    assert refusal_words(OSError(number, os.strerror(number))).startswith(os.strerror(number))


def test_folders_elsewhere_need_no_root(tmp_path: Path) -> None:
    environ = {"WATCHER_ROOT": str(tmp_path / "none"), "TASK_DIR": str(tmp_path)}
    places = folders(read_layers(environ=environ, env_file=os.devnull))
    root_check.check(places)
    assert root_check.remarks(places) == []
