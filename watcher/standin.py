"""A stand-in for an agent CLI: for demos, and for trying things without an account. It thinks nothing.

It reads its prompt on stdin (or, when that is empty, from its arguments) and answers in plain text, exit 0. Words in
brackets in the prompt tell it to behave otherwise, in the order in which they stand:

    [sleep 2]        wait 2 seconds first          [print TEXT]    say TEXT instead of the usual answer
    [fail]           exit 1, every time            [stderr TEXT]   say TEXT on stderr
    [fail 2 times]   exit 1 on attempts 1 and 2    [big 1000000]   say that many bytes
    [exit 3]         exit with code 3              [hang]          never end

Start it with `python -m watcher.standin`, or by its path, which is faster: it needs nothing but the interpreter, and
imports nothing that is slow to import. It keeps no state: the attempt's number comes from WATCHER_ATTEMPT.
"""

import os
import sys
import time

_A_LINE = b"The quick brown fox jumps over the lazy dog, and the stand-in agent counts it.\n"


def command() -> tuple[str, ...]:
    """The fastest way to start it: an isolated interpreter, and the path of this file."""
    return (sys.executable, "-I", "-S", os.path.abspath(__file__))


def main() -> int:
    """Answer one prompt; returns the exit code."""
    arguments = " ".join(sys.argv[1:])
    prompt = arguments if arguments and os.isatty(0) else _read_all().strip() or arguments
    if not prompt:
        _say("stand-in: there is no prompt: give one on stdin, or as an argument\n", 2)
        return 2
    has_answered = False
    for word, rest in _orders(prompt):
        if word == "sleep":
            time.sleep(_number(rest, 1.0))
        elif word == "hang":
            while True:
                time.sleep(3600.0)
        elif word == "print":
            _say(rest + "\n", 1)
            has_answered = True
        elif word == "stderr":
            _say(rest + "\n", 2)
        elif word == "big":
            _say_much(int(_number(rest, 0.0)))
            has_answered = True
        elif word == "exit":
            return int(_number(rest, 1.0)) & 0xFF
        elif word == "fail" and _must_fail(rest):
            return 1
    if not has_answered:
        _say(_answer(prompt), 1)
    return 0


def _orders(prompt: str) -> list[tuple[str, str]]:
    """`[sleep 2]` as `("sleep", "2")`; other words in brackets are part of the prompt."""
    known = ("sleep", "hang", "print", "stderr", "big", "exit", "fail")
    out = []
    for piece in prompt.split("[")[1:]:
        inside, bracket, _ = piece.partition("]")
        word, _, rest = inside.strip().partition(" ")
        if bracket and word.lower() in known:
            out.append((word.lower(), rest.strip()))
    return out


def _must_fail(rest: str) -> bool:
    if not rest:
        _say("stand-in: told to fail\n", 2)
        return True
    times = int(_number(rest, 1.0))
    attempt = int(_number(os.environ.get("WATCHER_ATTEMPT", ""), 1.0))
    if attempt <= times:
        _say(f"stand-in: told to fail {times} times; this is attempt {attempt}\n", 2)
    return attempt <= times


def _answer(prompt: str) -> str:
    words = prompt.split()
    asked = " ".join(words[:12]) + (" ..." if len(words) > 12 else "")
    name = os.environ.get("WATCHER_WORKER")
    who = f"This is {name}, played by the stand-in agent." if name else "This is the stand-in agent."
    return f"{who} You asked: {asked}\nConsider it done: {len(words)} words read, nothing touched.\n"


def _number(text: str, otherwise: float) -> float:
    """The number that a text begins with, at least 0 and at most ten million."""
    try:
        number = float(text.split()[0])
    except (ValueError, IndexError):
        return otherwise
    return min(number, 1e7) if number >= 0 else otherwise


def _read_all() -> str:
    raw = b""
    while part := os.read(0, 1 << 16):
        raw += part
    return raw.decode("utf-8", "replace")


def _say(text: str, fd: int) -> None:
    _write(fd, text.encode("utf-8", "replace"))


def _say_much(size: int) -> None:
    block = _A_LINE * 800
    while size > 0:
        size -= _write(1, block[:size])


def _write(fd: int, raw: bytes) -> int:
    done = 0
    while done < len(raw):
        done += os.write(fd, raw[done:])
    return done


if __name__ == "__main__":
    sys.exit(main())
