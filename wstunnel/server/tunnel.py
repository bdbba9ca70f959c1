"""The whole of wstunnel in one event loop: supervising and serving, side by side."""

from __future__ import annotations

import asyncio
import os
import resource
from types import TracebackType

from wstunnel.errors import StartError
from wstunnel.gateways.static import StaticGateway
from wstunnel.gateways.tunnel import TunnelGateway
from wstunnel.limits import AcceptLimits
from wstunnel.net.listen import Listener, open_listener
from wstunnel.proto.close import CloseCode
from wstunnel.server.routes import TunnelRoute
from wstunnel.server.worker import Worker
from wstunnel.settings import Address, Settings
from wstunnel.supervise.pool import Pool, slot_addresses

__all__ = ["Tunnel"]


class Tunnel:
    """Serves `settings` inside the running asyncio or uvloop loop.

        async with Tunnel(settings) as tunnel:
            print(tunnel.addresses)
            await something

    Leaving the block ends every tunnel with CLOSE 1001 after what was received is delivered, ends the backends
    that were spawned, and unlinks their sockets.

    raises  StartError, from `start`, when an address, a socket or a program cannot be had
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._listeners: list[Listener] = []
        self._pools: list[Pool] = []
        self._worker: Worker | None = None
        self._stopping: Worker | None = None
        self._ending = asyncio.Lock()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where clients connect, in the settings' order; port 0 has become the real port."""
        return tuple(listener.address for listener in self._listeners)

    async def start(self) -> None:
        """Bind, spawn, and serve. On failure nothing is left behind.

        raises  RuntimeError if it runs already
        """
        if self._worker is not None:
            raise RuntimeError("this Tunnel runs already; stop it first, or make another one")
        settings, limits = self.settings, self.settings.limits
        max_connections = _connection_budget(settings.max_connections, limits.accept)
        static = None if settings.document_root is None else StaticGateway(settings.document_root, limits.file)
        try:
            for address in settings.listen:
                self._listeners.append(open_listener(address, backlog=limits.accept.listen_backlog))
            routes = []
            for route in settings.routes:
                addresses = slot_addresses(route)
                pool = Pool(
                    os.path.basename(route.bin_path[0]) if route.bin_path else str(addresses[0]),
                    addresses=addresses,
                    argv=route.bin_path,
                    limits=limits,
                )
                await pool.start()
                self._pools.append(pool)
                routes.append(TunnelRoute(route, TunnelGateway(pool, connect_timeout_s=route.connect_timeout_s)))
            self._worker = Worker(self._listeners, routes, static, max_connections=max_connections, limits=limits)
        except BaseException:
            await self.stop()
            raise
        self._worker.start()

    async def stop(self) -> None:
        """End every tunnel with CLOSE 1001, what was received delivered; then the backends; then the sockets.

        A second call waits for the first. One that is cancelled cuts the tunnels, and ends the rest as ever.
        """
        async with self._ending:
            self._stopping, self._worker = self._worker, None
            try:
                if self._stopping is not None:
                    await self._drain(self._stopping)
            finally:
                self._stopping = None
                await asyncio.gather(*(pool.stop() for pool in self._pools))
                for listener in self._listeners:
                    listener.close()
                self._listeners.clear()
                self._pools.clear()

    async def _drain(self, worker: Worker) -> None:
        try:
            await worker.drain(CloseCode.GOING_AWAY, within_s=self.settings.limits.relay.drain_s)
        finally:
            worker.close()

    def abort(self) -> None:
        """Make a `stop` that is under way, or comes next, end at once: tunnels are cut, backends get SIGKILL."""
        worker = self._stopping or self._worker
        if worker is not None:
            worker.abort()
        for pool in self._pools:
            pool.abort()

    async def __aenter__(self) -> Tunnel:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _connection_budget(wanted: int | None, limits: AcceptLimits) -> int:
    """How many connections the descriptor limit carries, or `wanted`, for which the soft limit is raised.

    raises  StartError when the hard limit does not carry `wanted`
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted is None:
        return max(1, (soft - limits.reserved_fds) // limits.fds_per_connection)
    needed = wanted * limits.fds_per_connection + limits.reserved_fds
    if needed > soft:
        if hard != resource.RLIM_INFINITY and needed > hard:
            most = (hard - limits.reserved_fds) // limits.fds_per_connection
            raise StartError(
                f"max-connections = {wanted} needs {needed} descriptors and the limit is {hard}: raise it "
                f"(ulimit -Hn, LimitNOFILE)" + (f" or set max-connections to {most}" if most > 0 else "")
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return wanted
