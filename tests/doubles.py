"""Clocks that tests drive by hand, and a listener that remembers."""

from __future__ import annotations

from typing import TypeVar

from watcher.telemetry.events import Event

T = TypeVar("T", bound=Event)


class HandClock:
    """Both clocks stand still until the test moves them."""

    def __init__(self, wall: float = 1_800_000_000.0) -> None:
        self.now_wall = wall
        self.now_monotonic = 1000.0

    def wall(self) -> float:
        return self.now_wall

    def monotonic(self) -> float:
        return self.now_monotonic

    def pass_seconds(self, seconds: float) -> None:
        self.now_wall += seconds
        self.now_monotonic += seconds


class Memory:
    """A listener that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]
