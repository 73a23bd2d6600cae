"""What agent CLIs really printed and how they exited: the table in tests/data/providers, and what we read in it.

A case is a folder `<provider>/<case>` with `stdout`, `stderr` and `case.json`: `source` says which program and version
it was recorded with (`python -m tests.record`) or which documentation it was written after.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watcher.runner.printed_text import events
from watcher.runner.providers.built_in import built_in
from watcher.runner.providers.failure_words import Printed
from watcher.runner.providers.judging import judge

DATA = Path(__file__).parent / "data" / "providers"


@dataclass(frozen=True)
class Recorded:
    folder: Path
    fields: dict[str, Any]

    @property
    def provider(self) -> str:
        return self.folder.parent.name

    @property
    def name(self) -> str:
        return f"{self.provider}/{self.folder.name}"


def recorded() -> list[Recorded]:
    folders = sorted(path.parent for path in DATA.glob("*/*/case.json"))
    return [Recorded(folder, json.loads((folder / "case.json").read_text())) for folder in folders]


def seen_of(case: Recorded) -> dict[str, Any]:
    """What the real reader and the real judge make of a case, in the shape of its `expected`."""
    provider = built_in({case.provider: case.fields["command"]})[case.provider]
    output = case.fields["output"]
    fd = os.open(case.folder / "stdout", os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        assert provider.reader is not None
        reading = None if output == "text" else provider.reader(events(fd, size, output, provider.mentions))
    finally:
        os.close(fd)
    printed = Printed((case.folder / "stdout").read_text(), (case.folder / "stderr").read_text())
    now = float(case.fields["recorded_at"])
    ending = judge(provider, case.fields["exit_code"], reading, lambda: printed, now, size)
    usage = None if reading is None or reading.usage is None else reading.usage.as_json()
    return {
        "class": "success" if ending.failure is None else ending.failure.value,
        "reason": ending.reason,
        "resets_at": ending.resets_at,
        "answer": None if reading is None or ending.failure is not None else reading.answer,
        "usage": usage,
    }
