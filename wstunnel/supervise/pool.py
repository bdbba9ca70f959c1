"""The backend of one host: its slots, from start to stop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wstunnel.errors import ConfigError, StartError
from wstunnel.limits import Limits
from wstunnel.settings import Address, Host, Route, TcpAddress, UnixAddress
from wstunnel.supervise.board import Board, SlotColumn, SlotState
from wstunnel.supervise.endpoint import Endpoint
from wstunnel.supervise.place import SlotPlace
from wstunnel.supervise.spawn import CHILD_PATH, Program, find_program
from wstunnel.supervise.spawned import Recipe, SlotOwner, SpawnedSlot, enter_state
from wstunnel.supervise.stderr import StderrPipe

__all__ = ["Pool", "backend_environment", "raise_all", "slot_addresses"]

_MAX_PORT = 65535
_UP = frozenset({SlotState.RUNNING, SlotState.WAITING})


def slot_addresses(host: Host) -> tuple[Address, ...]:
    """The address of every slot: PATH-0, PATH-1, ... or PORT, PORT+1, ... for what we spawn, as lighttpd names them
    (PATH-0 even if it is the only one; port 0 stays 0, any free one); else the one that the host gives.

    raises  ConfigError when there is neither `socket` nor `port`, or the last port would be too high
    """
    count = host.max_procs if host.bin_path else 1
    if host.socket is not None:
        if not host.bin_path:
            return (UnixAddress(host.socket),)
        return tuple(UnixAddress(f"{host.socket}-{index}") for index in range(count))
    where = f"route {host.path if host.suffix is None else host.suffix}" if isinstance(host, Route) else "host"
    if host.port is None:
        raise ConfigError((f"{where}: says nothing about its backend; give socket, or host and port",))
    if host.port + count - 1 > _MAX_PORT:
        raise ConfigError((f"{where}: port {host.port} and max-procs {count} go past {_MAX_PORT}",))
    name = host.host or "127.0.0.1"
    return tuple(TcpAddress(name, host.port and host.port + index) for index in range(count))


def backend_environment(host: Host, ours: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of the host's program: PATH, what it is to have of `ours`, and what is set for it."""
    copied = {name: ours[name] for name in host.bin_copy_environment if name in ours}
    return {"PATH": CHILD_PATH, **copied, **dict(host.bin_environment)}


def raise_all(ends: Iterable[BaseException | None]) -> None:
    """Raise what `gather` has caught: one StartError with a line for each, or the first one of another kind."""
    errors = [end for end in ends if end is not None]
    for error in errors:
        if not isinstance(error, StartError):
            raise error
    if errors:
        raise StartError("\n".join(dict.fromkeys(map(str, errors))))


@dataclass(slots=True)
class _Quiet:
    """Since when a process has had nothing to do: then as now it had begun `total` connections after `starts`."""

    total: int
    starts: int
    since_s: float


