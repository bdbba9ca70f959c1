"""Programs that another process runs: what a worker asks, what it makes of the answers, and of none."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import Run, open_descriptors
from tests.wire.sockets import DEADLINE_S, eventually, turns
from wstunnel.errors import BackendError, LimitError
from wstunnel.server.messages import Exited, Fork, Forked, Message, Quiet, Release, Unforked
from wstunnel.server.remote import RemoteFork, RemoteForker
from wstunnel.supervise.child import ExitStatus

GONE = 2**22 + 1
"""No process has such a pid."""


class Master:
    """Hears what the worker says, and answers when the test wants it."""

    def __init__(self, answer_s: float = DEADLINE_S, exit_wait_s: float = DEADLINE_S) -> None:
        self.heard: list[Message] = []
        self.streams: list[socket.socket] = []
        self.error: Exception | None = None
        self.forker = RemoteForker(self._hear, answer_s=answer_s, exit_wait_s=exit_wait_s)

    def _hear(self, message: Message, sockets: tuple[socket.socket, ...] = ()) -> None:
        self.heard.append(message)
        self.streams += sockets
        for each in sockets:
            each.close()
        if self.error is not None:
            raise self.error

    async def asked(self) -> asyncio.Task[RemoteFork]:
        """Somebody wants a program, and the master has been asked for it."""
        before = len(self.heard)
        task = asyncio.create_task(self.forker.fork(3, {"A": "b"}, STREAM))
        await eventually(lambda: len(self.heard) > before, "the master is asked")
        return task

    async def forked(self, pid: int = GONE) -> RemoteFork:
        task = await self.asked()
        asked = self.heard[-1]
        assert isinstance(asked, Fork)
        self.forker.told(Forked(asked.request, pid))
        return await task


STREAM: socket.socket


@pytest.fixture(autouse=True)
def _a_stream_and_no_descriptor_is_left(_warm_loops: None) -> Iterator[None]:
    global STREAM
    before = open_descriptors().keys()
    STREAM, other = socket.socketpair()
    yield
    STREAM.close()
    other.close()
    assert open_descriptors().keys() == before


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def test_the_master_is_asked_with_the_route_the_variables_and_a_stream(run: Run):
    async def story() -> None:
        master = Master()
        fork = await master.forked(4711)
        assert master.heard == [Fork(1, 3, {"A": "b"})]
        assert fork.pid == 4711
        (stream,) = master.streams
        assert stream is not STREAM
        assert STREAM.fileno() != -1
        second = await master.forked(4712)
        assert master.heard[1] == Fork(2, 3, {"A": "b"})
        assert second.pid == 4712

    run(story())


def test_a_script_is_asked_for_by_its_path(run: Run):
    async def story() -> None:
        master = Master()
        task = asyncio.create_task(master.forker.fork(3, {}, STREAM, "sub/a.pl"))
        await eventually(lambda: master.heard, "the master is asked")
        assert master.heard == [Fork(1, 3, {}, "sub/a.pl")]
        master.forker.told(Forked(1, GONE))
        fork = await task
        assert fork.last_words == ""
        master.forker.told(Exited(1, 2, "died"))
        assert (await fork.exit_status(), fork.last_words) == (ExitStatus(code=2), "died")

    run(story())


def test_a_refusal_says_why_and_what_the_client_is_told(run: Run):
    async def story() -> None:
        master = Master()
        task = await master.asked()
        master.forker.told(Unforked(1, 502, "cat is gone"))
        with pytest.raises(BackendError, match="cat is gone") as caught:
            await task
        assert caught.value.status == 502

    run(story())


def test_a_master_that_does_not_answer_is_not_waited_for_for_ever(run: Run):
    async def story() -> None:
        master = Master(answer_s=0.01)
        with pytest.raises(BackendError, match=r"the master has not started a program within 0\.01 s") as caught:
            await master.forker.fork(3, {}, STREAM)
        assert caught.value.status == 504
        master.forker.told(Forked(1, GONE))  # after all
        assert master.heard[1:] == [Release(1)]
        master.forker.told(Unforked(1, 503, "or not"))

    run(story())


def test_a_master_that_is_gone_ends_every_waiting_and_is_asked_no_more(run: Run):
    async def story() -> None:
        master = Master()
        tasks = [await master.asked(), await master.asked()]
        master.forker.lost()
        for task in tasks:
            with pytest.raises(BackendError, match="the master, who starts programs, is gone"):
                await task
        with pytest.raises(BackendError, match="is gone"):
            await master.forker.fork(3, {}, STREAM)
        assert len(master.heard) == 2

    run(story())


def test_without_a_descriptor_for_the_stream_there_is_no_program(run: Run):
    async def story() -> None:
        master = Master()
        closed = socket.socket()
        closed.close()
        with pytest.raises(BackendError, match="no descriptor for the stream of a program: Bad file descriptor"):
            await master.forker.fork(3, {}, closed)
        assert master.heard == []

    run(story())


def test_what_is_too_long_for_a_message_is_the_clients_fault(run: Run):
    async def story() -> None:
        master = Master()
        master.error = LimitError("message_bytes", 1, 2, close_code=1009, status=431)
        with pytest.raises(LimitError):
            await master.forker.fork(3, {}, STREAM)
        master.error = None
        master.forker.told(Forked(1, GONE))  # nobody waits for it
        assert master.heard[-1] == Release(1)

    run(story())


def test_a_client_that_leaves_while_the_master_forks_costs_a_program_that_is_ended_at_once(run: Run):
    async def story() -> None:
        master = Master()
        task = await master.asked()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(master.heard) == 1
        master.forker.told(Forked(1, GONE))
        assert master.heard[1:] == [Release(1)]
        master.forker.told(Exited(1, 0))

    run(story())


@pytest.mark.parametrize("answer", [Forked(1, GONE), Unforked(1, 503, "no")])
def test_an_answer_in_the_moment_in_which_the_client_leaves_leaves_nothing_behind(run: Run, answer):
    async def story() -> None:
        master = Master()
        task = await master.asked()
        master.forker.told(answer)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert master.heard[1:] == ([Release(1)] if isinstance(answer, Forked) else [])

    run(story())


def test_a_program_is_released_once(run: Run):
    async def story() -> None:
        master = Master()
        fork = await master.forked()
        fork.release()
        fork.release()
        assert master.heard[1:] == [Release(1)]

    run(story())


@pytest.mark.parametrize(
    ("word", "status"), [(0, ExitStatus(code=0)), (7, ExitStatus(code=7)), (-9, ExitStatus(signal=9))]
)
def test_how_a_program_ended_is_what_the_master_says(run: Run, word, status):
    async def story() -> None:
        master = Master()
        fork = await master.forked()
        asking = asyncio.create_task(fork.exit_status())
        await turns(3)
        assert not asking.done()
        master.forker.told(Exited(1, word))
        assert await asking == status
        assert fork.is_exiting()
        master.forker.told(Exited(1, 99))  # whatever it says later
        assert await fork.exit_status() == status

    run(story())


def test_a_program_that_lives_has_not_ended(run: Run, sleeper):
    async def story() -> None:
        master = Master()
        fork = await master.forked(sleeper.pid)
        assert not fork.is_exiting()
        assert await fork.exit_status() is None
        sleeper.send_signal(signal.SIGKILL)
        await eventually(fork.is_exiting, "it is seen to have ended, though nobody has reaped it")
        sleeper.wait()
        assert fork.is_exiting()

    run(story())


def test_a_master_that_cannot_tell_how_it_ended_has_told_nothing(run: Run):
    async def story() -> None:
        master = Master()
        fork = await master.forked()
        master.forker.told(Exited(1, None))
        assert await fork.exit_status() is None

    run(story())


def test_a_master_that_does_not_tell_how_it_ended_is_waited_for_no_longer_than_that(run: Run):
    async def story() -> None:
        master = Master(exit_wait_s=0.01)
        fork = await master.forked()
        assert await fork.exit_status() is None

    run(story())


def test_what_is_said_of_programs_that_nobody_has_is_ignored(run: Run):
    async def story() -> None:
        master = Master()
        fork = await master.forked()
        fork.release()
        for message in (Exited(1, 0), Exited(77, 0), Unforked(77, 503, "no"), Quiet()):
            master.forker.told(message)
        assert master.heard[1:] == [Release(1)]

    run(story())
