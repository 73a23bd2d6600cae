"""Read the process environment and `.env`, the only reader of both, and say where each setting comes from.

A setting comes from the first that has it: flag, environment, `.env` in the current folder (WATCHER_ENV_FILE
may name another), default. What was given stays text here, with where it came from; the classes of this package
give it types and ranges. Nothing is cached: each call reads again.

Importing this module must stay cheap, because every submit pays for it: python-dotenv comes with the first `.env`
that exists, pydantic not at all.

Raises SettingError, whose message has a line for each setting that is wrong and never shows what looks like a
secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from watcher.errors import SettingError

Source = Literal["flag", "environment", ".env", "default"]

#: Names the `.env` file; only the environment can set it.
ENV_FILE = "WATCHER_ENV_FILE"

#: The setting of the root, and each folder setting with the name of its default folder below the root.
ROOT = "WATCHER_ROOT"
DEFAULT_ROOT = "./shared"

FOLDERS = {
    "TASK_DIR": "tasks",
    "TRIGGER_DIR": "triggers",
    "RESULT_DIR": "results",
    "HEARTBEAT_DIR": "heartbeats",
    "DLQ_DIR": "dlq",
    "CONTROL_DIR": "control",
}

#: Every setting of a worker, in the order in which people see them. `WatcherConfig` has the same, in lower case.
SETTINGS = (
    "MAX_CONCURRENT_TASKS", "TASK_TIMEOUT", "HEARTBEAT_INTERVAL",
    "MAX_RETRIES", "RETRY_BACKOFF", "INITIAL_RETRY_DELAY", "MAX_RETRY_DELAY", "RETRY_JITTER",
    "CIRCUIT_BREAKER_THRESHOLD", "CIRCUIT_BREAKER_TIMEOUT",
    "MAX_COST_PER_TASK", "DAILY_BUDGET", "MAX_TOKENS_PER_TASK", "STALL_TIMEOUT",
    ROOT, *FOLDERS,
    "LOG_LEVEL", "LOG_FORMAT", "ENABLE_METRICS", "METRICS_PORT", "METRICS_HOST", "METRICS_ALLOWED_HOSTS",
    "PROVIDER", "MODEL", "PROVIDER_ACCOUNT", "CLAUDE_COMMAND", "GEMINI_COMMAND", "CURSOR_COMMAND",
    "CODEX_COMMAND", "OPENCODE_COMMAND", "QWEN_COMMAND", "PROVIDERS_FILE",
    "AGENT_COMMAND", "AGENT_PROMPT", "AGENT_ENV", "AGENT_SUDO", "ALLOWED_CWD", "ACP_COMMAND", "ACP_AUTH_METHOD",
    "WARM_AGENTS",
    "HANDLER_COMMAND", "HANDLER_POOL_SIZE", "HANDLER_POOL_MIN", "HANDLER_POOL_MAX", "HANDLER_REQUEST_TIMEOUT",
    "HANDLER_START_TIMEOUT", "HANDLER_MAX_REQUESTS", "HANDLER_MAX_AGE", "HANDLER_MAX_MEMORY",
    "FIFO_MODE", "QUEUE_SIZE", "SCAN_INTERVAL", "POLL_INTERVAL", "SETTLE_SECONDS",
    "MAX_TASK_BYTES", "MAX_OUTPUT_BYTES", "MAX_PROMPT_BYTES", "MAX_ATTEMPT_OUTPUT_BYTES",
    "DEPENDENCY_TIMEOUT", "MAX_WORKER_DEATHS", "MAX_GIVEN_BACK",
    "SHUTDOWN_GRACE", "KILL_GRACE", "MIN_FREE_BYTES", "WATCHER_INSTANCE",
    "STATS_URL", "STATS_TOKEN",
    "ZONES_FILE", "STATE_DIR",
)  # fmt: skip

#: Every setting of the listener; `OrchestratorConfig` has the same, in lower case.
LISTENER_SETTINGS = (
    "WORKERS", "STATE_DIR", ROOT, *FOLDERS,
    "LOG_LEVEL", "LOG_FORMAT", "ENABLE_METRICS", "METRICS_PORT", "METRICS_HOST", "METRICS_ALLOWED_HOSTS",
    "SCAN_INTERVAL", "POLL_INTERVAL", "SETTLE_SECONDS", "HEARTBEAT_INTERVAL", "TASK_TIMEOUT", "KILL_GRACE",
    "PENDING_ALERT_AFTER", "BLOCKED_ALERT_AFTER", "BATCH_SETTLE_SECONDS", "REASSIGN", "REASSIGN_AFTER",
    "TRIGGER_RETENTION", "RESULT_RETENTION", "DLQ_RETENTION",
)  # fmt: skip

#: Every setting of the supervisor; `SupervisorConfig` has the same, in lower case.
SUPERVISOR_SETTINGS = (
    ROOT, *FOLDERS,
    "MAX_RESTARTS", "RESTART_DELAY", "RESTART_RESET_AFTER", "MAX_CPU_PERCENT", "MAX_MEMORY_PERCENT",
)  # fmt: skip

#: Every setting of `watcher webhook`; `WebhookConfig` has the same, in lower case.
WEBHOOK_SETTINGS = (
    "WEBHOOK_HOST", "WEBHOOK_PORT", "WEBHOOK_TOKEN", "WEBHOOK_TOKEN_FILE", "WEBHOOK_HOOKS_FILE", "WEBHOOK_WORKERS",
    "WEBHOOK_MAX_PENDING", "WEBHOOK_MAX_CONCURRENT", "WEBHOOK_MAX_CONNECTIONS", "WEBHOOK_READ_TIMEOUT",
    "WEBHOOK_RETENTION", "STATE_DIR", ROOT, *FOLDERS,
    "LOG_LEVEL", "LOG_FORMAT", "ENABLE_METRICS", "METRICS_PORT", "METRICS_HOST", "METRICS_ALLOWED_HOSTS",
    "MAX_TASK_BYTES", "SCAN_INTERVAL", "POLL_INTERVAL", "SHUTDOWN_GRACE",
)  # fmt: skip

#: Every setting there is.
ALL_SETTINGS = tuple(dict.fromkeys((*SETTINGS, *LISTENER_SETTINGS, *SUPERVISOR_SETTINGS, *WEBHOOK_SETTINGS)))


@dataclass(frozen=True, slots=True)
class Given:
    """One value as somebody wrote it."""

    value: str
    source: Source


@dataclass(frozen=True, slots=True)
class Misspelt:
    """A name that is no setting but looks like `meant`, which nobody gave; None when no setting is near."""

    name: str
    source: Source
    meant: str | None


@dataclass(frozen=True, slots=True)
class Layers:
    """What was given, by the setting's name, from the highest layer that has it; a default is not in `given`.

    `env_file` is the `.env` file that was read, None when there was none.
    """

    given: Mapping[str, Given]
    misspelt: tuple[Misspelt, ...] = ()
    env_file: Path | None = None

    def source(self, name: str) -> Source:
        """Where the value of this setting comes from."""
        found = self.given.get(name)
        return "default" if found is None else found.source

    def problem(self, name: str, what: str) -> str:
        """One line for people: `NAME=value (environment): what`. A value that looks secret is hidden."""
        found = self.given.get(name)
        return f"{name}={'' if found is None else told(name, found.value, 200)} ({self._where(name)}): {what}"

    def misspellings(self, names: Iterable[str] = SETTINGS) -> list[str]:
        """One line for each misspelt name that may have meant one of `names`."""
        wanted = {ENV_FILE, *names}
        return [_say(wrong) for wrong in self.misspelt if wrong.meant is None or wrong.meant in wanted]

    def _where(self, name: str) -> str:
        source = self.source(name)
        named = source == ".env" and self.env_file is not None and str(self.env_file) != ".env"
        return f".env: {self.env_file}" if named else source


def process_environment() -> dict[str, str]:
    """A copy of the worker's own environment, of which commands see what is allowed."""
    return dict(os.environ)


