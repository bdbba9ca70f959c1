"""Which host, and which of its slots, takes the next connection; and who waits when none may."""

from __future__ import annotations

import asyncio
import hashlib
import shlex
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from wstunnel._slots import best_slot
from wstunnel.errors import BackendError
from wstunnel.limits import Limits
from wstunnel.settings import Balance, Host
from wstunnel.supervise.board import SlotState
from wstunnel.supervise.lease import Lease
from wstunnel.supervise.slot import Slot

__all__ = ["BalanceKey", "Balancer", "HostSlots"]

_DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class BalanceKey:
    """What of a request decides between hosts: the Host field and the path (hash), the client's address (sticky)."""

    authority: str
    path: str
    client: str


@dataclass(frozen=True, slots=True)
class HostSlots:
    """One of a route's hosts, and its slots as a worker sees them."""

    host: Host
    slots: Sequence[Slot]


_WAITING = 3
"""As `best_slot` ranks a slot whose process is down."""


class _Lack(Enum):
    """Why there is no lease."""

    NOBODY = ""
    """No slot can be connected at all."""
    BUSY = "no process had less than max-load-per-proc connections within connect-timeout"
    """None may be connected now; worth waiting for."""
    REFUSED = "every process has max-load-per-proc connections, and max-load-policy is to refuse more"
    QUEUE_FULL = "every process has max-load-per-proc connections, and as many as may already wait for one"


_NOBODY = _Lack.NOBODY


class _Group:
    """A host and its slots."""

    __slots__ = ("_seed", "host", "index", "is_strict", "most", "slots")

    def __init__(self, index: int, each: HostSlots, seed: str) -> None:
        self.index, self.host, self.slots = index, each.host, tuple(each.slots)
        self.most = self.host.max_load_per_proc
        self.is_strict = self.host.max_load_policy != "share"
        self._seed = hashlib.blake2b(seed.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES)

    def load(self) -> int:
        return sum(slot.load for slot in self.slots)

    def score(self, text: bytes) -> bytes:
        """This host's claim on `text`; the highest of all hosts has it (rendezvous hashing)."""
        digest = self._seed.copy()
        digest.update(text)
        return digest.digest()

    def best(self, avoid: Collection[Slot], now_s: float) -> tuple[int, Slot] | _Lack:
        """The slot to take, and how gladly."""
        rank, slot, is_busy = best_slot(self.slots, avoid, now_s, self.most, self.is_strict)
        if slot is not None:
            return rank, slot
        if not is_busy:
            return _NOBODY
        return _Lack.BUSY if self.host.max_load_policy == "queue" else _Lack.REFUSED


@dataclass(slots=True, eq=False)
class _Waiter:
    key: BalanceKey
    avoid: Collection[Slot]
    give_up_at_s: float
    granted: asyncio.Future[Lease | _Lack]


