"""Add up outcomes so that the totals are the same in whatever order they come: whole numbers only.

Durations are microseconds, costs are nano-dollars, and percentiles come from a histogram with fixed buckets, so adding
one outcome at a time, merging, and rebuilding from the folders give the same numbers to the last digit. A bucket is 5 %
wide: a percentile is off by at most 2.5 %.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: How a task ended; `refused` is a file that never became a task, `with_result` a dead letter that has its result.
COUNTED = ("completed", "failed", "timeout", "cancelled", "refused")
DIMENSIONS = ("all", "worker", "agent_id", "provider", "batch_id")

_LOG_WIDTH = math.log(1.05)
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Finished:
    """What is kept of one result or dead letter. Times are microseconds since the epoch, None where nothing tells."""

    worker: str
    folder: str
    name: str
    inode: int
    print: str
    task_id: str
    status: str
    reason: str | None = None
    batch_id: str | None = None
    agent_id: str | None = None
    provider: str | None = None
    started_us: int | None = None
    finished_us: int | None = None
    duration_us: int | None = None
    attempts: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0

    def belongs_to(self) -> Iterator[tuple[str, str]]:
        """Every total that this outcome belongs to."""
        yield "all", ""
        yield "worker", self.worker
        for dimension, key in (("agent_id", self.agent_id), ("provider", self.provider), ("batch_id", self.batch_id)):
            if key is not None:
                yield dimension, key


def bucket_of(duration_us: int) -> int:
    """The histogram bucket of a duration."""
    return 0 if duration_us < 1 else 1 + int(math.log(duration_us) / _LOG_WIDTH)


def seconds_in(bucket: int) -> float:
    """The middle of a bucket, by ratio."""
    return 0.0 if bucket == 0 else math.exp((bucket - 0.5) * _LOG_WIDTH) / 1e6


@dataclass(slots=True)
class Sums:
    """Sums of many outcomes. `durations` counts those that ran, by bucket."""

    counts: dict[str, int] = field(default_factory=dict)
    durations: dict[int, int] = field(default_factory=dict)
    duration_us: int = 0
    retries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0

    def add(self, outcome: Finished, sign: int = 1) -> None:
        """Count it in; with `sign` -1, take it out again."""
        _bump(self.counts, outcome.status, sign)
        if outcome.duration_us is not None and outcome.attempts > 0:
            _bump(self.durations, bucket_of(outcome.duration_us), sign)
            self.duration_us += sign * outcome.duration_us
        self.retries += sign * outcome.retries
        self.input_tokens += sign * outcome.input_tokens
        self.output_tokens += sign * outcome.output_tokens
        self.cost_nano += sign * outcome.cost_nano

    def merge(self, other: Sums) -> None:
        """Add all that another one has counted."""
        for status, count in other.counts.items():
            _bump(self.counts, status, count)
        for bucket, count in other.durations.items():
            _bump(self.durations, bucket, count)
        self.duration_us += other.duration_us
        self.retries += other.retries
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.cost_nano += other.cost_nano

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def is_empty(self) -> bool:
        return not self.counts and not self.durations

    def percentile(self, percent: float) -> float | None:
        """Seconds within which so many percent of the tasks ran; None when none did."""
        wanted = percent / 100 * sum(self.durations.values())
        seen = 0
        for bucket in sorted(self.durations):
            seen += self.durations[bucket]
            if seen >= wanted:
                return seconds_in(bucket)
        return None

    def dump(self) -> str:
        """As text with one spelling, so that equal tallies are equal texts."""
        return json.dumps(
            [
                dict(sorted(self.counts.items())), {str(b): n for b, n in sorted(self.durations.items())},
                self.duration_us, self.retries, self.input_tokens, self.output_tokens, self.cost_nano,
            ]
        )  # fmt: skip

    @classmethod
    def load(cls, text: str) -> Sums:
        counts, durations, *sums = json.loads(text)
        return cls(counts, {int(b): n for b, n in durations.items()}, *sums)

    def as_json(self) -> dict[str, Any]:
        """For people and programs."""
        ran = sum(self.durations.values())
        out: dict[str, Any] = {"tasks": self.total, **{status: self.counts.get(status, 0) for status in COUNTED}}
        out["success_rate"] = None if not self.total else round(self.counts.get("completed", 0) / self.total, 4)
        out["mean_seconds"] = None if ran == 0 else round(self.duration_us / ran / 1e6, 6)
        for percent in PERCENTILES:
            seconds = self.percentile(percent)
            out[f"p{percent}_seconds"] = None if seconds is None else float(f"{seconds:.4g}")
        out["retries"] = self.retries
        out["input_tokens"], out["output_tokens"] = self.input_tokens, self.output_tokens
        out["cost_usd"] = round(self.cost_nano / 1e9, 9)
        return out


class TotalsDelta:
    """Changes of totals that are not stored yet."""

    def __init__(self) -> None:
        self.changes: dict[tuple[str, str], Sums] = {}

    def add(self, outcome: Finished, sign: int = 1) -> None:
        if outcome.status not in COUNTED:
            return
        for key in outcome.belongs_to():
            tally = self.changes.get(key)
            if tally is None:
                tally = self.changes[key] = Sums()
            tally.add(outcome, sign)


def _bump(counts: dict[Any, int], key: Any, by: int) -> None:
    value = counts.get(key, 0) + by
    if value:
        counts[key] = value
    else:
        counts.pop(key, None)


def by_status(tallies: Mapping[str, Sums]) -> dict[tuple[str, str], int]:
    """Counts by worker and status, for metrics; statuses that nobody has yet are 0."""
    return {(key, status): tally.counts.get(status, 0) for key, tally in tallies.items() for status in COUNTED}
