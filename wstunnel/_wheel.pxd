# cython: language_level=3
"""Layout of the timer wheel."""

from libc.stdint cimport int64_t


cdef class TimerWheel:
    """Asks each item when its time has come."""

    cdef readonly double now_s
    cdef double tick_s
    cdef int64_t next_tick
    cdef dict buckets                   # by tick: the set of items to be asked at it
    cdef dict places                    # by item: its tick
    cdef object timer                   # of the loop; None: it does not turn

    cpdef add(self, item, double at_s)
    cpdef discard(self, item)
    cdef int64_t tick_of(self, double at_s) noexcept
