"""The backend of one route: its slots, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Container, Sequence

from wstunnel.errors import ConfigError
from wstunnel.limits import Limits
from wstunnel.settings import Address, Route, TcpAddress, UnixAddress
from wstunnel.sockets import make_folder_of, remove_folder
from wstunnel.supervise.balance import least_loaded
from wstunnel.supervise.lease import Lease
from wstunnel.supervise.slot import Slot
from wstunnel.supervise.spawn import find_program
from wstunnel.supervise.spawned import SpawnedSlot

__all__ = ["Pool", "slot_addresses"]

_MAX_PORT = 65535


def slot_addresses(route: Route) -> tuple[Address, ...]:
    """The address of every slot: PATH-0, PATH-1, ... or PORT, PORT+1, ... for what we spawn, as lighttpd names them
    (PATH-0 even if it is the only one; port 0 stays 0, any free one); else the one that the route gives.

    raises  ConfigError when the route has neither `socket` nor `port`, or its last port would be too high
    """
    count = route.max_procs if route.bin_path else 1
    if route.socket is not None:
        if not route.bin_path:
            return (UnixAddress(route.socket),)
        return tuple(UnixAddress(f"{route.socket}-{index}") for index in range(count))
    where = route.path if route.suffix is None else route.suffix
    if route.port is None:
        raise ConfigError((f"route {where}: says nothing about its backend; give socket, or host and port",))
    if route.port + count - 1 > _MAX_PORT:
        raise ConfigError((f"route {where}: port {route.port} and max-procs {count} go past {_MAX_PORT}",))
    host = route.host or "127.0.0.1"
    return tuple(TcpAddress(host, route.port and route.port + index) for index in range(count))


class Pool:
    """One slot per address: spawned and kept running if there is a program, else taken as they are.

    in      argv         program and arguments; empty: somebody else runs the backend
            kill_signal  what asks a process to end, before SIGKILL
    Knows nothing about who connects: callers take a lease, connect to its address and release it. Slots are called
    NAME-0, NAME-1, ..., or by their address when they are not ours.
    """

    def __init__(
        self,
        name: str,
        *,
        addresses: Sequence[Address],
        argv: tuple[str, ...] = (),
        limits: Limits,
        kill_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.slots: tuple[Slot, ...] = ()
        """One per address, in order; empty before `start`."""
        self._addresses, self._argv = tuple(addresses), argv
        self._limits, self._kill_signal = limits, kill_signal
        self._spawned: list[SpawnedSlot] = []
        self._folders: list[str] = []

    async def start(self) -> None:
        """Bind every address, then spawn every process.

        raises  StartError; nothing is left behind then
        """
        if not self._argv:
            self.slots = tuple(Slot(str(address), address) for address in self._addresses)
            return
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self.stop)
            program = find_program(self._argv)
            for index, address in enumerate(self._addresses):
                if isinstance(address, UnixAddress) and (made := make_folder_of(address.path)) is not None:
                    self._folders.append(made)
                self._spawned.append(
                    SpawnedSlot(f"{self.name}-{index}", address, program, self._limits, self._kill_signal)
                )
            for slot in self._spawned:
                slot.launch()
            self.slots = tuple(self._spawned)
            undo.pop_all()

    async def stop(self) -> None:
        """End every process and everything it forked, take the sockets away and the folders made for them.

        bound   twice `kill_timeout_s`
        """
        await asyncio.gather(*(slot.stop() for slot in self._spawned))
        while self._folders:
            remove_folder(self._folders.pop())

    def abort(self) -> None:
        """SIGKILL every process now. `stop`, waiting already or called later, does the rest."""
        for slot in self._spawned:
            slot.kill()

    def lease(self, avoid: Container[Slot] = ()) -> Lease | None:
        """A claim on the slot with the fewest; None when there is no slot but those to `avoid`."""
        slot = least_loaded(self.slots, avoid)
        return None if slot is None else Lease(slot)
