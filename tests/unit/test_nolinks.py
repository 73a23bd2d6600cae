"""Paths without links: what is opened lies where its path says, with and without openat2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from watcher.system import no_links


@pytest.fixture(params=[True, False], ids=["openat2", "by steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not no_links._HAS_OPENAT2:
        pytest.skip("this kernel has no openat2 (Linux 5.6)")
    monkeypatch.setattr(no_links, "_HAS_OPENAT2", request.param)


@pytest.mark.usefixtures("way")
def test_file_and_folder_are_opened_made_and_removed(tmp_path: Path) -> None:
    os.close(no_links.open_folder(tmp_path / "a" / "b", create=True))
    fd = no_links.open_file(tmp_path / "a" / "b" / "x", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x")
    os.close(fd)
    assert no_links.names_in(tmp_path / "a" / "b") == ["x"]
    assert no_links.look_at(tmp_path / "a" / "b" / "x").st_size == 1
    no_links.remove(tmp_path / "a" / "b" / "x")
    no_links.remove_folder(tmp_path / "a" / "b")
    assert no_links.names_in(tmp_path / "a") == [] == no_links.names_in(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none"):
        no_links.open_file(tmp_path / "none" / "x", os.O_RDONLY)


@pytest.mark.usefixtures("way")
def test_link_anywhere_in_a_path_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "x").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "file").symlink_to("deep/x")
    for path in ("link", "link/deep", "link/new", "link/new/deeper"):
        with pytest.raises(no_links.Refused, match=r"symbolic link is in this path.*put the real one there"):
            no_links.open_folder(tmp_path / path, create=True)
    for path in ("link/deep/x", "real/file"):
        with pytest.raises(no_links.Refused):
            no_links.open_file(tmp_path / path, os.O_RDONLY)
    with pytest.raises(no_links.Refused):
        no_links.open_file(tmp_path / "link", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    with pytest.raises(no_links.Refused):
        no_links.open_file(tmp_path / "link" / "made", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(no_links.Refused):
        no_links.remove(tmp_path / "link" / "deep" / "x")
    assert sorted(os.listdir(tmp_path / "real")) == ["deep", "file"]
    assert no_links.names_in(tmp_path / "link") == []
    assert not no_links.is_there(tmp_path / "link" / "deep") and not no_links.is_folder(tmp_path / "link")
    assert no_links.is_there(tmp_path / "link") and no_links.is_folder(tmp_path / "real" / "deep")


@pytest.mark.usefixtures("way")
def test_relative_path_and_a_name_alone_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    no_links.make_folder("a/b")
    assert no_links.is_folder("a") and no_links.names_in("a") == ["b"] and no_links.names_in(".") == ["a"]
