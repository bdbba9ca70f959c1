"""The listening socket of a slot: made once, kept across the death of every process behind it."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
from typing import Any

from wstunnel.settings import Address, TcpAddress, UnixAddress
from wstunnel.sockets import bind_tcp, bind_unix, bind_unix_beside, unlink_if_ours

__all__ = ["Endpoint"]

_log = logging.getLogger("wstunnel.supervise")


class Endpoint:
    """A bound socket that listens; connects wait in its backlog while no process accepts them.

    in      wanted   the address that it was asked for; port 0 has become the real port
            address  where to connect: `wanted`, or a name beside it while another endpoint of ours stands there
            inode    the file of a UNIX socket; None for TCP
    """

    __slots__ = ("_backlog", "_inode", "address", "listener", "wanted")

    def __init__(
        self, listener: socket.socket, *, wanted: Address, address: Address, backlog: int, inode: int | None
    ) -> None:
        self.listener, self.wanted, self.address = listener, wanted, address
        self._backlog, self._inode = backlog, inode

    @classmethod
    def bind(cls, wanted: Address, *, backlog: int, is_taken: bool) -> Endpoint:
        """A new socket.

        in      is_taken  another endpoint of ours has the UNIX path: both serve, each at its own name, until
                          `publish` gives the path to this one
        raises  StartError
        """
        if isinstance(wanted, TcpAddress):
            listener = bind_tcp(wanted.host, wanted.port, backlog=backlog)
            wanted = TcpAddress(wanted.host, listener.getsockname()[1])
            return cls(listener, wanted=wanted, address=wanted, backlog=backlog, inode=None)
        if is_taken:
            listener, path = bind_unix_beside(wanted.path, backlog=backlog)
        else:
            listener, path = bind_unix(wanted.path, backlog=backlog), wanted.path
        inode = os.lstat(path).st_ino
        return cls(listener, wanted=wanted, address=UnixAddress(path), backlog=backlog, inode=inode)

    @classmethod
    def adopt(cls, wanted: Address, backlog: int, facts: dict[str, Any]) -> Endpoint:
        """The socket that an earlier image of this process has made, by its `facts`."""
        listener = socket.socket(fileno=facts["fd"])
        if isinstance(wanted, TcpAddress):
            wanted = TcpAddress(wanted.host, listener.getsockname()[1])
        address = wanted if facts["path"] is None else UnixAddress(facts["path"])
        return cls(listener, wanted=wanted, address=address, backlog=backlog, inode=facts["inode"])

    def facts(self) -> dict[str, Any]:
        """What `adopt` needs, for JSON."""
        path = self.address.path if isinstance(self.address, UnixAddress) else None
        return {"fd": self.listener.fileno(), "path": path, "inode": self._inode}

    def publish(self) -> None:
        """The path that was wanted leads here too, from one moment to the next."""
        if not (isinstance(self.wanted, UnixAddress) and isinstance(self.address, UnixAddress)):
            return
        if self.address == self.wanted:
            return
        path, second = self.wanted.path, f"{self.address.path}+"
        try:
            if os.path.lexists(path) and os.lstat(path).st_ino == self._inode:
                return  # it does, and renaming one name of a file to another one would leave both
            with contextlib.ExitStack() as undo:
                os.link(self.address.path, second)
                undo.callback(os.unlink, second)
                os.rename(second, path)
                undo.pop_all()
        except OSError as error:
            _log.error("%s: stays at %s: %s", self.wanted, self.address, error.strerror)

    def has_backlog(self) -> bool:
        """Does a connection wait to be accepted?"""
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        return bool(poll.poll(0))

    def drop_backlog(self) -> None:
        """End every connection that waits to be accepted. bound: a full backlog."""
        self.listener.setblocking(False)
        with contextlib.suppress(OSError):  # nobody waits any more, or no descriptor is left
            for _ in range(self._backlog + 1):  # Linux lets in one more than the backlog
                self.listener.accept()[0].close()
        self.listener.setblocking(True)

    def close(self) -> None:
        """Take the file and the socket away; a file that somebody else has put in its place stays."""
        if self._inode is not None:
            for where in {self.wanted, self.address}:
                if isinstance(where, UnixAddress):
                    unlink_if_ours(where.path, self._inode)
        self.listener.close()