def read_layers(
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    env_file: Path | str | None = None,
) -> Layers:
    """Read all layers; the keys of `flags` are setting names, as in the environment.

    `environ` is the process environment unless a test gives another. `env_file` is the `.env` file to read,
    else the one that WATCHER_ENV_FILE names, else `.env` in the current folder if there is one. An empty
    value in the environment or in `.env` means "not set"; an empty flag is a value.

    Raises SettingError when a `.env` file cannot be read. Misspelt names do not raise here: whoever needs
    what they may have meant refuses them.
    """
    environ = os.environ if environ is None else environ
    path = _find_env_file(environ, env_file)
    sources: tuple[tuple[Source, Mapping[str, str]], ...] = (
        ("flag", flags or {}),
        ("environment", environ),
        (".env", {} if path is None else _read_env_file(path)),
    )
    given: dict[str, Given] = {}
    misspelt: list[Misspelt] = []
    present: set[str] = set()
    for source, values in sources:
        for name in (*ALL_SETTINGS, ENV_FILE):
            if name in values and _is_set(source, values[name]) and name not in present:
                present.add(name)
                given[name] = Given(values[name], source)
        misspelt += _find_misspelt(source, values, present)
    given.pop(ENV_FILE, None)  # it is how to read, not a setting
    return Layers(given, tuple(misspelt), path)


