"""List how each built-in agent CLI fails: rules for `judging`, as data.

Signs, exit codes and texts were recorded from claude 2.1.330, gemini 0.61.0, codex 0.169.0, opencode 1.18.33, qwen
0.15.10 and 0.24.4 against a stub of their APIs (tests/data/providers holds what they printed); those of cursor-agent
are from its documentation (https://cursor.com/docs/cli/headless): it is in no package registry, what is called so there
is something else.

Words are bound to the whole true line, and to the places where that CLI writes it (`words`): what its tools, hooks and
test runs print must fit none of them. Where it gives a second sign, that is demanded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from watcher.policy.after_attempt import Failure
from watcher.runner.providers.early_stops import CURES
from watcher.runner.providers.provider import REFUSES_ROOT, Rule, Where

_AUTH, _LIMIT, _PERMANENT, _TRANSIENT = Failure.AUTH, Failure.LIMIT, Failure.PERMANENT, Failure.TRANSIENT

#: Judging puts the name in: a described provider may have the rules of a built-in one.
_RESUME = "then `watcher resume --provider {provider}`"
_SHORTER = "make the description shorter, or let the agent read files instead of quoting them"
_OTHER_MODEL = "name another model in the task, or none"
_FIX_COMMAND = "this version does not know an argument: update it, or change the command in the settings"
_BILLING = f"add credit or change the key, {_RESUME}"
_APOSTROPHE = "['\N{RIGHT SINGLE QUOTATION MARK}]"


def own(pattern: str) -> re.Pattern[str]:
    """Words that stand at the start of a line."""
    return re.compile(rf"^(?:{pattern})", re.M)


def _codes(*codes: int) -> frozenset[int]:
    return frozenset(codes)


def _signs(**values: Iterable[object]) -> frozenset[str]:
    return frozenset(f"{kind}:{value}" for kind, some in values.items() for value in some)


_TRUNCATED = ("max_tokens", "max_output_tokens", "model_context_window_exceeded")
#: The exit code of a program that a signal ended, as a shell and node write it.
_ENDED = Rule(_TRANSIENT, "killed_by_signal", exit_codes=_codes(129, 130, 131, 134, 137, 139, 143))

# --- claude

_CLAUDE_LOGIN = f"log in as the worker's user (claude, then /login) or set ANTHROPIC_API_KEY, {_RESUME}"
_EVENT: tuple[Where, ...] = ("event",)
#: Claude tells its failures in its final event; in text mode the same words are all that it prints.
_SAID: tuple[Where, ...] = ("event", "answer")
_LIMIT_WORDS = own(
    rf"(?:You{_APOSTROPHE}ve (?:hit|reached) your (?:[\w-]+ ){{0,3}}limit|(?:5-hour|Weekly|Opus weekly) limit reached)"
    r"(?: [·∙] resets? (?P<at>[^\n]{3,60})|\.?(?: Run /[\w-]+[^\n]*)?)$"
    r"|Claude (?:AI |Code )?usage limit reached(?:\|(?P<epoch>\d{9,13}))?\.?$"
)
_TOO_LONG_WORDS = own(r"Prompt is too long(?: · [^\n]*)?$")
_MODEL_WORDS = own(r"There's an issue with the selected model \([^\n]*\)\.[^\n]*$")
_LOGIN_WORDS = own(
    r"(?:Not logged in|OAuth token (?:revoked|has expired)|Invalid API key)"
    r" · (?:Please run /login|Fix external API key)$"
    r"|(?:Failed to authenticate\. |Please run /login · )API Error: 40[13]\b[^\n]*$"
)
_TOO_MANY = _signs(error=["rate_limit"], status=[429])
_REFUSED = _signs(error=["invalid_request"], status=[400, 404, 405, 413, 422])
CLAUDE = (
    Rule(_LIMIT, "usage_limit", signs=_signs(limit=["rejected"])),
    Rule(_LIMIT, "usage_limit", signs=_TOO_MANY, pattern=_LIMIT_WORDS, where=_EVENT),
    Rule(_AUTH, "billing", _BILLING, signs=_signs(error=["billing_error"], status=[402])),
    Rule(
        _AUTH,
        "not_authenticated",
        _CLAUDE_LOGIN,
        signs=_signs(error=["authentication_failed", "oauth_org_not_allowed"], status=[401, 403]),
    ),
    Rule(_PERMANENT, "context_overflow", _SHORTER, signs=_signs(terminal=["prompt_too_long"])),
    Rule(_PERMANENT, "context_overflow", _SHORTER, signs=_REFUSED, pattern=_TOO_LONG_WORDS, where=_EVENT),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, signs=_signs(error=["model_not_found"])),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, signs=_REFUSED, pattern=_MODEL_WORDS, where=_EVENT),
    Rule(_PERMANENT, "max_turns", "allow more in the command", signs=_signs(subtype=["error_max_turns"])),
    Rule(_PERMANENT, "truncated", CURES["truncated"], signs=_signs(error=["max_output_tokens"], ended=_TRUNCATED)),
    Rule(_PERMANENT, "refused", CURES["refused"], signs=_signs(ended=["refusal"])),
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
        pattern=own(r"(?P<argument>--[\w-]+) cannot be used with root/sudo privileges for security reasons$"),
        where=("start",),
    ),
    Rule(
        _PERMANENT,
        "bad_argument",
        _FIX_COMMAND,
        pattern=own(
            r"error: (?:unknown option|option) '(?P<argument>--?[\w-]+)[^\n]*$"
            r"|Error: When using --print, --output-format=stream-json requires --verbose$"
        ),
        where=("start",),
    ),
    Rule(
        _PERMANENT,
        "bad_session",
        pattern=own(
            r"(?:Error: Session ID|No conversation found with session ID:) (?P<argument>[\w-]+)"
            r"(?: is already in use\.)?$"
        ),
        where=("start",),
    ),
    Rule(_LIMIT, "usage_limit", pattern=_LIMIT_WORDS, where=_SAID),
    Rule(_PERMANENT, "context_overflow", _SHORTER, pattern=_TOO_LONG_WORDS, where=_SAID),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, pattern=_MODEL_WORDS, where=_SAID),
    Rule(_AUTH, "billing", _BILLING, pattern=own("Credit balance is too low$"), where=_SAID),
    Rule(_AUTH, "not_authenticated", _CLAUDE_LOGIN, pattern=_LOGIN_WORDS, where=_SAID),
    Rule(_PERMANENT, "invalid_request", pattern=own(r"API Error: 4(?:00|04|13|22) [^\n]*$"), where=_SAID),
    Rule(
        _TRANSIENT,
        "rate_limited",
        pattern=own(r"API Error: (?:Request rejected \(429\)|429\b)[^\n]*$"),
        where=_SAID,
    ),
    Rule(_TRANSIENT, "overloaded", pattern=own(r"API Error: 529\b[^\n]*$"), where=_SAID),
    Rule(_TRANSIENT, "server_error", pattern=own(r"API Error: 5\d\d\b[^\n]*$"), where=_SAID),
)

# --- gemini: the exit code of a failed API call is the HTTP status modulo 256

_GEMINI_LOGIN = f"log in as the worker's user (gemini) or set GEMINI_API_KEY, {_RESUME}"
_GEMINI_SLOW = "gemini tries again for minutes first; general.maxAttempts in its settings.json says how often"
_REPORTED = r"Error when talking to Gemini API Full report available at: \S+ "
#: What stands before its own words: in an event, on stderr, in the JSON object that `-o json` writes there.
_GEMINI_SAYS = rf'(?:\[API Error: |{_REPORTED}\w+: |\s*"message": ")?'
_SAID_BY_GEMINI: tuple[Where, ...] = ("event", "stderr")
_BAD_KEY_WORDS = own(_GEMINI_SAYS + r"API key not valid\. Please pass a valid API key\.")
_QUOTA_WORDS = own(
    _GEMINI_SAYS + r"You have exhausted your (?:daily quota|capacity) on this model\."
    r"(?: Your quota will reset after (?P<after>[\d.]+[dhms](?:[\d.]+[dhms])*)\b)?"
)
_NO_MODEL_WORDS = own(_REPORTED + "ModelNotFoundError: ")
_GEMINI_LONG = own(
    _GEMINI_SAYS + r"The input token count(?: \(\d+\))? exceeds the maximum number of tokens allowed(?: \(\d+\))?\."
)
_FAILED_CALL = _signs(error=["api"])
GEMINI = (
    Rule(
        _LIMIT,
        "usage_limit",
        exit_codes=_codes(429 % 256),
        pattern=_QUOTA_WORDS,
        where=_SAID_BY_GEMINI,
    ),
    Rule(_TRANSIENT, "rate_limited", _GEMINI_SLOW, exit_codes=_codes(429 % 256)),
    Rule(_AUTH, "not_authenticated", _GEMINI_LOGIN, exit_codes=_codes(41, 401 % 256, 403 % 256)),
    Rule(
        _AUTH,
        "not_authenticated",
        _GEMINI_LOGIN,
        exit_codes=_codes(400 % 256),
        pattern=_BAD_KEY_WORDS,
        where=_SAID_BY_GEMINI,
    ),
    Rule(
        _PERMANENT,
        "untrusted_folder",
        "trust the task's cwd, or leave --skip-trust in the command",
        exit_codes=_codes(55),
    ),
    Rule(_PERMANENT, "max_turns", "allow more turns in gemini's settings", exit_codes=_codes(53)),
    Rule(_PERMANENT, "bad_settings", "gemini cannot use its settings or sandbox", exit_codes=_codes(44, 52)),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, exit_codes=_codes(404 % 256)),
    Rule(
        _PERMANENT,
        "model_not_found",
        _OTHER_MODEL,
        signs=_FAILED_CALL,
        pattern=_NO_MODEL_WORDS,
        where=("stderr",),
    ),
    Rule(
        _PERMANENT,
        "context_overflow",
        _SHORTER,
        exit_codes=_codes(400 % 256),
        pattern=_GEMINI_LONG,
        where=_SAID_BY_GEMINI,
    ),
    Rule(_PERMANENT, "invalid_request", exit_codes=_codes(42, 400 % 256)),
    Rule(_TRANSIENT, "overloaded", exit_codes=_codes(503 % 256, 529 % 256)),
    Rule(_TRANSIENT, "server_error", exit_codes=_codes(500 % 256, 502 % 256, 504 % 256)),
    Rule(_LIMIT, "usage_limit", pattern=_QUOTA_WORDS, where=_EVENT),
    # In text mode a failed call may exit with 1, and only its report on stderr tells which.
    Rule(_LIMIT, "usage_limit", pattern=own(f"{_REPORTED}TerminalQuotaError: "), where=("stderr",)),
    Rule(
        _AUTH,
        "not_authenticated",
        _GEMINI_LOGIN,
        pattern=own(_REPORTED + r'_?ApiError: \{"error":\{"code":40[13]\b'),
        where=("stderr",),
    ),
    Rule(_AUTH, "not_authenticated", _GEMINI_LOGIN, pattern=_BAD_KEY_WORDS, where=_EVENT),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, pattern=_NO_MODEL_WORDS, where=("stderr",)),
    Rule(_PERMANENT, "context_overflow", _SHORTER, pattern=_GEMINI_LONG, where=_EVENT),
    Rule(
        _PERMANENT,
        "bad_argument",
        _FIX_COMMAND,
        pattern=own(r"Unknown arguments?: (?P<argument>[\w-]+)[^\n]*\nUsage: gemini \[options\]"),
        where=("start",),
    ),
    Rule(_TRANSIENT, "no_output", pattern=own("The model returned an empty response"), where=_EVENT),
    Rule(_TRANSIENT, "stream_cut", pattern=own("Model stream ended without a finish reason"), where=_EVENT),
)

# --- codex

_CODEX_LOGIN = f"log in as the worker's user (codex login) or set CODEX_API_KEY, {_RESUME}"
#: What stands before its own words as plain text, the last line of its stderr then.
_CODEX_SAYS = "(?:ERROR: )?"
_SAID_BY_CODEX: tuple[Where, ...] = ("event", "last")
CODEX = (
    Rule(_PERMANENT, "truncated", CURES["truncated"], signs=_signs(ended=_TRUNCATED)),
    Rule(_PERMANENT, "refused", CURES["refused"], signs=_signs(ended=["content_filter"])),
    Rule(_AUTH, "billing", _BILLING, signs=_signs(status=[402])),
    Rule(_AUTH, "not_authenticated", _CODEX_LOGIN, signs=_signs(status=[401, 403])),
    Rule(_TRANSIENT, "rate_limited", signs=_signs(status=[429])),
    Rule(_TRANSIENT, "server_error", signs=_signs(status=range(500, 600))),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, signs=_signs(status=[404])),
    Rule(_PERMANENT, "invalid_request", signs=_signs(error=["invalid_request"], status=[400, 413, 422])),
    Rule(
        _PERMANENT,
        "bad_argument",
        _FIX_COMMAND,
        exit_codes=_codes(2),
        pattern=own(r"error: [^\n]+$(?=(?s:.)*^Usage: codex )"),
        where=("start",),
    ),
    _ENDED,
    Rule(
        _LIMIT,
        "usage_limit",
        pattern=own(
            _CODEX_SAYS + rf"You{_APOSTROPHE}ve (?:hit|reached) your (?:[\w-]+ ){{0,3}}limit(?: for [\w .-]+)?\."
            r"(?:[^\n]*?\b[Tt]ry again (?:at (?P<today>[^\n]{3,60})|later\.?)|[^\n]*)$"
        ),
        where=_SAID_BY_CODEX,
    ),
    Rule(
        _AUTH,
        "billing",
        _BILLING,
        pattern=own(_CODEX_SAYS + r"Quota exceeded\. Check your plan and billing details\.$"),
        where=_SAID_BY_CODEX,
    ),
    Rule(
        _AUTH,
        "not_authenticated",
        _CODEX_LOGIN,
        pattern=own(_CODEX_SAYS + r"unexpected status 40[13] [^\n]*, url: [^\n]+$"),
        where=_SAID_BY_CODEX,
    ),
    Rule(
        _PERMANENT,
        "context_overflow",
        _SHORTER,
        pattern=own(r"Codex ran out of room in the model's context window\."),
        where=_EVENT,
    ),
    Rule(
        _PERMANENT,
        "model_not_found",
        _OTHER_MODEL,
        pattern=own(r"The model \S+ does not exist\b|The \S+ model is not supported\b"),
        where=_EVENT,
    ),
    Rule(
        _PERMANENT,
        "untrusted_folder",
        "leave --skip-git-repo-check in the command",
        pattern=own(r"Not inside a trusted directory and --skip-git-repo-check was not specified\.$"),
        where=("start",),
    ),
    Rule(
        _PERMANENT,
        "bad_settings",
        "correct codex's config.toml",
        pattern=own(r"Error loading config(?:uration|\.toml): [^\n]+$"),
        where=("start",),
    ),
    Rule(
        _TRANSIENT,
        "rate_limited",
        pattern=own(_CODEX_SAYS + "exceeded retry limit, last status: 429"),
        where=_SAID_BY_CODEX,
    ),
    Rule(
        _TRANSIENT,
        "overloaded",
        pattern=own(_CODEX_SAYS + rf"We{_APOSTROPHE}re currently experiencing high demand"),
        where=_SAID_BY_CODEX,
    ),
    Rule(_TRANSIENT, "stream_cut", pattern=own(_CODEX_SAYS + "stream disconnected"), where=_SAID_BY_CODEX),
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
    Rule(_AUTH, "billing", _BILLING, signs=_signs(status=[429, 403]), pattern=_NO_CREDIT, where=_EVENT),
    Rule(_AUTH, "not_authenticated", _OWN_LOGIN, signs=_signs(error=["ProviderAuthError"], status=[401, 403])),
    Rule(_LIMIT, "usage_limit", signs=_signs(status=[429]), pattern=_VENDOR_LIMIT, where=_EVENT),
    Rule(_TRANSIENT, "rate_limited", signs=_signs(status=[429])),
    Rule(_TRANSIENT, "overloaded", signs=_signs(status=[503, 529])),
    Rule(_TRANSIENT, "server_error", signs=_signs(status=range(500, 600))),
    Rule(_PERMANENT, "context_overflow", _SHORTER, signs=_signs(status=[400, 413]), pattern=_VENDOR_LONG, where=_EVENT),
    Rule(
        _PERMANENT,
        "model_not_found",
        _OTHER_MODEL,
        signs=_signs(error=["ProviderModelNotFoundError"], status=[404]),
    ),
    Rule(_PERMANENT, "invalid_request", signs=_signs(status=[400, 405, 413, 422])),
    _ENDED,
    Rule(
        _PERMANENT,
        "bad_argument",
        _FIX_COMMAND,
        pattern=re.compile(r"\Aopencode run \[message\.\.\]\n\nrun opencode with a message$", re.M),
        where=("start",),
    ),
)

_QWEN_LOGIN = (
    f"set OPENAI_API_KEY, OPENAI_BASE_URL and --auth-type, or log in (qwen auth) as the worker's user, {_RESUME}"
)
QWEN = (
    Rule(_AUTH, "billing", _BILLING, signs=_signs(status=[402])),
    Rule(_AUTH, "billing", _BILLING, signs=_signs(status=[429, 403]), pattern=_NO_CREDIT, where=_EVENT),
    Rule(_AUTH, "not_authenticated", _QWEN_LOGIN, signs=_signs(status=[401, 403])),
    Rule(_LIMIT, "usage_limit", signs=_signs(status=[429]), pattern=_VENDOR_LIMIT, where=_EVENT),
    Rule(_TRANSIENT, "rate_limited", signs=_signs(status=[429])),
    Rule(_TRANSIENT, "overloaded", signs=_signs(status=[503, 529])),
    Rule(_TRANSIENT, "server_error", signs=_signs(status=range(500, 600))),
    Rule(_PERMANENT, "context_overflow", _SHORTER, signs=_signs(status=[400, 413]), pattern=_VENDOR_LONG, where=_EVENT),
    Rule(_PERMANENT, "model_not_found", _OTHER_MODEL, signs=_signs(status=[404])),
    Rule(_PERMANENT, "invalid_request", signs=_signs(status=[400, 405, 413, 422])),
    Rule(_PERMANENT, "max_turns", "allow more in the command", exit_codes=_codes(53)),
    Rule(_PERMANENT, "max_time", "allow more in the command", exit_codes=_codes(55)),
    _ENDED,
    Rule(
        _PERMANENT,
        "context_overflow",
        _SHORTER,
        pattern=own("Context is too large to send safely after automatic compression"),
        where=_EVENT,
    ),
    Rule(
        _AUTH,
        "not_authenticated",
        _QWEN_LOGIN,
        pattern=own(
            r"No auth type is selected\. Please configure an auth type\b[^\n]*$|\[API Error: 40[13] [^\n]*\]$"
            r"|Missing API key for [^\n]{1,60} auth\.[^\n]*$"
        ),
        where=("event", "last"),
    ),
    Rule(
        _PERMANENT,
        "bad_argument",
        _FIX_COMMAND,
        pattern=own(r"Unknown arguments?: (?P<argument>[\w-]+)[^\n]*\nUsage: qwen \[options\]"),
        where=("start",),
    ),
    Rule(_TRANSIENT, "no_output", pattern=own("Model stream ended with empty response"), where=_EVENT),
    Rule(_TRANSIENT, "stream_cut", pattern=own("Model stream ended without a finish reason"), where=_EVENT),
)

# --- cursor-agent: only a success has a final event; everything else is text on stderr

_CURSOR_LOGIN = f"log in as the worker's user (cursor-agent login) or set CURSOR_API_KEY, {_RESUME}"
CURSOR = (
    _ENDED,
    Rule(
        _AUTH,
        "not_authenticated",
        _CURSOR_LOGIN,
        pattern=own(
            r"(?:Error: )?(?:Authentication required|Not authenticated|Not logged in)\. "
            r"[^\n]*\b(?:cursor-)?agent login\b"
            r"|(?:\S )?(?:Error|Warning): The provided API key is invalid\."
        ),
        where=("last",),
    ),
    Rule(
        _LIMIT,
        "usage_limit",
        pattern=own(
            rf"(?:(?:ActionRequiredError|Error|\w): )?You{_APOSTROPHE}ve hit your usage limit"
            r"(?: for [\w .-]+)?(?:\. [^\n]*|\.?)$"
        ),
        where=("last",),
    ),
    Rule(
        _PERMANENT,
        "untrusted_folder",
        "leave --trust in the command",
        pattern=own(r"Workspace Trust Required\b[^\n]*--trust\b"),
        where=("start",),
    ),
    Rule(
        _PERMANENT,
        "bad_argument",
        _FIX_COMMAND,
        pattern=own(r"error: unknown option '(?P<argument>--?[\w-]+)[^\n]*$"),
        where=("start",),
    ),
    Rule(
        _PERMANENT,
        "model_not_found",
        _OTHER_MODEL,
        pattern=own(r"Cannot use this model: \S+\. Available models: "),
        where=("start",),
    ),
)

# --- agents of the Agent Client Protocol: each has its own way to tell (`faults`), some give their API's words

_ACP_LOGIN = f"log in with the agent's own program, {_RESUME}"
_ACP_TOLD = _signs(told=["error", "turn"])
_ACP_LIMIT = own(rf"You{_APOSTROPHE}ve (?:hit|reached) your .*?limit(?:[^\n]*?(?: at|resets?) (?P<at>[^\n]{{3,60}}))?")
ACP = (
    Rule(_LIMIT, "usage_limit", signs=_ACP_TOLD, pattern=_ACP_LIMIT),
    Rule(_LIMIT, "usage_limit", signs=_signs(status=[429]), pattern=_QUOTA_WORDS),
    Rule(_LIMIT, "usage_limit", signs=_signs(error=["usageLimitExceeded"])),
    Rule(_AUTH, "billing", _BILLING, signs=_signs(status=[429, 403]), pattern=_NO_CREDIT),
    Rule(_AUTH, "billing", _BILLING, signs=_ACP_TOLD, pattern=own("Credit balance is too low|Quota exceeded")),
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
    Rule(_TRANSIENT, "stream_cut", signs=_ACP_TOLD, pattern=own("stream disconnected")),
)
