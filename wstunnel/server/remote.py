"""Programs per tunnel or request, as a worker process sees them: the master runs them, this end asks for it."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Mapping

from wstunnel.errors import BackendError
from wstunnel.server.messages import Exited, Fork, Forked, Message, Release, Unforked
from wstunnel.supervise import procfs
from wstunnel.supervise.child import ExitStatus

__all__ = ["RemoteFork", "RemoteForker"]

_Send = Callable[..., None]

_LOST = "the master, who starts programs, is gone"


class RemoteFork:
    """A program that the master runs for one tunnel or request."""

    __slots__ = ("_exit_wait_s", "_forker", "_is_released", "_request", "_status", "last_words", "pid")

    def __init__(self, forker: RemoteForker, request: int, pid: int, *, exit_wait_s: float) -> None:
        self.pid = pid
        self._forker, self._request = forker, request
        self._exit_wait_s = exit_wait_s
        self._is_released = False
        self.last_words = ""
        """The last line of its stderr, once it has ended."""
        self._status: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()

    def is_exiting(self) -> bool:
        """Dead, or in the act of exiting. Its entry in /proc is gone when the master has reaped it."""
        return self._status.done() or procfs.is_gone_or_ending(self.pid)

    async def exit_status(self) -> ExitStatus | None:
        """How it ended; None at once if it has not, or when the master cannot tell, or not in time."""
        if not self.is_exiting():
            return None
        await asyncio.wait((self._status,), timeout=self._exit_wait_s)
        return self._status.result() if self._status.done() and self._status.result().is_known else None

    def release(self) -> None:
        """The tunnel is over; a second call does nothing."""
        if not self._is_released:
            self._is_released = True
            self._forker.release(self._request)

    def exited(self, status: ExitStatus, last_words: str) -> None:
        """The master says how it ended."""
        if not self._status.done():
            self.last_words = last_words
            self._status.set_result(status)


class RemoteForker:
    """Asks the master for programs and hears how they end.

    in      send         the channel's: a message, and the sockets that go with it
            answer_s     how long the master may take to start a program
            exit_wait_s  how long it may take to say how an exiting one has ended
    """

    def __init__(self, send: _Send, *, answer_s: float, exit_wait_s: float) -> None:
        self._send = send
        self._answer_s, self._exit_wait_s = answer_s, exit_wait_s
        self._is_lost = False
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[RemoteFork]] = {}
        self._running: dict[int, RemoteFork] = {}

    async def fork(
        self, index: int, environment: Mapping[str, str], stream: socket.socket, script: str = ""
    ) -> RemoteFork:
        """Run the program of stdio route `index`, or that script of a cgi route, with `stream` as stdin and stdout; it
        stays the caller's.

        raises  BackendError when the master cannot or may not, does not answer, or is gone; LimitError when what the
                client has said is too long to be passed on
        """
        if self._is_lost:
            raise BackendError(_LOST)
        try:
            theirs = stream.dup()
        except OSError as error:
            raise BackendError(f"no descriptor for the stream of a program: {error.strerror}") from error
        request = next(self._numbers)
        answer: asyncio.Future[RemoteFork] = asyncio.get_running_loop().create_future()
        self._asked[request] = answer
        try:
            self._send(Fork(request, index, dict(environment), script), (theirs,))
            async with asyncio.timeout(self._answer_s):
                return await answer
        except TimeoutError as error:  # if it answers after all, the program is released
            _release(answer)
            why = f"the master has not started a program within {self._answer_s:g} s"
            raise BackendError(why, status=504) from error
        except asyncio.CancelledError:
            _release(answer)
            raise
        finally:
            del self._asked[request]

    def lost(self) -> None:
        """The master is gone: nobody answers any more."""
        self._is_lost = True
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(BackendError(_LOST))

    def told(self, message: Message) -> None:
        """The master's answer to an earlier request, or how a program ended."""
        match message:
            case Forked(request, pid):
                asked = self._asked.get(request)
                if asked is None or asked.done():
                    self._send(Release(request))  # who asked has gone meanwhile
                    return
                fork = RemoteFork(self, request, pid, exit_wait_s=self._exit_wait_s)
                self._running[request] = fork
                asked.set_result(fork)
            case Unforked(request, status, why):
                asked = self._asked.get(request)
                if asked is not None and not asked.done():
                    asked.set_exception(BackendError(why, status=status))
            case Exited(request, status, last_words):
                found = self._running.get(request)
                if found is not None:
                    found.exited(ExitStatus() if status is None else ExitStatus.of_word(status), last_words)
            case _:
                pass

    def release(self, request: int) -> None:
        """The tunnel of a request is over."""
        self._running.pop(request, None)
        self._send(Release(request))


def _release(answer: asyncio.Future[RemoteFork]) -> None:
    """End a program whose start was told in the very moment in which nobody wanted it any more."""
    if answer.done() and not answer.cancelled() and answer.exception() is None:
        answer.result().release()
