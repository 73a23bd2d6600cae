"""The name of one of several processes that serve one worker: WATCHER_INSTANCE."""

from __future__ import annotations

import re

from watcher.errors import SettingError

#: The value of WATCHER_INSTANCE that stands for the name of the machine.
OWN_HOSTNAME = "@hostname"


def own_instance(text: str) -> str:
    """What an instance setting means: `@hostname` is this machine's or container's name, all else itself.

    All replicas of a container have one environment; so each gets an identity of its own. The whole name counts: two
    machines may differ in their domain alone. Raises SettingError when it has no letter or digit to begin with.
    """
    if text != OWN_HOSTNAME:
        return text
    import hashlib
    import socket  # after all else: it costs a submit 2 ms

    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())
    if len(name) > 64:  # of two long names of one domain, the ends may be all that differs
        name = f"{name[:51]}-{hashlib.blake2b(name.encode(), digest_size=6).hexdigest()}"
    if not name[:1].isalnum():
        raise SettingError(f"WATCHER_INSTANCE={OWN_HOSTNAME}: this machine has no usable name; write an instance")
    return name
