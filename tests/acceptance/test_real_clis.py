"""The real gemini, codex, opencode and qwen do real tasks through the real worker, and fail in the right class.

Each runs where its program is on PATH (`npm install @google/gemini-cli @openai/codex opencode-ai @qwen-code/qwen-code`)
and is skipped elsewhere. Offline: their model is a stub on loopback, and HOME is a throw-away folder.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.conftest import Site
from tests.acceptance.realcli import CLIS, program_of, run_case
from tests.stub_model import StubModel

pytestmark = pytest.mark.timeout(900)
PAIRS = [(name, case) for name, cli in CLIS.items() if name != "claude" for case in cli.cases]


@pytest.fixture
def stub() -> Iterator[StubModel]:
    model = StubModel()
    yield model
    model.close()


@pytest.mark.parametrize(("name", "case"), PAIRS, ids=[f"{name}-{case}" for name, case in PAIRS])
def test_real_cli_ends_in_the_right_class_with_nothing_left_running(
    name: str, case: str, site: Site, stub: StubModel
) -> None:
    if program_of(name) is None:
        pytest.skip(f"{name} is not on PATH")
    print(f"{name} {case}: {run_case(site, stub, name, case)}")
