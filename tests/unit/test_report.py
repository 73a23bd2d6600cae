"""What the listener counted, as text and as a page; nothing from a file can do anything in either."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from watcher.cli.report import MAX_ROWS, report_html, report_text, seconds_text
from watcher.cli.tables import listener_lines
from watcher.store.listener_database import Entry, Ledger
from watcher.store.listener_lock import ListenerLock
from watcher.store.listener_state import ListenerView, Totals, is_running, read_points, read_status, read_view
from watcher.store.outcome_totals import Finished

EVIL = '<script>alert("x")</script>\x1b[31m'
NOW = 1_800_000_000.0


def outcome(number: int, **more: object) -> Finished:
    end = int((NOW - number * 60) * 1e6)
    fields: dict[str, object] = {
        "worker": "marie", "folder": "results", "name": f"t{number}.json", "inode": number, "print": str(number),
        "task_id": f"t{number}", "status": "completed", "started_us": end - 90_000_000, "finished_us": end,
        "duration_us": 90_000_000, "attempts": 1, "cost_nano": 500_000_000,
    }  # fmt: skip
    return Finished(**(fields | more))  # type: ignore[arg-type]


def fill(state: Path, *outcomes: Finished) -> None:
    ledger = Ledger(state, 0.0)
    ledger.commit(Entry(outcomes=[(one, None) for one in outcomes]))
    ledger.close()


class Tags(HTMLParser):
    """The tags of a page, and whether each one that opens also closes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "line", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_view_tells_totals_the_last_hour_and_how_many_ran_at_once(tmp_path: Path) -> None:
    fill(tmp_path, *(outcome(n) for n in range(100)), outcome(200, worker="anga", status="failed"))
    view = read_view(tmp_path, NOW)
    assert view is not None and not view.is_running
    assert view.all_time.whole.counts == {"completed": 100, "failed": 1}
    assert view.last_hour.whole.total == 61
    assert view.peak_concurrency == {"": 2, "marie": 2, "anga": 1}  # 90 s each, one a minute
    points = read_points(tmp_path)
    assert [p.finished_at for p in points] == sorted(p.finished_at for p in points) and len(points) == 101


def test_no_listener_has_ever_run_is_said(tmp_path: Path) -> None:
    assert read_view(tmp_path / "none") is None
    assert not is_running(tmp_path)
    assert listener_lines(False, read_status(tmp_path)) == ["listener: not running."]


def test_running_listener_is_seen_by_its_lock(tmp_path: Path) -> None:
    lock = ListenerLock(tmp_path)
    assert is_running(tmp_path)
    assert "listener: running" in listener_lines(True, read_status(tmp_path))[0]
    lock.close()
    assert not is_running(tmp_path)


def test_text_has_the_tables_and_no_control_character(tmp_path: Path) -> None:
    fill(tmp_path, *(outcome(n, batch_id=EVIL) for n in range(3)))
    view = read_view(tmp_path, NOW)
    assert view is not None
    text = report_text(view)
    assert "1.5 min" in text or "90" in text
    assert "$1.5000" in text and "100.0%" in text and "\x1b" not in text


def test_page_is_whole_runs_nothing_and_loads_nothing(tmp_path: Path) -> None:
    many = [
        outcome(n, batch_id=f"{EVIL}{n}", worker=f"w{n % 3}", status=("completed", "failed")[n % 2]) for n in range(60)
    ]
    fill(tmp_path, *many)
    view = read_view(tmp_path, NOW)
    assert view is not None
    page = report_html(view, read_points(tmp_path), f"/tmp/{EVIL}")
    tags = Tags(page)
    assert tags.open == []
    assert not {"script", "link", "img", "iframe"} & set(tags.seen)
    assert tags.seen.count("svg") == 4
    assert "http" not in page
    assert f"({60 - MAX_ROWS} more)" in page


def test_page_without_any_task_says_so() -> None:
    page = report_html(ListenerView(False, {}, Totals(), Totals(), {}, {}), [], "/x")
    assert Tags(page).open == [] and page.count('class="nothing"') == 4


def test_durations_are_told_in_the_unit_that_fits() -> None:
    assert [seconds_text(s) for s in (None, 0.0123, 0.9999, 5.0, 300.0, 9000.0)] == [
        "-", "12.3 ms", "1 s", "5 s", "5 min", "2.5 h",
    ]  # fmt: skip
