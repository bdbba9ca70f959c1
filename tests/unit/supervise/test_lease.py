"""One connection's claim on a slot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from wstunnel.limits import Limits, MasterLimits
from wstunnel.settings import UnixAddress
from wstunnel.supervise.board import Board, SlotColumn
from wstunnel.supervise.child import ExitStatus
from wstunnel.supervise.lease import Lease
from wstunnel.supervise.place import SlotPlace
from wstunnel.supervise.slot import Slot


class Stand:
    def __init__(self) -> None:
        limits = Limits(master=MasterLimits(worker_rows=2, slot_rows=2))
        self.board = Board(limits.master)
        self.row = self.board.slot(1)
        self.slot = Slot(SlotPlace("echo-0", UnixAddress("/run/echo-0"), 1), self.board, 1, limits)
        self.released: list[int] = []
        """The load at each call that says so."""

    def lease(self, host_index: int = 0) -> Lease:
        return Lease(self.slot, host_index, lambda: self.released.append(self.slot.load))

    def die(self, code: int) -> None:
        self.row[SlotColumn.EXIT], self.row[SlotColumn.EXIT_KNOWN], self.row[SlotColumn.ENDED_ALL] = code, 1, 1
        self.row[SlotColumn.DEATHS] += 1


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand()
    yield made
    made.board.close()


def test_a_lease_tells_where_to_connect_and_what_to_call_it(stand):
    lease = stand.lease(host_index=2)
    assert (lease.name, lease.where) == ("echo-0", "unix:/run/echo-0")
    assert lease.address == UnixAddress("/run/echo-0")
    assert lease.slot is stand.slot
    assert lease.host_index == 2


def test_a_lease_counts_until_it_is_released(stand):
    first, second = stand.lease(), stand.lease()
    assert stand.slot.load == 2
    first.release()
    assert stand.slot.load == 1
    second.release()
    assert stand.slot.load == 0
    assert stand.board.total(1) == 2


def test_a_release_is_told_once_and_when_it_counts_no_more(stand):
    lease = stand.lease()
    assert stand.released == []
    lease.release()
    lease.release()
    assert stand.released == [0]


def test_a_second_release_does_nothing(stand):
    other, lease = stand.lease(), stand.lease()
    lease.release()
    lease.release()
    assert stand.slot.load == 1
    other.release()


def test_only_deaths_after_the_lease_are_its_business(stand):
    stand.die(code=3)
    lease = stand.lease()
    assert not lease.is_exiting()
    assert asyncio.run(lease.exit_status()) is None

    stand.die(code=4)

    assert lease.is_exiting()
    assert asyncio.run(lease.exit_status()) == ExitStatus(code=4)
