"""Say what to do about a failure, by its reason, unless its provider has a cure of its own.

Pure data. `{provider}` stands for the provider's name.
"""

from __future__ import annotations

from collections.abc import Mapping

CURES: Mapping[str, str] = {
    "bad_argument": "this version does not know an argument: update it, or change the command in the settings",
    "billing": "add credit or change the key, then `watcher resume --provider {provider}`",
    "context_overflow": "make the description shorter, or let the agent read files instead of quoting them",
    "denied": "allow them in the command or in the agent's settings, or set denials_are_fine for the provider",
    "model_not_found": "name another model in the task, or none",
    "not_run": "begin the description with another word: a first word with a slash is a command of the agent's program",
    "refused": "say the task in other words, or name another model",
    "refuses_root": "run the worker as another user or, in a container made for it, set IS_SANDBOX=1",
    "truncated": "ask for less in one answer, or raise the longest answer in the agent's settings",
    "unfinished": "let the task wait for what it starts, or end it, before it answers",
}