class Pool:
    """One slot per address: `min_procs` of them with a process, the others started by their first connection.

    in      host      its options; without `bin_path` somebody else runs the backend, which is one row that runs
            rows      of the board, one per address (`slot_addresses`)
            on_death  gets the row of a slot after each death
    Slots are called NAME-0, NAME-1, ..., after the program, or by their address when they are not ours. Start: `bind`,
    `launch`, `come_to_rest`, in this order; or `adopt`. After a failure in between, `stop` cleans up.
    """

    def __init__(
        self, host: Host, *, board: Board, rows: Sequence[int], limits: Limits, on_death: Callable[[int], None]
    ) -> None:
        self.host = host
        self.slots: tuple[SpawnedSlot, ...] = ()
        """What we spawn, in order."""
        self.places: tuple[SlotPlace, ...] = ()
        """Every slot, in order; empty before `bind`."""
        self.rows = tuple(rows)
        self._board, self._limits = board, limits
        self._owner = SlotOwner(on_death, self._is_wanted)
        self._loop = asyncio.get_running_loop()
        self._quiet: dict[SpawnedSlot, _Quiet] = {}
        self._unused_total = -1
        for row in self.rows:
            if board.slot(row)[SlotColumn.STATE] == SlotState.NONE:
                enter_state(board.slot(row), SlotState.STOPPED)  # the row has an owner now

    @property
    def name(self) -> str:
        return os.path.basename(self.host.bin_path[0]) if self.host.bin_path else str(slot_addresses(self.host)[0])

    @property
    def _min_procs(self) -> int:
        return self.host.max_procs if self.host.min_procs is None else self.host.min_procs

    # --- Start

    def bind(self, is_taken: Callable[[Address], bool]) -> None:
        """Bind every address.

        in      is_taken  has another pool of ours the UNIX path? It keeps it until `publish`
        raises  StartError
        """
        addresses = slot_addresses(self.host)
        if not self.host.bin_path:
            self._take_as_it_is(addresses[0])
            return
        recipe = self._recipe(find_program(self.host.bin_path))
        for index, (address, row) in enumerate(zip(addresses, self.rows, strict=True)):
            name = f"{self.name}-{index}"
            endpoint = Endpoint.bind(address, backlog=self.host.listen_backlog, is_taken=is_taken(address))
            try:
                stderr = StderrPipe(name, self._limits.spawn, self._loop)
            except OSError as error:
                endpoint.close()
                raise StartError(f"{name}: no pipe for its log: {error.strerror}") from error
            self._add(SlotPlace(name, endpoint.address, row), endpoint, stderr, recipe)

    def _take_as_it_is(self, address: Address) -> None:
        (row,) = self.rows
        enter_state(self._board.slot(row), SlotState.RUNNING)
        self.places = (SlotPlace(self.name, address, row),)

    def _recipe(self, program: Program) -> Recipe:
        return Recipe(program, backend_environment(self.host, os.environ), self.host.kill_signal)

    def _add(self, place: SlotPlace, endpoint: Endpoint, stderr: StderrPipe, recipe: Recipe) -> SpawnedSlot:
        slot = SpawnedSlot(
            place, endpoint, stderr, recipe=recipe, board=self._board, limits=self._limits, owner=self._owner
        )
        self.slots += (slot,)
        self.places += (place,)
        return slot

    def launch(self) -> None:
        """Start the programs that are to run from the start.

        raises  StartError when one cannot be executed
        """
        for index, slot in enumerate(self.slots):
            if index < self._min_procs:
                slot.launch()
            else:
                slot.await_first()

    async def come_to_rest(self) -> None:
        """Wait until what was launched waits for work, `start_watch_s` at most.

        raises  StartError when programs have died before that: a line for each
        """
        launched = self.slots[: self._min_procs]
        ends = await asyncio.gather(*(slot.come_to_rest() for slot in launched), return_exceptions=True)
        raise_all(ends)

    # --- Run

    def _is_wanted(self, slot: SpawnedSlot) -> bool:
        """Are there less than `min_procs` without this one?"""
        return sum(other.state in _UP for other in self.slots if other is not slot) < self._min_procs

    def tick(self, now_s: float, kill_timeout_s: float) -> None:
        """Look for processes beyond `min_procs` that have had nothing to do for `idle_timeout_s`, and end them.

        One is taken out of choice first, and ended at the next tick if no worker has connected meanwhile.
        """
        if self._min_procs >= self.host.max_procs:
            return
        spare = sum(slot.state in _UP for slot in self.slots) - self._min_procs
        for slot in reversed(self.slots):
            is_used, idle_s = self._look(slot, now_s)
            if slot.state is SlotState.RETIRING and not slot.is_being_ended:
                if is_used:
                    slot.resume()
                else:
                    slot.shrink(kill_timeout_s)
            elif slot.state is SlotState.RUNNING and spare > 0 and not is_used and idle_s >= self.host.idle_timeout_s:
                slot.retire()
                spare -= 1

    def _look(self, slot: SpawnedSlot, now_s: float) -> tuple[bool, float]:
        """Was the slot used since the last look, and for how long was it not?"""
        row = slot.place.row
        total, starts, before = self._board.total(row), slot.starts, self._quiet.get(slot)
        is_used = before is None or self._board.load(row) > 0 or (before.total, before.starts) != (total, starts)
        if before is None or is_used:
            before = self._quiet[slot] = _Quiet(total, starts, now_s)
        return is_used, now_s - before.since_s

    def look_unused(self) -> bool:
        """Has no worker had a connection at any slot since the last look?"""
        before, self._unused_total = self._unused_total, sum(map(self._board.total, self.rows))
        return self._unused_total == before and not any(map(self._board.load, self.rows))

    # --- Stop

    async def stop(self, kill_timeout_s: float) -> None:
        """End every process and everything it forked, take the sockets away.

        bound   twice `kill_timeout_s`
        """
        await asyncio.gather(*(slot.stop(kill_timeout_s) for slot in self.slots))
        if not self.host.bin_path:
            enter_state(self._board.slot(self.rows[0]), SlotState.STOPPED)

    def abort(self) -> None:
        """SIGKILL every process now. `stop`, waiting already or called later, does the rest."""
        for slot in self.slots:
            slot.kill()

    # --- Handing over

    def facts(self) -> list[dict[str, Any]]:
        """What `adopt` needs to go on from here, for JSON: one entry per slot of ours."""
        return [slot.facts() for slot in self.slots]

    def adopt(self, facts: Sequence[dict[str, Any]]) -> None:
        """Go on where the pool that said `facts` has stopped, in an earlier image of this process."""
        if not self.host.bin_path:
            self._take_as_it_is(slot_addresses(self.host)[0])
            return
        for index, (address, row, fact) in enumerate(zip(slot_addresses(self.host), self.rows, facts, strict=True)):
            name = f"{self.name}-{index}"
            endpoint = Endpoint.adopt(address, self.host.listen_backlog, fact["endpoint"])
            stderr = StderrPipe(name, self._limits.spawn, self._loop, tuple(fact["stderr"]))
            recipe = self._recipe(Program(fact["program"], self.host.bin_path[1:]))
            self._add(SlotPlace(name, endpoint.address, row), endpoint, stderr, recipe)
        for slot, fact in zip(self.slots, facts, strict=True):
            slot.adopt(fact)
