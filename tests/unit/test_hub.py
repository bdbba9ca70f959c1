"""The hub: who is served when many sockets are ready at once, and the transport that it reads accepted sockets for."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Any

import pytest

from tests.conftest import LOOPS, Run, open_descriptors
from tests.wire.sockets import eventually, turns
from wstunnel._hub import Hub, HubTransport
from wstunnel.net.wheel import TimerWheel

READ_BYTES = 4096
SIZES = {"read_bytes": READ_BYTES, "bulk_bytes": 2 * READ_BYTES, "turn_bytes": 4 * READ_BYTES}


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    return Run(request.param)


class Protocol:
    """Notes what it is told, in order. `on_data` is called with what was read; `keeps_open`: the answer to EOF."""

    def __init__(self, hub: Hub, *, on_data: Any = None, keeps_open: bool = True) -> None:
        self._hub, self._on_data, self._keeps_open = hub, on_data, keeps_open
        self.told: list[Any] = []

    @property
    def data(self) -> bytes:
        return b"".join(each for each in self.told if isinstance(each, bytes))

    @property
    def events(self) -> list[str]:
        return [each for each in self.told if isinstance(each, str)]

    def connection_made(self, transport: HubTransport) -> None:
        self.transport = transport
        self.told.append("made")

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._hub.view[:nbytes])
        self.told.append(data)
        if self._on_data is not None:
            self._on_data(data)

    def eof_received(self) -> bool:
        self.told.append("eof")
        return self._keeps_open

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.told.append("lost" if error is None else f"lost: {type(error).__name__}")


class Bench:
    """`async with Bench() as bench`: a hub. On leaving it has no seat taken, and every descriptor is back."""

    async def __aenter__(self) -> Bench:
        self._fds = _descriptors()
        loop = asyncio.get_running_loop()
        self.hub = Hub(loop, TimerWheel(0.1, 0.0), **SIZES, look_s=0.5)
        self._opened: list[HubTransport | socket.socket] = []
        self.faults: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: self.faults.append(context))
        return self

    def pair(self, *, narrow: bool = False, **how: Any) -> tuple[Protocol, socket.socket]:
        """A transport's protocol, and the socket at the other end."""
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        if narrow:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        return self.attach(near, **how), far

    def tcp(self, **how: Any) -> tuple[Protocol, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            far = socket.create_connection(listener.getsockname())
            near, _ = listener.accept()
        near.setblocking(False)
        far.setblocking(False)
        return self.attach(near, **how), far

    def attach(self, near: socket.socket, **how: Any) -> Protocol:
        protocol = Protocol(self.hub, **how)
        self._opened.append(HubTransport(self.hub, near.detach(), protocol))
        return protocol

    async def __aexit__(self, *_: object) -> None:
        for transport in self._opened:
            transport.abort()
        await turns(3)
        self.hub.close()
        await eventually(lambda: _descriptors() == self._fds, "every descriptor closed")


def _descriptors() -> dict[int, str]:
    return {fd: name for fd, name in open_descriptors().items() if name != "/dev/null"}


async def drained(far: socket.socket, count: int) -> bytes:
    """`count` bytes, or what there is until the end."""
    got = b""
    loop = asyncio.get_running_loop()
    while len(got) < count and (piece := await loop.sock_recv(far, 1 << 16)):
        got += piece
    return got


# --- many sockets ready at once


def test_every_ready_socket_is_served_in_one_wake(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            pairs = [bench.pair() for _ in range(600)]
            for number, (_, far) in enumerate(pairs):
                far.send(b"%d" % number)
            bench.hub.wake()
            served = sum(bool(protocol.data) for protocol, _ in pairs)
            assert served == 512, "no more than that many before the loop has its turn"
            bench.hub.wake()

            assert [protocol.data for protocol, _ in pairs] == [b"%d" % number for number in range(600)]
            for _, far in pairs:
                far.close()

    run(check())


def test_the_successor_on_a_descriptor_does_not_get_the_events_of_who_was_closed_in_the_same_wake(run: Run):
    """Two are ready; whoever is served first closes the other, and a new connection gets its number at once."""

    async def check() -> None:
        async with Bench() as bench:
            numbers: list[int] = []
            successors: list[tuple[Protocol, socket.socket]] = []

            def replace(other: list[Protocol]) -> None:
                if not successors:
                    transport = other[0].transport
                    number = transport.fileno()
                    transport.abort()
                    transport.finish(None)  # as the loop would
                    near, far = socket.socketpair()
                    assert number in {near.fileno(), far.fileno()}, "the lowest free number is given out"
                    if far.fileno() == number:
                        near, far = far, near
                    near.setblocking(False)
                    far.send(b"mine")
                    successors.append((bench.attach(near), far))
                    numbers.append(number)

            first: list[Protocol] = []
            second: list[Protocol] = []
            one, far_one = bench.pair(on_data=lambda _: replace(second))
            other, far_other = bench.pair(on_data=lambda _: replace(first))
            first.append(one)
            second.append(other)
            far_one.send(b"a")
            far_other.send(b"b")

            bench.hub.wake()

            ((successor, far),) = successors
            assert successor.transport.fileno() == numbers[0]
            assert successor.told == ["made"]
            assert sorted([one.data, other.data]) in ([b"", b"a"], [b"", b"b"])
            await eventually(lambda: successor.data == b"mine", "the successor's own bytes")
            for sock in (far_one, far_other, far):
                sock.close()

    run(check())


def test_a_fault_in_one_connection_is_told_to_the_loop_and_ends_it_alone(run: Run):
    def fail(_: bytes) -> None:
        raise ZeroDivisionError

    async def check() -> None:
        async with Bench() as bench:
            faulty, far_faulty = bench.pair(on_data=fail)
            pairs = [bench.pair() for _ in range(3)]
            far_faulty.send(b"x")
            for _, far in pairs:
                far.send(b"y")
            await eventually(lambda: faulty.events == ["made", "lost"], "the end of the faulty one")

            assert [protocol.told for protocol, _ in pairs] == [["made", b"y"]] * 3
            (fault,) = bench.faults
            assert isinstance(fault["exception"], ZeroDivisionError)
            assert far_faulty.recv(1) == b""
            for _, far in (*pairs, (faulty, far_faulty)):
                far.close()

    run(check())


def test_a_descriptor_that_cannot_be_watched_stays_the_callers(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            fd = os.open("/dev/null", os.O_RDONLY)
            with pytest.raises(OSError, match="not permitted"):
                HubTransport(bench.hub, fd, Protocol(bench.hub))
            os.close(fd)

    run(check())


def test_a_socket_that_nobody_wants_to_read_costs_no_wake(run: Run):
    """A hang-up is told whether it is wanted or not."""

    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.pair()
            protocol.transport.pause_reading()
            far.close()
            await turns(3)

            before = _times()
            await asyncio.sleep(0.2)
            assert _times() - before < 0.1, "it spins"
            assert protocol.told == ["made"]
            protocol.transport.resume_reading()
            await eventually(lambda: protocol.told == ["made", "eof"], "the end")

    run(check())


def _times() -> float:
    used = os.times()
    return used.user + used.system


# --- the transport: reading


def test_what_comes_is_told_in_order_and_the_end_once(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.pair()
            far.send(b"one")
            await eventually(lambda: protocol.data == b"one", "the first")
            far.send(b"two")
            far.close()
            await eventually(lambda: "eof" in protocol.told, "the end")
            await turns(5)
            assert protocol.told == ["made", b"one", b"two", "eof"]

    run(check())


def test_an_end_that_the_protocol_does_not_outlive_closes(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.pair(keeps_open=False)
            far.shutdown(socket.SHUT_WR)
            await eventually(lambda: protocol.told == ["made", "eof", "lost"], "the loss")
            assert far.recv(1) == b""
            far.close()

    run(check())


def test_nothing_is_read_while_reading_is_paused(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.pair()
            protocol.transport.pause_reading()
            protocol.transport.pause_reading()
            far.send(b"later")
            await turns(5)
            assert protocol.told == ["made"]

            protocol.transport.resume_reading()

            await eventually(lambda: protocol.data == b"later", "what waited")
            far.close()

    run(check())


def test_a_reset_is_told_as_the_loss_with_its_error(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.tcp()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            far.close()
            await eventually(lambda: len(protocol.told) > 1, "the loss")
            assert protocol.told == ["made", "lost: ConnectionResetError"]

    run(check())


# --- the transport: writing


def test_writes_arrive_in_order_and_each_mark_is_told_once(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.pair(narrow=True)
            protocol.transport.set_write_buffer_limits(16 * 1024, 4 * 1024)
            said = b"".join(b"%08d" % number for number in range(16 * 1024))
            for at in range(0, len(said), 1024):
                protocol.transport.write(said[at : at + 1024])
            assert protocol.told == ["made", "pause"]
            assert protocol.transport.get_write_buffer_size() > 16 * 1024

            assert await drained(far, len(said)) == said

            assert protocol.told == ["made", "pause", "resume"]
            assert protocol.transport.get_write_buffer_size() == 0
            far.close()

    run(check())


def test_a_mark_of_0_pauses_until_the_last_byte_has_left(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.pair(narrow=True)
            protocol.transport.set_write_buffer_limits(high=0)
            protocol.transport.write(b"a")
            assert protocol.told == ["made"]
            protocol.transport.set_write_buffer_limits(high=1 << 20)
            protocol.transport.write(b"b" * 65536)
            assert protocol.told == ["made"]

            protocol.transport.set_write_buffer_limits(high=0)

            assert protocol.told == ["made", "pause"]
            await drained(far, 65537)
            await eventually(lambda: protocol.told == ["made", "pause", "resume"], "room")
            assert protocol.transport.get_write_buffer_size() == 0
            far.close()

    run(check())


def test_close_sends_what_waits_and_drops_what_is_written_afterwards(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.pair(narrow=True)
            protocol.transport.write(b"x" * 65536)
            protocol.transport.close()
            protocol.transport.close()
            protocol.transport.write(b"too late")
            assert protocol.transport.is_closing()
            await turns(3)
            assert protocol.told == ["made"]

            assert await drained(far, 1 << 20) == b"x" * 65536

            await eventually(lambda: protocol.told == ["made", "lost"], "the loss")
            far.close()

    run(check())


def test_close_over_unread_input_does_not_reset_the_peer(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.pair()
            protocol.transport.pause_reading()
            far.send(b"nobody reads this")
            protocol.transport.write(b"bye")
            protocol.transport.close()
            assert await drained(far, 1 << 20) == b"bye"
            assert "lost" in protocol.told
            far.close()

    run(check())


def test_abort_drops_what_waits_and_tells_the_loss_in_a_call_of_its_own(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.pair(narrow=True)
            protocol.transport.write(b"x" * 65536)
            protocol.transport.abort()
            protocol.transport.abort()
            assert protocol.told == ["made"]
            await turns(2)
            assert protocol.told == ["made", "lost"]
            assert len(await drained(far, 1 << 20)) < 65536
            far.close()

    run(check())


def test_write_eof_stands_behind_what_waits_and_reading_goes_on(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.pair(narrow=True)
            protocol.transport.write(b"x" * 65536)
            protocol.transport.write_eof()
            with pytest.raises(RuntimeError):
                protocol.transport.write(b"behind the end")
            assert await drained(far, 1 << 20) == b"x" * 65536
            far.send(b"go on")
            await eventually(lambda: protocol.data == b"go on", "what the peer says")
            assert protocol.events == ["made"]
            far.close()

    run(check())


def test_a_peer_that_is_gone_is_told_as_the_loss_at_the_next_write(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.pair()
            protocol.transport.pause_reading()
            far.close()
            protocol.transport.write(b"x")
            protocol.transport.write(b"y")
            await eventually(lambda: len(protocol.told) > 1, "the loss")
            assert protocol.told == ["made", "lost: BrokenPipeError"]

    run(check())


def test_write_eof_to_a_peer_that_has_reset_raises(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.tcp()
            protocol.transport.pause_reading()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            far.close()
            await asyncio.sleep(0)
            with pytest.raises(OSError, match="not connected"):
                protocol.transport.write_eof()

    run(check())


def test_what_has_come_is_read_at_once_when_asked_for_and_nothing_is_no_news(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.pair()
            protocol.transport.read_at_once()
            far.send(b"early")
            protocol.transport.read_at_once()
            assert protocol.told == ["made", b"early"]
            far.close()
            protocol.transport.read_at_once()
            assert protocol.events == ["made"], "the end is told by the loop's next turn, and once"
            await eventually(lambda: protocol.events == ["made", "eof"], "the end")

    run(check())


def test_a_fault_in_what_was_read_at_once_is_told_to_the_loop_and_ends_that_connection(run: Run):
    async def check() -> None:
        def fail(_: bytes) -> None:
            raise ZeroDivisionError

        async with Bench() as bench:
            protocol, far = bench.pair(on_data=fail)
            far.send(b"x")
            protocol.transport.read_at_once()
            await eventually(lambda: protocol.events == ["made", "lost"], "the end")
            (fault,) = bench.faults
            assert isinstance(fault["exception"], ZeroDivisionError)
            far.close()

    run(check())


def test_a_transport_knows_its_socket(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.pair()
            assert protocol.transport.get_extra_info("socket").fileno() == protocol.transport.fileno()
            assert protocol.transport.get_extra_info("cipher", "none") == "none"
            far.close()

    run(check())
