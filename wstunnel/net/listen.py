"""The sockets that clients connect to: bound, non-blocking, and taken away at the end."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from wstunnel.settings import Address, TcpAddress, UnixAddress
from wstunnel.sockets import bind_tcp, bind_unix, unlink_if_ours

__all__ = ["Listener", "open_listener"]


@dataclass(slots=True)
class Listener:
    """One listening socket. `address` is the actual one: port 0 has become a port."""

    socket: socket.socket
    address: Address
    inode: int | None

    def close(self) -> None:
        """Stop listening; a UNIX path that is still ours is unlinked."""
        if self.inode is not None and isinstance(self.address, UnixAddress):
            # before the socket is closed: from then on the inode's number may be given to somebody else's file
            unlink_if_ours(self.address.path, self.inode)
        self.socket.close()


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
    return Listener(sock, TcpAddress(address.host, sock.getsockname()[1]), None)
