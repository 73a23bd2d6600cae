"""Print a shell's completion of this command: `eval "$(watcher completion bash)"`, likewise zsh and fish.

Made from the commands as they are, so it knows every command and flag; names of workers and tasks are looked up when
you press tab.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Iterator

from watcher.cli import command_output
from watcher.errors import SettingError
from watcher.settings.folders import folders
from watcher.settings.layers import read_layers

_SHELLS = ("bash", "zsh", "fish")
#: What stands for names that are looked up, by the word that a parser shows for them.
_LOOKED_UP = {"NAME": "workers", "ID": "tasks"}
#: How bash looks them up.
_LOOK = "$(watcher completion bash --names {kind} 2>/dev/null)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", help="bash, zsh or fish")
    parser.add_argument("--names", choices=sorted(_LOOKED_UP.values()), help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    if options.names is not None:
        command_output.say("\n".join(_names(options.names)))
        return 0
    if options.shell not in _SHELLS:
        raise SettingError(f"no completion for {options.shell!r}; there is one for {', '.join(_SHELLS)}")
    command_output.say({"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell]())
    return 0


def _names(kind: str) -> list[str]:
    from watcher.store.tasks import on_their_way, workers

    places = folders(read_layers())
    names = workers(places)
    if kind == "workers":
        return names
    return sorted({s.task_id for worker in names for s in on_their_way(places, worker)})


def _commands() -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """Every command with its summary and its parser."""
    cli = importlib.import_module("watcher.cli.main")  # the table is above us; it loads us, not we it
    return {name: (about, cli.parser_of(name, cli.load(name))) for name, (_, about) in cli.COMMANDS.items()}


def _flags(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            yield from ((flag, action.help or "") for flag in action.option_strings if flag.startswith("--"))


def _values(parser: argparse.ArgumentParser) -> str | None:
    """What the positional words of this command are, as far as they are looked up."""
    shown = [action.metavar for action in parser._actions if not action.option_strings]
    return next((_LOOKED_UP[name] for name in shown if isinstance(name, str) and name in _LOOKED_UP), None)


def _after_flags(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Each flag that needs a value, with the words for it; none where only the user knows."""
    for action in parser._actions:
        if action.nargs is None and action.help != argparse.SUPPRESS:
            words = " ".join(map(str, action.choices or ()))
            yield from ((flag, _LOOK.format(kind="workers") if flag == "--worker" else words)
                        for flag in action.option_strings)  # fmt: skip


def _bash() -> str:
    commands = _commands()
    values, cases = [], []
    for name, (_, parser) in commands.items():
        free = []
        for flag, words in _after_flags(parser):
            if words:
                values.append(f'        "{name} {flag}") words="{words}" ;;')
            else:
                free.append(f'"{name} {flag}"')
        values += [f"        {'|'.join(free)}) ;;"] if free else []
        kind = _values(parser)
        more = _LOOK.format(kind=kind) if kind else " ".join(_SHELLS) if name == "completion" else ""
        flags = " ".join(flag for flag, _ in _flags(parser))
        cases.append(f'            {name}) words="{flags}"; [ "${{now#-}}" = "$now" ] && words="{more}" ;;')
    names = " ".join(commands)
    rest = ["        *)", '        case "${COMP_WORDS[1]}" in', f'            help) words="{names}" ;;', *cases]
    lines = "\n".join([*values, *rest])
    return f"""_watcher() {{
    local now="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{names} help"
    else
        case "${{COMP_WORDS[1]}} $before" in
{lines}
        esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$now"))
}}
complete -o default -F _watcher watcher"""


def _zsh() -> str:
    commands = _commands()
    about = "\n".join(f"        {shlex.quote(f'{name}:{text}')}" for name, (text, _) in commands.items())
    cases = []
    for name, (_, parser) in commands.items():
        kind = _values(parser)
        flags = " ".join(flag for flag, _ in _flags(parser))
        more = f'compadd -- ${{(f)"$(watcher completion zsh --names {kind} 2>/dev/null)"}}' if kind else "_files"
        cases.append(f"        {name}) if [[ $PREFIX == -* ]]; then compadd -- {flags}; else {more}; fi ;;")
    lines = "\n".join(cases)
    return f"""#compdef watcher
_watcher() {{
    local -a commands=(
{about}
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    case $words[2] in
{lines}
    esac
}}
compdef _watcher watcher"""


def _fish() -> str:
    lines = ["complete -c watcher -f"]
    for name, (about, parser) in _commands().items():
        lines.append(f"complete -c watcher -n __fish_use_subcommand -a {name} -d {shlex.quote(about)}")
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        for flag, text in _flags(parser):
            lines.append(f"complete -c watcher {seen} -l {flag[2:]} -d {shlex.quote(text.replace('%%', '%'))}")
        kind = _values(parser)
        if kind:
            lines.append(f"complete -c watcher {seen} -a '(watcher completion fish --names {kind} 2>/dev/null)'")
    return "\n".join(lines)
