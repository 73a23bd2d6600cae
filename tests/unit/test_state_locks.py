"""The locks below STATE_DIR."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from watcher.store.state_locks import take_state_lock
from watcher.system import no_links


def test_lock_is_held_until_it_is_released_and_its_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "zones" / "a.lock"
    held = take_state_lock(path)
    assert held is not None and take_state_lock(path) is None
    held.release()
    again = take_state_lock(path)
    assert again is not None and path.exists()
    again.release()


def test_lock_of_an_earlier_version_excludes_this_one_and_the_other_way_round(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert take_state_lock(path) is None
    fcntl.flock(fd, fcntl.LOCK_UN)
    held = take_state_lock(path)
    assert held is not None
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    held.release()
    os.close(fd)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_link_in_the_path_is_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "real").mkdir()
    if what == "file":
        (tmp_path / "real" / "a.lock").symlink_to(tmp_path / "elsewhere")
        path = tmp_path / "real" / "a.lock"
    else:
        (tmp_path / "link").symlink_to(tmp_path / "real")
        path = tmp_path / "link" / "a.lock"
    with pytest.raises(no_links.Refused) as refused:
        take_state_lock(path)
    assert refused.value.errno == errno.ELOOP
    assert not (tmp_path / "elsewhere").exists() and list((tmp_path / "real").glob("*.lock")) == (
        [path] if what == "file" else []
    )


def test_file_that_was_exchanged_while_it_was_locked_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.lock"
    (tmp_path / "b").touch()
    look = no_links.look_at

    def exchange(of: str | Path) -> os.stat_result:
        if path.exists():
            os.replace(tmp_path / "b", path)
        return look(of)

    with monkeypatch.context() as patched:
        patched.setattr(no_links, "look_at", exchange)
        path.touch()
        (tmp_path / "b").touch()
        patched.setattr(no_links, "refuse_link", lambda _: None)
        with pytest.raises(OSError, match="replaced"):
            take_state_lock(path)
    held = take_state_lock(path)
    assert held is not None
    held.release()
