"""The sockets that clients connect to: bound, non-blocking, handed to workers, and taken away at the end."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wstunnel.errors import StartError
from wstunnel.net.tls import ServerTls
from wstunnel.settings import Address, Front, TcpAddress, UnixAddress
from wstunnel.sockets import bind_tcp, bind_unix, join_tcp, resolve_tcp, unlink_if_ours

__all__ = ["Listener", "ListenerSet", "open_listener", "open_listeners"]

_log = logging.getLogger("wstunnel")


@dataclass(slots=True)
class Listener:
    """One listening socket. `address` is the actual one: port 0 has become a port."""

    socket: socket.socket
    address: Address
    inode: int | None = None
    """Of the path to take away with the socket; None: there is none, or it is not ours."""
    is_shared: bool = False
    """Other workers accept from the same socket."""
    front: Front = field(default_factory=Front)
    """How its clients are served."""
    tls: ServerTls | None = None
    """None: in the clear."""

    def close(self) -> None:
        """Stop listening; a UNIX path that is still ours is unlinked."""
        if self.inode is not None and isinstance(self.address, UnixAddress):
            # before the socket is closed: from then on the inode's number may be given to somebody else's file
            unlink_if_ours(self.address.path, self.inode)
        self.socket.close()

    @property
    def is_listening(self) -> bool:
        return bool(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def open_listener(address: Address, *, backlog: int) -> Listener:
    """A listener at `address`.

    raises  StartError naming the address and what stands in the way
    """
    if isinstance(address, UnixAddress):
        sock = bind_unix(address.path, backlog=backlog)
        sock.setblocking(False)
        return Listener(sock, address, os.stat(address.path).st_ino)
    sock = bind_tcp(address.host, address.port, backlog=backlog)
    sock.setblocking(False)
    return Listener(sock, TcpAddress(address.host, sock.getsockname()[1]))


class ListenerSet:
    """The sockets of one address. TCP: one for each worker, and the kernel spreads the connections over them. UNIX, and
    what a service manager passed to us: one, from which all workers accept.

    in      asked       the address as the operator wrote it: port 0 may stand there
            listeners   at least one
            is_passed   it is the service manager's: never joined by further sockets, its path never unlinked
    """

    def __init__(self, asked: Address, listeners: Sequence[Listener], *, is_passed: bool = False) -> None:
        self.asked = asked
        self.is_passed = is_passed
        self._listeners = list(listeners)

    @property
    def address(self) -> Address:
        """Where clients connect."""
        return self._listeners[0].address

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors of all its sockets; they are not inheritable."""
        return tuple(listener.socket.fileno() for listener in self._listeners)

    def __len__(self) -> int:
        return len(self._listeners)

    def grow(self, count: int) -> None:
        """Have sockets for `count` workers. A socket that is added does not listen yet: the worker that accepts from it
        begins with that (`Acceptor.start`), so that no connection waits where nobody is.

        Where none can be added (a port below 1024 after root was given up), workers share those that there are.
        """
        first = self._listeners[0]
        if self.is_passed or first.socket.family == socket.AF_UNIX:
            return
        while len(self._listeners) < count:
            try:
                sock = join_tcp(first.socket)
            except OSError as error:
                _log.warning(
                    "%s: no listening socket for each of %d workers (%s): they share %d; a restart gives each its own",
                    first.address,
                    count,
                    error.strerror,
                    len(self._listeners),
                )
                return
            sock.setblocking(False)
            self._listeners.append(Listener(sock, first.address))

    def listen(self, backlog: int) -> None:
        """Let all sockets listen now. Only when their workers are sure to come: connections wait for them."""
        for listener in self._listeners:
            if not listener.is_listening:
                listener.socket.listen(backlog)

    def shrink(self, count: int) -> None:
        """Close the sockets beyond the first `count`, at least one stays. Whoever waits in their backlogs is cut off:
        for those that no worker has begun to accept from, after a reload that failed."""
        while len(self._listeners) > max(count, 1):
            self._listeners.pop().close()

    def share(self, index: int, count: int) -> list[Listener]:
        """What worker `index` of `count` accepts from: its own socket where there is one for each, and those that are
        left over or too few together with the others. Every socket is accepted from by somebody."""
        is_own = len(self._listeners) >= count
        return [
            Listener(listener.socket, listener.address, is_shared=count > 1 and not (is_own and place == index))
            for place, listener in enumerate(self._listeners)
            if not is_own or place == index or place >= count
        ]

    def give_to(self, uid: int, gid: int) -> None:
        """Make another user the owner: of the sockets, for otherwise it could not add further ones, and of a path, for
        otherwise it could not connect there."""
        for listener in self._listeners:
            os.fchown(listener.socket.fileno(), uid, gid)
            if listener.inode is not None and isinstance(listener.address, UnixAddress):
                os.chown(listener.address.path, uid, gid, follow_symlinks=False)

    def close(self) -> None:
        """Stop listening; a UNIX path that is ours is unlinked."""
        for listener in self._listeners:
            listener.close()

    def export(self) -> dict[str, Any]:
        """What the next image of this process needs to go on with the sockets; their descriptors must be made
        inheritable."""
        first = self._listeners[0]
        return {
            "asked": _words(self.asked),
            "address": _words(first.address),
            "fds": list(self.fds),
            "inode": first.inode,
            "is_passed": self.is_passed,
        }

    @classmethod
    def adopt(cls, exported: Mapping[str, Any]) -> ListenerSet:
        """The sockets of the image that ran in this process before; who has connected meanwhile is served.

        in      exported   what its `export` said; the descriptors are this object's from now on
        """
        address = _address(exported["address"])
        listeners = [Listener(_taken(fd), address, exported["inode"]) for fd in exported["fds"]]
        return cls(_address(exported["asked"]), listeners, is_passed=exported["is_passed"])

    @classmethod
    def of_passed(cls, fd: int) -> ListenerSet:
        """The one listening socket that a service manager left open for us at `fd`."""
        sock = _taken(fd)
        name = sock.getsockname()
        address: Address
        if sock.family == socket.AF_UNIX:
            path = os.fsdecode(name)
            address = UnixAddress(f"@{path[1:]}" if path.startswith("\0") else path)
        else:
            address = TcpAddress(name[0], name[1])
        return cls(address, [Listener(sock, address)], is_passed=True)

    def is_at(self, address: Address) -> bool:
        """Does it listen where `address` says?"""
        if address == self.asked:
            return True
        mine = self.address
        if isinstance(address, UnixAddress) or isinstance(mine, UnixAddress):
            return address == mine
        if address.port != mine.port:
            return False
        family, name = resolve_tcp(address.host, address.port)
        sock = self._listeners[0].socket
        return family == sock.family and name == sock.getsockname()


