"""One place in a pool as the serving side sees it: an address, and what the board says of the process behind it."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager

from wstunnel._slots import SlotWords
from wstunnel.limits import Limits
from wstunnel.supervise import procfs
from wstunnel.supervise.board import Board, SlotColumn, SlotState
from wstunnel.supervise.child import ExitStatus
from wstunnel.supervise.place import SlotPlace

__all__ = ["Slot"]

_STATES = tuple(SlotState)
_STATE, _PID, _DEATHS = int(SlotColumn.STATE), int(SlotColumn.PID), int(SlotColumn.DEATHS)
_BROKEN = int(SlotState.BROKEN)
_NS_PER_S = 1_000_000_000


class Slot(SlotWords):
    """Reads the slot's row, which whoever supervises writes, and counts in the cells of one worker: by leases.

    in      worker_row  the row of the worker that takes leases here
    """

    __slots__ = (
        "_board",
        "_died",
        "_exit_wait_ns",
        "_words",
        "address",
        "name",
        "row",
    )

    def __init__(self, place: SlotPlace, board: Board, worker_row: int, limits: Limits) -> None:
        words = board.slot(place.row)
        super().__init__(words, board.loads(place.row), board.totals(place.row), board.used(), worker_row)
        self.name, self.address, self.row = place.name, place.address, place.row
        self._board = board
        self._words = words
        board.use_worker(worker_row)  # the master has seen to it before, where there is one
        self._exit_wait_ns = int(limits.spawn.exit_wait_s * _NS_PER_S)
        self._died: asyncio.Future[None] | None = None  # somebody waits for the next death

    @property
    def state(self) -> SlotState:
        return _STATES[self._words[_STATE]]

    @property
    def pid(self) -> int | None:
        """The process that runs now, if it is ours."""
        return self._words[SlotColumn.PID] or None

    def claiming(self) -> AbstractContextManager[bool]:
        """Yields whether no other worker is inside: look at `load`, and take a lease if there is room."""
        return self._board.claiming(self.row)

    def note_death(self) -> None:
        """Whoever supervises says that the row tells of one more death: wake those who wait for it."""
        if self._died is not None:
            self._died.set_result(None)
            self._died = None

    def is_ending_since(self, deaths: int) -> bool:
        """Has the process behind a connection failed or ended since so many deaths were counted, or is it about to?

        In a slot whose circuit is open, connections are accepted only to be closed: they have failed.
        """
        # The row gets a death before it loses the pid, and is read the other way round: one of them is seen.
        pid = self._words[_PID]
        if self._is_death_known(deaths) or self._is_broken:
            return True
        return pid != 0 and procfs.is_gone_or_ending(pid)

    async def exit_status_since(self, deaths: int) -> ExitStatus | None:
        """How that process ended; None if it did not, or if `exit_wait_s` was not enough to learn it."""
        if not self._is_death_known(deaths) and not self._is_broken and self.is_ending_since(deaths):
            if self._died is None:
                self._died = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._died,), timeout=self._exit_wait_ns / _NS_PER_S)
        if self._is_broken:
            return ExitStatus()
        if not self._is_death_known(deaths):
            return None
        words = self._words
        return ExitStatus.of_word(words[SlotColumn.EXIT]) if words[SlotColumn.EXIT_KNOWN] else ExitStatus()

    @property
    def _is_broken(self) -> bool:
        return self._words[_STATE] == _BROKEN

    def _is_death_known(self, deaths: int) -> bool:
        """Does the row tell of the death that ended a connection which was made when `deaths` had been counted?

        A connection may also have waited in the backlog for the next process, or live on with a forked child: such
        a death says something about it only for as long as its end would take to be seen.
        """
        words = self._words
        if words[_DEATHS] <= deaths:
            return False
        is_fresh = time.monotonic_ns() - words[SlotColumn.DIED_AT_NS] <= self._exit_wait_ns
        return bool(words[SlotColumn.ENDED_ALL]) or is_fresh
