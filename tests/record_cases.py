"""Which runs of which real CLI are recorded: what it is asked, with which flags, and how the model answers."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

#: When a usage limit ends that the stub tells of: today and, for what a CLI then writes otherwise, another day.
RESETS = int(time.time()) // 60 * 60 + 2 * 3600
RESETS_LATER = RESETS + 3 * 86_400
_HI = "Say hi [[say hi there]]"
_DENIED = {"command": "echo x > made.txt", "description": "make a file"}
_OPENCODE = {
    "model": "stub/m",
    "provider": {
        "stub": {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": "STUB-URL/v1", "apiKey": "not-a-key"},
            "models": {"m": {}},
        }
    },
}
_GEMINI_KEY = {".gemini/settings.json": json.dumps({"security": {"auth": {"selectedType": "gemini-api-key"}}})}
_GEMINI_TRUST = {
    ".gemini/settings.json": json.dumps(
        {"security": {"auth": {"selectedType": "gemini-api-key"}, "folderTrust": {"enabled": True}}}
    )
}
_GEMINI_TWICE = {
    ".gemini/settings.json": json.dumps(
        {"security": {"auth": {"selectedType": "gemini-api-key"}}, "general": {"maxAttempts": 2}}
    )
}
_GEMINI_POLICY = {
    ".gemini/policies/none.toml": '[[rule]]\ntoolName = "run_shell_command"\ndecision = "deny"\npriority = 900\n'
}
_QWEN_TWICE = {".qwen/settings.json": json.dumps({"model": {"generationConfig": {"maxRetries": 1}}})}
_MCP = {"mcpServers": {"broken": {"command": "/no/such/server", "args": []}}}


@dataclass(frozen=True)
class Case:
    """One run. `always` steers the model for every request; an empty environment value removes the variable."""

    name: str
    about: str
    prompt: str = _HI
    flags: tuple[str, ...] | None = None
    add: tuple[str, ...] = ()
    output: str = "stream-json"
    always: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 120.0
    ended_by: signal.Signals | None = None


@dataclass(frozen=True)
class Cli:
    """How one program is made to talk to the stub."""

    flags: Mapping[str, tuple[str, ...]]
    environment: Mapping[str, str]
    cases: tuple[Case, ...]
    files: Callable[[str], Mapping[str, str]] = lambda url: {}
    more_flags: tuple[str, ...] = ()

    def arguments(self, case: Case) -> tuple[str, ...]:
        return (*(self.flags[case.output] if case.flags is None else case.flags), *case.add)

    def more(self, case: Case, url: str) -> tuple[str, ...]:
        return tuple(word.replace("STUB-URL", url) for word in self.more_flags)


def _bash(name: str, **arguments: str) -> str:
    return f"[[tool {name} {json.dumps(arguments)}]]"


_CLAUDE = ("--print", "--dangerously-skip-permissions", "--output-format")
_CLAUDE_FLAGS = {
    "stream-json": (*_CLAUDE, "stream-json", "--verbose"),
    "json": (*_CLAUDE, "json"),
    "text": (*_CLAUDE, "text"),
}
_OAUTH = {"ANTHROPIC_API_KEY": "", "CLAUDE_CODE_OAUTH_TOKEN": "not-a-token"}
_CLAUDE_LIMIT = f"[[status 429 reset {RESETS} saying limit]]"
_TOO_LONG = "prompt is too long: 250000 tokens > 200000 maximum"

CLAUDE = Cli(
    flags=_CLAUDE_FLAGS,
    environment={
        "ANTHROPIC_BASE_URL": "STUB-URL",
        "ANTHROPIC_API_KEY": "not-a-key",
        "IS_SANDBOX": "1",
        "CLAUDE_CODE_MAX_RETRIES": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    },
    cases=(
        Case("turn", "one answer"),
        Case("tool", "a tool call that makes a file", _bash("Bash", **_DENIED)),
        Case("turn-json", "one answer as one object", output="json"),
        Case("turn-text", "one answer as text", output="text"),
        Case(
            "denied",
            "a tool call that nobody allowed",
            _bash("Bash", **_DENIED),
            flags=("--print", "--output-format", "stream-json", "--verbose"),
        ),
        Case("no-output", "the model says nothing", always="[[say ]]"),
        Case("slash", "a description that is a command of its own", "/help"),
        Case("truncated", "an answer that is cut at its longest", always="[[ends max_tokens a long st]]"),
        Case("refused", "the model refuses", always="[[ends refusal I cannot]]"),
        Case("not-logged-in", "no key and no login", environment={"ANTHROPIC_API_KEY": ""}),
        Case("not-logged-in-text", "no key and no login", output="text", environment={"ANTHROPIC_API_KEY": ""}),
        Case("api-401", "the API refuses the key", always="[[status 401]]"),
        Case("api-401-text", "the API refuses the key", output="text", always="[[status 401]]"),
        Case("api-403", "the API refuses the account", always="[[status 403]]"),
        Case("billing", "no credit", always="[[status 400 saying Your credit balance is too low to access the API]]"),
        Case("usage-limit", "the subscription's limit with its end", always=_CLAUDE_LIMIT, environment=_OAUTH),
        Case("usage-limit-text", "the same as text", output="text", always=_CLAUDE_LIMIT, environment=_OAUTH),
        Case(
            "usage-limit-later-text",
            "one that ends another day",
            output="text",
            always=f"[[status 429 reset {RESETS_LATER} saying limit]]",
            environment=_OAUTH,
        ),
        Case("api-429", "too fast, no reset told", always="[[status 429 saying slow down]]"),
        Case("api-529", "overloaded", always="[[status 529]]"),
        Case("api-500", "a server error", always="[[status 500]]"),
        Case("api-400", "a request that is refused", always="[[status 400]]"),
        Case("api-404", "no such model", always="[[status 404 saying model: nope]]"),
        Case("context-overflow", "more than the model reads", always=f"[[status 400 saying {_TOO_LONG}]]"),
        Case("cut", "the stream breaks off, each time", always="[[cut]]"),
        Case("bad-flag", "a flag that it does not know", add=("--nonsense",)),
        Case("max-turns", "a tool call when one turn is allowed", _bash("Bash", **_DENIED), add=("--max-turns", "1")),
        Case("root", "as root without IS_SANDBOX", environment={"IS_SANDBOX": ""}),
        Case("mcp-failed", "an MCP server that cannot start", add=("--mcp-config", json.dumps(_MCP))),
        Case("terminated", "ended by TERM while it waits", always="[[hang]]", seconds=8, ended_by=signal.SIGTERM),
        Case("interrupted", "ended by INT while it waits", always="[[hang]]", seconds=8, ended_by=signal.SIGINT),
    ),
)

_GEMINI = ("--skip-trust", "--approval-mode", "yolo", "-o")
_GEMINI_FLAGS = {kind: (*_GEMINI, kind) for kind in ("stream-json", "json", "text")}
GEMINI = Cli(
    flags=_GEMINI_FLAGS,
    environment={
        "GEMINI_API_KEY": "not-a-key",
        "GOOGLE_GEMINI_BASE_URL": "STUB-URL",
        "GEMINI_CLI_NO_RELAUNCH": "true",
    },
    files=lambda url: _GEMINI_KEY,
    more_flags=("-m", "gemini-2.5-flash"),
    cases=(
        Case("turn", "one answer"),
        Case("tool", "a tool call that makes a file", _bash("run_shell_command", command="echo x > made.txt")),
        Case("turn-json", "one answer as one object", output="json"),
        Case("turn-text", "one answer as text", output="text"),
        Case(
            "denied",
            "a tool call that nobody allowed",
            _bash("run_shell_command", command="echo x > made.txt"),
            flags=("--skip-trust", "-o", "stream-json"),
        ),
        Case("denied-policy", "a tool call that a policy forbids", _bash("run_shell_command", command="echo x > made.txt"), files=_GEMINI_POLICY),
        Case("no-output", "the model says nothing", always="[[say ]]"),
        Case("truncated", "an answer that is cut at its longest", always="[[ends MAX_TOKENS a long st]]"),
        Case("refused", "an answer that is stopped for its content", always="[[ends SAFETY I]]"),
        Case("not-logged-in", "no key and no login", environment={"GEMINI_API_KEY": ""}, files={".gemini/settings.json": "{}"}),
        Case("not-logged-in-json", "the same as json", output="json", environment={"GEMINI_API_KEY": ""}, files={".gemini/settings.json": "{}"}),
        Case("untrusted", "a folder that it does not trust", flags=_GEMINI_FLAGS["stream-json"][1:], files=_GEMINI_TRUST),
        Case("api-401", "the API refuses the key", always="[[status 401]]"),
        Case("api-401-json", "the same as json", output="json", always="[[status 401]]"),
        Case("api-401-text", "the same as text", output="text", always="[[status 401]]"),
        Case("api-403", "the API refuses the account", always="[[status 403]]"),
        Case("bad-key", "what Google says of a wrong key", always="[[status 400 saying API key not valid. Please pass a valid API key.]]"),
        Case("api-404", "no such model", always="[[status 404]]"),
        Case("daily-quota", "the quota of the day is used up", always="[[status 429 kind GenerateRequestsPerDayPerProjectPerModel saying You exceeded your current quota]]"),
        Case("api-429", "too fast", always="[[status 429 saying slow down]]", files=_GEMINI_TWICE),
        Case("api-500", "a server error", always="[[status 500]]", files=_GEMINI_TWICE),
        Case("api-503", "overloaded", always="[[status 503]]", files=_GEMINI_TWICE),
        Case("api-400", "a request that is refused", always="[[status 400]]"),
        Case("context-overflow", "more than the model reads", always="[[status 400 saying The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).]]"),
        Case("cut", "the stream breaks off, each time", always="[[cut]]"),
        Case("bad-flag", "a flag that it does not know", add=("--nonsense",)),
        Case("terminated", "ended by TERM while it waits", always="[[hang]]", seconds=12, ended_by=signal.SIGTERM),
    ),
)  # fmt: skip

_CODEX = ("--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--ephemeral")
CODEX = Cli(
    flags={"stream-json": ("exec", "--json", *_CODEX), "text": ("exec", *_CODEX)},
    environment={"CODEX_API_KEY": "not-a-key"},
    more_flags=("-m", "gpt-5", "-c", 'openai_base_url="STUB-URL/v1"', "-"),
    cases=(
        Case("turn", "one answer"),
        Case("turn-text", "one answer as text", output="text"),
        Case("tool", "a tool call that makes a file", _bash("exec_command", cmd="echo x > made.txt")),
        Case("denied", "a tool call that nobody allowed", _bash("exec_command", cmd="echo x > made.txt"), flags=("exec", "--json", "--skip-git-repo-check", "--sandbox", "read-only", "--ephemeral")),
        Case("no-output", "the model says nothing", always="[[say ]]"),
        Case("truncated", "an answer that is cut at its longest", always="[[ends max_output_tokens a long st]]"),
        Case("not-logged-in", "no key: the API refuses", always="[[status 401 saying Missing bearer or basic authentication in header]]", environment={"CODEX_API_KEY": ""}),
        Case("api-401", "the API refuses the key", always="[[status 401]]"),
        Case("api-401-text", "the same as text", output="text", always="[[status 401]]"),
        Case("api-403", "the API refuses the account", always="[[status 403]]"),
        Case("usage-limit", "the subscription's limit with its end", always=f"[[status 429 reset {RESETS} kind usage_limit_reached saying limit]]"),
        Case("usage-limit-later", "one that ends another day", always=f"[[status 429 reset {RESETS_LATER} kind usage_limit_reached saying limit]]"),
        Case("usage-limit-text", "the same as text", output="text", always=f"[[status 429 reset {RESETS} kind usage_limit_reached saying limit]]"),
        Case("billing", "no credit", always="[[status 429 kind insufficient_quota saying You exceeded your current quota]]"),
        Case("api-429", "too fast", always="[[status 429 saying slow down]]"),
        Case("api-500", "a server error", always="[[status 500]]"),
        Case("api-503", "overloaded", always="[[status 503]]"),
        Case("api-400", "a request that is refused", always="[[status 400]]"),
        Case("api-404", "no such model", always="[[status 404 kind model_not_found saying The model nope does not exist]]"),
        Case("context-overflow", "more than the model reads", always="[[status 400 kind context_length_exceeded saying Your input exceeds the context window of this model]]"),
        Case("cut", "the stream breaks off, each time", always="[[cut]]"),
        Case("bad-flag", "a flag that it does not know", add=("--nonsense",)),
        Case("no-repository", "no git repository and no flag", flags=("exec", "--json", "--sandbox", "read-only", "--ephemeral")),
        Case("terminated", "ended by TERM while it waits", always="[[hang]]", seconds=8, ended_by=signal.SIGTERM),
    ),
)  # fmt: skip

OPENCODE = Cli(
    flags={"stream-json": ("run", "--auto", "--format", "json"), "text": ("run", "--auto")},
    environment={"OPENCODE_CONFIG_CONTENT": json.dumps(_OPENCODE), "OPENCODE_DISABLE_MODELS_FETCH": "1"},
    cases=(
        Case("turn", "one answer"),
        Case("turn-text", "one answer as text", output="text"),
        Case("tool", "a tool call that makes a file", _bash("bash", command="echo x > made.txt", description="make it")),
        Case("no-output", "the model says nothing", always="[[say ]]"),
        Case("truncated", "an answer that is cut at its longest", always="[[ends length a long st]]"),
        Case("denied", "a tool call that the settings forbid", _bash("bash", **_DENIED), environment={"OPENCODE_CONFIG_CONTENT": json.dumps(_OPENCODE | {"permission": {"bash": "deny"}})}),
        Case("api-401", "the API refuses the key", always="[[status 401]]"),
        Case("api-401-text", "the same as text", output="text", always="[[status 401]]"),
        Case("api-400", "a request that is refused", always="[[status 400]]"),
        Case("api-404", "no such model", always="[[status 404 kind model_not_found saying The model nope does not exist]]"),
        Case("billing", "no credit", always="[[status 402 kind insufficient_quota saying Insufficient credit]]"),
        Case("context-overflow", "more than the model reads", always="[[status 400 kind context_length_exceeded saying This model's maximum context length is 8192 tokens]]"),
        Case("no-model", "a model that no provider has", add=("-m", "stub/nope")),
        Case("bad-flag", "a flag that it does not know", add=("--nonsense",)),
        Case("terminated", "ended by TERM while it waits", always="[[hang]]", seconds=12, ended_by=signal.SIGTERM),
    ),
)  # fmt: skip

_QWEN = ("--approval-mode", "yolo", "--auth-type", "openai", "-o")
QWEN = Cli(
    flags={kind: (*_QWEN, kind) for kind in ("stream-json", "json", "text")},
    environment={"OPENAI_API_KEY": "not-a-key", "OPENAI_BASE_URL": "STUB-URL/v1", "OPENAI_MODEL": "stub-model"},
    cases=(
        Case("turn", "one answer"),
        Case("turn-json", "one answer as a list", output="json"),
        Case("turn-text", "one answer as text", output="text"),
        Case("tool", "a tool call that makes a file", _bash("run_shell_command", command="echo x > made.txt", is_background="false").replace('"false"', "false")),
        Case("denied", "a tool call that nobody allowed", _bash("run_shell_command", command="echo x > made.txt", is_background="false").replace('"false"', "false"), flags=("--auth-type", "openai", "-o", "stream-json")),
        Case("no-output", "the model says nothing", always="[[say ]]", seconds=60),
        Case("slash", "a description that is a command of its own", "/clear"),
        Case("truncated", "an answer that is cut at its longest", always="[[ends length a long st]]"),
        Case("refused", "an answer that is stopped for its content", always="[[ends content_filter I]]"),
        Case("not-logged-in", "no key and no login", flags=("--approval-mode", "yolo", "-o", "stream-json"), environment={"OPENAI_API_KEY": ""}),
        Case("api-401", "the API refuses the key", always="[[status 401]]"),
        Case("api-401-json", "the same as json", output="json", always="[[status 401]]"),
        Case("api-401-text", "the same as text", output="text", always="[[status 401]]"),
        Case("api-403", "the API refuses the account", always="[[status 403]]"),
        Case("api-400", "a request that is refused", always="[[status 400]]"),
        Case("api-404", "no such model", always="[[status 404 kind model_not_found saying The model nope does not exist]]"),
        Case("billing", "no credit", always="[[status 402 kind insufficient_quota saying Insufficient balance]]"),
        Case("context-overflow", "more than the model reads", always="[[status 400 kind context_length_exceeded saying This model's maximum context length is 8192 tokens]]"),
        Case("api-500", "a server error", always="[[status 500]]", files=_QWEN_TWICE),
        Case("cut", "the stream breaks off, each time", always="[[cut]]", seconds=60),
        Case("bad-flag", "a flag that it does not know", add=("--nonsense",)),
        Case("terminated", "ended by TERM while it waits", always="[[hang]]", seconds=12, ended_by=signal.SIGTERM),
    ),
)  # fmt: skip

CLIS = {"claude": CLAUDE, "gemini": GEMINI, "codex": CODEX, "opencode": OPENCODE, "qwen": QWEN}
