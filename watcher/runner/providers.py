"""The agent CLIs as data: command line, where the prompt goes, how output is read, what a failure means.

A provider is a record; adding one (codex, opencode, qwen) is adding a record and, when its output has a shape of its
own, a reader in `reading`. Success is: we did not end it, exit code 0 and, where its output is machine-readable, a
final event without an error flag. Exit 0 alone proves nothing: gemini killed by our TERM exits 0.

A failure is classed by the first rule that fits: facts from events before exit codes, exit codes before words. Words
are only looked for at the start of a line, so that an agent that writes about a failure does not cause one. What no
rule knows is transient.

What makes every task of a provider fail alike is AUTH, also when the login is fine: a command that is missing, or that
refuses to run as root. Its action (hold the provider, count no attempt) is the right one; dead letters for the whole
queue are not.

Argv, exit codes and texts: recorded from claude 2.1.330 and gemini 0.61.0; cursor-agent is from its documentation
(https://cursor.com/docs/cli/headless) and is in no package registry: what is called so there is something else.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from watcher.policy.disposition import Ending, Failure
from watcher.runner.reading import Reader, Reading, harmless, read_claude, read_gemini

Prompt = Literal["stdin", "argument", "file"]
OutputFormat = Literal["text", "json", "stream-json"]
_OUTPUTS: dict[str, OutputFormat] = {"text": "text", "json": "json", "stream-json": "stream-json"}

#: Stands in a command where the name of a file with the prompt shall be.
PROMPT_FILE = "{prompt_file}"
#: What every command may see of the worker's environment; a provider adds its own names, AGENT_ENV adds more.
COMMON_ENVIRONMENT = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TERM", "TZ", "TMPDIR", "XDG_*",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "SSL_CERT_*", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
#: A provider whose command is missing is held for this long, then one task goes first to see.
LOOK_AGAIN_SECONDS = 60.0
#: What people read of a failure; the whole of it is in the result's output.
_MESSAGE_CHARACTERS = 600
#: A usage limit that ends later than this is a misread number.
_LONGEST_LIMIT_SECONDS = 40 * 86_400.0
_NAMES_OF_SIGNALS = {number.value: number.name for number in signal.Signals}


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to fail. It fits when each condition that it has fits: one of `signs` (`kind:value`), one of
    `exit_codes`, `pattern` somewhere in what was printed. The pattern's groups `epoch` or `after` (`8h44m7s`) give the
    time when a limit ends.
    """

    failure: Failure
    reason: str
    cure: str = ""
    signs: frozenset[str] = frozenset()
    exit_codes: frozenset[int] = frozenset()
    pattern: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True)
class Argument:
    """Words that a command needs, unless it has them already or has one of `unless`, which say otherwise."""

    words: tuple[str, ...]
    unless: tuple[str, ...] = ()
    only_for: OutputFormat | None = None


@dataclass(frozen=True, slots=True)
class Provider:
    """One agent CLI. `command` is how people start it (a wrapper may stand before it); `arguments` is what we add.

    `other_names` are tried when the program is not found. `variables` are set unless the worker's environment has
    them. `refuses_root_without` names variables of which one must be "1" for the program itself to run as root.
    `budget_flag` comes before what an attempt may cost (USD). `silent` are the output formats in which it prints
    nothing until it ends, however much it does.
    """

    name: str
    command: tuple[str, ...]
    arguments: tuple[Argument, ...] = ()
    other_names: tuple[str, ...] = ()
    prompt: Prompt = "stdin"
    prompt_flag: str | None = None
    model_flag: str | None = None
    budget_flag: str | None = None
    output: OutputFormat = "text"
    silent: frozenset[OutputFormat] = frozenset()
    output_flags: tuple[str, ...] = ()
    reader: Reader | None = None
    mentions: tuple[bytes, ...] = ()
    environment: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    refuses_root_without: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    setting: str = "AGENT_COMMAND"

    def argv(self) -> tuple[tuple[str, ...], OutputFormat]:
        """The command with all it needs but model and prompt, and how its output is to be read.

        What the command says itself stands: `claude --output-format text` is read as text.
        """
        said = self._own_words()
        output = _OUTPUTS.get(_value_of_flag(said, self.output_flags) or "", self.output)
        words = list(self.command)
        for argument in self.arguments:
            if argument.only_for not in (None, output):
                continue
            if not any(_has_flag(said, flag) for flag in (argument.words[0], *argument.unless)):
                words.extend(argument.words)
        return tuple(words), output

    def takes_budget(self) -> bool:
        """Whether it can be told what an attempt may cost, and its command does not say so itself."""
        return self.budget_flag is not None and not _has_flag(self._own_words(), self.budget_flag)

    def _own_words(self) -> tuple[str, ...]:
        """The arguments of the program itself: in `docker run -p 80:80 box claude`, the -p is not claude's."""
        names = {self.name, *self.other_names}
        for place in range(len(self.command) - 1, -1, -1):
            if os.path.basename(self.command[place]) in names:
                return self.command[place + 1 :]
        return self.command[1:]


