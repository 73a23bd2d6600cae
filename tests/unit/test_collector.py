"""What lies in results and dlq is found once, whatever it is; what waits is seen; what is old goes."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.collecting import Site, site
from watcher.listener import batches as batches_module
from watcher.listener.batches import Batches, Graphs
from watcher.store import new_outcomes as collector_module
from watcher.store import waiting_tasks as waiting_module
from watcher.store.notice_publisher import Findings
from watcher.store.outcome_totals import Finished
from watcher.store.retention import Pruner, Retention
from watcher.system import no_links
from watcher.telemetry.events import FileIgnored, FilesPruned, FolderFound, FolderLost

__all__ = ["site"]


# --- finding


def test_each_result_and_refused_file_is_found_once_and_a_letter_with_a_result_is_none(site: Site) -> None:
    site.result("a", status="failed")
    letters = site.folders["dlq"] / "marie"
    (letters / "a.json").write_text(json.dumps({"dlq_reason": "x", "dlq_result": {"status": "failed"}}))
    (letters / "b~2.json").write_text(json.dumps({"dlq_reason": "duplicate_id"}))
    assert site.collect(1) == ["task_done a", "task_refused b"]
    assert site.collect() == []
    assert site.ledger.totals("all")[""].counts == {"failed": 1, "refused": 1}


def test_restored_copy_is_nothing_new_and_another_outcome_is(site: Site) -> None:
    path = site.result("a")
    assert site.collect() == ["task_done a"]
    raw = path.read_bytes()
    path.with_name(".copy").write_bytes(raw)
    path.with_name(".copy").rename(path)
    assert site.collect() == []
    site.result("a", status="failed")
    assert site.collect() == ["task_done a"]
    assert site.ledger.totals("worker")["marie"].counts == {"failed": 1}


def test_file_with_a_known_name_and_the_same_inode_is_read_again_when_an_event_names_it(site: Site) -> None:
    path = site.result("a")
    site.collect()
    path.write_text(json.dumps({"task_id": "a", "worker": "marie", "status": "timeout"}))
    assert site.collect() == []
    site.collector.notice("results", "marie", "a.json")
    assert site.collect() == ["task_done a"]


def test_half_written_file_is_waited_for_and_then_reported_once(site: Site) -> None:
    path = site.folders["results"] / "marie" / "a.json"
    path.write_text('{"task_id": "a"')
    os.utime(path, (site.clock.wall(), site.clock.wall()))
    assert site.collect() == []
    site.clock.pass_seconds(1.9)
    assert site.collect() == []
    site.clock.pass_seconds(0.2)
    assert site.collect() == ["file_unreadable invalid"]
    site.clock.pass_seconds(100)
    assert site.collect() == []
    site.result("a")
    assert site.collect() == ["task_done a"]


@pytest.mark.parametrize(
    "text", ["[]", "NaN", "{}", '{"task_id": "b", "worker": "marie", "status": "failed"}', "[" * 100_000, "\x00"]
)
def test_what_is_no_result_is_reported_and_not_counted(site: Site, text: str) -> None:
    path = site.folders["results"] / "marie" / "a.json"
    path.write_text(text)
    os.utime(path, (1, 1))
    assert site.collect() == ["file_unreadable invalid"]
    assert site.ledger.totals("all") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"task_id": "a", "status": "failed"}', "it has no worker: it is no result of a worker"),
        ('{"task_id": 7, "worker": "marie", "status": "failed"}', "task_id must be a string, not a number"),
        ('{"task_id": "a", "worker": "marie", "status": "ok"}', "status must be one of completed, failed, timeout"),
    ],
)
def test_notice_says_which_field_makes_a_file_no_result(site: Site, text: str, says: str) -> None:
    path = site.folders["results"] / "marie" / "a.json"
    path.write_text(text)
    os.utime(path, (1, 1))
    assert site.collect() == ["file_unreadable invalid"]
    assert site.news.notices[0][0].fields["detail"].startswith(says)


def test_fifo_folder_and_link_neither_block_nor_are_followed(site: Site) -> None:
    place = site.folders["results"] / "marie"
    os.mkfifo(place / "fifo.json")
    (place / "folder.json").mkdir()
    (place / "link.json").symlink_to("/etc/hostname")
    (place / "notes.txt").write_text("mine")
    assert site.collect() == ["file_unreadable not_regular"] * 3
    assert "it is a symbolic link" in {notice.fields["detail"] for notice, _ in site.news.notices}
    assert site.collect() == []
    assert [event.file for event in site.memory.of(FileIgnored) if "notes" in event.file] == ["results/marie/notes.txt"]


def test_fields_of_the_wrong_kind_count_as_not_there(site: Site) -> None:
    site.result("a", duration_seconds="long", usage={"cost_usd": True, "input_tokens": -1}, batch_id=7, timestamp="now")
    assert site.collect() == ["task_done a"]
    found = site.ledger.find("marie", "results", "a.json")
    assert found is not None
    assert (found.duration_us, found.cost_nano, found.input_tokens, found.batch_id) == (None, 0, 0, None)


def test_one_bad_number_of_the_usage_costs_no_other(site: Site) -> None:
    usage = {
        "input_tokens": 12,
        "cached_input_tokens": -1,
        "output_tokens": 3,
        "model": 7,
        "session_id": "s",
        "turns": 2,
    }
    site.result("a", usage=usage)
    assert site.collect() == ["task_done a"]
    found = site.ledger.find("marie", "results", "a.json")
    assert found is not None
    assert (found.input_tokens, found.output_tokens, found.cost_nano) == (12, 3, 0)


def test_folder_that_goes_is_said_once_and_nothing_is_told_again_when_it_is_back(site: Site) -> None:
    site.result("a")
    site.collect()
    results = site.folders["results"] / "marie"
    results.rename(site.root / "aside")
    assert site.collect() == site.collect() == []
    assert len(site.memory.of(FolderLost)) == 1
    (site.root / "aside").rename(results)
    site.result("b")
    assert site.collect() == ["task_done b"]
    assert len(site.memory.of(FolderFound)) == 1


def test_results_that_were_removed_and_come_back_are_not_told_again(site: Site) -> None:
    path = site.result("a")
    site.collect()
    path.rename(site.root / "kept")
    assert site.collect() == []
    assert site.collector.known_count() == 0
    (site.root / "kept").rename(path)
    assert site.collect() == []
    assert site.collector.known_count() == 1


def test_notice_gives_the_time_of_the_result_as_it_stands_there(site: Site) -> None:
    times = {f"t{n}": f"2026-11-22T10:58:06.{n * 4_999 + 1:06d}Z" for n in range(100)}
    for stem, text in times.items():
        site.result(stem, timestamp=text)
    site.collect()
    assert {n.fields["task_id"]: n.fields["finished_at"] for n, _ in site.news.notices} == times


def test_new_database_is_silent_about_what_is_older_than_the_notices(site: Site) -> None:
    old = site.result("old", batch_id="b")
    os.utime(old, (1000, 1000))
    site.result("new")
    site.ledger.silent_before = 2000.0
    assert site.collect() == ["task_done new"]
    assert site.ledger.totals("all")[""].total == 2


def test_what_a_file_says_is_not_taken_for_another_that_got_its_inode(site: Site) -> None:
    """ext4 gives the inode of a task that has ended to the next file that is made."""
    first = site.task("first", batch_id="b", timeout=5)
    assert site.sight().tasks[("marie", "first")].facts.batch_id == "b"
    hidden = first.rename(first.with_name(".next"))
    hidden.write_text(json.dumps({"description": "of nobody's batch"}))
    os.utime(hidden, (site.clock.wall() - 7, site.clock.wall() - 7))
    hidden.rename(first.with_name("second.json"))
    sight = site.sight()
    second = sight.tasks[("marie", "second")].facts
    assert (second.batch_id, second.timeout) == (None, None) and not sight.batches
    assert second.arrived_at == pytest.approx(site.clock.wall() - 7, abs=0.01)


def test_file_that_was_seen_half_written_is_read_again_when_it_is_whole(site: Site) -> None:
    path = site.task("slow", batch_id="b", dependencies=["a"])
    text = path.read_text()
    path.write_text(text[:30])
    assert site.sight().tasks[("marie", "slow")].facts.batch_id is None
    path.write_text(text)
    assert site.sight().batches == {"b": 1}
    assert site.sight().tasks[("marie", "slow")].facts.dependencies == ("a",)


# --- batches and graphs


def check(site: Site, batches: Batches) -> list[dict[str, Any]]:
    batches.refresh()
    news = batches.check(site.sight())
    site.ledger.commit(news.entry)
    batches.told(news)
    return [notice.fields for notice, _ in news.notices]


def test_batch_is_told_when_none_of_its_tasks_is_on_its_way_and_the_claim_of_an_ended_one_does_not_count(
    site: Site,
) -> None:
    batches = Batches(site.ledger, site.clock, site.memory, 1.0)
    site.result("a", batch_id="b")
    site.result("c", batch_id="b", status="failed")
    claim = site.task("d~1-0", place=f".claims/{'0' * 32}", batch_id="b")
    ended = site.task("a~1-0", place=f".claims/{'0' * 32}", batch_id="b")
    site.collect()
    for _ in range(3):
        assert check(site, batches) == []
        site.clock.pass_seconds(1)
    claim.rename(site.folders["tasks"] / "marie" / "d.json")
    assert check(site, batches) == []
    (site.folders["tasks"] / "marie" / "d.json").unlink()
    assert check(site, batches) == []  # it has to settle
    site.clock.pass_seconds(1)
    (told,) = check(site, batches)
    assert told["counts"] == {"completed": 1, "failed": 1} and not told["all_completed"]
    assert ended.exists() and check(site, batches) == []


def test_batch_that_grows_is_told_again_when_it_is_complete_again(site: Site) -> None:
    batches = Batches(site.ledger, site.clock, site.memory, 0.0)
    site.result("a", batch_id="b")
    site.collect()
    assert len(check(site, batches)) == 1
    task = site.task("late", batch_id="b")
    site.collect()
    assert check(site, batches) == []
    task.unlink()
    site.result("late", batch_id="b")
    site.collect()
    assert [told["counts"] for told in check(site, batches)] == [{"completed": 2}]
    assert check(site, Batches(site.ledger, site.clock, site.memory, 0.0)) == []


def test_batch_and_graph_over_which_the_listener_fails_keep_no_other_from_being_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(site.ledger, site.clock, site.memory, 0.0)
    graphs = Graphs(site.ledger, site.clock, site.memory, 0.0)
    for batch in ("a", "poison", "z"):
        site.result(batch, batch_id=batch)
        site.result(f"{batch}-root")
        graphs.add([("marie", batch, f"{batch}-root")])
    site.collect()
    true = batches_module._summary

    def summary(outcomes: list[Finished], counts: Counter[str]) -> dict[str, Any]:
        if any("poison" in outcome.task_id for outcome in outcomes):
            raise RecursionError("injected")
        return true(outcomes, counts)

    monkeypatch.setattr(batches_module, "_summary", summary)
    assert [told["batch_id"] for told in check(site, batches)] == ["a", "z"] and check(site, batches) == []
    news = graphs.check(site.sight(), 1, lambda worker, task: site.ledger.find(worker, "results", f"{task}.json"))
    assert sorted(notice.fields["tasks"][0]["task_id"] for notice, _ in news.notices) == ["a", "z"]
    assert [told.file for told in site.memory.of(FileIgnored)] == ["batch poison", "graph of marie/poison"]


def test_graph_is_told_when_all_that_hangs_together_has_ended(site: Site) -> None:
    graphs = Graphs(site.ledger, site.clock, site.memory, 0.0)
    waiting = [site.task("leaf", "anga", dependencies=["marie/root", "twig"]), site.task("twig", "anga")]
    learnt = Findings()
    graphs.learn(site.sight(), learnt)
    site.ledger.commit(learnt.entry)

    def look() -> list[dict[str, Any]]:
        site.collect()
        news = graphs.check(site.sight(), len(list(site.ledger.known())), find)
        site.ledger.commit(news.entry)
        graphs.told(news)
        return [notice.fields for notice, _ in news.notices]

    def find(worker: str, task_id: str) -> Any:
        return site.ledger.find(worker, "results", f"{task_id}.json")

    site.result("root")
    site.result("other")
    assert look() == []
    for path in waiting:
        path.unlink()
    site.result("twig", "anga")
    assert look() == []
    site.result("leaf", "anga", status="failed")
    (told,) = look()
    assert [f"{t['worker']}/{t['task_id']}" for t in told["tasks"]] == ["anga/leaf", "anga/twig", "marie/root"]
    assert look() == []
    graphs = Graphs(site.ledger, site.clock, site.memory, 0.0)
    assert look() == []


def test_task_that_goes_back_from_a_claim_to_its_retry_during_the_look_is_seen(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = site.task("a~1-0", place=f".claims/{'0' * 32}", batch_id="b")
    retry = site.folders["tasks"] / "marie" / ".retry"
    retry.mkdir()
    real = waiting_module._list

    def moves_before_the_claims_are_listed(place: Path) -> Any:
        if place == claim.parent and claim.exists():
            claim.rename(retry / "a~1-0-5.json")
        return real(place)

    monkeypatch.setattr(waiting_module, "_list", moves_before_the_claims_are_listed)
    assert site.sight().batches == {"b": 1}


def test_held_task_is_on_its_way_and_never_overdue(site: Site) -> None:
    site.task("a", place=".held", batch_id="b")
    sight = site.sight()
    assert sight.batches == {"b": 1}
    assert sight.tasks["marie", "a"].is_held


# --- pruning


def test_only_what_is_older_than_its_retention_goes_and_a_clock_that_jumps_removes_nothing(site: Site) -> None:
    site.folders["triggers"].joinpath("orchestrator").mkdir()
    receipt = site.folders["triggers"] / "marie" / "a.json"
    notice = site.folders["triggers"] / "orchestrator" / "marie--a.json"
    result = site.result("a")
    needed = site.result("needed")
    for path in (receipt, notice):
        path.write_text("{}")
    pruner = Pruner(site.folders, Retention(3600.0, 7200.0, 0.0), site.clock, site.memory)

    def prune() -> list[bool]:
        for _ in pruner.prune(lambda _, task_id: task_id == "needed"):
            pass
        return [path.exists() for path in (receipt, notice, result, needed)]

    site.clock.now_wall += 1e6
    assert prune() == [True] * 4
    site.clock.now_wall -= 1e6
    site.clock.pass_seconds(3700)
    assert prune() == [False, False, True, True]
    site.clock.pass_seconds(3700)
    assert prune() == [False, False, False, True]
    assert [(e.receipts, e.notices, e.results) for e in site.memory.of(FilesPruned)] == [(1, 1, 0), (0, 0, 1)]


def test_refused_file_stays_as_long_as_its_dead_letter_however_old_it_came(site: Site) -> None:
    """It keeps its writer's time stamp when it is put aside, so that one is no sign of how long it has lain there."""
    letters = site.folders["dlq"] / "marie"
    originals = letters / ".originals"
    originals.mkdir()
    for stem, letter in (("a", "a"), ("b", "b~2"), ("gone", None)):
        (originals / f"{stem}.77-1").write_text("{nope")
        os.utime(originals / f"{stem}.77-1", (1e9, 1e9))
        if letter is not None:
            (letters / f"{letter}.json").write_text(json.dumps({"dlq_original": f".originals/{stem}.77-1"}))
    pruner = Pruner(site.folders, Retention(0.0, 0.0, 3600.0), site.clock, site.memory)
    for _ in pruner.prune(lambda *_: False):
        pass
    assert names_of(originals) == ["a.77-1", "b.77-1"], "what no dead letter names is what was left over"
    site.clock.pass_seconds(7200)
    for _ in pruner.prune(lambda *_: False):
        pass
    assert names_of(originals) == [] and names_of(letters) == [".originals"]


