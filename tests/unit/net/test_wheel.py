"""The timer wheel: never early, at most a tick late, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from functools import partial
from typing import cast

import pytest

from tests.conftest import Run
from wstunnel.net.wheel import TimerWheel

TICK_S = 0.1


class Item:
    """Notes when it was asked; `again` says what it answers."""

    def __init__(self, again: Callable[[float], float | None] = lambda now_s: None) -> None:
        self.asked_s: list[float] = []
        self.again = again

    def due(self, now_s: float) -> float | None:
        self.asked_s.append(now_s)
        return self.again(now_s)


def turn(wheel: TimerWheel, until_s: float, step_s: float = 0.01) -> None:
    """Let time pass in small steps."""
    start_s = wheel.now_s
    for step in range(1, round((until_s - start_s) / step_s) + 1):
        wheel.advance(start_s + step * step_s)


@pytest.mark.parametrize("at_s", [0.0, 0.001, 0.05, 0.1, 0.15, 0.3, 0.7, 1.0, 1.99])
def test_item_is_asked_once_not_early_and_at_most_a_tick_late(at_s):
    wheel, item = TimerWheel(TICK_S), Item()
    wheel.add(item, at_s)

    turn(wheel, 3.0)

    (asked_s,) = item.asked_s
    assert at_s <= asked_s <= at_s + TICK_S + 0.02


def test_item_of_the_past_is_asked_at_the_next_tick():
    wheel, item = TimerWheel(TICK_S, now_s=100.0), Item()
    wheel.add(item, 5.0)
    wheel.advance(100.0)
    assert not item.asked_s
    wheel.advance(100.11)
    assert item.asked_s == [100.11]


def test_item_that_names_a_time_is_asked_again_then():
    wheel, item = TimerWheel(TICK_S), Item(lambda now_s: now_s + 1.0 if now_s < 2.5 else None)
    wheel.add(item, 0.5)

    turn(wheel, 10.0)

    assert [round(asked_s, 1) for asked_s in item.asked_s] == [0.6, 1.7, 2.8]
    assert len(wheel) == 0


def test_item_that_wants_to_be_asked_at_once_is_asked_once_a_tick():
    """Whatever an item answers, one turn of the wheel ends."""
    wheel, item = TimerWheel(TICK_S), Item(lambda now_s: now_s - 5.0)
    wheel.add(item, 0.0)
    wheel.advance(0.35)
    wheel.advance(0.38)
    assert item.asked_s == [0.35]
    wheel.advance(0.41)
    assert item.asked_s == [0.35, 0.41]


def test_adding_again_moves():
    wheel, item = TimerWheel(TICK_S), Item()
    wheel.add(item, 0.5)
    wheel.add(item, 2.0)
    turn(wheel, 1.9)
    assert len(wheel) == 1
    assert not item.asked_s
    turn(wheel, 3.0)
    assert len(item.asked_s) == 1


def test_discarded_item_is_not_asked_and_discarding_twice_is_nothing():
    wheel, item = TimerWheel(TICK_S), Item()
    wheel.add(item, 0.5)
    wheel.discard(item)
    wheel.discard(item)
    turn(wheel, 1.0)
    assert not item.asked_s
    assert len(wheel) == 0


def test_item_that_another_discards_in_the_same_tick_is_not_asked():
    wheel = TimerWheel(TICK_S)
    items: list[Item] = []

    def discard_all(now_s: float) -> None:
        for item in items:
            wheel.discard(item)

    items += [Item(discard_all) for _ in range(5)]
    for item in items:
        wheel.add(item, 0.5)

    wheel.advance(1.0)

    assert sum(len(item.asked_s) for item in items) == 1
    assert len(wheel) == 0


def test_item_that_another_adds_is_asked_in_its_turn():
    wheel, second = TimerWheel(TICK_S), Item()
    first = Item(lambda now_s: wheel.add(second, now_s))
    wheel.add(first, 0.5)
    wheel.advance(1.0)
    assert not second.asked_s
    wheel.advance(1.2)
    assert second.asked_s == [1.2]


@pytest.mark.parametrize("until_s", [0.75, 1_000_000.0])
def test_item_that_raises_does_not_silence_the_others(until_s):
    """Those of the same tick and of later ones are asked the next time: a wheel that forgot them would leak tunnels."""
    wheel = TimerWheel(TICK_S)

    def fail(now_s: float) -> None:
        raise ZeroDivisionError

    good = [Item() for _ in range(6)]
    for place, item in enumerate([*good[:2], Item(fail), *good[2:4]]):
        wheel.add(item, 0.5 + place / 1000)
    for item in good[4:]:
        wheel.add(item, 0.65)

    with pytest.raises(ZeroDivisionError):
        wheel.advance(until_s)
    wheel.advance(until_s + 0.2)

    assert [len(item.asked_s) for item in good] == [1] * 6
    assert len(wheel) == 0


def test_long_pause_costs_by_items_and_not_by_ticks():
    """A machine that slept for a year: 300 million ticks, three items."""
    wheel, near, far, later = TimerWheel(TICK_S), Item(), Item(), Item()
    wheel.add(near, 1.0)
    wheel.add(far, 31_000_000.0)
    wheel.add(later, 32_000_000.0)
    started_s = time.process_time()
    wheel.advance(31_536_000.0)
    assert time.process_time() - started_s < 1.0
    assert len(near.asked_s) == len(far.asked_s) == 1
    assert not later.asked_s


def test_many_items_of_one_tick_cost_linear_time():
    """A quadratic walk would take minutes for these."""
    wheel, items = TimerWheel(TICK_S), [Item() for _ in range(100_000)]
    for item in items:
        wheel.add(item, 0.5)
    wheel.advance(1.0)
    assert all(item.asked_s for item in items)


def test_nothing_is_kept_of_items_that_are_gone():
    wheel = TimerWheel(TICK_S)
    for at in range(1000):
        item = Item()
        wheel.add(item, at / 7)
        wheel.discard(item)
    assert not any(gc.get_referents(wheel))
    for at in range(1000):
        wheel.add(Item(), at / 7)
    wheel.advance(1000.0)
    assert len(wheel) == 0
    assert not any(gc.get_referents(wheel))


def test_wheel_turns_with_the_loop(run: Run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        wheel, asked = TimerWheel(0.01, loop.time()), asyncio.Event()
        wheel.start(loop)
        wheel.add(Item(lambda now_s: asked.set()), loop.time() + 0.02)
        await asked.wait()
        wheel.stop()

    run(main())


class Loop:
    """A loop with one timer and a clock that is turned by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timer: Callable[[], object] | None = None

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, timer: Callable[..., object], *args: object) -> Loop:
        self.timer = partial(timer, *args)
        return self

    def cancel(self) -> None:
        self.timer = None

    def tick(self) -> None:
        self.now_s += TICK_S
        timer, self.timer = self.timer, None
        if timer is not None:
            timer()