def built_in(commands: Mapping[str, Sequence[str]] | None = None, prompt: Prompt = "stdin") -> dict[str, Provider]:
    """The providers by name. `commands` gives some of them another command, as words (`shlex.split` for a text).

    The name `command` is any program: the prompt goes where `prompt` says, its output is text, exit 0 is success. It
    is there only when `commands` has it. So is any other name that is not built in.
    """
    out = dict(_BUILT_IN)
    for name, words in (commands or {}).items():
        given = tuple(shlex.split(words)) if isinstance(words, str) else tuple(words)
        if not given:
            continue
        known = out.get(name)
        if known is None:
            out[name] = Provider(name, given, prompt=prompt)
        elif given != known.command:
            out[name] = replace(known, command=given, other_names=())
    return out


def handler_provider(command: Sequence[str]) -> Provider:
    """The provider of warm handlers; run once, when it cannot be kept warm, it is any program."""
    return Provider(
        "handler", tuple(command), environment=("PYTHONPATH", "VIRTUAL_ENV", "NODE_PATH"), setting="HANDLER_COMMAND"
    )


def environment_for(provider: Provider, environ: Mapping[str, str], more: Iterable[str] = ()) -> dict[str, str]:
    """What a command of this provider may see of `environ`: the common names, the provider's, and `more` (globs).

    Another provider's keys are none of its business.
    """
    wanted = re.compile(
        "|".join(fnmatch.translate(glob) for glob in (*COMMON_ENVIRONMENT, *provider.environment, *more))
    )
    out = {name: value for name, value in environ.items() if wanted.match(name) and "=" not in name}
    out.setdefault("PATH", os.defpath)
    for name, value in provider.variables.items():
        out.setdefault(name, value)
    return out


def find_program(provider: Provider, path: str) -> str | None:
    """The absolute path of the program that the provider's command starts, looked for as the command itself would."""
    for name in (provider.command[0], *provider.other_names):
        found = shutil.which(name, path=path)
        if found is not None:
            return os.path.abspath(found)
    return None


def root_problem(
    provider: Provider, program: str, argv: Sequence[str], environment: Mapping[str, str]
) -> Ending | None:
    """Why this program would refuse to run as root, known before it is started.

    Only for the program itself: a wrapper script may set the variable, so it is tried and its words are read.
    """
    if os.geteuid() != 0 or not provider.refuses_root_without or "--dangerously-skip-permissions" not in argv:
        return None
    if any(environment.get(name) == "1" for name in provider.refuses_root_without) or not _is_the_program(program):
        return None
    return Ending(Failure.AUTH, _ROOT.reason, f"{provider.name}: will not run as root; {_ROOT.cure}")


def missing_problem(provider: Provider, path: str, now: float) -> Ending:
    """The command is not there: hold the provider, but look again soon, for an update takes it away for a moment."""
    name = provider.command[0]
    where = "is no executable file" if "/" in name else f"is in no folder of PATH ({path})"
    return Ending(
        Failure.AUTH,
        "command_missing",
        f"{provider.name}: the command {name!r} {where}; install it, or set {provider.setting} to where it is",
        resets_at=now + LOOK_AGAIN_SECONDS,
    )


def judge(
    provider: Provider, exit_code: int, reading: Reading | None, printed: Callable[[], str], now: float
) -> Ending:
    """What an attempt came to that ended by itself. `printed` gives the text to look for words in, when needed."""
    if exit_code < 0:
        name = _NAMES_OF_SIGNALS.get(-exit_code, f"signal {-exit_code}")
        hint = " (somebody else sent it; when memory is short, the kernel does)" if name == "SIGKILL" else ""
        return Ending(Failure.TRANSIENT, "killed_by_signal", f"{provider.name}: ended by {name}{hint}")
    is_done = reading is None or (reading.is_finished and not reading.is_error)
    if exit_code == 0 and is_done:
        return Ending(None)
    text = printed()
    for rule in provider.rules:
        fit = _fit(rule, exit_code, reading, text)
        if fit is not None:
            return _ending(provider, rule, fit, reading, text, now)
    message = _message(reading, text)
    if exit_code == 0:
        reason = "no_result" if reading is None or not reading.is_finished else "agent_error"
        return Ending(Failure.TRANSIENT, reason, _detail(provider, message or "exit code 0 but no final result"))
    return Ending(Failure.TRANSIENT, "exit_code", _detail(provider, f"exit code {exit_code}", message))


@dataclass(slots=True)
class _Fit:
    """That a rule fits, and by which words."""

    words: re.Match[str] | None


def _fit(rule: Rule, exit_code: int, reading: Reading | None, text: str) -> _Fit | None:
    if rule.exit_codes and exit_code not in rule.exit_codes:
        return None
    if rule.signs:
        signs = {} if reading is None else reading.signs
        if not any(f"{kind}:{value}" in rule.signs for kind, value in signs.items()):
            return None
    if rule.pattern is None:
        return _Fit(None)
    words = rule.pattern.search(text)
    return None if words is None else _Fit(words)


def _ending(provider: Provider, rule: Rule, fit: _Fit, reading: Reading | None, text: str, now: float) -> Ending:
    message = _message(reading, text)
    resets_at = None if reading is None else reading.resets_at
    if fit.words is not None:
        message = message if reading is not None and reading.message else _line_around(text, fit.words.start())
        resets_at = _told_time(fit.words, now)
    is_told = rule.failure is Failure.LIMIT and resets_at is not None
    if not is_told or not now - 86_400 < (resets_at or 0.0) < now + _LONGEST_LIMIT_SECONDS:
        resets_at = None
    return Ending(rule.failure, rule.reason, _detail(provider, message, rule.cure), resets_at=resets_at)


def _told_time(found: re.Match[str], now: float) -> float | None:
    groups = found.groupdict()
    if groups.get("epoch"):
        told = float(groups["epoch"])
        return told / 1000 if told > 1e11 else told
    if groups.get("after"):
        units = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
        parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", groups["after"])
        return now + sum(float(number) * units[unit] for number, unit in parts)
    return None


def _message(reading: Reading | None, text: str) -> str:
    """The provider's own words, else the last line of what was printed, else what a JSON object there says."""
    if reading is not None and reading.message:
        return reading.message.strip()
    end = text.rstrip()[-_MESSAGE_CHARACTERS * 4 :]
    last = end[end.rfind("\n") + 1 :].strip()
    if last in ("}", "]"):
        said = re.findall(r'"message"\s*:\s*("(?:[^"\\]|\\.)*")', end)
        with contextlib.suppress(ValueError):
            return str(json.loads(said[-1])) if said else last
    return last


def _line_around(text: str, place: int) -> str:
    end = text.find("\n", place)
    return text[text.rfind("\n", 0, place) + 1 : len(text) if end < 0 else end].strip()


def _detail(provider: Provider, *parts: str) -> str:
    said = [harmless(part)[:_MESSAGE_CHARACTERS] for part in parts if part]
    return f"{provider.name}: " + "; ".join(said)


def _has_flag(words: Sequence[str], flag: str) -> bool:
    return any(word == flag or word.startswith(flag + "=") for word in words)


def _value_of_flag(words: Sequence[str], flags: Sequence[str]) -> str | None:
    """The last value wins, as in the CLIs themselves."""
    value = None
    for place, word in enumerate(words):
        for flag in flags:
            if word == flag and place + 1 < len(words):
                value = words[place + 1]
            elif word.startswith(flag + "="):
                value = word[len(flag) + 1 :]
    return value


