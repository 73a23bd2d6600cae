"""Programs written with watcher.handler, talked to by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from watcher import handler as helper

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import os, sys
from watcher.handler import handler, serve

@handler
def shout(event):
    print("noise")
    os.write(1, b"more noise\\n")
    return event["description"].upper()

serve()
"""


class Program:
    """A handler program; the test is its worker."""

    def __init__(self, folder: Path, text: str) -> None:
        path = folder / "program.py"
        path.write_text(text)
        self.popen = subprocess.Popen(
            [sys.executable, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"]},
        )  # fmt: skip
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.stdin: IO[bytes] = self.popen.stdin
        self.stdout: IO[bytes] = self.popen.stdout

    def send(self, raw: bytes) -> None:
        self.stdin.write(raw + b"\n")
        self.stdin.flush()

    def ask(self, method: str, **params: Any) -> Any:
        self.send(json.dumps({"jsonrpc": "2.0", "id": 5, "method": method, "params": params}).encode())
        return self.said()

    def said(self) -> Any:
        return json.loads(self.stdout.readline())

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for stream in (self.stdin, self.stdout, self.popen.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path, PROGRAM)
    yield program
    program.close()


def test_the_protocol_is_spoken_and_prints_do_not_disturb_it(program: Program) -> None:
    assert program.ask("ping") == {"jsonrpc": "2.0", "id": 5, "result": {"handlers": ["shout"]}}
    answer = program.ask("execute_handler", handler_name="default", event={"description": "hi"})
    assert answer["result"] == {"success": True, "output": "HI", "stderr": ""}
    assert program.ask("shutdown")["result"] == {}
    assert program.popen.wait(60) == 0
    assert program.popen.stderr is not None
    assert program.popen.stderr.read() == b"more noise\nnoise\n"


def test_what_is_no_request_gets_an_error_and_the_program_lives_on(program: Program) -> None:
    program.ask("ping")
    assert program.ask("dance")["error"]["code"] == -32601
    assert program.ask("execute_handler", handler_name="default")["error"]["code"] == -32602
    program.send(b"what?")
    assert program.said()["error"]["code"] == -32700
    assert program.ask("ping")["id"] == 5


def test_the_end_of_stdin_ends_the_program(program: Program) -> None:
    program.ask("ping")
    program.stdin.close()
    assert program.popen.wait(60) == 0


def test_a_busy_program_ends_when_nobody_reads_its_answer_any_more(tmp_path: Path) -> None:
    busy = PROGRAM.replace("return event", "import time; time.sleep(600); return event")
    program = Program(tmp_path, busy)
    program.ask("ping")
    request = {"jsonrpc": "2.0", "id": 1, "method": "execute_handler", "params": {"event": {"description": "x"}}}
    program.send(json.dumps(request).encode())
    program.stdin.close()
    program.stdout.close()
    assert program.popen.wait(60) == 0
    program.close()


def test_a_plain_text_on_stdin_makes_it_a_one_shot_agent(program: Program) -> None:
    out, err = program.popen.communicate(b"say\nhi", timeout=60)
    assert (program.popen.returncode, out, err) == (0, b"SAY\nHI", b"more noise\nnoise\n")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}
    monkeypatch.setattr(helper, "_handlers", found)
    return found


def test_handlers_are_called_by_their_names(registry: dict[str, Any]) -> None:
    @helper.handler
    def one(event: helper.Event) -> str:
        return "1"

    assert helper.run("default", {})["output"] == "1"  # a sole handler is the default

    @helper.handler("two")
    def other(event: helper.Event) -> Any:
        return {"n": event["n"]}

    assert helper.run("two", {"n": 2}) == {"success": True, "output": '{"n": 2}', "stderr": ""}
    missing = helper.run("default", {})
    assert (missing["success"], missing["permanent"]) == (False, True)
    assert missing["stderr"] == "no handler is called 'default'; there are: one, two"


def test_exceptions_are_failures_with_their_traceback(registry: dict[str, Any]) -> None:
    @helper.handler
    def default(event: helper.Event) -> Any:
        if event.get("exit"):
            sys.exit(3)
        if event.get("never"):
            raise helper.PermanentError("give it up")
        return event["missing"]

    failed = helper.run("default", {})
    assert (failed["success"], "permanent" in failed) == (False, False)
    assert failed["stderr"].startswith("Traceback")
    assert failed["stderr"].endswith("KeyError: 'missing'\n")
    assert helper.run("default", {"exit": 1})["success"] is False
    assert helper.run("default", {"never": 1}) == {
        "success": False, "output": "", "stderr": "give it up", "permanent": True
    }  # fmt: skip


def test_it_imports_nothing_that_is_slow() -> None:
    code = "import sys, watcher.handler; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    loaded = set(json.loads(done.stdout.replace("'", '"')))
    assert loaded.isdisjoint({"pydantic", "asyncio", "subprocess", "ctypes", "watchdog", "filelock", "dataclasses"})
