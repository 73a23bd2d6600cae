"""How each built-in agent CLI fails: rules for `judging`, as data.

Signs, exit codes and texts were recorded from claude 2.1.330, gemini 0.61.0, codex 0.169.0, opencode 1.18.33 and qwen
0.15.10 against a stub of their APIs (tests/data/providers holds what they printed); those of cursor-agent are from its
documentation (https://cursor.com/docs/cli/headless): it is in no package registry, what is called so there is
something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from watcher.policy.disposition import Failure
from watcher.runner.providers import REFUSES_ROOT, Rule

_AUTH, _LIMIT, _PERMANENT, _TRANSIENT = Failure.AUTH, Failure.LIMIT, Failure.PERMANENT, Failure.TRANSIENT

#: Judging puts the name in: a described provider may have the rules of a built-in one.
_RESUME = "then `watcher resume --provider {provider}`"
_SHORTER = "make the description shorter, or let the agent read files instead of quoting them"
_OTHER_MODEL = "name another model in the task, or none"
_FIX_COMMAND = "this version does not know an argument: update it, or change the command in the settings"
_BILLING = f"add credit or change the key, {_RESUME}"
_APOSTROPHE = "['\N{RIGHT SINGLE QUOTATION MARK}]"


def words(pattern: str) -> re.Pattern[str]:
    """Words that must stand at the start of a line, maybe after a colour or the word Error."""
    return re.compile(rf"^(?:\x1b\[[\d;]*m)*(?:Error: |ERROR: )?(?:\x1b\[[\d;]*m)*(?:{pattern})", re.M)


def _codes(*codes: int) -> frozenset[int]:
    return frozenset(codes)


def _signs(**values: Iterable[object]) -> frozenset[str]:
    return frozenset(f"{kind}:{value}" for kind, some in values.items() for value in some)


#: The exit code of a program that a signal ended, as a shell and node write it.
_ENDED = Rule(_TRANSIENT, "killed_by_signal", exit_codes=_codes(129, 130, 131, 134, 137, 139, 143))

# --- claude

_CLAUDE_LOGIN = f"log in as the worker's user (claude, then /login) or set ANTHROPIC_API_KEY, {_RESUME}"
_LIMIT_WORDS = words(
    rf"You{_APOSTROPHE}ve (?:hit|reached) your .*?limit(?:.{{0,3}}resets? (?P<at>[^\n]{{3,60}}))?"
    r"|Claude (?:AI |Code )?usage limit reached(?:\|(?P<epoch>\d{9,13}))?"
    r"|(?!Rate )(?:[\w-]+ ){1,2}limit reached\b"
)
_TOO_LONG_WORDS = words("Prompt is too long")
_MODEL_WORDS = words("There's an issue with the selected model")
_LOGIN_WORDS = "Not logged in|Invalid API key|Failed to authenticate|Please run /login|API Error: 40[13]|OAuth token"
_API_ERROR_WORDS = (
    Rule(_PERMANENT, "invalid_request", pattern=words(r"API Error: 4(?:00|04|13|22)\b")),
    Rule(_TRANSIENT, "rate_limited", pattern=words(r"API Error: (?:Request rejected \(429\)|429)")),
    Rule(_TRANSIENT, "overloaded", pattern=words("API Error: 529")),
    Rule(_TRANSIENT, "server_error", pattern=words(r"API Error: 5\d\d")),
)
_TOO_MANY = _signs(error=["rate_limit"], status=[429])
_REFUSED = _signs(error=["invalid_request"], status=[400, 404, 405, 413, 422])
CLAUDE = (
    Rule(_LIMIT, "usage_limit", signs=_signs(limit=["rejected"])),
    Rule(_LIMIT, "usage_limit", signs=_TOO_MANY, pattern=_LIMIT_WORDS),
    Rule(_AUTH, "billing", _BILLING, signs=_signs(error=["billing_error"], status=[402])),
    Rule(
        _AUTH,
        "not_authenticated",
        _CLAUDE_LOGIN,
        signs=_signs(error=["authentication_failed", "oauth_org_not_allowed"], status=[401, 403]),
    ),
    Rule(_PERMANENT, "context_overflow", _SHORTER, signs=_signs(terminal=["prompt_too_long"])),
    Rule(_PERMANENT, "context_overflow", _SHORTER, signs=_REFUSED, pattern=_TOO_LONG_WORDS),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, signs=_signs(error=["model_not_found"])),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, signs=_REFUSED, pattern=_MODEL_WORDS),
    Rule(_PERMANENT, "max_turns", "allow more in the command", signs=_signs(subtype=["error_max_turns"])),
    Rule(
        _PERMANENT,
        "budget_exceeded",
        "raise MAX_COST_PER_TASK, or what the command says",
        signs=_signs(subtype=["error_max_budget_usd"]),
    ),
    Rule(_TRANSIENT, "rate_limited", signs=_TOO_MANY),
    Rule(_TRANSIENT, "overloaded", signs=_signs(error=["overloaded"], status=[529])),
    Rule(_TRANSIENT, "server_error", signs=_signs(error=["server_error"], status=range(500, 529))),
    Rule(_PERMANENT, "invalid_request", signs=_REFUSED),
    _ENDED,
    Rule(
        _AUTH,
        "refuses_root",
        REFUSES_ROOT,
        pattern=re.compile(r"--dangerously-skip-permissions cannot be used with root"),
    ),
    Rule(
        _PERMANENT,
        "bad_argument",
        _FIX_COMMAND,
        pattern=re.compile(r"^error: (?:unknown option|option|missing|too many arguments)", re.M),
    ),
    Rule(_PERMANENT, "bad_argument", _FIX_COMMAND, pattern=words(r"When using --print, --output-format")),
    Rule(_PERMANENT, "bad_session", pattern=words(r"Session ID .* already in use|No conversation found")),
    Rule(_LIMIT, "usage_limit", pattern=_LIMIT_WORDS),
    Rule(_PERMANENT, "context_overflow", _SHORTER, pattern=_TOO_LONG_WORDS),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, pattern=_MODEL_WORDS),
    Rule(_AUTH, "billing", _BILLING, pattern=words("Credit balance is too low")),
    Rule(_AUTH, "not_authenticated", _CLAUDE_LOGIN, pattern=words(_LOGIN_WORDS)),
    *_API_ERROR_WORDS,
)

# --- gemini: the exit code of a failed API call is the HTTP status modulo 256

_GEMINI_LOGIN = f"log in as the worker's user (gemini) or set GEMINI_API_KEY, {_RESUME}"
_GEMINI_SLOW = "gemini tries again for minutes first; general.maxAttempts in its settings.json says how often"
_BAD_KEY_WORDS = re.compile("API key not valid|API_KEY_INVALID")
_QUOTA_AFTER = re.compile(r"quota will reset after (?P<after>[\d.]+[dhms](?:[\d.]+[dhms])*)")
_QUOTA_OF_DAY = re.compile("exhausted your daily quota|PerDay")
_GEMINI_LONG = re.compile("exceeds the maximum number of tokens")
_NO_MODEL_WORDS = re.compile(r"\bModelNotFoundError\b")
GEMINI = (
    Rule(_LIMIT, "usage_limit", exit_codes=_codes(429 % 256), pattern=_QUOTA_AFTER),
    Rule(_LIMIT, "usage_limit", exit_codes=_codes(429 % 256), pattern=_QUOTA_OF_DAY),
    Rule(_TRANSIENT, "rate_limited", _GEMINI_SLOW, exit_codes=_codes(429 % 256)),
    Rule(_AUTH, "not_authenticated", _GEMINI_LOGIN, exit_codes=_codes(41, 401 % 256, 403 % 256)),
    Rule(_AUTH, "not_authenticated", _GEMINI_LOGIN, exit_codes=_codes(400 % 256), pattern=_BAD_KEY_WORDS),
    Rule(
        _PERMANENT,
        "untrusted_folder",
        "trust the task's cwd, or leave --skip-trust in the command",
        exit_codes=_codes(55),
    ),
    Rule(_PERMANENT, "max_turns", "allow more turns in gemini's settings", exit_codes=_codes(53)),
    Rule(_PERMANENT, "bad_settings", "gemini cannot use its settings or sandbox", exit_codes=_codes(44, 52)),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, exit_codes=_codes(404 % 256)),
    Rule(_PERMANENT, "context_overflow", _SHORTER, exit_codes=_codes(400 % 256), pattern=_GEMINI_LONG),
    Rule(_PERMANENT, "invalid_request", exit_codes=_codes(42, 400 % 256)),
    Rule(_TRANSIENT, "overloaded", exit_codes=_codes(503 % 256, 529 % 256)),
    Rule(_TRANSIENT, "server_error", exit_codes=_codes(500 % 256, 502 % 256, 504 % 256)),
    Rule(_LIMIT, "usage_limit", pattern=_QUOTA_AFTER),
    Rule(_LIMIT, "usage_limit", pattern=_QUOTA_OF_DAY),
    Rule(
        _AUTH,
        "not_authenticated",
        _GEMINI_LOGIN,
        pattern=re.compile(
            f"{_BAD_KEY_WORDS.pattern}|Please set an Auth method|Invalid auth method"
            r'|ApiError: \{"error":\{"code":40[13]\b'
        ),
    ),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, pattern=_NO_MODEL_WORDS),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, pattern=_MODEL_WORDS),
    Rule(_PERMANENT, "context_overflow", _SHORTER, pattern=_GEMINI_LONG),
    Rule(_PERMANENT, "context_overflow", _SHORTER, pattern=_TOO_LONG_WORDS),
    Rule(_PERMANENT, "bad_argument", _FIX_COMMAND, pattern=words(r"Unknown arguments?:|Not enough arguments")),
    Rule(_TRANSIENT, "no_output", pattern=words("The model returned an empty response")),
    Rule(_TRANSIENT, "stream_cut", pattern=words("Model stream ended without a finish reason")),
)

# --- codex

_CODEX_LOGIN = f"log in as the worker's user (codex login) or set CODEX_API_KEY, {_RESUME}"
CODEX = (
    Rule(_AUTH, "billing", _BILLING, signs=_signs(status=[402])),
    Rule(_AUTH, "not_authenticated", _CODEX_LOGIN, signs=_signs(status=[401, 403])),
    Rule(_TRANSIENT, "rate_limited", signs=_signs(status=[429])),
    Rule(_TRANSIENT, "server_error", signs=_signs(status=range(500, 600))),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, signs=_signs(status=[404])),
    Rule(_PERMANENT, "invalid_request", signs=_signs(error=["invalid_request"], status=[400, 413, 422])),
    Rule(_PERMANENT, "bad_argument", _FIX_COMMAND, exit_codes=_codes(2), pattern=re.compile("^error: .*", re.M)),
    Rule(_PERMANENT, "bad_argument", _FIX_COMMAND, exit_codes=_codes(2)),
    _ENDED,
    Rule(
        _LIMIT,
        "usage_limit",
        pattern=words(rf"You{_APOSTROPHE}ve (?:hit|reached) your .*?limit(?:[^\n]*? at (?P<at>[^\n]{{3,60}}))?"),
    ),
    Rule(_AUTH, "billing", _BILLING, pattern=words("Quota exceeded")),
    Rule(_AUTH, "not_authenticated", _CODEX_LOGIN, pattern=words(r"unexpected status 40[13]\b|Not logged in")),
    Rule(_PERMANENT, "context_overflow", _SHORTER, pattern=words("Codex ran out of room in the model")),
    Rule(
        _PERMANENT,
        "model_not_found",
        _OTHER_MODEL,
        pattern=words("The model .* does not exist|The .* model is not supported"),
    ),
    Rule(
        _PERMANENT,
        "untrusted_folder",
        "leave --skip-git-repo-check in the command",
        pattern=words("Not inside a trusted directory"),
    ),
    Rule(_PERMANENT, "bad_settings", "correct codex's config.toml", pattern=words("Error loading config")),
    Rule(_TRANSIENT, "rate_limited", pattern=words("exceeded retry limit, last status: 429")),
    Rule(_TRANSIENT, "overloaded", pattern=words(rf"We{_APOSTROPHE}re currently experiencing high demand")),
    Rule(_TRANSIENT, "stream_cut", pattern=words("stream disconnected")),
)

# --- opencode and qwen: many model vendors, so many ways to say the same

_OWN_LOGIN = f"log in as the worker's user (opencode auth login) or set the key of its provider, {_RESUME}"
_NO_CREDIT = re.compile(
    "insufficient_quota|[Ii]nsufficient (?:credit|balance|funds)|exceeded your current quota|[Qq]uota exceeded"
)
_VENDOR_LONG = re.compile("maximum context length|context_length_exceeded|context window|prompt is too long")
_VENDOR_LIMIT = re.compile(r"usage limit|(?:daily|weekly|monthly) limit|[Ff]ree usage", re.I)
OPENCODE = (
    Rule(_PERMANENT, "context_overflow", _SHORTER, signs=_signs(error=["ContextOverflowError"])),
    Rule(_AUTH, "billing", _BILLING, signs=_signs(status=[402])),
    Rule(_AUTH, "billing", _BILLING, signs=_signs(status=[429, 403]), pattern=_NO_CREDIT),
    Rule(_AUTH, "not_authenticated", _OWN_LOGIN, signs=_signs(error=["ProviderAuthError"], status=[401, 403])),
    Rule(_LIMIT, "usage_limit", signs=_signs(status=[429]), pattern=_VENDOR_LIMIT),
    Rule(_TRANSIENT, "rate_limited", signs=_signs(status=[429])),
    Rule(_TRANSIENT, "overloaded", signs=_signs(status=[503, 529])),
    Rule(_TRANSIENT, "server_error", signs=_signs(status=range(500, 600))),
    Rule(_PERMANENT, "context_overflow", _SHORTER, signs=_signs(status=[400, 413]), pattern=_VENDOR_LONG),
    Rule(
        _PERMANENT,
        "model_not_found",
        _OTHER_MODEL,
        signs=_signs(error=["ProviderModelNotFoundError"], status=[404]),
    ),
    Rule(_PERMANENT, "invalid_request", signs=_signs(status=[400, 405, 413, 422])),
    _ENDED,
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, pattern=words("(?:Provider)?ModelNotFoundError|Model not found")),
    Rule(_PERMANENT, "bad_argument", _FIX_COMMAND, pattern=re.compile(r"^opencode run \[message", re.M)),
    Rule(_PERMANENT, "bad_session", pattern=words("Session not found")),
    Rule(
        _AUTH,
        "not_authenticated",
        _OWN_LOGIN,
        pattern=words(r"(?:Invalid|Incorrect|Missing) API key|Unauthorized|.{0,40}API key is missing"),
    ),
)

_QWEN_LOGIN = (
    f"set OPENAI_API_KEY, OPENAI_BASE_URL and --auth-type, or log in (qwen auth) as the worker's user, {_RESUME}"
)
QWEN = (
    Rule(_AUTH, "billing", _BILLING, signs=_signs(status=[402])),
    Rule(_AUTH, "billing", _BILLING, signs=_signs(status=[429, 403]), pattern=_NO_CREDIT),
    Rule(_AUTH, "not_authenticated", _QWEN_LOGIN, signs=_signs(status=[401, 403])),
    Rule(_LIMIT, "usage_limit", signs=_signs(status=[429]), pattern=_VENDOR_LIMIT),
    Rule(_TRANSIENT, "rate_limited", signs=_signs(status=[429])),
    Rule(_TRANSIENT, "overloaded", signs=_signs(status=[503, 529])),
    Rule(_TRANSIENT, "server_error", signs=_signs(status=range(500, 600))),
    Rule(_PERMANENT, "context_overflow", _SHORTER, signs=_signs(status=[400, 413]), pattern=_VENDOR_LONG),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, signs=_signs(status=[404])),
    Rule(_PERMANENT, "invalid_request", signs=_signs(status=[400, 405, 413, 422])),
    Rule(_PERMANENT, "max_turns", "allow more in the command", exit_codes=_codes(53)),
    Rule(_PERMANENT, "max_time", "allow more in the command", exit_codes=_codes(55)),
    _ENDED,
    Rule(_AUTH, "not_authenticated", _QWEN_LOGIN, pattern=words(r"No auth type is selected|\[API Error: 40[13]\b")),
    Rule(_AUTH, "not_authenticated", _QWEN_LOGIN, pattern=words("Missing API key|.{0,60}API key is required")),
    Rule(_PERMANENT, "bad_argument", _FIX_COMMAND, pattern=words(r"Unknown arguments?:|Not enough arguments")),
    Rule(_TRANSIENT, "no_output", pattern=words("Model stream ended with empty response")),
    Rule(_TRANSIENT, "stream_cut", pattern=words("Model stream ended without a finish reason")),
)

# --- cursor-agent: only a success has a final event; everything else is text on stderr

_CURSOR_LOGIN = f"log in as the worker's user (cursor-agent login) or set CURSOR_API_KEY, {_RESUME}"
CURSOR = (
    _ENDED,
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
        pattern=re.compile(rf"^.{{0,40}}?(?:You{_APOSTROPHE}ve (?:hit|reached) your .*limit)", re.M | re.I),
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
        pattern=words(r"Cannot use this model|There's an issue with the selected model"),
    ),
    Rule(_PERMANENT, "context_overflow", _SHORTER, pattern=_TOO_LONG_WORDS),
    *_API_ERROR_WORDS,
)

# --- agents of the Agent Client Protocol: each has its own way to tell (`acpfaults`), some give their API's words

_ACP_LOGIN = f"log in with the agent's own program, {_RESUME}"
_ACP_TOLD = _signs(told=["error", "turn"])
_ACP_LIMIT = words(
    rf"You{_APOSTROPHE}ve (?:hit|reached) your .*?limit(?:[^\n]*?(?: at|resets?) (?P<at>[^\n]{{3,60}}))?"
)
ACP = (
    Rule(_LIMIT, "usage_limit", signs=_ACP_TOLD, pattern=_ACP_LIMIT),
    Rule(_LIMIT, "usage_limit", signs=_signs(status=[429]), pattern=_QUOTA_AFTER),
    Rule(_LIMIT, "usage_limit", signs=_signs(status=[429]), pattern=_QUOTA_OF_DAY),
    Rule(_LIMIT, "usage_limit", signs=_signs(error=["usageLimitExceeded"])),
    Rule(_AUTH, "billing", _BILLING, signs=_signs(status=[429, 403]), pattern=_NO_CREDIT),
    Rule(_AUTH, "billing", _BILLING, signs=_ACP_TOLD, pattern=words("Credit balance is too low|Quota exceeded")),
    Rule(
        _AUTH,
        "billing",
        _BILLING,
        signs=_signs(
            status=[402], error=["billing", "billing_error", "insufficient_quota"], code=["insufficient_quota"]
        ),
    ),
    Rule(
        _AUTH,
        "not_authenticated",
        _ACP_LOGIN,
        signs=_signs(
            status=[401, 403],
            error=["authentication", "authentication_failed", "oauth_org_not_allowed", "permission", "unauthorized"],
            code=["invalid_api_key"],
        ),
    ),
    Rule(_AUTH, "not_authenticated", _ACP_LOGIN, signs=_signs(status=[400]), pattern=_BAD_KEY_WORDS),
    Rule(
        _PERMANENT,
        "context_overflow",
        _SHORTER,
        signs=_signs(error=["contextWindowExceeded"], code=["context_length_exceeded"]),
    ),
    Rule(_PERMANENT, "context_overflow", _SHORTER, signs=_ACP_TOLD, pattern=_VENDOR_LONG),
    Rule(_PERMANENT, "context_overflow", _SHORTER, signs=_ACP_TOLD, pattern=_GEMINI_LONG),
    Rule(_PERMANENT, "context_overflow", _SHORTER, signs=_ACP_TOLD, pattern=_TOO_LONG_WORDS),
    Rule(
        _PERMANENT,
        "model_not_found",
        _OTHER_MODEL,
        signs=_signs(error=["model_not_found"], code=["model_not_found"]),
    ),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, signs=_ACP_TOLD, pattern=_MODEL_WORDS),
    Rule(_PERMANENT, "budget_exceeded", signs=_signs(error=["sessionBudgetExceeded"])),
    Rule(
        _PERMANENT,
        "not_run",
        "begin the description with another word: a first word with a slash is a command of the agent's program",
        signs=_signs(turn=["not_run"]),
    ),
    Rule(_PERMANENT, "refused", signs=_signs(stop=["refusal"])),
    Rule(_PERMANENT, "max_tokens", signs=_signs(stop=["max_tokens"])),
    Rule(_PERMANENT, "max_turns", signs=_signs(stop=["max_turn_requests"])),
    Rule(_TRANSIENT, "unfinished", signs=_signs(stop=["cancelled"], unfinished=["tool"])),
    Rule(_TRANSIENT, "rate_limited", signs=_signs(status=[429], error=["rate_limit", "rateLimitExceeded"])),
    Rule(_TRANSIENT, "overloaded", signs=_signs(status=[529], error=["overloaded", "serverOverloaded"])),
    Rule(
        _TRANSIENT,
        "server_error",
        signs=_signs(status=range(500, 600), error=["server_error", "internalServerError"]),
    ),
    Rule(
        _PERMANENT,
        "invalid_request",
        signs=_signs(status=[400, 404, 405, 413, 422], error=["invalid_request", "badRequest", "not_found"]),
    ),
    Rule(_TRANSIENT, "server_error", signs=_signs(error=["api", "server"])),
    Rule(_TRANSIENT, "stream_cut", signs=_ACP_TOLD, pattern=words("stream disconnected")),
)
