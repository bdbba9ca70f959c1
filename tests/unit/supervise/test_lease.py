"""One connection's claim on a slot."""

from __future__ import annotations

import asyncio

from wstunnel.settings import UnixAddress
from wstunnel.supervise.child import ExitStatus
from wstunnel.supervise.lease import Lease
from wstunnel.supervise.slot import Slot


class MortalSlot(Slot):
    """Dies when told to."""

    __slots__ = ("count",)

    count: int

    @property
    def deaths(self) -> int:
        return self.count

    def is_ending_since(self, deaths: int, /) -> bool:
        return self.count > deaths

    async def exit_status_since(self, deaths: int, /) -> ExitStatus | None:
        return ExitStatus(code=self.count) if self.count > deaths else None


def mortal_slot(deaths: int) -> MortalSlot:
    slot = MortalSlot("echo-0", UnixAddress("/run/echo-0"))
    slot.count = deaths
    return slot


def test_a_lease_counts_until_it_is_released():
    slot = Slot("echo-0", UnixAddress("/run/echo-0"))

    first, second = Lease(slot), Lease(slot)
    assert slot.load == 2
    assert first.address == UnixAddress("/run/echo-0")
    first.release()
    assert slot.load == 1
    second.release()
    assert slot.load == 0


def test_a_second_release_does_nothing():
    slot = Slot("echo-0", UnixAddress("/run/echo-0"))
    other, lease = Lease(slot), Lease(slot)

    lease.release()
    lease.release()

    assert slot.load == 1
    other.release()


def test_only_deaths_after_the_lease_are_its_business():
    slot = mortal_slot(deaths=3)
    lease = Lease(slot)

    assert not lease.is_exiting()
    assert asyncio.run(lease.exit_status()) is None

    slot.count = 4
    assert lease.is_exiting()
    assert asyncio.run(lease.exit_status()) == ExitStatus(code=4)
