"""Sites for the crash tests: each test has its own root, and whatever it started is ended after it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.harness import Site
from tests.crash.tools import faults_library, remove_tools

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def _tools() -> Iterator[None]:
    yield
    remove_tools()


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(name: str = "site", **settings: object) -> Site:
        base = tmp_path / name
        base.mkdir()
        sites.append(Site(base, **settings))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


@pytest.fixture(scope="session")
def faults() -> Path:
    """The library that injects faults."""
    library = faults_library()
    if library is None:
        pytest.skip("needs gcc and an interpreter that is linked dynamically, to hit single file-system calls")
    return library
