"""What a scraper sees after events."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from watcher.telemetry import events
from watcher.telemetry.disk_space import DiskSpace
from watcher.telemetry.labels import MAX_LABEL_VALUES, OTHER
from watcher.telemetry.listener_metrics import ListenerMetrics
from watcher.telemetry.webhook_metrics import WebhookMetrics
from watcher.telemetry.worker_metrics import WorkerMetrics

DOCUMENTS = Path(__file__).parents[2] / "docs"


class Seen:
    """A worker's metrics and what they show."""

    def __init__(self, **more: Any) -> None:
        self.registry = CollectorRegistry()
        self.metrics = WorkerMetrics("marie", self.registry, **more)

    def after(self, *happened: events.Event) -> Seen:
        for event in happened:
            self.metrics(event)
        return self

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"worker": "marie", **labels})

    def label_values(self, name: str, label: str) -> set[str]:
        samples = [s for family in self.registry.collect() for s in family.samples if s.name == name]
        return {sample.labels[label] for sample in samples}


@pytest.fixture
def seen() -> Seen:
    return Seen(providers=["claude", "codex"])


def settled(**changes: Any) -> events.TaskSettled:
    facts: dict[str, Any] = {
        "task_id": "t1", "status": "completed", "reason": None, "provider": "claude", "attempts": 1,
        "retry_count": 0, "duration_seconds": 2.0, "dead_lettered": False,
    }  # fmt: skip
    return events.TaskSettled(**facts | changes)


def breaker(provider: str, state: str) -> events.BreakerMoved:
    return events.BreakerMoved(provider, state, 5)


def refused(reason: str) -> events.TaskRefused:
    return events.TaskRefused("t1", reason, "not JSON")


def test_the_six_documented_metrics_are_there_with_their_labels_before_anything_happened() -> None:
    seen = Seen()
    for status in ("completed", "failed", "timeout", "cancelled"):
        assert seen.value("watcher_tasks_processed_total", status=status) == 0
    assert seen.value("watcher_tasks_failed_total", reason="max_retries_exceeded") == 0
    assert seen.value("watcher_task_duration_seconds_count") == 0
    assert seen.value("watcher_task_queue_size") == 0
    assert seen.value("watcher_active_tasks") == 0
    assert seen.value("watcher_circuit_breaker_state") == 0


def test_a_completed_task_counts_as_processed_and_not_as_failed(seen: Seen) -> None:
    seen.after(settled())
    assert seen.value("watcher_tasks_processed_total", status="completed") == 1
    assert sum(s.value for f in seen.registry.collect() for s in f.samples if "failed" in s.name) == 0


@pytest.mark.parametrize("status", ["failed", "timeout", "cancelled"])
def test_a_task_that_did_not_complete_counts_under_its_reason(seen: Seen, status: str) -> None:
    seen.after(settled(status=status, reason="unknown_model"))
    assert seen.value("watcher_tasks_processed_total", status=status) == 1
    assert seen.value("watcher_tasks_failed_total", reason="unknown_model") == 1


def test_a_failure_without_a_reason_counts_under_its_status(seen: Seen) -> None:
    seen.after(settled(status="timeout"))
    assert seen.value("watcher_tasks_failed_total", reason="timeout") == 1


def test_a_refused_file_counts_as_failed_and_as_dead_letter_but_not_as_processed(seen: Seen) -> None:
    seen.after(refused("invalid_json"))
    assert seen.value("watcher_tasks_failed_total", reason="invalid_json") == 1
    assert seen.value("watcher_dead_letters_total", reason="invalid_json") == 1
    assert seen.value("watcher_tasks_processed_total", status="failed") == 0


def test_only_a_dead_lettered_task_counts_as_dead_letter(seen: Seen) -> None:
    seen.after(
        settled(status="failed", reason="max_retries_exceeded", dead_lettered=True),
        settled(status="failed", reason="max_retries_exceeded", dead_lettered=False),
    )
    assert seen.value("watcher_dead_letters_total", reason="max_retries_exceeded") == 1


def test_durations_from_milliseconds_to_hours_fall_into_different_buckets(seen: Seen) -> None:
    seen.after(*(settled(duration_seconds=s) for s in (0.004, 3.0, 3000.0, 14_000.0, 20_000.0)))

    def up_to(bound: str) -> float | None:
        return seen.value("watcher_task_duration_seconds_bucket", le=bound)

    assert [up_to(b) for b in ("0.005", "5.0", "3600.0", "7200.0", "14400.0", "+Inf")] == [1, 2, 3, 3, 4, 5]


