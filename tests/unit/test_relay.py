"""The relay in corners that only an invented clock, a held socket or an odd order of events reaches.

The legs are real sockets on a real loop; time is what the test says it is (`Bench.wait`). What is seen over whole
tunnels (every ending, conservation, back-pressure) stands in tests/wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import random
import re
import select
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import IO, STEPS, Run, open_descriptors
from tests.wire.clients import BINARY, CONT, PING, PONG, TEXT, Client, close_frame, frame
from tests.wire.sockets import Wire, eventually, turns
from wstunnel._hub import Hub, HubTransport
from wstunnel._relay import BackendLeg, ClientLeg, Policy, Relay
from wstunnel.net.wheel import TimerWheel

READ_BYTES, TURN_BYTES, LOOK_S, TICK_S = 64 * 1024, 256 * 1024, 0.5, 0.1
SLACK_S = 0.3
"""A deadline is met within a tick of the wheel, and a tick of the hub's clock."""
LOOKS_S = 3 * LOOK_S
"""An ending is over that much later than its timeout: one look sees the last move, one that there is no other."""
OFF = {"ping_interval_s": 0.0, "ping_timeout_s": 20.0, "max_read_idle_s": 0.0, "max_write_idle_s": 0.0}
ABNORMAL, GOING_AWAY, INTERNAL, NORMAL = 1006, 1001, 1011, 1000


_STEPS = [step for step in STEPS if step[2] == "h1"]  # what is below is for tests/wire
TRANSPORTS = [step for step in _STEPS if step[1] == "protocol"]


@pytest.fixture(params=_STEPS, ids="-".join)
def run(request: pytest.FixtureRequest) -> Run:
    """As in tests/wire: over both steps."""
    return Run(*request.param)


class Session:
    """What the relay sees of a session. `answer` is what `backend_ended` says."""

    def __init__(self) -> None:
        self.answer = NORMAL
        self.asked = 0
        self.endings = 0

    def backend_ended(self) -> int:
        self.asked += 1
        return self.answer

    def ended(self) -> None:
        self.endings += 1


class Watched:
    """A transport that notes what its leg asks of it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.calls.append(name)
            return getattr(self._transport, name)(*args)

        return call


class _Head(asyncio.BufferedProtocol):
    """Stands for the connection that read the request head."""

    def get_buffer(self, sizehint: int) -> bytearray:
        raise AssertionError("nothing is read before the take-over")


def unix_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def tight_tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Neither end's kernel holds much."""
    with socket.socket() as listener, socket.socket() as near:
        for sock in (listener, near):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        return socket.socket(fileno=near.detach()), far


def narrow_pair() -> tuple[socket.socket, socket.socket]:
    """The relay's end hardly takes anything."""
    near, far = unix_pair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    return near, far


class Bench:
    """`async with Bench(...) as bench`: one open relay; `bench.client` and `bench.backend` are its peers.

    in      client, backend  how their pairs are made
            bulk_bytes       0: as read_bytes
            narrow           SO_SNDBUF of both of the relay's ends, so that queues form early
            is_pipe          as the Relay's; the backend's connection is one that has been asked before
            is_joined        False: stop before `join`, as while the backend's transport is being made
            counters         the Hub's
            beside           another one, whose Hub and wheel it has; to be left before that one
            the rest         is the Policy's
    On leaving: the session was told of the end exactly once, and every descriptor is back.
    """

    def __init__(
        self,
        *,
        client: Callable[[], tuple[socket.socket, socket.socket]] = unix_pair,
        backend: Callable[[], tuple[socket.socket, socket.socket]] = unix_pair,
        narrow: int | None = None,
        read_bytes: int = READ_BYTES,
        bulk_bytes: int = 0,
        turn_bytes: int = TURN_BYTES,
        is_binary: bool = False,
        is_joined: bool = True,
        is_pipe: bool = False,
        close_timeout_s: float = 5.0,
        counters: memoryview | None = None,
        beside: Bench | None = None,
        **policy: float,
    ) -> None:
        self._pairs = client, backend
        self._narrow = narrow
        self._sizes = {"read_bytes": read_bytes, "bulk_bytes": bulk_bytes or read_bytes, "turn_bytes": turn_bytes}
        self._is_joined = is_joined
        self._is_pipe = is_pipe
        self._counters, self._beside = counters, beside
        self._policy = Policy(is_binary=is_binary, close_timeout_s=close_timeout_s, **(OFF | policy))

    async def __aenter__(self) -> Bench:
        self._fds = _descriptors()
        self.loop = asyncio.get_running_loop()
        if self._beside is None:
            self.wheel = TimerWheel(TICK_S, 1000.0)
            self.hub = Hub(self.loop, self.wheel, **self._sizes, look_s=LOOK_S, counters=self._counters)
        else:
            self.wheel, self.hub = self._beside.wheel, self._beside.hub
        (near_client, far_client), (near_backend, far_backend) = self._pairs[0](), self._pairs[1]()
        for sock in (near_client, far_client, near_backend, far_backend):
            sock.setblocking(False)
            if self._narrow is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._narrow)
        self.client, self.backend = Client(far_client), Wire(far_backend)
        self.session = Session()
        self.client_socket, self.backend_socket = near_client, near_backend
        self.client_leg = ClientLeg(self.hub, near_client.fileno())
        self.backend_leg = BackendLeg(self.hub, near_backend.fileno())
        self.relay = Relay(
            self.hub, self._policy, self.client_leg, self.backend_leg, self.session, is_pipe=self._is_pipe
        )
        self.is_over_transports = IO.get() == "protocol"
        if self.is_over_transports:
            self.transport, _ = await self.loop.connect_accepted_socket(_Head, near_client)
            self.transport.pause_reading()  # not in connection_made: uvloop starts to read after it
            self.watched = Watched(self.transport)
            self.relay.open(self.watched)
        else:
            self.client_socket, self.backend_socket = _lent(near_client), _lent(near_backend)
            transport = HubTransport(self.hub, near_client.detach(), _Head())
            transport.pause_reading()
            self.relay.open(transport)
            near_backend.detach()
        if self._is_joined:
            await self.attach()
            self.relay.join(bytearray(), False)
        return self

    async def attach(self) -> None:
        """Have the backend's leg read."""
        if self._is_pipe:
            if self.is_over_transports:
                near, self.backend_socket = self.backend_socket, _lent(self.backend_socket)
                near.detach()
            transport = HubTransport(self.hub, self.backend_socket.fileno(), _Head())
            transport.pause_reading()
            self.relay.adopt(transport)
            return
        if not self.is_over_transports:
            self.backend_leg.own()
            return
        self.backend_transport, _ = await self.loop.connect_accepted_socket(
            lambda: self.backend_leg, self.backend_socket
        )

    async def __aexit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.client.close()
        self.backend.close()
        with contextlib.suppress(AssertionError):
            await eventually(lambda: self.has_ended, "the end", within_s=0.2)
        self.relay.abort(GOING_AWAY)
        if kind is None:
            assert self.session.endings == 1
            assert self.waiting() == set()
        if self._beside is None:
            self.hub.close()
        if not self.is_over_transports:
            self.client_socket.detach()
        if self._is_pipe or not self.is_over_transports:
            self.backend_socket.detach()
        if kind is None:
            await eventually(lambda: _descriptors() == self._fds, "every descriptor closed")

    @property
    def has_ended(self) -> bool:
        return self.session.endings > 0

    def waiting(self) -> set[int]:
        """The descriptors that the hub watches for room to write."""
        found: set[int] = set()
        for fd, name in _descriptors().items():
            if name == "anon_inode:[eventpoll]" and fd not in self._fds:
                with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
                    watched = re.findall(r"tfd:\s*(\d+) events:\s*([0-9a-f]+)", info.read())
                found |= {int(tfd) for tfd, events in watched if int(events, 16) & select.EPOLLOUT}
        return found

    async def wait(self, seconds: float) -> None:
        """Let that much invented time pass, tick by tick; what is on its way arrives before and in between."""
        await turns(8)
        until_s = self.wheel.now_s + seconds
        while self.wheel.now_s < until_s:
            self.wheel.advance(min(self.wheel.now_s + TICK_S, until_s))
            await turns(2)
        await turns(8)

    async def ended(self) -> None:
        await eventually(lambda: self.has_ended, "the end of the tunnel")

    # --- what the peers do

    async def says(self, *frames: bytes) -> None:
        """The client says so, and the relay has read it."""
        await self.client.send(b"".join(frames))
        await turns(8)

    def hears_nothing(self) -> bool:
        """Is there nothing, not even an EOF, for the client to read?"""
        return _is_silent(self.client)

    def backend_hears_nothing(self) -> bool:
        return _is_silent(self.backend)

    async def stuff_client(self) -> bytes:
        """The backend talks until the relay takes no more, for a client that does not read; all that it said."""
        said = b"x" * (1 << 20)
        return said[: await _stuff(self.backend, said)]

    async def stuff_backend(self) -> tuple[bytes, bytes]:
        """The client talks until the relay takes no more; the payload of its message, and what is left to send."""
        payload = random.Random(1).randbytes(1 << 20)
        message = frame(BINARY, payload)
        return payload, message[await _stuff(self.client, message) :]


def _lent(sock: socket.socket) -> socket.socket:
    """The same descriptor, which is somebody else's to close."""
    return socket.socket(sock.family, sock.type, fileno=sock.fileno())


def _descriptors() -> dict[int, str]:
    """What is open, without the /dev/null that libuv keeps for a loop from its first stream on."""
    return {fd: name for fd, name in open_descriptors().items() if name != "/dev/null"}


def _is_silent(wire: Wire) -> bool:
    try:
        wire.sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    return False


async def _stuff(wire: Wire, said: bytes) -> int:
    """Send until the kernel takes nothing more, however often the loop turns; how much it took."""
    total, in_vain = 0, 0
    while in_vain < 8:
        sent = wire.send_now(said[total : total + 4096])
        assert total < len(said), "the other side takes everything"
        total += sent
        in_vain = 0 if sent else in_vain + 1
        await turns(1)
    return total


# --- an open tunnel: silence


def test_a_ping_is_sent_after_the_interval_of_silence_and_not_before(run: Run):
    async def check() -> None:
        async with Bench(ping_interval_s=20.0) as bench:
            await bench.wait(20.0 - SLACK_S)
            assert bench.hears_nothing()

            await bench.wait(2 * SLACK_S)

            ping = await bench.client.frame()
            assert (ping.opcode, ping.data) == (PING, b"")

    run(check())


