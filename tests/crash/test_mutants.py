"""A part of what `python -m tests.mutants` does: the flushes on which promise 1 rests cannot be left out unnoticed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import mutants
from tests.mutants import Mutant, all_mutants, copy_of_the_tree, noticed_by

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

TESTS = [("tests/unit/test_durability.py",)]
#: One of each kind, as module and change. That all others are noticed is told by the whole run.
WANTED = (
    ("system/files", "_RENAME_NOREPLACE as 0"),
    ("system/files", "without syncfs"),
    ("store/submitting", "without fsync_file"),
    ("store/result_writer", "without asking self._still_ours"),
    ("store/result_writer", "without self._sync.flush_folders"),
    ("store/worker_locks", "without fcntl.flock"),
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield copy_of_the_tree(tmp_path_factory.mktemp("mutants"))


@pytest.mark.parametrize(("module", "change"), WANTED)
def test_step_of_the_store_that_is_left_out_is_noticed(tree: Path, module: str, change: str) -> None:
    mutant = next(one for one in all_mutants([module]) if change in one.what)
    assert noticed_by(mutant, tree, TESTS) is not None


def test_what_nothing_notices_is_still_there_to_be_explained() -> None:
    """An explanation of code that is gone would hide the next one of that name."""
    assert mutants.EXPECTED.keys() <= {one.name for one in all_mutants()}


def test_every_mutant_is_a_program() -> None:
    found = all_mutants()
    assert len({one.name for one in found}) == len(found) > 150
    for one in found:
        compile(_source(one), one.module, "exec")


def _source(one: Mutant) -> bytes:
    path = mutants.PROJECT / "watcher" / f"{one.module}.py"
    return one.applied_to(path.read_bytes())
