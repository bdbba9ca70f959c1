"""Lets connections in, within a budget.

The loop's own servers are silent where it matters: uvloop accepts and drops what is over the descriptor
limit, and can spin without calling anybody (measured, uvloop 0.23). So accepting is ours: some per turn,
none while the budget is used up (they wait in the backlog), and a pause when the machine has no descriptors.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wstunnel._sockets import accept, local_name
from wstunnel.limits import AcceptLimits
from wstunnel.net.listen import Listener

__all__ = ["Acceptor"]

_log = logging.getLogger("wstunnel")

_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# What befell the new connection in the backlog, and not us (accept(2), "Error handling"; EPERM is a firewall's).
_GONE_AGAIN = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
        errno.ETIMEDOUT,
    }
)
_ANY = ("0.0.0.0:", "[::]:")


@dataclass(slots=True)
class _Turns:
    """How often in a row a shared listener was left to the other workers."""

    yields: int = 0
    resumed_s: float = 0.0
    pause: asyncio.TimerHandle | None = None


class Acceptor:
    """Accepts from all listeners of a worker while fewer than `max_connections` are open.

    in      on_connection   gets each accepted descriptor, non-blocking and without Nagle's algorithm, and owns it, with
                            the names of its peer and of where it came to, as in Request, and the listener;
                            `release` gives its place back
            may_accept      asked before each connection of a listener that workers share: False leaves it to the others
                            for a moment. All of them are woken by it, and the first one would take everything
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: Sequence[Listener],
        *,
        max_connections: int,
        limits: AcceptLimits,
        on_connection: Callable[[int, str, str, Listener], None],
        may_accept: Callable[[], bool] = lambda: True,
    ) -> None:
        self._loop = loop
        self._listeners = listeners
        self._max_connections = max_connections
        self._limits = limits
        self._on_connection = on_connection
        self._may_accept = may_accept
        self._locals = {listener.socket.fileno(): _fixed_name(listener) for listener in listeners}
        self._turns = {listener.socket.fileno(): _Turns() for listener in listeners if listener.is_shared}
        self._is_armed = False
        self._is_stopped = False
        self._pause: asyncio.TimerHandle | None = None
        self._pause_s = limits.first_pause_s
        self._logged_s: float | None = None
        self._is_full_logged = False
        self.open_connections = 0

    def start(self) -> None:
        """Accept from now on; a listener that does not listen yet begins with it."""
        for listener in self._listeners:
            if not listener.is_listening:
                listener.socket.listen(self._limits.listen_backlog)
            if listener.socket.family != socket.AF_UNIX:
                listener.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what it accepts has it too
        self._arm()

    def stop(self) -> None:
        """Accept no more. The listeners stay open: they are their owner's."""
        self._is_stopped = True
        self._disarm()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        for turns in self._turns.values():
            if turns.pause is not None:
                turns.pause.cancel()
                turns.pause = None

    def take_place(self) -> bool:
        """Take a place for what is as good as a connection, if there is one; `release` gives it back."""
        if self.open_connections >= self._max_connections:
            return False
        self.open_connections += 1
        return True

    def release(self) -> None:
        """A connection is gone: its place is free."""
        self.open_connections -= 1
        if self._pause is None:
            self._arm()

    def _arm(self) -> None:
        if self._is_armed or self._is_stopped:
            return
        self._is_armed = True
        for listener in self._listeners:
            if not self._is_left_alone(listener):
                self._listen_to(listener)

    def _disarm(self) -> None:
        if not self._is_armed:
            return
        self._is_armed = False
        for listener in self._listeners:
            if not self._is_left_alone(listener):
                self._loop.remove_reader(listener.socket.fileno())

    def _listen_to(self, listener: Listener) -> None:
        self._loop.add_reader(listener.socket.fileno(), self._accept_some, listener)

    def _accept_some(self, listener: Listener) -> None:
        listening_fd = listener.socket.fileno()
        turns, fixed_name = self._turns.get(listening_fd), self._locals[listening_fd]
        for _ in range(self._limits.per_turn):
            if self.open_connections >= self._max_connections:
                self._wait_for_room()
                return
            if turns is not None and not self._is_our_turn(turns):
                self._leave_alone(listener, turns)
                return
            try:
                accepted = accept(listening_fd)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._wait_for_descriptors(error)
                    return
                if error.errno in _GONE_AGAIN:
                    continue
                raise
            if accepted is None:
                return
            self._pause_s = self._limits.first_pause_s
            self.open_connections += 1
            fd, peer = accepted
            self._on_connection(fd, peer, fixed_name or local_name(fd), listener)

    def _is_our_turn(self, turns: _Turns) -> bool:
        if self._may_accept():
            turns.yields = 0
            return True
        if self._loop.time() - turns.resumed_s > self._limits.yield_s:
            turns.yields = 0  # nobody waited for a while: the others do take them
        if turns.yields < self._limits.max_yields:
            return False
        turns.yields = 0
        return True

    def _leave_alone(self, listener: Listener, turns: _Turns) -> None:
        """The connections that wait are for the other workers; look again soon."""
        turns.yields += 1
        self._loop.remove_reader(listener.socket.fileno())
        turns.pause = self._loop.call_later(self._limits.yield_s, self._look_again, listener, turns)

    def _look_again(self, listener: Listener, turns: _Turns) -> None:
        turns.pause = None
        turns.resumed_s = self._loop.time()
        if self._is_armed:
            self._listen_to(listener)

    def _is_left_alone(self, listener: Listener) -> bool:
        turns = self._turns.get(listener.socket.fileno())
        return turns is not None and turns.pause is not None

    def _wait_for_room(self) -> None:
        self._disarm()
        if not self._is_full_logged:
            self._is_full_logged = True
            _log.warning(
                "max-connections reached: %d are open, further ones wait in the backlog; raise max-connections "
                "(and the descriptor limit) if this is usual load",
                self.open_connections,
            )

    def _wait_for_descriptors(self, error: OSError) -> None:
        """Out of descriptors or memory: leave the backlog alone for a while, longer each time."""
        self._disarm()
        now_s = self._loop.time()
        if self._logged_s is None or now_s - self._logged_s >= self._limits.log_every_s:
            self._logged_s = now_s
            _log.error(
                "cannot accept: %s; %d connections are open and unharmed, new ones wait; raise the descriptor "
                "limit (ulimit -n, LimitNOFILE) or lower max-connections",
                error.strerror,
                self.open_connections,
            )
        self._pause = self._loop.call_later(self._pause_s, self._resume)
        self._pause_s = min(self._pause_s * 2, self._limits.max_pause_s)

    def _resume(self) -> None:
        self._pause = None
        self._arm()


def _fixed_name(listener: Listener) -> str:
    """Where every connection of a listener comes to, or "": its socket is bound to all addresses."""
    name = local_name(listener.socket.fileno())
    return "" if name.startswith(_ANY) else name
