"""Counters in shared memory: a row per worker, a row per slot, and what each worker has at each slot.

Every word is written by one process only (a worker's row and its cells by that worker, a slot's row by whoever
supervises it) and may be read by any: an aligned word of 8 bytes is read whole. Nothing here waits or locks, except
`claiming`, for the few pools whose limits are strict.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from enum import IntEnum

from wstunnel.limits import MasterLimits
from wstunnel.proto.close import CloseCode

__all__ = ["Board", "SlotColumn", "SlotState", "WorkerColumn", "WorkerState", "close_column", "now_ms"]

_MAGIC = 0x77737475_6E6E6C01  # "wstunnl", and the version of this layout
_WORD_BYTES = 8
_HEADER_WORDS = 8
_USED = 1  # the header's second word
_FIRST_CODE = CloseCode.NORMAL
_LAST_CODE = 1015  # RFC 6455 §7.4.1 reserves them up to here


class WorkerState(IntEnum):
    """What a worker does."""

    NONE = 0
    STARTING = 1
    SERVING = 2
    QUIET = 3
    """It accepts no more and serves its tunnels to their end."""
    LEAVING = 4
    """It ends its tunnels."""


class SlotState(IntEnum):
    """What stands behind a slot's address."""

    NONE = 0
    IDLE = 1
    """It listens and has no process: the first connection starts one."""
    RUNNING = 2
    WAITING = 3
    """Its process has died; the next one is started when its time comes, and serves who connects meanwhile."""
    RETIRING = 4
    """It runs, and takes no new connection: it will be ended."""
    BROKEN = 5
    """Its processes die as soon as they are started (the circuit is open): nobody is to connect."""
    STOPPED = 6


class WorkerColumn(IntEnum):
    """The words of a worker's row. Times are milliseconds since 1970."""

    PID = 0
    GENERATION = 1
    STATE = 2
    STARTED_MS = 3
    HEARTBEAT_MS = 4
    CONNECTIONS = 5
    """Client connections that are open now, tunnels included."""
    TUNNELS = 6
    """Tunnels that are open now."""
    ACCEPTED = 7
    """Connections accepted, ever; as everything below."""
    OPENED = 8
    """Tunnels opened."""
    REFUSED = 9
    """Handshakes answered with 4xx or 5xx."""
    BYTES_IN = 10
    """Payload; `in` is from clients. These four stand together: the relay counts in them."""
    BYTES_OUT = 11
    MESSAGES_IN = 12
    MESSAGES_OUT = 13
    CLOSED = 14
    """Tunnels ended with close code 1000; the codes up to 1015 follow, and then one word for all others."""


WORKER_WORDS = WorkerColumn.CLOSED + (_LAST_CODE - _FIRST_CODE + 1) + 1


class SlotColumn(IntEnum):
    """The words of a slot's row."""

    STATE = 0
    PID = 1
    """The process that runs now, 0: none, or not ours."""
    DEATHS = 2
    """Processes that have ended; a lease remembers how many had when it was taken."""
    STARTS = 3
    SINCE_MS = 4
    """When the state was entered, milliseconds since 1970."""
    EXIT = 5
    """How the last process ended: its exit code, or the negative number of a signal."""
    EXIT_KNOWN = 6
    DIED_AT_NS = 7
    """The monotonic clock of the machine at the last death."""
    ENDED_ALL = 8
    """The last death ended every connection of the slot: none still waited in the backlog for the next process, and
    none was in the hands of a child that the process had forked."""


SLOT_WORDS = len(SlotColumn)


def now_ms() -> int:
    """The time of day as rows have it."""
    return time.time_ns() // 1_000_000


def close_column(code: int) -> int:
    """The word that counts tunnels which ended with this close code."""
    return WorkerColumn.CLOSED + (code if _FIRST_CODE <= code <= _LAST_CODE else _LAST_CODE + 1) - _FIRST_CODE


