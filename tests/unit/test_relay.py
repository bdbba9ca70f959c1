"""The relay in corners that only an invented clock, a held socket or an odd order of events reaches.

The legs are real sockets on a real loop; time is what the test says it is (`Bench.wait`). What is seen over whole
tunnels (every ending, conservation, back-pressure) stands in tests/wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Run, open_descriptors
from tests.wire.clients import BINARY, PING, PONG, TEXT, Client, frame
from tests.wire.sockets import Wire, eventually, turns
from wstunnel._relay import BackendLeg, ClientLeg, Engine, Policy, Relay
from wstunnel.net.wheel import TimerWheel

READ_BYTES, TURN_BYTES, LOOK_S, TICK_S = 64 * 1024, 256 * 1024, 0.5, 0.1
SLACK_S = 0.3
"""A deadline is met within a tick of the wheel, and a tick of the engine's clock."""
LOOKS_S = 3 * LOOK_S
"""An ending is over that much later than its timeout: one look sees the last move, one that there is no other."""
OFF = {"ping_interval_s": 0.0, "ping_timeout_s": 20.0, "max_read_idle_s": 0.0, "max_write_idle_s": 0.0}
ABNORMAL, GOING_AWAY, INTERNAL, NORMAL = 1006, 1001, 1011, 1000


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
    """Stands for the connection that read the request head; its transport is paused when the relay gets it."""

    def connection_made(self, transport: Any) -> None:
        transport.pause_reading()

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


class Bench:
    """`async with Bench(...) as bench`: one open relay; `bench.client` and `bench.backend` are its peers.

    in      client, backend  how their pairs are made
            narrow           SO_SNDBUF of both of the relay's ends, so that queues form early
            is_joined        False: stop before `join`, as while the backend's transport is being made
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
        turn_bytes: int = TURN_BYTES,
        is_binary: bool = False,
        is_joined: bool = True,
        close_timeout_s: float = 5.0,
        **policy: float,
    ) -> None:
        self._pairs = client, backend
        self._narrow = narrow
        self._sizes = read_bytes, turn_bytes
        self._is_joined = is_joined
        self._policy = Policy(is_binary=is_binary, close_timeout_s=close_timeout_s, **(OFF | policy))

    async def __aenter__(self) -> Bench:
        self._fds = _descriptors()
        self.loop = asyncio.get_running_loop()
        self.wheel = TimerWheel(TICK_S, 1000.0)
        read_bytes, turn_bytes = self._sizes
        self.engine = Engine(self.loop, self.wheel, read_bytes=read_bytes, turn_bytes=turn_bytes, look_s=LOOK_S)
        (near_client, far_client), (near_backend, far_backend) = self._pairs[0](), self._pairs[1]()
        for sock in (near_client, far_client, near_backend, far_backend):
            sock.setblocking(False)
            if self._narrow is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._narrow)
        self.client, self.backend = Client(far_client), Wire(far_backend)
        self.session = Session()
        self.transport, _ = await self.loop.connect_accepted_socket(_Head, near_client)
        self.backend_socket = near_backend
        self.client_leg = ClientLeg(self.engine, near_client.fileno())
        self.backend_leg = BackendLeg(self.engine, near_backend.fileno())
        self.relay = Relay(self.engine, self._policy, self.client_leg, self.backend_leg, self.session)
        self.watched = Watched(self.transport)
        self.relay.open(self.watched)
        if self._is_joined:
            await self.attach()
            self.relay.join(bytearray(), False)
        return self

    async def attach(self) -> None:
        """Make the backend's transport."""
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
        self.engine.close()
        if kind is None:
            await eventually(lambda: _descriptors() == self._fds, "every descriptor closed")

    @property
    def has_ended(self) -> bool:
        return self.session.endings > 0

    def waiting(self) -> set[int]:
        """The descriptors that the engine watches for room to write."""
        found: set[int] = set()
        for fd, name in _descriptors().items():
            if name == "anon_inode:[eventpoll]" and fd not in self._fds:
                with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
                    found |= {int(tfd) for tfd in re.findall(r"tfd:\s*(\d+)", info.read())}
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
            await (bench.client.send(frame(BINARY, b"a")) if speaker == "client" else bench.backend.send(b"a"))
            await bench.wait(20.0 - SLACK_S)
            if speaker == "backend":
                assert (await bench.client.frame()).opcode is TEXT
            assert bench.hears_nothing()

            await bench.wait(2 * SLACK_S)

            assert (await bench.client.frame()).opcode is PING

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

            heard = await bench.client.to_end()
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

            heard = await bench.client.to_end()

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


# --- a side that is gone


def test_a_client_that_is_lost_behind_its_full_queue_does_not_hold_the_backend(run: Run):
    """The transport may tell of it before the engine's own epoll set does."""

    async def check() -> None:
        async with Bench(narrow=8192) as bench:
            await bench.stuff_client()
            bench.transport.abort()

            await bench.backend.gone()
            bench.backend.close()

            await bench.ended()
            assert bench.relay.close_code == ABNORMAL

    run(check())


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