class Balancer:
    """Hands out leases on the slots of one route.

    in      hosts  in the order of `Route.backends`
            clock  a monotonic clock, in seconds
    bound   `max_queue` connections wait, `connect-timeout` at most, where max-load-policy is to queue
    """

    def __init__(
        self,
        hosts: Sequence[HostSlots],
        kind: Balance,
        *,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self._groups = _groups(hosts)
        self._kind, self._limits, self._clock = kind, limits.spawn, clock
        self._next = 0  # for round-robin
        self._queue: deque[_Waiter] = deque()
        self._wait_s = max((each.host.connect_timeout_s for each in hosts), default=0.0)
        self._timer: asyncio.TimerHandle | None = None

    def lease_at_once(self, avoid: Collection[Slot] = ()) -> Lease | None:
        """What `lease` would give, where that takes no choice between hosts and no wait; None: ask `lease`."""
        if len(self._groups) != 1 or self._queue:
            return None
        group = self._groups[0]
        _, slot, _ = best_slot(group.slots, avoid, self._clock(), group.most, group.is_strict)
        if slot is None:
            return None
        return self._claim(group, slot) if group.is_strict else Lease(slot, group.index, self._serve_queue)

    async def lease(self, key: BalanceKey, avoid: Collection[Slot] = ()) -> Lease | None:
        """A claim on the slot that is to be connected; None when there is none but those to `avoid`.

        raises  BackendError when all are too busy: refused at once, or after the wait for one, or because of too
                many that wait
        Who is cancelled while waiting leaves the queue.
        """
        taken = _Lack.BUSY if self._queue else self._take(key, avoid)
        if taken is _Lack.BUSY:
            taken = await self._wait(key, avoid)
        if isinstance(taken, Lease):
            return taken
        if taken is _Lack.NOBODY:
            return None
        raise BackendError(taken.value)

    def host(self, lease: Lease) -> Host:
        """The host that a lease is of."""
        return self._groups[lease.host_index].host

    def disable(self, lease: Lease) -> None:
        """The slot could not be connected: leave it alone for disable-time."""
        lease.slot.disabled_until_s = self._clock() + self.host(lease).disable_time_s

    def why_not(self) -> str:
        """Why `lease` gives nothing, in the operator's words."""
        now_s = self._clock()
        for group in self._groups:
            for slot in group.slots:
                if slot.state is SlotState.BROKEN:
                    return f"the processes of {slot.name} die as soon as they are started"
                if slot.disabled_until_s > now_s:
                    return f"{slot.name} could not be connected less than disable-time ago"
        return "no slot"

    def _take(self, key: BalanceKey, avoid: Collection[Slot]) -> Lease | _Lack:
        now_s = self._clock()
        lack = _Lack.NOBODY
        later: tuple[_Group, Slot] | None = None
        for group in self._in_order(key):
            best = group.best(avoid, now_s)
            if isinstance(best, _Lack):
                lack = best if lack is not _Lack.BUSY and best is not _Lack.NOBODY else lack
                continue
            rank, slot = best
            if rank != _WAITING:
                break
            later = later or (group, slot)
        else:
            if later is None:
                return lack
            group, slot = later
        lease = self._claim(group, slot)
        if lease is not None:
            self._next = group.index + 1
            return lease
        taken = self._take(key, (*avoid, slot))
        return taken if isinstance(taken, Lease) else _Lack.BUSY

    def _claim(self, group: _Group, slot: Slot) -> Lease | None:
        """None when another worker is at it, or has taken the last place."""
        if not group.is_strict:
            return Lease(slot, group.index, self._serve_queue)
        with slot.claiming() as is_ours:
            if is_ours and slot.load < group.host.max_load_per_proc:
                return Lease(slot, group.index, self._serve_queue)
        return None

    def _in_order(self, key: BalanceKey) -> Sequence[_Group]:
        """The hosts, the one to be taken first if it can be."""
        groups = self._groups
        if len(groups) == 1:
            return groups
        if self._kind == "least-connection":
            return sorted(groups, key=_Group.load)
        if self._kind == "round-robin":
            first = self._next % len(groups)
            return groups[first:] + groups[:first]
        text = key.client if self._kind == "sticky" else f"{key.authority}\0{key.path}"
        raw = text.encode("utf-8", "surrogatepass")
        return sorted(groups, key=lambda group: group.score(raw), reverse=True)

    async def _wait(self, key: BalanceKey, avoid: Collection[Slot]) -> Lease | _Lack:
        if len(self._queue) >= self._limits.max_queue:
            return _Lack.QUEUE_FULL
        loop = asyncio.get_running_loop()
        waiter = _Waiter(key, avoid, self._clock() + self._wait_s, loop.create_future())
        self._queue.append(waiter)
        if self._timer is None:
            self._timer = loop.call_later(self._limits.queue_poll_s, self._poll)
        granted = waiter.granted
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._queue.remove(waiter)
            elif isinstance(lease := granted.result(), Lease):  # called off just before it could be taken
                lease.release()
            raise

    def _serve_queue(self) -> None:
        """Give those who wait what there is, the first of them first."""
        served = []
        for waiter in self._queue:
            if waiter.granted.cancelled():  # it removes itself
                continue
            taken = self._take(waiter.key, waiter.avoid)
            if taken is not _Lack.BUSY:
                waiter.granted.set_result(taken)
                served.append(waiter)
            elif not waiter.avoid:
                break  # nor is there anything for those behind
        for waiter in served:
            self._queue.remove(waiter)

    def _poll(self) -> None:
        self._timer = None
        self._serve_queue()
        now_s = self._clock()
        for waiter in [waiter for waiter in self._queue if waiter.give_up_at_s <= now_s]:
            if not waiter.granted.cancelled():
                waiter.granted.set_result(_Lack.BUSY)
                self._queue.remove(waiter)
        if self._queue:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._limits.queue_poll_s, self._poll)


def _groups(hosts: Sequence[HostSlots]) -> tuple[_Group, ...]:
    """Hosts are told apart by what the settings say of them, so that every worker and every run hashes alike, and a
    host that comes or goes moves no other's clients."""
    seen: dict[str, int] = {}
    groups = []
    for index, each in enumerate(hosts):
        host = each.host
        name = host.socket or (shlex.join(host.bin_path) if host.port is None else f"{host.host}:{host.port}")
        seen[name] = seen.get(name, 0) + 1
        groups.append(_Group(index, each, f"{name}\0{seen[name]}\0"))
    return tuple(groups)
