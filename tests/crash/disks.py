"""Small file systems for the crash tests: one to fill, with few inodes, or to break."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system, `ext4` in a loop file or `tmpfs` with few inodes, and gives its folder."""
    mounted: list[Path] = []

    def make(kind: str, size_mib: int = 32, inodes: int = 0) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        if os.geteuid() != 0:
            pytest.skip("needs root to mount a file system")
        try:
            if kind == "ext4":
                image = tmp_path / f"image-{len(mounted)}"
                with image.open("wb") as file:
                    file.truncate(size_mib << 20)
                run("mkfs.ext4", "-q", "-m", "0", "-F", image)
                run("mount", "-o", "loop", image, folder)
            else:
                run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m,nr_inodes={inodes}", "tmpfs", folder)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"cannot mount a file system here: {error}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        with contextlib.suppress(subprocess.CalledProcessError):
            run("umount", folder)
            continue
        run("umount", "-l", folder)


def fill(folder: Path) -> Path:
    """Take all the space of a file system; returns the file to delete for relief."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for block in (1 << 20, 4096, 512, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * block):
                    os.fsync(file.fileno())
    return ballast


def free_bytes(folder: Path) -> int:
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize
