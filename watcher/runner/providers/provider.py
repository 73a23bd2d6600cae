"""Define what a provider is, as data: command line, prompt, reading of its output, environment.

The record of each CLI that people use is a TOML file beside this one, read by `built_in`; those that people describe
themselves come from `user_providers`; what an attempt came to is decided by `judging`, from a record's rules.

Nothing here starts anything. What makes every task of a provider fail alike is AUTH, also when the login is fine: a
command that is missing, or that refuses to run as root. Its action (hold the provider, count no attempt) is the right
one; dead letters for the whole queue are not.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from watcher.policy.after_attempt import Ending, Failure
from watcher.runner.providers.cures import CURES
from watcher.runner.providers.output_events import Reader

Prompt = Literal["stdin", "argument", "file"]
OutputFormat = Literal["text", "json", "stream-json"]
#: Where a CLI itself speaks: see `words`.
Where = Literal["event", "answer", "start", "last", "stderr"]
#: The words of an output flag; a CLI with other words has a table of its own.
OUTPUTS: Mapping[str, OutputFormat] = {"text": "text", "json": "json", "stream-json": "stream-json"}

#: Stands in a command where the name of a file with the prompt shall be.
PROMPT_FILE = "{prompt_file}"
#: Stands in an argument where the CLI wants the name of the output format.
OUTPUT_WORD = "{output}"
#: What every command may see of the worker's environment; a provider adds its own names, AGENT_ENV adds more.
COMMON_ENVIRONMENT = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TERM", "TZ", "TMPDIR", "XDG_*",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "SSL_CERT_*", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
#: A provider whose command is missing is held for this long, then one task goes first to see.
LOOK_AGAIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to fail. It fits when each condition that it has fits: one of `signs` (`kind:value`), one of
    `exit_codes`, `pattern` somewhere in what was printed. The pattern's groups `epoch`, `after` (`8h44m7s`), `at`
    (`Nov 25, 5:13am (UTC)`) or `today` (the same, by a CLI that leaves out only today's date) give the time when a
    limit ends; `argument` must be one of the command.

    `where` names the places in which the pattern counts (see `words`), the first that has it first; none: anywhere.
    """

    failure: Failure
    reason: str
    cure: str = ""
    signs: frozenset[str] = frozenset()
    exit_codes: frozenset[int] = frozenset()
    pattern: str | None = None
    where: tuple[Where, ...] = ()


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
    `setting` is where people change the command; `family` is the built-in CLI that it is a variant of.
    `protocol` names how a process of it is kept warm between tasks; empty: each task starts one. `auth_method` is the
    way in which an agent of the Agent Client Protocol is asked to log in, when it wants that. With
    `claude` one waits for its only task when `waits_with` are added to its words; `reads_at_start` are files that it
    reads before (in its folder and those above, or `~/`): when one has changed, it is not used. `looks` are words that
    make the program tell its version or its login and end at once. `tells` are those of `cost` and `tokens` that its
    machine-readable output always tells. `patterns` are those that other providers may name.
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
    output_words: Mapping[str, OutputFormat] = field(default_factory=lambda: OUTPUTS)
    reader: Reader | None = None
    mentions: tuple[bytes, ...] = ()
    environment: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    refuses_root_without: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    setting: str = "AGENT_COMMAND"
    family: str = ""
    good_exit_codes: frozenset[int] = frozenset({0})
    needs_answer: bool = False
    denials_are_fine: bool = False
    protocol: str = ""
    auth_method: str = ""
    waits_with: tuple[str, ...] = ()
    reads_at_start: tuple[str, ...] = ()
    looks: Mapping[Literal["version", "login"], tuple[str, ...]] = field(default_factory=dict)
    tells: frozenset[str] = frozenset()
    patterns: Mapping[str, str] = field(default_factory=dict, repr=False)

    def argv(self) -> tuple[tuple[str, ...], OutputFormat]:
        """The command with all it needs but model and prompt, and how its output is to be read.

        What the command says itself stands: `claude --output-format text` is read as text.
        """
        said = self._own_words()
        output = self.output_words.get(_value_of_flag(said, self.output_flags) or "", self.output)
        words = list(self.command)
        for argument in self.arguments:
            if argument.only_for not in (None, output):
                continue
            if not any(_has_flag(said, flag) for flag in (argument.words[0], *argument.unless)):
                words.extend(word.replace(OUTPUT_WORD, self._output_word(output)) for word in argument.words)
        return tuple(words), output

    def tells_of(self) -> frozenset[str]:
        """What it tells of `cost` and `tokens` as it is started."""
        return frozenset() if self.protocol != "acp" and self.argv()[1] == "text" else self.tells

    def takes_budget(self) -> bool:
        """Whether it can be told what an attempt may cost, and its command does not say so itself."""
        return self.budget_flag is not None and not _has_flag(self._own_words(), self.budget_flag)

    def words_to_wait(self, output: OutputFormat) -> tuple[str, ...]:
        """What makes its command wait for one task on a stdin that is open; empty: it cannot be had to."""
        is_able = self.protocol == "claude" and output == "stream-json" and self.prompt == "stdin"
        if not is_able or not self.waits_with or _has_flag(self._own_words(), self.waits_with[0]):
            return ()
        return self.waits_with

    def _output_word(self, output: OutputFormat) -> str:
        return next((word for word, kind in self.output_words.items() if kind == output), output)

    def _own_words(self) -> tuple[str, ...]:
        """The arguments of the program itself: in `docker run -p 80:80 box claude`, the -p is not claude's."""
        names = {self.name, self.family, *self.other_names}
        for place in range(len(self.command) - 1, -1, -1):
            if os.path.basename(self.command[place]) in names:
                return self.command[place + 1 :]
        return self.command[1:]


def environment_for(provider: Provider, environ: Mapping[str, str], more: Iterable[str] = ()) -> dict[str, str]:
    """What a command of this provider may see of `environ`: the common names, the provider's, and `more` (globs).

    Another provider's keys are none of its business.
    """
    wanted = re.compile(
        "|".join(
            fnmatch.translate(glob) for glob in (*COMMON_ENVIRONMENT, *provider.environment, *provider.variables, *more)
        )
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
    return Ending(Failure.AUTH, "refuses_root", f"{provider.name}: will not run as root; {CURES['refuses_root']}")


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
