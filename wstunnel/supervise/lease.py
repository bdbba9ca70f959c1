"""One connection's claim on a slot."""

from __future__ import annotations

from collections.abc import Callable

from wstunnel.settings import Address
from wstunnel.supervise.child import ExitStatus
from wstunnel.supervise.slot import Slot

__all__ = ["Lease"]


class Lease:
    """Counts as one connection of `slot` until it is released, and knows how the process behind it fares.

    in      host_index   which of the route's hosts the slot belongs to
            on_released  called when it counts no more
    """

    __slots__ = ("_deaths_before", "_is_released", "_on_released", "host_index", "slot")

    def __init__(self, slot: Slot, host_index: int, on_released: Callable[[], None]) -> None:
        self.slot = slot
        self.host_index = host_index
        self._on_released = on_released
        self._deaths_before = slot.deaths
        self._is_released = False
        slot.begin()

    @property
    def name(self) -> str:
        return self.slot.name

    @property
    def address(self) -> Address:
        """Where to connect."""
        return self.slot.address

    @property
    def where(self) -> str:
        """The address, for the log."""
        return str(self.slot.address)

    def release(self) -> None:
        """Stop counting; a second call does nothing."""
        if not self._is_released:
            self._is_released = True
            self.slot.end()
            self._on_released()

    def is_exiting(self) -> bool:
        """To be asked when the backend has ended the connection: is that because its process has died or is exiting?

        Cheap and never waits. The kernel marks a process as exiting before it closes its connections, so the answer
        is there when the end of the connection is. Always False for a backend that we do not spawn.
        """
        return self.slot.is_ending_since(self._deaths_before)

    async def exit_status(self) -> ExitStatus | None:
        """How that process ended, awaited for `exit_wait_s` at most; None at once if `is_exiting` is False."""
        return await self.slot.exit_status_since(self._deaths_before)
