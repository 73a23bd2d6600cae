"""The wire format: what is read and what never is, what is written, and the schemas that say so."""

from __future__ import annotations

import json
import math
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.schemacheck import fits
from watcher.clock import parse_rfc3339, rfc3339
from watcher.errors import InvalidTask
from watcher.formats import dead_letter, heartbeat, result, strict_json, task
from watcher.formats import receipt_and_notice as notice
from watcher.formats.dead_letter import DeadLetter
from watcher.formats.fields import (
    Choice,
    FieldError,
    Flag,
    Kind,
    ListOf,
    Moment,
    Number,
    Object,
    Optional,
    Text,
)
from watcher.formats.heartbeat import ActiveTask, Heartbeat, Stats, parse_heartbeat
from watcher.formats.receipt_and_notice import Receipt
from watcher.formats.result import HEAD_BYTES, Result, Usage, parse_result, status_in_head
from watcher.formats.schemas import all_schemas
from watcher.formats.strict_json import MAX_DEPTH, NotStrictJson
from watcher.formats.task import parse_task, task_from_fields

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "tests" / "data" / "v1"
SHA = "4fa5401b1e6db6a21d497bdc616038b2aaf6a3c6164c856fe3718958ffea67e1"

# --- files of version 1 must load for ever


def example(name: str) -> bytes:
    return (EXAMPLES / f"{name}.json").read_bytes()


def test_task_of_version_1_loads() -> None:
    loaded = parse_task(example("task"), "task", "marie")
    assert loaded.description == "Summarise {{anga/collect.stdout}} in three lines. Grüße, 日本 🙂"
    assert (loaded.timeout, loaded.priority, loaded.max_retries) == (90.5, 50, 0)
    assert loaded.dependencies == ("collect-2", "anga/collect")
    assert loaded.metadata == {"ticket": 17, "tags": ["a", "b"], "nested": {"ok": True, "none": None}}
    assert (loaded.agent_id, loaded.batch_id, loaded.cwd) == ("writer", "batch-7", "/srv/project")
    assert (loaded.provider, loaded.model) == ("claude", "claude-sonnet-4-5")
    assert loaded.not_before == parse_rfc3339("2026-11-21T22:33:00Z")
    assert loaded.submitted["x_team"] == "field of somebody else" and loaded.unknown_fields() == []


def test_smallest_task_of_version_1_loads() -> None:
    loaded = parse_task(example("task-smallest"), "task-smallest", "anga")
    assert (loaded.task_id, loaded.worker, loaded.description) == ("task-smallest", "anga", "List files")
    assert (loaded.priority, loaded.dependencies, loaded.timeout, loaded.max_retries) == (0, (), None, None)


def test_result_of_version_1_loads() -> None:
    loaded = parse_result(example("result"))
    assert (loaded["status"], loaded["exit_code"], loaded["retry_count"]) == ("timeout", -15, 3)
    assert loaded["usage"] == {"input_tokens": 1200, "output_tokens": 340, "cost_usd": 0.0123}
    assert status_in_head(example("result")[:HEAD_BYTES]) == "timeout"


def test_heartbeat_of_version_1_loads() -> None:
    loaded = parse_heartbeat(example("heartbeat"))
    assert (loaded["worker"], loaded["status"], loaded["sequence"]) == ("marie", "held", 8640)
    assert loaded["stats"] == {"tasks_processed": 100, "tasks_failed": 3, "tasks_retried": 7, "tasks_dlq": 4}


