"""Connecting a backend: the right slot, a reason when there is none, and nothing left over when it is called off."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import Run, open_descriptors
from tests.wire.sockets import eventually, turns
from wstunnel.errors import BackendError
from wstunnel.gateways import connecting
from wstunnel.gateways.claim import Connected
from wstunnel.gateways.tunnel import TunnelGateway
from wstunnel.limits import Limits, MasterLimits
from wstunnel.net.eager import begin
from wstunnel.proto.request import Request
from wstunnel.settings import Address, Balance, Host, TcpAddress, UnixAddress
from wstunnel.supervise.balance import Balancer, HostSlots
from wstunnel.supervise.board import Board, SlotColumn, SlotState
from wstunnel.supervise.place import SlotPlace
from wstunnel.supervise.slot import Slot


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


REQUEST = Request(
    method="GET", target="/ws?x", path="/ws", query="x", host="Here.test", headers=(), peer="127.0.0.1:4711"
)


class Stand:
    """A gateway to slots at the given addresses, all of one host, or each a host of its own."""

    def __init__(self, *addresses: Address, kind: Balance = "least-connection", hosts: int = 1, **options: Any) -> None:
        limits = Limits(master=MasterLimits(worker_rows=2, slot_rows=8))
        self.board = Board(limits.master)
        self.now_s = 0.0
        slots = []
        for row, address in enumerate(addresses):
            self.board.slot(row)[SlotColumn.STATE] = SlotState.RUNNING
            slots.append(Slot(SlotPlace(f"echo-{row}", address, row), self.board, 1, limits))
        groups = [slots] if hosts == 1 else [[slot] for slot in slots]
        self.slots = slots
        self.balancer = Balancer(
            [HostSlots(Host(socket=f"/run/{number}", **options), group) for number, group in enumerate(groups)],
            kind,
            limits=limits,
            clock=lambda: self.now_s,
        )
        self.gateway = TunnelGateway(self.balancer, "/ws")

    async def connect(self, **changes: str) -> Connected:
        return await self.gateway.connect(replace(REQUEST, **changes))

    @property
    def loads(self) -> list[int]:
        return [slot.load for slot in self.slots]

    def is_disabled(self, row: int) -> bool:
        return self.slots[row].disabled_until_s > self.now_s


@pytest.fixture
def stand() -> Iterator[Callable[..., Stand]]:
    made: list[Stand] = []

    def make(*addresses: Address, **named: Any) -> Stand:
        made.append(Stand(*addresses, **named))
        return made[-1]

    yield make
    for each in made:
        each.board.close()


def peer_of(connected: Connected) -> Any:
    with socket.socket(fileno=os.dup(connected.fd)) as sock:
        return sock.getpeername()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_connection_is_ready_for_the_loop_and_counts_until_it_is_closed(run: Run, stand, backends, kind):
    async def check() -> None:
        to = stand(backends.unix("s") if kind == "unix" else backends.tcp())

        connected = await to.connect()

        assert to.loads == [1]
        assert not os.get_blocking(connected.fd)
        assert not os.get_inheritable(connected.fd)
        assert peer_of(connected)
        if kind == "tcp":
            with socket.socket(fileno=os.dup(connected.fd)) as sock:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connected.close()
        assert to.loads == [0]
        assert connected.fd not in open_descriptors()

    run(check())


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_connect_may_begin_outside_of_any_task(run: Run, stand, backends, kind):
    """As a handshake does (net/eager.py): where it waits, it is in one."""

    async def check() -> None:
        loop = asyncio.get_running_loop()
        to = stand(backends.unix("s") if kind == "unix" else backends.tcp())
        found: asyncio.Future[Connected] = loop.create_future()
        tasks: list[asyncio.Task[None]] = []

        async def connect() -> None:
            found.set_result(await to.connect())

        def start() -> None:
            if left := begin(connect()):
                tasks.append(loop.create_task(left))

        loop.call_soon(start)
        await eventually(lambda: found.done() or any(task.done() for task in tasks), "the connect")
        for task in tasks:
            await task
        found.result().close()
        assert len(tasks) == (kind == "tcp")

    run(check())


def test_the_slot_with_the_fewest_connections_is_chosen(run: Run, stand, backends):
    async def check() -> None:
        to = stand(backends.unix("a"), backends.unix("b"), backends.unix("c"))

        held = [await to.connect() for _ in range(6)]
        assert to.loads == [2, 2, 2]

        held.pop(4).close()
        held.append(await to.connect())
        assert to.loads == [2, 2, 2]
        for connected in held:
            connected.close()

    run(check())


@pytest.mark.parametrize("kind", ["dead", "missing", "full_unix", "refused_tcp"])
def test_a_slot_that_cannot_be_had_is_passed_over_for_a_live_one(run: Run, stand, backends, kind):
    async def check() -> None:
        make = getattr(backends, kind)
        first = make() if kind == "refused_tcp" else make("a")
        to = stand(first, backends.unix("b"))

        connected = await to.connect()

        assert to.loads == [0, 1]
        assert peer_of(connected) == str(backends.missing("b").path)
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
def test_no_slot_at_all_is_503_and_says_why(run: Run, stand, backends, kind, reason):
    async def check() -> None:
        address = getattr(backends, kind)("a")
        to = stand(address)
        before = open_descriptors()

        with pytest.raises(BackendError) as raised:
            await to.connect()

        assert raised.value.status == 503
        assert str(raised.value) == f"no backend of /ws can be connected: {address}: {reason}"
        assert to.loads == [0]
        assert open_descriptors() == before

    run(check())


def test_each_slot_is_tried_once_and_the_last_reason_is_named(run: Run, stand, backends):
    async def check() -> None:
        to = stand(backends.missing("a"), backends.dead("b"))
        with pytest.raises(BackendError, match=r"unix:.*/b: Connection refused"):
            await to.connect()
        assert to.loads == [0, 0]

    run(check())


def test_a_route_without_slots_is_503(run: Run, stand):
    async def check() -> None:
        with pytest.raises(BackendError, match="no slot"):
            await stand().connect()

    run(check())


def test_a_refused_tcp_connect_is_503_and_says_so(run: Run, stand, backends):
    async def check() -> None:
        address = backends.refused_tcp()
        to = stand(address)
        await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 0)  # starts what the loop resolves with
        before = open_descriptors()

        with pytest.raises(BackendError, match=f"{address}: Connection refused"):
            await to.connect()

        assert to.loads == [0]
        await eventually(lambda: open_descriptors() == before, "the socket closed")

    run(check())


def test_a_tcp_connect_that_nobody_answers_ends_with_the_connect_timeout(run: Run, stand, backends):
    async def check() -> None:
        to = stand(backends.mute_tcp(), backends.mute_tcp(), connect_timeout_s=0.05)
        await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 0)
        before = open_descriptors()

        with pytest.raises(BackendError, match="no answer within connect-timeout"):
            await to.connect()

        assert to.loads == [0, 0]
        await eventually(lambda: open_descriptors() == before, "the sockets closed")

    run(check())


def test_a_mute_slot_costs_its_timeout_and_the_next_one_is_taken(run: Run, stand, backends):
    async def check() -> None:
        to = stand(backends.mute_tcp(), backends.tcp(), connect_timeout_s=0.05)

        connected = await to.connect()

        assert to.loads == [0, 1]
        connected.close()

    run(check())


# --- which one is asked


async def names(to: Stand, *changes: dict[str, str]) -> set[str]:
    """The slots that requests with these changes are taken to."""
    found = set()
    for change in changes:
        connected = await to.connect(**change)
        assert connected.lease.name == f"echo-{connected.lease.host_index}"
        found.add(connected.lease.name)
        connected.close()
    return found


def test_what_a_request_is_hashed_by_is_its_host_in_any_spelling_and_its_path(run: Run, stand, backends):
    async def check() -> None:
        to = stand(*(backends.unix(name) for name in "abcdefgh"), kind="hash", hosts=8)

        alike = await names(to, {}, {"host": "HERE.TEST"}, {"peer": "10.0.0.7:1"}, {"query": "y", "target": "/ws?y"})

        assert len(alike) == 1
        assert len(await names(to, *({"path": f"/{number}"} for number in range(8)))) > 2
        assert len(await names(to, *({"host": f"{number}.test"} for number in range(8)))) > 2

    run(check())


@pytest.mark.parametrize("client", ["10.0.0.{}:{}", "[fe80::{}]:{}"])
def test_a_client_sticks_to_its_host_from_whatever_port_it_comes(run: Run, stand, backends, client):
    async def check() -> None:
        to = stand(*(backends.unix(name) for name in "abcdefgh"), kind="sticky", hosts=8)

        assert (
            len(await names(to, *({"peer": client.format(7, port), "path": f"/{port}"} for port in range(1, 9)))) == 1
        )
        assert len(await names(to, *({"peer": client.format(number, 1)} for number in range(8)))) > 2

    run(check())


def test_the_timeout_is_that_of_the_host_that_is_connected(run: Run, stand, backends, monkeypatch):
    async def check() -> None:
        to = stand(backends.mute_tcp(), backends.tcp(), hosts=2, connect_timeout_s=0.05)
        hosts = [HostSlots(Host(socket="/run/0", connect_timeout_s=0.01), to.slots[:1])]
        hosts += [HostSlots(Host(socket="/run/1", connect_timeout_s=40.0), to.slots[1:])]
        to.gateway = TunnelGateway(Balancer(hosts, "round-robin", limits=Limits(), clock=lambda: to.now_s), "/ws")
        waits: list[float | None] = []
        timeout = asyncio.timeout
        monkeypatch.setattr(asyncio, "timeout", lambda delay_s: waits.append(delay_s) or timeout(delay_s))

        connected = await to.connect()

        assert waits == [0.01, 40.0]
        assert connected.lease.host_index == 1
        connected.close()

    run(check())


# --- disable-time


@pytest.mark.parametrize("kind", ["dead", "missing", "refused_tcp", "mute_tcp"])
def test_a_slot_that_could_not_be_connected_is_not_tried_for_disable_time(run: Run, stand, backends, kind):
    async def check() -> None:
        make = getattr(backends, kind)
        to = stand(make() if "tcp" in kind else make("a"), connect_timeout_s=0.05, disable_time_s=3.0)
        with pytest.raises(BackendError):
            await to.connect()

        with pytest.raises(BackendError) as raised:
            await to.connect()
        assert raised.value.status == 503
        assert str(raised.value) == (
            "no backend of /ws can be connected: echo-0 could not be connected less than disable-time ago"
        )
        to.now_s = 3.0
        with pytest.raises(BackendError, match=r"refused|No such file|no answer"):
            await to.connect()

    run(check())


def test_a_full_backlog_is_asked_again_at_once(run: Run, stand, backends):
    """It has room as soon as the backend accepts."""

    async def check() -> None:
        to = stand(backends.full_unix("a"))
        for _ in range(2):
            with pytest.raises(BackendError, match="its backlog is full"):
                await to.connect()
        assert not to.is_disabled(0)

    run(check())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
def test_what_we_lack_is_not_held_against_the_backend(run: Run, stand, backends, monkeypatch, number):
    async def check() -> None:
        def fail(_path: str) -> int:
            raise OSError(number, "none left")

        to = stand(backends.unix("a"))
        with monkeypatch.context() as patch:
            patch.setattr(connecting, "connect_unix", fail)
            with pytest.raises(BackendError):
                await to.connect()

        (await to.connect()).close()

    run(check())


def test_a_backend_that_may_not_be_connected_for_its_load_is_503_and_says_so(run: Run, stand, backends):
    async def check() -> None:
        to = stand(backends.unix("a"), max_load_policy="refuse")
        held = await to.connect()

        with pytest.raises(BackendError, match="max-load-policy is to refuse more") as raised:
            await to.connect()

        assert raised.value.status == 503
        held.close()
        (await to.connect()).close()

    run(check())


# --- names, and being called off


@pytest.mark.parametrize("host", ["fe80::1%no-such-link", "a" * 64 + ".invalid", "a..b"])
def test_a_host_name_that_cannot_be_resolved_is_no_backend(run: Run, stand, host):
    async def check() -> None:
        to = stand(TcpAddress(host, 1))
        with pytest.raises(BackendError, match="no backend of /ws can be connected"):
            await to.connect()
        assert to.loads == [0]

    run(check())


def test_each_address_of_a_name_is_tried(stand, backends, monkeypatch):
    """As with `localhost`, whose backend listens on one of ::1 and 127.0.0.1 only. (uvloop's resolver is libuv's.)"""

    async def check() -> None:
        refused, alive = backends.refused_tcp(), backends.tcp()
        both = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address.host, address.port)) for address in (refused, alive)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_named: both)
        to = stand(TcpAddress("backend.test", 80))

        connected = await to.connect()

        assert peer_of(connected) == (alive.host, alive.port)
        connected.close()

    Run("asyncio")(check())


@pytest.mark.parametrize("turn", range(6))
def test_a_connect_that_is_called_off_gives_the_lease_and_the_socket_back(run: Run, stand, backends, turn):
    """At each of its awaits: while the name is resolved, and while the connect waits."""

    async def check() -> None:
        to = stand(backends.mute_tcp())
        await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 0)
        before = open_descriptors()
        connecting = asyncio.ensure_future(to.connect())
        if turn == 5:
            await eventually(lambda: open_descriptors() != before, "the connect under way")
        await turns(turn)

        connecting.cancel()

        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert to.loads == [0]
        await eventually(lambda: open_descriptors() == before, "the socket closed")

    run(check())
