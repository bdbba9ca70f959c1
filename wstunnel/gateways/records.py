"""The records of one FastCGI request: read as what a program says, and, once it is a pipe, kept from everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from wstunnel._hub import Hub
from wstunnel.errors import BackendError
from wstunnel.gateways.answer import beside
from wstunnel.gateways.application import upgraded_of
from wstunnel.gateways.claim import Claim
from wstunnel.limits import Limits
from wstunnel.net.stream import BackendStream
from wstunnel.proto.fastcgi import End, RecordReader, Stderr, Stdout, abort, stdin
from wstunnel.proto.request import Headers
from wstunnel.supervise.child import ExitStatus
from wstunnel.supervise.stderr import LineCutter, printable

__all__ = ["REQUEST_ID", "RecordPipe", "Responder"]

REQUEST_ID = 1
"""The only request of its connection."""

_log = logging.getLogger("wstunnel.backend")


class Responder:
    """What a backend says to the request on `stream`: its stdout to whoever reads, its stderr to the log.

    in      name  of the backend in the log
    bound   one read, and one line of stderr
    """

    __slots__ = ("_cutter", "_limits", "_name", "_reader", "stream")

    def __init__(self, stream: BackendStream, name: str, limits: Limits) -> None:
        self.stream, self._name, self._limits = stream, name, limits.gateway
        self._reader = RecordReader(limits.gateway, REQUEST_ID)
        self._cutter = LineCutter(limits.spawn.log_line_bytes)

    async def read(self) -> bytes:
        """The next bytes of its stdout, one read at most; none when it has ended the request.

        raises  BackendError when it refuses the request, or says what is no FastCGI; OSError as `BackendStream.read`,
                and when the connection ends before the request does
        """
        while not self._reader.is_complete:
            data = await self.stream.read()
            if not data:
                raise ConnectionAbortedError("the connection ended without END_REQUEST")
            said = []
            for event in self._reader.feed(data):
                match event:
                    case Stdout(piece):
                        said.append(piece)
                    case Stderr(piece):
                        self._note(self._cutter.feed(piece))
                    case End(app_status) if app_status:
                        _log.info("%s: ended a request with status %d", self._name, app_status)
            if said:
                return b"".join(said)
        return b""

    async def hear_end(self) -> None:
        """Wait `end_wait_s` at most for a backend that has said all of its answer to end the request: a program that is
        not heard to its end is one that cannot do what it does behind its answer."""
        with contextlib.suppress(OSError, BackendError):
            async with asyncio.timeout(self._limits.end_wait_s):
                while await self.read():
                    pass

    async def abandon(self) -> None:
        """Nobody wants the rest of the answer: tell the backend, if it is there, and wait as `hear_end` does."""
        with contextlib.suppress(OSError, BackendError):
            async with asyncio.timeout(self._limits.end_wait_s):
                await self.stream.write(abort(REQUEST_ID))
                while await self.read():
                    pass

    def close(self) -> None:
        """End the connection."""
        self._note([self._cutter.take()])
        self.stream.abort()

    def _note(self, lines: list[bytes]) -> None:
        for line in lines:
            if line:
                _log.info("%s: %s", self._name, printable(line))


class RecordPipe:
    """A backend that has answered a handshake with 101, as a socket from which its bytes come without records.

    Whoever joins clients to backends need not know of FastCGI then: `upgraded` has one end of a socket pair, at
    whose other end records are written and read. This costs a copy by way of the kernel and two descriptors more. The
    client's EOF ends the stdin of the backend; when the backend ends the request, or breaks, the client gets its EOF.
    Releasing its claim tells the backend to abort, if it has not ended by then.

    in      following  what has come behind the 101
            on_ended   called when everything is given back
    raises  BackendError when there is no descriptor left
    bound   one read in each direction, beside the kernel's; `end_wait_s` after the release
    """

    def __init__(
        self,
        hub: Hub,
        responder: Responder,
        lease: Claim,
        headers: Headers,
        following: bytes,
        *,
        on_ended: Callable[[RecordPipe], None],
    ) -> None:
        self._responder, self._lease, self._on_ended = responder, lease, on_ended
        self._is_released = self._is_cut = False
        self._inner, outer = _stream_pair(hub, lease)
        self.upgraded = upgraded_of(outer, _PipeClaim(lease, self._release), headers, following)
        self._task = hub.loop.create_task(self._run())
        self._task.add_done_callback(self._ended)

    def cut(self) -> None:
        """Give everything back now."""
        self._is_cut = True
        self._task.cancel()

    def _release(self) -> None:
        """The client is gone."""
        if not self._is_released:
            self._is_released = True
            self._task.cancel()

    async def _run(self) -> None:
        try:
            async with beside(self._pass_in()):
                await self._pass_out()
                await asyncio.Event().wait()  # what the client still says is read until it is gone
        except asyncio.CancelledError:
            if not self._is_cut:
                await self._responder.abandon()
            raise

    async def _pass_in(self) -> None:
        """From the client to stdin, whose end is the client's EOF."""
        with contextlib.suppress(OSError):
            while data := await self._inner.read():
                await self._responder.stream.offer(stdin(REQUEST_ID, data))
            await self._responder.stream.offer(stdin(REQUEST_ID, b""))

    async def _pass_out(self) -> None:
        """From stdout to the client, to the end of the request."""
        try:
            while data := await self._responder.read():
                if not await self._inner.offer(data):
                    return
        except (BackendError, OSError) as error:
            _log.warning("%s: a WebSocket broke off: %s", self._lease.name, error)
        self._responder.close()
        with contextlib.suppress(OSError):
            self._inner.write_eof()

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._inner.abort()
        self._responder.close()
        self._lease.release()
        self._on_ended(self)


def _stream_pair(hub: Hub, lease: Claim) -> tuple[BackendStream, BackendStream]:
    streams: list[BackendStream] = []
    try:
        for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK):
            with end:
                streams.append(BackendStream(hub, end.fileno()))
                end.detach()
    except OSError as error:
        for stream in streams:
            stream.abort()
        raise BackendError(f"no pipe to {lease.where}: {error.strerror}") from error
    return streams[0], streams[1]


class _PipeClaim:
    """The claim on a backend whose release ends the pipe first."""

    __slots__ = ("_end", "_lease")

    def __init__(self, lease: Claim, end: Callable[[], None]) -> None:
        self._lease, self._end = lease, end

    @property
    def name(self) -> str:
        return self._lease.name

    @property
    def where(self) -> str:
        return self._lease.where

    @property
    def host_index(self) -> int:
        return self._lease.host_index

    def is_exiting(self) -> bool:
        return self._lease.is_exiting()

    async def exit_status(self) -> ExitStatus | None:
        return await self._lease.exit_status()

    def release(self) -> None:
        self._end()
