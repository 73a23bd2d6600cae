"""The fields of a task as flags of a command line."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from watcher.cli.command_output import tell, utf8
from watcher.errors import InvalidTask


def add_fields(parser: argparse.ArgumentParser) -> None:
    """The optional fields; what none of them says is left out."""
    add = parser.add_argument
    add("--priority", metavar="P", type=utf8, help="critical, high, normal, low or -1000 to 1000; higher goes first")
    add("--timeout", metavar="S", type=float, help="seconds until it is ended")
    add("--agent", metavar="ID", type=utf8, help="tasks with one agent run in order")
    add("--after", metavar="IDS", type=utf8, help="ids it waits for, separated by commas")
    add("--batch-id", metavar="B", type=utf8, help="groups tasks")
    add("--meta", metavar="K=V", action="append", type=pair, help="goes into the result; may be repeated")
    add("--provider", metavar="NAME", type=utf8, help="which agent CLI")
    add("--model", metavar="M", type=utf8, help="which model")
    add("--cwd", metavar="DIR", type=utf8, help="where the agent works")
    add("--not-before", metavar="TIME", type=utf8, help="not started earlier: RFC 3339, like 2026-11-21T23:33:00Z")
    add("--max-retries", metavar="N", type=int, help="attempts after the first one")


def given_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The optional fields of a task, as far as they were given."""
    after, meta, cwd = options.after, options.meta, options.cwd
    given = {
        "priority": number_or_word(options.priority),
        "timeout": options.timeout,
        "agent_id": options.agent,
        "dependencies": None if after is None else [part.strip() for part in after.split(",") if part.strip()],
        "batch_id": options.batch_id,
        "metadata": None if meta is None else dict(pair_of(one) for one in meta),
        "provider": options.provider,
        "model": options.model,
        "cwd": None if cwd is None else os.path.abspath(os.path.expanduser(cwd)),
        "not_before": getattr(options, "not_before", None),
        "max_retries": getattr(options, "max_retries", None),
    }
    return {name: value for name, value in given.items() if value is not None}


def text_of(given: str) -> str:
    """The task's text, from stdin when it is `-`. What is not UTF-8 is refused, not repaired."""
    if given != "-":
        return given
    if sys.stdin.isatty():
        tell("reading the task from the keyboard; end it with Ctrl-D")
    return _decoded(sys.stdin.buffer.read(), "stdin")


def text_in(path: str) -> str:
    """The task's text from a file."""
    with open(path, "rb") as file:  # noqa: PTH123 - a name as the user wrote it, in messages too
        return _decoded(file.read(), path)


def number_or_word(text: str | None) -> int | str | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return text


def pair(text: str) -> str:
    key, between, _ = text.partition("=")
    if not key or not between:
        raise argparse.ArgumentTypeError(f"{text!r}: write it as name=value")
    return utf8(text)


def pair_of(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _decoded(raw: bytes, source: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidTask("invalid_text", f"{source} is not UTF-8 at byte {error.start}") from None
