"""Hooks: a foreign payload becomes a task by the file's rules, once and literally, and chooses not how it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.errors import SettingError
from watcher.intake.webhook.access import Refusal
from watcher.intake.webhook.payload_hooks import Hook, Unmapped, fill, load_hooks, parse_template
from watcher.intake.webhook.posts import from_hook

PAYLOAD: dict[str, Any] = {
    "action": "opened",
    "pull_request": {"number": 7, "title": "Add {{action}}", "labels": [{"name": "bug"}], "draft": False, "body": None},
    "repository": {"full_name": "org/repo"},
}
SECRET = "a secret of some length"
FULL = """
[hooks.github]
worker = "marie"
secret_env = "GITHUB_SECRET"
description = "Review {{pull_request.title}} ({{pull_request.labels.0.name}})"
agent_id = "{{repository.full_name}}"
priority = "high"
timeout = 60
events = ["pull_request"]
when = { action = ["opened", "reopened"], "pull_request.draft" = false }
[hooks.github.metadata]
number = "{{pull_request.number}}"
text = "no {{pull_request.number}}"
fixed = 3
"""


def load(tmp_path: Path, text: str, **environment: str) -> dict[str, Hook]:
    (tmp_path / "hooks.toml").write_text(text)
    return load_hooks(tmp_path / "hooks.toml", environment)


@pytest.fixture
def github(tmp_path: Path) -> Hook:
    return load(tmp_path, FULL, GITHUB_SECRET=SECRET)["github"]


def test_a_payload_becomes_the_task_that_the_file_describes(github: Hook) -> None:
    assert github.task(PAYLOAD) == {
        "description": "Review Add {{action}} (bug)",  # what came from the payload is not filled again
        "agent_id": "org/repo",
        "priority": "high",
        "timeout": 60,
        "metadata": {"number": 7, "text": "no 7", "fixed": 3},
    }
    assert github.secret == SECRET.encode()


@pytest.mark.parametrize(
    ("change", "event", "is_ignored"),
    [
        ({}, "pull_request", False),
        ({"action": "reopened"}, "pull_request", False),
        ({"action": "closed"}, "pull_request", True),
        ({"pull_request": {**PAYLOAD["pull_request"], "draft": True}}, "pull_request", True),
        ({"pull_request": {**PAYLOAD["pull_request"], "draft": 0}}, "pull_request", True),  # 0 is not false
        ({}, "ping", True),
        ({}, None, True),
    ],
)
def test_only_events_and_values_that_are_named_make_tasks(
    github: Hook, change: dict[str, Any], event: str | None, is_ignored: bool
) -> None:
    assert (github.ignores({**PAYLOAD, **change}, event) is not None) is is_ignored


def test_what_is_missing_is_named_unless_it_may_be(github: Hook) -> None:
    with pytest.raises(Unmapped, match=r"pull_request\.title"):
        github.task({"repository": {"full_name": "x"}})
    assert fill(parse_template("a{{pull_request.body?}}b{{nothing.at.all?}}c"), PAYLOAD) == "abc"
    with pytest.raises(Unmapped, match=r"pull_request\.body"):
        fill(parse_template("{{pull_request.body}}"), PAYLOAD)


def test_the_same_delivery_has_the_same_id_and_another_one_has_another(github: Hook) -> None:
    def task_id(**headers: str) -> str:
        return from_hook(github, PAYLOAD, b"{}", headers, 10_000).task_id

    first = task_id(**{"X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958"})
    assert first == task_id(**{"X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958"})
    assert first != task_id(**{"X-GitHub-Delivery": "../../../etc/passwd"})
    assert "/" not in task_id(**{"X-GitHub-Delivery": "../../../etc/passwd"})
    assert task_id() != task_id()  # nothing names it, so nothing makes it the same


def test_id_is_taken_from_the_signed_payload_when_the_file_says_so(tmp_path: Path) -> None:
    hook = load(tmp_path, '[hooks.a]\nworker="w"\ndescription="d"\nid="pull_request.number"\n')["a"]
    one = from_hook(hook, PAYLOAD, b"1", {"X-GitHub-Delivery": "1"}, 10_000)
    two = from_hook(hook, PAYLOAD, b"2", {"X-GitHub-Delivery": "2"}, 10_000)
    assert one.task_id == two.task_id
    with pytest.raises(Refusal) as refused:
        from_hook(hook, {}, b"", {}, 10_000)
    assert refused.value.status == 422


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "not valid TOML"),
        ("a = 1", "nothing else"),
        ('[hooks."a/b"]\nworker="w"\ndescription="d"', "letters, digits"),
        ("[hooks.a]\ndescription='d'", "worker"),
        ("[hooks.a]\nworker='../x'\ndescription='d'", "worker"),
        ("[hooks.a]\nworker='w'", "description"),
        ("[hooks.a]\nworker='w'\ndescription='{{ }}'", "no path"),
        ("[hooks.a]\nworker='w'\ndescription='{{a'", "without its"),
        ("[hooks.a]\nworker='w'\ndescription='d'\nsecret='abc'", "there is no secret"),
        ("[hooks.a]\nworker='w'\ndescription='d'\nsecret_env='UNSET'", "UNSET"),
        ("[hooks.a]\nworker='w'\ndescription='d'\nsecret_env='SHORT'", "16 characters"),
        ("[hooks.a]\nworker='w'\ndescription='d'\nsecret_file='none'", "cannot be read"),
        ("[hooks.a]\nworker='w'\ndescription='d'\ntimeout='long'", "timeout"),
        ("[hooks.a]\nworker='w'\ndescription='d'\ncwd='{{a}}'", "cwd"),
        ("[hooks.a]\nworker='w'\ndescription='d'\nwhen={a=[]}", "when"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as refused:
        load(tmp_path, text, SHORT="abcdefg")
    assert "abcdefg" not in str(refused.value)


def test_a_secret_may_lie_in_a_file_beside_the_hooks(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    hook = load(tmp_path, "[hooks.a]\nworker='w'\ndescription='d'\nsecret_file='secret'")["a"]
    assert hook.secret == SECRET.encode()
    assert SECRET not in repr(hook)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(payload=_JSON | st.fixed_dictionaries({"pull_request": _JSON, "repository": _JSON}))
def test_any_payload_gives_a_task_or_a_clear_refusal(payload: Any) -> None:
    hook = Hook(
        name="a", worker="w", secret=None, description=parse_template("x {{pull_request.title?}}{{repository?}}"),
        texts={"agent_id": parse_template("{{pull_request?}}")}, metadata={"m": parse_template("{{repository?}}")},
    )  # fmt: skip
    try:
        made = from_hook(hook, payload, b"", {}, 1 << 20)
    except Refusal as refusal:
        assert refusal.status in (413, 422)
    else:
        assert made.worker == "w"