def test_a_task_that_never_ran_has_no_duration(seen: Seen) -> None:
    seen.after(settled(status="failed", reason="dependency_failed", attempts=0, duration_seconds=0.0))
    assert seen.value("watcher_task_duration_seconds_count") == 0


def test_claim_latency_is_measured(seen: Seen) -> None:
    seen.after(events.TaskClaimed("t1", "claude", 1, 0.004), events.TaskClaimed("t2", "claude", 1, 400.0))
    assert seen.value("watcher_task_claim_latency_seconds_bucket", le="0.005") == 1
    assert seen.value("watcher_task_claim_latency_seconds_sum") == pytest.approx(400.004)


@pytest.mark.parametrize("odd", [-3.0, math.nan, math.inf])
def test_an_impossible_number_leaves_the_sums_usable(seen: Seen, odd: float) -> None:
    seen.after(
        events.TaskClaimed("t1", "claude", 1, odd),
        settled(duration_seconds=odd, cost_usd=odd, input_tokens=-7),
        events.LeftoversKilled("t1", -1),
        settled(duration_seconds=2.0, cost_usd=0.5),
    )
    assert seen.value("watcher_task_claim_latency_seconds_sum") == 0
    assert seen.value("watcher_task_duration_seconds_sum") == 2.0
    assert seen.value("watcher_provider_cost_usd_total", provider="claude") == 0.5
    assert seen.value("watcher_provider_tokens_total", provider="claude", kind="input") == 0


def test_attempts_retries_and_output_are_counted(seen: Seen) -> None:
    seen.after(
        events.AttemptEnded("t1", "claude", 1, "transient", "exit_code", 1, 0.2, 100, 30),
        events.TaskRetryScheduled("t1", "claude", 1, "exit_code", 1.0),
        events.AttemptEnded("t1", "claude", 2, None, None, 0, 0.2, 11, 0),
    )
    assert seen.value("watcher_task_attempts_total", provider="claude", failure="transient") == 1
    assert seen.value("watcher_task_attempts_total", provider="claude", failure="none") == 1
    assert seen.value("watcher_task_retries_total", provider="claude") == 1
    assert seen.value("watcher_task_retries_total", provider="codex") == 0
    assert seen.value("watcher_output_bytes_total", stream="stdout") == 111
    assert seen.value("watcher_output_bytes_total", stream="stderr") == 30


def test_usage_is_shown_for_the_provider_that_reports_it_only(seen: Seen) -> None:
    seen.after(settled(input_tokens=1000, output_tokens=20, cost_usd=0.25), settled(provider="codex"))
    assert seen.value("watcher_provider_tokens_total", provider="claude", kind="input") == 1000
    assert seen.value("watcher_provider_tokens_total", provider="claude", kind="output") == 20
    assert seen.value("watcher_provider_cost_usd_total", provider="claude") == 0.25
    assert seen.value("watcher_provider_cost_usd_total", provider="codex") is None


def test_spending_of_all_attempts_is_counted_and_a_spent_day_is_1_while_it_lasts(seen: Seen) -> None:
    seen.after(events.SpendingRecorded("t1", "claude", 0.25), events.SpendingRecorded("t2", "claude", 0.5))
    assert seen.value("watcher_spent_usd_total", provider="claude") == 0.75
    assert seen.value("watcher_spent_usd_total", provider="codex") is None
    assert seen.value("watcher_over_daily_budget") == 0
    assert seen.after(events.BudgetReached(5, 5, "x")).value("watcher_over_daily_budget") == 1
    assert seen.after(events.BudgetLifted(5, 9)).value("watcher_over_daily_budget") == 0
    seen.metrics.read_at_scrape(spent_today_usd=lambda: 4.5, daily_budget_usd=lambda: 5.0)
    assert (seen.value("watcher_spent_today_usd"), seen.value("watcher_daily_budget_usd")) == (4.5, 5)


