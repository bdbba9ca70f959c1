"""How the clients of a run come to the tunnel: over plain HTTP/1.1, inside TLS, as streams of HTTP/2, or both."""

from __future__ import annotations

import socket
from dataclasses import replace

from tests.conftest import IO, WIRE
from tests.wire.clients import Client
from tests.wire.h2client import WINDOW_BYTES, Connection, H2Client
from tests.wire.sockets import Plain, connected
from tests.wire.tlsend import Tls, client_context, papers
from wstunnel import Settings, TcpAddress, UnixAddress

__all__ = ["Way", "fitted"]


def fitted(settings: Settings, folder: str) -> Settings:
    """The settings as the wire of this run needs them; papers are written to `folder`."""
    wire = WIRE.get()
    settings = replace(settings, io=IO.get())
    if wire.endswith("+tls"):
        certificate, key = papers(folder)
        return replace(settings, tls_cert=(certificate,), tls_key=(key,))
    return replace(settings, h2c=True) if wire == "h2c" else settings


class Way:
    """Makes the clients of one run, and keeps what they share.

    in      share  how many clients come over one HTTP/2 connection before another is made, as in browsers
    """

    def __init__(self, share: int = 100) -> None:
        self.wire = WIRE.get()
        self.connections: list[tuple[TcpAddress | UnixAddress, Connection]] = []
        self._share = share

    @property
    def is_shared(self) -> bool:
        """Clients are streams of a connection, whose own ends are no business of theirs."""
        return self.wire.startswith("h2")

    @property
    def scheme(self) -> str:
        return "https" if self.wire.endswith("+tls") else "http"

    async def reach(self, address: TcpAddress | UnixAddress, *, buffer_bytes: int | None = None) -> Client:
        """A client that is connected and has said nothing; over HTTP/2 its window is as small as a buffer would be."""
        if self.is_shared:
            return H2Client(await self._connection(address), buffer_bytes or WINDOW_BYTES)
        sock = await connected(address, buffer_bytes=buffer_bytes)
        return Client(Tls(sock, client_context("http/1.1")) if self.wire == "h1+tls" else Plain(sock))

    async def _connection(self, address: TcpAddress | UnixAddress) -> Connection:
        for where, connection in self.connections:
            is_good = not connection.is_over and connection.goaway_code is None
            if where == address and is_good and len(connection.members) < self._share:
                return connection
        sock = await connected(address)
        if sock.family != socket.AF_UNIX:  # windows end in short frames, which Nagle would hold back
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.wire == "h2+tls":
            connection = Connection(Tls(sock, client_context("h2")), self.scheme)
        else:
            connection = Connection(Plain(sock), self.scheme)
        self.connections.append((address, connection))
        return connection

    def close(self) -> None:
        for _, connection in self.connections:
            connection.close()