def refuse(problems: list[str]) -> None:
    """Raise SettingError with all these lines, if there are any."""
    if len(problems) == 1:
        raise SettingError(problems[0])
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise SettingError(f"{len(problems)} settings cannot be used:\n{lines}")


# What looks like a secret: the usual prefixes of keys, a word for a secret with a value after it, NAME=value
# where a name belongs, a password in an address, one long run of letters and digits. Hiding too much costs a
# look; showing a key costs a key.
# Compiled at its first use: that takes a millisecond, and most submits show no setting.
_TELLTALES = r"""(?ix)
    (?<![a-z0-9])(?:sk|pk|rk)[-_][a-z0-9_-]{8,} | gh[pousr]_[a-z0-9]{8,} | github_pat_ | glpat-
    | hf_[a-z0-9]{8,} | AKIA[0-9A-Z]{8,} | AIza[\w-]{10,} | xox[a-z]-[\w-]+ | eyJ[\w-]{10,} | -----BEGIN
    | (?: (?:(?<![a-z])|api|auth|access) (?:key|pass|pwd|bearer)
        | token | secret | passw(?:or)?d | passphrase | credentials? )
      (?![a-z])[\w-]*\s*[=:\s]\s*\S
    | (?:^|,)\s*[a-z_]\w*=\S
    | ://[^/\s@]*:[^/\s@]+@
    | (?<!\S)(?=\S*[0-9])(?=\S*[a-z])[a-z0-9]{32,}=*(?!\S)
"""


def shown(value: str, limit: int | None = None) -> str:
    """This value for people: on one line, cut at `limit` characters, hidden when it looks like a secret."""
    if re.search(_TELLTALES, value):
        return "(hidden: looks like a secret)"
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in value)
    return text if limit is None or len(text) <= limit else text[:limit] + "..."


def told(name: str, value: str, limit: int | None = None) -> str:
    """A setting's value for people; one whose name says that it is a secret is hidden whatever it looks like."""
    if value and name.endswith(("_TOKEN", "_SECRET", "_PASSWORD")):
        return "(hidden: a secret)"
    return shown(value, limit)


def _is_set(source: Source, value: str) -> bool:
    return source == "flag" or bool(value.strip())


