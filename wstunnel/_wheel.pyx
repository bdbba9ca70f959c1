# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=True
"""One coarse timer for everything that may time out.

Nothing here is touched per message: an item sits in the bucket of its next possible deadline, and when
that bucket is due the item itself looks at what has happened since and says when it wants to be asked again.
Compiled because every connection comes through it several times, and a short one does little else.
"""

from libc.stdint cimport int64_t

__all__ = ["TimerWheel"]


cdef class TimerWheel:
    """Asks each item no earlier than its time, at most one tick later (plus the loop's own delay).

    An item has a method `due(now_s)`: act on a deadline that has passed, if it has; it returns the next time to be
    asked, or None: never again.

    bound   one dict entry and one set entry per item
    """

    def __init__(self, double tick_s, double now_s=0.0):
        self.tick_s = tick_s
        self.buckets = {}
        self.places = {}
        self.next_tick = self.tick_of(now_s)
        self.timer = None
        self.now_s = now_s

    def __len__(self):
        return len(self.places)

    cpdef add(self, item, double at_s):
        """Ask `item` at `at_s`; an item stands in the wheel once, so this moves it if it was there."""
        cdef object tick = self.tick_of(max(self.now_s, at_s)) + 1
        cdef object place = self.places.get(item)
        if place is not None:
            if place == tick:
                return
            self.discard(item)
        bucket = self.buckets.get(tick)
        if bucket is None:
            bucket = self.buckets[tick] = set()
        (<set>bucket).add(item)
        self.places[item] = tick

    cpdef discard(self, item):
        """Forget an item; nothing happens if it is not there."""
        cdef object tick = self.places.pop(item, None)
        cdef set bucket
        if tick is not None:
            bucket = <set>self.buckets[tick]
            bucket.discard(item)
            if not bucket:
                del self.buckets[tick]

    def advance(self, double now_s):
        """Ask everything that is due at `now_s`. The clock never goes backwards.

        raises  what an item raises; that item is forgotten, the others are asked the next time
        """
        cdef int64_t last = self.tick_of(now_s)
        self.now_s = now_s
        ticks = range(self.next_tick, last + 1)
        if last - self.next_tick >= len(self.buckets):
            ticks = sorted([tick for tick in self.buckets if tick <= last])
        for tick in ticks:
            self.next_tick = tick
            bucket = self.buckets.get(tick)
            while bucket:
                item = (<set>bucket).pop()
                del self.places[item]
                again_s = item.due(now_s)
                if again_s is not None:
                    self.add(item, again_s)
            self.buckets.pop(tick, None)
        self.next_tick = last + 1

    def start(self, loop):
        """Turn with the loop's clock until `stop`."""
        self.timer = loop.call_later(self.tick_s, self.start, loop)
        self.advance(loop.time())

    def stop(self):
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()

    cdef int64_t tick_of(self, double at_s) noexcept:
        return <int64_t>(at_s / self.tick_s)
