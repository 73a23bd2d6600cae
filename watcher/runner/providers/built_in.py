"""List the agent CLIs that need no description, and all providers of a worker by name.

Command lines as of claude 2.1.332, gemini 0.61.0, codex 0.171.0, opencode 1.18.33, qwen 0.24.4 and the documentation
of cursor-agent. Each is told never to ask, and each gets its prompt on a stdin that ends: codex and opencode wait for
ever on one that stays open.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace

from watcher.runner.providers import failure_rules
from watcher.runner.providers.output_events import read_claude, read_codex, read_gemini, read_opencode, read_qwen
from watcher.runner.providers.provider import OUTPUT_WORD, Argument, Prompt, Provider

#: Lines of a stream that may matter; parsing all of them would cost what the agent's tools returned.
_CLAUDE_MENTIONS = (
    b'"result"', b'"rate_limit_event"', b'"error"', b'"init"', b'"tool_use"', b'"tool_result"', b'"tool_call"',
    b'"task_started"', b'"task_updated"', b'"task_notification"', b'"preserveText"',
)  # fmt: skip

_CLAUDE = Provider(
    name="claude",
    command=("claude",),
    arguments=(
        Argument(("--print",), unless=("-p",)),
        Argument(("--dangerously-skip-permissions",), unless=("--permission-mode",)),
        Argument(("--output-format", OUTPUT_WORD)),
        Argument(("--verbose",), only_for="stream-json"),
    ),
    model_flag="--model",
    budget_flag="--max-budget-usd",
    output="stream-json",
    silent=frozenset({"text", "json"}),
    output_flags=("--output-format",),
    reader=read_claude,
    mentions=_CLAUDE_MENTIONS,
    # CLAUDECODE is not among them on purpose: with it claude takes itself for its own child and refuses.
    environment=(
        "ANTHROPIC_*", "CLAUDE_*", "IS_SANDBOX", "API_TIMEOUT_MS", "MCP_*", "MAX_*_TOKENS", "BASH_*_MS", "BASH_MAX_*",
        "DISABLE_*", "USE_BUILTIN_RIPGREP",
    ),
    variables={
        # Two retry loops multiply: ten of its own, three minutes long, for each of ours.
        "CLAUDE_CODE_MAX_RETRIES": "2",
        # A silent API: three tries of this length end within the default TASK_TIMEOUT.
        "API_TIMEOUT_MS": "180000",
        # An MCP server that never answers delays the start by this (its own default is 30 s), and a call of one of its
        # tools that never returns ends after that (there is no default).
        "MCP_TIMEOUT": "15000",
        "MCP_TOOL_TIMEOUT": "300000",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    },
    refuses_root_without=("IS_SANDBOX", "CLAUDE_CODE_BUBBLEWRAP"),
    rules=failure_rules.CLAUDE,
    setting="CLAUDE_COMMAND",
    tells=frozenset({"cost", "tokens"}),
    needs_answer=True,
    looks={"version": ("--version",), "login": ("auth", "status")},
    protocol="claude",
    waits_with=("--input-format", "stream-json"),
    reads_at_start=(
        "CLAUDE.md", "CLAUDE.local.md", ".claude/CLAUDE.md", ".claude/settings.json", ".claude/settings.local.json",
        ".mcp.json", "~/.claude/CLAUDE.md", "~/.claude/settings.json", "~/.claude/.credentials.json",
    ),
)  # fmt: skip

_GEMINI = Provider(
    name="gemini",
    command=("gemini",),
    arguments=(
        # In a folder it does not trust it drops yolo and, once logged in, exits with 55.
        Argument(("--skip-trust",)),
        Argument(("--approval-mode", "yolo"), unless=("-y", "--yolo")),
        Argument(("-o", OUTPUT_WORD), unless=("--output-format",)),
    ),
    model_flag="-m",
    output="stream-json",
    silent=frozenset({"json"}),
    output_flags=("-o", "--output-format"),
    reader=read_gemini,
    environment=("GEMINI_*", "GOOGLE_*", "CLOUD_SHELL"),
    # One process for two, and half the time to start.
    variables={"GEMINI_CLI_NO_RELAUNCH": "true"},
    rules=failure_rules.GEMINI,
    setting="GEMINI_COMMAND",
    tells=frozenset({"tokens"}),
    needs_answer=True,
    looks={"version": ("--version",)},
)

_CURSOR = Provider(
    name="cursor-agent",
    command=("cursor-agent",),
    other_names=("agent",),
    arguments=(
        Argument(("--print",), unless=("-p",)),
        Argument(("--force",), unless=("-f", "--yolo")),
        Argument(("--trust",)),
        Argument(("--approve-mcps",)),
        Argument(("--output-format", OUTPUT_WORD)),
    ),
    model_flag="--model",
    output="stream-json",
    silent=frozenset({"text", "json"}),
    output_flags=("--output-format",),
    reader=read_claude,
    mentions=_CLAUDE_MENTIONS,
    environment=("CURSOR_*",),
    rules=failure_rules.CURSOR,
    setting="CURSOR_COMMAND",
    needs_answer=True,
    looks={"version": ("--version",), "login": ("status",)},
)

_CODEX = Provider(
    name="codex",
    command=("codex",),
    arguments=(
        Argument(("exec",), unless=("e",)),
        Argument(("--json",), only_for="stream-json"),
        Argument(("--skip-git-repo-check",)),
        Argument(
            ("--dangerously-bypass-approvals-and-sandbox",),
            unless=("--sandbox", "-s", "--approve-for-me", "--yolo"),
        ),
        Argument(("--ephemeral",)),
    ),
    model_flag="-m",
    output="stream-json",
    reader=read_codex,
    environment=("CODEX_*", "OPENAI_*"),
    rules=failure_rules.CODEX,
    setting="CODEX_COMMAND",
    tells=frozenset({"tokens"}),
    needs_answer=True,
    looks={"version": ("--version",), "login": ("login", "status")},
)

_OPENCODE = Provider(
    name="opencode",
    command=("opencode",),
    arguments=(Argument(("run",)), Argument(("--auto",)), Argument(("--format", OUTPUT_WORD))),
    model_flag="-m",
    output="stream-json",
    output_flags=("--format",),
    output_words={"json": "stream-json", "default": "text"},
    reader=read_opencode,
    # It speaks to the models of many vendors; keys of others than these are for AGENT_ENV.
    environment=(
        "OPENCODE_*", "ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_GENERATIVE_AI_API_KEY",
        "OPENROUTER_API_KEY", "GROQ_API_KEY", "MISTRAL_API_KEY", "DEEPSEEK_API_KEY", "XAI_API_KEY",
    ),
    variables={"OPENCODE_DISABLE_AUTOUPDATE": "1"},
    rules=failure_rules.OPENCODE,
    setting="OPENCODE_COMMAND",
    tells=frozenset({"tokens"}),
    needs_answer=True,
    looks={"version": ("--version",)},
)  # fmt: skip

_QWEN = Provider(
    name="qwen",
    command=("qwen",),
    arguments=(
        Argument(("--approval-mode", "yolo"), unless=("-y", "--yolo")),
        Argument(("-o", OUTPUT_WORD), unless=("--output-format",)),
    ),
    model_flag="-m",
    output="stream-json",
    silent=frozenset({"json"}),
    output_flags=("-o", "--output-format"),
    reader=read_qwen,
    mentions=_CLAUDE_MENTIONS,
    environment=("QWEN_*", "OPENAI_*", "DASHSCOPE_*", "BAILIAN_*"),
    variables={"QWEN_CODE_NO_RELAUNCH": "true"},
    rules=failure_rules.QWEN,
    setting="QWEN_COMMAND",
    tells=frozenset({"tokens"}),
    needs_answer=True,
    looks={"version": ("--version",)},
)

#: In the order in which people see them.
BUILT_IN: Mapping[str, Provider] = {
    provider.name: provider for provider in (_CLAUDE, _GEMINI, _CURSOR, _CODEX, _OPENCODE, _QWEN)
}


def built_in(commands: Mapping[str, Sequence[str]] | None = None, prompt: Prompt = "stdin") -> dict[str, Provider]:
    """The providers by name. `commands` gives some of them another command, as words (`shlex.split` for a text).

    The name `command` is any program: the prompt goes where `prompt` says, its output is text, exit 0 is success. It
    is there only when `commands` has it. So is any other name that is not built in.
    """
    return with_commands(BUILT_IN, commands or {}, prompt)


def handler_provider(command: Sequence[str]) -> Provider:
    """The provider of warm handlers; run once, when it cannot be kept warm, it is any program."""
    return Provider(
        "handler", tuple(command), environment=("PYTHONPATH", "VIRTUAL_ENV", "NODE_PATH"), setting="HANDLER_COMMAND"
    )


def _provider_of(name: str, command: tuple[str, ...], prompt: Prompt) -> Provider:
    if name == "handler":
        return handler_provider(command)
    if name == "acp":
        return Provider(name, command, setting="ACP_COMMAND", protocol="acp")
    return Provider(name, command, prompt=prompt)


def with_commands(
    known: Mapping[str, Provider], commands: Mapping[str, Sequence[str]], prompt: Prompt = "stdin"
) -> dict[str, Provider]:
    """`known`, with these commands instead of their own; a built-in command that is given changes nothing."""
    out = dict(known)
    for name, words in commands.items():
        given = tuple(shlex.split(words)) if isinstance(words, str) else tuple(words)
        provider = out.get(name)
        if not given:
            continue
        if provider is None:
            out[name] = _provider_of(name, given, prompt)
        elif name not in BUILT_IN or given != BUILT_IN[name].command:
            out[name] = replace(provider, command=given, other_names=())
    return out
