"""One HTTP/2 connection on the event loop: each of its streams is a request and its answer, or a tunnel.

`H2Wire` (_h2.pyx) has the socket, DATA of tunnels and what may be sent; h2 has HPACK, settings and the states of
streams. An `H2Exchange` is the face that a connection shows to one request, and what the server counts as one
connection: a stream may take a backend's descriptors just as a connection does.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from h2.config import H2Configuration
from h2.connection import AllowedStreamIDs
from h2.connection import H2Connection as Engine
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from h2.stream import H2Stream
from hyperframe.frame import DataFrame, GoAwayFrame, SettingsFrame

from wstunnel._h2 import H2Leg, H2Wire
from wstunnel._handshake import Handshake
from wstunnel._hub import Hub, PlainTransport
from wstunnel.errors import PeerError, TunnelError, safe
from wstunnel.limits import Limits
from wstunnel.net.eager import begin
from wstunnel.net.exchange import Agreement, Exchange, Taken
from wstunnel.net.wheel import TimerWheel
from wstunnel.proto.http2 import Fields, has_own_key, request_of, response_fields
from wstunnel.proto.request import Headers, Request

__all__ = ["H2Connection", "H2Exchange"]

_log = logging.getLogger("wstunnel")
_BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_GOOD = 2  # the first digit of a good status
_TEXT = ("Content-Type", "text/plain")
_LAST_ID = 2**31 - 1
_WINDOW_MAX = 2**31 - 1
_FIRST_WINDOW = 65535  # of a connection, RFC 9113 §6.9.2
_KEY_BYTES = 16


class _Engine(Engine):
    """h2 as this side of a connection.

    It does not count the bodies of requests, where a wrong length would end the connection, and it does not remember
    how 65,536 streams ended, which is 8 MiB of a client's making.
    """

    def __init__(self, limits: Limits) -> None:
        self.MAX_CLOSED_STREAMS = limits.h2.closed_streams
        super().__init__(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_inbound_headers=False,  # by proto/http2.py, like those that we send
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )

    def _begin_new_stream(self, stream_id: int, allowed_ids: AllowedStreamIDs) -> H2Stream:
        stream = super()._begin_new_stream(stream_id, allowed_ids)
        stream._initialize_content_length = _leave_length  # type: ignore[method-assign]
        return stream


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

    def __init__(self, connection: H2Connection, request: Request, *, has_own_key: bool, is_whole: bool) -> None:
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
        self._answer(status, (*headers, _TEXT), f"{text}\n".encode("ascii"))

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
        if status not in _BODILESS and length is not None:
            fields.append((b"content-length", b"%d" % length))
        if not any(name == b"date" for name, _ in fields):
            fields.append((b"date", formatdate(usegmt=True).encode("ascii")))
        self._check_client()
        self._is_bodiless = is_last or length == 0 or self.request.method == "HEAD" or status in _BODILESS
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
        if self._is_concluded:
            if error is not None:
                self._note(error)
                self.leg.reset(ErrorCodes.INTERNAL_ERROR)
            return
        is_cancelled = isinstance(error, asyncio.CancelledError)
        if isinstance(error, PeerError) and not self._is_started:
            if not self.leg.is_over:
                self.refuse(error.status, str(error), error.headers)
        elif error is not None and not is_cancelled:
            self._note(error)
        self._is_concluded = True
        if self.leg.is_over:
            self.leg.close_stream()
        elif self._is_answered:
            self._leave()
        elif self._is_started or is_cancelled:
            self.leg.reset(ErrorCodes.INTERNAL_ERROR)
        else:
            if error is None:
                _log.error("%s: no answer to %s", self.request.peer, safe(self.request.target))
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

    def _note(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            return
        request = self.request
        foreseen = isinstance(error, TunnelError)
        _log.error(
            "%s: %s %s failed: %s",
            request.peer,
            request.method,
            safe(request.target),
            error,
            exc_info=None if foreseen else error,
        )


class H2Connection:
    """Reads requests of any number of streams, and has each served by a coroutine.

    in      on_request  serves one exchange
            admit       asked for each stream: has the server a place for it?
            peer, local, scheme, subject   as in Request
            spent_s     of the time for the first request, since the accept
            on_closed   gets each exchange that is over, unless it was taken over, and the connection when it is
    bound   `max_streams`, and for each what `Exchange` and `_h2.pyx` say
    source  RFC 9113; robustness goal 19

    The first request is due `head_timeout_s` after the accept, and a header block as long after its first frame. A
    connection without a stream ends after `keep_alive_s`. It ends with GOAWAY; what is under way is served to its end.
    """

    def __init__(
        self,
        hub: Hub,
        fd: int,
        *,
        on_request: Callable[[Exchange], Coroutine[Any, Any, None]],
        admit: Callable[[H2Exchange], bool],
        on_closed: Callable[[H2Connection | H2Exchange], None],
        peer: str,
        local: str,
        scheme: str,
        subject: str,
        spent_s: float = 0.0,
        max_streams: int,
        limits: Limits,
        wheel: TimerWheel,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = hub.loop
        self.limits = limits
        self._on_request, self._admit, self._on_closed = on_request, admit, on_closed
        self.peer, self._local, self._scheme, self._subject = peer, local, scheme, subject
        self._max_streams = max_streams
        self._wheel = wheel
        self._exchanges: dict[int, H2Exchange] = {}
        self._engine = _engine(limits)
        self._is_engine_over = False
        self._last_id = _LAST_ID  # beyond which no stream is served any more
        self._is_draining = False
        self._is_at_eof = False
        self._is_finishing = False
        self._is_lost = False
        self._goaway: asyncio.TimerHandle | None = None
        self._due_s = self.loop.time() + limits.head.head_timeout_s - spent_s
        self.wire = H2Wire(
            hub,
            fd,
            self,
            stream_window=limits.h2.window_bytes,
            frame_max=limits.h2.frame_bytes,
            block_max=limits.head.max_head_bytes,
            turn_frames=limits.h2.turn_frames,
            credit=limits.h2.odd_events + limits.h2.odd_events_per_stream * max_streams,
            credit_per_s=limits.h2.odd_events_per_s,
            settled_s=limits.h2.settled_s,
            leave_s=limits.h2.leave_s,
        )

    def start(self, before: PlainTransport | Handshake | None = None, said: bytes = b"") -> None:
        """Serve from now on.

        in      before, said   who had the socket until now, and what it has read
        raises  OSError when the client is gone
        """
        self.wire.send(_settings_frame(self.limits, self._max_streams))
        self._engine.increment_flow_control_window(_WINDOW_MAX - _FIRST_WINDOW)
        self._send()
        self._wheel.add(self, self._due_s)
        self.wire.start(before, said)

    # --- for the server

    def drain(self, *, is_patient: bool = False) -> None:
        """Take no further stream; end when those under way have. As RFC 9113 §6.8 says, clients are told at once, and
        a little later which streams were too late."""
        if self._is_draining or self._is_finishing:
            return
        self._is_draining = True
        self._say_goaway(ErrorCodes.NO_ERROR, _LAST_ID)
        wait_s = self.limits.h2.goaway_s if self._exchanges or is_patient else 0.0
        self._goaway = self.loop.call_later(wait_s, self._close_door)

    def abort(self) -> None:
        """End now. Tunnels are ended by whoever has them, before."""
        for exchange in list(self._exchanges.values()):
            if not exchange.is_taken:
                exchange.abort()
        self.wire.abort()

    # --- called by the wire

    def frame(self, whole: bytes) -> None:
        """A frame for h2."""
        try:
            events = self._engine.receive_data(whole)
        except ProtocolError as error:
            self._is_engine_over = True
            _log.info("%s: HTTP/2: %s", self.peer, safe(str(error)))
            self._send()
            self._finish()
            return
        self._send()  # the answer to SETTINGS goes before what they allow
        for event in events:
            self._heed(event)
        self._send()

    def tunnel_ended(self, stream_id: int) -> None:
        """The client has ended the stream of a tunnel."""
        self.frame(DataFrame(stream_id, flags=["END_STREAM"]).serialize())

    def end_stream(self, stream_id: int) -> None:
        if not self._is_engine_over:
            self._engine.end_stream(stream_id)
            self._send()

    def reset_stream(self, stream_id: int, code: int) -> None:
        if not self._is_engine_over:
            self._engine.reset_stream(stream_id, code)
            self._send()

    def fault(self, code: int, text: str) -> None:
        """The client broke a rule: it is told, and all of its streams end."""
        _log.info("%s: HTTP/2: %s: %s", self.peer, ErrorCodes(code).name, text)
        self._say_goaway(code, self._engine.highest_inbound_stream_id)
        self._is_engine_over = True
        self._finish()

    def goaway(self) -> None:
        """The client opens no further stream."""
        self._is_draining = True
        self._end_if_idle()

    def eof(self) -> None:
        """The client says no more."""
        self._is_draining = self._is_at_eof = True
        self._probe()
        for exchange in list(self._exchanges.values()):
            exchange.fail_body(PeerError("the request ends within its body"))
        self._end_if_idle()

    def _probe(self) -> None:
        """A client that does not listen either has a kernel that says so, when something is said to it."""
        self._say_goaway(ErrorCodes.NO_ERROR, self._engine.highest_inbound_stream_id)

    def lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._is_lost = True
        if self._goaway is not None:
            self._goaway.cancel()
        self._wheel.discard(self)
        self._on_closed(self)

    # --- called by exchanges

    def send_fields(self, leg: H2Leg, fields: Fields, *, is_last: bool = False) -> None:
        self._engine.send_headers(leg.stream_id, fields, end_stream=is_last)
        self._send()
        if is_last:
            leg.note_ended()

    def send_answer(self, leg: H2Leg, fields: Fields, *, is_last: bool = False) -> None:
        self.wire.note_answer(leg)
        self.send_fields(leg, fields, is_last=is_last)

    def give_back(self, leg: H2Leg, window_bytes: int) -> None:
        """So much of a body has been taken: the client may send as much again."""
        if window_bytes and not self._is_engine_over:
            self._engine.acknowledge_received_data(window_bytes, leg.stream_id)
            self._send()

    def stream_closed(self, exchange: H2Exchange) -> None:
        self._exchanges.pop(exchange.leg.stream_id, None)
        if not exchange.is_taken:
            self._on_closed(exchange)
        self._end_if_idle()

    # --- called by the wheel

    def due(self, now_s: float) -> float | None:
        """End what takes too long; the next time to look."""
        head_s = self.limits.head.head_timeout_s
        if self._is_finishing:
            if now_s >= self._due_s:
                self.wire.abort()
                return None
            return self._due_s
        if self.wire.block_age_s >= head_s:
            self.fault(ErrorCodes.PROTOCOL_ERROR, f"no whole header block within {head_s:g} s")
        elif not self._exchanges and now_s >= self._due_s:
            self._say_goaway(ErrorCodes.NO_ERROR, self._engine.highest_inbound_stream_id)
            self._finish()
        elif self._is_at_eof:
            self._probe()
        return now_s + min(head_s, max(self._due_s - now_s, self.limits.relay.tick_s))

    # --- requests

    def _heed(self, event: Event) -> None:
        if self._is_finishing:
            return
        if isinstance(event, RequestReceived):
            self._open(event)
        elif isinstance(event, DataReceived):
            if (exchange := self._exchanges.get(event.stream_id)) is not None:
                exchange.feed(event.data, event.flow_controlled_length)
            else:
                self._engine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            if (exchange := self._exchanges.get(event.stream_id)) is not None:
                exchange.leg.end_input()
                exchange.end_body()
        elif isinstance(event, StreamReset):
            if not event.remote_reset:
                self.wire.note_reset()
            if (exchange := self._exchanges.get(event.stream_id)) is not None:
                exchange.leg.was_reset()
        elif isinstance(event, RemoteSettingsChanged):
            self._adapt(event)

    def _open(self, event: RequestReceived) -> None:
        stream_id, fields = event.stream_id, event.headers
        is_whole = event.stream_ended is not None
        if stream_id > self._last_id or len(self._exchanges) >= self._max_streams:
            self._engine.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            self.wire.note_reset()
            return
        fault: PeerError | None = None
        try:
            request = request_of(
                fields,
                limits=self.limits.head,
                peer=self.peer,
                local=self._local,
                scheme=self._scheme,
                subject=self._subject,
                is_whole=is_whole,
                key=base64.b64encode(os.urandom(_KEY_BYTES)).decode("ascii"),
            )
        except PeerError as error:
            fault, request = error, _nobody(self.peer)
        exchange = H2Exchange(self, request, has_own_key=has_own_key(fields), is_whole=is_whole)
        exchange.leg = self.wire.open_stream(stream_id, exchange, request.wants_websocket)
        if is_whole:
            exchange.leg.end_input()
        if not self._admit(exchange):
            self._engine.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            exchange.leg.forget()
            return
        self._exchanges[stream_id] = exchange
        exchange.serve(self._on_request if fault is None else _refusing(fault))

    def _adapt(self, event: RemoteSettingsChanged) -> None:
        changed = event.changed_settings
        first_window = changed.get(SettingCodes.INITIAL_WINDOW_SIZE)
        frame_bytes = changed.get(SettingCodes.MAX_FRAME_SIZE)
        # what the client would remember for us is memory of ours; so is what it is told of every change (RFC 7541 §4.2)
        encoder = self._engine.encoder
        encoder.header_table_size = min(encoder.header_table_size, self.limits.h2.table_bytes)
        if changes := encoder.table_size_changes:
            changes[:] = [min(changes), encoder.header_table_size]
        try:
            self.wire.set_peer(
                None if first_window is None else first_window.new_value,
                None if frame_bytes is None else frame_bytes.new_value,
            )
        except OverflowError as error:
            self.fault(ErrorCodes.FLOW_CONTROL_ERROR, str(error))

    # --- ending

    def _send(self) -> None:
        if data := self._engine.data_to_send():
            self.wire.send(data)

    def _say_goaway(self, code: int, last_id: int) -> None:
        self.wire.send(GoAwayFrame(0, last_stream_id=last_id, error_code=code).serialize())

    def _close_door(self) -> None:
        self._goaway = None
        self._last_id = self._engine.highest_inbound_stream_id
        self._say_goaway(ErrorCodes.NO_ERROR, self._last_id)
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._exchanges or self._is_lost or self._is_finishing:
            return
        if self._is_draining and self._goaway is None:
            self._finish()
        else:
            self._due_s = self.loop.time() + self.limits.head.keep_alive_s

    def _finish(self) -> None:
        """Send what waits, and end; streams that are left are over."""
        if self._is_finishing or self._is_lost:
            return
        self._is_finishing = True
        self._due_s = self.loop.time() + self.limits.head.linger_s
        self._wheel.add(self, self._due_s)
        for exchange in list(self._exchanges.values()):
            exchange.leg.was_reset()
        self.wire.finish()


def _leave_length(headers: object) -> None:
    """An `H2Exchange` knows it."""


def _engine(limits: Limits) -> Engine:
    """Begun; its own settings are sent by us, with those that it need not know."""
    engine = _Engine(limits)
    del engine.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS]  # too many are refused here, and nobody else harmed
    engine.local_settings.initial_window_size = limits.h2.window_bytes
    engine.local_settings.acknowledge()
    engine.initiate_connection()
    engine.clear_outbound_data_buffer()
    engine.decoder.max_header_list_size = limits.h2.max_header_list_bytes
    engine.receive_data(_PREFACE)
    return engine


def _settings_frame(limits: Limits, max_streams: int) -> bytes:
    frame = SettingsFrame(
        0,
        settings={
            SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,
            SettingCodes.MAX_CONCURRENT_STREAMS: max_streams,
            SettingCodes.INITIAL_WINDOW_SIZE: limits.h2.window_bytes,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.h2.max_header_list_bytes,
        },
    )
    return frame.serialize()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _nobody(peer: str) -> Request:
    """In the place of a request that was none."""
    return Request(method="", target="", path="", query="", host="", headers=(), peer=peer, version="HTTP/2")


def _refusing(fault: PeerError) -> Callable[[Exchange], Coroutine[Any, Any, None]]:
    async def refuse(exchange: Exchange) -> None:
        _log.info("%s: %d: %s", exchange.request.peer, fault.status, fault)
        raise fault

    return refuse


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