def test_dead_letter_of_version_1_loads_and_gives_the_task_back() -> None:
    letter = strict_json.loads(example("dead_letter"))
    submitted = {name: value for name, value in letter.items() if name not in dead_letter.FIELDS}
    again = task_from_fields(submitted, letter["task_id"], letter["worker"])
    assert again.description == "Summarise the week" and again.priority == -50
    assert again.submitted["x_team"] == "field of somebody else"
    assert parse_result(strict_json.dumps(letter["dlq_result"]))["status"] == "failed"


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("task", "task"), ("task-smallest", "task"), ("result", "result"), ("heartbeat", "heartbeat"),
        ("dead_letter", "dead-letter"), ("dead_letter-no-task", "dead-letter"), ("receipt", "receipt"),
    ],
)  # fmt: skip
def test_file_of_version_1_fits_the_schema_and_a_broken_one_does_not(name: str, schema: str) -> None:
    value = strict_json.loads(example(name))
    published = all_schemas()[schema]
    assert fits(published, value)
    assert fits(published, value | {"a_field_of_tomorrow": 1})
    for required in published["required"]:
        assert not fits(published, {n: v for n, v in value.items() if n != required}), required


def test_every_format_has_a_file_of_version_1_that_shows_all_its_fields() -> None:
    shown = {
        "task": ["task"], "result": ["result", "result-submitted"], "heartbeat": ["heartbeat"], "receipt": ["receipt"],
        "dead-letter": ["dead_letter", "dead_letter-no-task"],
    }  # fmt: skip
    for schema, names in shown.items():
        fields = set().union(*(strict_json.loads(example(name)) for name in names))
        assert set(all_schemas()[schema]["properties"]) - fields <= {"stderr_path", "fence"}, schema


def test_published_schemas_are_those_of_the_code() -> None:
    published = {
        path.name.removesuffix(".schema.json"): json.loads(path.read_text())
        for path in (REPOSITORY / "docs" / "schemas").glob("*.json")
    }
    assert published == json.loads(json.dumps(all_schemas())), "run python -m watcher.formats.schemas"


def test_schemas_are_valid_json_schema_by_an_independent_judge() -> None:
    judge = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    for schema in all_schemas().values():
        judge.Draft202012Validator.check_schema(schema)


# --- what is written today


def written() -> dict[str, bytes]:
    """One record of each format as the code writes it."""
    ended = Result(
        task_id="a", worker="marie", status="failed", exit_code=1, stdout="out", stderr="err", duration_seconds=1.5,
        finished_at=1_800_000_000.5, started_at=1_799_999_999.0, retry_count=3, attempts=4, task_sha256=SHA,
        reason="max_retries_exceeded", detail="why", provider="claude",
        usage=Usage(
            input_tokens=1, output_tokens=2, cost_usd=0.5, cached_input_tokens=1, turns=3, model="m", session_id="s"
        ),
        stdout_truncated=True,
        stderr_truncated=True, stdout_path="/o", stderr_path="/e", agent_id="g", batch_id="b", metadata={"k": 1},
        dependencies=("a", "anga/b"),
        incarnation="i", submitted={"description": "d"},
    )  # fmt: skip
    bare = Result(
        task_id="a", worker="marie", status="completed", exit_code=0, stdout="", stderr="", duration_seconds=0.0,
        finished_at=0.0, started_at=None, retry_count=0, attempts=1, task_sha256=SHA,
    )  # fmt: skip
    beat = Heartbeat(
        worker="marie", at=1.0, uptime_seconds=1.0, queue_size=0, active_tasks=1, circuit_breaker_state="closed",
        stats=Stats(1, 2, 3, 4), status="healthy", incarnation="i", pid=1, host="h", sequence=1, interval_seconds=10.0,
        held_until=2.0, active=[ActiveTask("x", 1.0, 2.0, "/p")],
    )  # fmt: skip
    letter = DeadLetter(
        task_id="a", worker="marie", reason="r", at=1.0, retry_count=3, detail="d", submitted={"description": "x"},
        result=ended.as_json(), task_sha256=SHA,
    )  # fmt: skip
    return {
        "result": ended.dump(),
        "result of few": bare.dump(),
        "heartbeat": beat.dump(),
        "dead-letter": letter.dump(),
        "dead-letter of no task": DeadLetter("a", "marie", "invalid_json", 1.0, 0, "d", ".originals/a.1").dump(),
        "receipt": Receipt("a", "marie", 1.0, 1, "i").dump(),
    }