def _is_the_program(path: str) -> bool:
    """Whether this is a native program or a node script, as the CLIs are, and no wrapper of somebody's."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a few bytes
            start = file.read(64)
    except OSError:
        return False
    return start[:4] == b"\x7fELF" or (start[:2] == b"#!" and b"node" in start.split(b"\n", 1)[0])


def _words(pattern: str) -> re.Pattern[str]:
    """Words that must stand at the start of a line, maybe after a colour or the word Error."""
    return re.compile(rf"^(?:\x1b\[[\d;]*m)?(?:Error: )?(?:{pattern})", re.M)


def _codes(*codes: int) -> frozenset[int]:
    return frozenset(codes)


def _signs(**values: Iterable[object]) -> frozenset[str]:
    return frozenset(f"{kind}:{value}" for kind, some in values.items() for value in some)


_AUTH, _LIMIT, _PERMANENT, _TRANSIENT = Failure.AUTH, Failure.LIMIT, Failure.PERMANENT, Failure.TRANSIENT

_RESUME = "then resume the worker"
_ROOT = Rule(
    _AUTH,
    "refuses_root",
    "run the worker as another user or, in a container made for it, set IS_SANDBOX=1",
    pattern=re.compile(r"--dangerously-skip-permissions cannot be used with root"),
)
_CLAUDE_LOGIN = f"log in as the worker's user (claude, then /login) or set ANTHROPIC_API_KEY, {_RESUME}"
_CLAUDE_BILLING = f"add credit or change the key, {_RESUME}"
_SHORTER = "make the description shorter, or let the agent read files instead of quoting them"
_OTHER_MODEL = "name another model in the task, or none"
_FIX_COMMAND = "this version does not know an argument: update it, or change the command in the settings"

_LIMIT_WORDS = (
    r"You['\N{RIGHT SINGLE QUOTATION MARK}]ve (?:hit|reached) your .*limit"
    r"|Claude (?:AI |Code )?usage limit reached(?:\|(?P<epoch>\d{9,13}))?"
    r"|(?!Rate )(?:[\w-]+ ){1,2}limit reached\b"
)
_LOGIN_WORDS = "Not logged in|Invalid API key|Failed to authenticate|Please run /login|API Error: 40[13]|OAuth token"
_API_ERROR_RULES = (
    Rule(_PERMANENT, "invalid_request", pattern=_words(r"API Error: 4(?:00|04|13|22)\b")),
    Rule(_TRANSIENT, "rate_limited", pattern=_words(r"API Error: (?:Request rejected \(429\)|429)")),
    Rule(_TRANSIENT, "overloaded", pattern=_words("API Error: 529")),
    Rule(_TRANSIENT, "server_error", pattern=_words(r"API Error: 5\d\d")),
)
_CLAUDE_RULES = (
    Rule(_LIMIT, "usage_limit", signs=_signs(limit=["rejected"])),
    Rule(_AUTH, "billing", _CLAUDE_BILLING, signs=_signs(error=["billing_error"], status=[402])),
    Rule(
        _AUTH,
        "not_authenticated",
        _CLAUDE_LOGIN,
        signs=_signs(error=["authentication_failed", "oauth_org_not_allowed"], status=[401, 403]),
    ),
    Rule(_PERMANENT, "prompt_too_long", _SHORTER, signs=_signs(terminal=["prompt_too_long"])),
    Rule(_PERMANENT, "prompt_too_long", _SHORTER, pattern=_words("Prompt is too long")),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, signs=_signs(error=["model_not_found"])),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, pattern=_words("There's an issue with the selected model")),
    Rule(_PERMANENT, "max_turns", "allow more in the command", signs=_signs(subtype=["error_max_turns"])),
    Rule(
        _PERMANENT,
        "budget_exceeded",
        "raise MAX_COST_PER_TASK, or what the command says",
        signs=_signs(subtype=["error_max_budget_usd"]),
    ),
    Rule(_LIMIT, "usage_limit", pattern=_words(_LIMIT_WORDS)),
    Rule(_TRANSIENT, "rate_limited", signs=_signs(error=["rate_limit"], status=[429])),
    Rule(_TRANSIENT, "overloaded", signs=_signs(error=["overloaded"], status=[529])),
    Rule(_TRANSIENT, "server_error", signs=_signs(error=["server_error"], status=range(500, 529))),
    Rule(
        _PERMANENT,
        "invalid_request",
        signs=_signs(error=["invalid_request"], status=[400, 404, 405, 413, 422]),
    ),
    _ROOT,
    Rule(
        _PERMANENT,
        "bad_argument",
        _FIX_COMMAND,
        pattern=re.compile(r"^error: (?:unknown option|option|missing|too many arguments)", re.M),
    ),
    Rule(_PERMANENT, "bad_argument", _FIX_COMMAND, pattern=_words(r"When using --print, --output-format")),
    Rule(_PERMANENT, "bad_session", pattern=_words(r"Session ID .* already in use|No conversation found")),
    Rule(_AUTH, "billing", _CLAUDE_BILLING, pattern=_words("Credit balance is too low")),
    Rule(_AUTH, "not_authenticated", _CLAUDE_LOGIN, pattern=_words(_LOGIN_WORDS)),
    *_API_ERROR_RULES,
)

_GEMINI_LOGIN = f"log in as the worker's user (gemini) or set GEMINI_API_KEY, {_RESUME}"
_TRUST = "trust the task's cwd, or leave --skip-trust in the command"
#: gemini's exit code of a failed API call is the HTTP status modulo 256.
_GEMINI_RULES = (
    Rule(
        _LIMIT,
        "usage_limit",
        pattern=re.compile(r"quota will reset after (?P<after>[\d.]+[dhms](?:[\d.]+[dhms])*)"),
    ),
    Rule(_LIMIT, "usage_limit", pattern=re.compile("exhausted your daily quota|PerDay")),
    Rule(_TRANSIENT, "rate_limited", exit_codes=_codes(429 % 256)),
    Rule(_AUTH, "not_authenticated", _GEMINI_LOGIN, exit_codes=_codes(41, 401 % 256, 403 % 256)),
    Rule(
        _AUTH,
        "not_authenticated",
        _GEMINI_LOGIN,
        pattern=re.compile(
            "API key not valid|Please set an Auth method|Invalid auth method|API_KEY_INVALID"
            r'|ApiError: \{"error":\{"code":40[13]\b'
        ),
    ),
    Rule(_PERMANENT, "untrusted_folder", _TRUST, exit_codes=_codes(55)),
    Rule(_PERMANENT, "max_turns", "allow more turns in gemini's settings", exit_codes=_codes(53)),
    Rule(_PERMANENT, "bad_settings", "gemini cannot use its settings or sandbox", exit_codes=_codes(44, 52)),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, exit_codes=_codes(404 % 256)),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, pattern=re.compile(r"\bModelNotFoundError\b")),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, pattern=_words("There's an issue with the selected model")),
    Rule(_PERMANENT, "prompt_too_long", _SHORTER, pattern=re.compile("exceeds the maximum number of tokens")),
    Rule(_PERMANENT, "prompt_too_long", _SHORTER, pattern=_words("Prompt is too long")),
    Rule(_PERMANENT, "invalid_request", exit_codes=_codes(42, 400 % 256)),
    Rule(_PERMANENT, "bad_argument", _FIX_COMMAND, pattern=_words(r"Unknown arguments?:|Not enough arguments")),
    Rule(_TRANSIENT, "overloaded", exit_codes=_codes(503 % 256, 529 % 256)),
    Rule(_TRANSIENT, "server_error", exit_codes=_codes(500 % 256, 502 % 256, 504 % 256)),
)

_CURSOR_LOGIN = f"log in as the worker's user (cursor-agent login) or set CURSOR_API_KEY, {_RESUME}"
_CURSOR_RULES = (
    Rule(
        _AUTH,
        "not_authenticated",
        _CURSOR_LOGIN,
        pattern=re.compile(
            r"^.{0,40}?(?:Not authenticated|Authentication (?:required|failed)|Not logged in|Invalid API key"
            r"|Unauthorized|API key is invalid)",
            re.M | re.I,
        ),
    ),
    Rule(
        _LIMIT,
        "usage_limit",
        pattern=re.compile(
            r"^.{0,40}?(?:You['\N{RIGHT SINGLE QUOTATION MARK}]ve (?:hit|reached) your .*limit)", re.M | re.I
        ),
    ),
    Rule(
        _PERMANENT,
        "untrusted_folder",
        "leave --trust in the command",
        pattern=re.compile(r"^.{0,40}?Workspace trust", re.M | re.I),
    ),
    Rule(_PERMANENT, "bad_argument", _FIX_COMMAND, pattern=re.compile(r"^error: unknown option", re.M)),
    Rule(
        _PERMANENT,
        "model_not_found",
        _OTHER_MODEL,
        pattern=_words(r"Cannot use this model|There's an issue with the selected model"),
    ),
    Rule(_PERMANENT, "prompt_too_long", _SHORTER, pattern=_words("Prompt is too long")),
    *_API_ERROR_RULES,
)

#: CLAUDECODE is not among them on purpose: with it claude takes itself for its own child and refuses.
_CLAUDE_ENVIRONMENT = (
    "ANTHROPIC_*", "CLAUDE_*", "IS_SANDBOX", "API_TIMEOUT_MS", "MCP_*", "MAX_*_TOKENS", "BASH_*_MS", "BASH_MAX_*",
    "DISABLE_*", "USE_BUILTIN_RIPGREP",
)  # fmt: skip
_FINAL_EVENT = (b'"result"', b'"rate_limit_event"', b'"error"')

_BUILT_IN = {
    provider.name: provider
    for provider in (
        Provider(
            name="claude",
            command=("claude",),
            arguments=(
                Argument(("--print",), unless=("-p",)),
                Argument(("--dangerously-skip-permissions",), unless=("--permission-mode",)),
                Argument(("--output-format", "stream-json")),
                Argument(("--verbose",), only_for="stream-json"),
            ),
            model_flag="--model",
            budget_flag="--max-budget-usd",
            output="stream-json",
            silent=frozenset({"text", "json"}),
            output_flags=("--output-format",),
            reader=read_claude,
            mentions=_FINAL_EVENT,
            # CLAUDECODE is not among them on purpose: with it claude takes itself for its own child and
            # refuses.
            environment=_CLAUDE_ENVIRONMENT,
            # Two retry loops multiply: ten of its own, three minutes long, for each of ours.
            variables={"CLAUDE_CODE_MAX_RETRIES": "2", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"},
            refuses_root_without=("IS_SANDBOX", "CLAUDE_CODE_BUBBLEWRAP"),
            rules=_CLAUDE_RULES,
            setting="CLAUDE_COMMAND",
        ),
        Provider(
            name="gemini",
            command=("gemini",),
            arguments=(
                Argument(("--skip-trust",)),
                Argument(("--approval-mode", "yolo"), unless=("-y", "--yolo")),
                Argument(("-o", "stream-json"), unless=("--output-format",)),
            ),
            model_flag="-m",
            output="stream-json",
            silent=frozenset({"json"}),
            output_flags=("-o", "--output-format"),
            reader=read_gemini,
            environment=("GEMINI_*", "GOOGLE_*", "CLOUD_SHELL"),
            # One process for two, and half the time to start.
            variables={"GEMINI_CLI_NO_RELAUNCH": "true"},
            rules=_GEMINI_RULES,
            setting="GEMINI_COMMAND",
        ),
        Provider(
            name="cursor-agent",
            command=("cursor-agent",),
            other_names=("agent",),
            arguments=(
                Argument(("--print",), unless=("-p",)),
                Argument(("--force",), unless=("-f", "--yolo")),
                Argument(("--trust",)),
                Argument(("--approve-mcps",)),
                Argument(("--output-format", "stream-json")),
            ),
            model_flag="--model",
            output="stream-json",
            silent=frozenset({"text", "json"}),
            output_flags=("--output-format",),
            reader=read_claude,
            mentions=_FINAL_EVENT,
            environment=("CURSOR_*",),
            rules=_CURSOR_RULES,
            setting="CURSOR_COMMAND",
        ),
    )
}