def _find_env_file(environ: Mapping[str, str], named: Path | str | None) -> Path | None:
    by_name = named if named is not None else environ.get(ENV_FILE, "").strip()
    if not by_name:
        # `.env` is also a common name for a virtual environment's folder, which is none of ours.
        return Path(".env") if _is_readable_thing(".env") else None
    path = os.path.expanduser(by_name)
    if not _is_readable_thing(path):
        raise SettingError(f"{ENV_FILE}={shown(path, 200)}: there is no such file; name one that is there")
    return Path(path)


def _is_readable_thing(path: str) -> bool:
    """A file, or what reads like one: /dev/null reads as an empty `.env`."""
    return os.path.exists(path) and not os.path.isdir(path)


def _read_env_file(path: Path) -> dict[str, str]:
    """What this file sets; no variable is replaced. Raises SettingError, without the text of the bad line."""
    from dotenv.parser import parse_stream  # after all else: most submits have no .env file

    out: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig") as stream:  # some editors write a byte order mark
            for binding in parse_stream(stream):
                if binding.error:
                    text = binding.original.string
                    line = binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
                    raise SettingError(f"{path} line {line}: cannot be read; write NAME=value")
                if binding.key is not None:
                    out[binding.key] = binding.value or ""
    except UnicodeDecodeError as error:
        raise SettingError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error.strerror}; allow it or remove the file") from None
    return out


# One word alone is never taken for a misspelling: MODE, MODELS or PROVIDERS are good names for another
# program's variable. So are LOGLEVEL and LOG_LEVELS in the environment, where missing one costs little.
_NEVER_MEANT = frozenset(name for name in ALL_SETTINGS if "_" not in name)
_NEVER_MEANT_IN_ENVIRONMENT = frozenset({"LOG_LEVEL", "LOG_FORMAT"})


def _find_misspelt(source: Source, values: Mapping[str, str], present: set[str]) -> Iterator[Misspelt]:
    """Names in one layer that look like a setting which neither this layer nor a higher one has.

    Where the right name is there too, the near one belongs to somebody else; so a false alarm has a way out.
    """
    for name, value in values.items():
        if name in ALL_SETTINGS or name == ENV_FILE or not _is_set(source, value):
            continue
        meant = _nearest(name, source)
        if source == "flag" or (meant is not None and meant not in present):
            yield Misspelt(name, source, meant)


def _nearest(name: str, source: Source) -> str | None:
    upper = name.upper()
    for setting in (*ALL_SETTINGS, ENV_FILE):
        if setting in _NEVER_MEANT or (source == "environment" and setting in _NEVER_MEANT_IN_ENVIRONMENT):
            continue
        if _is_near(upper, setting):
            return setting
    return None


def _is_near(name: str, setting: str) -> bool:
    """One slip in a whole long name, or one in each word of four letters or more; never in the first letter.

    The ratio of difflib, at 0.84, also takes MAX_OUTPUT_TOKENS, RETRY_DELAY and METRICS_REPORT for ours.
    """
    if name[:1] != setting[0]:
        return False
    if len(setting) >= 8 and _is_one_slip(name, setting):
        return True
    words, wanted = name.split("_"), setting.split("_")
    return len(words) == len(wanted) and all(
        word == right or (len(right) >= 4 and _is_one_slip(word, right))
        for word, right in zip(words, wanted, strict=True)
    )


def _is_one_slip(a: str, b: str) -> bool:
    """Whether at most one letter is missing, added, wrong or swapped with the next."""
    if abs(len(a) - len(b)) > 1:
        return False
    pairs = enumerate(zip(a, b, strict=False))
    start = next((i for i, (letter, other) in pairs if letter != other), min(len(a), len(b)))
    a, b = a[start:], b[start:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or (a[:2] == b[:2][::-1] and a[2:] == b[2:])


def _say(wrong: Misspelt) -> str:
    line = f"{shown(wrong.name, 100)} ({wrong.source}): no setting has this name"
    if wrong.meant is None:
        return line
    way_out = "" if wrong.source == "flag" else f" If it is another program's, set {wrong.meant} as well"
    return f"{line}; did you mean {wrong.meant}?{way_out}"