@pytest.mark.parametrize("name", written())
def test_what_is_written_is_strict_json_and_fits_its_schema(name: str) -> None:
    raw = written()[name]
    assert raw.endswith(b"\n") and raw.count(b"\n") == 1
    assert fits(all_schemas()[name.partition(" ")[0]], strict_json.loads(raw))


def test_no_field_of_version_1_is_gone() -> None:
    files = {"result": "result", "heartbeat": "heartbeat", "dead-letter": "dead_letter", "receipt": "receipt"}
    for name, file in files.items():
        promised = set(strict_json.loads(example(file))) - {"priority", "metadata", "x_team"}
        assert promised <= set(strict_json.loads(written()[name])) | {"metadata"}, name
    beat, shown = strict_json.loads(written()["heartbeat"]), strict_json.loads(example("heartbeat"))
    assert set(beat["stats"]) == set(shown["stats"]) and set(beat["active"][0]) >= set(shown["active"][0])


def test_status_stands_in_the_first_bytes_of_a_result_however_long_its_names_are() -> None:
    ended = Result(
        task_id="i" * 160, worker="w" * 64, status="cancelled", exit_code=None, stdout='"status": "failed"' * 100,
        stderr="", duration_seconds=0.0, finished_at=0.0, started_at=None, retry_count=0, attempts=0, task_sha256=SHA,
    )  # fmt: skip
    assert status_in_head(ended.dump()[:HEAD_BYTES]) == "cancelled"
    assert status_in_head(b'{"task_id": "x", "status": "dancing"') is None
    assert status_in_head(b"") is None


def test_heartbeat_or_result_that_is_none_is_refused() -> None:
    for raw in (b"[]", b"", b"{}", b'{"worker": "marie"}', b'{"worker": 1, "task_id": "a", "status": "failed"}'):
        with pytest.raises(ValueError):
            parse_result(raw)
        with pytest.raises(ValueError):
            parse_heartbeat(raw)


# --- strict JSON

NOT_STRICT = {
    "nothing": b"",
    "blank": b"  \n",
    "two values": b"{} {}",
    "comment": b"{} // x",
    "single quotes": b"{'a': 1}",
    "trailing comma": b"[1,]",
    "NaN": b"[NaN]",
    "Infinity": b"[Infinity]",
    "minus Infinity": b"[-Infinity]",
    "overflow": b"[1e400]",
    "minus overflow": b"[-1e400]",
    "5000 digits": b"[" + b"9" * 5000 + b"]",
    "key twice": b'{"a": 1, "a": 1}',
    "key twice inside": b'[{"b": {"a": 1, "c": 2, "a": 3}}]',
    "key twice by escape": b'{"a": 1, "\\u0061": 2}',
    "NUL by escape": b'["\\u0000"]',
    "NUL by escape in a key": b'{"\\u0000": 1}',
    "NUL as it is": b'["\x00"]',
    "NUL after it": b"[]\x00",
    "control character": b'["\x1f"]',
    "line break in a string": b'["a\nb"]',
    "half pair": b'["\\ud800"]',
    "other half": b'["\\udc00"]',
    "halves in the wrong order": b'["\\udc00\\ud800"]',
    "half pair in a key": b'{"\\ud83d": 1}',
    "surrogate as bytes": b'["\xed\xa0\x80"]',
    "overlong": b'["\xc0\x80"]',
    "latin-1": b'["caf\xe9"]',
    "utf-16": '["x"]'.encode("utf-16"),
    "utf-32": '["x"]'.encode("utf-32"),
    "two byte order marks": b"\xef\xbb\xbf\xef\xbb\xbf[]",
    "deep list": b"[" * 65 + b"]" * 65,
    "deep object": b'{"a":' * 65 + b"1" + b"}" * 65,
    "very deep": b"[" * 100_000 + b"]" * 100_000,
    "never closed": b"[" * 100_000,
}


