"""When a backend that died may be started again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.limits import RestartLimits
from wstunnel.proto.restart import Circuit, RestartGate

LIMITS = RestartLimits(
    healthy_after_s=1.0, first_wait_s=0.1, max_wait_s=30.0, max_deaths=8, window_s=60.0, probe_after_s=20.0
)
LOOPING_FOR_EVER = RestartLimits(first_wait_s=0.1, max_wait_s=30.0, max_deaths=1000, window_s=1e9)


def run(gate: RestartGate, *, from_s: float, for_s: float) -> float:
    gate.started(from_s)
    return gate.died(from_s + for_s)


def opened(limits: RestartLimits = LIMITS) -> RestartGate:
    """A gate whose circuit has opened a moment before 0 s."""
    gate = RestartGate(limits)
    for turn in range(limits.max_deaths):
        run(gate, from_s=-0.1 * (limits.max_deaths - turn), for_s=0.0)
    assert gate.circuit is Circuit.OPEN
    return gate


def test_a_healthy_run_is_followed_by_an_immediate_start():
    gate = RestartGate(LIMITS)

    assert run(gate, from_s=50.0, for_s=1.0) == 0.0
    assert gate.circuit is Circuit.CLOSED


def test_a_short_run_is_followed_by_the_first_wait():
    gate = RestartGate(LIMITS)

    assert run(gate, from_s=50.0, for_s=0.99) == 0.1
    assert gate.circuit is Circuit.LOOPING


def test_the_wait_doubles_in_a_crash_loop_and_stays_at_its_bound():
    gate = RestartGate(LOOPING_FOR_EVER)

    waits = [run(gate, from_s=100.0 * turn, for_s=0.0) for turn in range(12)]

    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]


def test_a_healthy_run_makes_the_crash_loop_before_it_forgotten():
    gate = RestartGate(LIMITS)
    for turn in range(7):
        run(gate, from_s=10.0 + turn, for_s=0.0)

    assert run(gate, from_s=20.0, for_s=2.0) == 0.0
    assert [run(gate, from_s=30.0 + turn, for_s=0.0) for turn in range(2)] == [0.1, 0.2]
    assert gate.circuit is Circuit.LOOPING


def test_a_start_that_failed_counts_as_a_short_run_however_long_ago_the_last_one_was():
    gate = RestartGate(LIMITS)
    run(gate, from_s=0.0, for_s=0.0)

    assert gate.died(1000.0) == 0.2


def test_the_first_start_may_fail():
    assert RestartGate(LIMITS).died(1000.0) == 0.1


def test_a_program_that_is_always_healthy_enough_never_waits():
    gate = RestartGate(RestartLimits(healthy_after_s=0.0))

    assert [run(gate, from_s=1.0, for_s=0.0) for _ in range(20)] == [0.0] * 20


def test_too_many_short_runs_in_the_window_open_the_circuit():
    gate = RestartGate(LIMITS)

    waits = [run(gate, from_s=8.0 * turn, for_s=0.5) for turn in range(8)]

    assert waits[-2:] == [6.4, LIMITS.probe_after_s]
    assert gate.circuit is Circuit.OPEN


def test_short_runs_that_are_far_apart_open_nothing():
    gate = RestartGate(LIMITS)

    for turn in range(50):
        run(gate, from_s=8.6 * turn, for_s=0.5)  # the eighth is 60.2 s after the first

    assert gate.circuit is Circuit.LOOPING


def test_one_process_is_tried_and_a_short_run_of_it_opens_the_circuit_again():
    gate = opened()

    gate.started(20.0)
    assert gate.circuit is Circuit.HALF_OPEN
    assert gate.died(20.9) == LIMITS.probe_after_s
    assert gate.circuit is Circuit.OPEN


def test_a_probe_that_fails_long_after_still_leaves_the_circuit_open():
    gate = opened()

    assert run(gate, from_s=1e6, for_s=0.0) == LIMITS.probe_after_s
    assert gate.circuit is Circuit.OPEN


def test_a_probe_that_cannot_be_started_leaves_the_circuit_open():
    gate = opened()

    assert gate.died(1e6) == LIMITS.probe_after_s
    assert gate.circuit is Circuit.OPEN


def test_a_probe_that_lasts_closes_the_circuit_as_soon_as_it_is_healthy():
    gate = opened()
    gate.started(20.0)

    assert gate.settle(20.25) == 0.75
    assert gate.circuit is Circuit.HALF_OPEN
    assert gate.settle(21.0) == 0.0
    assert gate.circuit is Circuit.CLOSED
    assert gate.died(21.5) == 0.0
    assert run(gate, from_s=22.0, for_s=0.0) == 0.1


def test_a_probe_that_died_after_a_healthy_run_that_nobody_looked_at_closes_the_circuit_too():
    gate = opened()

    assert run(gate, from_s=20.0, for_s=1.0) == 0.0
    assert gate.circuit is Circuit.CLOSED


def test_nothing_that_runs_is_healthy_while_nothing_runs():
    gate = RestartGate(LIMITS)

    assert gate.settle(1e9) == LIMITS.healthy_after_s


def test_a_run_that_was_ended_on_purpose_is_no_short_one():
    gate = RestartGate(LIMITS)
    for turn in range(100):
        gate.started(turn)
        gate.ended(turn + 0.1)

    assert gate.circuit is Circuit.CLOSED
    assert run(gate, from_s=100.0, for_s=0.0) == 0.1


def test_a_run_that_was_ended_on_purpose_does_not_make_a_crash_loop_forgotten_unless_it_was_healthy():
    gate = RestartGate(LIMITS)
    run(gate, from_s=0.0, for_s=0.0)
    gate.started(1.0)
    gate.ended(1.5)
    assert gate.circuit is Circuit.LOOPING
    assert run(gate, from_s=2.0, for_s=0.0) == 0.2

    gate.started(3.0)
    gate.ended(4.0)
    assert gate.circuit is Circuit.CLOSED


def test_a_probe_that_was_ended_on_purpose_says_nothing():
    gate = opened()
    gate.started(20.0)
    gate.ended(20.5)

    assert gate.circuit is Circuit.OPEN


def test_a_program_that_cannot_be_executed_opens_the_circuit_at_once():
    gate = RestartGate(LIMITS)

    assert gate.give_up() == LIMITS.probe_after_s
    assert gate.circuit is Circuit.OPEN
    gate.started(0.0)
    assert gate.circuit is Circuit.HALF_OPEN


# What a slot may do to its gate, each some seconds after the one before.
LIVES = st.lists(
    st.tuples(st.sampled_from(["run", "fail", "end", "settle"]), st.sampled_from([0.0, 0.3, 0.99, 1.0, 5.0, 70.0])),
    max_size=60,
)


@given(LIVES, st.integers(1, 5))
def test_whatever_happens_the_circuit_opens_on_short_runs_only_and_closes_on_a_healthy_one_only(lives, max_deaths):
    """Held against a plain list of every short run since the last healthy one."""
    limits = RestartLimits(
        healthy_after_s=1.0, first_wait_s=0.1, max_wait_s=3.0, max_deaths=max_deaths, window_s=60.0, probe_after_s=20.0
    )
    gate = RestartGate(limits)
    now_s, short_at_s, is_open = 0.0, [], False
    for what, for_s in lives:
        if what == "fail":
            now_s += for_s
            wait_s, is_healthy = gate.died(now_s), False
        else:
            gate.started(now_s)
            assert gate.circuit is not Circuit.OPEN
            assert (gate.circuit is Circuit.HALF_OPEN) == is_open
            now_s += for_s
            is_healthy = for_s >= limits.healthy_after_s
            if what == "settle":
                assert gate.settle(now_s) == pytest.approx(max(limits.healthy_after_s - for_s, 0.0))
            if what == "end":
                gate.ended(now_s)
            else:
                wait_s = gate.died(now_s)

        if is_healthy:
            short_at_s, is_open = [], False
        elif what != "end":
            short_at_s.append(now_s)
            is_open = is_open or sum(at_s > now_s - limits.window_s for at_s in short_at_s) >= max_deaths

        assert (gate.circuit is Circuit.OPEN) == is_open
        assert (gate.circuit is Circuit.CLOSED) == (not short_at_s)
        if what != "end":
            doubled = 0.0 if is_healthy else min(0.1 * 2 ** (len(short_at_s) - 1), limits.max_wait_s)
            assert wait_s == pytest.approx(limits.probe_after_s if is_open else doubled)
