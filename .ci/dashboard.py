"""The queries of a Grafana dashboard, ready to be asked: variables filled with what matches everything."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FILL = {"$__rate_interval": "5m", "$__interval": "1m", "$__range": "1h", "$worker": ".*", "$provider": ".*"}


def queries_of(path: Path) -> list[tuple[str, str]]:
    """(panel title, PromQL) for each target of each panel, and for each template variable."""
    board = json.loads(path.read_text())
    found = [
        (panel["title"], _filled(target["expr"])) for panel in _panels(board) for target in panel.get("targets", [])
    ]
    for variable in board.get("templating", {}).get("list", []):
        matched = re.fullmatch(r"label_values\((.+), *\w+\)", str(variable.get("query", "")))
        if matched:
            found.append((f"variable {variable['name']}", matched[1]))
    return found


def _panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", [])


def _filled(expression: str) -> str:
    for name, value in _FILL.items():
        expression = expression.replace(name, value)
    if "$" in expression:
        raise ValueError(f"a variable that is not known here: {expression}")
    return expression
