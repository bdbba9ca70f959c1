"""Packets between two processes, played by both ends of a socket pair: order, bounds, descriptors, endings."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Run, open_descriptors
from tests.wire.sockets import eventually, turns
from wstunnel.errors import LimitError
from wstunnel.limits import MasterLimits
from wstunnel.server.channel import Channel
from wstunnel.server.messages import Death, Fork, Message, Quiet, Ready, encode

LIMITS = MasterLimits(max_queued_messages=8)


@pytest.fixture(autouse=True)
def _no_descriptor_is_left(_warm_loops: None) -> Iterator[None]:
    before = open_descriptors().keys()
    yield
    assert open_descriptors().keys() == before


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class End:
    """One end, and what it has heard."""

    def __init__(self, sock: socket.socket, limits: MasterLimits = LIMITS) -> None:
        self.heard: list[Message] = []
        self.fds: list[int] = []
        self.closings = 0
        self.channel = Channel(sock, limits, on_message=self._hear, on_closed=self._closed)

    def _hear(self, message: Message, fds: list[int]) -> None:
        self.heard.append(message)
        self.fds += fds

    def _closed(self) -> None:
        self.closings += 1

    async def hears(self, *messages: Message) -> None:
        await eventually(lambda: len(self.heard) >= len(messages), f"{messages} are heard")
        assert self.heard == list(messages)

    def close(self) -> None:
        self.channel.close()
        for fd in self.fds:
            os.close(fd)


def conversation(limits: MasterLimits = LIMITS) -> contextlib.ExitStack[Any]:
    """Use as: with conversation() as ends: one, two = ends.both"""
    stack: Any = contextlib.ExitStack()
    one, two = (End(sock, limits) for sock in pair())
    stack.callback(one.close)
    stack.callback(two.close)
    stack.both = one, two
    return stack


def test_messages_go_both_ways_in_their_order(run: Run):
    async def story() -> None:
        with conversation() as ends:
            one, two = ends.both
            one.channel.send(Death(1))
            one.channel.send(Death(2))
            two.channel.send(Ready())
            await two.hears(Death(1), Death(2))
            await one.hears(Ready())
            assert one.closings == two.closings == 0

    run(story())


def test_a_descriptor_goes_with_its_message_and_is_closed_here_at_once(run: Run):
    async def story() -> None:
        with conversation() as ends:
            one, two = ends.both
            ours, theirs = socket.socketpair()
            with ours:
                one.channel.send(Fork(1, 0, {}), (theirs,))
                assert theirs.fileno() == -1
                one.channel.send(Quiet())
                await two.hears(Fork(1, 0, {}), Quiet())
                (fd,) = two.fds
                assert not os.get_inheritable(fd)
                os.write(fd, b"hello")
                assert ours.recv(5) == b"hello"

    run(story())


def fill(end: End) -> int:
    """Send until one message has to wait; how many were sent."""
    fds = range(1000)
    for count in fds:
        end.channel.send(Death(count))
        if end.channel._waiting:
            return count + 1
    raise AssertionError("the kernel takes everything")


def test_messages_wait_for_a_slow_reader_in_their_order(run: Run):
    async def story() -> None:
        ours, theirs = pair()
        one = End(ours)
        sent = fill(one)
        one.channel.send(Quiet())
        two = End(theirs)
        await two.hears(*map(Death, range(sent)), Quiet())
        assert one.closings == 0
        one.close()
        two.close()

    run(story())


def test_descriptors_that_wait_with_their_message_arrive_with_it(run: Run):
    async def story() -> None:
        ours, theirs = pair()
        one = End(ours)
        sent = fill(one)
        kept, given = socket.socketpair()
        with kept:
            one.channel.send(Fork(1, 0, {}), (given,))
            assert given.fileno() != -1
            two = End(theirs)
            await two.hears(*map(Death, range(sent)), Fork(1, 0, {}))
            assert given.fileno() == -1
            os.write(two.fds[0], b"x")
            assert kept.recv(1) == b"x"
        one.close()
        two.close()

    run(story())


def test_one_who_does_not_read_is_given_up_and_what_waits_for_him_is_closed(run: Run, caplog):
    async def story() -> None:
        ours, theirs = pair()
        one = End(ours)
        fill(one)
        kept, given = socket.socketpair()
        one.channel.send(Fork(1, 0, {}), (given,))
        for _ in range(LIMITS.max_queued_messages - 2):
            one.channel.send(Quiet())
        assert one.closings == 0
        last_kept, last = socket.socketpair()
        one.channel.send(Fork(2, 0, {}), (last,))
        assert one.closings == 1
        assert given.fileno() == last.fileno() == -1
        assert caplog.messages == ["a process has left 8 messages unread and is given up"]
        one.channel.send(Quiet())  # into the void
        one.close()
        assert one.closings == 1
        for each in (theirs, kept, last_kept):
            each.close()

    run(story())


def test_the_end_of_the_other_side_is_told_once_and_after_what_it_has_said(run: Run):
    async def story() -> None:
        ours, theirs = pair()
        two = End(theirs)
        two.channel.send(Ready())
        two.close()
        one = End(ours)
        await eventually(lambda: one.closings == 1, "the end is told")
        assert one.heard == [Ready()]
        await turns(3)
        assert one.closings == 1
        ours_end, given = socket.socketpair()
        with ours_end:
            one.channel.send(Fork(1, 0, {}), (given,))
            assert given.fileno() == -1
        one.close()

    run(story())


def test_the_end_of_a_side_that_has_not_read_everything_is_an_end_too(run: Run):
    async def story() -> None:
        ours, theirs = pair()
        one = End(ours)
        one.channel.send(Quiet())
        theirs.close()  # unread: a reset
        one.channel.send(Quiet())
        await eventually(lambda: one.closings == 1, "the end is told")
        one.close()

    run(story())


def test_closing_it_is_no_end_to_be_told(run: Run):
    async def story() -> None:
        with conversation() as ends:
            one, two = ends.both
            two.channel.send(Ready())
            one.channel.close()
            one.channel.close()
            await eventually(lambda: two.closings == 1, "the other side sees it")
            assert (one.closings, one.heard) == (0, [])

    run(story())


def test_a_reader_may_close_it_in_the_middle_of_what_is_there(run: Run):
    async def story() -> None:
        ours, theirs = pair()
        heard: list[Message] = []

        def hear(message: Message, _fds: list[int]) -> None:
            heard.append(message)
            channel.close()

        channel = Channel(ours, LIMITS, on_message=hear, on_closed=lambda: heard.append(Quiet()))
        with contextlib.closing(End(theirs)) as two:
            two.channel.send(Ready())
            two.channel.send(Ready())
            await eventually(lambda: two.closings == 1, "it is closed")
        assert heard == [Ready()]

    run(story())


@pytest.mark.parametrize("packet", [b"\0", b"ready", b'{"is": "death"}', b'{"is": "dance"}'])
def test_what_is_no_message_is_left_out_and_its_descriptors_closed(run: Run, packet, caplog):
    async def story() -> None:
        ours, theirs = pair()
        one = End(ours)
        with theirs, open(os.devnull, "rb") as file:  # noqa: ASYNC230
            socket.send_fds(theirs, [packet], [file.fileno()])
            theirs.send(b'{"is": "ready"}')
            await one.hears(Ready())
        one.close()
        assert one.fds == []

    run(story())
    warned = [record.getMessage() for record in caplog.records]
    if b"dance" in packet:  # of a later version
        assert warned == []
    else:
        (line,) = warned
        assert line.startswith(f"a message of {len(packet)} bytes cannot be read (")


def test_a_message_that_would_not_be_read_whole_is_an_error_and_its_sockets_are_closed(run: Run):
    limits = dataclasses.replace(LIMITS, message_bytes=1000)

    async def story() -> None:
        with conversation(limits) as ends:
            one, two = ends.both
            ours, theirs = socket.socketpair()
            with (
                ours,
                pytest.raises(LimitError, match=r"message_bytes: 10[0-9]{2} is over the limit of 1000") as caught,
            ):
                one.channel.send(Fork(1, 0, {"A": "x" * 1000}), (theirs,))
            assert caught.value.status == 431
            assert theirs.fileno() == -1
            one.channel.send(Quiet())
            await two.hears(Quiet())

    run(story())


def test_a_message_that_the_kernel_does_not_take_is_lost_with_a_line_and_nothing_else(run: Run, caplog):
    async def story() -> None:
        with conversation() as ends:
            one, two = ends.both
            one.channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            ours, theirs = socket.socketpair()
            with ours:
                one.channel.send(Fork(1, 0, {"A": "x" * 100_000}), (theirs,))
                assert theirs.fileno() == -1
            one.channel.send(Quiet())
            await two.hears(Quiet())
            assert one.closings == 0

    run(story())
    (line,) = caplog.messages
    assert line.startswith("a message of 100")
    assert line.endswith("bytes to another process is lost: Message too long")


def test_the_longest_message_is_read_whole(run: Run):
    async def story() -> None:
        with conversation(MasterLimits()) as ends:
            one, two = ends.both
            room = MasterLimits().message_bytes - len(encode(Fork(1, 0, {"A": ""})))
            long = Fork(1, 0, {"A": "x" * room})
            one.channel.send(long)
            await two.hears(long)

    run(story())


def test_without_a_descriptor_left_the_message_comes_without_it(run: Run):
    async def story() -> None:
        ours, theirs = pair()
        kept, given = socket.socketpair()
        with theirs, kept:
            one = End(ours)
            with given:
                socket.send_fds(
                    theirs, [b'{"is": "fork", "request": 1, "index": 0, "environment": {}}'], [given.fileno()]
                )
            with no_descriptor_left():
                await one.hears(Fork(1, 0, {}))
            assert one.fds == []
            assert kept.recv(1) == b""  # nobody has the other end
            one.close()

    run(story())


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_flood_of_messages_leaves_turns_to_others(run: Run):
    async def story() -> None:
        ours, theirs = pair()
        two = End(theirs, dataclasses.replace(LIMITS, max_queued_messages=1000))
        for row in range(100):
            two.channel.send(Death(row))
        one = End(ours)
        seen: list[int] = []
        loop = asyncio.get_running_loop()

        def look() -> None:
            seen.append(len(one.heard))
            if len(one.heard) < 100:
                loop.call_soon(look)

        look()
        await eventually(lambda: len(one.heard) == 100, "all are heard")
        assert any(0 < each < 100 for each in seen)
        one.close()
        two.close()

    run(story())
