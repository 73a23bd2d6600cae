"""The rules of the house that no linter knows; `make check` runs this. Prints each breach in one line; exit code 1.

1. Beside its rooms `watcher/` holds seven modules.
2. No circle of imports, whether at the top of a module, in a function or for the types alone.
3. No class name twice.
4. The names of files and folders below WATCHER_ROOT stand in `watcher/store/layout.py` alone.
5. `policy` imports nothing that touches the world.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "watcher"
IN_THE_ROOT = {"__init__", "__main__", "errors", "clock", "client", "handler", "standin"}
LAYOUT = PACKAGE / "store" / "layout.py"
#: Endings that files of every kind have.
ENDINGS = {".json", ".tmp"}
#: Endings that files of every kind have.
ENDINGS = {".json", ".tmp"}
NOT_FOR_POLICY = {"os", "time", "asyncio", "threading", "subprocess", "socket", "pathlib", "io", "shutil"}


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name, a package by its own."""
    found = {path.stem: path for path in ROOT.glob("*.py")}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.Module, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the project, and the top names of others, that this one imports anywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan 1972, with a stack of our own)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []
    for start in graph:
        work = [(start, iter(sorted(graph[start])))] if start not in index else []
        while work:
            node, rest = work[-1]
            if node not in index:
                index[node] = low[node] = len(index)
                stack.append(node)
            for other in rest:
                if other not in index:
                    work.append((other, iter(sorted(graph[other]))))
                    break
                if other in stack:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    circle = stack[stack.index(node) :]
                    del stack[stack.index(node) :]
                    if len(circle) > 1:
                        found.append(sorted(circle))
    return found


def layout_names() -> set[str]:
    """What `layout` calls the files and folders below the root: its constants that are text."""
    tree = ast.parse(LAYOUT.read_text())
    values = (node.value for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign))
    return {v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)} - ENDINGS


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every text of the code that is no docstring, with its line."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def main() -> int:
    known = modules()
    trees = {name: ast.parse(path.read_text()) for name, path in known.items()}
    breaches: list[str] = []
    loose = sorted({path.stem for path in PACKAGE.glob("*.py")} - IN_THE_ROOT)
    breaches += [f"watcher/{stem}.py stands in the root of the package: move it to a room" for stem in loose]

    graph = {name: {i for i in imports(tree, known) if i in known and i != name} for name, tree in trees.items()}
    graph["watcher"] = set()  # it hands out the client on first use, and everybody imports its version
    breaches += [f"a circle of imports: {', '.join(circle)}" for circle in circles(graph)]

    classes: dict[str, list[str]] = defaultdict(list)
    for name, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(name)
    breaches += [f"class {name} has two meanings: {', '.join(at)}" for name, at in classes.items() if len(at) > 1]

    names = layout_names()
    for name, tree in trees.items():
        path = known[name]
        if path == LAYOUT or not path.is_relative_to(PACKAGE):
            continue
        for line, text in texts(tree):
            for part in {*text.split("/")} & names if " " not in text else ():  # a sentence may name them
                breaches.append(f"{path.relative_to(ROOT)}:{line}: {part!r} belongs to store/layout: ask it")

    for name, tree in trees.items():
        if name.startswith("watcher.policy."):
            worldly = sorted({i.partition(".")[0] for i in imports(tree, known)} & NOT_FOR_POLICY)
            breaches += [f"{name} imports {module}: policy decides and touches nothing" for module in worldly]

    print("\n".join(breaches) or f"the house is in order: {len(known)} modules")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
