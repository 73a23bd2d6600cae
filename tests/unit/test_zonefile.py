"""drops.yaml: what is good, what is refused, and in which line."""

from __future__ import annotations

from pathlib import Path

import pytest

from watcher.intake.drop_zones.prompt_template import Template
from watcher.intake.drop_zones.yaml_lines import ZoneFileError
from watcher.intake.drop_zones.zone_file import Processing, ZoneFile, load_zone_file

REPOSITORY = Path(__file__).resolve().parents[2]
GOOD = """zones:
  - name: notes
    dirs: in
    worker: marie
    prompt: "{text}"
"""


def load(tmp_path: Path, text: str, *reserved: Path) -> ZoneFile:
    path = tmp_path / "drops.yaml"
    path.write_text(text)
    return load_zone_file(path, reserved)


def refused(tmp_path: Path, text: str, *reserved: Path) -> list[str]:
    """The problems without the file's name: `5: ...`."""
    with pytest.raises(ZoneFileError) as caught:
        load(tmp_path, text, *reserved)
    return [line.removeprefix(f"{tmp_path / 'drops.yaml'}:") for line in str(caught.value).splitlines()]


def test_the_documented_example_loads_and_means_what_it_says() -> None:
    found = load_zone_file(REPOSITORY / "docs" / "drops.yaml")
    assert found.processing == Processing(3, 100, 300)
    notes, invoices, sources = found.zones
    assert notes.dirs == (REPOSITORY / "docs" / "drops" / "notes",) and notes.max_bytes == 200_000
    assert invoices.priority == 50 and invoices.fields["metadata"] == {"team": "finance"} and invoices.settle == 2
    assert invoices.prompt.fill({"path": "/x"}).endswith('as JSON: {"number": ...}')
    assert sources.on_done == "keep" and sources.slug == "watch-the-sources" and not sources.takes_hold


def test_defaults_are_the_documented_ones(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD)
    (zone,) = found.zones
    assert found.processing == Processing(3, 100, 300.0)
    assert (zone.patterns, zone.on_done, zone.recursive, zone.priority) == (("*",), "keep", True, 0)
    assert zone.dirs == (tmp_path / "in",) and zone.events == {"created", "modified"}


def test_every_problem_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    text = GOOD + "    priorty: high\n    on_done: shred\nprocessing:\n  max_workers: 0\n  queue_size: many\nmore: 1\n"
    assert [(line.split(":")[0], line.split(":")[1].strip()) for line in refused(tmp_path, text)] == [
        ("6", "zone 'notes'"),
        ("7", "zone 'notes'"),
        ("9", "processing.max_workers must be a whole number from 1 to 1000, is 0"),
        ("10", "processing.queue_size must be a whole number, not a string"),
        ("11", "the file"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1: the file is empty"),
        ("zones: []", "1: zones: must be a list of at least one zone"),
        ("zones:\n  - 5", "2: zones[0] must be a mapping"),
        ("zones:\n  - dirs: a", "2: zones[0]: name is missing"),
        (GOOD.replace("dirs: in", "dirs: in\n    patterns: *.txt"), "4: not valid YAML"),
        (
            GOOD.replace("worker: marie", "worker: marie\n    worker: anga"),
            "5: 'worker' appears twice, first in line 4",
        ),
        (GOOD.replace("{text}", "{txt}"), "5: zone 'notes': prompt: {txt} is not a placeholder"),
        (GOOD.replace("marie", "../marie"), "4: zone 'notes': worker must match"),
        (GOOD + "    events: [deleted]", "6: zone 'notes': events: deleted: a file that is gone"),
        (GOOD + "    move_to: x", "6: zone 'notes': move_to needs on_done: move"),
        (GOOD + "    priority: urgent", "6: zone 'notes': priority must be one of critical"),
        (GOOD + "    cwd: here", "6: zone 'notes': cwd must match"),
        (GOOD + "    metadata: {a: 2026-11-22}", "6: '2026-11-22' is read as a date; quote it"),
        (GOOD + "    timeout: .nan", "6: zone 'notes': timeout must be a number"),
        (GOOD + "    metadata: {a: .nan}", "6: zone 'notes': metadata cannot be written as JSON"),
        (GOOD + "    prompt2: !!python/object:os.system x", "6: not valid YAML: could not determine a constructor"),
        (GOOD + "    on_done: move\n    move_to: deeper", "7: zone 'notes': move_to:"),
        (GOOD + "    max_bytes: 0", "6: zone 'notes': max_bytes must be a whole number from 1"),
        (GOOD + "    metadata:\n      drop: {a: 1}", "7: zone 'notes': metadata.drop tells which file"),
        (GOOD.replace("- name", "- &a\n    name") + "  - *a\n", "3: zone 'notes': its name is that of the zone"),
        (
            GOOD + GOOD.removeprefix("zones:\n").replace("notes", "NOTES"),
            "6: zone 'NOTES': its name is that of the zone",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line_and_what_to_do(tmp_path: Path, text: str, said: str) -> None:
    problems = refused(tmp_path, text)
    assert any(problem.startswith(said) for problem in problems), problems


def test_unquoted_pattern_gets_the_cure(tmp_path: Path) -> None:
    assert 'needs quotes: "*.txt"' in refused(tmp_path, GOOD + "    patterns: *.txt\n")[0]


def test_zone_may_not_lie_in_or_around_the_suites_own_folders(tmp_path: Path) -> None:
    assert "must not lie in or above" in refused(tmp_path, GOOD, tmp_path / "in" / "tasks")[0]
    assert "must not lie in or above" in refused(tmp_path, GOOD, tmp_path)[0]
    assert load(tmp_path, GOOD + "    recursive: false\n", tmp_path / "in" / "tasks").zones
    (tmp_path / "in").symlink_to(tmp_path / "tasks")
    assert "must not lie in or above" in refused(tmp_path, GOOD, tmp_path / "tasks")[0]


def test_zones_may_hand_files_on_but_not_in_a_circle(tmp_path: Path) -> None:
    one = GOOD + "    on_done: move\n    move_to: ../second\n"
    two = one + "  - {name: next, dirs: second, worker: anga, prompt: x, on_done: move, move_to: ../third}\n"
    assert len(load(tmp_path, two).zones) == 2
    problems = refused(tmp_path, two.replace("../third", "../in"))
    assert [problem.split(":")[0] for problem in problems] == ["7", "8"] and "for ever" in problems[0]


def test_merged_defaults_are_taken_and_bombs_of_aliases_are_refused(tmp_path: Path) -> None:
    text = (
        "zones:\n  - &base\n    name: a\n    dirs: in\n    worker: marie\n    prompt: x\n  - <<: *base\n    name: b\n"
    )
    assert [zone.name for zone in load(tmp_path, text).zones] == ["a", "b"]
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    for one, next_one in zip("abcdef", "bcdefg", strict=True):
        bomb += f"{next_one}: &{next_one} [{','.join([f'*{one}'] * 10)}]\n"
    assert "too many values" in refused(tmp_path, bomb)[0]


def test_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ZoneFileError, match="cannot read the drop zones: No such file"):
        load_zone_file(tmp_path / "none.yaml")


def test_prompt_is_filled_once_and_literally() -> None:
    template = Template.parse('{name}: {{name}} {"a": {"b": 1}} {text}')
    assert template.fill({"name": "n", "text": "{path} {{name}} {name}"}) == (
        'n: {name} {"a": {"b": 1}} {path} {{name}} {name}'
    )
    assert template.uses("text") and not template.uses("path")


def test_file_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    assert "too deep" in "".join(refused(tmp_path, "[" * 50_000))
