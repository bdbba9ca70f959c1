"""A connection to a backend by `await`: back-pressure, what is still read of one that broke, and the clocks."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable
from typing import Any

import pytest

from tests.conftest import Run, open_descriptors
from tests.wire.sockets import Wire, eventually, turns
from wstunnel._hub import Hub
from wstunnel.net.stream import BackendStream
from wstunnel.net.wheel import TimerWheel

READ_BYTES = 4096


class Bench:
    """`async with Bench() as bench`: a hub whose clock the test turns. On leaving it every descriptor is back."""

    async def __aenter__(self) -> Bench:
        self._fds = _descriptors()
        self.loop = asyncio.get_running_loop()
        self.wheel = TimerWheel(0.1, self.loop.time())
        self.hub = Hub(
            self.loop, self.wheel, read_bytes=READ_BYTES, bulk_bytes=READ_BYTES, turn_bytes=4 * READ_BYTES, look_s=0.5
        )
        self._streams: list[BackendStream] = []
        self._sockets: list[socket.socket] = []
        return self

    def unix(self, **timeouts: float) -> tuple[BackendStream, Wire]:
        return self._made(*socket.socketpair(), timeouts)

    def tcp(self, **timeouts: float) -> tuple[BackendStream, Wire]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
        return self._made(near, far, timeouts)

    def _made(self, near: socket.socket, far: socket.socket, timeouts: dict[str, float]) -> tuple[BackendStream, Wire]:
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, READ_BYTES)
        self._sockets.append(far)
        self._streams.append(BackendStream(self.hub, near.detach(), **timeouts))
        return self._streams[-1], Wire(far)

    def at(self, later_s: float) -> None:
        """Turn the clock."""
        self.wheel.advance(self.loop.time() + later_s)

    async def __aexit__(self, *_: object) -> None:
        for stream in self._streams:
            stream.abort()
        for sock in self._sockets:
            sock.close()
        await turns(3)
        assert len(self.wheel) == 1, "who is gone is asked no more"
        self.hub.close()
        await eventually(lambda: _descriptors() == self._fds, "every descriptor closed")


def _descriptors() -> dict[int, str]:
    return {fd: name for fd, name in open_descriptors().items() if name != "/dev/null"}


async def begun(awaited: Awaitable[Any]) -> asyncio.Future[Any]:
    """What is awaited, once it waits."""
    task = asyncio.ensure_future(awaited)
    await turns(3)
    return task


def reset(wire: Wire) -> None:
    """Close with RST instead of FIN."""
    wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.sock.close()


# --- reading


@pytest.mark.parametrize("is_waiting", [False, True])
def test_what_comes_is_read_whether_somebody_waits_or_not(run: Run, is_waiting):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix()
            if is_waiting:
                reading = await begun(stream.read())
                await far.send(b"abc")
                assert await reading == b"abc"
            else:
                await far.send(b"abc")
                await eventually(lambda: stream._pending, "some bytes")
                assert await stream.read() == b"abc"
            await far.send(b"def")
            assert await stream.read() == b"def"

    run(check())


def test_no_more_than_one_read_is_held_while_nobody_takes_it(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix()
            sent = os.urandom(3 * READ_BYTES)
            await far.send(sent)
            await eventually(lambda: stream._pending, "some bytes")
            await turns(10)
            assert len(stream._pending) == READ_BYTES

            got = b""
            while len(got) < len(sent):
                got += await stream.read()
                assert len(stream._pending) <= READ_BYTES
            assert got == sent

    run(check())


@pytest.mark.parametrize("is_waiting", [False, True])
def test_the_end_comes_behind_the_last_byte_and_again_whenever_asked(run: Run, is_waiting):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix()
            await far.send(b"abc")
            assert await stream.read() == b"abc"
            reading = await begun(stream.read()) if is_waiting else None
            far.sock.shutdown(socket.SHUT_WR)
            if reading is not None:
                assert await reading == b""
            assert await stream.read() == b""
            assert await stream.read() == b""

            await stream.write(b"still")
            assert await far.recv() == b"still"

    run(check())


def test_a_reader_that_is_called_off_leaves_nothing_behind(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix(read_timeout_s=5.0)
            reading = await begun(stream.read())
            reading.cancel()
            await far.send(b"abc")
            await turns(5)
            assert await stream.read() == b"abc"
            bench.at(100.0)
            await far.send(b"def")
            assert await stream.read() == b"def"

    run(check())


@pytest.mark.parametrize("is_waiting", [False, True])
def test_a_reset_is_an_error_to_readers(run: Run, is_waiting):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.tcp()
            reading = await begun(stream.read()) if is_waiting else None
            reset(far)
            if reading is None:
                await eventually(lambda: stream._error, "the reset")
                reading = asyncio.ensure_future(stream.read())
            with pytest.raises(ConnectionResetError):
                await reading
            with pytest.raises(ConnectionResetError):
                await stream.write(b"x")

    run(check())


def test_what_was_read_before_a_reset_is_still_given(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.tcp()
            await far.send(b"abc")
            await eventually(lambda: stream._pending, "some bytes")
            stream._transport.resume_reading()  # so that it hears of the reset while its bytes wait
            reset(far)
            await eventually(lambda: stream._error, "the reset")
            assert await stream.read() == b"abc"
            with pytest.raises(ConnectionResetError):
                await stream.read()

    run(check())


@pytest.mark.parametrize("is_waiting", [False, True])
def test_a_backend_that_takes_no_more_is_read_to_its_end(run: Run, is_waiting):
    """It has answered and gone while we were still sending: its answer says why."""
    words = os.urandom(5 * READ_BYTES)

    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix()
            reading = await begun(stream.read()) if is_waiting else None
            far.sock.send(words)
            far.sock.close()
            with pytest.raises(ConnectionResetError):  # before the hub has read
                await stream.write(b"x")
            assert not stream._is_at_eof
            found = await (reading or stream.read())
            with pytest.raises(BrokenPipeError):
                await stream.write(b"x")
            while piece := await stream.read():
                found += piece
            assert found == words
            assert not stream.is_silent()

    run(check())


def test_no_more_than_one_read_is_held_of_a_backend_that_takes_no_more(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix()
            far.sock.send(bytes(5 * READ_BYTES))
            far.sock.close()
            await eventually(lambda: bool(stream._pending), "a read that waits")
            with pytest.raises(ConnectionResetError):
                await stream.write(b"x")
            await turns(10)
            assert len(stream._pending) == READ_BYTES

    run(check())


def test_a_backend_that_takes_no_more_may_be_left(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix()
            far.sock.close()
            with pytest.raises(ConnectionResetError):
                await stream.write(b"x")
            stream.abort()
            with pytest.raises(OSError):
                await stream.read()

    run(check())


# --- writing


def test_a_writer_waits_until_the_kernel_has_all_of_it(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix()
            sent = os.urandom(8 * READ_BYTES)
            writing = await begun(stream.write(sent))
            assert not writing.done()
            assert await far.recv_exactly(len(sent)) == sent
            await writing
            stream.write_eof()
            assert await far.recv() == b""

    run(check())


@pytest.mark.parametrize("end", ["reset", "abort"])
def test_a_writer_that_waits_hears_of_the_end(run: Run, end):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.tcp()
            reading = await begun(stream.read())
            writing = await begun(stream.write(bytes(1 << 24)))
            assert not writing.done()
            if end == "reset":
                reset(far)
            else:
                stream.abort()
            for waiting in (writing, reading):
                with pytest.raises(ConnectionResetError if end == "reset" else ConnectionAbortedError):
                    await waiting

    run(check())


def test_both_directions_wait_for_themselves_alone(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix()
            sent = bytes(64 * READ_BYTES)
            writing = await begun(stream.write(sent))
            await far.send(b"abc")
            assert await stream.read() == b"abc"
            assert not writing.done()
            await far.recv_exactly(len(sent))
            await writing

    run(check())


# --- clocks


def test_silence_for_read_timeout_ends_the_connection(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix(read_timeout_s=5.0)
            bench.at(0.0)
            reading = await begun(stream.read())
            bench.at(4.5)
            await far.send(b"a")
            assert await reading == b"a"

            reading = await begun(stream.read())
            bench.at(4.5)
            await turns(3)
            assert not reading.done()
            bench.at(6.0)
            with pytest.raises(TimeoutError):
                await reading
            await far.gone()

    run(check())


def test_silence_counts_only_while_somebody_reads(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix(read_timeout_s=5.0)
            bench.at(100.0)
            await far.send(b"a")
            assert await stream.read() == b"a"
            bench.at(200.0)
            await far.send(b"b")
            assert await stream.read() == b"b"

    run(check())


def test_silence_does_not_count_while_the_clock_is_held(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix(read_timeout_s=5.0)
            stream.hold_clock()
            reading = await begun(stream.read())
            bench.at(100.0)
            await turns(3)
            assert not reading.done()
            stream.start_clock()
            bench.at(106.0)
            with pytest.raises(TimeoutError):
                await reading
            await far.gone()

    run(check())


def test_a_clock_that_is_held_later_stops(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix(read_timeout_s=5.0)
            reading = await begun(stream.read())
            stream.hold_clock()
            bench.at(100.0)
            await far.send(b"a")
            assert await reading == b"a"

    run(check())


def test_a_backend_that_takes_nothing_for_write_timeout_is_given_up_and_one_that_moves_is_not(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix(write_timeout_s=5.0)
            writing = await begun(stream.write(bytes(1 << 20)))
            waiting = stream._transport.get_write_buffer_size()
            await far.recv()
            await eventually(lambda: stream._transport.get_write_buffer_size() < waiting, "some bytes taken")
            bench.at(6.0)
            await turns(3)
            assert not writing.done()
            bench.at(20.0)
            with pytest.raises(TimeoutError):
                await writing

    run(check())


def test_a_connection_that_has_nothing_to_write_has_no_write_timeout(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix(write_timeout_s=5.0)
            for _ in range(2):
                sent = bytes(64 * READ_BYTES)
                writing = await begun(stream.write(sent))
                await far.recv_exactly(len(sent))
                await writing
                bench.at(100.0)
            await stream.write(b"x")

    run(check())


# --- another request, or a pipe


def test_a_silent_connection_may_carry_another_request(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, _far = bench.unix()
            assert stream.is_silent()
            assert stream.is_silent()

    run(check())


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("event", ["byte", "eof", "reset", "abort"])
def test_a_connection_that_said_or_ended_something_may_not(run: Run, event, is_known):
    """Neither when the hub has seen it nor when it is still in the kernel."""

    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.tcp()
            if event == "byte":
                far.sock.send(b"x")
            elif event == "eof":
                far.sock.shutdown(socket.SHUT_WR)
            elif event == "reset":
                reset(far)
            else:
                stream.abort()
            if is_known:
                await turns(10)
            assert not stream.is_silent()

    run(check())


def test_what_is_released_gives_all_that_came_and_goes_on_with_its_taker(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix(read_timeout_s=5.0)
            await far.send(b"abc")
            await eventually(lambda: stream._pending, "some bytes")

            taken = stream.release()

            assert (taken.leftover, taken.is_at_eof) == (b"abc", False)
            await far.send(b"more")
            await turns(5)
            assert stream._pending == b""
            assert len(bench.wheel) == 1
            assert taken.transport is stream._transport

    run(check())


def test_what_is_released_knows_of_its_end(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            stream, far = bench.unix()
            far.sock.shutdown(socket.SHUT_WR)
            await eventually(lambda: stream._is_at_eof, "the end")
            assert stream.release().is_at_eof

    run(check())


def test_a_descriptor_that_cannot_be_watched_is_still_the_callers(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            fd = os.open(os.devnull, os.O_RDONLY)
            with pytest.raises(OSError):
                BackendStream(bench.hub, fd, read_timeout_s=1.0)
            os.close(fd)

    run(check())