@pytest.mark.parametrize("name", NOT_STRICT)
def test_json_that_breaks_something_later_is_refused(name: str) -> None:
    with pytest.raises(NotStrictJson) as caught:
        strict_json.loads(NOT_STRICT[name])
    assert str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'["\\ud83d\\ude42", "\xf0\x9f\x99\x82"]', ["🙂", "🙂"]),
        (b'["\\u0041", "\\\\u0000"]', ["A", "\\u0000"]),
        (b'{"a": {"a": {"a": 1}}}', {"a": {"a": {"a": 1}}}),
        (b"[1e308, -0.0, 1e-400, " + b"9" * 400 + b"]", [1e308, -0.0, 0.0, int("9" * 400)]),
        (b"null", None),
    ],
)
def test_odd_json_that_is_right_is_read(raw: bytes, value: Any) -> None:
    assert strict_json.loads(raw) == value


def test_64_levels_are_read_whatever_is_inside() -> None:
    for inside in (b"", b"1", b'"\\u0041"'):
        strict_json.loads(b"[" * MAX_DEPTH + inside + b"]" * MAX_DEPTH)
        with pytest.raises(NotStrictJson):
            strict_json.loads(b"[" * (MAX_DEPTH + 1) + inside + b"]" * (MAX_DEPTH + 1))


def test_nan_is_never_written_and_a_lone_surrogate_never_breaks_a_write() -> None:
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError):
            strict_json.dumps({"a": [number]})
    assert strict_json.loads(strict_json.dumps({"a": "x\ud800y"})) == {"a": "x?y"}


GOOD_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | GOOD_TEXT,
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(GOOD_TEXT, inside, max_size=4),
    max_leaves=20,
)


@given(VALUES)
@settings(deadline=None)
def test_what_is_written_is_read_back_as_it_was(value: Any) -> None:
    assert strict_json.loads(strict_json.dumps(value)) == value
    assert strict_json.loads(json.dumps(value).encode()) == value, "escapes are another way to write the same"


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    check_reading(raw)


TRICKS = (
    b"NaN", b"Infinity", b"-", b"1e999", b"\\u0000", b"\\ud800", b"\x00", b"\xff", b"\xed\xa0\x80", b'"', b"{", b"}",
    b"[", b"]", b",", b":", b"\\", b"\xef\xbb\xbf", b'"description":', b"9" * 310, b"[" * 70, b"true", b"1.0", b"\n",
)  # fmt: skip


@st.composite
def damaged_tasks(draw: st.DrawFn) -> bytes:
    """A good task file with a few cuts, copies and tricks."""
    raw = bytearray(draw(st.sampled_from([example("task"), example("task-smallest")])))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.integers(0, 8)))
        other = draw(st.integers(0, len(raw)))
        piece = draw(st.sampled_from(TRICKS) | st.just(bytes(raw[other : other + 30])) | st.binary(max_size=3))
        raw[start:end] = piece
    return bytes(raw)


@given(damaged_tasks())
@settings(deadline=None, max_examples=400)
def test_damaged_task_is_read_or_refused_and_never_breaks_the_reader(raw: bytes) -> None:
    check_reading(raw)
    check_task(raw)


ANYTHING = VALUES | st.sampled_from([10**400, -(10**400), 1e308, "x" * 5000, "2026-11-21", "0001-01-01T00:00:00+23:59"])


@given(st.dictionaries(st.sampled_from([*task.FIELDS, "other"]), ANYTHING, max_size=5), st.booleans())
@settings(deadline=None, max_examples=300)
def test_fields_of_any_kind_are_read_or_refused(fields: dict[str, Any], has_description: bool) -> None:
    check_task(json.dumps({"description": "x"} | fields if has_description else fields).encode())


