"""The JSON Schemas of all formats: `python -m watcher.formats.schemas docs/schemas` writes them to a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from watcher.formats import dead_letter, heartbeat, result, task
from watcher.formats import operator_command as command
from watcher.formats import receipt_and_notice as notice


def all_schemas() -> dict[str, dict[str, Any]]:
    """Every schema by the name of its file, generated from the records."""
    return {
        "task": task.schema(),
        "result": result.schema(),
        "dead-letter": dead_letter.schema(),
        "command": command.schema(),
        "heartbeat": heartbeat.schema(),
        "receipt": notice.schema(),
        "notice": notice.notice_schema(),
    }


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in all_schemas().items():
        (folder / f"{name}.schema.json").write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/schemas"))
