"""`control/<worker>/breakers.json`: the open circuit breakers of a worker, so that a restart does not close them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from watcher.clock import parse_rfc3339, rfc3339


def dump_breakers(open_ones: Mapping[str, tuple[int, float]]) -> bytes:
    """Of each provider the failures in a row and the wall second of its probe."""
    records = {name: {"failures": count, "probe_at": rfc3339(at)} for name, (count, at) in open_ones.items()}
    return json.dumps(records).encode() + b"\n"


def parse_breakers(raw: bytes) -> dict[str, tuple[int, float]]:
    """The same again; nothing when it cannot be read: a breaker is caution, not data."""
    try:
        return {
            str(provider): (int(entry["failures"]), parse_rfc3339(entry["probe_at"]))
            for provider, entry in json.loads(raw).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
