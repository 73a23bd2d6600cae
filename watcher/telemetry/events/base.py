"""Define what every event is, and carry events from those that emit them to those that listen.

Events are emitted on the worker's loop thread only, so that a listener needs no lock; a listener must not block and
must not raise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(slots=True)
class Event:
    """Base of all events.

    `name` is dotted, in the past tense; `level` is the log level at which people see the event; `sentence` says what
    happened, for people, with the fields in braces. The log adds `reason` and `detail` behind the sentence.
    """

    name: ClassVar[str] = "event"
    level: ClassVar[str] = "info"
    sentence: ClassVar[str] = ""


Listener = Callable[[Event], None]
Emit = Callable[[Event], None]


class Bus:
    """Hands each event to every listener, in the order in which they joined."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def join(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def emit(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)
