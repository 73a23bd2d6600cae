"""Take away each fsync, flush, lock, guard and check of the store, one at a time: does a test notice?

    python -m tests.mutants                               every mutant, two at a time
    python -m tests.mutants store/queue store/rescue      only those of these modules
    python -m tests.mutants --quick                       only by the unit tests that know the module
    python -m tests.mutants --list                        what would be taken away

Each mutant is one change in a copy of the tree. The tests run on that copy, quick ones first, until one fails: the
unit tests that import the module, the conformance suite, then what kills real processes. It ends with exit code 1
when nothing notices a mutant and EXPECTED does not explain it. All of it takes an hour or two;
`tests/crash/test_mutants.py` does a part of it.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
#: Where tasks and outcomes are published and claimed: these files, and all files of these rooms.
ROOMS = ("system/files.py", "system/no_links.py", "store", "worker", "listener", "intake/webhook", "intake/drop_zones")
#: A statement that only calls one of these is left out.
_CALLS = frozenset(
    {"fsync", "fdatasync", "fsync_file", "flush", "flush_files", "flush_folders", "_sync", "syncfs", "flock", "acquire"}
) | {"check", "mend", "refuse_link", "_refuse_foreign", "_check_folder", "fchmod"}  # fmt: skip
#: A condition that asks one of these is answered as if all were well.
_CHECKS = {
    "_still_ours": True, "_is_same_result": True, "_is_same": True, "is_current": True, "samestat": True,
    "_is_lock": True, "_is_mine": True, "_is_as_it_was": True, "S_ISREG": True, "writer_had_its_time": True,
    "_is_settled": False, "_is_elsewhere": False, "is_link": False, "_is_claimed": False, "_is_claimed_by": False,
    "_is_with_others": False, "_runs_something": False, "_tells": False, "is_rerun_of": False, "has_writer": False,
    "is_being_written": False, "_is_abandoned": True, "S_ISLNK": False,
}  # fmt: skip
#: Such an argument is given this value instead.
_ARGUMENTS = {"durable": "False", "private": "False"}
#: Flags that refuse to replace or to follow, and locks that keep others out.
_FLAGS = {"O_EXCL": "0", "O_NOFOLLOW": "0", "LOCK_EX": "fcntl.LOCK_SH"}
#: The constants that make the kernel refuse.
_CONSTANTS = frozenset({"_RENAME_NOREPLACE", "_RESOLVE_NO_LINKS"})
#: Calls that never replace, as one that does.
_NEVER_REPLACE = frozenset({"move_new", "publish_new"})
_REPLACES = "(lambda a, b, c, d: __import__('os').rename(b, d, src_dir_fd=a.fd, dst_dir_fd=c.fd) is None)"
#: These names tell one file from another; a comparison of them is answered as if it were the same one.
_IDENTITY = frozenset({"st_ino", "st_nlink", "file_state", "FileSignature"})

#: Every mutant is tried by these, and before them by what knows its module and is written for such steps.
ALWAYS = ("tests/unit/test_durability.py", "tests/unit/test_files.py")
THEN = (
    ("tests/conformance",),
    ("tests/crash/test_command_kills.py", "tests/acceptance/test_instances.py", "tests/acceptance/test_commands.py"),
    ("tests/acceptance/test_listener.py", "tests/acceptance/test_webhook.py", "tests/acceptance/test_zones.py"),
    ("tests/crash/test_kill_points.py", "tests/crash/test_zones.py"),
)
#: What nothing notices, and why that is so: `module:function: change`. Keep it short.
EXPECTED: dict[str, str] = {
    "store/notice_publisher:Recorder._check_folder: without asking self._folder.is_current()": "so is `.tmp`",
}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: these characters of a file become others."""

    module: str
    where: str
    what: str
    line: int
    start: int
    end: int
    instead: str

    @property
    def name(self) -> str:
        """The same for as long as the code stays, whatever its line number."""
        return f"{self.module}:{self.where}: {self.what}"

    def applied_to(self, source: bytes) -> bytes:
        return source[: self.start] + self.instead.encode() + source[self.end :]