@pytest.mark.parametrize("speaker", ["client", "backend"])
def test_a_byte_either_way_postpones_the_ping(run: Run, speaker):
    async def check() -> None:
        async with Bench(ping_interval_s=20.0) as bench:
            await bench.wait(15.0)
            if speaker == "client":
                await bench.client.send(frame(BINARY, b"a"))
            else:
                await bench.backend.send(b"a")
                assert (await bench.client.frame()).opcode is TEXT
            await bench.wait(20.0 - SLACK_S)
            assert bench.hears_nothing()

            await bench.wait(2 * SLACK_S)

            assert (await bench.client.frame()).opcode is PING

    run(check())


def test_a_client_with_bytes_to_take_is_not_asked_for_a_pong(run: Run):
    """It may be slow, and the PING would stand behind what it has not read; max-write-idle is for that."""

    async def check() -> None:
        async with Bench(ping_interval_s=20.0, ping_timeout_s=20.0) as bench:
            await bench.backend.send(b"a")
            await bench.wait(100.0)

            assert bench.relay.is_open
            assert (await bench.client.frame()).opcode is TEXT
            await bench.wait(20.0 + SLACK_S)
            assert (await bench.client.frame()).opcode is PING

    run(check())


def test_pongs_that_come_early_bring_the_next_ping_after_the_interval(run: Run):
    async def check() -> None:
        async with Bench(ping_interval_s=1.0, ping_timeout_s=20.0) as bench:
            for _ in range(3):
                await bench.wait(1.0 + 2 * SLACK_S)
                assert (await bench.client.frame()).opcode is PING
                await bench.says(frame(PONG, b""))

    run(check())


