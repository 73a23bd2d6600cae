"""The stand-in agent, started as a command, as the demo does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from watcher import standin


def answer(prompt: str, *arguments: str, attempt: int = 1, worker: str = "") -> tuple[int, str, str]:
    environment = {"WATCHER_ATTEMPT": str(attempt)} | ({"WATCHER_WORKER": worker} if worker else {})
    done = subprocess.run(
        [*standin.command(), *arguments],
        input=prompt.encode(),
        capture_output=True,
        env=environment,
        timeout=60,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_it_answers_with_the_first_words_of_its_prompt() -> None:
    code, said, complaint = answer("Tidy the kitchen, marie", worker="marie")
    assert (code, complaint) == (0, "")
    assert "marie, played by the stand-in" in said
    assert "Tidy the kitchen, marie\n" in said


def test_long_prompt_is_only_begun() -> None:
    _, said, _ = answer("word " * 50_000)
    assert said.count("word ") < 20
    assert "50000 words" in said


def test_prompt_may_be_an_argument() -> None:
    assert "Tidy up" in answer("", "Tidy", "up")[1]


def test_no_prompt_at_all_is_an_error() -> None:
    code, said, complaint = answer("")
    assert (code, said) == (2, "")
    assert "stdin" in complaint


def test_it_says_what_it_is_told_to() -> None:
    assert answer("[print Hello, world] [stderr careful] now") == (0, "Hello, world\n", "careful\n")


def test_it_says_as_much_as_it_is_told_to() -> None:
    code, said, _ = answer("[big 300000]")
    assert (code, len(said)) == (0, 300_000)


@pytest.mark.parametrize(("prompt", "code"), [("[exit 3]", 3), ("[fail]", 1), ("[FAIL] please", 1), ("[exit]", 1)])
def test_it_fails_when_told_to(prompt: str, code: int) -> None:
    assert answer(prompt)[0] == code


def test_it_fails_as_many_times_as_it_is_told_to() -> None:
    outcomes = [answer("[fail 2 times] and then answer", attempt=n) for n in (1, 2, 3)]
    assert [code for code, _, _ in outcomes] == [1, 1, 0]
    assert "attempt 2" in outcomes[1][2]
    assert "and then answer" in outcomes[2][1]


@pytest.mark.parametrize(
    "prompt", ["[sleep 0.01] hi", "[sleep nan] hi", "[sleep -1 x] [big x] hi", "see [1] and [fail"]
)
def test_words_that_make_no_sense_do_no_harm(prompt: str) -> None:
    assert answer(prompt)[0] == 0


def test_it_hangs_when_told_to() -> None:
    with subprocess.Popen([*standin.command()], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"[print here] [hang]")
        process.stdin.close()
        assert process.stdout.readline() == b"here\n"
        assert process.poll() is None
        process.kill()


def test_it_runs_as_a_module_too() -> None:
    done = subprocess.run([sys.executable, "-m", "watcher.standin"], input=b"hi", capture_output=True, timeout=60)
    assert b"You asked: hi" in done.stdout


def test_it_imports_nothing_that_is_slow() -> None:
    program = f"import sys; sys.argv = ['x']; exec(open({standin.__file__!r}).read()); print(*sys.modules)"
    listed = subprocess.check_output([sys.executable, "-I", "-S", "-c", program], input=b"hi", timeout=60)
    modules = set(listed.decode().split())
    assert not modules & {"re", "json", "argparse", "subprocess", "typing", "pathlib", "asyncio"}
