"""Bounds are numbers that bound something, and fit each other."""

from __future__ import annotations

import dataclasses

import pytest

from wstunnel.limits import Limits
from wstunnel.settings import Settings

LIMITS = Limits()
GROUPS = [each.name for each in dataclasses.fields(Limits)]


@pytest.mark.parametrize("group", GROUPS)
def test_every_bound_is_a_positive_number_that_nobody_changes(group):
    bounds = getattr(LIMITS, group)
    for each in dataclasses.fields(bounds):
        assert getattr(bounds, each.name) > 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(bounds, each.name, 1)


def test_waits_grow_from_the_first_to_the_last():
    assert LIMITS.restart.first_wait_s < LIMITS.restart.max_wait_s
    assert LIMITS.accept.first_pause_s < LIMITS.accept.max_pause_s


def test_a_turn_is_at_least_one_read():
    assert LIMITS.relay.turn_bytes >= LIMITS.relay.read_bytes


def test_what_the_issue_promises_about_heads():
    assert (LIMITS.head.max_head_bytes, LIMITS.head.max_fields, LIMITS.head.head_timeout_s) == (16 * 1024, 100, 10.0)


def test_one_read_is_held_per_direction():
    assert LIMITS.relay.read_bytes < 64 * 1024 <= LIMITS.relay.bulk_bytes


def test_a_stop_kills_after_five_seconds_and_gives_tunnels_ten():
    assert (Settings().kill_timeout_s, Settings().drain_timeout_s) == (5.0, 10.0)


def test_there_is_a_row_for_every_worker_of_two_configurations_beside_the_one_that_is_nobodys():
    assert 2 * LIMITS.master.max_workers < LIMITS.master.worker_rows


def test_a_worker_that_dies_is_replaced_within_a_second():
    assert LIMITS.restart.first_wait_s <= LIMITS.master.max_restart_wait_s <= 1.0


def test_a_circuit_opens_after_eight_deaths_in_a_minute():
    restart = LIMITS.restart
    assert (restart.first_wait_s, restart.max_wait_s, restart.max_deaths, restart.window_s) == (0.1, 30.0, 8, 60.0)


def test_whatever_one_packet_may_hold_fits_into_the_kernels_ordinary_buffer():
    """net.core.wmem_default, as kernels have it: a longer packet is refused."""
    assert LIMITS.master.message_bytes < 212_992
