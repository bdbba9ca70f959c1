# cython: language_level=3
"""Layout of slots and leases, as the serving side has them."""

from libc.stdint cimport int64_t


cdef class SlotWords:
    """A slot's words on the board."""

    cdef int64_t[::1] words             # its row; hold the memory, as do the three below
    cdef int64_t[::1] loads             # by worker row
    cdef int64_t[::1] totals            # likewise
    cdef int64_t[::1] used              # one word: how many worker rows are in use
    cdef Py_ssize_t worker_row
    cdef public double disabled_until_s

    cdef int64_t count(self) noexcept


cdef class Lease:
    """One connection's claim on a slot."""

    cdef readonly SlotWords slot
    cdef readonly int host_index
    cdef object on_released
    cdef int64_t deaths_before
    cdef bint is_released
