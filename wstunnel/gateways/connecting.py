"""Connecting the backends of a route: the slot that the balancer chooses, and when that fails, each of the others."""

from __future__ import annotations

import asyncio
import codecs
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

from wstunnel._sockets import connect_unix
from wstunnel.errors import BackendError
from wstunnel.proto.request import Request
from wstunnel.settings import Address, Host, TcpAddress, UnixAddress
from wstunnel.supervise.balance import BalanceKey, Balancer
from wstunnel.supervise.lease import Lease
from wstunnel.supervise.slot import Slot

__all__ = ["Connector", "connect"]

T = TypeVar("T")

# Host names pass through it. Python loads it from a file at its first use, for which there may be no descriptor left.
codecs.lookup("idna")

_NOT_ITS_FAULT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL))
"""What we lack, not the backend; no reason to leave it alone for a while."""


class Connector:
    """Finds a slot that can be connected.

    in      name  of the route's backend, for errors
    """

    def __init__(self, balancer: Balancer, name: str) -> None:
        self._balancer = balancer
        self._name = name

    async def take(self, request: Request, dial: Callable[[Lease, Host], Awaitable[T]]) -> T:
        """What `dial` makes of a lease on a slot and the slot's host, the lease being its own from then on.

        in      dial  raises OSError when that slot cannot be had; then it is left alone for disable-time, if that is
                      its fault, and another one is tried
        raises  BackendError when no slot can be had (it names the last reason), or none may be: its host's
                max-load-policy forbids it
        bound   one `dial` for each slot, and once `connect-timeout` in the queue for a free one
        """
        balancer = self._balancer
        tried: tuple[Slot, ...] = ()
        reason = None
        while True:
            lease = balancer.lease_at_once(tried) or await balancer.lease(_key(request), tried)
            if lease is None:
                break
            try:
                return await dial(lease, balancer.host(lease))
            except OSError as error:
                tried = (*tried, lease.slot)
                reason = f"{lease.where}: {_why(error)}"
                if not _is_for_the_moment(error):
                    balancer.disable(lease)
                lease.release()
            except BaseException:
                lease.release()
                raise
        raise BackendError(f"no backend of {self._name} can be connected: {reason or self._balancer.why_not()}")


async def connect(address: Address, timeout_s: float) -> int:
    """A connected, non-blocking descriptor, without Nagle's algorithm. raises OSError; TimeoutError in `timeout_s`"""
    if isinstance(address, UnixAddress):
        return connect_unix(address.path)
    return await _connect_tcp(address, timeout_s)


def _key(request: Request) -> BalanceKey:
    return BalanceKey(request.host.lower(), request.path, request.peer.rpartition(":")[0])


def _is_for_the_moment(error: OSError) -> bool:
    """A full backlog has room again as soon as the backend accepts, and to ask costs nothing."""
    return isinstance(error, BlockingIOError) or error.errno in _NOT_ITS_FAULT


async def _connect_tcp(address: TcpAddress, timeout_s: float) -> int:
    await asyncio.sleep(0)  # asyncio.timeout wants to run in a task: net/eager.py
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
                return sock.detach()
    raise error if error is not None else OSError(f"{address.host} has no address")


def _why(error: OSError) -> str:
    if isinstance(error, BlockingIOError):
        return "its backlog is full"
    if isinstance(error, TimeoutError):
        return "no answer within connect-timeout"
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)  # the loops say only that the "connect call failed"