def check_reading(raw: bytes) -> None:
    try:
        value = strict_json.loads(raw)
    except NotStrictJson:
        return
    check_value(value)
    assert strict_json.loads(strict_json.dumps(value)) == value
    assert json.loads(raw.decode("utf-8-sig"), object_pairs_hook=no_key_twice) == value


def check_task(raw: bytes) -> None:
    try:
        read = parse_task(raw, "task", "marie")
    except InvalidTask as error:
        assert error.reason in (
            "invalid_json", "invalid_field", "missing_description", "id_mismatch", "worker_mismatch",
        )  # fmt: skip
        assert error.detail
        return
    assert (read.task_id, read.worker) == ("task", "marie") and read.description.strip()
    assert read.timeout is None or 0.1 <= read.timeout <= 31 * 86_400
    assert -1000 <= read.priority <= 1000 and len(read.sha256) == 64
    assert all(not d.startswith((".", "/")) and ".." not in d.split("/") for d in read.dependencies)
    assert read.model is None or not read.model.startswith("-")
    assert fits(task.schema(), read.submitted)


def check_value(value: Any, depth: int = 1) -> None:
    if isinstance(value, str):
        assert "\0" not in value
        value.encode()
    elif isinstance(value, float):
        assert math.isfinite(value)
    elif isinstance(value, (list, dict)):
        assert depth <= MAX_DEPTH
        for member in value if isinstance(value, list) else [*value, *value.values()]:
            check_value(member, depth + 1)


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


