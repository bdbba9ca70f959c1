"""All backends of a configuration, and their change into those of the next one.

start -> prepare -> Change.commit or Change.undo -> ... -> stop
export, and in the next image of this process adopt instead of start
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any

from wstunnel.errors import StartError
from wstunnel.limits import Limits
from wstunnel.settings import Host, TcpAddress, UnixAddress
from wstunnel.sockets import make_folder_of, remove_folder
from wstunnel.supervise.board import Board
from wstunnel.supervise.place import SlotPlace
from wstunnel.supervise.pool import Pool, raise_all, slot_addresses

__all__ = ["Change", "Pools"]

_OF_AN_ADDRESS = ("socket", "host", "port")
_OF_A_PROGRAM = (
    *_OF_AN_ADDRESS,
    "bin_path",
    "min_procs",
    "max_procs",
    "idle_timeout_s",
    "bin_environment",
    "bin_copy_environment",
    "listen_backlog",
    "kill_signal",
)


def _deciding(host: Host) -> Host:
    """The host with nothing but what decides about processes: hosts for which this is equal share one pool."""
    names = _OF_A_PROGRAM if host.bin_path else _OF_AN_ADDRESS
    return Host(**{name: getattr(host, name) for name in names})


class _Role(Enum):
    COMING = "coming"
    CURRENT = "current"
    RETIRED = "retired"
    """Of an earlier configuration: its tunnels go on to their end."""


class Pools:
    """Every pool of a configuration, one per different host, in one event loop.

    in      kill_timeout_s  from a kill signal to SIGKILL; may be set to another value at any time
            on_death        gets the row of a slot after each death
    bound   `slot_rows` slots, those of earlier configurations that still have tunnels included
    """

    def __init__(self, board: Board, limits: Limits, *, kill_timeout_s: float, on_death: Callable[[int], None]) -> None:
        self.kill_timeout_s = kill_timeout_s
        self._board, self._limits, self._on_death = board, limits, on_death
        self._loop = asyncio.get_running_loop()
        self._roles: dict[Pool, _Role] = {}
        self._current: dict[Host, Pool] = {}
        self._ends: dict[Pool, asyncio.Task[None]] = {}
        self._folders: list[str] = []  # made for sockets, and to be taken away with them
        self._timer: asyncio.TimerHandle | None = None

    # --- Start, change, stop

    async def start(self, hosts: Iterable[Host]) -> None:
        """Bind every address, then start every program, then watch them come to rest.

        raises  StartError; nothing is left behind then
        """
        (await self.prepare(hosts)).commit()

    async def prepare(self, hosts: Iterable[Host]) -> Change:
        """Start what is new or changed, while everything that runs goes on as it is. One change at a time.

        raises  StartError; nothing has changed then
        """
        wanted = dict.fromkeys(map(_deciding, hosts))
        fresh: dict[Host, Pool] = {}
        try:
            for host in wanted:
                if host not in self._current:
                    fresh[host] = self._new(host)
                    self._bind(fresh[host])
            for pool in fresh.values():
                pool.launch()
            raise_all(await asyncio.gather(*(pool.come_to_rest() for pool in fresh.values()), return_exceptions=True))
        except BaseException:
            await self._end_all(fresh.values())
            raise
        return Change(self, {**{host: self._current[host] for host in wanted if host not in fresh}, **fresh})

    def _new(self, host: Host) -> Pool:
        addresses = slot_addresses(host)
        rows = self._board.free_slots(len(addresses))
        if rows is None:
            raise StartError(
                f"{addresses[0]}: more than {self._limits.master.slot_rows} backends at once, those of earlier "
                f"configurations that still have tunnels included; lower max-procs, or restart"
            )
        return self._pool(host, rows, _Role.COMING)

    def _pool(self, host: Host, rows: Sequence[int], role: _Role) -> Pool:
        pool = Pool(host, board=self._board, rows=rows, limits=self._limits, on_death=self._on_death)
        self._roles[pool] = role
        return pool

    def _bind(self, pool: Pool) -> None:
        old = [other for other, role in self._roles.items() if role is not _Role.COMING]
        held = {slot.wanted for other in old for slot in other.slots}
        addresses = slot_addresses(pool.host) if pool.host.bin_path else ()
        for address in addresses:
            if isinstance(address, UnixAddress) and (made := make_folder_of(address.path)) is not None:
                self._folders.append(made)
        try:
            pool.bind(held.__contains__)
        except StartError as error:
            for address in addresses:
                if address in held and isinstance(address, TcpAddress):
                    raise StartError(
                        f"{address}: is still held by the processes of the old configuration; choose another port, "
                        f"or restart"
                    ) from error
            raise

    def _commit(self, current: dict[Host, Pool]) -> None:
        for pool in current.values():
            self._roles[pool] = _Role.CURRENT
        for host, pool in self._current.items():
            if host not in current:
                self._roles[pool] = _Role.RETIRED
        self._current = current
        self._tick_later()

    async def _undo(self, wanted: Iterable[Pool]) -> None:
        await self._end_all([pool for pool in wanted if self._roles.get(pool) is _Role.COMING])

    def _tick_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._limits.spawn.tick_s, self._tick)

    def _tick(self) -> None:
        now_s = self._loop.time()
        for pool, role in self._roles.items():
            if pool in self._ends:
                continue
            pool.tick(now_s, self.kill_timeout_s)
            if role is _Role.RETIRED and pool.look_unused():
                self._end(pool)
        self._tick_later()

    def _end(self, pool: Pool) -> asyncio.Task[None]:
        if pool not in self._ends:
            self._ends[pool] = self._loop.create_task(self._stop_and_forget(pool))
        return self._ends[pool]

    async def _stop_and_forget(self, pool: Pool) -> None:
        self._hand_on_paths()
        await pool.stop(self.kill_timeout_s)
        for row in pool.rows:
            self._board.clear_slot(row)
        del self._roles[pool], self._ends[pool]
        self._remove_folders()

    def _hand_on_paths(self) -> None:
        """Paths that no slot needs any more lead to those that the current configuration gives them to.

        Not before: workers of an earlier configuration go on connecting to the path that they know.
        """
        needed = {slot.place.address for pool in self._roles if pool not in self._ends for slot in pool.slots}
        for pool in self._current.values():
            for slot in pool.slots:
                if slot.wanted not in needed:
                    slot.publish()

    def _remove_folders(self) -> None:
        for folder in self._folders:
            remove_folder(folder)  # stays while a socket is in it
        self._folders = [folder for folder in self._folders if os.path.isdir(folder)]

    async def _end_all(self, pools: Iterable[Pool]) -> None:
        ends = [self._end(pool) for pool in pools if pool in self._roles]
        if ends:
            await asyncio.wait(ends)

    async def stop(self) -> None:
        """End every process and everything it forked, take the sockets away and the folders made for them.

        bound   twice `kill_timeout_s`
        A second call waits for what the first one has begun, even if that was cancelled.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._current = {}
        await self._end_all(list(self._roles))

    def abort(self) -> None:
        """SIGKILL every process now. `stop`, waiting already or called later, does the rest."""
        for pool in self._roles:
            pool.abort()

    # --- What there is

    def places(self, host: Host) -> tuple[SlotPlace, ...]:
        """The slots of a host of the current configuration."""
        return self._current[_deciding(host)].places

    def all(self) -> list[tuple[Pool, bool]]:
        """Every pool, and whether it is retired: of an earlier configuration, ending with its last tunnel."""
        return [(pool, role is _Role.RETIRED) for pool, role in self._roles.items()]

    # --- Handing over to the next image of this process

    def export(self) -> dict[str, Any]:
        """What `adopt` needs to go on from here, for JSON. Not between `prepare` and the end of its change.

        out     `fds`: every descriptor that must survive the exec, besides the board's
        """
        pools = [
            {
                "host": {name: getattr(pool.host, name) for name in _OF_A_PROGRAM},
                "retired": role is _Role.RETIRED,
                "rows": pool.rows,
                "slots": pool.facts(),
            }
            for pool, role in self._roles.items()
        ]
        fds = [fd for pool in self._roles for slot in pool.slots for fd in slot.fds]
        return {"pools": pools, "folders": self._folders, "fds": fds}

    def adopt(self, state: dict[str, Any]) -> None:
        """Go on where the Pools that said `state` by `export` have stopped; instead of `start`.

        in      the board is the same one; descriptors are not inheritable any more afterwards
        """
        for fd in state["fds"]:
            os.set_inheritable(fd, False)
        self._folders = list(state["folders"])
        for facts in state["pools"]:
            host = _host_of(facts["host"])
            pool = self._pool(host, facts["rows"], _Role.RETIRED if facts["retired"] else _Role.CURRENT)
            if not facts["retired"]:
                self._current[host] = pool
            pool.adopt(facts["slots"])
        self._tick_later()


def _host_of(facts: dict[str, Any]) -> Host:
    """A host that has been through JSON."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    values["bin_environment"] = tuple((name, value) for name, value in facts["bin_environment"])
    values["kill_signal"] = signal.Signals(facts["kill_signal"])
    return Host(**values)


class Change:
    """From the configuration that runs to another one, whose pools run already: `commit` or `undo` it."""

    def __init__(self, pools: Pools, wanted: dict[Host, Pool]) -> None:
        self._pools, self._wanted = pools, wanted

    def places(self, host: Host) -> tuple[SlotPlace, ...]:
        """The slots of a host of the new configuration."""
        return self._wanted[_deciding(host)].places

    def commit(self) -> None:
        """The new pools are the current ones. Those that are not wanted any more end with their last tunnel."""
        self._pools._commit(self._wanted)

    async def undo(self) -> None:
        """End the new pools; everything else goes on as it was."""
        await self._pools._undo(self._wanted.values())
