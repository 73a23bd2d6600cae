"""The one error of the bench: a measurement that cannot be trusted, with what to do about it."""

from __future__ import annotations


class BenchError(Exception):
    """No figure came out; the message says what was tried, what happened and what to do."""