def test_the_rare_events_are_counted(seen: Seen) -> None:
    seen.after(
        events.TaskReleased("t1", "worker_stopping"),
        events.TaskRescued("t2", 1, "f00d", "returned"),
        events.TaskDropped("t3", "already_settled"),
        events.OutcomeDiscarded("t4", "rescued"),
        events.FileIgnored("x~", "name"),
        events.LeftoversKilled("t5", 3),
        events.HintFailed("t6", "EACCES"),
        events.WakeDegraded("overflow"),
    )
    assert seen.value("watcher_tasks_released_total", reason="worker_stopping") == 1
    assert seen.value("watcher_tasks_rescued_total") == 1
    assert seen.value("watcher_duplicates_dropped_total") == 1
    assert seen.value("watcher_outcomes_discarded_total") == 1
    assert seen.value("watcher_files_ignored_total") == 1
    assert seen.value("watcher_leftover_processes_killed_total") == 3
    assert seen.value("watcher_hints_failed_total") == 1
    assert seen.value("watcher_wake_degraded_total") == 1


def test_the_breaker_metric_shows_the_worst_provider(seen: Seen) -> None:
    shown = []
    for provider, state in (
        ("claude", "half_open"), ("codex", "open"), ("codex", "half_open"), ("claude", "closed"),
        ("codex", "closed"),
    ):  # fmt: skip
        seen.after(breaker(provider, state))
        shown.append(seen.value("watcher_circuit_breaker_state"))
    assert shown == [2, 1, 2, 2, 0]


def test_each_provider_shows_its_own_breaker(seen: Seen) -> None:
    seen.after(breaker("codex", "open"))
    assert seen.value("watcher_provider_circuit_breaker_state", provider="codex") == 1
    assert seen.value("watcher_provider_circuit_breaker_state", provider="claude") == 0


def test_a_hold_shows_until_when_and_goes_when_the_provider_works_again(seen: Seen) -> None:
    name = "watcher_provider_held_until_timestamp_seconds"
    assert seen.value(name, provider="claude") == 0
    seen.after(events.ProviderHeld("claude", "usage_limit", "", "2026-11-21T00:00:00Z"))
    assert seen.value(name, provider="claude") == 1_795_219_200
    seen.after(events.ProviderHeld("claude", "not_logged_in", "", None))
    assert seen.value(name, provider="claude") == math.inf
    seen.after(events.ProviderResumed("claude"))
    assert seen.value(name, provider="claude") == 0


def test_a_hold_with_an_unreadable_time_still_shows_as_a_hold(seen: Seen) -> None:
    seen.after(events.ProviderHeld("claude", "usage_limit", "", "tomorrow"))
    assert seen.value("watcher_provider_held_until_timestamp_seconds", provider="claude") == math.inf


def test_trouble_is_1_while_it_lasts(seen: Seen) -> None:
    assert seen.after(events.TroubleBegan("ENOSPC")).value("watcher_trouble") == 1
    assert seen.after(events.TroubleEnded(3.0)).value("watcher_trouble") == 0


def test_gauges_are_read_when_scraped_and_not_before(seen: Seen) -> None:
    asked = []

    def queue_size() -> float:
        asked.append(1)
        return 7.0 + len(asked)

    seen.metrics.read_at_scrape(queue_size=queue_size, active_tasks=lambda: 2, oldest_pending_age_seconds=lambda: 9.5)
    seen.after(settled(), settled())
    assert not asked
    assert seen.value("watcher_task_queue_size") == 8
    assert seen.value("watcher_task_queue_size") == 9
    assert seen.value("watcher_active_tasks") == 2
    assert seen.value("watcher_oldest_pending_task_age_seconds") == 9.5


def test_no_pending_task_has_the_age_zero(seen: Seen) -> None:
    seen.metrics.read_at_scrape(oldest_pending_age_seconds=lambda: None)
    assert seen.value("watcher_oldest_pending_task_age_seconds") == 0


def test_a_gauge_that_cannot_be_read_costs_only_itself(seen: Seen) -> None:
    def broken() -> float:
        raise RuntimeError("dictionary changed size during iteration")

    seen.metrics.read_at_scrape(queue_size=broken, active_tasks=lambda: 2)
    shown = seen.value("watcher_task_queue_size")
    assert shown is not None
    assert math.isnan(shown)
    assert seen.value("watcher_active_tasks") == 2


def test_dropped_log_lines_are_a_counter_read_at_scrape(seen: Seen) -> None:
    lost = [3]
    assert seen.value("watcher_log_lines_dropped_total") is None
    seen.metrics.read_at_scrape(log_lines_dropped=lambda: lost[0])
    assert seen.value("watcher_log_lines_dropped_total") == 3
    lost[0] = 5
    assert seen.value("watcher_log_lines_dropped_total") == 5


