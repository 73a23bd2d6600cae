"""How many instances there should be: by work, by load, never in a hurry, never fewer than the minimum."""

from __future__ import annotations

from watcher.policy.scaling import Load, Scaler, ScalingRules, Target

RULES = ScalingRules(
    minimum=1, maximum=4, slots=3, grow_after_seconds=5, shrink_after_seconds=60, overload_after_seconds=10
)


def full(instances: int, waiting: int = 10, cpu: float | None = None, memory: float | None = None) -> Load:
    return Load(instances, active=3 * instances, waiting=waiting, cpu_percent=cpu, memory_percent=memory)


def steps(scaler: Scaler, load: Load, *moments: float) -> list[int]:
    return [scaler.step(load, now).instances for now in moments]


def test_one_more_after_the_slots_were_busy_and_tasks_waited_for_a_while() -> None:
    scaler = Scaler(RULES)
    assert steps(scaler, full(1), 0, 4.9, 5.0) == [1, 1, 2]
    assert steps(scaler, full(2), 5.1, 10.0, 10.2) == [2, 2, 3], "and the while begins anew"


def test_burst_that_passes_moves_nothing() -> None:
    scaler = Scaler(RULES)
    assert steps(scaler, full(1), 0, 4) == [1, 1]
    assert steps(scaler, Load(1, 3, 0), 4.5) == [1]
    assert steps(scaler, full(1), 5, 9.9) == [1, 1]


def test_tasks_that_wait_for_something_else_start_no_instance() -> None:
    assert steps(Scaler(RULES), Load(1, active=2, waiting=1000), 0, 100) == [1, 1]


def test_never_more_than_the_maximum() -> None:
    assert steps(Scaler(RULES), full(4), 0, 100) == [4, 4]


def test_one_less_after_the_work_fitted_into_fewer_for_a_while() -> None:
    scaler = Scaler(RULES)
    idle = Load(3, active=6, waiting=0)
    assert steps(scaler, idle, 0, 59, 60) == [3, 3, 2]
    assert steps(scaler, Load(2, 3, 0), 61, 119, 121) == [2, 2, 1]
    assert steps(scaler, Load(1, 0, 0), 200, 1000) == [1, 1], "never fewer than the minimum"


def test_instance_that_does_not_work_yet_is_waited_for() -> None:
    scaler = Scaler(RULES)
    assert steps(scaler, Load(2, active=3, waiting=9, starting=1), 0, 1000) == [2, 2], "its slots are not idle"
    assert steps(scaler, Load(2, active=6, waiting=9, starting=1), 1001, 2000) == [2, 2], "nor is it in vain yet"
    assert steps(scaler, Load(2, 3, 9, starting=1, cpu_percent=99), 2001, 2011) == [2, 1]


def test_load_between_the_two_bounds_keeps_what_there_is() -> None:
    scaler = Scaler(RULES)
    assert steps(scaler, Load(2, active=4, waiting=5), 0, 1000) == [2, 2]


def test_busy_machine_loses_one_instance_at_a_time_down_to_the_minimum() -> None:
    scaler = Scaler(RULES)
    assert steps(scaler, full(3, cpu=95), 0, 9, 10) == [3, 3, 2]
    assert steps(scaler, full(2, cpu=95), 11, 20, 21.5) == [2, 2, 1]
    assert steps(scaler, full(1, cpu=95), 30, 100) == [1, 1]
    assert "MAX_CPU_PERCENT 80" in _reason(full(3, cpu=95))
    assert "MAX_MEMORY_PERCENT 90" in _reason(full(3, memory=95))


def test_busy_machine_gets_no_more_instances() -> None:
    assert steps(Scaler(RULES), full(1, cpu=81), 0, 100) == [1, 1]


def test_load_at_the_bound_or_unknown_is_not_over_it() -> None:
    assert steps(Scaler(RULES), full(1, cpu=80, memory=90), 0, 5) == [1, 2]
    assert steps(Scaler(RULES), full(1, cpu=None, memory=None), 0, 5) == [1, 2]


def test_too_few_are_filled_up_at_once() -> None:
    assert Scaler(RULES).step(Load(0, 0, 0), 0.0) == Target(1, "fewer than the minimum of 1")


def _reason(load: Load) -> str:
    scaler = Scaler(RULES)
    scaler.step(load, 0)
    return scaler.step(load, 10).reason