def mutants_of(module: str, source: bytes) -> Iterator[Mutant]:
    """Everything in this source that can be taken away, in its order."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: list[Mutant] = []

    def add(node: ast.expr | ast.stmt, where: str, what: str, instead: str) -> None:
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        found.append(Mutant(module, where, what, node.lineno, start, end, instead))

    def visit(node: ast.AST, where: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            where = f"{where}.{node.name}" if where else node.name
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _called(node.value) in _CALLS:
            add(node, where, f"without {ast.unparse(node)}", "pass")
        elif isinstance(node, ast.Call) and _called(node) in _CHECKS:
            add(node, where, f"without asking {ast.unparse(node)}", str(_CHECKS[_called(node)]))
        elif isinstance(node, ast.Call) and _called(node) in _NEVER_REPLACE:
            add(node.func, where, f"{ast.unparse(node)} replaces", _REPLACES)
        elif isinstance(node, ast.Compare) and _tells_identity(node):
            is_same = isinstance(node.ops[0], ast.Eq)
            add(node, where, f"without asking {ast.unparse(node)}", str(is_same))
        elif isinstance(node, ast.Attribute) and node.attr in _FLAGS:
            add(node, where, f"without {node.attr}", _FLAGS[node.attr])
        elif isinstance(node, ast.keyword) and node.arg in _ARGUMENTS and ast.unparse(node.value) != "False":
            add(node.value, where, f"{ast.unparse(node)} as {_ARGUMENTS[node.arg]}", _ARGUMENTS[node.arg])
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) in _CONSTANTS and node.value is not None:
            add(node.value, where, f"{ast.unparse(node.target)} as 0", "0")
        for child in ast.iter_child_nodes(node):
            visit(child, where)

    visit(ast.parse(source), "")
    seen: dict[str, int] = {}
    for one in found:
        seen[one.name] = seen.get(one.name, 0) + 1
        yield replace(one, what=f"{one.what} ({seen[one.name]})") if seen[one.name] > 1 else one


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _tells_identity(node: ast.Compare) -> bool:
    names = (part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "") for part in ast.walk(node.left))
    return not _IDENTITY.isdisjoint(names)


def all_modules() -> list[str]:
    root = PROJECT / "watcher"
    files = [
        file for room in ROOMS for file in ([root / room] if room.endswith(".py") else (root / room).rglob("*.py"))
    ]
    return sorted(str(file.relative_to(root).with_suffix("")) for file in files)


def all_mutants(modules: list[str] | None = None) -> list[Mutant]:
    return [
        one for module in modules or all_modules() for one in mutants_of(module, _path(PROJECT, module).read_bytes())
    ]


def _path(tree: Path, module: str) -> Path:
    return tree / "watcher" / f"{module}.py"


def copy_of_the_tree(place: Path) -> Path:
    """Everything that the tests need, to be changed at will."""
    tree = place / "tree"
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info", ".*_cache", "node_modules")
    shutil.copytree(PROJECT, tree, symlinks=True, ignore=ignored)
    return tree


def tests_of(module: str, tree: Path) -> list[tuple[str, ...]]:
    """The tests of this tree that may notice a change of this module, in groups, the quickest first."""
    dotted = f"watcher.{module.replace('/', '.')}"
    package, _, name = dotted.rpartition(".")
    knows = [
        str(file.relative_to(tree))
        for file in sorted((tree / "tests/unit").glob("test_*.py"))
        if any(_imports(line, dotted, package, name) for line in file.read_text().splitlines())
    ]
    steps = [one for one in knows if one.endswith("_steps.py")]
    return [tuple(dict.fromkeys([*steps, *ALWAYS, *knows])), *THEN]


def _imports(line: str, dotted: str, package: str, name: str) -> bool:
    words = line.replace(",", " ").split()
    return line.startswith((f"from {dotted} import", f"import {dotted}")) or (
        line.startswith(f"from {package} import") and name in words
    )


def noticed_by(mutant: Mutant, tree: Path, tests: list[tuple[str, ...]]) -> str | None:
    """The tests that fail on this mutant, or None; the tree is as it was afterwards."""
    path = _path(tree, mutant.module)
    source = path.read_bytes()
    path.write_bytes(mutant.applied_to(source))
    try:
        return next((failed for group in tests if (failed := first_failure(tree, group))), None)
    finally:
        path.write_bytes(source)


def first_failure(tree: Path, tests: tuple[str, ...]) -> str:
    """The first test that fails, empty when all pass. Tests that hang have failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", "120", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.Popen(
            command, cwd=tree, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = done.wait(1200)
        except subprocess.TimeoutExpired:
            code = 1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(done.pid, signal.SIGKILL)
            done.wait()
        output.seek(0)
        lines = [line.split()[1] for line in output if line.startswith(("FAILED ", "ERROR "))]
    if code == pytest.ExitCode.USAGE_ERROR:
        raise RuntimeError(f"no such tests: {tests}")
    return "" if code == 0 else (lines[0] if lines else " ".join(tests))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="as in `store/result_writer`; all when none is given")
    parser.add_argument("--list", action="store_true", help="only say what would be taken away")
    parser.add_argument("--quick", action="store_true", help="only by the unit tests that know the module")
    parser.add_argument("--only", help="a file with the names of the mutants to try, one a line")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (2)")
    options = parser.parse_args()
    mutants = all_mutants(options.modules)
    if options.only:
        names = set(Path(options.only).read_text().splitlines())
        mutants = [one for one in mutants if one.name in names]
    if options.list:
        print("\n".join(f"{one.line:4} {one.name}" for one in mutants))
        return 0
    left: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as place,
        concurrent.futures.ThreadPoolExecutor(options.jobs) as pool,
    ):
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(options.jobs):
            trees.put(copy_of_the_tree(Path(place) / str(number)))

        def attempt(one: Mutant) -> str | None:
            tree = trees.get()
            try:
                return noticed_by(one, tree, tests_of(one.module, tree)[: 1 if options.quick else None])
            finally:
                trees.put(tree)

        for one, noticed in zip(mutants, pool.map(attempt, mutants), strict=True):
            print(f"{'noticed' if noticed else 'NOT NOTICED'}  {one.name}  {noticed or ''}", flush=True)
            if noticed is None:
                left.append(one.name)
    unexplained = [name for name in left if name not in EXPECTED]
    expected = len(left) - len(unexplained)
    print(f"{len(mutants)} mutants: {len(mutants) - len(left)} noticed, {expected} expected, {len(unexplained)} not")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
