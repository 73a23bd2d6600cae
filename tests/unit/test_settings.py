"""Where a setting comes from, what it may be, and what people read when it is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import watcher_config
from watcher.errors import SettingError
from watcher.settings import Loaded, Setting, WatcherConfig, load_watcher_config, render_config
from watcher_config import ALL_SETTINGS, FOLDERS, SETTINGS, folders, read_layers

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test stands in an empty folder: no `.env` of anybody is read."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(flags: dict[str, str] | None = None, env: dict[str, str] | None = None) -> Loaded:
    return load_watcher_config(flags or {}, env or {})


def refusal(flags: dict[str, str] | None = None, env: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingError) as caught:
        load(flags, env)
    return str(caught.value)


def setting(loaded: Loaded, name: str) -> Setting:
    (found,) = (s for s in loaded.settings if s.name == name)
    return found


# --- where a value comes from


def test_flag_wins_over_environment_over_dotenv_over_default(own_folder: Path) -> None:
    dotenv = {"TASK_TIMEOUT": "4", "MAX_RETRIES": "4", "RETRY_BACKOFF": "4"}
    (own_folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in dotenv.items()))
    loaded = load({"TASK_TIMEOUT": "2"}, {"TASK_TIMEOUT": "3", "MAX_RETRIES": "3"})
    names = ("TASK_TIMEOUT", "MAX_RETRIES", "RETRY_BACKOFF", "QUEUE_SIZE")
    assert [(setting(loaded, name).value, setting(loaded, name).source) for name in names] == [
        ("2", "flag"),
        ("3", "environment"),
        ("4", ".env"),
        ("100", "default"),
    ]
    config = loaded.config
    assert (config.task_timeout, config.max_retries, config.retry_backoff, config.queue_size) == (
        2.0,
        3,
        4.0,
        100,
    )


def test_process_environment_and_dotenv_are_read_when_nothing_is_handed_in(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_folder / ".env").write_text("MAX_RETRIES=7\n")
    monkeypatch.setenv("QUEUE_SIZE", "9")
    config = WatcherConfig()
    assert (config.max_retries, config.queue_size) == (7, 9)


def test_empty_value_in_environment_or_dotenv_means_not_set(own_folder: Path) -> None:
    (own_folder / ".env").write_text("MAX_RETRIES=\nQUEUE_SIZE\nSCAN_INTERVAL=3\n")
    loaded = load(env={"SCAN_INTERVAL": "", "KILL_GRACE": "  ", "WATCHER_ENV_FILE": ""})
    assert setting(loaded, "MAX_RETRIES").source == "default"
    assert setting(loaded, "QUEUE_SIZE").source == "default"
    assert setting(loaded, "KILL_GRACE").source == "default"
    assert setting(loaded, "SCAN_INTERVAL").value == "3"


def test_empty_flag_is_a_value() -> None:
    loaded = load({"AGENT_ENV": ""}, {"AGENT_ENV": "FOO"})
    assert loaded.config.agent_env == ()
    assert setting(loaded, "AGENT_ENV").source == "flag"
    assert refusal({"MAX_RETRIES": ""}) == "MAX_RETRIES= (flag): must be a whole number from 0 to 100"


def test_keywords_of_the_config_count_as_flags(own_folder: Path) -> None:
    config = WatcherConfig(read_layers(environ={"MAX_RETRIES": "7"}), max_retries=0, claude_command=("a b", "c"))
    assert config.max_retries == 0
    assert config.claude_command == ("a b", "c")
    with pytest.raises(SettingError, match="max_retrys"):
        WatcherConfig(read_layers(environ={}), max_retrys=0)
    rooted = WatcherConfig(read_layers(environ={}), watcher_root=own_folder / "r")
    assert rooted.task_dir == own_folder / "r" / "tasks"


def test_watcher_env_file_names_another_file(own_folder: Path) -> None:
    (own_folder / ".env").write_text("MAX_RETRIES=1\n")
    other = own_folder / "other.env"
    other.write_text("MAX_RETRIES=2\n")
    loaded = load(env={"WATCHER_ENV_FILE": str(other)})
    assert (loaded.config.max_retries, loaded.env_file) == (2, other)
    assert load(env={"WATCHER_ENV_FILE": os.devnull}).config.max_retries == 3
    other.write_text("MAX_RETRIES=many\n")
    assert f"MAX_RETRIES=many (.env: {other})" in refusal(env={"WATCHER_ENV_FILE": str(other)})


def test_named_env_file_that_is_not_there_is_refused(own_folder: Path) -> None:
    assert "WATCHER_ENV_FILE=nowhere.env" in refusal(env={"WATCHER_ENV_FILE": "nowhere.env"})
    assert "no such file" in refusal(env={"WATCHER_ENV_FILE": str(own_folder)})


def test_dotenv_folder_of_a_virtual_environment_is_left_alone(own_folder: Path) -> None:
    (own_folder / ".env").mkdir()
    assert load().env_file is None


def test_dotenv_values_are_taken_as_they_stand(own_folder: Path) -> None:
    lines = [
        "\ufeffMAX_RETRIES=5",
        "export QUEUE_SIZE='6' # six",
        "CLAUDE_COMMAND=claude $HOME ${X}",
        "MY_KEY=sk-1",
    ]
    (own_folder / ".env").write_text("\n".join(lines))
    config = load().config
    assert (config.max_retries, config.queue_size) == (5, 6)
    assert config.claude_command == ("claude", "$HOME", "${X}")


def test_broken_dotenv_line_is_refused_by_number_without_its_text(own_folder: Path) -> None:
    (own_folder / ".env").write_text("MAX_RETRIES=5\n\nAPI_KEY='never closed\n")
    assert refusal() == ".env line 3: cannot be read; write NAME=value"
    (own_folder / ".env").write_bytes(b"MAX_RETRIES=\xff\n")
    assert "not UTF-8" in refusal()


# --- folders


def test_folders_hang_below_the_root_unless_set_and_are_absolute(own_folder: Path) -> None:
    found = folders(read_layers({"RESULT_DIR": "out"}, {"WATCHER_ROOT": "./a/../b"}))
    assert found.root == own_folder / "b"
    assert found.results == own_folder / "out"
    for name, attribute in FOLDERS.items():
        if name != "RESULT_DIR":
            assert getattr(found, attribute) == own_folder / "b" / attribute
    assert folders(read_layers(environ={})).tasks == own_folder / "shared" / "tasks"


def test_config_and_lean_reader_agree_on_the_folders() -> None:
    layers = read_layers({"TASK_DIR": "/t"}, {"WATCHER_ROOT": "/r", "DLQ_DIR": "../d"})
    config = WatcherConfig(layers)
    assert config.folders == folders(layers)
    assert (str(config.task_dir), str(config.control_dir)) == ("/t", "/r/control")


def test_tilde_is_the_home_in_every_layer(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/marie")
    (own_folder / ".env").write_text("WATCHER_ROOT=~/team\n")
    assert str(folders(read_layers(environ={})).tasks) == "/home/marie/team/tasks"
    assert "./~" in refusal({"WATCHER_ROOT": "~nobody-has-this-name/x"})


def test_variable_in_a_dotenv_folder_is_refused_not_made_into_a_folder(own_folder: Path) -> None:
    (own_folder / ".env").write_text("WATCHER_ROOT=$HOME/team\n")
    assert refusal() == "WATCHER_ROOT=$HOME/team (.env): must be a plain path: variables are not replaced in .env"


def test_two_folder_settings_on_one_folder_are_refused() -> None:
    text = refusal(env={"TASK_DIR": "/x/a", "RESULT_DIR": "/x/b/../a"})
    assert "RESULT_DIR=/x/b/../a (environment): must be another folder than TASK_DIR" in text
    with pytest.raises(SettingError, match="another folder"):
        folders(read_layers(environ={"DLQ_DIR": "shared/tasks"}))


def test_missing_current_folder_is_said_only_when_it_is_needed(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = own_folder / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "current folder is gone" in refusal()
    assert folders(read_layers(environ={"WATCHER_ROOT": "/r"})).tasks == Path("/r/tasks")


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
    "DEPENDENCY_TIMEOUT": ("0", "2678400", "-1", "2678401"),
    "MAX_WORKER_DEATHS": ("1", "100", "0", "101"),
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
    [("3f2a9c01d7e4", "3f2a9c01d7e4"), ("marie-7f9c.pods.example", "marie-7f9c"), ("my_host!x", "my_host-x")],
)
def test_at_hostname_gives_each_container_an_instance_of_its_own(
    host: str, instance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert load(env={"WATCHER_INSTANCE": "@hostname"}).config.watcher_instance == instance


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


# --- misspelt names


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("MAX_CONCURENT_TASKS", "MAX_CONCURRENT_TASKS"),
        ("MAX_CONCURENT_TASK", "MAX_CONCURRENT_TASKS"),
        ("TASK_TIMOUT", "TASK_TIMEOUT"),
        ("TAKS_TIMEOUT", "TASK_TIMEOUT"),
        ("TASK_TIME_OUT", "TASK_TIMEOUT"),
        ("TASKTIMEOUT", "TASK_TIMEOUT"),
        ("task_timeout", "TASK_TIMEOUT"),
        ("HEARTBEET_INTERVAL", "HEARTBEAT_INTERVAL"),
        ("HARTBEAT_INTERVALL", "HEARTBEAT_INTERVAL"),
        ("WATCHER_ROOTT", "WATCHER_ROOT"),
        ("WATCHER_ENVFILE", "WATCHER_ENV_FILE"),
        ("TASKS_DIR", "TASK_DIR"),
        ("RESULTS_DIR", "RESULT_DIR"),
        ("CIRCUT_BREAKER_TRESHOLD", "CIRCUIT_BREAKER_THRESHOLD"),
        ("CLAUD_COMMAND", "CLAUDE_COMMAND"),
        ("METRIC_PORT", "METRICS_PORT"),
        ("CONTROL_DIRS", "CONTROL_DIR"),
    ],
)
def test_misspelt_setting_is_refused_in_environment_and_dotenv(own_folder: Path, wrong: str, meant: str) -> None:
    said = f"no setting has this name; did you mean {meant}?"
    assert f"{wrong} (environment): {said}" in refusal(env={wrong: "1"})
    (own_folder / ".env").write_text(f"{wrong}=1\n")
    assert f"{wrong} (.env): {said}" in refusal()


def test_misspelt_flag_is_refused_whatever_it_is() -> None:
    assert refusal({"TASK_TIMOUT": "1"}) == "TASK_TIMOUT (flag): no setting has this name; did you mean TASK_TIMEOUT?"
    assert refusal({"PATH": "1"}) == "PATH (flag): no setting has this name"


def test_near_name_is_somebody_elses_where_the_right_one_is_set_too(own_folder: Path) -> None:
    load(env={"RESULTS_DIR": "/ci/results", "RESULT_DIR": "out"})
    load({"RESULT_DIR": "out"}, {"RESULTS_DIR": "/ci/results"})
    # From below it is no excuse: TASK_TIMOUT was meant to win over what stands in .env.
    (own_folder / ".env").write_text("TASK_TIMEOUT=5\n")
    assert "did you mean TASK_TIMEOUT" in refusal(env={"TASK_TIMOUT": "60"})


def test_folders_refuse_the_misspellings_that_could_move_them_and_no_others() -> None:
    with pytest.raises(SettingError, match="did you mean WATCHER_ROOT"):
        folders(read_layers(environ={"WATCHER_ROOTT": "/x"}))
    folders(read_layers(environ={"MAX_CONCURENT_TASKS": "1"}))


# Variables that real machines have: shells, desktops, CI, containers, clouds, languages, agents, databases.
COMMON = """
PATH HOME TERM PWD OLDPWD SHELL SHLVL USER LOGNAME LANG LANGUAGE LC_ALL LC_CTYPE TZ MAIL EDITOR VISUAL
PAGER LESS LS_COLORS COLORTERM COLUMNS LINES DISPLAY WAYLAND_DISPLAY XAUTHORITY XDG_RUNTIME_DIR
XDG_SESSION_ID XDG_CONFIG_HOME XDG_DATA_DIRS XDG_CACHE_HOME DBUS_SESSION_BUS_ADDRESS SSH_AUTH_SOCK
SSH_AGENT_PID SSH_CONNECTION SSH_CLIENT SSH_TTY GPG_AGENT_INFO TMPDIR TMP TEMP TEMP_DIR TMP_DIR HOSTNAME
HOST HOSTTYPE OSTYPE MACHTYPE IFS PS1 PS2 PROMPT_COMMAND HISTSIZE HISTFILE HISTCONTROL INVOCATION_ID
JOURNAL_STREAM NOTIFY_SOCKET WATCHDOG_USEC WATCHDOG_PID LISTEN_FDS MANPATH INFOPATH CPATH LIBRARY_PATH
LD_LIBRARY_PATH LD_PRELOAD PKG_CONFIG_PATH CFLAGS CXXFLAGS LDFLAGS CC CXX MAKEFLAGS MAKELEVEL DEBUG
VERBOSE QUIET MODE MODEL_NAME MODEL_DIR MODEL_PATH MODELS MODELS_DIR PROVIDERS PROVIDER_NAME NODE_ENV PORT
HOSTS TIMEOUT RETRIES INTERVAL ROOT ROOT_DIR BASE_DIR WORK_DIR WORKDIR DATA_DIR LOG_DIR LOGS_DIR CACHE_DIR
BIN_DIR TEST_DIR DISK_DIR MASK_DIR OUTPUT_DIR RESULT RESULTS RESULT_FILE RESULT_PATH TASK TASKS TASK_ID
TASK_NAME TASK_ENV TASK_ROOT TASK_QUEUE TASK_ROLE TASK_INDEX TASK_FILE TASK_LIST TASK_STATUS TRIGGER
TRIGGER_ID TRIGGER_NAME CONTROL CONTROL_PORT CONTROL_HOST CONTROL_URL DLQ_URL DLQ_ARN DLQ_NAME SQL_DIR
DLL_DIR HEARTBEAT HEARTBEAT_URL HEARTBEAT_TIMEOUT HEARTBEAT_PORT LOG_LEVELS LOGLEVEL LOG_FILE LOG_PATH
LOG_FORMATTER LOG_FORMATS LOGGING_LEVEL LOGFORMAT METRICS METRICS_PATH METRICS_URL METRICS_ENABLED
METRICS_REPORT METRICS_SERVICE_HOST METRICS_SERVICE_PORT METRICS_PORT_9090_TCP METRICS_PORT_9090_TCP_ADDR
PROMETHEUS_MULTIPROC_DIR PROMETHEUS_PORT OTEL_EXPORTER_OTLP_ENDPOINT OTEL_SERVICE_NAME
OTEL_METRICS_EXPORTER STATSD_HOST SENTRY_DSN DATADOG_API_KEY DD_AGENT_HOST DD_ENV DD_SERVICE AGENT
AGENT_ID AGENT_NAME AGENT_HOST AGENT_URL AGENT_PORT AGENT_OS AGENT_MODE AGENT_VERSION AGENT_TOKEN
AGENT_HOME AGENT_WORKFOLDER AGENT_JOBNAME AGENT_TEMPDIRECTORY AGENT_ROOTDIRECTORY AGENT_MACHINENAME
AGENT_BUILDDIRECTORY CLAUDE_CONFIG_DIR CLAUDECODE CLAUDE_CODE_ENTRYPOINT CLAUDE_CODE_USE_BEDROCK
CLAUDE_CODE_MAX_OUTPUT_TOKENS CLAUDE_API_KEY CLAUDE_CODE_OAUTH_TOKEN CLAUDE_PROJECT_DIR CLAUDE_MODEL
CLAUDE_CODE_COMMAND ANTHROPIC_API_KEY ANTHROPIC_BASE_URL ANTHROPIC_MODEL ANTHROPIC_AUTH_TOKEN
ANTHROPIC_SMALL_FAST_MODEL MAX_THINKING_TOKENS MAX_OUTPUT_TOKENS MAX_TOKENS MAX_MCP_OUTPUT_TOKENS
BASH_DEFAULT_TIMEOUT_MS BASH_MAX_TIMEOUT_MS BASH_MAX_OUTPUT_LENGTH MCP_TIMEOUT MCP_TOOL_TIMEOUT
GEMINI_API_KEY GEMINI_MODEL GEMINI_SANDBOX GEMINI_CLI GEMINI_SYSTEM_MD GOOGLE_API_KEY GOOGLE_CLOUD_PROJECT
GOOGLE_CLOUD_LOCATION GOOGLE_APPLICATION_CREDENTIALS CURSOR_API_KEY CURSOR_TRACE_ID CURSOR_AGENT
CODEX_HOME OPENAI_API_KEY OPENAI_BASE_URL OPENAI_MODEL QWEN_MODEL DASHSCOPE_API_KEY HF_HOME HF_TOKEN
TRANSFORMERS_CACHE CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES AWS_REGION AWS_DEFAULT_REGION
AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_PROFILE AWS_MAX_ATTEMPTS AWS_RETRY_MODE
AWS_LAMBDA_FUNCTION_NAME AWS_EXECUTION_ENV AWS_CONTAINER_CREDENTIALS_RELATIVE_URI
ECS_CONTAINER_METADATA_URI AZURE_CLIENT_ID AZURE_TENANT_ID ARM_SUBSCRIPTION_ID GCP_PROJECT
KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT KUBERNETES_PORT KUBERNETES_PORT_443_TCP_PROTO POD_NAME
POD_IP POD_NAMESPACE NODE_NAME KUBECONFIG WATCHER_PORT WATCHER_SERVICE_HOST WATCHER_SERVICE_PORT
WATCHER_PORT_8080_TCP DOCKER_HOST DOCKER_CONFIG DOCKER_BUILDKIT COMPOSE_PROJECT_NAME COMPOSE_FILE
CONTAINER_NAME container GITHUB_ACTIONS GITHUB_TOKEN GITHUB_WORKSPACE GITHUB_REPOSITORY GITHUB_SHA
GITHUB_REF GITHUB_RUN_ID GITHUB_ENV GITHUB_OUTPUT RUNNER_OS RUNNER_TEMP RUNNER_TOOL_CACHE CI CI_COMMIT_SHA
CI_JOB_ID CI_PIPELINE_ID GITLAB_CI BUILD_ID BUILD_NUMBER BUILDKITE JENKINS_HOME WORKSPACE NODE_LABELS
EXECUTOR_NUMBER VIRTUAL_ENV VIRTUAL_ENV_PROMPT CONDA_PREFIX CONDA_DEFAULT_ENV PYTHONPATH PYTHONUNBUFFERED
PYTHONHASHSEED PYENV_ROOT PYTHONDONTWRITEBYTECODE PIP_INDEX_URL PIP_DEFAULT_TIMEOUT UV_CACHE_DIR
POETRY_HOME PYTEST_CURRENT_TEST PYTEST_ADDOPTS TOX_ENV_NAME TOX_ENV_DIR NVM_DIR NVM_BIN NPM_CONFIG_PREFIX
npm_config_cache npm_lifecycle_event NODE_PATH NODE_OPTIONS NODE_EXTRA_CA_CERTS JAVA_HOME JAVA_OPTS
MAVEN_OPTS GOPATH GOROOT GOCACHE GOMAXPROCS CARGO_HOME RUSTUP_HOME RUST_LOG RUST_BACKTRACE GEM_HOME
RAILS_ENV RAILS_MAX_THREADS WEB_CONCURRENCY DJANGO_SETTINGS_MODULE FLASK_ENV FLASK_APP UVICORN_PORT
GUNICORN_CMD_ARGS CELERY_BROKER_URL CELERY_TASK_TIME_LIMIT CELERY_TASK_ALWAYS_EAGER QUEUE QUEUE_URL
QUEUE_NAME QUEUE_PREFIX QUEUE_CONNECTION REDIS_URL REDIS_HOST REDIS_PORT DATABASE_URL DB_HOST PGHOST
PGPORT PGUSER PGPASSWORD PGDATABASE PGDATA POSTGRES_PASSWORD MYSQL_HOST MONGO_URL MONGODB_URI
KAFKA_BROKERS RABBITMQ_URL POLL_TIMEOUT POLLING_INTERVAL SYNC_INTERVAL SCAN_DIR SCAN_PATH REFRESH_INTERVAL
UPDATE_INTERVAL CHECK_INTERVAL RETRY_COUNT RETRY_DELAY RETRY_MODE RETRY_LIMIT MAX_ATTEMPTS MAX_WORKERS
MAX_THREADS MAX_CONNECTIONS MAX_DELAY MAX_RETRY_COUNT MAX_CONCURRENCY MAX_CONCURRENT_REQUESTS
MAX_BODY_BYTES MAX_UPLOAD_BYTES MAX_DISK_BYTES MAX_LOG_BYTES MIN_FREE_SPACE MIN_FREE_MEMORY
SHUTDOWN_TIMEOUT SHUTDOWN_DELAY GRACE_PERIOD KILL_TIMEOUT KILL_SIGNAL STOP_TIMEOUT CIRCUIT_BREAKER_ENABLED
DEPENDENCY_TRACK_URL ENABLE_METRICS_V2 ENABLE_TRACING ENABLE_LOGGING ENABLE_CORS ALLOWED_HOSTS
ALLOWED_ORIGINS ALLOWED_IPS http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY
SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE GIT_DIR GIT_AUTHOR_NAME GIT_EDITOR
GIT_SSH_COMMAND GIT_TERMINAL_PROMPT TERM_PROGRAM TERM_PROGRAM_VERSION TMUX TMUX_PANE STY VSCODE_PID
VSCODE_GIT_IPC_HANDLE WSL_DISTRO_NAME WSLENV SYSTEMROOT APPDATA LOCALAPPDATA PROGRAMDATA USERPROFILE
COMSPEC PATHEXT WINDIR HOMEBREW_PREFIX __CFBundleIdentifier TF_VAR_region VAULT_ADDR CONSUL_HTTP_ADDR
AIRFLOW_HOME SLURM_JOB_ID SLURM_ARRAY_TASK_ID SLURM_NTASKS OMP_NUM_THREADS MKL_NUM_THREADS DEBIAN_FRONTEND
IS_SANDBOX _
"""


def test_variables_of_other_programs_raise_no_alarm(own_folder: Path) -> None:
    others = dict.fromkeys(COMMON.split(), "1")
    assert len(others) > 350
    assert read_layers(environ=others).misspelt == ()
    # People keep other programs' settings in .env too.
    in_file = [name for name in others if not name.upper().startswith(("LOG", "_"))]
    (own_folder / ".env").write_text("".join(f"{name}=1\n" for name in in_file))
    assert read_layers(environ={}).misspelt == ()


def test_log_settings_are_only_guessed_in_dotenv(own_folder: Path) -> None:
    load(env={"LOGLEVEL": "x", "LOG_LEVELS": "x"})
    (own_folder / ".env").write_text("LOG_LEVL=debug\n")
    assert "did you mean LOG_LEVEL?" in refusal()


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


# --- the table


def test_table_has_a_row_for_every_setting_with_its_source(own_folder: Path) -> None:
    (own_folder / ".env").write_text("KILL_GRACE=1.5\n")
    loaded = load({"LOG_LEVEL": "error"}, {"ALLOWED_CWD": "/a:/b"})
    text = render_config(loaded)
    rows = {line.split()[0]: line.split() for line in text.split("\n\n")[0].splitlines()[1:]}
    assert tuple(rows) == SETTINGS
    assert rows["LOG_LEVEL"][1:3] == ["ERROR", "flag"]
    assert rows["ALLOWED_CWD"][1:3] == ["/a:/b", "environment"]
    assert rows["KILL_GRACE"][1:3] == ["1.5", ".env"]
    assert rows["TASK_TIMEOUT"][1:3] == ["600", "default"]
    assert all(len(row) > 3 for row in rows.values())
    assert text.endswith(f".env is {own_folder / '.env'}")
    starts = {line.index(s.meaning) for line, s in zip(text.splitlines()[1:], loaded.settings, strict=False)}
    assert len(starts) == 1


def test_json_form_says_the_same(own_folder: Path) -> None:
    loaded = load(env={"RETRY_BACKOFF": "1.5"})
    told = json.loads(render_config(loaded, as_json=True))
    assert told["env_file"] is None
    rows = {row["setting"]: row for row in told["settings"]}
    assert tuple(rows) == SETTINGS
    assert (rows["RETRY_BACKOFF"]["value"], rows["RETRY_BACKOFF"]["source"]) == ("1.5", "environment")
    assert rows["RETRY_BACKOFF"]["allowed"] == "a number from 1 to 100"


def test_values_in_the_table_can_be_given_back(own_folder: Path) -> None:
    env = {
        "AGENT_COMMAND": "sh -c 'a b'",
        "AGENT_ENV": "A,B_*",
        "ALLOWED_CWD": "/a:/b",
        "ENABLE_METRICS": "off",
        "RETRY_JITTER": "0.25",
    }
    first = load(env=env)
    again = load(env={s.name: s.value for s in first.settings})
    assert again.config == first.config


# --- names are written once


def test_names_in_config_and_in_reader_are_the_same_and_in_the_same_order() -> None:
    assert sorted(name.upper() for name in WatcherConfig.model_fields) == sorted(SETTINGS)
    assert tuple(setting.name for setting in load().settings) == SETTINGS
    assert all(field.description for field in WatcherConfig.model_fields.values())


def test_env_example_shows_every_setting_with_its_default(own_folder: Path) -> None:
    lines = (REPOSITORY / ".env.example").read_text().splitlines()
    shown = [line[1:] for line in lines if line[:1] == "#" and line[1:2].isupper()]
    assert sorted(line.split("=")[0] for line in shown) == sorted(ALL_SETTINGS)
    (own_folder / "all.env").write_text("\n".join(shown))
    from_file = load(env={"WATCHER_ENV_FILE": "all.env"})
    assert [(s.name, s.value) for s in from_file.settings] == [(s.name, s.value) for s in load().settings]


def test_reader_hands_out_the_typed_settings() -> None:
    assert watcher_config.WatcherConfig is WatcherConfig
    assert watcher_config.load_watcher_config is load_watcher_config
    with pytest.raises(AttributeError):
        watcher_config.NoSuchThing  # noqa: B018


# --- cost of a submit


def test_reader_and_folders_come_without_pydantic_or_dotenv(own_folder: Path) -> None:
    code = (
        "import sys, watcher_config as w; w.folders(w.read_layers()); "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('pydantic', 'pydantic_core', 'pydantic_settings', 'dotenv', 'difflib', 'logging')])"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_typed_settings_do_not_look_at_the_environment_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_RETRIES", "9")
    monkeypatch.setenv("max_retries", "9")
    assert WatcherConfig(read_layers(environ={})).max_retries == 3
