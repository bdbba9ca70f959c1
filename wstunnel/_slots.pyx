# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=True
"""Slots as every connection needs them: which one is the best, and one lease more or less.

What is here is read and counted once per connection, on words of the board; everything else that a worker knows of a
slot is in supervise/slot.py.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t

__all__ = ["Lease", "SlotWords", "best_slot"]

cdef enum:                      # what is read here of supervise/board.py: SlotColumn and SlotState
    COLUMN_STATE = 0
    COLUMN_DEATHS = 2
    STATE_IDLE = 1
    STATE_RUNNING = 2
    STATE_WAITING = 3

cdef enum:                      # how gladly a slot is taken; of those of the same rank, the one with the fewest leases
    RANK_ROOM = 0
    RANK_IDLE = 1
    RANK_OVER = 2
    RANK_WAITING = 3


cdef class SlotWords:
    """A slot's words on the board, of which one worker counts in its own cells.

    in      words, loads, totals   its row and its cells, as Board has them
            used        the board's word that says how many worker rows are in use
            worker_row  whose cells are counted in
    raises  ValueError when the words do not go as far
    """

    def __init__(self, int64_t[::1] words, int64_t[::1] loads, int64_t[::1] totals, int64_t[::1] used,
                 Py_ssize_t worker_row):
        if words.shape[0] <= COLUMN_DEATHS or used.shape[0] != 1:
            raise ValueError("these are not the words of a slot")
        if not 0 <= worker_row < min(loads.shape[0], totals.shape[0]):
            raise ValueError(f"there is no worker row {worker_row}")
        self.words, self.loads, self.totals, self.used = words, loads, totals, used
        self.worker_row = worker_row
        self.disabled_until_s = -INFINITY

    @property
    def deaths(self):
        """Processes that have ended; a lease remembers how many had when it was taken."""
        return self.words[COLUMN_DEATHS]

    @property
    def load(self):
        """Leases out, those of all workers."""
        return self.count()

    cdef int64_t count(self) noexcept:
        cdef int64_t found = 0
        cdef Py_ssize_t row
        for row in range(1, min(<Py_ssize_t>self.used[0], self.loads.shape[0])):    # the first one is nobody's
            found += self.loads[row]
        return found


def best_slot(tuple slots not None, avoid, double now_s, int64_t most, bint is_strict):
    """The slot to take: `(rank, slot, False)`; else `(rank, None, is_busy)`: there is none, and are some too busy?

    in      slots  of SlotWords, or what derives from it
            most   leases that a slot has at most, or from which on it is taken less gladly (is_strict: not at all)
    out     rank   0 it has room, 1 it is to be started, 2 it has `most` or more, 3 its process is down

    A slot whose process is down comes after all that run: it has the fewest leases *because* it fails, and would
    draw every new connection into its backlog.
    """
    cdef SlotWords slot, best = None
    cdef int rank, best_rank = RANK_WAITING
    cdef int64_t state, load, best_load = 0
    cdef bint is_busy = False
    for slot in slots:
        state = slot.words[COLUMN_STATE]
        if state == STATE_RUNNING:
            rank = RANK_ROOM
        elif state == STATE_IDLE:
            rank = RANK_IDLE
        elif state == STATE_WAITING:
            rank = RANK_WAITING
        else:
            continue
        if slot.disabled_until_s > now_s or (avoid and slot in avoid):
            continue
        load = slot.count()
        if load >= most:
            if is_strict:
                is_busy = True
                continue
            rank = max(rank, RANK_OVER)
        if best is None or rank < best_rank or (rank == best_rank and load < best_load):
            best, best_rank, best_load = slot, rank, load
            if load == 0 and rank == RANK_ROOM:
                break
    return best_rank, best, is_busy and best is None


cdef class Lease:
    """Counts as one connection of `slot` until it is released, and knows how the process behind it fares.

    in      host_index   which of the route's hosts the slot belongs to
            on_released  called when it counts no more
    """

    def __init__(self, SlotWords slot not None, int host_index, on_released):
        self.slot = slot
        self.host_index = host_index
        self.on_released = on_released
        self.deaths_before = slot.words[COLUMN_DEATHS]
        slot.loads[slot.worker_row] += 1
        slot.totals[slot.worker_row] += 1

    @property
    def name(self):
        return self.slot.name

    @property
    def address(self):
        """Where to connect."""
        return self.slot.address

    @property
    def where(self):
        """The address, for the log."""
        return str(self.slot.address)

    def release(self):
        """Stop counting; a second call does nothing."""
        if not self.is_released:
            self.is_released = True
            self.slot.loads[self.slot.worker_row] -= 1
            self.on_released()

    def is_exiting(self):
        """To be asked when the backend has ended the connection: is that because its process has died or is exiting?

        Cheap and never waits. The kernel marks a process as exiting before it closes its connections, so the answer
        is there when the end of the connection is. Always False for a backend that we do not spawn.
        """
        return self.slot.is_ending_since(self.deaths_before)

    async def exit_status(self):
        """How that process ended, awaited for `exit_wait_s` at most; None at once if `is_exiting` is False."""
        return await self.slot.exit_status_since(self.deaths_before)