# --- tasks


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        ({"timeout": True}, "invalid_field", "timeout must be a number, not a boolean"),
        ({"timeout": "7"}, "invalid_field", "timeout must be a number, not a string"),
        ({"timeout": 3000000}, "invalid_field", "timeout must be a number from 0.1 to 2678400, is 3000000"),
        ({"timeout": 0}, "invalid_field", "from 0.1 to"),
        ({"timeout": 10**400}, "invalid_field", "from 0.1 to"),
        ({"max_retries": 1.5}, "invalid_field", "a whole number"),
        ({"max_retries": 101}, "invalid_field", "from 0 to 100"),
        ({"priority": "urgent"}, "invalid_field", "critical, high, normal, low"),
        ({"priority": 1001}, "invalid_field", "-1000 to 1000"),
        ({"priority": True}, "invalid_field", "priority"),
        ({"priority": 7.5}, "invalid_field", "whole number"),
        ({"dependencies": "a"}, "invalid_field", "must be a list"),
        ({"dependencies": ["a", "../b"]}, "invalid_field", "member 1"),
        ({"metadata": []}, "invalid_field", "must be an object, not a list"),
        ({"cwd": "here"}, "invalid_field", "an absolute path"),
        ({"model": "-x"}, "invalid_field", "no leading dash"),
        ({"not_before": "tomorrow"}, "invalid_field", "must be a time like"),
        ({"not_before": "2026-11-21T23:33:00"}, "invalid_field", "zone"),
        ({"not_before": 1e30}, "invalid_field", "not_before"),
        ({"description": 7}, "invalid_field", "description must be a string"),
        ({"description": None}, "invalid_field", "description must be a string, not null"),
        ({"description": ""}, "invalid_field", "description"),
        ({"description": " \n"}, "missing_description", "what the agent shall do"),
        ({"task_id": "other"}, "id_mismatch", "'other' is not the file's name 'task'"),
        ({"worker": "anga"}, "worker_mismatch", "'anga'"),
    ],
)
def test_wrong_field_is_named_with_what_is_allowed(fields: dict[str, Any], reason: str, words: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        parse_task(json.dumps({"description": "x"} | fields).encode(), "task", "marie")
    assert caught.value.reason == reason and words in caught.value.detail


def test_null_means_not_given_except_for_the_description() -> None:
    read = parse_task(
        json.dumps({"description": "x", **dict.fromkeys(set(task.FIELDS) - {"description"})}).encode(), "a", "marie"
    )
    assert (read.task_id, read.worker, read.priority, read.timeout) == ("a", "marie", 0, None)


def test_unknown_fields_are_kept_and_told_but_not_those_with_a_known_prefix() -> None:
    read = parse_task(b'{"description": "x", "colour": 1, "x_mine": 2, "dlq_reason": "y"}', "a", "marie")
    assert read.unknown_fields() == ["colour"]
    assert read.submitted == {"description": "x", "colour": 1, "x_mine": 2, "dlq_reason": "y"}


def test_content_decides_the_hash_to_the_byte() -> None:
    one, two = (parse_task(raw, "a", "m").sha256 for raw in (b'{"description":"x"}', b'{"description": "x"}'))
    assert one != two


# --- kinds of fields agree with their schemas

KINDS: dict[str, Kind] = {
    "text": Text(5, 2),
    "pattern": Text(8, 1, "[a-c]+|x/y"),
    "number": Number(-1.5, 10),
    "whole": Number(0, 3, integer=True),
    "choice": Choice(("a", "b")),
    "flag": Flag(),
    "list": ListOf(Number(0, 1), 2),
    "object": Object(),
    "optional": Optional(Text(3)),
    "priority": task.Priority(),
}
MEMBERS = (
    st.none() | st.booleans() | st.integers(-3, 12)
    | st.sampled_from([10**400, 2.0, 0.5, -1.5, 1e308, "critical", "urgent"])
    | st.text(string.ascii_lowercase[:4] + "xy/é", max_size=6)
)  # fmt: skip


@given(st.sampled_from(sorted(KINDS)), MEMBERS | st.lists(MEMBERS, max_size=3) | st.dictionaries(GOOD_TEXT, MEMBERS))
@settings(deadline=None, max_examples=500)
def test_reader_and_schema_take_the_same_values(name: str, value: Any) -> None:
    kind = KINDS[name]
    try:
        kind.check(value)
    except FieldError as error:
        assert not fits(kind.schema(), value), f"refused: {error}"
    else:
        assert fits(kind.schema(), value)


def test_pattern_is_for_the_whole_text_and_no_line_break_slips_through() -> None:
    for text in ("abc\n", "\nabc", "abc d"):
        with pytest.raises(FieldError):
            Text(9, 1, "[a-c]+").check(text)


def test_moment_is_a_time_with_a_zone_or_seconds() -> None:
    kind = Moment()
    assert kind.check("1970-01-01T01:00:00+01:00") == 0.0 == kind.check(0)
    assert kind.check("2026-11-21T23:33:00.5Z") == 1_795_303_980.5
    for wrong in ("1970-01-01T00:00:00", "0001-01-01T00:00:00+23:59", "", "soon", True, None, -1, 10**400, 1e300, []):
        with pytest.raises(FieldError):
            kind.check(wrong)


@given(st.floats(0, 4_000_000_000))
@settings(deadline=None)
def test_time_that_is_written_is_read_back_to_the_microsecond(seconds: float) -> None:
    assert parse_rfc3339(rfc3339(seconds)) == pytest.approx(seconds, abs=2e-6)


def test_records_and_their_tables_have_the_same_fields() -> None:
    assert set(strict_json.loads(written()["result"])) == set(result.FIELDS)
    assert set(strict_json.loads(written()["heartbeat"])) == set(heartbeat.FIELDS)
    assert set(strict_json.loads(written()["receipt"])) == set(notice.FIELDS)
    for schema in all_schemas().values():
        assert set(schema["required"]) <= set(schema["properties"])


@pytest.mark.parametrize(
    "raw", [b'{"batch_id": "B", ', b'["batch_id"]', b'{"batch_id": 7}', b'{"batch_id": "\\ud800"}', b""]
)
def test_what_cannot_be_read_belongs_to_no_batch(raw: bytes) -> None:
    assert task.marks_of(raw) == {}
