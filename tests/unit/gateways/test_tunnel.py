"""Connecting a backend: the right slot, a reason when there is none, and nothing left over when it is called off."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Run, open_descriptors
from tests.wire.sockets import eventually, turns
from wstunnel.errors import BackendError
from wstunnel.gateways.tunnel import TunnelGateway
from wstunnel.limits import Limits
from wstunnel.settings import Address, TcpAddress, UnixAddress
from wstunnel.supervise.pool import Pool


class Backends:
    """Listening sockets, and full ones."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._socks: list[socket.socket] = []

    def unix(self, name: str, *, backlog: int = 16) -> UnixAddress:
        sock = socket.socket(socket.AF_UNIX)
        self._socks.append(sock)
        sock.bind(f"{self._folder}/{name}")
        sock.listen(backlog)
        return UnixAddress(f"{self._folder}/{name}")

    def dead(self, name: str) -> UnixAddress:
        """A socket that nobody listens on any more."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"{self._folder}/{name}")
        return UnixAddress(f"{self._folder}/{name}")

    def missing(self, name: str) -> UnixAddress:
        return UnixAddress(f"{self._folder}/{name}")

    def full_unix(self, name: str) -> UnixAddress:
        address = self.unix(name, backlog=0)
        self._fill(lambda: socket.socket(socket.AF_UNIX), address.path)
        return address

    def tcp(self, host: str = "127.0.0.1", *, backlog: int = 16) -> TcpAddress:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._socks.append(sock)
        sock.bind((host, 0))
        sock.listen(backlog)
        return TcpAddress(host, sock.getsockname()[1])

    def refused_tcp(self) -> TcpAddress:
        """A port that is bound, so that nobody else gets it, and not listened on."""
        sock = socket.socket()
        self._socks.append(sock)
        sock.bind(("127.0.0.1", 0))
        return TcpAddress("127.0.0.1", sock.getsockname()[1])

    def mute_tcp(self) -> TcpAddress:
        """A port whose backlog is full: a SYN to it is dropped, so that a connect waits."""
        address = self.tcp(backlog=0)
        self._fill(socket.socket, (address.host, address.port))
        return address

    def _fill(self, make: Any, where: Any) -> None:
        """Connect until the backlog is full (and for TCP, one more that waits)."""
        while True:
            sock = make()
            self._socks.append(sock)
            sock.settimeout(0.05)
            try:
                sock.connect(where)
            except (BlockingIOError, TimeoutError):
                return

    def close(self) -> None:
        for sock in self._socks:
            sock.close()


@pytest.fixture
def backends(tmp_path: Any) -> Iterator[Backends]:
    made = Backends(str(tmp_path))
    yield made
    made.close()


async def pool_of(*addresses: Address) -> Pool:
    pool = Pool("echo", addresses=addresses, limits=Limits())
    await pool.start()
    return pool


def loads(pool: Pool) -> list[int]:
    return [slot.load for slot in pool.slots]


def gateway_to(pool: Pool, *, connect_timeout_s: float = 8.0) -> TunnelGateway:
    return TunnelGateway(pool, connect_timeout_s=connect_timeout_s)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_connection_is_ready_for_the_loop_and_counts_until_it_is_closed(run: Run, backends, kind):
    async def check() -> None:
        pool = await pool_of(backends.unix("s") if kind == "unix" else backends.tcp())

        connected = await gateway_to(pool).connect()

        assert loads(pool) == [1]
        assert not connected.socket.getblocking()
        connected.socket.getpeername()
        if kind == "tcp":
            assert connected.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connected.close()
        assert loads(pool) == [0]
        assert connected.socket.fileno() == -1
        connected.close()
        assert loads(pool) == [0]

    run(check())


def test_the_slot_with_the_fewest_connections_is_chosen(run: Run, backends):
    async def check() -> None:
        pool = await pool_of(backends.unix("a"), backends.unix("b"), backends.unix("c"))
        gateway = gateway_to(pool)

        held = [await gateway.connect() for _ in range(6)]
        assert loads(pool) == [2, 2, 2]

        held[4].close()
        held.append(await gateway.connect())
        assert loads(pool) == [2, 2, 2]
        for connected in held:
            connected.close()

    run(check())


@pytest.mark.parametrize("kind", ["dead", "missing", "full_unix", "refused_tcp"])
def test_a_slot_that_cannot_be_had_is_passed_over_for_a_live_one(run: Run, backends, kind):
    async def check() -> None:
        make = getattr(backends, kind)
        first = make() if kind == "refused_tcp" else make("a")
        pool = await pool_of(first, backends.unix("b"))

        connected = await gateway_to(pool).connect()

        assert loads(pool) == [0, 1]
        assert connected.socket.getpeername() == str(backends.missing("b").path)
        connected.close()

    run(check())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("dead", "Connection refused"),
        ("missing", "No such file or directory"),
        ("full_unix", "its backlog is full"),
    ],
)
def test_no_slot_at_all_is_503_and_says_why(run: Run, backends, kind, reason):
    async def check() -> None:
        address = getattr(backends, kind)("a")
        pool = await pool_of(address)
        before = open_descriptors()

        with pytest.raises(BackendError) as raised:
            await gateway_to(pool).connect()

        assert raised.value.status == 503
        assert str(raised.value) == f"no backend of echo can be connected: {address}: {reason}"
        assert loads(pool) == [0]
        assert open_descriptors() == before

    run(check())


def test_each_slot_is_tried_once_and_the_last_reason_is_named(run: Run, backends):
    async def check() -> None:
        pool = await pool_of(backends.missing("a"), backends.dead("b"))
        with pytest.raises(BackendError, match=r"unix:.*/b: Connection refused"):
            await gateway_to(pool).connect()
        assert loads(pool) == [0, 0]

    run(check())


def test_a_pool_without_slots_is_503(run: Run):
    async def check() -> None:
        with pytest.raises(BackendError, match="no slot"):
            await gateway_to(await pool_of()).connect()

    run(check())


def test_a_refused_tcp_connect_is_503_and_says_so(run: Run, backends):
    async def check() -> None:
        address = backends.refused_tcp()
        pool = await pool_of(address)
        await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 0)  # starts what the loop resolves with
        before = open_descriptors()

        with pytest.raises(BackendError, match=f"{address}: Connection refused"):
            await gateway_to(pool).connect()

        assert loads(pool) == [0]
        await eventually(lambda: open_descriptors() == before, "the socket closed")

    run(check())


def test_a_tcp_connect_that_nobody_answers_ends_with_the_connect_timeout(run: Run, backends):
    async def check() -> None:
        pool = await pool_of(backends.mute_tcp(), backends.mute_tcp())
        await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 0)
        before = open_descriptors()

        with pytest.raises(BackendError, match="no answer within connect-timeout"):
            await gateway_to(pool, connect_timeout_s=0.05).connect()

        assert loads(pool) == [0, 0]
        await eventually(lambda: open_descriptors() == before, "the sockets closed")

    run(check())


def test_a_mute_slot_costs_its_timeout_and_the_next_one_is_taken(run: Run, backends):
    async def check() -> None:
        pool = await pool_of(backends.mute_tcp(), backends.tcp())

        connected = await gateway_to(pool, connect_timeout_s=0.05).connect()

        assert loads(pool) == [0, 1]
        connected.close()

    run(check())


@pytest.mark.parametrize("host", ["fe80::1%no-such-link", "a" * 64 + ".invalid", "a..b"])
def test_a_host_name_that_cannot_be_resolved_is_no_backend(run: Run, host):
    async def check() -> None:
        pool = await pool_of(TcpAddress(host, 1))
        with pytest.raises(BackendError, match="no backend of echo can be connected"):
            await gateway_to(pool).connect()
        assert loads(pool) == [0]

    run(check())


def test_each_address_of_a_name_is_tried(backends, monkeypatch):
    """As with `localhost`, whose backend listens on one of ::1 and 127.0.0.1 only. (uvloop's resolver is libuv's.)"""

    async def check() -> None:
        refused, alive = backends.refused_tcp(), backends.tcp()
        both = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address.host, address.port)) for address in (refused, alive)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_named: both)
        pool = await pool_of(TcpAddress("backend.test", 80))

        connected = await gateway_to(pool).connect()

        assert connected.socket.getpeername() == (alive.host, alive.port)
        connected.close()

    Run("asyncio")(check())


@pytest.mark.parametrize("turn", range(6))
def test_a_connect_that_is_called_off_gives_the_lease_and_the_socket_back(run: Run, backends, turn):
    """At each of its awaits: while the name is resolved, and while the connect waits."""

    async def check() -> None:
        pool = await pool_of(backends.mute_tcp())
        await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 0)
        before = open_descriptors()
        connecting = asyncio.ensure_future(gateway_to(pool).connect())
        if turn == 5:
            await eventually(lambda: open_descriptors() != before, "the connect under way")
        await turns(turn)

        connecting.cancel()

        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert loads(pool) == [0]
        await eventually(lambda: open_descriptors() == before, "the socket closed")

    run(check())