def test_a_reason_becomes_a_clean_short_word(seen: Seen) -> None:
    seen.after(refused('Exit Code 127: "x"\n{}'), refused("a" * 200), refused("…"))
    reasons = seen.label_values("watcher_tasks_failed_total", "reason")
    assert {"exit_code_127_x", "a" * 48, "unknown"} <= reasons
    assert all(len(reason) <= 48 and reason.replace("_", "a").isalnum() for reason in reasons)


def test_reasons_beyond_fifty_are_counted_together_and_none_is_lost(seen: Seen) -> None:
    before = len(seen.label_values("watcher_tasks_failed_total", "reason"))
    seen.after(*(refused(f"made_up_{n}") for n in range(3000)), refused("worker_died"))
    assert len(seen.label_values("watcher_tasks_failed_total", "reason")) == MAX_LABEL_VALUES + 1
    assert seen.value("watcher_tasks_failed_total", reason=OTHER) == 3000 - (MAX_LABEL_VALUES - before)
    assert seen.value("watcher_tasks_failed_total", reason="worker_died") == 1


def test_made_up_providers_do_not_push_out_a_configured_one(seen: Seen) -> None:
    made_up = (events.AttemptEnded("t", f"p{n}", 1, None, None, 0, 0.1, 0, 0) for n in range(200))
    seen.after(*made_up, events.AttemptEnded("t", "codex", 1, None, None, 0, 0.1, 0, 0))
    assert len(seen.label_values("watcher_task_attempts_total", "provider")) == MAX_LABEL_VALUES + 1
    assert seen.value("watcher_task_attempts_total", provider="codex", failure="none") == 1


def test_no_task_id_is_ever_exposed(seen: Seen) -> None:
    task_id = "task-4711"
    seen.after(
        events.TaskClaimed(task_id, "claude", 1, 0.1),
        events.AttemptStarted(task_id, "claude", 1),
        events.AttemptEnded(task_id, "claude", 1, "transient", "exit_code", 1, 0.2, 1, 1),
        events.TaskRetryScheduled(task_id, "claude", 1, "exit_code", 1.0),
        settled(task_id=task_id, status="failed", reason="max_retries_exceeded", dead_lettered=True),
        events.TaskRefused(task_id, "invalid_json", task_id),
        events.TaskRescued(task_id, 1, "f00d", "returned"),
    )
    assert task_id not in generate_latest(seen.registry).decode()


def test_an_event_without_a_metric_is_ignored(seen: Seen) -> None:
    before = generate_latest(seen.registry)
    seen.after(events.TaskFieldsUnknown("t1", "colour"), events.WorkerStarted("f00d", 1, ""))
    assert generate_latest(seen.registry) == before


def test_the_exposition_parses_and_has_no_created_series() -> None:
    metrics = WorkerMetrics("marie")
    metrics(settled(input_tokens=3))
    families = {
        family.name: family for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
    }
    assert families["watcher_tasks_processed"].type == "counter"
    assert families["watcher_task_duration_seconds"].type == "histogram"
    assert not [name for name in families if name.endswith("_created")]
    assert "process_open_fds" in families
    (build,) = families["watcher_build_info"].samples
    assert build.labels["worker"] == "marie"
    assert build.labels["version"]


def test_documents_name_every_metric() -> None:
    worker, listener = Seen(), CollectorRegistry()
    worker.metrics.read_statistics(lambda: (0, 0))
    listener.register(ListenerMetrics(lambda: 0.0, lambda: 0.0, lambda: 0.0))
    listener.register(DiskSpace({}))
    webhook = WebhookMetrics(lambda: 0, lambda: 0).registry
    documents = {worker.registry: "monitoring.md", listener: "listener.md", webhook: "webhook.md"}
    for registry, document in documents.items():
        text = (DOCUMENTS / document).read_text() + (DOCUMENTS / "limits.md").read_text()
        families = [family for family in registry.collect() if family.name.startswith("watcher_")]
        assert len(families) > 5
        for family in families:
            ending = {"counter": "_total", "info": "_info"}.get(family.type, "")
            assert re.search(rf"`{family.name}{ending}[`{{]", text), f"{document}: {family.name}{ending}"
