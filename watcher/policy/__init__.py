"""Decisions as pure functions and small state machines: no file, no clock, no process. Others carry them out."""
