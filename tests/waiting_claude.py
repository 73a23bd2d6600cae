"""A stand-in that speaks claude's stream-json from a stdin that stays open, and notes what happens to it.

    python waiting_claude.py NOTES [WAY] ...

It notes its pid when it starts, `initialize` when it is asked for that, and each task. Without `--input-format` it
reads its prompt to the end, as `claude --print` does, and answers `cold: PROMPT`. A prompt steers it: `sleep` never
ends, `auth` fails for want of a login. WAY is what it does before its task: `die`, `late` (never answers), `complain`
(on stderr), `refuse` (an error as the answer), or `deaf` (it ends when its task comes, without a word).
"""

from __future__ import annotations

import json
import os
import sys
import time


def say(event: object) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    with open(sys.argv[1], "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {text}\n")


def serve(prompt: str, how: str) -> None:
    note(f"{how} {json.dumps(prompt)}")
    say({"type": "system", "subtype": "init", "session_id": "s", "model": "m"})
    if prompt == "sleep":
        time.sleep(600)
    said = {"type": "result", "subtype": "success", "is_error": False, "result": f"{how}: {prompt}"}
    if prompt == "auth":
        say({"type": "assistant", "error": "authentication_failed", "message": {"content": []}})
        said |= {"is_error": True, "result": "Not logged in"}
    say(said | {"total_cost_usd": 0.5, "usage": {"input_tokens": 1, "output_tokens": 1}})
    sys.exit(1 if prompt == "auth" else 0)


def main() -> None:
    way = sys.argv[2] if len(sys.argv) > 2 else ""
    if "--input-format" not in sys.argv:
        serve(sys.stdin.read(), "cold")
    note("started")
    for line in sys.stdin:
        found = json.loads(line)
        if found["type"] == "control_request":
            note("initialize")
            if way == "die":
                sys.exit(3)
            if way == "complain":
                sys.stderr.write("something is odd\n")
                sys.stderr.flush()
            if way == "late":
                continue
            kind = "error" if way == "refuse" else "success"
            say({"type": "control_response", "response": {"subtype": kind, "request_id": found["request_id"]}})
        elif way == "deaf":
            sys.exit(0)
        else:
            serve(found["message"]["content"][0]["text"], "warm")


main()