class Board:
    """The block of memory, made by whoever supervises and attached by workers through its descriptor.

    in      fd         of another process's board; None makes a new one
            is_shared  False: for this process alone, without a descriptor
    bound   `worker_rows` and `slot_rows` of the limits; what is not used costs no memory
    raises  OSError when the memory cannot be had; ValueError when `fd` is a board of another layout
    Worker row 0 belongs to nobody: it holds what workers that are gone have counted.
    """

    def __init__(self, limits: MasterLimits, fd: int | None = None, *, is_shared: bool = True) -> None:
        self._workers, self._slots = limits.worker_rows, limits.slot_rows
        worker_words = self._workers * WORKER_WORDS
        slot_words = self._slots * SLOT_WORDS
        plane_words = self._slots * self._workers
        self._slot_base = _HEADER_WORDS + worker_words
        self._load_base = self._slot_base + slot_words
        self._total_base = self._load_base + plane_words
        size_bytes = (self._total_base + plane_words) * _WORD_BYTES
        is_new = fd is None
        if fd is None:
            fd = os.memfd_create("wstunnel-board", os.MFD_CLOEXEC) if is_shared else -1
        self.fd = fd
        if is_new and is_shared:
            os.ftruncate(self.fd, size_bytes)
        elif not is_new and os.fstat(self.fd).st_size != size_bytes:
            raise ValueError("the shared counters have another size: they are another version's")
        self._memory = mmap.mmap(self.fd, size_bytes)
        self._words = memoryview(self._memory).cast("q")
        if is_new:
            self._words[0] = _MAGIC
            self._words[_USED] = 1
        elif self._words[0] != _MAGIC:
            raise ValueError("the shared counters have another layout: they are another version's")

    def close(self) -> None:
        """Give the descriptor back; the memory goes with the last row that somebody holds."""
        if self.fd >= 0:
            os.close(self.fd)

    def worker(self, row: int) -> memoryview:
        """A worker's row: index it with `WorkerColumn`, or with `close_column`."""
        base = _HEADER_WORDS + row * WORKER_WORDS
        return self._words[base : base + WORKER_WORDS]

    def slot(self, row: int) -> memoryview:
        """A slot's row: index it with `SlotColumn`."""
        base = self._slot_base + row * SLOT_WORDS
        return self._words[base : base + SLOT_WORDS]

    def loads(self, slot: int) -> memoryview:
        """Connections that each worker has at a slot now, by worker row."""
        base = self._load_base + slot * self._workers
        return self._words[base : base + self._workers]

    def totals(self, slot: int) -> memoryview:
        """Connections that each worker has ever begun at a slot, by worker row."""
        base = self._total_base + slot * self._workers
        return self._words[base : base + self._workers]

    def load(self, slot: int) -> int:
        """Connections of all workers at a slot."""
        return sum(self.loads(slot))

    def total(self, slot: int) -> int:
        """Connections that all workers have ever begun at a slot."""
        return sum(self.totals(slot))

    def summed(self) -> list[int]:
        """All worker rows in one; only the counting columns mean anything."""
        rows = (self.worker(row) for row in range(self._workers))
        return [sum(column) for column in zip(*(row for row in rows if any(row)), strict=True)] or [0] * WORKER_WORDS

    @property
    def workers_used(self) -> int:
        """No worker row from this one on has ever been used: there is nothing to add up there."""
        return self._words[_USED]

    def used(self) -> memoryview:
        """The word that `workers_used` tells."""
        return self._words[_USED : _USED + 1]

    def use_worker(self, row: int) -> None:
        """This worker row is used from now on."""
        if row >= self._words[_USED]:
            self._words[_USED] = row + 1

    def free_worker(self) -> int | None:
        """A worker row that nobody has, from 1 on; None when all are taken."""
        rows = range(1, self._workers)
        found = next((row for row in rows if self.worker(row)[WorkerColumn.STATE] == WorkerState.NONE), None)
        if found is not None:
            self.use_worker(found)
        return found

    def least_connections(self, besides: int) -> int | None:
        """How many connections the least busy of the workers that serve has, one row left out; None: there is no
        other."""
        rows = (self.worker(row) for row in range(1, self.workers_used) if row != besides)
        serving = (row for row in rows if row[WorkerColumn.STATE] == WorkerState.SERVING)
        return min((row[WorkerColumn.CONNECTIONS] for row in serving), default=None)

    def free_slots(self, count: int) -> list[int] | None:
        """`count` slot rows that nobody has; None when there are not so many."""
        rows = (row for row in range(self._slots) if self.slot(row)[SlotColumn.STATE] == SlotState.NONE)
        found = [row for row, _ in zip(rows, range(count), strict=False)]
        return found if len(found) == count else None

    def clear_worker(self, row: int, slots: Sequence[int]) -> None:
        """A worker is gone: what it counted is kept in row 0, what it had open at these slots is gone with it."""
        mine, kept = self.worker(row), self.worker(0)
        for column in range(WorkerColumn.ACCEPTED, WORKER_WORDS):
            kept[column] += mine[column]
        for slot in slots:
            self.loads(slot)[row] = 0
            self.totals(slot)[0] += self.totals(slot)[row]
            self.totals(slot)[row] = 0
        for column in range(WORKER_WORDS):
            mine[column] = 0

    def clear_slot(self, row: int) -> None:
        """Nobody connects to a slot any more: its row is free again."""
        for words in (self.loads(row), self.totals(row), self.slot(row)):
            for index in range(len(words)):
                words[index] = 0

    @contextlib.contextmanager
    def claiming(self, slot: int) -> Iterator[bool]:
        """Yields whether no other process is inside for this slot: look at its load and change it, and nobody else
        does meanwhile. Never waits; the kernel frees the place of a process that dies inside."""
        if self.fd < 0:
            yield True
            return
        start = (self._slot_base + slot * SLOT_WORDS) * _WORD_BYTES
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, _WORD_BYTES, start)
        except (BlockingIOError, PermissionError):
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN, _WORD_BYTES, start)
