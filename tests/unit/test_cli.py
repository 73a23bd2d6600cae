"""`watcher` finds its commands, says what is wrong in one line, and `validate` says what a worker would."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from watcher.cli import main


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_each_command_has_help_that_tells_what_it_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: watcher {name}" in capsys.readouterr().out
    assert (main.load(name).__doc__ or "").strip()


def test_a_mistyped_command_is_refused_with_the_one_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["valdate"]) == 2
    assert capsys.readouterr().err == "watcher: no command 'valdate'; did you mean validate?\n"
    assert main.main(["help", "valdate"]) == 2


def test_help_of_a_command_is_that_command_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["help", "redrive"])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: watcher redrive")


@pytest.mark.parametrize("words", [["help"], ["help", "list"], ["--version"], ["completion", "bash"]])
def test_reader_that_has_seen_enough_ends_a_command_without_a_word(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` leaves it
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "watcher", *words]
    home = Path(main.__file__).parents[2]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=home, env=environ, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["list", "results", "qshape"])
def test_two_different_workers_are_refused(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WATCHER_ROOT", str(tmp_path))
    assert main.main([command, "marie", "--worker", "anga"]) == 2
    assert "marie or --worker anga: give one" in capsys.readouterr().err
    assert main.main([command, "marie", "--worker", "marie"]) == 0


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_pause_of_a_worker_that_nobody_has_seen_is_made_and_told(
    flag: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WATCHER_ROOT", str(tmp_path))
    (tmp_path / "tasks" / "marie").mkdir(parents=True)
    (tmp_path / "heartbeats").mkdir()
    (tmp_path / "heartbeats" / "anga.json").write_text("{}")
    assert main.main(["pause", "marie", "bob", "anga", *flag]) == 0
    assert capsys.readouterr().err == (f"watcher: no worker bob is known in {tmp_path} yet; it will start paused\n")
    assert (tmp_path / "control" / "bob" / "paused.json").is_file()


def test_field_that_a_task_does_not_have_cannot_be_unset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WATCHER_ROOT", str(tmp_path))
    task = tmp_path / "tasks" / "marie" / "a.json"
    task.parent.mkdir(parents=True)
    task.write_text('{"description": "x", "colour": "red"}')
    assert main.main(["edit", "a", "--unset", "provder"]) == 1
    assert "'provder' is no field" in (err := capsys.readouterr().err) and "did you mean provider?" in err
    assert main.main(["edit", "a", "--unset", "colour", "--unset", "model"]) == 0
    assert json.loads(task.read_text()) == {"description": "x"}


@pytest.mark.parametrize(
    "words",
    [["-m", "watcher", "list"], ["-m", "watcher", "help"], ["demo_watcher.py", "--status"],
     ["-m", "watcher", "pause", "marie"]],
)  # fmt: skip
def test_closed_stdout_is_one_line_on_stderr_and_nothing_is_done(words: list[str], tmp_path: Path) -> None:
    home = Path(main.__file__).parents[2]
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, *words]
    environ = os.environ | {"WATCHER_ROOT": str(tmp_path)}
    done = subprocess.run(command, stderr=subprocess.PIPE, cwd=home, env=environ, check=False, text=True)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr.count("\n") == 1 and "standard output is closed" in done.stderr


def test_closed_stderr_puts_nothing_among_the_output(tmp_path: Path) -> None:
    home = Path(main.__file__).parents[2]
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-m", "watcher", "show", "nowhere"]
    environ = os.environ | {"WATCHER_ROOT": str(tmp_path)}
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=home, env=environ, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in main.COMMANDS)


def test_validate_accepts_a_task_and_names_unknown_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"description": "x", "colour": "red"}')
    assert main.main(["validate", str(file)]) == 0
    assert capsys.readouterr().out.rstrip().endswith('valid, task a; unknown field "colour", kept')


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", '{"description": " "}', "missing_description"),
        ("a.json", '{"description": "x",}', "invalid_json"),
        ("a.json", '{"description": "x", "task_id": "b"}', "id_mismatch"),
        ("a.json", '{"description": "x", "timeout": -1}', "invalid_field"),
        (".a.json", '{"description": "x"}', "bad_name"),
    ],
)
def test_validate_gives_the_reason_of_the_dead_letter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, reason: str
) -> None:
    (tmp_path / name).write_text(text)
    assert main.main(["validate", "--json", str(tmp_path / name)]) == 1
    assert json.loads(capsys.readouterr().out)["reason"] == reason


def test_validate_reads_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"task_id": "z", "description": "x"}')))
    assert main.main(["validate", "-"]) == 0
    assert "valid, task z" in capsys.readouterr().out


def test_validate_tells_references_to_what_is_no_dependency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    text = "{{x.stdout}} {{ b/y.stdout }} {{z.stdout}} {{x.stdout}} {{w.out}}"
    file.write_text(json.dumps({"description": text, "dependencies": ["b/z"]}))
    assert main.main(["validate", str(file)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("no declared dependency: {{x.stdout}}, {{b/y.stdout}}")
    assert main.main(["validate", "--json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["unknown_references"] == ["x", "b/y"]


def test_validate_of_a_missing_file_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["validate", str(tmp_path / "none.json")]) == 1
    assert "No such file" in capsys.readouterr().out