def test_no_ping_is_ever_sent_where_the_interval_is_0(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            await bench.wait(1000.0)

            assert bench.hears_nothing()
            assert bench.relay.is_open

    run(check())


@pytest.mark.parametrize("answer", [frame(PONG), frame(PONG, b"unasked"), frame(BINARY, b"a")[:1]], ids=str)
def test_any_byte_of_the_client_answers_a_ping_and_the_next_comes_an_interval_later(run: Run, answer):
    async def check() -> None:
        async with Bench(ping_interval_s=20.0, ping_timeout_s=10.0) as bench:
            await bench.wait(20.0 + SLACK_S)
            assert (await bench.client.frame()).opcode is PING
            await bench.wait(10.0 - 2 * SLACK_S)
            await bench.says(answer)
            await bench.wait(20.0 - SLACK_S)
            assert bench.hears_nothing()
            assert bench.relay.is_open

            await bench.wait(2 * SLACK_S)

            assert (await bench.client.frame()).opcode is PING
            assert bench.relay.pongs == (answer[0] == 0x8A)

    run(check())


def test_no_pong_is_1011_and_the_connection_goes_after_the_close_timeout(run: Run):
    async def check() -> None:
        async with Bench(ping_interval_s=20.0, ping_timeout_s=10.0, close_timeout_s=5.0) as bench:
            await bench.wait(20.0 + SLACK_S)
            assert (await bench.client.frame()).opcode is PING
            await bench.wait(10.0 - 2 * SLACK_S)
            assert bench.hears_nothing()

            await bench.wait(3 * SLACK_S)

            heard = await bench.client.to_end(answer=True)
            assert heard.code == INTERNAL
            assert await bench.backend.recv() == b""
            assert not bench.has_ended
            await bench.wait(5.0 + LOOKS_S)
            assert bench.has_ended
            assert (bench.relay.close_code, bench.relay.closed_by) == (INTERNAL, "server")

    run(check())


def test_what_the_backend_says_does_not_answer_a_ping(run: Run):
    async def check() -> None:
        async with Bench(ping_interval_s=20.0, ping_timeout_s=10.0) as bench:
            await bench.wait(20.0 + SLACK_S)
            await bench.backend.send(b"news")
            await bench.wait(10.0)

            heard = await bench.client.to_end(answer=True)

            assert (heard.pings, heard.data, heard.code) == ([b""], b"news", INTERNAL)

    run(check())


def test_a_client_that_waits_for_a_stalled_backend_is_neither_pinged_nor_given_up(run: Run):
    """We do not read it, so its PONG could not be seen."""

    async def check() -> None:
        async with Bench(ping_interval_s=20.0, ping_timeout_s=10.0, max_read_idle_s=60.0, narrow=8192) as bench:
            payload, rest = await bench.stuff_backend()
            await bench.wait(1000.0)
            assert bench.relay.is_open
            assert bench.hears_nothing()

            sending = asyncio.ensure_future(bench.client.send(rest))
            got = await bench.backend.recv_exactly(len(payload))
            await sending

            assert got == payload
            await bench.wait(20.0 + SLACK_S)
            assert (await bench.client.frame()).opcode is PING

    run(check())


# --- an open tunnel: max-read-idle


def test_max_read_idle_ends_a_tunnel_with_1001_whatever_the_backend_says(run: Run):
    async def check() -> None:
        async with Bench(max_read_idle_s=60.0) as bench:
            await bench.wait(60.0 - SLACK_S)
            await bench.backend.send(b"news")
            await turns(8)
            assert bench.relay.is_open

            await bench.wait(2 * SLACK_S)
            assert await bench.backend.recv() == b""
            await bench.backend.send(b", the last")
            bench.backend.close()

            heard = await bench.client.to_end(answer=True)
            assert (heard.data, heard.code) == (b"news, the last", GOING_AWAY)
            bench.client.close()
            await bench.ended()
            assert (bench.relay.close_code, bench.relay.closed_by) == (GOING_AWAY, "server")

    run(check())


def test_a_pong_is_a_byte_that_max_read_idle_counts_from(run: Run):
    async def check() -> None:
        async with Bench(max_read_idle_s=60.0) as bench:
            await bench.wait(50.0)
            await bench.says(frame(PONG))
            await bench.wait(60.0 - SLACK_S)
            assert bench.relay.is_open

            await bench.wait(2 * SLACK_S)

            assert not bench.relay.is_open

    run(check())


def test_max_read_idle_counts_from_the_moment_that_the_client_is_read_again(run: Run):
    """While the backend is stuck we do not read the client, so that its silence says nothing."""

    async def check() -> None:
        async with Bench(max_read_idle_s=60.0, narrow=8192) as bench:
            payload, rest = await bench.stuff_backend()
            await bench.wait(59.0)
            sending = asyncio.ensure_future(bench.client.send(rest[:-1]))
            await bench.backend.recv_exactly(len(payload) - 1)
            await sending
            await bench.wait(60.0 - SLACK_S)
            assert bench.relay.is_open

            await bench.wait(2 * SLACK_S)

            assert not bench.relay.is_open
            bench.backend.close()

    run(check())


def test_a_client_that_was_held_in_silence_is_not_idle_the_moment_it_is_read_again(run: Run):
    async def check() -> None:
        async with Bench(max_read_idle_s=60.0, narrow=8192) as bench:
            said = 0
            while not bench.waiting():
                await bench.says(frame(BINARY, bytes(1000)))
                said += 1000
            await bench.wait(59.0)
            await bench.backend.recv_exactly(said)
            await bench.wait(60.0 - SLACK_S)
            assert bench.relay.is_open

            await bench.wait(2 * SLACK_S)

            assert not bench.relay.is_open

    run(check())


def test_max_read_idle_is_not_forgotten_over_a_backend_that_was_stuck_for_long(run: Run):
    async def check() -> None:
        async with Bench(max_read_idle_s=60.0, narrow=8192) as bench:
            payload, rest = await bench.stuff_backend()
            await bench.wait(100.0)
            sending = asyncio.ensure_future(bench.client.send(rest))
            await bench.backend.recv_exactly(len(payload))
            await sending
            await bench.wait(60.0 - SLACK_S)
            assert bench.relay.is_open

            await bench.wait(2 * SLACK_S)

            assert not bench.relay.is_open

    run(check())


@pytest.mark.parametrize("policy", [{"max_read_idle_s": 100.0}, {"ping_interval_s": 20.0, "ping_timeout_s": 80.0}])
def test_what_a_client_said_while_the_loop_stood_still_is_no_silence(run: Run, policy):
    async def check() -> None:
        async with Bench(**policy) as bench:
            await bench.wait(50.0)
            bench.client.send_now(frame(PONG))
            bench.wheel.advance(bench.wheel.now_s + 1000.0)

            await bench.wait(10.0)

            assert bench.relay.is_open

    run(check())


# --- an open tunnel: max-write-idle


def test_a_client_that_takes_nothing_is_cut_and_the_tunnel_goes_with_the_backend(run: Run):
    """Nothing can be said to it, so the log says 1006; the backend is not made to wait for it any longer."""

    async def check() -> None:
        async with Bench(max_write_idle_s=100.0, close_timeout_s=5.0, narrow=8192) as bench:
            await bench.stuff_client()
            await bench.wait(100.0 - SLACK_S)
            assert bench.relay.is_open

            await bench.wait(25.0 + SLACK_S)

            assert not bench.relay.is_open
            assert await bench.backend.recv() == b""
            bench.backend.close()
            await bench.wait(5.0 + LOOKS_S)
            assert bench.has_ended
            assert (bench.relay.close_code, bench.relay.closed_by) == (ABNORMAL, "server")

    run(check())


def test_a_backend_that_goes_on_talking_to_a_client_that_was_cut_is_left_after_the_close_timeout(run: Run):
    async def check() -> None:
        async with Bench(max_write_idle_s=100.0, close_timeout_s=5.0, narrow=8192) as bench:
            await bench.stuff_client()

            await bench.wait(125.0 + SLACK_S)
            await bench.wait(5.0 + LOOKS_S)

            assert bench.has_ended

    run(check())


def test_a_backend_that_takes_nothing_is_1011_for_the_client(run: Run):
    async def check() -> None:
        async with Bench(max_write_idle_s=100.0, close_timeout_s=5.0, narrow=8192) as bench:
            await bench.stuff_backend()
            await bench.wait(100.0 - SLACK_S)
            assert bench.relay.is_open
            assert bench.hears_nothing()

            await bench.wait(25.0 + SLACK_S)

            assert (await bench.client.frame()).data == INTERNAL.to_bytes(2, "big")
            await bench.wait(5.0 + LOOKS_S)
            assert bench.has_ended
            assert (bench.relay.close_code, bench.relay.closed_by) == (INTERNAL, "server")

    run(check())


@pytest.mark.parametrize("slow", ["client", "backend"])
def test_a_side_that_takes_a_little_now_and_then_is_not_stuck(run: Run, slow):
    async def check() -> None:
        async with Bench(max_write_idle_s=100.0, narrow=8192) as bench:
            talker, said, taker = (
                (bench.backend, bytes(1 << 20), bench.client)
                if slow == "client"
                else (bench.client, frame(BINARY, bytes(1 << 20)), bench.backend)
            )
            talking = asyncio.ensure_future(talker.send(said))
            for _ in range(5):
                await bench.wait(90.0)
                assert bench.relay.is_open
                await taker.recv(16 * 1024)
            talking.cancel()

    run(check())


def test_a_stall_is_counted_from_its_own_beginning_not_from_the_last_one(run: Run):
    async def check() -> None:
        async with Bench(max_write_idle_s=100.0, narrow=8192) as bench:
            said = await bench.stuff_client()
            await bench.wait(90.0)
            got = 0
            while got < len(said):
                got += len((await bench.client.frame()).data)
            await bench.wait(500.0)
            assert bench.relay.is_open

            await bench.stuff_client()
            await bench.wait(100.0 - SLACK_S)
            assert bench.relay.is_open
            await bench.wait(25.0 + SLACK_S)

            assert not bench.relay.is_open

    run(check())


def test_a_tunnel_with_nothing_to_send_is_never_stuck(run: Run):
    async def check() -> None:
        async with Bench(max_write_idle_s=100.0) as bench:
            await bench.wait(1000.0)
            assert bench.relay.is_open

    run(check())


def test_a_client_that_takes_nothing_is_to_blame_for_a_backend_that_waits_for_it(run: Run):
    """A program that reads and writes in turn does not read while its answer waits."""

    async def check() -> None:
        async with Bench(max_write_idle_s=100.0, close_timeout_s=5.0, narrow=8192) as bench:
            await bench.stuff_client()
            await bench.stuff_backend()

            await bench.wait(125.0 + SLACK_S)

            assert not bench.relay.is_open
            assert (bench.relay.close_code, bench.relay.closed_by) == (ABNORMAL, "server")

    run(check())


# --- an open tunnel: read-timeout


def test_a_backend_that_is_silent_for_the_read_timeout_is_1011_behind_what_it_said(run: Run):
    async def check() -> None:
        async with Bench(read_timeout_s=60.0) as bench:
            await bench.backend.send(b"last words")
            assert (await bench.client.frame()).data == b"last words"
            await bench.wait(60.0 - SLACK_S)
            await bench.says(frame(BINARY, b"are you there?"))
            assert bench.hears_nothing()

            await bench.wait(2 * SLACK_S)

            assert (await bench.client.frame()).data == INTERNAL.to_bytes(2, "big")
            await bench.says(frame(BINARY, b" No."), close_frame(INTERNAL))
            assert await bench.backend.recv_to_end() == b"are you there? No."
            bench.backend.close()
            assert await bench.client.frame() is None
            bench.client.close()
            await bench.ended()
            assert (bench.relay.close_code, bench.relay.closed_by) == (INTERNAL, "server")

    run(check())


def test_a_byte_of_the_backend_postpones_the_read_timeout(run: Run):
    async def check() -> None:
        async with Bench(read_timeout_s=60.0, is_binary=True) as bench:
            for _ in range(3):
                await bench.wait(60.0 - SLACK_S)
                await bench.backend.send(b"a")
                assert await bench.client.payload(1) == b"a"

            assert bench.relay.is_open

    run(check())


def test_a_backend_that_is_held_back_by_a_slow_client_is_not_silent(run: Run):
    async def check() -> None:
        async with Bench(read_timeout_s=60.0, narrow=8192, is_binary=True) as bench:
            said = await bench.stuff_client()
            await bench.wait(500.0)
            assert bench.relay.is_open

            assert await bench.client.payload(len(said)) == said
            await bench.wait(60.0 - SLACK_S)
            assert bench.relay.is_open
            await bench.wait(2 * SLACK_S)

            assert not bench.relay.is_open

    run(check())


def test_a_backend_whose_answer_waits_for_a_slow_client_is_not_silent(run: Run):
    """Nor is it the moment that the client has taken the answer."""

    async def check() -> None:
        async with Bench(client=narrow_pair, read_timeout_s=60.0, is_binary=True) as bench:
            await bench.backend.send(bytes(READ_BYTES))
            await eventually(lambda: bench.relay.bytes_out == READ_BYTES, "one read")
            await bench.wait(500.0)
            assert bench.relay.is_open

            assert await bench.client.payload(READ_BYTES) == bytes(READ_BYTES)
            await bench.wait(60.0 - SLACK_S)
            assert bench.relay.is_open
            await bench.wait(2 * SLACK_S)

            assert not bench.relay.is_open

    run(check())


def test_what_a_backend_said_while_the_loop_stood_still_is_no_silence(run: Run):
    """A machine that slept wakes with every timer due, before anything is read."""

    async def check() -> None:
        async with Bench(read_timeout_s=60.0, is_binary=True) as bench:
            await bench.wait(1.0)
            bench.backend.send_now(b"a")
            bench.wheel.advance(bench.wheel.now_s + 1000.0)

            assert await bench.client.payload(1) == b"a"
            await bench.wait(60.0 - SLACK_S)

            assert bench.relay.is_open

    run(check())


# --- an open tunnel: write-timeout


@pytest.mark.parametrize(("idle_s", "timeout_s"), [(0.0, 40.0), (400.0, 40.0), (40.0, 400.0)])
def test_a_backend_that_takes_nothing_is_1011_after_the_smaller_of_its_timeouts(run: Run, idle_s, timeout_s):
    async def check() -> None:
        async with Bench(max_write_idle_s=idle_s, write_timeout_s=timeout_s, narrow=8192) as bench:
            await bench.stuff_backend()
            await bench.wait(40.0 - SLACK_S)
            assert bench.hears_nothing()

            await bench.wait(10.0 + SLACK_S)

            assert (await bench.client.frame()).data == INTERNAL.to_bytes(2, "big")
            assert (bench.relay.close_code, bench.relay.closed_by) == (INTERNAL, "server")

    run(check())


def test_a_client_may_take_longer_than_the_write_timeout(run: Run):
    async def check() -> None:
        async with Bench(write_timeout_s=40.0, narrow=8192) as bench:
            await bench.stuff_client()
            await bench.wait(500.0)

            assert bench.relay.is_open

    run(check())


def test_a_backend_that_waits_for_a_slow_client_may_take_longer_than_the_write_timeout(run: Run):
    async def check() -> None:
        async with Bench(write_timeout_s=40.0, narrow=8192, is_binary=True) as bench:
            said = await bench.stuff_client()
            await bench.stuff_backend()
            await bench.wait(500.0)
            assert bench.relay.is_open

            assert await bench.client.payload(len(said)) == said
            await bench.wait(40.0 - SLACK_S)
            assert bench.relay.is_open
            await bench.wait(10.0 + SLACK_S)

            assert not bench.relay.is_open

    run(check())


# --- a side that is gone


@pytest.mark.parametrize("run", TRANSPORTS, ids="-".join, indirect=True)
def test_a_client_that_is_lost_behind_its_full_queue_does_not_hold_the_backend(run: Run):
    """The transport may tell of it before the hub does."""

    async def check() -> None:
        async with Bench(narrow=8192) as bench:
            await bench.stuff_client()
            bench.transport.abort()

            await bench.backend.gone()
            bench.backend.close()

            await bench.ended()
            assert bench.relay.close_code == ABNORMAL

    run(check())


@pytest.mark.parametrize("run", TRANSPORTS, ids="-".join, indirect=True)
def test_a_backend_that_is_lost_behind_its_full_queue_does_not_hold_the_client(run: Run):
    async def check() -> None:
        async with Bench(narrow=8192) as bench:
            _, rest = await bench.stuff_backend()
            bench.backend_transport.abort()
            await bench.client.send(rest)

            heard = await bench.client.to_end(answer=True)

            assert heard.code == NORMAL
            bench.client.close()
            await bench.ended()

    run(check())


# --- endings: close-timeout counts from the last thing that the other side took


def test_a_backend_that_says_nothing_after_the_clients_close_is_left_after_the_close_timeout(run: Run):
    async def check() -> None:
        async with Bench(close_timeout_s=5.0) as bench:
            await bench.says(close_frame(4001))
            assert await bench.backend.recv() == b""
            await bench.wait(5.0 - SLACK_S)
            assert bench.hears_nothing()

            await bench.wait(LOOKS_S)

            assert (await bench.client.to_end(answer=True)).code == 4001
            bench.client.close()
            await bench.wait(5.0 + LOOKS_S)
            assert bench.has_ended
            assert (bench.relay.close_code, bench.relay.closed_by) == (4001, "client")

    run(check())


def test_a_backend_that_talks_without_end_after_the_clients_close_is_cut_after_the_close_timeout(run: Run):
    async def check() -> None:
        async with Bench(close_timeout_s=5.0) as bench:
            await bench.says(close_frame(NORMAL))
            listening = asyncio.ensure_future(bench.client.to_end(answer=True))
            for _ in range(50):
                bench.backend.send_now(b"and another thing. ")
                await bench.wait(0.1)
            bench.backend.send_now(b"too late")

            await bench.wait(LOOKS_S)

            heard = await listening
            assert heard.code == NORMAL
            assert len(heard.data) >= 45 * 19
            assert len(heard.data) % 19 == 0 or heard.data.endswith(b"too late")

    run(check())


def test_what_the_backend_says_after_our_close_is_dropped_and_read_to_its_end(run: Run):
    """It must not be left unread: to close a socket with unread input is a reset."""

    async def check() -> None:
        async with Bench(backend=tcp_pair) as bench:
            await bench.says(frame(BINARY, b"good"), b"\xff\xff\xff")
            heard = await bench.client.to_end(answer=True)
            assert (heard.code, bytes(heard.data)) == (1002, b"")
            assert await bench.backend.recv() == b"good"

            await bench.backend.send(b"z" * 100_000)

            assert await bench.backend.recv() == b"", "an end, not a reset"
            bench.backend.close()
            bench.client.close()
            await bench.ended()
            assert bench.relay.bytes_out == 0

    run(check())


def test_a_backend_that_takes_its_bytes_slowly_is_not_cut_off_however_long_it_takes(run: Run):
    async def check() -> None:
        async with Bench(close_timeout_s=5.0, narrow=8192) as bench:
            payload = random.Random(2).randbytes(100_000)
            talking = asyncio.ensure_future(bench.client.send(frame(BINARY, payload) + close_frame(NORMAL)))
            got = bytearray()
            while len(got) < len(payload):
                await bench.wait(4.0)
                got += await bench.backend.recv_exactly(min(8192, len(payload) - len(got)))
            await talking

            assert got == payload
            assert await bench.backend.recv() == b""
            await bench.backend.send(b"thanks")
            bench.backend.close()
            heard = await bench.client.to_end(answer=True)
            assert (heard.data, heard.code) == (b"thanks", NORMAL)

    run(check())


def test_a_client_that_takes_its_bytes_slowly_is_not_cut_off_however_long_it_takes(run: Run):
    """The backend has ended long ago; all of it and our CLOSE are in the kernel's hands."""

    async def check() -> None:
        async with Bench(close_timeout_s=5.0, is_binary=True) as bench:
            bench.client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            said = random.Random(3).randbytes(200_000)
            await _say_and_close(bench.backend, said)
            await eventually(lambda: bench.relay.close_code == NORMAL, "our CLOSE")
            bench.client.read_bytes = 40_000  # a UNIX socket counts whole buffers of some 32 KiB as taken
            got = bytearray()
            while len(got) < len(said):
                await bench.wait(4.0)
                assert not bench.has_ended
                got += (await bench.client.frame()).data

            assert got == said
            assert (await bench.client.to_end(answer=True)).code == NORMAL

    run(check())


async def _say_and_close(wire: Wire, said: bytes) -> None:
    await wire.send(said)
    wire.close()


@pytest.mark.parametrize("stuck", ["client", "backend"])
def test_a_side_that_takes_nothing_of_what_it_is_owed_is_left_after_the_close_timeout(run: Run, stuck):
    async def check() -> None:
        async with Bench(close_timeout_s=5.0, max_write_idle_s=100.0, narrow=8192) as bench:
            if stuck == "client":
                await bench.stuff_client()
                await bench.says(close_frame(NORMAL))
                bench.backend.close()
                await bench.wait(100.0 + 5.0 + 5.0 + LOOKS_S)
            else:
                await bench.stuff_backend()
                bench.client.close()
                await bench.wait(100.0 + 5.0 + 5.0 + LOOKS_S)

            assert bench.has_ended

    run(check())


def test_waiting_for_a_slow_client_does_not_use_up_the_backends_close_timeout(run: Run):
    """The backend would go on if it could; max-write-idle bounds that."""

    async def check() -> None:
        async with Bench(close_timeout_s=5.0, max_write_idle_s=100.0, narrow=8192) as bench:
            said = await bench.stuff_client()
            await bench.says(close_frame(NORMAL))
            await bench.wait(90.0)
            assert not bench.has_ended
            talking = asyncio.ensure_future(_say_and_close(bench.backend, b"the end"))

            heard = await bench.client.to_end(answer=True)
            await talking

            assert (heard.data, heard.code) == (said + b"the end", NORMAL)
            bench.client.close()
            await bench.ended()

    run(check())


def test_a_client_that_talks_on_behind_our_close_and_never_answers_is_cut_after_the_close_timeout(run: Run):
    async def check() -> None:
        async with Bench(close_timeout_s=5.0) as bench:
            bench.backend.half_close()
            await turns(8)
            for _ in range(50):
                bench.client.send_now(frame(BINARY, b"more"))
                await bench.backend.recv()
                await bench.wait(0.1)

            await bench.wait(LOOKS_S)

            assert bench.has_ended
            assert (bench.relay.close_code, bench.relay.closed_by) == (NORMAL, "backend")

    run(check())


# --- a client's EOF where fin-propagate is off


def test_a_client_that_only_listens_hears_the_backend_out(run: Run):
    async def check() -> None:
        async with Bench(fin_propagate=False, close_timeout_s=5.0, is_binary=True) as bench:
            await bench.says(frame(BINARY, b"question"))
            bench.client.half_close()
            assert await bench.backend.recv_exactly(8) == b"question"
            for _ in range(4):
                await bench.wait(5.0 - LOOK_S)
                assert bench.backend_hears_nothing()
                await bench.backend.send(b"answer")
                assert await bench.client.payload(6) == b"answer"
            bench.backend.half_close()

            assert await bench.client.frame() is None
            assert await bench.backend.recv() == b""
            await bench.ended()
            assert (bench.relay.close_code, bench.relay.closed_by) == (ABNORMAL, "client")

    run(check())


def test_a_backend_with_nothing_to_say_to_a_client_that_only_listens_is_left_after_the_close_timeout(run: Run):
    async def check() -> None:
        async with Bench(fin_propagate=False, close_timeout_s=5.0) as bench:
            bench.client.half_close()
            await bench.wait(5.0 - SLACK_S)
            assert bench.backend_hears_nothing()

            await bench.wait(LOOKS_S)

            assert await bench.backend.recv() == b""
            assert await bench.client.frame() is None
            assert bench.has_ended

    run(check())


def test_a_client_that_is_gone_ends_the_backends_input_whatever_fin_propagate_says(run: Run):
    async def check() -> None:
        async with Bench(fin_propagate=False, client=tcp_pair) as bench:
            bench.client.reset()

            assert await bench.backend.recv() == b""

    run(check())


def test_a_listening_client_that_goes_away_ends_the_backends_input(run: Run):
    async def check() -> None:
        async with Bench(fin_propagate=False) as bench:
            bench.client.half_close()
            await turns(8)
            bench.client.close()
            await bench.backend.send(b"anybody there?")
            await bench.wait(2 * LOOK_S)

            assert await bench.backend.recv() == b""

    run(check())


def test_a_clients_close_ends_the_backends_input_whatever_fin_propagate_says(run: Run):
    async def check() -> None:
        async with Bench(fin_propagate=False) as bench:
            await bench.says(close_frame(4001))
            bench.client.half_close()

            assert await bench.backend.recv() == b""
            bench.backend.close()
            assert (await bench.client.to_end()).code == 4001

    run(check())


def test_leave_ends_the_input_of_a_backend_whose_client_only_listens(run: Run):
    async def check() -> None:
        async with Bench(fin_propagate=False, is_binary=True) as bench:
            bench.client.half_close()
            await turns(8)
            bench.relay.leave(GOING_AWAY)

            assert await bench.backend.recv() == b""
            await bench.backend.send(b"bye")
            bench.backend.close()
            assert (await bench.client.to_end()).data == b"bye"

    run(check())


# --- leave: the server goes away


def test_leave_between_messages_is_1001_behind_what_the_backend_still_says(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            await bench.says(frame(BINARY, b"a"))
            bench.relay.leave(GOING_AWAY)
            assert await bench.backend.recv_exactly(1) == b"a"
            assert await bench.backend.recv() == b""
            await bench.backend.send(b"bye")
            bench.backend.close()

            heard = await bench.client.to_end(answer=True)

            assert (heard.data, heard.code) == (b"bye", GOING_AWAY)
            bench.client.close()
            await bench.ended()
            assert (bench.relay.close_code, bench.relay.closed_by) == (GOING_AWAY, "server")

    run(check())


MESSAGE = frame(TEXT, b"he", fin=False) + frame(CONT, b"llo")


@pytest.mark.parametrize("cut", range(1, len(MESSAGE)))
def test_leave_inside_a_message_waits_for_its_end_and_takes_no_other(run: Run, cut):
    async def check() -> None:
        async with Bench() as bench:
            await bench.says(MESSAGE[:cut])
            bench.relay.leave(GOING_AWAY)
            await turns(8)
            assert bench.relay.is_open

            await bench.says(MESSAGE[cut:])
            await bench.says(frame(TEXT, b"not this one"))

            assert await bench.backend.recv_exactly(5) == b"hello"
            assert await bench.backend.recv() == b""
            bench.backend.close()
            assert (await bench.client.to_end(answer=True)).code == GOING_AWAY

    run(check())


def test_a_ping_is_answered_while_a_leave_waits_for_the_backend(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            bench.relay.leave(GOING_AWAY)
            await bench.says(frame(PING, b"still there?"))
            bench.backend.close()

            heard = await bench.client.to_end(answer=True)

            assert (heard.pongs, heard.code) == ([b"still there?"], GOING_AWAY)

    run(check())


def test_leave_changes_nothing_in_a_tunnel_that_ends_already(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            await bench.says(close_frame(4001))
            bench.relay.leave(GOING_AWAY)
            bench.backend.close()

            assert (await bench.client.to_end(answer=True)).code == 4001
            bench.client.close()
            await bench.ended()
            bench.relay.leave(GOING_AWAY)
            assert bench.relay.close_code == 4001

    run(check())


def test_leave_before_the_legs_are_joined_still_delivers_what_came_behind_the_head(run: Run):
    async def check() -> None:
        async with Bench(is_joined=False) as bench:
            bench.relay.leave(GOING_AWAY)
            await bench.attach()
            bench.relay.join(bytearray(frame(BINARY, b"early")), False)

            assert await bench.backend.recv_exactly(5) == b"early"
            assert await bench.backend.recv() == b""
            bench.backend.close()
            assert (await bench.client.to_end(answer=True)).code == GOING_AWAY

    run(check())


def test_leave_before_the_legs_are_joined_ends_a_tunnel_without_early_frames(run: Run):
    async def check() -> None:
        async with Bench(is_joined=False) as bench:
            bench.relay.leave(GOING_AWAY)
            await bench.attach()
            bench.relay.join(bytearray(), False)

            assert await bench.backend.recv() == b""
            bench.backend.close()
            assert (await bench.client.to_end(answer=True)).code == GOING_AWAY

    run(check())


def test_a_protocol_error_while_a_leave_waits_for_the_backend_is_1002_at_once(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            bench.relay.leave(GOING_AWAY)
            await bench.says(b"\xff\xff\xff")

            assert (await bench.client.to_end(answer=True)).code == 1002
            assert (bench.relay.close_code, bench.relay.closed_by) == (1002, "server")

    run(check())


HALF_MESSAGES = {
    "header": frame(BINARY, b"whole") + frame(BINARY, bytes(200))[:3],
    "frame": frame(BINARY, b"who") + frame(BINARY, b"le" + bytes(200))[: -len(bytes(200))],
    "fragments": frame(BINARY, b"wh", fin=False) + frame(CONT, b"ole", fin=False),
}


@pytest.mark.parametrize("where", HALF_MESSAGES)
@pytest.mark.parametrize("code", [GOING_AWAY, 1012])
def test_a_message_whose_rest_does_not_come_holds_a_leave_up_for_the_close_timeout(run: Run, where, code):
    async def check() -> None:
        async with Bench(close_timeout_s=5.0, max_write_idle_s=360.0) as bench:
            await bench.says(HALF_MESSAGES[where])
            await bench.wait(100.0)
            bench.relay.leave(code)
            await bench.wait(5.0 - SLACK_S)
            assert bench.relay.is_open
            assert bench.hears_nothing()

            await bench.wait(2 * SLACK_S)

            assert await bench.backend.recv_to_end() == b"whole"
            bench.backend.close()
            assert (await bench.client.frame()).data == code.to_bytes(2, "big")
            bench.client.close()
            await bench.ended()
            assert (bench.relay.close_code, bench.relay.closed_by) == (code, "server")

    run(check())


def test_a_message_that_comes_slowly_is_waited_for_where_nothing_limits_a_leave(run: Run):
    async def check() -> None:
        async with Bench(close_timeout_s=5.0) as bench:
            message = frame(BINARY, b"slowly")
            await bench.says(message[:1])
            bench.relay.leave(GOING_AWAY)
            for at in range(1, len(message)):
                await bench.wait(5.0 - SLACK_S)
                await bench.says(message[at : at + 1])

            assert await bench.backend.recv_to_end() == b"slowly"

    run(check())


@pytest.mark.parametrize(("close_timeout_s", "cut_s"), [(5.0, 8.0 - 2 * 8.0 / 4), (1.0, 8.0 - 2 * 1.0)])
def test_a_message_that_never_ends_is_cut_in_time_for_the_close(run: Run, close_timeout_s, cut_s):
    async def check() -> None:
        async with Bench(close_timeout_s=close_timeout_s) as bench:
            await bench.says(frame(BINARY, b"once", fin=False))
            bench.relay.leave(GOING_AWAY, 8.0)
            said = [b"once"]
            while bench.relay.is_open:
                said.append(b" and again")
                await bench.says(frame(CONT, said[-1], fin=False))
                await bench.wait(TICK_S)
                assert len(said) < 1000

            assert await bench.backend.recv_to_end() == b"".join(said)
            assert bench.wheel.now_s == pytest.approx(1000.0 + cut_s, abs=2 * SLACK_S)
            bench.backend.close()
            assert (await bench.client.to_end(answer=True)).code == GOING_AWAY

    run(check())


def test_a_message_that_waits_for_a_slow_backend_is_not_silence(run: Run):
    async def check() -> None:
        async with Bench(close_timeout_s=5.0, narrow=8192) as bench:
            payload, rest = await bench.stuff_backend()
            bench.relay.leave(GOING_AWAY)
            await bench.wait(20.0)
            assert bench.relay.is_open

            talking = asyncio.ensure_future(bench.client.send(rest))
            assert await bench.backend.recv_exactly(len(payload)) == payload
            assert await bench.backend.recv() == b""
            await talking

    run(check())


def test_a_client_whose_words_wait_for_a_slow_backend_is_not_silent(run: Run):
    async def check() -> None:
        async with Bench(backend=narrow_pair, close_timeout_s=5.0) as bench:
            await bench.client.send(frame(BINARY, bytes(READ_BYTES // 2), fin=False))
            await eventually(lambda: bench.relay.bytes_in == READ_BYTES // 2, "one read")
            bench.relay.leave(GOING_AWAY)
            await bench.wait(20.0)
            assert bench.relay.is_open

            assert await bench.backend.recv_exactly(READ_BYTES // 2) == bytes(READ_BYTES // 2)
            await bench.wait(5.0 - SLACK_S)
            assert bench.relay.is_open
            await bench.wait(2 * SLACK_S)

            assert not bench.relay.is_open
            assert await bench.backend.recv() == b""

    run(check())


def test_a_message_that_came_while_the_loop_stood_still_is_not_silence(run: Run):
    async def check() -> None:
        async with Bench(close_timeout_s=5.0) as bench:
            message = frame(BINARY, b"late")
            await bench.says(message[:1])
            bench.relay.leave(GOING_AWAY)
            await bench.wait(1.0)
            bench.client.send_now(message[1:])
            bench.wheel.advance(bench.wheel.now_s + 100.0)

            assert await bench.backend.recv_to_end() == b"late"

    run(check())


def test_a_backend_may_answer_for_longer_than_the_close_timeout_within_the_time_to_leave(run: Run):
    async def check() -> None:
        async with Bench(close_timeout_s=1.0, is_binary=True) as bench:
            bench.relay.leave(GOING_AWAY, 8.0)
            listening = asyncio.ensure_future(bench.client.to_end(answer=True))
            said = b""
            while bench.wheel.now_s < 1000.0 + 6.0:
                said += b"and another thing. "
                await bench.backend.send(b"and another thing. ")
                await bench.wait(0.5)
            assert not listening.done()

            await bench.wait(1.0)

            heard = await listening
            assert (heard.data, heard.code) == (said, GOING_AWAY)
            await bench.ended()

    run(check())


@pytest.mark.parametrize("within_s", [0.0, 1.0, 8.0, 20.0])
@pytest.mark.parametrize("state", ["idle", "message", "both full", "client closed", "backend closed", "listening"])
def test_a_leave_is_over_in_its_time_whatever_the_sides_do_not_do(run: Run, state, within_s):
    async def check() -> None:
        async with Bench(close_timeout_s=100.0, narrow=8192, fin_propagate=False) as bench:
            if state == "message":
                await bench.says(frame(BINARY, b"abc")[:-1])
            elif state == "both full":
                await bench.stuff_client()
                await bench.stuff_backend()
            elif state == "client closed":
                await bench.says(close_frame(4001))
            elif state == "backend closed":
                bench.backend.half_close()
            elif state == "listening":
                bench.client.half_close()
            await turns(8)
            bench.relay.leave(GOING_AWAY, within_s)
            if within_s:
                await bench.wait(within_s / 2 - SLACK_S)
                assert not bench.has_ended

            await bench.wait(within_s / 2 + 3 * SLACK_S)

            assert bench.has_ended
            code = {"client closed": 4001, "backend closed": NORMAL, "listening": ABNORMAL}.get(state, GOING_AWAY)
            assert bench.relay.close_code == code
            if state != "both full":
                assert (await bench.client.to_end()).code == (None if code == ABNORMAL else code)

    run(check())


def test_the_last_quarter_of_the_time_to_leave_is_the_clients(run: Run):
    async def check() -> None:
        async with Bench(close_timeout_s=100.0) as bench:
            bench.relay.leave(GOING_AWAY, 8.0)
            await bench.wait(6.0 - SLACK_S)
            assert bench.hears_nothing()

            await bench.wait(2 * SLACK_S)

            assert (await bench.client.frame()).data == GOING_AWAY.to_bytes(2, "big")
            await bench.wait(2.0 - 3 * SLACK_S)
            assert not bench.has_ended

    run(check())


def test_a_second_leave_may_shorten_the_first(run: Run):
    async def check() -> None:
        async with Bench(close_timeout_s=100.0) as bench:
            await bench.says(frame(BINARY, b"abc")[:-1])
            bench.relay.leave(1012, 1000.0)
            await bench.wait(10.0)
            bench.relay.leave(GOING_AWAY, 4.0)

            await bench.wait(4.0 + SLACK_S)

            assert (await bench.client.to_end()).code == GOING_AWAY
            assert bench.has_ended

    run(check())


def test_the_time_to_leave_counts_while_the_legs_are_joined(run: Run):
    async def check() -> None:
        async with Bench(close_timeout_s=100.0, is_joined=False) as bench:
            bench.relay.leave(GOING_AWAY, 8.0)
            await bench.wait(6.0)
            await bench.attach()
            bench.relay.join(bytearray(frame(BINARY, b"abc")[:-1]), False)

            await bench.wait(2.0 + SLACK_S)

            assert (await bench.client.to_end()).code == GOING_AWAY
            assert bench.has_ended

    run(check())


# --- abort: at once


def test_abort_says_close_and_releases_both_sockets_at_once(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            bench.relay.abort(GOING_AWAY)

            assert bench.session.endings == 1
            heard = await bench.client.to_end()
            assert (heard.code, heard.reset) == (GOING_AWAY, False)
            assert await bench.backend.recv() == b""
            bench.relay.abort(INTERNAL)
            assert (bench.relay.close_code, bench.relay.closed_by) == (GOING_AWAY, "server")

    run(check())


@pytest.mark.parametrize("state", ["draining", "closing", "failed"])
def test_abort_of_an_ending_tunnel_keeps_its_code(run: Run, state):
    async def check() -> None:
        async with Bench() as bench:
            if state == "draining":
                await bench.says(close_frame(4001))
            elif state == "closing":
                bench.backend.half_close()
                await turns(8)
            else:
                await bench.says(b"\xff\xff\xff")
            bench.relay.abort(GOING_AWAY)

            assert bench.session.endings == 1
            code = {"draining": 4001, "closing": NORMAL, "failed": 1002}[state]
            assert bench.relay.close_code == code
            assert (await bench.client.to_end(answer=True)).code == (GOING_AWAY if state == "draining" else code)

    run(check())


def test_abort_passes_on_what_has_arrived(run: Run):
    async def check() -> None:
        async with Bench(is_binary=True) as bench:
            bench.client.send_now(frame(BINARY, b"to the backend"))
            bench.backend.send_now(b"to the client")
            bench.relay.abort(GOING_AWAY)

            assert await bench.backend.recv_to_end() == b"to the backend"
            heard = await bench.client.to_end()
            assert (heard.data, heard.code) == (b"to the client", GOING_AWAY)

    run(check())


@pytest.mark.parametrize("said", [close_frame(4001), b"\xff\xff\xff"], ids=["close", "error"])
def test_abort_may_find_the_clients_end_in_what_has_arrived(run: Run, said):
    async def check() -> None:
        async with Bench(is_binary=True) as bench:
            bench.client.send_now(frame(BINARY, b"bye") + said)
            bench.relay.abort(GOING_AWAY)

            assert bench.session.endings == 1
            assert await bench.backend.recv_to_end() == b"bye"
            code = 1002 if said == b"\xff\xff\xff" else 4001
            assert bench.relay.close_code == code
            assert (await bench.client.to_end()).code == (GOING_AWAY if code == 4001 else code)

    run(check())


def test_abort_gives_a_slow_client_what_waits_for_it_and_the_close(run: Run):
    async def check() -> None:
        async with Bench(narrow=32 * 1024, is_binary=True) as bench:
            await bench.stuff_client()
            owed = bench.relay.bytes_out
            bench.relay.abort(GOING_AWAY)
            assert bench.session.endings == 1

            heard = await bench.client.to_end()

            assert (len(heard.data), heard.code, heard.reset) == (owed, GOING_AWAY, False)

    run(check())


def test_abort_gives_a_slow_backend_what_waits_for_it(run: Run):
    async def check() -> None:
        async with Bench(narrow=32 * 1024) as bench:
            payload, _ = await bench.stuff_backend()
            owed = bench.relay.bytes_in
            bench.relay.abort(GOING_AWAY)

            assert await bench.backend.recv_to_end() == payload[:owed]

    run(check())


def test_abort_in_the_middle_of_a_frame_puts_no_close_into_its_payload(run: Run):
    async def check() -> None:
        async with Bench(client=narrow_pair, is_binary=True) as bench:
            await bench.backend.send(b"x" * READ_BYTES)
            await eventually(lambda: bench.relay.bytes_out == READ_BYTES, "one read")
            bench.relay.abort(GOING_AWAY)

            async def hear() -> None:
                while (heard := await bench.client.frame()) is not None:
                    assert set(heard.data) == {ord("x")}, heard

            with pytest.raises(AssertionError, match="inside a frame"):
                await hear()

    run(check())


def test_abort_does_not_reset_a_slow_side_that_has_said_more_than_we_could_take(run: Run):
    """Closing with unread input sends RST, which destroys what the kernel still holds for the peer."""

    async def check() -> None:
        async with Bench(client=tight_tcp_pair, backend=tight_tcp_pair, is_binary=True) as bench:
            await bench.stuff_client()
            message = frame(BINARY, bytes(1 << 20))
            while _pending(bench.client_socket) == 0:
                message = message[bench.client.send_now(message[:4096]) :]
                await turns(8)
            owed_out, owed_in = bench.relay.bytes_out, bench.relay.bytes_in
            bench.relay.abort(GOING_AWAY)

            heard = await bench.client.to_end()

            assert (len(heard.data), heard.code, heard.reset) == (owed_out, GOING_AWAY, False)
            assert len(await bench.backend.recv_to_end()) == owed_in

    run(check())


@pytest.mark.parametrize("run", TRANSPORTS, ids="-".join, indirect=True)
def test_abort_while_the_backends_transport_is_made_leaves_nothing_open(run: Run):
    async def check() -> None:
        async with Bench(is_joined=False) as bench:
            attaching = asyncio.ensure_future(bench.attach())
            await asyncio.sleep(0)
            bench.relay.abort(GOING_AWAY)
            await attaching
            bench.relay.join(bytearray(frame(BINARY, b"early")), True)

            assert (await bench.client.to_end()).code == GOING_AWAY
            assert await bench.backend.recv() == b""
            assert len(bench.wheel) == 1, "only the hub is timed"

    run(check())


def test_abort_before_the_legs_are_joined_passes_on_nothing_out_of_order(run: Run):
    """What came behind the head was read by then, and goes first or not at all."""

    async def check() -> None:
        async with Bench(is_joined=False) as bench:
            await bench.client.send(frame(BINARY, b"what came behind that"))
            await bench.attach()
            bench.relay.abort(GOING_AWAY)

            assert await bench.backend.recv() == b""
            assert (await bench.client.to_end()).code == GOING_AWAY

    run(check())


# --- verdict: an exiting backend's status decides


@pytest.mark.parametrize("code", [NORMAL, INTERNAL])
def test_the_close_waits_for_the_verdict_on_an_exiting_backend(run: Run, code):
    async def check() -> None:
        async with Bench() as bench:
            bench.session.answer = 0
            await bench.backend.send(b"last words")
            bench.backend.close()
            await turns(8)
            assert (await bench.client.frame()).data == b"last words"
            assert bench.hears_nothing()
            assert bench.session.asked == 1

            bench.relay.verdict(code)

            assert (await bench.client.to_end(answer=True)).code == code
            bench.client.close()
            await bench.ended()
            assert (bench.relay.close_code, bench.relay.closed_by) == (code, "backend")

    run(check())


def test_a_clients_close_overtakes_the_verdict(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            bench.session.answer = 0
            bench.backend.close()
            await turns(8)
            await bench.says(close_frame(4001))
            bench.relay.verdict(INTERNAL)

            assert (await bench.client.to_end(answer=True)).code == 4001
            bench.client.close()
            await bench.ended()
            assert (bench.relay.close_code, bench.relay.closed_by) == (4001, "client")

    run(check())


def test_a_client_that_leaves_while_the_verdict_is_awaited_ends_the_tunnel(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            bench.session.answer = 0
            bench.backend.close()
            await turns(8)
            bench.client.close()

            await bench.ended()

            bench.relay.verdict(INTERNAL)
            assert bench.relay.close_code == ABNORMAL

    run(check())


def test_a_protocol_error_while_the_verdict_is_awaited_is_1002(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            bench.session.answer = 0
            bench.backend.close()
            await turns(8)
            await bench.says(b"\xff\xff\xff")
            bench.relay.verdict(NORMAL)

            assert (await bench.client.to_end(answer=True)).code == 1002
            assert bench.relay.close_code == 1002

    run(check())


def test_a_verdict_that_never_comes_is_1011_after_the_close_timeout(run: Run):
    async def check() -> None:
        async with Bench(close_timeout_s=5.0) as bench:
            bench.session.answer = 0
            bench.backend.close()
            await bench.wait(5.0 - SLACK_S)
            assert bench.hears_nothing()

            await bench.wait(LOOKS_S)

            assert (await bench.client.to_end(answer=True)).code == INTERNAL

    run(check())


def test_a_client_that_is_held_by_the_backend_is_read_again_once_that_has_been_given_up(run: Run):
    async def check() -> None:
        async with Bench(close_timeout_s=5.0, max_write_idle_s=100.0, narrow=8192) as bench:
            bench.session.answer = 0
            _, rest = await bench.stuff_backend()
            bench.backend.half_close()
            await bench.wait(5.0 + LOOKS_S)

            await bench.client.send(rest)

            assert (await bench.client.to_end(answer=True)).code == INTERNAL
            bench.client.close()
            await bench.ended()

    run(check())


def test_what_the_client_says_while_the_verdict_is_awaited_reaches_a_backend_that_still_reads(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            bench.session.answer = 0
            bench.backend.half_close()
            await turns(8)
            await bench.says(frame(BINARY, b"a"), frame(PING, b"b"))
            assert await bench.backend.recv_exactly(1) == b"a"
            bench.relay.verdict(NORMAL)

            heard = await bench.client.to_end(answer=True)

            assert (heard.pongs, heard.code) == ([b"b"], NORMAL)
            assert await bench.backend.recv() == b""

    run(check())


@pytest.mark.parametrize("how", ["leave", "abort"])
def test_the_server_may_go_away_while_the_verdict_is_awaited(run: Run, how):
    async def check() -> None:
        async with Bench() as bench:
            bench.session.answer = 0
            bench.backend.close()
            await turns(8)
            if how == "abort":
                bench.relay.abort(GOING_AWAY)
                assert bench.session.endings == 1
                assert bench.relay.close_code == GOING_AWAY
            else:
                bench.relay.leave(GOING_AWAY)
                bench.relay.verdict(NORMAL)
                assert (await bench.client.to_end(answer=True)).code == NORMAL

    run(check())


def test_a_verdict_that_nobody_waits_for_changes_nothing(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            bench.relay.verdict(INTERNAL)
            assert bench.relay.is_open
            await bench.says(frame(BINARY, b"a"))
            assert await bench.backend.recv_exactly(1) == b"a"
            bench.relay.abort(GOING_AWAY)
            bench.relay.verdict(INTERNAL)
            assert bench.relay.close_code == GOING_AWAY

    run(check())


@pytest.mark.parametrize("kind", ["reset", "half a character"])
def test_an_end_that_speaks_for_itself_asks_for_no_verdict(run: Run, kind):
    async def check() -> None:
        async with Bench(backend=tcp_pair) as bench:
            bench.session.answer = 0
            if kind == "reset":
                bench.backend.reset()
            else:
                await bench.backend.send(b"\xc3")
                bench.backend.close()

            assert (await bench.client.to_end(answer=True)).code == INTERNAL
            assert bench.session.asked == 0
            assert bench.relay.is_text_broken == (kind != "reset")

    run(check())


# --- control frames behind a full queue


def test_behind_a_full_queue_only_the_latest_ping_is_answered(run: Run):
    """RFC 6455 §5.5.3."""

    async def check() -> None:
        async with Bench(narrow=8192, is_binary=True) as bench:
            said = await bench.stuff_client()
            for number in range(200):
                await bench.says(frame(PING, b"%d" % number))
            await bench.says(frame(PING, b"n" * 125))

            got, pongs = bytearray(), []
            while not pongs:
                heard = await bench.client.frame()
                got += heard.data if heard.opcode is BINARY else b""
                pongs += [heard.data] if heard.opcode is PONG else []

            assert pongs == [b"n" * 125]
            assert said.startswith(got)
            await bench.says(frame(PING, b"and now"))
            while (heard := await bench.client.frame()).opcode is not PONG:
                got += heard.data
            assert heard.data == b"and now"
            assert got == said

    run(check())


def test_a_pong_that_waits_is_not_sent_behind_our_close(run: Run):
    async def check() -> None:
        async with Bench(narrow=8192, is_binary=True, close_timeout_s=5.0, max_write_idle_s=10.0) as bench:
            await bench.stuff_client()
            await bench.says(frame(PING, b"a"))
            bench.relay.leave(GOING_AWAY)
            await bench.wait(15.0 + 1.0)  # the backend has had its time, and CLOSE stands in the queue
            assert not bench.has_ended

            heard = await bench.client.to_end(answer=True)

            assert (heard.pongs, heard.code) == ([], GOING_AWAY)

    run(check())


def test_a_ping_behind_our_close_is_not_answered(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            bench.backend.half_close()
            await turns(8)
            await bench.says(frame(PING, b"a"))

            heard = await bench.client.to_end(answer=True)

            assert (heard.pongs, heard.code) == ([], NORMAL)

    run(check())


# --- text


@pytest.mark.parametrize("seed", range(8))
def test_every_text_frame_is_whole_characters_and_the_first_bad_byte_ends_it(run: Run, seed):
    """Python's own decoder is the oracle, for any bytes under any cuts."""

    async def check() -> None:
        rng = random.Random(seed)
        for _ in range(12):
            text = "".join(chr(rng.choice([65, 0xE9, 0x20AC, 0x1F600, 0xFFFD])) for _ in range(rng.randrange(1, 40)))
            said = bytearray(text.encode())
            if rng.random() < 0.6:
                said[rng.randrange(len(said))] = rng.choice(
                    [0x80, 0xBF, 0xC0, 0xC3, 0xE2, 0xED, 0xF0, 0xF4, 0xF5, 0xFF]
                )
            async with Bench() as bench:
                at = 0
                while at < len(said):
                    step = rng.randrange(1, 6)
                    with contextlib.suppress(BrokenPipeError):
                        bench.backend.sock.send(said[at : at + step])
                    at += step
                    await turns(4)
                bench.backend.close()

                heard = await bench.client.to_end(answer=True)

                try:
                    valid, code = said.decode().encode(), NORMAL
                except UnicodeDecodeError as bad:
                    valid, code = bytes(said[: bad.start]), INTERNAL
                assert (bytes(heard.data), heard.code) == (valid, code), said.hex()
                assert bench.relay.is_text_broken == (code == INTERNAL)
                assert bench.relay.bytes_out == len(valid)

    run(check())


def test_broken_text_behind_the_clients_close_is_told_instead_of_its_code(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            await bench.says(close_frame(NORMAL))
            await bench.backend.send(b"good \xff bad")

            heard = await bench.client.to_end(answer=True)

            assert (heard.data, heard.code) == (b"good ", INTERNAL)
            assert (bench.relay.close_code, bench.relay.closed_by) == (INTERNAL, "server")
            assert bench.relay.is_text_broken

    run(check())


def test_broken_text_behind_the_clients_eof_is_logged_and_not_told(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            bench.client.half_close()
            await turns(8)
            await bench.backend.send(b"good \xff bad")

            heard = await bench.client.to_end(answer=True)

            assert (heard.data, heard.code) == (b"good ", None)
            assert bench.relay.close_code == INTERNAL

    run(check())


def test_a_protocol_error_after_broken_text_does_not_change_what_was_told(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            await bench.backend.send(b"\xff")
            await turns(8)
            await bench.says(b"\xff\xff\xff")

            assert (await bench.client.to_end(answer=True)).code == INTERNAL
            bench.client.close()
            bench.backend.close()
            await bench.ended()
            assert bench.relay.close_code == INTERNAL

    run(check())


# --- a side that takes nothing more is still heard out


def test_what_a_client_said_before_it_could_not_be_written_to_any_more_is_delivered(run: Run):
    """Its EPIPE is found by a PONG for the first of its frames, while the others are still unread."""

    async def check() -> None:
        async with Bench(narrow=8192, read_bytes=4096, turn_bytes=8192) as bench:
            bench.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            payload = random.Random(4).randbytes(60_000)
            bench.client.sock.shutdown(socket.SHUT_RD)
            await bench.client.send(frame(PING) + frame(BINARY, payload))
            bench.client.close()

            assert await bench.backend.recv_exactly(len(payload)) == payload
            assert await bench.backend.recv() == b""

    run(check())


def test_what_a_backend_said_before_it_could_not_be_written_to_any_more_is_delivered(run: Run):
    async def check() -> None:
        async with Bench(read_bytes=4096, turn_bytes=8192, is_binary=True) as bench:
            said = random.Random(5).randbytes(60_000)
            bench.backend.sock.shutdown(socket.SHUT_RD)
            await bench.client.send(frame(BINARY, b"into the void"))
            await bench.backend.send(said)
            bench.backend.close()

            heard = await bench.client.to_end(answer=True)

            assert (bytes(heard.data), heard.code) == (said, NORMAL)

    run(check())


def test_a_backends_last_words_before_its_reset_are_delivered_though_a_send_finds_the_reset_first(run: Run):
    async def check() -> None:
        async with Bench(backend=tcp_pair, narrow=8192, is_binary=True) as bench:
            said = await bench.stuff_client()
            assert bench.waiting()
            pending = _pending(bench.backend_socket)
            bench.backend.reset()
            await bench.says(frame(BINARY, b"into the void"), frame(BINARY, b"and again"))

            heard = await bench.client.to_end(answer=True)

            assert pending > 0
            assert len(heard.data) >= pending
            assert said.startswith(bytes(heard.data))
            assert heard.code == INTERNAL

    run(check())


def _pending(sock: socket.socket) -> int:
    """Bytes in the socket that nobody has read."""
    return struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))[0]


def test_a_backend_that_breaks_in_the_middle_of_a_character_is_not_accused_of_binary(run: Run):
    """Its EOF there would be; a reset is only a broken backend, and the operator is to look there."""

    async def check() -> None:
        async with Bench(backend=tcp_pair) as bench:
            await bench.backend.send("grüß".encode()[:-1])
            assert (await bench.client.frame()).data == "grü".encode()
            bench.backend.reset()

            heard = await bench.client.to_end(answer=True)

            assert heard.code == INTERNAL
            assert bench.relay.closed_by == "backend"
            assert not bench.relay.is_text_broken

    run(check())


def test_a_reset_that_hides_behind_an_eof_is_a_broken_backend(run: Run):
    """recv(2) tells the EOF alone where a TCP peer has ended its side and then closed over what it had not read."""

    async def check() -> None:
        async with Bench(backend=tcp_pair) as bench:
            await bench.says(frame(BINARY, b"never read"))
            bench.backend.half_close()
            bench.backend.close()

            assert (await bench.client.to_end(answer=True)).code == INTERNAL

    run(check())


def test_the_close_and_the_end_behind_it_are_one_packet(run: Run):
    """Each packet of a short connection costs more than the frame in it."""

    def tcp_info(at: int) -> int:
        info = bench.client.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 144)
        return int.from_bytes(info[at : at + 4], sys.byteorder)

    async def check() -> None:
        nonlocal bench
        async with Bench(client=tcp_pair) as bench:
            unacked, segments_in = 24, 140  # where tcp_info has them, linux/tcp.h
            await bench.says(close_frame(NORMAL))
            await eventually(lambda: tcp_info(unacked) == 0, "an acknowledgement of the CLOSE")
            before = tcp_info(segments_in)
            bench.backend.close()

            assert await bench.client.recv_to_end() == b"\x88\x02" + NORMAL.to_bytes(2)
            assert tcp_info(segments_in) - before == 1

    bench: Bench
    run(check())


def test_a_reset_client_is_1006_and_its_last_words_are_delivered(run: Run):
    async def check() -> None:
        async with Bench(client=tcp_pair, backend=tcp_pair, narrow=8192) as bench:
            payload, _rest = await bench.stuff_backend()
            bench.client.reset()
            await bench.backend.send(b"nobody hears this")
            got = await bench.backend.recv_to_end()
            bench.backend.close()

            await bench.ended()
            assert payload.startswith(got)
            assert len(got) == bench.relay.bytes_in
            assert bench.relay.close_code == ABNORMAL

    run(check())


# --- fairness


@pytest.mark.parametrize("talker", ["client", "backend"])
def test_a_side_with_much_to_say_gives_the_others_a_turn(run: Run, talker):
    async def check() -> None:
        async with Bench(read_bytes=4096, turn_bytes=16 * 1024, is_joined=False, is_binary=True) as bench:
            size = 128 * 1024
            payload = random.Random(6).randbytes(size)
            for sock in (bench.client.sock, bench.backend.sock, bench.client_socket):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            bench.backend_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            if talker == "client":
                await bench.client.send(frame(BINARY, payload))
            await bench.attach()
            bench.relay.join(bytearray(), False)
            if talker == "backend":
                await bench.backend.send(payload)

            counts = [0]
            while counts[-1] < size:
                await asyncio.sleep(0)
                counts.append(bench.relay.bytes_in if talker == "client" else bench.relay.bytes_out)

            assert max(after - before for before, after in itertools.pairwise(counts)) <= 16 * 1024
            if talker == "client":
                assert await bench.backend.recv_exactly(size) == payload
                if bench.is_over_transports:
                    assert bench.watched.calls.count("pause_reading") == bench.watched.calls.count("resume_reading") - 1
            else:
                assert await bench.client.payload(size) == payload

    run(check(), timeout_s=20.0)


def test_a_turn_that_ends_while_the_other_side_is_full_does_not_read_on(run: Run):
    async def check() -> None:
        async with Bench(read_bytes=4096, turn_bytes=4096, narrow=8192) as bench:
            payload, rest = await bench.stuff_backend()
            taken = bench.relay.bytes_in
            await turns(20)
            assert bench.relay.bytes_in == taken

            talking = asyncio.ensure_future(bench.client.send(rest))
            assert await bench.backend.recv_exactly(len(payload)) == payload
            await talking

    run(check())


# --- how much is read at once

_HUB_STEPS = [step for step in _STEPS if step[1] == "hub"]


@pytest.mark.parametrize("run", _HUB_STEPS, ids="-".join, indirect=True)
def test_a_stream_is_read_in_larger_pieces_while_its_receiver_has_room(run: Run):
    """Every read of the backend becomes a frame, so frames show how much was read."""

    async def check() -> None:
        async with Bench(read_bytes=4096, bulk_bytes=64 * 1024, is_binary=True) as bench:
            said = random.Random(7).randbytes(128 * 1024)
            await bench.backend.send(said)

            frames = await _frames(bench, len(said))

            assert len(frames[0]) == 4096
            assert max(map(len, frames)) == 64 * 1024
            assert b"".join(frames) == said

    run(check())


@pytest.mark.parametrize("run", _HUB_STEPS, ids="-".join, indirect=True)
def test_a_stream_is_read_in_small_pieces_when_its_receiver_has_no_room(run: Run):
    """Or more than one usual read would wait for a slow peer."""

    async def check() -> None:
        async with Bench(narrow=16 * 1024, read_bytes=4096, bulk_bytes=64 * 1024, is_binary=True) as bench:
            bench.backend.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            said = random.Random(8).randbytes(128 * 1024)
            talking = asyncio.ensure_future(bench.backend.send(said))

            frames = await _frames(bench, len(said))

            await talking
            assert max(map(len, frames)) == 4096
            assert b"".join(frames) == said

    run(check())


@pytest.mark.parametrize("run", _HUB_STEPS, ids="-".join, indirect=True)
def test_the_end_of_a_large_message_does_not_make_the_next_one_come_in_small_pieces(run: Run):
    async def check() -> None:
        async with Bench(read_bytes=4096, bulk_bytes=64 * 1024, is_binary=True) as bench:
            await bench.backend.send(bytes(6000))
            assert list(map(len, await _frames(bench, 6000))) == [4096, 6000 - 4096]

            await bench.backend.send(bytes(6000))

            assert list(map(len, await _frames(bench, 6000))) == [6000]

    run(check())


async def _frames(bench: Bench, size: int) -> list[bytes]:
    """The payloads of the client's next frames, `size` bytes in all."""
    found: list[bytes] = []
    while sum(map(len, found)) < size:
        found.append(bytes((await bench.client.frame()).data))
    return found


# --- the hub


@pytest.mark.parametrize("run", _HUB_STEPS, ids="-".join, indirect=True)
def test_a_fault_in_one_tunnel_is_told_to_the_loop_and_ends_it_with_1011(run: Run):
    def fail() -> int:
        raise ZeroDivisionError

    async def check() -> None:
        faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        async with Bench(is_binary=True) as faulty:
            faulty.session.backend_ended = fail
            await faulty.backend.send(b"last words")
            faulty.backend.close()

            heard = await faulty.client.to_end(answer=True)

            assert (heard.data, heard.code) == (b"last words", INTERNAL)
            assert (faulty.relay.close_code, faulty.relay.closed_by) == (INTERNAL, "server")
            (fault,) = faults
            assert isinstance(fault["exception"], ZeroDivisionError)

    run(check())


@pytest.mark.parametrize("run", _HUB_STEPS, ids="-".join, indirect=True)
def test_who_gets_the_descriptor_of_a_leg_that_the_other_leg_has_closed_does_not_get_its_events(run: Run):
    """Both legs are ready in one wake; the backend's, served first, ends the tunnel."""

    async def check() -> None:
        async with Bench() as bench:
            number = bench.client_socket.fileno()
            newcomers: list[HubTransport] = []
            near, far = unix_pair()
            heard: list[int] = []

            def end() -> int:
                bench.relay.abort(GOING_AWAY)
                os.dup2(near.fileno(), number)
                far.send(b"mine")
                newcomers.append(HubTransport(bench.hub, number, _Newcomer(heard)))
                return NORMAL

            bench.session.backend_ended = end
            bench.backend.close()
            bench.client.sock.send(frame(BINARY, b"yours"))

            bench.hub.wake()

            (newcomer,) = newcomers
            assert heard == []
            await eventually(lambda: heard == [4], "the newcomer's own bytes")
            newcomer.abort()
            await turns(3)
            near.close()
            far.close()

    run(check())


class _Newcomer(_Head):
    def __init__(self, heard: list[int]) -> None:
        self._heard = heard

    def buffer_updated(self, nbytes: int) -> None:
        self._heard.append(nbytes)


def test_one_hub_flushes_many_legs_and_watches_none_of_them_afterwards(run: Run):
    async def check() -> None:
        async with (
            Bench(narrow=8192, is_binary=True) as one,
            Bench(narrow=8192, is_binary=True, beside=one) as other,
        ):
            said = [await one.stuff_client(), await other.stuff_client()]
            assert len(one.waiting()) == 2

            heard = [await one.client.payload(len(said[0])), await other.client.payload(len(said[1]))]

            assert heard == said
            assert one.waiting() == set()

    run(check())


def words() -> memoryview:
    return memoryview(bytearray(4 * 8)).cast("q")


def test_all_tunnels_of_a_hub_count_in_the_same_words(run: Run):
    async def check() -> None:
        counters = words()
        counters[:] = memoryview(struct.pack("4q", 1, 1 << 40, 0, -1)).cast("q")
        for _ in range(2):
            async with Bench(is_binary=True, counters=counters) as bench:
                await bench.says(frame(BINARY, b"one"), frame(TEXT, b"t", fin=False), frame(PING), frame(CONT, b"wo"))
                await bench.backend.send(b"answer")
                assert (await bench.client.frame()).opcode is PONG
                assert await bench.client.payload(6) == b"answer"
                await bench.says(frame(BINARY, b"half a message", fin=False), close_frame(NORMAL))
                bench.backend.close()
                await bench.client.to_end()

        assert list(counters) == [1 + 2 * 20, (1 << 40) + 2 * 6, 2 * 2, -1 + 2]

    run(check())


def test_what_is_dropped_is_not_counted(run: Run):
    async def check() -> None:
        counters = words()
        async with Bench(counters=counters) as bench:
            await bench.says(b"\xff\xff\xff", frame(BINARY, b"too late"))
            await bench.backend.send(b"too late")
            assert not (await bench.client.to_end(answer=True)).data

        assert list(counters) == [0, 0, 0, 0]

    run(check())


@pytest.mark.parametrize(
    "counters",
    [
        memoryview(bytearray(3 * 8)).cast("q"),
        memoryview(bytearray(5 * 8)).cast("q"),
        memoryview(bytes(4 * 8)).cast("q"),
        memoryview(bytearray(4 * 8)).cast("d"),
        bytearray(4 * 8),
    ],
    ids=["too few", "too many", "read-only", "floats", "bytes"],
)
def test_counters_that_cannot_be_counted_in_are_refused(run: Run, counters):
    async def check() -> None:
        wheel = TimerWheel(TICK_S, 0.0)
        loop = asyncio.get_running_loop()
        with pytest.raises((ValueError, BufferError)):
            Hub(
                loop,
                wheel,
                read_bytes=READ_BYTES,
                bulk_bytes=READ_BYTES,
                turn_bytes=TURN_BYTES,
                look_s=LOOK_S,
                counters=counters,
            ).close()
        assert len(wheel) == 0

    run(check())


# --- a pipe


@pytest.mark.parametrize("pair", [unix_pair, tcp_pair])
def test_a_pipe_passes_bytes_on_as_they_are(run: Run, pair):
    """Whatever they look like: frames with masks, broken ones, no UTF-8."""
    said, answered = frame(TEXT, b"\xff") + b"\xff" * 1000, b"\x00\x85\xff\xfe" * 1000

    async def check() -> None:
        async with Bench(client=pair, backend=pair, is_pipe=True) as bench:
            await bench.client.send(said)
            assert await bench.backend.recv_exactly(len(said)) == said
            await bench.backend.send(answered)
            assert await bench.client.recv_exactly(len(answered)) == answered
            assert (bench.relay.bytes_in, bench.relay.bytes_out) == (len(said), len(answered))
            assert (bench.relay.messages_in, bench.relay.messages_out) == (0, 0)
            bench.client.close()

    run(check())


@pytest.mark.parametrize("narrow", [None, 4096])
@pytest.mark.parametrize("seed", range(4))
def test_a_pipe_loses_nothing_at_the_end_of_either_side(run: Run, seed, narrow):
    """One side ends after what it had to say; the other one hears all of it, and the end, and may still answer."""
    chance = random.Random(seed)
    sizes = [chance.randrange(1, 400_000) for _ in range(2)]

    async def check() -> None:
        async with Bench(client=tcp_pair, backend=unix_pair, narrow=narrow, is_pipe=True) as bench:
            ends = [bench.client, bench.backend]
            if seed % 2:
                ends.reverse()
            first, second = ends
            words = [chance.randbytes(size) for size in sizes]

            async def end() -> None:
                await first.send(words[0])
                first.half_close()

            telling = asyncio.ensure_future(end())
            if first is bench.client:
                assert await second.recv_to_end() == words[0]
                hearing = asyncio.ensure_future(first.recv_to_end())
                await second.send(words[1])
                second.half_close()
                assert await hearing == words[1]
            else:
                assert await second.recv_to_end() == words[0]
                second.half_close()
            await telling
            await bench.ended()
            assert bench.relay.close_code == 1005

    run(check())


def test_what_came_behind_both_heads_goes_first(run: Run):
    async def check() -> None:
        async with Bench(is_pipe=True, is_joined=False) as bench:
            await bench.attach()
            bench.relay.join(bytearray(b"early"), False, bytearray(b"told"), False)
            assert await bench.backend.recv_exactly(5) == b"early"
            assert await bench.client.recv_exactly(4) == b"told"
            bench.client.close()

    run(check())


def test_a_backend_that_had_ended_before_the_join_is_heard(run: Run):
    async def check() -> None:
        async with Bench(is_pipe=True, is_joined=False) as bench:
            await bench.attach()
            bench.relay.join(bytearray(b"early"), False, bytearray(b"told"), True)
            assert await bench.client.recv_to_end() == b"told"
            bench.client.close()
            await bench.ended()

    run(check())


def test_a_pipe_holds_back_a_side_whose_other_one_does_not_read(run: Run):
    async def check() -> None:
        async with Bench(client=tight_tcp_pair, is_pipe=True) as bench:
            said = await bench.stuff_client()
            bench.backend.half_close()
            assert await bench.client.recv_to_end() == said
            bench.client.close()
            await bench.ended()

    run(check())


def test_a_reset_ends_a_pipe_and_is_told(run: Run):
    async def check() -> None:
        async with Bench(client=tcp_pair, backend=tcp_pair, is_pipe=True) as bench:
            bench.client.reset()
            await bench.backend.gone()
            bench.backend.close()
            await bench.ended()
            assert (bench.relay.close_code, bench.relay.closed_by) == (ABNORMAL, "client")
        async with Bench(client=tcp_pair, backend=tcp_pair, is_pipe=True) as bench:
            bench.backend.reset()
            await bench.client.gone()
            bench.client.close()
            await bench.ended()
            assert (bench.relay.close_code, bench.relay.closed_by) == (INTERNAL, "backend")

    run(check())


def test_a_pipe_is_neither_pinged_nor_closed_by_a_frame(run: Run):
    """Whatever is under way there is not ours to interrupt."""

    async def check() -> None:
        async with Bench(is_pipe=True) as bench:
            bench.relay.leave(GOING_AWAY)
            assert await bench.backend.recv_to_end() == b""
            bench.backend.close()
            assert await bench.client.recv_to_end() == b""
            bench.client.close()
            await bench.ended()
            assert (bench.relay.close_code, bench.relay.closed_by) == (GOING_AWAY, "server")
        async with Bench(is_pipe=True) as bench:
            bench.relay.abort(GOING_AWAY)
            assert await bench.client.recv_to_end() == b""

    run(check())


def test_a_pipe_in_silence_ends_after_max_read_idle(run: Run):
    async def check() -> None:
        async with Bench(is_pipe=True, max_read_idle_s=30.0) as bench:
            await bench.wait(29.0)
            assert not bench.has_ended
            await bench.wait(1.0 + SLACK_S)
            assert await bench.backend.recv_to_end() == b""
            bench.backend.close()
            assert await bench.client.recv_to_end() == b""
            bench.client.close()
            await bench.ended()
            assert bench.relay.close_code == GOING_AWAY

    run(check())
