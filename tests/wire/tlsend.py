"""TLS with a socket's manners, by the standard library's `ssl`, and papers that such a client trusts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl

from tests.wire.sockets import Outbox
from tests.wire.tls import authority, issued, pem

__all__ = ["NAME", "Tls", "client_context", "papers"]

NAME = "tunnel.test"
"""Whom the papers are made out to."""

RECORD_BYTES = 1 << 14
"""The most that one record carries (RFC 8446 §5.1)."""


def papers(folder: str) -> tuple[str, str]:
    """Paths of a certificate and its key, written to `folder`; the key is for the owner's eyes only."""
    paths = os.path.join(folder, "tls.crt"), os.path.join(folder, "tls.key")
    for path, text in zip(paths, pem(issued(NAME, "127.0.0.1", "::1")), strict=True):
        with open(path, "wb", opener=lambda name, flags: os.open(name, flags, mode=0o600)) as file:
            file.write(text)
    return paths


@functools.cache
def client_context(*protocols: str) -> ssl.SSLContext:
    """Of a client that trusts `papers` and offers `protocols` (ALPN)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority("ours").configure_trust(context)
    context.set_alpn_protocols(list(protocols))
    return context


class Tls:
    """The end of a wire that is TLS over a socket.

    close_notify is the half-close, in both directions, and leaves the other direction open (RFC 8446 §6.1). An EOF
    without it may be anybody's work: it counts as a reset.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.outbox = Outbox(sock)
        self._loop = asyncio.get_running_loop()
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=NAME)
        self._is_open = self._has_said_all = False
        self._opening = asyncio.Lock()
        self._read_ahead = bytearray()

    @property
    def protocol(self) -> str | None:
        """What ALPN has come to."""
        return self._tls.selected_alpn_protocol()

    async def open(self) -> None:
        """The handshake, once; raises ssl.SSLError, and ConnectionResetError when the server ends instead."""
        async with self._opening:
            while not self._is_open:
                try:
                    self._tls.do_handshake()
                    self._is_open = True
                except ssl.SSLWantReadError:
                    self._post()
                    if not (piece := await self._loop.sock_recv(self.sock, RECORD_BYTES)):
                        raise ConnectionResetError("EOF in the TLS handshake") from None
                    self._in.write(piece)
            self._post()

    def _post(self) -> None:
        self.outbox.post(self._out.read())

    async def send(self, data: bytes | memoryview) -> None:
        for at in range(0, len(data), RECORD_BYTES):
            self.post(data[at : at + RECORD_BYTES])
            await self.outbox.flushed()

    def send_now(self, data: bytes | memoryview) -> int:
        if not self.outbox.is_empty:
            return 0
        self.post(data[:RECORD_BYTES])
        return min(len(data), RECORD_BYTES)

    def post(self, data: bytes | memoryview) -> None:
        """Send without waiting."""
        for at in range(0, len(data), RECORD_BYTES):
            self._tls.write(data[at : at + RECORD_BYTES])
        self._post()

    async def recv(self, limit: int) -> bytes:
        while (piece := self._take(limit)) is None:
            self._feed(await self._loop.sock_recv(self.sock, RECORD_BYTES))
        return piece

    def recv_now(self, limit: int) -> bytes | None:
        while (piece := self._take(limit)) is None:
            try:
                self._feed(self.sock.recv(RECORD_BYTES))
            except BlockingIOError:
                return None
        return piece

    def _feed(self, piece: bytes) -> None:
        if piece:
            self._in.write(piece)
        else:
            self._in.write_eof()

    def _take(self, limit: int) -> bytes | None:
        """At most one record's payload; None when there is no whole record."""
        if self._read_ahead:
            piece = bytes(self._read_ahead[:limit])
            del self._read_ahead[:limit]
            return piece
        return self._decrypt(min(limit, RECORD_BYTES))

    def _decrypt(self, limit: int) -> bytes | None:
        try:
            return self._tls.read(limit)
        except ssl.SSLWantReadError:
            self._post()  # the answer to a KeyUpdate
            return None
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLEOFError as fault:
            raise ConnectionResetError("EOF without close_notify") from fault

    def half_close(self) -> None:
        if self._has_said_all:
            return
        self._has_said_all = True
        # `unwrap` would look for the server's close_notify in what was read and not asked for.
        with contextlib.suppress(ConnectionResetError):
            while piece := self._decrypt(RECORD_BYTES):
                self._read_ahead += piece
        with contextlib.suppress(ssl.SSLError):  # it waits for the server's, or the connection is broken anyway
            self._tls.unwrap()
        self._post()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._close_socket()

    def close(self) -> None:
        if self._is_open and self.sock.fileno() >= 0:
            self.half_close()
        self._close_socket()

    def _close_socket(self) -> None:
        self.outbox.close()
        self.sock.close()
