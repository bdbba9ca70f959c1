"""What a service of several processes promises, whatever is done to them: `make chaos` with smaller numbers.

Only promises that hold on any machine are asked for here; what is in seconds or per cent is the chaos run's.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.conftest import Run
from tools.chaos.changing import reloaded, upgraded
from tools.chaos.ending import deaf_child, drained
from tools.chaos.killing import backends_killed, workers_killed
from tools.chaos.outcome import Outcome
from tools.chaos.sharing import few_descriptors, two_workers
from tools.chaos.starting import bad_programs

TIMEOUT_S = 110.0
"""Only ever reached in a failure."""

Hold = Callable[[Coroutine[Any, Any, Outcome]], None]


@pytest.fixture
def hold() -> Hold:
    """Runs a scenario, whose promises have to hold."""

    def promised(scenario: Coroutine[Any, Any, Outcome]) -> None:
        outcome = Run("uvloop")(scenario, timeout_s=TIMEOUT_S)
        assert outcome.broken == [], outcome.figures
        assert outcome.figures

    return promised


def test_no_handshake_fails_while_backends_are_killed(hold: Hold, tmp_path):
    hold(backends_killed(str(tmp_path), kills=6, slots=3, at_once=4))


def test_a_killed_worker_takes_its_own_tunnels_with_it_and_nothing_else(hold: Hold, tmp_path):
    hold(workers_killed(str(tmp_path), kills=2, tunnels=40, at_once=4))


def test_no_handshake_fails_and_no_tunnel_ends_while_the_configuration_changes(hold: Hold, tmp_path):
    hold(reloaded(str(tmp_path), times=5, handshakes=100, at_once=4))


def test_no_handshake_fails_and_no_tunnel_ends_while_the_program_is_upgraded(hold: Hold, tmp_path):
    hold(upgraded(str(tmp_path), times=2, handshakes=100, at_once=4))


def test_at_the_end_every_client_gets_what_was_under_way_and_nothing_is_left_behind(hold: Hold, tmp_path):
    hold(drained(str(tmp_path), tunnels=60, silent=0, window_s=60.0, close_timeout_s=30.0))


def test_a_child_that_ignores_sigterm_is_killed_after_kill_timeout(hold: Hold, tmp_path):
    hold(deaf_child(str(tmp_path), kill_timeout_s=0.3))


def test_a_program_that_cannot_run_is_named_at_start_and_503_on_demand(hold: Hold, tmp_path):
    hold(bad_programs(str(tmp_path)))


def test_two_workers_carry_about_the_same(hold: Hold, tmp_path):
    hold(two_workers(str(tmp_path)))


def test_who_finds_no_descriptor_waits_and_harms_nobody(hold: Hold, tmp_path):
    hold(few_descriptors(str(tmp_path), clients=300, watch_s=1.0))
