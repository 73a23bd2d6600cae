"""A worker with STATS_URL: a server gets every outcome, and one that hangs or is gone takes nothing from the tasks."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.acceptance.conftest import Site
from tests.unit.test_push import Server
from tests.waiting import wait_for

TASKS = [f"t{number:02d}" for number in range(40)]


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as made:
        yield made


def test_each_outcome_of_a_worker_is_told_once(site: Site, server: Server) -> None:
    agent = site.script('test "$WATCHER_TASK_ID" != bad || exit 7')
    worker = site.start(
        STATS_URL=server.url("/agents/{worker}/{agent_id}"), STATS_TOKEN="s3cret-of-ours", AGENT_COMMAND=agent,
        MAX_RETRIES="1", AGENT_ENV="STATS_*", LOG_LEVEL="DEBUG",
    )  # fmt: skip
    site.drop("good", agent_id="notes")
    result = site.result("good")
    site.drop("bad")
    site.result("bad")
    site.drop("orphan", dependencies=["bad"])
    site.result("orphan")
    # At a stop what is still queued gets two seconds, which a busy machine may need for less.
    wait_for("all three to be told", lambda: len(server.got) >= 3)
    assert worker.stop() == 0
    assert [path for _, path, _, _ in server.got] == [
        "/agents/marie/notes",
        "/agents/marie/marie",
        "/agents/marie/marie",
    ]
    assert [body["exit_code"] for body in server.bodies()] == [0, 7, -1]
    assert server.bodies()[0]["task_duration"] == round(result["duration_seconds"] * 1000)
    assert "s3cret-of-ours" not in worker.text()


def test_server_that_never_answers_stops_no_task_and_no_stop(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        worker = site.start(STATS_URL=f"http://127.0.0.1:{silent.getsockname()[1]}/{{worker}}", SHUTDOWN_GRACE="5")
        for stem in TASKS:
            site.drop(stem)
        wait_for("all results", lambda: site.results() == TASKS)
        assert site.beat_that(lambda beat: beat["stats"]["tasks_processed"] == len(TASKS))["status"] == "healthy"
        assert worker.stop() == 0
    assert sum(line["dropped"] for line in worker.lines("statistics.dropped")) == len(TASKS)
    assert site.leftovers() == []


def test_server_that_is_gone_is_a_warning(site: Site) -> None:
    with socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))  # nobody listens here, and nobody else can get this port meanwhile
        worker = site.start(STATS_URL=f"http://127.0.0.1:{gone.getsockname()[1]}/")
        for stem in TASKS:
            site.drop(stem)
        wait_for("all results", lambda: site.results() == TASKS)
        assert worker.stop() == 0
    dropped = worker.lines("statistics.dropped")
    assert {line["level"] for line in dropped} == {"WARNING"} and "refused" in dropped[0]["message"]


def test_metrics_count_what_was_sent_and_dropped(site: Site, server: Server) -> None:
    from urllib.request import urlopen

    site.start(STATS_URL=server.url(), ENABLE_METRICS="true", METRICS_PORT="0")
    site.drop("one")
    wait_for("the push", lambda: server.got)
    port = site.beat_that(lambda beat: beat["metrics_port"])["metrics_port"]

    def page() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            return str(answer.read().decode())

    wait_for("the count", lambda: 'watcher_statistics_sent_total{worker="marie"} 1.0' in page())
    assert 'watcher_statistics_dropped_total{worker="marie"} 0.0' in page()


@pytest.mark.parametrize(
    "url", ["ftp://h/x", "http:///x", "h/x", "http://u:p@h/x", "http://h/{other}", "http://{worker}/x", "http://h/ x"]
)
def test_wrong_address_is_refused(site: Site, url: str) -> None:
    worker = site.launch("marie", STATS_URL=url)
    assert worker.ended() == 2 and "STATS_URL" in worker.text() and "u:p" not in worker.text()


def test_token_is_hidden_where_settings_are_shown(site: Site) -> None:
    worker = site.launch("marie", "--print-config", STATS_TOKEN="plainword")
    assert worker.ended() == 0
    assert "plainword" not in worker.text() and "hidden: a secret" in worker.text()
    wrong = site.launch("marie", STATS_TOKEN="two plainwords")
    assert wrong.ended() == 2 and "STATS_TOKEN" in wrong.text() and "plainwords" not in wrong.text()
