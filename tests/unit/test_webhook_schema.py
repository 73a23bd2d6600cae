"""The OpenAPI description says what the endpoint does: the same tasks are good by it and by the code."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
from hypothesis import given
from hypothesis import strategies as st

from watcher.intake.webhook.access import Refusal
from watcher.intake.webhook.openapi import openapi, page
from watcher.intake.webhook.posts import from_task, parse

DESCRIPTION = openapi(("marie", "anga"))
TASK = jsonschema.Draft202012Validator(DESCRIPTION | {"$ref": "#/components/schemas/Task"})

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_WORDS = ["marie", "anga", "x/y", "a", "/tmp", "high", " ", "", "2026-11-22T00:00:00Z", 0, 7.0, 7.5, -1, 1e300]
_VALUES = (
    st.none()
    | st.booleans()
    | st.sampled_from(_WORDS)
    | st.integers(-2000, 3_000_000)
    | _TEXT
    | st.lists(st.sampled_from(["a", "b/c", "", 3]), max_size=3)
    | st.dictionaries(_TEXT, st.integers())
)
_OPTIONAL = {*DESCRIPTION["components"]["schemas"]["Task"]["properties"], "unknown"} - {"worker", "description"}
_FIELDS = st.fixed_dictionaries(
    {"worker": st.sampled_from(["marie", "anga"]), "description": st.just("x") | _VALUES},
    optional=dict.fromkeys(sorted(_OPTIONAL), _VALUES),
)


@given(_FIELDS)
def test_what_the_description_allows_is_taken_and_nothing_else(fields: dict[str, Any]) -> None:
    raw = json.dumps(fields).encode()  # as it comes over the wire
    try:
        from_task(parse(raw), None, 1 << 20)
        is_taken = True
    except Refusal as refusal:
        assert refusal.status == (400 if b"\\u0000" in raw else 422)
        is_taken = False
    # What a moment is, the schema says by a format, which validators look at or not.
    if "not_before" not in fields:
        assert is_taken is TASK.is_valid(fields)


_ANY = st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(st.binary(max_size=60) | _ANY)
def test_any_body_is_taken_or_refused(body: Any) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        from_task(parse(raw), None, 1000)
    except Refusal as refusal:
        assert refusal.status in (400, 413, 422)


def test_description_is_whole_and_its_page_needs_no_other_server() -> None:
    text = json.dumps(DESCRIPTION)
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in DESCRIPTION["components"]["schemas"]
    for schema in DESCRIPTION["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    shown = page(DESCRIPTION)
    assert all(path in shown for path in DESCRIPTION["paths"])
    assert not re.findall(r"<script|https?://", shown)
