"""Name the root and its six folders, absolute, from the layers of the settings.

Cheap to import: every submit pays for it. Raises SettingError with a line for each folder that cannot be used.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from watcher.settings.layers import DEFAULT_ROOT, FOLDERS, ROOT, Given, Layers, refuse, shown


@dataclass(frozen=True, slots=True)
class Folders:
    """Where everything lies: absolute paths, which need not exist yet."""

    root: Path
    tasks: Path
    triggers: Path
    results: Path
    heartbeats: Path
    dlq: Path
    control: Path


def folders(layers: Layers) -> Folders:
    """The folders of these layers, absolute: `~` is the home, a relative path starts at the current folder.

    Raises SettingError when a folder setting is misspelt or cannot be used.
    """
    found, problems = resolve_folders(layers)
    refuse(layers.misspellings((ROOT, *FOLDERS)) + problems)
    return found


def state_folder(layers: Layers, root: Path) -> Path:
    """The folder of the listener's database, absolute."""
    given = layers.given.get("STATE_DIR")
    text = str(root / "state") if given is None else given.value
    return Path(os.path.realpath(os.path.expanduser(text)))


def resolve_folders(layers: Layers) -> tuple[Folders, list[str]]:
    """The folders, and a line for each setting that makes them unusable."""
    problems: list[str] = []
    root = _folder(layers, ROOT, DEFAULT_ROOT, problems)
    paths = {name: _folder(layers, name, str(root / stem), problems) for name, stem in FOLDERS.items()}
    holders: dict[Path, str] = {}
    for name, path in paths.items():
        first = holders.setdefault(path, name)
        if first != name:
            what = f"must be another folder than {first}, both are {shown(str(path), 200)}"
            problems.append(layers.problem(name, what))
    return Folders(root=root, **{FOLDERS[name]: path for name, path in paths.items()}), problems


def _folder(layers: Layers, name: str, default: str, problems: list[str]) -> Path:
    found = layers.given.get(name)
    text = default if found is None else found.value
    try:
        path = Path(os.path.abspath(os.path.expanduser(text)))
    except FileNotFoundError:
        what = "must be absolute here: the current folder is gone; cd to one that exists"
        problems.append(layers.problem(name, what))
        return Path("/", name)
    if found is not None:
        wrong = _wrong_folder(found) or _dangling(path)
        if wrong:
            problems.append(layers.problem(name, wrong))
    # Links are resolved here, once: two spellings compare equal, and below these folders no link is followed.
    return Path(os.path.realpath(path))


def _wrong_folder(given: Given) -> str | None:
    text = given.value
    if not text.strip() or "\0" in text:
        return "must be the path of a folder"
    if text.startswith("~") and os.path.expanduser(text) == text:
        return "must be the path of a folder: no home is known by that name; write ./~ for a folder called so"
    if given.source == ".env" and re.search(r"\$\w|\$\{", text):
        return "must be a plain path: variables are not replaced in .env"
    return None


def _dangling(path: Path) -> str | None:
    """A link to nothing on the way: no folder can be made there, and the system would say that it exists."""
    there = next((one for one in (path, *path.parents) if os.path.lexists(one)), path)
    if not os.path.islink(there) or os.path.exists(there):
        return None
    return f"{shown(str(there), 200)} is a link to nothing; make {shown(os.readlink(there), 200)}, or mend the link"
