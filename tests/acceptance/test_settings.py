"""Settings as a user gives them: flag, environment, .env; and what a wrong one is answered with."""

from __future__ import annotations

import json

from tests.acceptance.conftest import FAST, Site


def printed(site: Site, *arguments: str, **settings: object) -> dict[str, tuple[str, str]]:
    """What --print-config --json says: value and source by the setting's name."""
    process = site.launch(*arguments, "--print-config", "--json", **settings)
    assert process.ended() == 0, process.text()
    return {row["setting"]: (row["value"], row["source"]) for row in json.loads(process.text())["settings"]}


def test_flag_wins_over_environment_over_dotenv_over_default(site: Site) -> None:
    (site.home / ".env").write_text(
        "MAX_CONCURRENT_TASKS=11\nTASK_TIMEOUT=12\nMAX_RETRIES=13\nLOG_LEVEL=WARNING\nQUEUE_SIZE=0\n"
    )
    unset = dict.fromkeys(FAST)
    found = printed(
        site, "marie", "--max-concurrent", "31", "--fifo-mode", "strict",
        **{**unset, "MAX_CONCURRENT_TASKS": "21", "TASK_TIMEOUT": "22", "FIFO_MODE": "relaxed"},
    )  # fmt: skip
    assert {name: found[name] for name in ("MAX_CONCURRENT_TASKS", "FIFO_MODE", "TASK_TIMEOUT", "MAX_RETRIES")} == {
        "MAX_CONCURRENT_TASKS": ("31", "flag"), "FIFO_MODE": ("strict", "flag"), "TASK_TIMEOUT": ("22", "environment"),
        "MAX_RETRIES": ("13", ".env"),
    }  # fmt: skip
    documented = {
        "HEARTBEAT_INTERVAL": "10", "RETRY_BACKOFF": "2", "INITIAL_RETRY_DELAY": "1", "CIRCUIT_BREAKER_THRESHOLD": "5",
        "CIRCUIT_BREAKER_TIMEOUT": "60", "LOG_FORMAT": "json", "ENABLE_METRICS": "true", "METRICS_PORT": "9090",
        "CLAUDE_COMMAND": "claude", "SHUTDOWN_GRACE": "30", "TASK_DIR": f"{site.root}/tasks",
        "TRIGGER_DIR": f"{site.root}/triggers", "RESULT_DIR": f"{site.root}/results", "DLQ_DIR": f"{site.root}/dlq",
        "HEARTBEAT_DIR": f"{site.root}/heartbeats",
    }  # fmt: skip
    assert {name: found[name] for name in documented} == {n: (value, "default") for n, value in documented.items()}
    table = site.launch("--print-config", "--task-timeout", "7")
    assert table.ended() == 0 and not site.root.exists(), "showing settings touches nothing"
    [row] = [line for line in table.text().splitlines() if line.startswith("TASK_TIMEOUT ")]
    assert row.split()[1:3] == ["7", "flag"]


def test_wrong_values_are_all_refused_with_name_value_and_what_is_allowed(site: Site) -> None:
    (site.home / ".env").write_text("MAX_RETRIES=-1\nMAX_CONCURENT_TASKS=4\n")
    process = site.launch("marie", "--fifo-mode", "random", TASK_TIMEOUT="soon", LOG_FORMAT="xml")
    assert process.ended() == 2
    said = process.text()
    for words in (
        "FIFO_MODE=random (flag): must be one of relaxed, per_agent, strict",
        "TASK_TIMEOUT=soon (environment): must be a number from 0.1 to",
        "MAX_RETRIES=-1 (.env): must be a whole number from 0 to 100",
        "LOG_FORMAT=xml (environment): must be one of json, text",
        "MAX_CONCURENT_TASKS (.env): no setting has this name; did you mean MAX_CONCURRENT_TASKS?",
    ):
        assert words in said, said
    assert "Traceback" not in said and not site.root.exists()


def test_name_that_is_none_is_refused(site: Site) -> None:
    wrong = ((), ("../marie",), ("a b",), ("m" * 65,), ("marie", "--no-such-flag"))
    refused = [site.launch(*arguments) for arguments in wrong]
    names = ("worker name '../marie'", "worker name 'a b'", "at most 64 letters")
    said = ("no worker's name was given", *names, "--no-such-flag")
    for process, words in zip(refused, said, strict=True):
        assert process.ended() == 2 and words in process.text()
    assert not site.root.exists()


def test_provider_command_without_a_command_is_refused(site: Site) -> None:
    process = site.launch("marie", AGENT_COMMAND=None)
    assert process.ended() == 2 and "AGENT_COMMAND is not set" in process.text()


def test_folders_that_cannot_be_used_are_named(site: Site) -> None:
    site.root.write_text("a file where the folder should be")
    (site.home / "results").write_text("another")
    for wrong, settings in ((site.root, {}), (site.home / "results", {"TASK_DIR": site.home / "tasks"})):
        process = site.launch("marie", RESULT_DIR=site.home / "results", **settings)
        assert process.ended() == 2
        assert str(wrong) in process.text() and "Traceback" not in process.text()


def test_each_folder_may_lie_elsewhere(site: Site) -> None:
    places = {f"{kind}_DIR": site.home / kind.lower() for kind in ("TASK", "TRIGGER", "RESULT", "DLQ", "CONTROL")}
    site.start(MAX_RETRIES="0", AGENT_COMMAND=site.script('test "$WATCHER_TASK_ID" = good'), **places)
    inbox = places["TASK_DIR"] / "marie"
    for stem in ("good", "bad"):
        (inbox / f"{stem}.json").write_text('{"description": "x"}')
    for folder, stem in (("RESULT_DIR", "good"), ("TRIGGER_DIR", "good"), ("RESULT_DIR", "bad"), ("DLQ_DIR", "bad")):
        path = places[folder] / "marie" / f"{stem}.json"
        site.beat_that(lambda _, path=path: path.exists(), what=f"after {path}")
    assert sorted(path.name for path in site.root.iterdir()) == ["heartbeats"]
