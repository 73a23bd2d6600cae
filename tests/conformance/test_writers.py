"""Files whose writer keeps them open: waited for, for a while, and judged by what they are then."""

from __future__ import annotations

from tests.conformance.conftest import Office
from watcher.store.inbox_index import WRITER_PATIENCE_SECONDS


def test_complete_task_is_run_in_the_end_although_its_writer_never_closes_it(office: Office) -> None:
    desk = office.desk()
    with (desk.inbox / "open.json").open("w") as writer:
        writer.write('{"description": "x"}')
        writer.flush()
        desk.scan()
        waited = 0.0
        while not (claims := desk.claim()):
            pause = desk.spool.next_due_in()
            assert pause is not None and pause > 0, "nobody would look again"
            desk.clock.pass_seconds(pause)
            desk.spool.tick()
            waited += pause
            assert waited < WRITER_PATIENCE_SECONDS + 5
    assert waited >= WRITER_PATIENCE_SECONDS
    assert [claim.task.task_id for claim in claims] == ["open"]


def test_file_that_is_open_is_looked_at_ever_more_seldom(office: Office) -> None:
    desk = office.desk()
    with (desk.inbox / "open.json").open("w") as writer:
        writer.write('{"description": "x"}')
        writer.flush()
        desk.scan()
        looks, end = 0, desk.clock.monotonic() + WRITER_PATIENCE_SECONDS - 1
        while desk.clock.monotonic() < end:
            assert desk.claim() == []
            desk.clock.pass_seconds(desk.spool.next_due_in() or 1.0)
            desk.spool.tick()
            looks += 1
        assert looks < 30
