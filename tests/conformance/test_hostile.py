"""Files that strangers drop: nothing hangs, escapes or vanishes; each is in the DLQ with its bytes and a reason."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.conftest import Desk, Office

DEEP = b'{"description": "x", "metadata": ' + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"}"

BAD_CONTENT = {
    "empty": (b"", "invalid_json"),
    "not-json": (b"hello", "invalid_json"),
    "array": (b"[1]", "invalid_json"),
    "latin1": b'{"description": "caf\xe9"}',
    "utf16": '{"description": "x"}'.encode("utf-16"),
    "nan": b'{"description": "x", "timeout": NaN}',
    "infinity": b'{"description": "x", "timeout": 1e400}',
    "twice": b'{"description": "x", "task_id": "twice", "task_id": "../../b"}',
    "nul": b'{"description": "a\\u0000b"}',
    "surrogate": b'{"description": "\\ud800"}',
    "deep": DEEP,
    "digits": b'{"description": "x", "timeout": ' + b"9" * 5000 + b"}",
    "no-description": (b'{"worker": "marie"}', "missing_description"),
    "blank": (b'{"description": "  "}', "missing_description"),
    "true-timeout": (b'{"description": "x", "timeout": true}', "invalid_field"),
    "text-timeout": (b'{"description": "x", "timeout": "7"}', "invalid_field"),
    "negative-timeout": (b'{"description": "x", "timeout": -1}', "invalid_field"),
    "huge-timeout": (b'{"description": "x", "timeout": 1e30}', "invalid_field"),
    "dash-model": (b'{"description": "x", "model": "--help"}', "invalid_field"),
    "path-dependency": (b'{"description": "x", "dependencies": ["../../x"]}', "invalid_field"),
    "relative-cwd": (b'{"description": "x", "cwd": "../.."}', "invalid_field"),
    "other-id": (b'{"description": "x", "task_id": "/etc/x"}', "invalid_field"),
    "wrong-id": (b'{"description": "x", "task_id": "right"}', "id_mismatch"),
    "wrong-worker": (b'{"description": "x", "worker": "anga"}', "worker_mismatch"),
    "too-large": (b'{"description": "' + b"x" * 70_000 + b'"}', "too_large"),
}


def settle_down(desk: Desk) -> None:
    desk.scan()
    desk.clock.pass_seconds(10)
    desk.scan()
    assert desk.claim() == []


def originals(desk: Desk) -> Path:
    return desk.root / "dlq" / desk.worker / ".originals"


@pytest.mark.parametrize("name", BAD_CONTENT)
def test_bad_content_is_a_dead_letter_with_its_bytes(office: Office, name: str) -> None:
    found = BAD_CONTENT[name]
    raw, reason = found if isinstance(found, tuple) else (found, "invalid_json")
    desk = office.desk(max_task_bytes=65_536)
    (desk.inbox / f"{name}.json").write_bytes(raw)
    settle_down(desk)
    letter = desk.dead_letter(name)
    assert letter is not None and letter["dlq_reason"] == reason and letter["dlq_detail"]
    assert (desk.root / "dlq" / "marie" / letter["dlq_original"]).read_bytes() == raw
    assert not (desk.inbox / f"{name}.json").exists()
    assert desk.result(name) is None


def test_byte_order_mark_is_forgiven(office: Office) -> None:
    desk = office.desk()
    (desk.inbox / "bom.json").write_bytes(b'\xef\xbb\xbf{"description": "x"}')
    desk.scan()
    assert len(desk.claim()) == 1


def test_link_is_not_followed(office: Office, tmp_path: Path) -> None:
    desk = office.desk()
    secret = tmp_path / "secret"
    secret.write_text('{"description": "secret words"}')
    (desk.inbox / "link.json").symlink_to(secret)
    settle_down(desk)
    letter = desk.dead_letter("link")
    assert letter is not None and letter["dlq_reason"] == "not_regular"
    assert "secret words" not in json.dumps(letter)
    assert (desk.root / "dlq" / "marie" / letter["dlq_original"]).is_symlink()
    assert secret.exists()


def test_hard_link_is_refused(office: Office, tmp_path: Path) -> None:
    desk = office.desk()
    lure = tmp_path / "lure"
    lure.write_text('{"description": "x"}')
    os.link(lure, desk.inbox / "hard.json")
    settle_down(desk)
    letter = desk.dead_letter("hard")
    assert letter is not None and letter["dlq_reason"] == "hard_link"


def test_writer_that_links_and_unlinks_is_waited_for(office: Office, tmp_path: Path) -> None:
    desk = office.desk()
    temporary = desk.inbox / ".t"
    temporary.write_text('{"description": "x"}')
    os.link(temporary, desk.inbox / "linked.json")
    desk.scan()
    assert desk.claim() == []
    temporary.unlink()
    desk.clock.pass_seconds(1)
    desk.spool.tick()
    assert len(desk.claim()) == 1


def test_fifo_blocks_nobody(office: Office) -> None:
    desk = office.desk()
    os.mkfifo(desk.inbox / "fifo.json")
    settle_down(desk)
    letter = desk.dead_letter("fifo")
    assert letter is not None and letter["dlq_reason"] == "not_regular" and "FIFO" in letter["dlq_detail"]
    assert stat.S_ISFIFO((desk.root / "dlq" / "marie" / letter["dlq_original"]).stat().st_mode)


def test_folder_and_socket_are_refused(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = office.desk()
    (desk.inbox / "folder.json").mkdir()
    (desk.inbox / "folder.json" / "inside").write_text("kept")
    monkeypatch.chdir(desk.inbox)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("sock.json")
        settle_down(desk)
    for stem in ("folder", "sock"):
        letter = desk.dead_letter(stem)
        assert letter is not None and letter["dlq_reason"] == "not_regular", stem
    assert [p.read_text() for p in originals(desk).glob("folder.*/inside")] == ["kept"]


@pytest.mark.parametrize(
    "name", ["with space.json", "é.json", "-x.json", "a~1-0.json", "$(x).json", "x" * 140 + ".json"]
)
def test_bad_name_is_a_dead_letter(office: Office, name: str) -> None:
    desk = office.desk()
    (desk.inbox / name).write_text('{"description": "x"}')
    settle_down(desk)
    letters = [json.loads(p.read_text()) for p in (desk.root / "dlq" / "marie").glob("*.json")]
    assert [letter["dlq_reason"] for letter in letters] == ["bad_name"]
    assert ascii(name)[1:-1] in letters[0]["dlq_detail"].replace("\\\\", "\\") or name in letters[0]["dlq_detail"]
    assert [p.read_text() for p in originals(desk).iterdir()] == ['{"description": "x"}']


def test_file_that_cannot_be_opened_is_a_dead_letter(office: Office) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may open every file")
    desk = office.desk()
    path = desk.inbox / "closed.json"
    path.write_text('{"description": "x"}')
    path.chmod(0)
    settle_down(desk)
    letter = desk.dead_letter("closed")
    assert letter is not None and letter["dlq_reason"] == "unreadable"


def test_second_dead_letter_of_an_id_does_not_replace_the_first(office: Office) -> None:
    desk = office.desk()
    for content in (b"first", b"second"):
        (desk.inbox / "bad.json").write_bytes(content)
        settle_down(desk)
    folder = desk.root / "dlq" / "marie"
    assert sorted(p.name for p in folder.glob("*.json")) == ["bad.json", "bad~2.json"]
    stored = [(folder / json.loads(p.read_text())["dlq_original"]).read_bytes() for p in sorted(folder.glob("*.json"))]
    assert stored == [b"first", b"second"]


def test_editor_leftovers_are_not_mentioned(office: Office) -> None:
    desk = office.desk()
    for name in (".a.json.swp", "a.json~", "#a.json#", "4913", ".nfs0001"):
        (desk.inbox / name).write_text("x")
    settle_down(desk)
    assert desk.memory.events == []


@pytest.mark.parametrize("plant", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_under_a_results_name_stops_only_the_task_of_that_name(
    office: Office, plant: Callable[[Path], None]
) -> None:
    desk = office.desk()
    plant(desk.root / "results" / "marie" / "a.json")
    desk.drop("a")
    desk.drop("b")
    desk.scan()
    assert [claim.task.task_id for claim in desk.claim()] == ["b"]
    letter = desk.dead_letter("a")
    assert letter is not None and letter["dlq_reason"] == "duplicate_id"


def test_what_is_planted_among_the_claims_is_not_followed_and_keeps_nobody_from_rescue(
    office: Office, tmp_path: Path
) -> None:
    desk = office.desk()
    claims = desk.inbox / ".claims"
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (claims / ("0" * 32)).symlink_to(tmp_path / "precious")
    (claims / ("1" * 32) / "folder").mkdir(parents=True)
    (claims / f"{'2' * 32}.lock").mkdir()
    (claims / ("3" * 32)).write_text("x")
    (claims / f"{'4' * 32}.lock").symlink_to(tmp_path / "nowhere")
    (claims / ("f" * 32)).mkdir()
    (claims / ("f" * 32) / "r~1-0.json").write_text('{"description": "x"}')
    assert desk.spool.rescue() == 1
    assert (tmp_path / "precious" / "file").read_text() == "x"
    assert not (claims / ("f" * 32)).exists()
