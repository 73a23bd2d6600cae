"""Own the names of hidden files whose writers were killed before their rename, and when these files go.

Every tool of this suite writes under a hidden name first. A killed one leaves that file, with the task's text in it,
and its name does not tell who it was. An hour after the last change nobody is still writing: then it is removed.
One that was frozen for so long finds its file gone, so its rename fails and it says so; nothing is half there.
Files of other people's tools (`.x.json.swp`, `.hello.tmp`) are not ours to remove, whatever their age.
"""

from __future__ import annotations

import contextlib
import os
import stat

from watcher.store.layout import ABANDONED
from watcher.system.files import Folder

#: Far longer than any write takes, be the machine ever so slow.
ABANDONED_SECONDS = 3600.0


def remove_abandoned(folder: Folder, now: float) -> list[str]:
    """Remove them from a folder; returns their names. `now` is wall seconds, of a clock that is never ahead.

    One that cannot be removed harms nobody. Raises OSError when the folder cannot be listed.
    """
    return [name for name in folder.names() if ABANDONED.fullmatch(name) and _remove_if_old(folder, name, now)]


def _remove_if_old(folder: Folder, name: str, now: float) -> bool:
    with contextlib.suppress(OSError):
        found = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        # The time of the last change cannot be set, unlike that of the last write, which copies take over.
        if stat.S_ISREG(found.st_mode) and now - max(found.st_mtime, found.st_ctime) > ABANDONED_SECONDS:
            return folder.remove(name)
    return False
