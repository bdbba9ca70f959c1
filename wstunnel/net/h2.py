"""One HTTP/2 connection on the event loop: which streams it has, and how it ends.

`H2Wire` (_h2.pyx) has the socket, DATA of tunnels and what may be sent; h2 has HPACK, settings and the states of
streams; an `H2Exchange` is the face that a connection shows to one request.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any

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
from hyperframe.frame import DataFrame, GoAwayFrame

from wstunnel._h2 import H2Leg, H2Wire
from wstunnel._handshake import Handshake
from wstunnel._hub import Hub, HubTransport
from wstunnel.errors import PeerError, safe
from wstunnel.limits import Limits
from wstunnel.net.exchange import Exchange
from wstunnel.net.h2_engine import begun, settings_frame
from wstunnel.net.h2_exchange import H2Exchange
from wstunnel.net.wheel import TimerWheel
from wstunnel.proto.http2 import Fields, has_own_key, request_of
from wstunnel.proto.request import Request

__all__ = ["H2Connection"]

_log = logging.getLogger("wstunnel")
_LAST_ID = 2**31 - 1
_WINDOW_MAX = 2**31 - 1
_FIRST_WINDOW = 65535  # of a connection, RFC 9113 §6.9.2
_KEY_BYTES = 16


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
        self._engine = begun(limits)
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

    def start(self, before: HubTransport | Handshake | None = None, said: bytes = b"") -> None:
        """Serve from now on.

        in      before, said   who had the socket until now, and what it has read
        raises  OSError when the client is gone
        """
        self.wire.send(settings_frame(self.limits, self._max_streams))
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


def _nobody(peer: str) -> Request:
    """In the place of a request that was none."""
    return Request(method="", target="", path="", query="", host="", headers=(), peer=peer, version="HTTP/2")


def _refusing(fault: PeerError) -> Callable[[Exchange], Coroutine[Any, Any, None]]:
    async def refuse(exchange: Exchange) -> None:
        _log.info("%s: %d: %s", exchange.request.peer, fault.status, fault)
        raise fault

    return refuse
