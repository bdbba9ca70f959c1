"""A socket whose every step the test decides, and the waiting that goes with it.

Nothing is kept in user space: what `send` returned from is in the kernel, what `recv` was not asked for is
still there. So "stalls" means that the peer's bytes pile up where a real slow peer would let them pile up.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Callable

from wstunnel import TcpAddress, UnixAddress

__all__ = ["DEADLINE_S", "Wire", "connected", "eventually", "quiet", "rss_kib", "turns"]

DEADLINE_S = 20.0
"""How long a thing that must happen may take: only ever waited for in a failure."""


class Wire:
    """One connected socket.

    read_bytes, lull_turns    how much one `recv` takes and how many turns of the loop pass before it: a slow
                              reader takes little and lets the loop turn
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.read_bytes = 256 * 1024
        self.lull_turns = 0
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes | memoryview) -> None:
        """Returns when the kernel holds all of it; raises BrokenPipeError or ConnectionResetError."""
        await self._loop.sock_sendall(self.sock, data)

    async def send_in_pieces(self, data: bytes, sizes: list[int], lull_turns: int = 0) -> None:
        """Cut `data` into the given sizes (the last one takes the rest), letting the loop turn after each."""
        at = 0
        for size in sizes:
            await self.send(data[at : at + size])
            at += size
            await turns(lull_turns)
        await self.send(data[at:])

    def send_now(self, data: bytes | memoryview) -> int:
        """The number of bytes that fit at once; 0 when the kernel is full."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    async def recv(self, limit: int | None = None) -> bytes:
        """What is there, b"" at the end; raises ConnectionResetError when the peer reset."""
        await turns(self.lull_turns)
        return await self._loop.sock_recv(self.sock, limit or self.read_bytes)

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
        """Say no more, listen on."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End without a goodbye: TCP RST. (On a UNIX socket only unread bytes make the end a reset.)"""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

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