def test_stopped_wheel_asks_nobody_and_can_start_again():
    loop, wheel, item = Loop(), TimerWheel(TICK_S), Item()
    wheel.start(cast(asyncio.AbstractEventLoop, loop))
    wheel.add(item, 0.15)
    wheel.stop()
    wheel.stop()
    for _ in range(5):
        loop.tick()
    assert not item.asked_s

    wheel.start(cast(asyncio.AbstractEventLoop, loop))
    assert len(item.asked_s) == 1


def test_wheel_that_an_item_stops_stays_stopped():
    loop, wheel = Loop(), TimerWheel(TICK_S)
    item = Item(lambda now_s: wheel.stop() or now_s)  # type: ignore[func-returns-value]
    wheel.start(cast(asyncio.AbstractEventLoop, loop))
    wheel.add(item, 0.0)
    for _ in range(5):
        loop.tick()
    assert len(item.asked_s) == 1


def test_wheel_goes_on_turning_after_an_item_raised():
    """The loop reports it; the next item is asked all the same."""

    async def main() -> list[BaseException]:
        loop = asyncio.get_running_loop()
        wheel, asked, faults = TimerWheel(0.01, loop.time()), asyncio.Event(), []
        loop.set_exception_handler(lambda _loop, context: faults.append(context["exception"]))

        def fail(now_s: float) -> None:
            raise ZeroDivisionError

        wheel.add(Item(fail), loop.time())
        wheel.add(Item(lambda now_s: asked.set()), loop.time() + 0.03)
        wheel.start(loop)
        await asked.wait()
        wheel.stop()
        return faults

    (fault,) = asyncio.run(main())
    assert isinstance(fault, ZeroDivisionError)
