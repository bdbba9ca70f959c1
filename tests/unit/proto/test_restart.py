"""When a backend that died may be started again."""

from __future__ import annotations

from wstunnel.limits import RestartLimits
from wstunnel.proto.restart import RestartGate

LIMITS = RestartLimits(healthy_after_s=1.0, first_wait_s=0.1, max_wait_s=30.0)


def run(gate: RestartGate, *, from_s: float, for_s: float) -> float:
    gate.started(from_s)
    return gate.died(from_s + for_s)


def test_a_healthy_run_is_followed_by_an_immediate_start():
    assert run(RestartGate(LIMITS), from_s=50.0, for_s=1.0) == 0.0


def test_a_short_run_is_followed_by_the_first_wait():
    assert run(RestartGate(LIMITS), from_s=50.0, for_s=0.99) == 0.1


def test_the_wait_doubles_in_a_crash_loop_and_stays_at_its_bound():
    gate = RestartGate(LIMITS)

    waits = [run(gate, from_s=100.0 * turn, for_s=0.0) for turn in range(12)]

    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]


def test_a_healthy_run_makes_the_crash_loop_before_it_forgotten():
    gate = RestartGate(LIMITS)
    for turn in range(5):
        run(gate, from_s=10.0 * turn, for_s=0.0)

    assert run(gate, from_s=100.0, for_s=2.0) == 0.0
    assert run(gate, from_s=200.0, for_s=0.0) == 0.1


def test_a_start_that_failed_counts_as_a_short_run_however_long_ago_the_last_one_was():
    gate = RestartGate(LIMITS)
    run(gate, from_s=0.0, for_s=0.0)

    assert gate.died(1000.0) == 0.2


def test_the_first_start_may_fail():
    assert RestartGate(LIMITS).died(1000.0) == 0.1


def test_a_program_that_is_always_healthy_enough_never_waits():
    gate = RestartGate(RestartLimits(healthy_after_s=0.0))

    assert [run(gate, from_s=1.0, for_s=0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