def open_listeners(
    addresses: Sequence[Address],
    *,
    count: int,
    backlog: int,
    held: Sequence[ListenerSet] = (),
    is_default: bool = False,
) -> list[ListenerSet]:
    """Sockets at all addresses, in their order, for `count` workers.

    in      held        sets that are open already, passed by a service manager or of the configuration before: one
                        that listens at one of the addresses serves it, and a passed one is served anyhow
            is_default  nobody wrote the addresses: beside passed sockets, none is opened
    out     held ones that are not in it are the caller's to close, once the new ones are served
    raises  StartError naming the address and what stands in the way; nothing is opened then and nothing held is changed
    """
    left = list(held)
    if is_default and any(each.is_passed for each in held):
        addresses = ()
    sets: list[ListenerSet] = []
    opened: list[ListenerSet] = []
    try:
        for address in addresses:
            found = next((each for each in left if each.is_at(address)), None)
            if found is not None:
                left.remove(found)
                sets.append(found)
                continue
            opened.append(ListenerSet(address, [_opened(address, backlog, left)]))
            sets.append(opened[-1])
    except BaseException:
        for each in opened:
            each.close()
        raise
    sets += [each for each in left if each.is_passed]
    for each in sets:
        each.grow(count)
    for each in opened:
        each.listen(backlog)
    return sets


def _opened(address: Address, backlog: int, left: Sequence[ListenerSet]) -> Listener:
    try:
        return open_listener(address, backlog=backlog)
    except StartError as error:
        for each in left:
            mine = each.address
            if isinstance(address, TcpAddress) and isinstance(mine, TcpAddress) and address.port == mine.port:
                raise StartError(
                    f"{address}: this wstunnel itself listens on that port, at {mine}; such a change takes a restart"
                ) from error
        raise


def _taken(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def _words(address: Address) -> list[str | int]:
    return [address.path] if isinstance(address, UnixAddress) else [address.host, address.port]


def _address(words: Sequence[Any]) -> Address:
    return UnixAddress(*words) if len(words) == 1 else TcpAddress(*words)
