"""An agent of the Agent Client Protocol that plays what the prompt says, line by line, right or wrong.

    python acp_player.py NOTES [OPTIONS]

The prompt is a JSON list of steps. A step is an update of the session (`{"sessionUpdate": ...}`), or one of `result`
and `error` (the answer to the prompt), `raw` (a line as it stands), `other` (an update of another session), `pause`
(seconds: what comes after an answer comes late). OPTIONS is a JSON object: `login` is the only method by which it lets
somebody in, `banner` a list of steps after `session/new`, `steps` what it plays for a prompt that is no JSON, `name`
what it is called.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

OPTIONS: dict[str, Any] = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}


def note(text: str) -> None:
    with open(sys.argv[1], "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {text}\n")


def write(message: dict[str, Any]) -> None:
    line(json.dumps({"jsonrpc": "2.0", **message}))


def line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def update(session: str, what: dict[str, Any]) -> None:
    write({"method": "session/update", "params": {"sessionId": session, "update": what}})


def play(steps: list[dict[str, Any]], session: str, number: int) -> None:
    for step in steps:
        if "pause" in step:
            time.sleep(step["pause"])
        elif "raw" in step:
            line(step["raw"])
        elif "other" in step:
            update("another-session", step["other"])
        elif "sessionUpdate" in step:
            update(session, step)
        else:
            write({"id": number, **step})


def main() -> None:
    is_in = "login" not in OPTIONS
    sessions = 0
    for text in sys.stdin:
        message = json.loads(text)
        method, number, params = message["method"], message.get("id"), message.get("params") or {}
        if method == "initialize":
            note("started")
            info = {"name": OPTIONS.get("name", "player"), "version": "1"}
            ways = [{"id": "api-key", "name": "a key"}, {"id": "browser", "name": "a person"}]
            can = {"sessionCapabilities": {"close": {}}}
            about = {"protocolVersion": 1, "agentInfo": info, "authMethods": ways, "agentCapabilities": can}
            write({"id": number, "result": about})
        elif method == "authenticate":
            note(f"authenticate {params['methodId']}")
            is_in = params["methodId"] == OPTIONS.get("login")
            bad = {"error": {"code": -32602, "message": "no such way"}}
            write({"id": number, **({"result": {}} if is_in else bad)})
        elif method == "session/new" and not is_in:
            write({"id": number, "error": {"code": -32000, "message": "Authentication required"}})
        elif method == "session/new":
            sessions += 1
            write({"id": number, "result": {"sessionId": f"s{sessions}"}})
            play(OPTIONS.get("banner", []), f"s{sessions}", 0)
        elif method == "session/close":
            note(f"close {params['sessionId']}")
            write({"id": number, **OPTIONS.get("close", {"result": {}})})
        elif method == "session/prompt":
            prompt = params["prompt"][0]["text"]
            note("prompt")
            steps = json.loads(prompt) if prompt.startswith("[") else OPTIONS["steps"]
            play(steps, params["sessionId"], number)
        elif method == "session/cancel":
            break


main()
