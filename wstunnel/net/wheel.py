"""One coarse timer for everything that may time out.

Nothing here is touched per message: an item sits in the bucket of its next possible deadline, and when
that bucket is due the item itself looks at what has happened since and says when it wants to be asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

__all__ = ["Timed", "TimerWheel"]


class Timed(Protocol):
    def due(self, now_s: float) -> float | None:
        """Act on a deadline that has passed, if it has; the next time to be asked, or None: never again."""


class TimerWheel:
    """Asks each item no earlier than its time, at most one tick later (plus the loop's own delay).

    bound   two dict entries per item
    """

    __slots__ = ("_buckets", "_handle", "_next_tick", "_places", "_tick_s", "now_s")

    def __init__(self, tick_s: float, now_s: float = 0.0) -> None:
        self._tick_s = tick_s
        self._buckets: dict[int, dict[Timed, None]] = {}
        self._places: dict[Timed, int] = {}
        self._next_tick = self._tick_of(now_s)
        self._handle: asyncio.TimerHandle | None = None
        self.now_s = now_s

    def __len__(self) -> int:
        return len(self._places)

    def add(self, item: Timed, at_s: float) -> None:
        """Ask `item` at `at_s`; an item stands in the wheel once, so this moves it if it was there."""
        tick = self._tick_of(max(self.now_s, at_s)) + 1
        if (place := self._places.get(item)) is not None:
            if place == tick:
                return
            self.discard(item)
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = {}
        bucket[item] = None
        self._places[item] = tick

    def discard(self, item: Timed) -> None:
        """Forget an item; nothing happens if it is not there."""
        tick = self._places.pop(item, None)
        if tick is not None:
            bucket = self._buckets[tick]
            del bucket[item]
            if not bucket:
                del self._buckets[tick]

    def advance(self, now_s: float) -> None:
        """Ask everything that is due at `now_s`. The clock never goes backwards.

        raises  what an item raises; that item is forgotten, the others are asked the next time
        """
        self.now_s = now_s
        last = self._tick_of(now_s)
        ticks: Sequence[int] = range(self._next_tick, last + 1)
        if len(ticks) > len(self._buckets):
            ticks = sorted(tick for tick in self._buckets if tick <= last)
        for tick in ticks:
            self._next_tick = tick
            bucket = self._buckets.get(tick)
            while bucket:
                item, _ = bucket.popitem()
                del self._places[item]
                again_s = item.due(now_s)
                if again_s is not None:
                    self.add(item, again_s)
            self._buckets.pop(tick, None)
        self._next_tick = last + 1

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Turn with the loop's clock until `stop`."""
        self._handle = loop.call_later(self._tick_s, self.start, loop)
        self.advance(loop.time())

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _tick_of(self, at_s: float) -> int:
        return int(at_s / self._tick_s)
