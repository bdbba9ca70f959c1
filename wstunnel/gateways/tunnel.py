"""Plain bytes to a socket: connects one backend of a pool, before the client hears of it."""

from __future__ import annotations

import asyncio
import codecs
import os
import socket
from dataclasses import dataclass

from wstunnel.errors import BackendError
from wstunnel.settings import Address, UnixAddress
from wstunnel.supervise.lease import Lease
from wstunnel.supervise.pool import Pool
from wstunnel.supervise.slot import Slot

__all__ = ["Connected", "TunnelGateway"]

# Host names pass through it. Python loads it from a file at its first use, for which there may be no descriptor left.
codecs.lookup("idna")


@dataclass(slots=True)
class Connected:
    """A connected, non-blocking socket, and the lease on the slot behind it."""

    socket: socket.socket
    lease: Lease

    def close(self) -> None:
        self.socket.close()
        self.lease.release()


class TunnelGateway:
    """Connects the slot with the least connections; when that fails, each of the others once."""

    def __init__(self, pool: Pool, *, connect_timeout_s: float) -> None:
        self._pool = pool
        self._connect_timeout_s = connect_timeout_s

    async def connect(self) -> Connected:
        """A backend, connected.

        raises  BackendError when no slot can be connected; it names the last reason
        """
        tried: list[Slot] = []
        reason = "no slot"
        while (lease := self._pool.lease(avoid=tried)) is not None:
            tried.append(lease.slot)
            try:
                return Connected(await _connect(lease.address, self._connect_timeout_s), lease)
            except OSError as error:
                reason = f"{lease.address}: {_why(error)}"
                lease.release()
            except BaseException:
                lease.release()
                raise
        raise BackendError(f"no backend of {self._pool.name} can be connected: {reason}")


async def _connect(address: Address, timeout_s: float) -> socket.socket:
    if isinstance(address, UnixAddress):
        # A UNIX connect completes at once or not at all; EAGAIN says that the backlog is full, and nothing else.
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(address.path)
        except OSError:
            sock.close()
            raise
        return sock
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_s):
        try:
            found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except UnicodeError:
            raise OSError(f"{address.host} is not a host name") from None
        error: OSError | None = None
        for family, kind, protocol, _, where in found:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            try:
                await loop.sock_connect(sock, where)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as failed:
                sock.close()
                error = failed
            except BaseException:
                sock.close()
                raise
            else:
                return sock
    raise error if error is not None else OSError(f"{address.host} has no address")


def _why(error: OSError) -> str:
    if isinstance(error, BlockingIOError):
        return "its backlog is full"
    if isinstance(error, TimeoutError):
        return "no answer within connect-timeout"
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)  # the loops say only that the "connect call failed"
