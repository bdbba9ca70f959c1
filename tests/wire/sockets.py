"""A connection whose every step the test decides, and the waiting that goes with it.

Nothing is kept in user space: what `send` returned from is in the kernel, what `recv` was not asked for is still
there (over TLS but for a record; over HTTP/2 the stream's window takes the place of the kernel's buffer). So "stalls"
means that the peer's bytes pile up where a real slow peer would let them pile up.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from wstunnel import TcpAddress, UnixAddress

__all__ = ["DEADLINE_S", "Outbox", "Plain", "Wire", "connected", "eventually", "quiet", "rss_kib", "turns"]

DEADLINE_S = 20.0
"""How long a thing that must happen may take: only ever waited for in a failure."""


class Outbox:
    """What the kernel has not taken yet of what a socket should send; it goes as soon as the kernel has room."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._left = bytearray()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._fault: OSError | None = None

    @property
    def is_empty(self) -> bool:
        return self._is_empty.is_set()

    def post(self, data: bytes) -> None:
        """Never waits; the order is that of the calls."""
        self._left += data
        if self.is_empty:
            self._push()

    def _push(self) -> None:
        try:
            while self._left:
                del self._left[: self._sock.send(self._left)]
        except BlockingIOError:
            self._loop.add_writer(self._sock, self._push)
            self._is_empty.clear()
            return
        except OSError as fault:
            self._fault = fault
            self._left.clear()
        self.close()

    async def flushed(self) -> None:
        """Returns when the kernel holds all of it; raises BrokenPipeError or ConnectionResetError."""
        await self._is_empty.wait()
        if self._fault is not None:
            raise type(self._fault)(*self._fault.args)

    def close(self) -> None:
        """What is left is left."""
        if not self.is_empty:
            self._loop.remove_writer(self._sock)
            self._is_empty.set()


class Plain:
    """The end of a wire that is a socket: what a Wire does, its bytes as they are."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.outbox = Outbox(sock)
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        """There is nothing to agree on."""

    async def send(self, data: bytes | memoryview) -> None:
        await self._loop.sock_sendall(self.sock, data)

    def send_now(self, data: bytes | memoryview) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def post(self, data: bytes) -> None:
        """Send without waiting. (Not together with `send`, which would overtake.)"""
        self.outbox.post(data)

    async def recv(self, limit: int) -> bytes:
        return await self._loop.sock_recv(self.sock, limit)

    def recv_now(self, limit: int) -> bytes | None:
        try:
            return self.sock.recv(limit)
        except BlockingIOError:
            return None

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.outbox.close()
        self.sock.close()


class Wire:
    """One connection: a plain socket, or an `end` that has a socket's manners (TLS, a stream of HTTP/2).

    read_bytes, lull_turns    how much one `recv` takes and how many turns of the loop pass before it: a slow
                              reader takes little and lets the loop turn
    """

    def __init__(self, end: Any) -> None:
        self.end = Plain(end) if isinstance(end, socket.socket) else end
        self.read_bytes = 256 * 1024
        self.lull_turns = 0

    @property
    def sock(self) -> socket.socket:
        """What lies under all; over HTTP/2 others may use it too."""
        return self.end.sock

    async def send(self, data: bytes | memoryview) -> None:
        """Returns when the kernel holds all of it; raises BrokenPipeError or ConnectionResetError."""
        await self.end.open()
        await self.end.send(data)

    async def send_in_pieces(self, data: bytes, sizes: list[int], lull_turns: int = 0) -> None:
        """Cut `data` into the given sizes (the last one takes the rest), letting the loop turn after each."""
        at = 0
        for size in sizes:
            await self.send(data[at : at + size])
            at += size
            await turns(lull_turns)
        await self.send(data[at:])

    def send_now(self, data: bytes | memoryview) -> int:
        """The number of bytes that fit at once; 0 when there is no room."""
        return self.end.send_now(data)

    async def recv(self, limit: int | None = None) -> bytes:
        """What is there, b"" at the end; raises ConnectionResetError when the peer reset."""
        await turns(self.lull_turns)
        return await self.end.recv(limit or self.read_bytes)

    def recv_now(self, limit: int) -> bytes | None:
        """What is there, None when that is nothing yet."""
        return self.end.recv_now(limit)

    async def recv_exactly(self, count: int) -> bytes:
        """`count` bytes, and not one more is taken; AssertionError when the end comes before."""
        got = bytearray()
        while len(got) < count:
            piece = await self.recv(min(self.read_bytes, count - len(got)))
            assert piece, f"the end came after {len(got)} of {count} bytes: {bytes(got[-80:])!r}"
            got += piece
        return bytes(got)

    async def recv_to_end(self) -> bytes:
        """Everything up to the peer's EOF; raises ConnectionResetError when the peer reset instead."""
        got = bytearray()
        while piece := await self.recv():
            got += piece
        return bytes(got)

    async def gone(self) -> None:
        """Returns when the peer ended, in whichever way; what it still said is thrown away."""
        try:
            while await self.recv():
                pass
        except ConnectionResetError:
            pass

    def half_close(self) -> None:
        """Say no more, listen on: FIN, close_notify or END_STREAM."""
        self.end.half_close()

    def reset(self) -> None:
        """End without a goodbye: TCP RST, or RST_STREAM. (On a UNIX socket only unread bytes make the end a reset.)"""
        self.end.reset()

    def close(self) -> None:
        self.end.close()

    def narrow(self, size: int) -> None:
        """Make the kernel's buffers small (it has a floor of some 2-4 KiB)."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


async def connected(address: TcpAddress | UnixAddress, *, buffer_bytes: int | None = None) -> socket.socket:
    """A non-blocking socket connected to `address`; buffers are set before the connect, or TCP ignores them."""
    if isinstance(address, UnixAddress):
        sock, where = socket.socket(socket.AF_UNIX), address.path
    else:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        sock, where = socket.socket(family), (address.host, address.port)
    try:
        sock.setblocking(False)
        if buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


async def turns(count: int) -> None:
    """Let the loop turn that many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def eventually(claim: Callable[[], bool], what: str, *, within_s: float = DEADLINE_S) -> None:
    """Returns as soon as `claim()` holds; fails with `what` when it does not come to hold."""
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.005)


async def quiet(reading: Callable[[], int], *, for_s: float = 0.3) -> int:
    """The value that `reading()` has come to rest at: unchanged for `for_s`."""
    deadline = time.monotonic() + DEADLINE_S
    last, since = reading(), time.monotonic()
    while time.monotonic() - since < for_s:
        await asyncio.sleep(0.005)
        now = reading()
        if now != last:
            last, since = now, time.monotonic()
        assert time.monotonic() < deadline, f"still moving after {DEADLINE_S} s, at {last}"
    return last


def rss_kib() -> int:
    """What this process holds in memory, in KiB; the kernel's socket buffers do not count."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
