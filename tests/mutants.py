"""Take away each fsync, flush, lock, rename guard and check of a claim of the store, one at a time: does a test notice?

    python -m tests.mutants                  every mutant, by the tests that CI runs for the store
    python -m tests.mutants submit again     only those of these modules
    python -m tests.mutants --list           what would be taken away

Each mutant is one change in a copy of the tree; the tests run on that copy, quick ones first, until one fails. It ends
with exit code 1 when there is a mutant that nothing notices and that EXPECTED does not explain. All of it takes some
minutes for each module; `tests/crash/test_mutants.py` does a part of it.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[1]
MODULES = (
    "atomicfile", "submit", "tell", "again", "holdfiles", "spool/settling", "spool/inhand", "spool/incarnation",
    "spool/directory", "spool/rescue", "spool/places", "intake/webhook_accept", "intake/memory", "intake/claiming",
    "intake/finishing", "maintenance/reassign", "maintenance/recorder", "maintenance/seat",
)  # fmt: skip
#: A statement that only calls one of these is left out.
_CALLS = frozenset(
    {"fsync", "fsync_file", "flush", "flush_files", "flush_folders", "_sync", "syncfs", "flock", "acquire", "check"}
)
#: A condition that asks one of these is answered as if all were well.
_CHECKS = {
    "_still_ours": True,
    "_is_same_result": True,
    "_is_settled": False,
    "_is_elsewhere": False,
    "is_current": True,
}
#: Flags that refuse to replace or to follow.
_FLAGS = frozenset({"O_EXCL", "O_NOFOLLOW"})
TESTS = (
    ("tests/unit/test_durability.py", "tests/unit/test_atomicfile.py", "tests/unit/test_submit.py"),
    ("tests/unit/test_webhook_accept.py", "tests/unit/test_holdfiles.py", "tests/unit/test_reassign.py"),
    ("tests/conformance",),
    ("tests/unit",),
    ("tests/crash/test_kill_points.py", "tests/acceptance/test_zones.py", "tests/acceptance/test_instances.py"),
)
#: What nothing notices, and why that is so: `module:function: change`. Keep it short.
EXPECTED: dict[str, str] = {
    "atomicfile:: without O_NOFOLLOW": "O_EXCL follows no link either",
    "atomicfile:fsync_file: without O_NOFOLLOW": "a name that this process has just made",
    "spool/inhand:_rewrite: without os.fsync(mine.fd)": "either version may stand; giving it back flushes both folders",
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
        elif isinstance(node, ast.Attribute) and node.attr in _FLAGS:
            add(node, where, f"without {node.attr}", "0")
        elif isinstance(node, ast.keyword) and node.arg == "durable":
            add(node.value, where, f"durable={ast.unparse(node.value)} as False", "False")
        for child in ast.iter_child_nodes(node):
            visit(child, where)

    visit(ast.parse(source), "")
    if module == "atomicfile":
        at = source.index(b"_RENAME_NOREPLACE: Final = 1")
        found.append(Mutant(module, "_rename_noreplace", "replaces", 0, at, at + 28, "_RENAME_NOREPLACE: Final = 0"))
    seen: dict[str, int] = {}
    for one in found:
        seen[one.name] = seen.get(one.name, 0) + 1
        number = f" ({seen[one.name]})" if seen[one.name] > 1 else ""
        yield Mutant(one.module, one.where, one.what + number, one.line, one.start, one.end, one.instead)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def all_mutants(modules: tuple[str, ...] = MODULES) -> list[Mutant]:
    return [one for module in modules for one in mutants_of(module, _path(PROJECT, module).read_bytes())]


def _path(tree: Path, module: str) -> Path:
    return tree / "watcher" / f"{module}.py"


def copy_of_the_tree(place: Path) -> Path:
    """Everything that the tests need, to be changed at will."""
    tree = place / "tree"
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.egg-info", ".*_cache", "node_modules")
    shutil.copytree(PROJECT, tree, symlinks=True, ignore=ignored)
    return tree


def noticed_by(mutant: Mutant, tree: Path, tests: tuple[tuple[str, ...], ...] = TESTS) -> str | None:
    """The tests that fail on this mutant, or None; the tree is as it was afterwards."""
    path = _path(tree, mutant.module)
    source = path.read_bytes()
    path.write_bytes(mutant.applied_to(source))
    try:
        return next((" ".join(group) for group in tests if not _pass(tree, group)), None)
    finally:
        path.write_bytes(source)


def _pass(tree: Path, tests: tuple[str, ...]) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", "120", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=1800)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=MODULES, help="of the store, as in `spool/settling`")
    parser.add_argument("--list", action="store_true", help="only say what would be taken away")
    parser.add_argument("--quick", action="store_true", help="only the first two groups of tests")
    options = parser.parse_args()
    mutants = all_mutants(tuple(options.modules))
    if options.list:
        print("\n".join(f"{one.line:4} {one.name}" for one in mutants))
        return 0
    left: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        tree = copy_of_the_tree(Path(place))
        tests = TESTS[:2] if options.quick else TESTS
        if not all(_pass(tree, group) for group in tests):
            sys.exit("the tests fail on the tree as it is; mend that first")
        for one in mutants:
            noticed = noticed_by(one, tree, tests)
            print(f"{'noticed' if noticed else 'NOT NOTICED'}  {one.name}  {noticed or ''}", flush=True)
            if noticed is None:
                left.append(one.name)
    unexplained = [name for name in left if name not in EXPECTED]
    print(f"{len(mutants)} mutants, {len(mutants) - len(left)} noticed, {len(unexplained)} unexplained")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
