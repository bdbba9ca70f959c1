"""What every gateway hands over: a connected descriptor, and the claim on what stands behind it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from wstunnel.proto.request import Request
from wstunnel.supervise.child import ExitStatus

__all__ = ["Claim", "Connected", "Gateway"]


class Claim(Protocol):
    """A backend's end of a tunnel, from the connect until it is released."""

    @property
    def name(self) -> str:
        """The backend in the access line."""

    @property
    def where(self) -> str:
        """Its address or its program, for the log."""

    @property
    def host_index(self) -> int:
        """Which of the route's hosts it is: `Route.backends`; 0 for a route of `stdio`."""

    def is_exiting(self) -> bool:
        """To be asked when the backend has ended the connection: has its process ended, or is it about to?"""

    async def exit_status(self) -> ExitStatus | None:
        """How the process ended; None when it did not, or nobody could tell in time."""

    def release(self) -> None:
        """The tunnel is over; a second call does nothing."""


@dataclass(slots=True)
class Connected:
    """A connected, non-blocking descriptor, and the claim on the backend behind it. Whoever takes the descriptor over
    does not call `close`."""

    fd: int
    lease: Claim

    def close(self) -> None:
        os.close(self.fd)
        self.lease.release()


class Gateway(Protocol):
    """How a route reaches its backend."""

    async def connect(self, request: Request) -> Connected:
        """A backend, connected before the client hears of it. raises BackendError when none can be had."""
