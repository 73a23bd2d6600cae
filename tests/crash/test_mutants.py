"""A part of what `python -m tests.mutants` does: the flushes on which promise 1 rests cannot be left out unnoticed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import mutants
from tests.mutants import Mutant, all_mutants, copy_of_the_tree, noticed_by

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

TESTS = (("tests/unit/test_durability.py",),)
#: One of each kind. That all others are noticed is told by the whole run.
WANTED = (
    "atomicfile:_rename_noreplace: replaces",
    "submit:_put: without fsync_file(folder, hidden)",
    "spool/settling:Settler.settle: without asking self._still_ours(work)",
    "spool/settling:Settler.settle: without self._sync.flush_folders(changed.values())",
    "spool/settling:Settler._write: without fsync_file(p.output, target)",
    "intake/webhook_accept:Accepter._write: without sync.flush_files(inboxes.values())",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield copy_of_the_tree(tmp_path_factory.mktemp("mutants"))


@pytest.mark.parametrize("name", WANTED)
def test_step_of_the_store_that_is_left_out_is_noticed(tree: Path, name: str) -> None:
    mutant = next(one for one in all_mutants() if one.name == name)
    assert noticed_by(mutant, tree, TESTS) is not None


def test_what_nothing_notices_is_still_there_to_be_explained() -> None:
    """An explanation of code that is gone would hide the next one of that name."""
    assert mutants.EXPECTED.keys() <= {one.name for one in all_mutants()}


def test_every_mutant_is_a_program() -> None:
    found = all_mutants()
    assert len({one.name for one in found}) == len(found) > 60
    for one in found:
        compile(_source(one), one.module, "exec")


def _source(one: Mutant) -> bytes:
    path = mutants.PROJECT / "watcher" / f"{one.module}.py"
    return one.applied_to(path.read_bytes())
