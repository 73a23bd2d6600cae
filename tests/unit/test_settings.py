"""Where a setting comes from, which names are settings, and the table of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import watcher_config
from tests.loading import REPOSITORY, load, own_folder, refusal, setting
from watcher.errors import SettingError
from watcher.settings.config_base import render_config
from watcher.settings.layers import ALL_SETTINGS, FOLDERS, SETTINGS
from watcher.settings.worker import WatcherConfig, load_watcher_config
from watcher_config import folders, read_layers

__all__ = ["own_folder"]


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


def test_folder_behind_a_link_to_nothing_is_refused_as_that(own_folder: Path) -> None:
    link = own_folder / "team"
    link.symlink_to("away")
    for root in (link, link / "deeper"):
        said = f"WATCHER_ROOT={root} (environment): {link} is a link to nothing; make away, or mend the link"
        with pytest.raises(SettingError) as refused:
            folders(read_layers(environ={"WATCHER_ROOT": str(root)}))
        assert str(refused.value) == said
    (own_folder / "away").mkdir()
    assert folders(read_layers(environ={"WATCHER_ROOT": str(link / "deeper")})).root == own_folder / "away" / "deeper"


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
