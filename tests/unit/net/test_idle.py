"""Connections that wait for another request: which one is taken, how many wait, and for how long."""

from __future__ import annotations

from typing import Any, cast

import pytest

from wstunnel._hub import Hub
from wstunnel.limits import GatewayLimits
from wstunnel.net.idle import IdleStreams
from wstunnel.net.stream import BackendStream
from wstunnel.net.wheel import TimerWheel

LIMITS = GatewayLimits(idle_per_slot=2, idle_s=4.0)


class FakeStream:
    """A connection that is silent until the test says otherwise."""

    def __init__(self) -> None:
        self.silent = True
        self.is_aborted = False

    def is_silent(self) -> bool:
        return self.silent

    def abort(self) -> None:
        self.is_aborted = True


class FakeHub:
    def __init__(self) -> None:
        self.wheel = TimerWheel(0.1)


@pytest.fixture
def hub() -> FakeHub:
    return FakeHub()


@pytest.fixture
def idle(hub) -> IdleStreams:
    return IdleStreams(cast(Hub, hub), LIMITS)


def kept(idle: IdleStreams, key: Any = "a", count: int = 1) -> list[FakeStream]:
    streams = [FakeStream() for _ in range(count)]
    for stream in streams:
        idle.keep(key, cast(BackendStream, stream))
    return streams


def test_the_one_that_was_used_last_is_taken_first(idle):
    first, second = kept(idle, count=2)
    assert [idle.take("a"), idle.take("a"), idle.take("a")] == [second, first, None]
    assert not first.is_aborted


def test_connections_to_somebody_else_are_not_taken(idle):
    kept(idle, "a")
    assert idle.take("b") is None


def test_those_that_have_ended_meanwhile_go(idle):
    first, second = kept(idle, count=2)
    second.silent = False
    assert idle.take("a") is first
    assert second.is_aborted


def test_of_too_many_the_one_that_has_waited_longest_goes(idle):
    streams = kept(idle, "a", 3)
    kept(idle, "b", 2)
    assert [stream.is_aborted for stream in streams] == [True, False, False]
    assert len(idle) == 4


def test_each_waits_for_its_time_and_the_wheel_is_left_when_none_does(idle, hub):
    (first,) = kept(idle, "a")
    hub.wheel.advance(2.0)
    (second,) = kept(idle, "a")
    (third,) = kept(idle, "b")
    hub.wheel.advance(3.9)
    assert not first.is_aborted
    hub.wheel.advance(4.5)
    assert (first.is_aborted, second.is_aborted) == (True, False)
    hub.wheel.advance(6.5)
    assert (second.is_aborted, third.is_aborted) == (True, True)
    assert not len(hub.wheel)
    (fourth,) = kept(idle, "a")
    hub.wheel.advance(11.0)
    assert fourth.is_aborted


def test_one_that_was_taken_and_kept_again_waits_anew(idle, hub):
    (stream,) = kept(idle)
    hub.wheel.advance(3.0)
    assert idle.take("a") is stream
    idle.keep("a", cast(BackendStream, stream))
    hub.wheel.advance(5.0)
    assert not stream.is_aborted
    hub.wheel.advance(7.5)
    assert stream.is_aborted


def test_close_ends_all_and_keeps_no_more(idle, hub):
    before = kept(idle, "a")
    idle.close()
    after = kept(idle, "a")
    assert [stream.is_aborted for stream in before + after] == [True, True]
    assert not len(idle)
    assert not len(hub.wheel)
