"""What a setting may be, and what people read when it is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.loading import load, own_folder, refusal
from watcher.errors import SettingError
from watcher.settings.config_base import render_config

__all__ = ["own_folder"]


# --- what is wrong is said, all of it


def test_every_wrong_setting_is_listed_with_value_place_and_what_is_allowed(own_folder: Path) -> None:
    (own_folder / ".env").write_text("ENABLE_METRICS=maybe\nHEARTBEET_INTERVAL=3\n")
    env = {
        "MAX_CONCURRENT_TASKS": "zero",
        "RETRY_JITTER": "1.5",
        "LOG_LEVEL": "loud",
        "TASK_DIR": "~nobody-x",
    }
    lines = refusal({"QUEUE_SIZE": "-1", "NO_SUCH": "1"}, env).splitlines()
    assert lines[0] == "8 settings cannot be used:"
    assert set(lines[1:]) >= {
        "  MAX_CONCURRENT_TASKS=zero (environment): must be a whole number from 1 to 1000",
        "  RETRY_JITTER=1.5 (environment): must be a number from 0 to 1",
        "  LOG_LEVEL=loud (environment): must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL",
        "  QUEUE_SIZE=-1 (flag): must be a whole number from 0 to 100000",
        "  ENABLE_METRICS=maybe (.env): must be true or false (or 1, 0, yes, no, on, off)",
        "  NO_SUCH (flag): no setting has this name",
    }
    wrong = [line.split("=")[0].strip() for line in lines if ": must be " in line]
    assert wrong == ["TASK_DIR", "MAX_CONCURRENT_TASKS", "RETRY_JITTER", "LOG_LEVEL", "ENABLE_METRICS", "QUEUE_SIZE"]
    assert any(line.startswith("  HEARTBEET_INTERVAL (.env): no setting has this name") for line in lines)
    assert any(line.startswith("  TASK_DIR=~nobody-x (environment)") for line in lines)


RANGES = {
    "WARM_AGENTS": ("0", "100", "-1", "101"),
    "MAX_CONCURRENT_TASKS": ("1", "1000", "0", "1001"),
    "TASK_TIMEOUT": ("0.1", "2678400", "0.09", "2678401"),
    "HEARTBEAT_INTERVAL": ("0.1", "3600", "0", "3601"),
    "MAX_RETRIES": ("0", "100", "-1", "101"),
    "RETRY_BACKOFF": ("1", "100", "0.9", "101"),
    "INITIAL_RETRY_DELAY": ("0", "86400", "-1", "86401"),
    "MAX_RETRY_DELAY": ("0", "86400", "-1", "inf"),
    "RETRY_JITTER": ("0", "1", "-0.1", "nan"),
    "MAX_COST_PER_TASK": ("0", "1000000", "-0.01", "nan"),
    "MAX_TOKENS_PER_TASK": ("0", "1000000000000", "-1", "0.5"),
    "DAILY_BUDGET": ("0", "1000000", "-0.01", "inf"),
    "STALL_TIMEOUT": ("0", "86400", "-1", "86401"),
    "CIRCUIT_BREAKER_THRESHOLD": ("1", "10000", "0", "10001"),
    "CIRCUIT_BREAKER_TIMEOUT": ("0.1", "86400", "0", "86401"),
    "METRICS_PORT": ("0", "65535", "-1", "65536"),
    "HANDLER_REQUEST_TIMEOUT": ("0.1", "2678400", "0", "2678401"),
    "HANDLER_START_TIMEOUT": ("0.1", "3600", "0", "3601"),
    "HANDLER_MAX_REQUESTS": ("0", "1099511627776", "-1", "1.5"),
    "HANDLER_MAX_AGE": ("0", "2678400", "-1", "2678401"),
    "HANDLER_MAX_MEMORY": ("0", "1125899906842624", "-1", "1.5"),
    "QUEUE_SIZE": ("0", "100000", "-1", "1.5"),
    "SCAN_INTERVAL": ("0.05", "3600", "0.04", "3601"),
    "POLL_INTERVAL": ("0.01", "60", "0", "61"),
    "SETTLE_SECONDS": ("0", "600", "-1", "601"),
    "MAX_TASK_BYTES": ("64", "67108864", "63", "67108865"),
    "MAX_OUTPUT_BYTES": ("64", "67108864", "63", "67108865"),
    "MAX_PROMPT_BYTES": ("64", "67108864", "63", "67108865"),
    "MAX_ATTEMPT_OUTPUT_BYTES": ("64", "1125899906842624", "63", "1125899906842625"),
    "DEPENDENCY_TIMEOUT": ("0", "2678400", "-1", "2678401"),
    "MAX_WORKER_DEATHS": ("1", "100", "0", "101"),
    "MAX_GIVEN_BACK": ("1", "100", "0", "101"),
    "SHUTDOWN_GRACE": ("0", "86400", "-1", "86401"),
    "KILL_GRACE": ("0", "600", "-1", "601"),
    "MIN_FREE_BYTES": ("0", "1125899906842624", "-1", "1125899906842625"),
}


@pytest.mark.parametrize("name", RANGES)
def test_numbers_are_taken_up_to_their_bounds_and_no_further(name: str) -> None:
    low, high, below, above = RANGES[name]
    for good in (low, high):
        assert float(getattr(load(env={name: good}).config, name.lower())) == float(good)
    for bad in (below, above):
        assert f"{name}={bad} (environment): must be a" in refusal(env={name: bad})


def test_every_number_has_its_bounds_tested() -> None:
    numbers = {s.name for s in load().settings if s.allowed.startswith(("a number", "a whole number"))}
    assert numbers == set(RANGES) | POOL_SIZES


#: Each bounds the other two.
POOL_SIZES = {"HANDLER_POOL_SIZE", "HANDLER_POOL_MIN", "HANDLER_POOL_MAX"}


def test_a_pool_has_from_one_to_a_thousand_handlers_and_its_usual_size_lies_between_its_limits() -> None:
    widest = {"HANDLER_POOL_MIN": "1", "HANDLER_POOL_SIZE": "1000", "HANDLER_POOL_MAX": "1000"}
    assert load(env=widest).config.handler_pool_size == 1000
    for name in POOL_SIZES:
        for bad in ("0", "1001"):
            assert f"{name}={bad} (environment): must be a whole number from 1 to 1000" in refusal(env={name: bad})
    for size in ("1", "11"):
        wrong = {"HANDLER_POOL_MIN": "2", "HANDLER_POOL_SIZE": size}
        assert "HANDLER_POOL_SIZE must lie between HANDLER_POOL_MIN and HANDLER_POOL_MAX" in refusal(env=wrong)


def test_the_provider_handler_needs_its_command() -> None:
    assert "HANDLER_COMMAND is not set" in refusal(env={"PROVIDER": "handler"})
    config = load(env={"PROVIDER": "handler", "HANDLER_COMMAND": "python 'my handler.py'"}).config
    assert config.handler_command == ("python", "my handler.py")


def test_place_of_a_prompt_file_needs_the_prompt_in_a_file() -> None:
    command = {"PROVIDER": "command", "AGENT_COMMAND": "agent --from={prompt_file}"}
    assert "AGENT_COMMAND names {prompt_file}" in refusal(env=command)
    assert load(env={**command, "AGENT_PROMPT": "file"}).config.agent_prompt == "file"


@pytest.mark.parametrize("word", ["true", "1", "YES", "on"])
def test_switch_is_on_for_the_usual_words(word: str) -> None:
    assert load(env={"ENABLE_METRICS": word}).config.enable_metrics is True


@pytest.mark.parametrize("word", ["False", "0", "no", "off"])
def test_switch_is_off_for_the_usual_words(word: str) -> None:
    assert load(env={"ENABLE_METRICS": word}).config.enable_metrics is False


def test_choices_are_taken_in_any_case() -> None:
    words = {"LOG_LEVEL": "debug ", "LOG_FORMAT": "TEXT", "FIFO_MODE": "Strict", "AGENT_PROMPT": "FILE"}
    config = load(env=words).config
    assert (config.log_level, config.log_format) == ("DEBUG", "text")
    assert (config.fifo_mode, config.agent_prompt) == ("strict", "file")


def test_commands_are_split_as_in_a_shell() -> None:
    config = load(env={"AGENT_COMMAND": "sh -c 'echo \"$1\"' -- ", "GEMINI_COMMAND": "/opt/my\\ tools/gemini"}).config
    assert config.agent_command == ("sh", "-c", 'echo "$1"', "--")
    assert config.gemini_command == ("/opt/my tools/gemini",)
    assert config.cursor_command == ("cursor-agent",)
    assert "No closing quotation" in refusal(env={"CLAUDE_COMMAND": "claude 'oops"})
    assert "must be a command" in refusal({"CLAUDE_COMMAND": " "})


def test_provider_command_needs_its_command() -> None:
    assert "AGENT_COMMAND is not set" in refusal(env={"PROVIDER": "command"})
    assert load(env={"PROVIDER": "command", "AGENT_COMMAND": "cat"}).config.provider == "command"


def test_variables_for_commands_are_names_or_globs() -> None:
    assert load(env={"AGENT_ENV": "FOO, BAR_*,,[A-C]X"}).config.agent_env == ("FOO", "BAR_*", "[A-C]X")
    assert "no values" in refusal(env={"AGENT_ENV": "FOO=1"})


def test_allowed_folders_are_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/marie")
    text = os.pathsep.join(("/srv/a", "~/b", "/srv/x/../c"))
    wanted = (Path("/srv/a"), Path("/home/marie/b"), Path("/srv/c"))
    assert load(env={"ALLOWED_CWD": text}).config.allowed_cwd == wanted
    assert "must be absolute folders" in refusal(env={"ALLOWED_CWD": "/srv/a:b"})


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("PROVIDER", "codex", "a b"),
        ("MODEL", "claude-opus-4[1m]", "-rf"),
        ("METRICS_HOST", "::1", "two words"),
        ("WATCHER_INSTANCE", "worker-7f9c", "../up"),
        ("WATCHER_INSTANCE", "a" * 64, "a" * 65),
    ],
)
def test_names_follow_their_pattern(name: str, good: str, bad: str) -> None:
    assert getattr(load(env={name: good}).config, name.lower()) == good
    assert f"{name}={bad} (environment): must " in refusal(env={name: bad})


@pytest.mark.parametrize(
    ("host", "instance"),
    [("3f2a9c01d7e4", "3f2a9c01d7e4"), ("node-1.paris.example", "node-1.paris.example"), ("my_host!x", "my_host-x")],
)
def test_at_hostname_gives_each_container_an_instance_of_its_own(
    host: str, instance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert load(env={"WATCHER_INSTANCE": "@hostname"}).config.watcher_instance == instance


def test_two_hosts_that_differ_late_in_a_long_name_are_two_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for host in ("n" * 80 + ".a", "n" * 80 + ".b"):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        found.add(load(env={"WATCHER_INSTANCE": "@hostname"}).config.watcher_instance)
    assert len(found) == 2 and all(len(name) == 64 for name in found)


def test_machine_without_a_usable_name_is_refused_as_an_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "-")
    assert "write an instance" in refusal(env={"WATCHER_INSTANCE": "@hostname"})


def test_metrics_view_knows_whether_the_port_was_set() -> None:
    assert load().config.metrics.port_was_set is False
    metrics = load(env={"METRICS_PORT": "9090", "METRICS_HOST": "10.0.0.1", "ENABLE_METRICS": "no"}).config.metrics
    assert (metrics.port_was_set, metrics.metrics_port) == (True, 9090)
    assert (metrics.metrics_host, metrics.enable_metrics) == ("10.0.0.1", False)


def test_port_from_a_kubernetes_service_link_is_explained() -> None:
    assert "enableServiceLinks" in refusal(env={"METRICS_PORT": "tcp://10.0.0.7:9090"})
    assert "enableServiceLinks" not in refusal(env={"METRICS_PORT": "many"})


def test_config_cannot_be_changed() -> None:
    config = load().config
    with pytest.raises(ValueError, match="frozen"):
        config.max_retries = 1


# --- secrets

SECRETS = [
    "sk-ant-api03-AbCdEfGh123",
    "ghp_0123456789abcdefABCDEF",
    "AKIAIOSFODNN7EXAMPLE",
    "env ANTHROPIC_API_KEY=hunter2 claude",
    "claude --api-key hunter2",
    "curl --token=hunter2",
    "PGPASSWORD=hunter2 psql",
    "FOO,DB_LOGIN=hunter2",
    "postgres://me:hunter2@db/x",
    "4f3c2b1a0d9e8f7a6b5c4d3e2f1a0b9c8d7e6f5a",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_secret_is_never_printed(secret: str) -> None:
    for name in ("MAX_RETRIES", "WATCHER_INSTANCE", "METRICS_HOST", "AGENT_ENV"):
        flags = {name: secret + " ="}
        assert secret not in refusal(flags)
        assert "hunter2" not in refusal(flags)
    loaded = load({"AGENT_COMMAND": secret})
    for text in (render_config(loaded), render_config(loaded, as_json=True)):
        assert "hunter2" not in text
        assert secret not in text
        assert "looks like a secret" in text


@pytest.mark.parametrize(
    "plain",
    [
        "claude --max-tokens 1000 -p",
        "/srv/monkey 1",
        "/usr/bin/env python3 agent.py --keyboard us",
        "worker-deployment-of-the-team-7f9c6d5b8-x2x4z",
    ],
)
def test_plain_command_is_not_hidden(plain: str) -> None:
    assert plain in render_config(load({"AGENT_COMMAND": plain}))


def test_pydantic_never_shows_the_text_behind_our_message(own_folder: Path) -> None:
    with pytest.raises(SettingError) as caught:
        load({"MAX_RETRIES": "sk-ant-api03-AbCdEfGh123"})
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_control_characters_and_long_values_are_tamed_in_messages() -> None:
    text = refusal({"MAX_RETRIES": "1\n\x1b[31m" + "x" * 500})
    assert "\n" not in text
    assert "\x1b" not in text
    assert len(text) < 300


def test_value_that_is_not_utf8_is_refused_and_can_be_printed() -> None:
    text = refusal(env={"MODEL": "a\udcff"})
    assert "MODEL=" in text
    text.encode("utf-8")
