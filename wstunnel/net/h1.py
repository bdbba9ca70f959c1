"""One HTTP/1.1 connection on the event loop: requests in, one at a time; answers out; or handed over as a tunnel.

What a request means is not known here: each becomes an `Exchange` for the coroutine that the server gave. Works on
uvloop and on plain asyncio, for TCP and UNIX sockets, and with TLS where the hub reads the socket.
The two classes are friends: an exchange is the face that its connection shows to one request.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, cast

from wstunnel._heads import read_plain_head
from wstunnel._hub import HubTransport
from wstunnel.errors import PeerError
from wstunnel.limits import GatewayLimits, HeadLimits
from wstunnel.net.eager import begin
from wstunnel.net.exchange import BODILESS, TEXT, Agreement, Exchange, Taken, log_failure, log_silence, refusal_body
from wstunnel.net.wheel import TimerWheel
from wstunnel.proto.body import BodyReader, body_reader
from wstunnel.proto.chunked import LAST_CHUNK, encode_chunk
from wstunnel.proto.http1 import HeadReader, encode_head
from wstunnel.proto.request import Headers, Request

__all__ = ["H1Connection", "H1Exchange"]

_log = logging.getLogger("wstunnel")
_DATE = re.compile(rb"^date:", re.IGNORECASE | re.MULTILINE)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_H2_BEGINS = b"PRI * HTTP/2"
_NEVER_S = float("inf")


class _State(Enum):
    NEW = auto()
    READING = auto()  # no request is being served; part of a head may have come
    SERVING = auto()
    FLUSHING = auto()  # the last answer is on its way out
    LINGERING = auto()  # our side is closed, what the client still says is thrown away
    TAKEN = auto()  # somebody else's transport
    CLOSED = auto()


# An attribute of an enum costs as much as a call, in Python 3.11.
_NEW, _READING, _SERVING, _FLUSHING, _LINGERING, _TAKEN, _CLOSED = _State


class H1Exchange:
    """An `Exchange` over HTTP/1.1."""

    __slots__ = ("_is_answered", "_is_bodiless", "_is_started", "_left_bytes", "connection", "request")

    def __init__(self, connection: H1Connection, request: Request) -> None:
        self.connection = connection
        self.request = request
        self._is_started = False
        self._is_answered = False
        self._is_bodiless = False
        self._left_bytes: int | None = 0  # of the answer's body; None: it is chunked

    @property
    def is_started(self) -> bool:
        return self._is_started

    async def read(self) -> bytes:
        return await self.connection._read_body()

    async def respond(
        self, status: int, headers: Headers | bytes = (), body: bytes = b"", *, close: bool = False
    ) -> None:
        self.connection._skip_body()
        self._send(status, headers, body, len(body), close=close)
        await self.connection._drained()

    async def start(self, status: int, headers: Headers | bytes, length: int | None, *, close: bool = False) -> None:
        self._send(status, headers, b"", length, close=close)
        await self.connection._drained()

    async def write(self, chunk: bytes) -> None:
        if self._left_bytes is None:
            chunk = encode_chunk(chunk)
        elif self._is_bodiless:
            return
        elif len(chunk) > self._left_bytes:
            raise RuntimeError(f"{len(chunk)} bytes for an answer of which only {self._left_bytes} are missing")
        else:
            self._left_bytes -= len(chunk)
            self._is_answered = not self._left_bytes
        self.connection._write(chunk)
        await asyncio.sleep(0)
        await self.connection._drained()

    async def finish(self) -> None:
        if self._left_bytes is None:
            self._left_bytes, self._is_answered = 0, True
            self.connection._write(LAST_CHUNK)
            await self.connection._drained()

    async def take_over(self, agreement: Agreement) -> Taken:
        self._begin()
        taken = await self.connection._switch(agreement.head)
        self._is_answered = True
        return taken

    def refuse(self, status: int, text: str, headers: Headers = (), *, close: bool = False) -> None:
        body = refusal_body(text)
        self.connection._skip_body()
        self._send(status, (*headers, TEXT), body, len(body), close=close)

    def _begin(self) -> None:
        if self._is_started:
            raise RuntimeError("a request is answered once")
        self._is_started = True

    def _send(self, status: int, headers: Headers | bytes, body: bytes, length: int | None, *, close: bool) -> None:
        """Write a head and what there is of its body, without waiting."""
        is_last = close or self.connection._ends_after(self.request)
        if status in BODILESS:
            framing: Headers = ()
        elif length is None:
            framing = (("Transfer-Encoding", "chunked"),)
        else:
            framing = (("Content-Length", str(length)),)
        if isinstance(headers, bytes):
            is_dated = _DATE.search(headers) is not None
            head = encode_head(status, (*framing, *_closing(is_last, is_dated=is_dated)), headers)
        else:
            head = encode_head(status, (*headers, *framing, *_closing(is_last)))
        self._begin()
        self._is_bodiless = self.request.method == "HEAD" or status in BODILESS
        if self._is_bodiless:
            body, length = b"", 0
        self._left_bytes = None if length is None else length - len(body)
        self._is_answered = self._left_bytes == 0
        self.connection._is_last = is_last
        self.connection._write(head + body)


class H1Connection(asyncio.BufferedProtocol):
    """Reads requests, has each served by a coroutine, and ends so that the last answer arrives.

    in      on_request  serves one exchange; the next request is parsed when it returns
            peer, local, scheme, subject   as in Request
            spent_s     of the time for the first head, since the accept
            buffer      where reads land; shared by all connections of a loop, and left before each call returns.
                        Its length bounds one read
            on_h2       gets this connection, its transport and what was read, where the client begins with HTTP/2's
                        preface; nothing else is called then. None: that is a malformed request
            on_closed   gets this connection, once, when the transport is closed and no coroutine runs; not after a
                        take-over
    bound   one read of a body or of pipelined bytes while a request is served; `write_high_bytes` and one chunk of
            answer
    source  RFC 9112 §9; robustness goals 1, 4, 18

    Whole heads are due `head_timeout_s` after the accept, or after the first byte of a later request: 408. A client
    that says nothing between requests is closed without a word after `keep_alive_s`. One that does not take its
    answer is dropped. Ending means: send what is left, close our side, throw away what still comes for `linger_s`,
    because to close with unread input would reset the connection and could destroy the answer on its way.
    """

    __slots__ = (
        "_asked_s",
        "_body",
        "_body_limits",
        "_buffer",
        "_due_s",
        "_exchange",
        "_first_head_s",
        "_is_at_eof",
        "_is_continue_awaited",
        "_is_draining",
        "_is_idle",
        "_is_last",
        "_is_patient",
        "_is_write_paused",
        "_limits",
        "_loop",
        "_on_closed",
        "_on_h2",
        "_on_request",
        "_pending",
        "_reader",
        "_reading",
        "_scheme",
        "_state",
        "_task",
        "_transport",
        "_unsent_bytes",
        "_waiter",
        "_wheel",
        "local",
        "peer",
        "subject",
    )

    _transport: asyncio.Transport | HubTransport
    _exchange: H1Exchange

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        on_request: Callable[[Exchange], Coroutine[Any, Any, None]],
        peer: str,
        local: str,
        scheme: str,
        subject: str = "",
        limits: HeadLimits,
        body_limits: GatewayLimits,
        wheel: TimerWheel,
        buffer: memoryview,
        on_closed: Callable[[H1Connection], None],
        on_h2: Callable[[H1Connection, HubTransport, bytes], None] | None = None,
        spent_s: float = 0.0,
    ) -> None:
        self._on_request, self._on_closed, self._on_h2 = on_request, on_closed, on_h2
        self.peer, self.local, self._scheme, self.subject = peer, local, scheme, subject
        self._limits, self._body_limits, self._wheel, self._buffer = limits, body_limits, wheel, buffer
        self._loop = loop
        self._state = _NEW
        self._reader: HeadReader | None = None  # of a head of which some has come
        self._body: BodyReader | None = None  # of the request under way, until it is complete
        self._reading: asyncio.Future[None] | None = None  # of the coroutine, for more of the body
        self._pending = b""  # read, and not yet parsed
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None  # of the coroutine, for the client to take some bytes
        self._is_idle = False  # between two requests
        self._is_last = False  # ends after the answer under way
        self._is_draining = False
        self._is_patient = False
        self._is_at_eof = False
        self._is_write_paused = False
        self._is_continue_awaited = False
        self._first_head_s = limits.head_timeout_s - spent_s
        self._unsent_bytes = 0  # when last looked at
        self._due_s = self._asked_s = _NEVER_S  # the deadline, and when the wheel asks about it: no later

    def drain(self, *, is_patient: bool = False) -> None:
        """Take no further request: a connection without one ends now, another after its answer.

        in      is_patient  a connection that has not had its first request yet may still have it
        """
        self._is_draining = True
        self._is_patient = is_patient
        if self._state is _READING and self._reader is None and (self._is_idle or not is_patient):
            self._transport.close()  # nothing unread, nothing unsent: no reset can come of it

    def abort(self) -> None:
        """End now, and cancel the coroutine under way. Nothing after a take-over."""
        if self._state not in {_NEW, _TAKEN, _CLOSED}:
            self._transport.abort()

    # --- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport | HubTransport) -> None:
        self._transport = cast("asyncio.Transport | HubTransport", transport)
        # uvloop's own low mark is 16 bytes, a unit lost
        self._transport.set_write_buffer_limits(self._limits.write_high_bytes, self._limits.write_low_bytes)
        self._state = _READING
        if self._is_draining and not self._is_patient:
            self._end()
            return
        if isinstance(transport, HubTransport):
            transport.read_at_once()  # as a rule the head is there, and neither a timer nor a wait is needed for it
        if self._state is _READING:
            self._arm(self._first_head_s)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._state is _READING:
            self._parse(self._buffer, nbytes)
        elif self._state is _SERVING:
            self._pending += bytes(self._buffer[:nbytes])
            self._transport.pause_reading()
            self._wake_reading()

    def eof_received(self) -> bool:
        self._is_at_eof = True
        self._wake_reading()
        if self._state is _READING:
            self._end()
        elif self._state is _LINGERING:
            self._transport.close()
        return self._transport.can_write_eof()

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._unsent_bytes = self._transport.get_write_buffer_size()
        self._arm(self._limits.write_stall_s)

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._disarm()
        if self._reading is not None:
            self._arm(self._limits.body_stall_s)
        self._wake()
        if self._state is _SERVING and self._task is None:
            self._next()
        elif self._state is _FLUSHING:
            # not at once: asyncio would call connection_lost twice if it were closed within its own write
            self._loop.call_soon(self._half_close)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._state = _CLOSED
        self._leave_wheel()
        if self._task is None:
            self._on_closed(self)
        elif self._exchange._is_answered:
            self._wake()
        else:
            self._task.cancel()

    # --- called by the wheel

    def due(self, now_s: float) -> float | None:
        """If a deadline has passed, act as the class says; else the next time to be asked."""
        self._asked_s = self._due_s
        if now_s < self._due_s:
            return self._due_s if self._due_s < _NEVER_S else None
        self._due_s = self._asked_s = _NEVER_S
        if self._is_write_paused:
            unsent_bytes, self._unsent_bytes = self._unsent_bytes, self._transport.get_write_buffer_size()
            if self._unsent_bytes < unsent_bytes:
                self._due_s = self._asked_s = now_s + self._limits.write_stall_s
                return self._due_s
            self._transport.abort()
        elif self._reading is not None:
            if not self._reading.done():
                stalled = f"no byte of the body within {self._limits.body_stall_s:g} s"
                self._reading.set_exception(PeerError(stalled, status=408))
        elif self._state is not _READING:
            self._transport.abort()
        elif self._is_idle:
            self._end()
        else:
            self._refuse(PeerError(f"no whole request head within {self._limits.head_timeout_s:g} s", status=408))
        return None

    # --- called by the exchange

    def _ends_after(self, request: Request) -> bool:
        """Is this the last request, whatever the answer (except 101)? Behind a refused upgrade anything may come."""
        return (
            self._is_draining
            or self._is_at_eof
            or self._body is not None
            or request.wants_websocket
            or "close" in request.tokens("connection")
        )

    def _write(self, data: bytes) -> None:
        if self._state is not _SERVING:
            raise ConnectionResetError("the client is gone")
        self._transport.write(data)

    async def _drained(self) -> None:
        """Wait while the client does not take its bytes, and for the cancellation when it is gone."""
        if self._state is not _CLOSED and (self._is_write_paused or self._transport.is_closing()):
            self._waiter = self._loop.create_future()
            await self._waiter

    async def _read_body(self) -> bytes:
        payload = b""
        while self._body is not None and not payload:
            if not self._pending:
                await self._more_of_body()
            payload = self._take_body(self._body)
        return payload

    def _take_body(self, body: BodyReader) -> bytes:
        """The payload in what has been read; the client is read again for the next request, or for its end."""
        data, self._pending = self._pending, b""
        payload = body.feed(data)
        if body.is_complete:
            self._body, self._pending = None, body.leftover
            if not self._pending:
                self._transport.resume_reading()
        return payload

    async def _more_of_body(self) -> None:
        if self._is_at_eof:
            raise PeerError("the request ends within its body")
        if self._is_continue_awaited and not self._exchange._is_started:  # in the middle of an answer it would be of it
            self._is_continue_awaited = False
            self._write(_CONTINUE)
        self._reading = self._loop.create_future()
        if not self._is_write_paused:  # then the deadline is for the client to take its answer
            self._arm(self._limits.body_stall_s)
        self._transport.resume_reading()
        try:
            await self._reading
        finally:
            self._reading = None
            if not self._is_write_paused:
                self._disarm()
        if not self._pending:
            raise PeerError("the request ends within its body")

    def _skip_body(self) -> None:
        """Nobody wants the body: drop what has come of it, so that the connection may go on if that was all."""
        if self._body is not None and self._pending:
            try:
                self._take_body(self._body)
            except PeerError:
                self._pending = b""  # it ends the connection, as any rest of a body does

    async def _switch(self, head: bytes) -> Taken:
        self._transport.pause_reading()
        self._write(head)
        self._transport.set_write_buffer_limits(high=0)  # pauses writing until the last byte has left
        if self._is_write_paused or self._transport.is_closing():
            await self._drained()
        self._state = _TAKEN
        self._leave_wheel()
        leftover, self._pending = self._pending, b""
        return Taken(self._transport, leftover, self._is_at_eof)

    # --- requests

    def _parse(self, data: bytes | memoryview, nbytes: int) -> None:
        """Read on in the head under way, and have its request served once it is whole."""
        was_idle, self._is_idle = self._is_idle, False
        if self._on_h2 is not None and not self._is_http1(bytes(data[:nbytes])):
            return
        request: Request | None
        reader, plain = self._reader, None
        if reader is None:
            plain = read_plain_head(data, nbytes, self._limits, self.peer, self.local, self._scheme, self.subject)
        if plain is not None:
            request, self._pending = plain
        else:
            if was_idle:
                self._arm(self._limits.head_timeout_s)
            if reader is None:
                reader = self._reader = HeadReader(
                    self._limits, peer=self.peer, local=self.local, scheme=self._scheme, subject=self.subject
                )
            try:
                request = reader.feed(bytes(data[:nbytes]))
            except PeerError as fault:
                self._refuse(fault)
                return
            if request is None:
                self._transport.resume_reading()
                return
            self._reader = None
            self._pending = reader.leftover
        self._state = _SERVING
        self._disarm()
        self._exchange = H1Exchange(self, request)
        if request.body_bytes != 0:
            self._body = body_reader(request.body_bytes, self._body_limits)
            self._is_continue_awaited = not self._pending and "100-continue" in request.tokens("expect")
        if request.wants_websocket:
            self._serve_at_once()
        else:
            self._serve_in_task(self._on_request(self._exchange))

    def _is_http1(self, data: bytes) -> bool:
        """Is it not the other one, as far as the first bytes tell? If so, or if nobody knows yet, they are kept."""
        said = self._pending + data
        if not said.startswith(_H2_BEGINS[: len(said)]):
            if self._pending:
                self._pending = b""
                self._on_h2 = None
                self._parse(said, len(said))
                return False
            self._on_h2 = None
            return True
        self._pending = said
        if len(said) >= len(_H2_BEGINS) and self._on_h2 is not None:
            self._leave_wheel()
            self._state = _TAKEN
            self._on_h2(self, cast(HubTransport, self._transport), said)
        return False

    def _serve_at_once(self) -> None:
        """Serve without a task unless there is something to wait for. For upgrades, which are the last request of a
        connection whatever comes of them: others follow each other, and each would be served inside the one before."""
        error: BaseException | None = None
        try:
            begun = begin(self._on_request(self._exchange))
        except (Exception, asyncio.CancelledError) as raised:  # what a task keeps
            error = raised
        else:
            if begun is not None:
                self._serve_in_task(begun)
                return
        self._conclude(error)

    def _serve_in_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        if self._pending:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._conclude(asyncio.CancelledError() if task.cancelled() else task.exception())

    def _conclude(self, error: BaseException | None) -> None:
        """The coroutine has ended, well or not."""
        if error is None and self._state is _TAKEN:
            self._let_go()
            return
        exchange = self._exchange
        is_cancelled = isinstance(error, asyncio.CancelledError)
        if isinstance(error, PeerError) and not exchange._is_started and self._state is _SERVING:
            exchange.refuse(error.status, str(error), error.headers)
        elif error is not None and not is_cancelled:
            log_failure(exchange.request, error)

        if self._state is _CLOSED:
            self._on_closed(self)
        elif self._state is _TAKEN:
            self._let_go()
        elif exchange._is_answered:
            self._next()
        elif exchange._is_started or is_cancelled:
            self._transport.abort()
        else:
            if error is None:
                log_silence(exchange.request)
            exchange.refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed", close=True)
            self._next()

    def _let_go(self) -> None:
        """The transport is the taker's, if it has been taken."""
        del self._exchange  # it refers back to us
        if self._transport.get_protocol() is self:
            self._transport.abort()

    def _next(self) -> None:
        """Go on to the next request, if there may be one."""
        if self._is_last or self._is_draining or self._is_at_eof:
            self._end()
            return
        if self._is_write_paused:
            return  # and resume_writing comes back here: what was written on top of unsent bytes is taken first
        self._state = _READING
        self._is_idle = True
        if self._pending:
            pending, self._pending = self._pending, b""
            self._parse(pending, len(pending))
        else:
            self._arm(self._limits.keep_alive_s)

    # --- ending

    def _refuse(self, fault: PeerError) -> None:
        """Answer a head that never became a request, and end."""
        _log.info("%s: %d: %s", self.peer, fault.status, fault)
        body = refusal_body(str(fault))
        fields = (*fault.headers, TEXT, ("Content-Length", str(len(body))), *_closing(True))
        self._transport.write(encode_head(fault.status, fields) + body)
        self._end()

    def _end(self) -> None:
        """Send what is left, then half-close."""
        self._state = _FLUSHING
        self._pending = b""
        self._transport.set_write_buffer_limits(high=0)
        if not self._is_write_paused:
            self._half_close()

    def _half_close(self) -> None:
        if self._transport.is_closing():
            return  # connection_lost is on its way
        self._state = _LINGERING
        self._arm(self._limits.linger_s)
        if self._is_at_eof or not self._transport.can_write_eof():
            self._transport.close()
            return
        try:
            self._transport.write_eof()
        except OSError:  # asyncio's, when the client has reset the connection and we have not read of it yet
            self._transport.abort()
        else:
            self._transport.resume_reading()

    # --- small things

    def _arm(self, after_s: float) -> None:
        self._due_s = self._loop.time() + after_s
        if self._due_s < self._asked_s:
            self._asked_s = self._due_s
            self._wheel.add(self, self._due_s)

    def _disarm(self) -> None:
        """The wheel asks all the same; as a rule there is another deadline by then, and it need not be touched."""
        self._due_s = _NEVER_S

    def _leave_wheel(self) -> None:
        if self._asked_s < _NEVER_S:
            self._wheel.discard(self)

    def _wake_reading(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _closing(is_last: bool, *, is_dated: bool = False) -> Headers:
    """The fields that end every head but that of a 101."""
    date: Headers = () if is_dated else (("Date", formatdate(usegmt=True)),)
    return (*date, ("Connection", "close")) if is_last else date
