"""Write a warm handler in Python: a function that takes an event and returns its output.

    from watcher.handler import handler, serve

    @handler
    def shout(event):
        return event["description"].upper()

    if __name__ == "__main__":
        serve()

`HANDLER_COMMAND="python shout.py" PROVIDER=handler python worker_watcher.py marie` then keeps that program running and
hands it one task after the other. The standard output of the program belongs to the protocol, so what functions print
goes to standard error, and what they read from standard input is empty. An exception is a failed attempt with its
traceback; `PermanentError` is one that no retry can mend. When the worker is gone the program ends at once.

Started with a plain text on its standard input instead, the program is a one-shot agent: the text is the description,
the output is printed, the exit code is 0 or 1. It imports the standard library only; docs/handlers.md has the protocol.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, overload

Event = dict[str, Any]
Function = Callable[[Event], Any]
_F = TypeVar("_F", bound=Function)

#: The handler of a task that names none.
DEFAULT = "default"
#: An idle program ends by itself when the worker is gone; one that does not is ended after this.
_LAST_SECONDS = 1.0
_handlers: dict[str, Function] = {}


class PermanentError(Exception):
    """Raise it when a retry cannot help: the task then fails for good at once."""


@overload
def handler(name: _F) -> _F: ...
@overload
def handler(name: str) -> Callable[[_F], _F]: ...
def handler(name: _F | str) -> _F | Callable[[_F], _F]:
    """Register a function under its own name, or as `@handler("name")`. A sole handler is also the default one."""
    if not isinstance(name, str):
        _handlers[name.__name__] = name
        return name
    key = name

    def register(function: _F) -> _F:
        _handlers[key] = function
        return function

    return register


def serve() -> None:
    """Answer requests until there are no more; returns at the end of stdin or after `shutdown`."""
    incoming, outgoing = _take_streams()
    watch = _Watch(outgoing.fileno())
    line = incoming.readline()
    if line and not _is_request(line):
        sys.exit(_run_once(line + incoming.read(), outgoing))
    while line:
        message = _parse(line)
        watch.is_busy = True
        answer = _answer(message)
        watch.is_busy = False
        if answer is not None:
            _write(outgoing, answer)
        if message.get("method") == "shutdown":
            break
        line = incoming.readline()
    watch.is_over = True


def run(name: str, event: Event) -> dict[str, Any]:
    """Run one handler: the `{success, output, stderr}` of the protocol. For tests of handlers, too."""
    function = _handlers.get(name)
    if function is None and name == DEFAULT and len(_handlers) == 1:
        (function,) = _handlers.values()
    if function is None:
        known = ", ".join(sorted(_handlers)) or "none"
        return _failure(f"no handler is called {name!r}; there are: {known}", permanent=True)
    try:
        output = function(event)
        if output is not None and not isinstance(output, str):
            output = json.dumps(output, allow_nan=False)
        return {"success": True, "output": output or "", "stderr": ""}
    except PermanentError as error:
        return _failure(str(error) or "PermanentError", permanent=True)
    except (Exception, SystemExit):  # noqa: BLE001 - whatever it raises is the failure of one attempt
        import traceback

        return _failure(traceback.format_exc(), permanent=False)


class _Watch:
    """Ends the process when the worker is gone while a handler works: nobody reads its answer any more.

    A thread that waits for the reader of stdout to go costs nothing; reading the requests in a thread, to see the end
    of stdin, would cost each of them a switch between threads.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.is_busy = False
        self.is_over = False
        threading.Thread(target=self._wait, name="watch-stdout", daemon=True).start()

    def _wait(self) -> None:
        poller = select.poll()
        poller.register(self._fd, 0)  # POLLERR, which says that nobody reads, comes unasked
        poller.poll()
        until = time.monotonic() + _LAST_SECONDS
        while not self.is_busy and not self.is_over and time.monotonic() < until:
            time.sleep(0.05)
        if not self.is_over:
            os._exit(0)


def _take_streams() -> tuple[BinaryIO, BinaryIO]:
    """Take stdin and stdout away from everybody else: prints go to stderr, reads find nothing."""
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return incoming, outgoing


def _answer(message: Event) -> Event | None:
    method, number = message.get("method"), message.get("id")
    if method == "execute_handler":
        params = message.get("params")
        if not isinstance(params, dict) or not isinstance(params.get("event"), dict):
            return _error(number, -32602, "params must be {handler_name, event}")
        result = run(str(params.get("handler_name") or DEFAULT), params["event"])
        _flush()
    elif method == "ping":
        result = {"handlers": sorted(_handlers)}
    elif method == "shutdown":
        result = {}
    elif method is None:
        return _error(number, -32700, "the line is no JSON-RPC request")
    else:
        return _error(number, -32601, f"no method is called {method!r}")
    return None if number is None else {"jsonrpc": "2.0", "id": number, "result": result}


def _flush() -> None:
    """What was printed belongs to this task, so it goes out before the answer does."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # a handler that closed or broke it hurts only itself
            continue


def _error(number: Any, code: int, text: str) -> Event:
    return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": text}}


def _failure(stderr: str, permanent: bool) -> dict[str, Any]:
    return {"success": False, "output": "", "stderr": stderr, **({"permanent": True} if permanent else {})}


def _parse(line: bytes) -> Event:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _is_request(line: bytes) -> bool:
    return _parse(line).get("jsonrpc") == "2.0"


def _write(outgoing: BinaryIO, message: Event) -> None:
    data = memoryview(json.dumps(message).encode() + b"\n")
    while data:
        data = data[outgoing.write(data) :]


def _run_once(prompt: bytes, outgoing: BinaryIO) -> int:
    """Be a one-shot agent. Returns the exit code."""
    event = {
        "task_id": os.environ.get("WATCHER_TASK_ID", ""),
        "worker": os.environ.get("WATCHER_WORKER", ""),
        "attempt": int(os.environ.get("WATCHER_ATTEMPT") or 1),
        "description": prompt.decode("utf-8", "replace"),
        "metadata": None,
        "agent_id": None,
        "cwd": os.getcwd(),
        "model": os.environ.get("WATCHER_MODEL"),
    }
    result = run(DEFAULT, event)
    _flush()
    os.write(2, result["stderr"].encode("utf-8", "replace"))
    data = memoryview(result["output"].encode("utf-8", "replace"))
    while data:
        data = data[outgoing.write(data) :]
    return 0 if result["success"] else 1


if __name__ == "__main__":

    @handler(DEFAULT)
    def echo(event: Event) -> Any:
        """To try the machinery: `HANDLER_COMMAND="python -m watcher.handler"`."""
        return event["description"]

    serve()
