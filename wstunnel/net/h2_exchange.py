"""One stream of an HTTP/2 connection as a request and its answer, or a tunnel.

It is what the server counts as one connection: a stream may take a backend's descriptors just as a connection does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Protocol

from h2.errors import ErrorCodes

from wstunnel._h2 import H2Leg
from wstunnel.errors import PeerError
from wstunnel.limits import Limits
from wstunnel.net.eager import begin
from wstunnel.net.exchange import BODILESS, TEXT, Agreement, Exchange, Taken, log_failure, log_silence, refusal_body
from wstunnel.proto.http2 import Fields, response_fields
from wstunnel.proto.request import Headers, Request

__all__ = ["H2Exchange"]

_GOOD = 2  # the first digit of a good status


class _Connection(Protocol):
    """What an exchange asks of its connection (net/h2.py)."""

    loop: asyncio.AbstractEventLoop
    limits: Limits

    def send_fields(self, leg: H2Leg, fields: Fields, *, is_last: bool = False) -> None:
        """Send a HEADERS frame, with END_STREAM if it is the last of its stream."""

    def send_answer(self, leg: H2Leg, fields: Fields, *, is_last: bool = False) -> None:
        """The same, of the answer."""

    def give_back(self, leg: H2Leg, window_bytes: int) -> None:
        """So much of a body has been taken: the client may send as much again."""

    def stream_closed(self, exchange: H2Exchange) -> None:
        """The stream is over."""


class H2Exchange:
    """An `Exchange` over one stream of an HTTP/2 connection."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_body_clock",
        "_connection",
        "_error",
        "_has_own_key",
        "_is_bodiless",
        "_is_body_whole",
        "_is_concluded",
        "_is_continue_awaited",
        "_is_started",
        "_left_bytes",
        "_reader",
        "_room_clock",
        "_task",
        "_unread_bytes",
        "_writer",
        "is_taken",
        "leg",
        "request",
    )

    leg: H2Leg

    def __init__(self, connection: _Connection, request: Request, *, has_own_key: bool, is_whole: bool) -> None:
        self._connection = connection
        self.request = request
        self._has_own_key = has_own_key
        self._is_body_whole = is_whole or request.body_bytes == 0  # the stream of a handshake goes on
        self._body = bytearray()
        self._body_bytes = 0  # that have come
        self._unread_bytes = 0  # of the window of its stream and its connection, as h2 counts it
        self._error: PeerError | None = None  # of the body
        self._is_started = False
        self.is_taken = False
        self._is_bodiless = False
        self._is_concluded = False
        self._is_continue_awaited = request.body_bytes != 0 and "100-continue" in request.tokens("expect")
        self._left_bytes: int | None = 0  # of the answer's body; None: nobody knows
        self._task: asyncio.Task[None] | None = None
        # a gateway may wait for the body in one task and for room in another
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._body_clock: asyncio.TimerHandle | None = None
        self._room_clock: asyncio.TimerHandle | None = None

    # --- for the server

    @property
    def connection(self) -> H2Exchange:
        """A stream counts as a connection of its own."""
        return self

    def drain(self, *, is_patient: bool = False) -> None:
        """Nothing: its connection takes no further streams, and this one is served."""

    def abort(self) -> None:
        """End it now."""
        self.leg.reset(ErrorCodes.CANCEL)
        if self._task is not None:
            self._task.cancel()

    # --- for the coroutine

    @property
    def is_started(self) -> bool:
        return self._is_started

    async def read(self) -> bytes:
        if self._is_continue_awaited:
            self._is_continue_awaited = False
            if not self._is_started and not self.leg.is_over:
                self._connection.send_fields(self.leg, [(b":status", b"100")])
        while not self._body:
            if self._error is not None:
                raise self._error
            if self._is_body_whole:
                return b""
            limit_s = self._connection.limits.head.body_stall_s
            stalled = PeerError(f"no byte of the body within {limit_s:g} s", status=408)
            self._body_clock = self._connection.loop.call_later(limit_s, self.fail_body, stalled)
            self._reader = self._connection.loop.create_future()
            try:
                await self._reader
            finally:
                self._body_clock.cancel()
                self._reader = self._body_clock = None
        piece = bytes(self._body)
        self._body.clear()
        self._give_back()
        return piece

    async def respond(
        self,
        status: int,
        headers: Headers | bytes = (),
        body: bytes = b"",
        *,
        close: bool = False,  # noqa: ARG002  a stream has one answer anyhow; likewise below
    ) -> None:
        self._answer(status, headers, body)
        await self._room()

    async def start(
        self,
        status: int,
        headers: Headers | bytes,
        length: int | None,
        *,
        close: bool = False,  # noqa: ARG002
    ) -> None:
        self._begin()
        self._head(status, headers, length)
        await self._room()

    async def write(self, chunk: bytes) -> None:
        if self._is_bodiless:
            return
        if self._left_bytes is not None:
            if len(chunk) > self._left_bytes:
                raise RuntimeError(f"{len(chunk)} bytes for an answer of which only {self._left_bytes} are missing")
            self._left_bytes -= len(chunk)
        self._check_client()
        self.leg.write(chunk)
        if self._left_bytes == 0:
            self.leg.end()
        await asyncio.sleep(0)
        await self._room()

    async def finish(self) -> None:
        if self._left_bytes is None and not self._is_bodiless:
            self._left_bytes = 0
            self.leg.end()
            await self._room()

    async def take_over(self, agreement: Agreement) -> Taken:
        self._begin()
        self._check_client()
        fields = response_fields(HTTPStatus.OK, agreement.headers, with_accept=self._has_own_key)
        self._connection.send_answer(self.leg, fields)
        self._is_concluded = self.is_taken = True
        leftover, is_at_eof = self.leg.take_early()
        return Taken(self.leg, leftover, is_at_eof)

    def refuse(
        self,
        status: int,
        text: str,
        headers: Headers = (),
        *,
        close: bool = False,  # noqa: ARG002
    ) -> None:
        self._answer(status, (*headers, TEXT), refusal_body(text))

    def _answer(self, status: int, headers: Headers | bytes, body: bytes) -> None:
        self._begin()
        self._head(status, headers, len(body), is_last=not body)
        if body and not self._is_bodiless:
            self.leg.write(body)
            self._left_bytes = 0
            self.leg.end()

    def _begin(self) -> None:
        if self._is_started:
            raise RuntimeError("a request is answered once")
        self._is_started = True

    def _head(self, status: int, headers: Headers | bytes, length: int | None, *, is_last: bool = False) -> None:
        if self.request.wants_websocket and status // 100 == _GOOD:
            status = HTTPStatus.BAD_REQUEST  # a good one would open the tunnel: RFC 9110 §9.3.6
        fields = list(response_fields(status, headers))
        if status not in BODILESS and length is not None:
            fields.append((b"content-length", b"%d" % length))
        if not any(name == b"date" for name, _ in fields):
            fields.append((b"date", formatdate(usegmt=True).encode("ascii")))
        self._check_client()
        self._is_bodiless = is_last or length == 0 or self.request.method == "HEAD" or status in BODILESS
        self._left_bytes = 0 if self._is_bodiless else length
        self._connection.send_answer(self.leg, fields, is_last=self._is_bodiless)

    @property
    def _is_answered(self) -> bool:
        return self._is_started and self._left_bytes == 0

    def _check_client(self) -> None:
        if self.leg.is_over:
            raise ConnectionResetError("the client is gone")

    async def _room(self) -> None:
        """Wait while the client does not take its bytes, and for the cancellation when it is gone too early."""
        high_bytes = self._connection.limits.head.write_high_bytes
        while self.leg.waiting_bytes > high_bytes or (self.leg.is_over and not self._is_answered):
            self._watch_room()
            self._writer = self._connection.loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None

    def _watch_room(self) -> None:
        if self._room_clock is None and not self.leg.is_over:
            limit_s = self._connection.limits.head.write_stall_s
            self._room_clock = self._connection.loop.call_later(limit_s, self._look_at_room, self.leg.waiting_bytes)

    def _look_at_room(self, waiting_bytes: int) -> None:
        """A client that has taken nothing of its answer for that long is dropped."""
        self._room_clock = None
        if self.leg.waiting_bytes >= waiting_bytes:
            self.abort()
        else:
            self._watch_room()

    def _stop_clock(self) -> None:
        if self._room_clock is not None:
            self._room_clock.cancel()
            self._room_clock = None

    def _give_back(self) -> None:
        unread_bytes, self._unread_bytes = self._unread_bytes, 0
        self._connection.give_back(self.leg, unread_bytes)

    # --- called by the connection

    def serve(self, serving: Callable[[Exchange], Coroutine[Any, Any, None]]) -> None:
        """Have the request answered, without a task where there is nothing to wait for."""
        coroutine = serving(self)
        if not self.request.wants_websocket:
            self._serve_in_task(coroutine)
            return
        error: BaseException | None = None
        try:
            begun = begin(coroutine)
        except (Exception, asyncio.CancelledError) as raised:  # what a task keeps
            error = raised
        else:
            if begun is not None:
                self._serve_in_task(begun)
                return
        self._conclude(error)

    def feed(self, data: bytes, window_bytes: int) -> None:
        """Some of the body has come."""
        self._unread_bytes += window_bytes
        self._body_bytes += len(data)
        announced_bytes = self.request.body_bytes
        if self._is_concluded or self._is_answered:
            self._give_back()
        elif announced_bytes is not None and self._body_bytes > announced_bytes:
            self.fail_body(PeerError(f"the body is longer than the {announced_bytes} bytes that were announced"))
        else:
            self._body += data
            _wake(self._reader)

    def end_body(self) -> None:
        """All of it has."""
        announced_bytes = self.request.body_bytes
        if announced_bytes is not None and self._body_bytes < announced_bytes:
            self.fail_body(PeerError(f"the body ends {self._body_bytes} bytes into the {announced_bytes} announced"))
        self._is_body_whole = True
        if self._is_concluded and not self.is_taken and not self.leg.waiting_bytes:
            self.leg.close_stream()
        else:
            _wake(self._reader)

    def fail_body(self, fault: PeerError) -> None:
        """No more of it comes, if it is not whole."""
        if not self._is_body_whole:
            self._error = fault
            _wake(self._reader)

    # --- called by the leg

    def drained(self) -> None:
        """Nothing waits for the client any more."""
        self._stop_clock()
        if self._is_concluded:
            self._leave()
        else:
            _wake(self._writer)

    def fallen(self) -> None:
        """The client has reset the stream, or is gone."""
        self._stop_clock()
        self.fail_body(PeerError("the client has left within its body"))
        if self._task is not None and not self._is_answered:
            self._task.cancel()
        elif self._is_concluded:
            self.leg.close_stream()
        else:
            _wake(self._writer)

    def closed(self) -> None:
        """The stream is over."""
        self._stop_clock()
        self._give_back()
        self._connection.stream_closed(self)

    # --- the coroutine's end

    def _serve_in_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._task = self._connection.loop.create_task(coroutine)
        self._task.add_done_callback(self._served)
        if self.leg.is_over and not self._is_answered:
            self._task.cancel()  # it has fallen in the first step, before there was a task

    def _served(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._conclude(asyncio.CancelledError() if task.cancelled() else task.exception())

    def _conclude(self, error: BaseException | None) -> None:
        """The coroutine has ended, well or not."""
        is_cancelled = isinstance(error, asyncio.CancelledError)
        if self._is_concluded:
            if error is not None:
                if not is_cancelled:
                    log_failure(self.request, error)
                self.leg.reset(ErrorCodes.INTERNAL_ERROR)
            return
        if isinstance(error, PeerError) and not self._is_started:
            if not self.leg.is_over:
                self.refuse(error.status, str(error), error.headers)
        elif error is not None and not is_cancelled:
            log_failure(self.request, error)
        self._is_concluded = True
        if self.leg.is_over:
            self.leg.close_stream()
        elif self._is_answered:
            self._leave()
        elif self._is_started or is_cancelled:
            self.leg.reset(ErrorCodes.INTERNAL_ERROR)
        else:
            if error is None:
                log_silence(self.request)
            self.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed")
            self._leave()

    def _leave(self) -> None:
        """The answer is complete: go when the client has been sent all of it, and has said all of its body.

        Who is told to stop before that may throw the answer away (curl does), so it gets `linger_s`.
        """
        if self.leg.waiting_bytes:
            self._watch_room()
        elif self._is_body_whole or self.is_taken or self.leg.is_over:
            self.leg.close_stream()
        else:
            self._stop_clock()
            linger_s = self._connection.limits.head.linger_s
            self._room_clock = self._connection.loop.call_later(linger_s, self.leg.close_stream)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
