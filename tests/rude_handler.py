"""A handler in no library's words: it speaks the protocol of docs/handlers.md, and misbehaves as its event asks.

The event has `do` (nothing: answer with the event's `say`). It needs nothing but Python, started with -I -S for speed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

HOARD: list[bytes] = []


def write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def answer(number: int, output: Any, success: bool = True, **more: Any) -> None:
    result = {"success": success, "output": output, "stderr": "", **more}
    write(json.dumps({"jsonrpc": "2.0", "id": number, "result": result}).encode() + b"\n")


def execute(number: int, event: dict[str, Any]) -> None:
    do = event.get("do", "answer")
    if do == "crash":
        os.write(2, b"I cannot go on\n")
        os._exit(3)
    elif do == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif do == "hang":
        time.sleep(600)
    elif do == "hang deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note(event)
        time.sleep(600)
    elif do == "garbage":
        write(b"Traceback: this is no protocol\n")
        answer(number, "too late")
    elif do == "not an answer":
        write(b'{"jsonrpc": "2.0", "id": %d}\n' % number)
    elif do == "key twice":
        write(b'{"jsonrpc": "2.0", "id": %d, "result": {"success": false, "success": true}}\n' % number)
    elif do == "chatter":
        noise = b'\n \r\n{"jsonrpc": "2.0", "method": "log", "params": {"text": "still at it"}}\n' * event["times"]
        write(noise)
        answer(number, event["say"])
        write(noise)
    elif do == "wrong result":
        write(json.dumps({"jsonrpc": "2.0", "id": number, "result": {"success": "yes"}}).encode() + b"\n")
    elif do == "other id":
        write(json.dumps({"jsonrpc": "2.0", "id": number + 7, "result": {"success": True}}).encode() + b"\n")
    elif do == "error":
        error = {"code": event["code"], "message": "I do not do that"}
        write(json.dumps({"jsonrpc": "2.0", "id": number, "error": error}).encode() + b"\n")
    elif do == "twice":
        answer(number, event["say"])
        answer(number, "the same again")
    elif do == "again later":
        answer(number, event["say"])
        wait_for(event["gate"])
        answer(number, "an old answer")
    elif do == "late":
        wait_for(event["gate"])
        answer(number, "late")
    elif do == "huge":
        answer(number, "x" * event["bytes"])
    elif do == "half a line":
        write(b'{"jsonrpc": "2.0", "id": ')
        time.sleep(600)
    elif do == "endless line":
        while True:
            write(b"x" * 65536)
    elif do == "flood":
        for _ in range(event["bytes"] // 65536):
            os.write(2, b"a flood of words " * 3855 + b"\n")
        answer(number, event["say"])
    elif do == "murmur":
        os.write(2, f"about {event['say']}\n".encode())
        answer(number, event["say"])
    elif do == "hoard":
        HOARD.append(b"x" * event["bytes"])
        if "gated" in event:
            wait_for(event["gate"])
        answer(number, event["say"])
    elif do == "leave and crash":
        leave(event)
        os._exit(4)
    elif do == "leave and answer":
        leave(event)
        answer(number, event["say"])
    elif do == "wait":
        note(event)
        wait_for(event["gate"])
        answer(number, event["say"])
    elif do == "fail":
        answer(number, "", success=False, stderr="first line\nit did not work", **event.get("more", {}))
    else:
        answer(number, event["say"])


def leave(event: dict[str, Any]) -> None:
    """A grandchild in a session of its own, which ignores TERM, and that is known to run."""
    code = f"import os, signal, time; signal.signal(15, 1); open({event['note']!r}, 'w').write(str(os.getpid()))"
    nothing = subprocess.DEVNULL
    subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", f"{code}; time.sleep(600)"],
        start_new_session=True, stdin=nothing, stdout=nothing, stderr=nothing,
    )  # fmt: skip
    while not (os.path.exists(event["note"]) and os.path.getsize(event["note"])):
        time.sleep(0.005)


def note(event: dict[str, Any]) -> None:
    with open(event["note"], "a") as file:
        file.write(f"{os.getpid()}\n")


def wait_for(gate: str) -> None:
    while not os.path.exists(gate):
        time.sleep(0.005)


def main() -> None:
    if "deaf" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for line in sys.stdin:
        message = json.loads(line)
        if message["method"] == "ping":
            write(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {}}).encode() + b"\n")
        elif message["method"] == "shutdown":
            break
        else:
            execute(message["id"], message["params"]["event"])
    while "deaf" in sys.argv:  # neither the end of stdin nor TERM ends it
        time.sleep(600)


if __name__ == "__main__":
    main()
