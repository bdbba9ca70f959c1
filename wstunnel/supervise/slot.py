"""One place in a pool: an address and what it carries."""

from __future__ import annotations

from typing import Literal

from wstunnel.settings import Address
from wstunnel.supervise.child import ExitStatus

__all__ = ["Slot", "SlotState"]

SlotState = Literal["stopped", "running", "waiting", "stopping"]
"""`waiting`: the socket listens, and the next process is started when its time comes."""


class Slot:
    """An address that somebody else looks after: always there as far as we know."""

    __slots__ = ("address", "load", "name")

    def __init__(self, name: str, address: Address) -> None:
        self.name = name
        self.address = address
        self.load = 0
        """Leases out."""

    @property
    def state(self) -> SlotState:
        return "running"

    @property
    def pid(self) -> int | None:
        """The process that runs now, if it is ours."""
        return None

    @property
    def restarts(self) -> int:
        """Processes started after the first one."""
        return 0

    @property
    def deaths(self) -> int:
        """Processes that have ended; a lease remembers how many had when it was taken."""
        return 0

    def is_ending_since(self, _deaths: int, /) -> bool:
        """Has the process behind a connection ended since so many deaths were counted, or is it about to?"""
        return False

    async def exit_status_since(self, _deaths: int, /) -> ExitStatus | None:
        """How that process ended; None if it did not, or if `exit_wait_s` was not enough to learn it."""
        return None