def test_beats_of_instances_that_ended_long_ago_go_and_those_of_workers_stay(site: Site, tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    beats.mkdir()
    for name in ("marie.json", "marie@7f3a.json", "marie@new.json"):
        (beats / name).write_text("{}")
    pruner = Pruner(site.folders | {"heartbeats": beats}, Retention(60.0, 0.0, 0.0), site.clock, site.memory)
    site.clock.pass_seconds(3600)
    for _ in pruner.prune(lambda *_: True):
        pass
    assert len(names_of(beats)) == 3, "a living process may be silent for an hour"
    site.clock.pass_seconds(3700)
    now = site.clock.now_wall
    os.utime(beats / "marie@new.json", (now, now))
    for _ in pruner.prune(lambda *_: True):
        pass
    assert names_of(beats) == ["marie.json", "marie@new.json"]


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [MemoryError, RecursionError, KeyError])
def test_file_over_which_the_listener_fails_is_reported_and_the_others_are_found(
    site: Site, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    for stem in ("a", "poison", "z"):
        site.result(stem)
    true = collector_module._parse

    def parse(folder: str, raw: bytes) -> dict[str, Any]:
        if b"poison" in raw:
            raise error("injected")
        return true(folder, raw)

    monkeypatch.setattr(collector_module, "_parse", parse)
    found = site.collect()
    assert {"task_done a", "task_done z"} < set(found) and len(found) == 3
    assert site.collect() == []


def test_waiting_file_that_was_exchanged_since_the_listing_tells_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site.task("t", batch_id="listed")
    real = no_links.open_file

    def exchange(name: Any, *more: Any) -> int:
        if name == path or str(name) == str(path):
            path.with_name(".new").write_text('{"description": "x", "batch_id": "other"}')
            path.with_name(".new").replace(path)
        return real(name, *more)

    monkeypatch.setattr(no_links, "open_file", exchange)
    assert "other" not in site.sight().batches
