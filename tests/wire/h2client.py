"""A WebSocket client over one stream of an HTTP/2 connection (RFC 8441), made of other people's parts.

Frames and both flow-control windows are h2's, which also fails a server that breaks its rules. A connection is always
read; what waits for a slow reader waits in its stream, at most a window of it.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable, Sequence
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from tests.wire.clients import Client, Refused, Response, accept_of
from tests.wire.sockets import turns
from tests.wire.tlsend import NAME

__all__ = ["WINDOW_BYTES", "Connection", "H2Client", "Stream"]

WINDOW_BYTES = 65_535
"""What a stream may be sent before it is read, unless it says otherwise: the default of RFC 9113 §6.9.2."""

LEAST_WINDOW_BYTES = 2_048
"""What SETTINGS_INITIAL_WINDOW_SIZE says; a stream that wants more adds it when it opens."""

CONNECTION_WINDOW_BYTES = 16 << 20
"""Room for a hundred stalled streams, which then hold up nobody else."""

FRAME_HEAD_BYTES = 9
DATA, GOAWAY = 0x0, 0x7


class Connection:
    """One HTTP/2 connection over `end` (Plain or Tls); it opens when its first stream does.

    fault        how the server broke the rules of HTTP/2: every stream fails with it
    goaway_code  of the server's GOAWAY; streams that are open go on (h2 itself would drop them)
    """

    def __init__(self, end: Any, scheme: str) -> None:
        self.end, self.scheme = end, scheme
        self.is_over = False
        self.fault: Exception | None = None
        self.goaway_code: int | None = None
        self.streams: dict[int, Stream] = {}
        """Those that are open, by their ids."""
        self.members: set[Stream] = set()
        """Those that have been made and not closed, opened or not."""
        self.dropped: set[int] = set()
        """The ids of those that we closed before the server had said all."""
        self.h2 = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        ours = {SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: LEAST_WINDOW_BYTES}
        self.h2.local_settings = Settings(client=True, initial_values=ours)
        self._raw = bytearray()
        self._has_settings = self._is_held = self._is_rude = False
        self._news = asyncio.Event()
        self._opening = asyncio.Lock()
        self._listening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Preface and SETTINGS of both sides; the server's must allow extended CONNECT (RFC 8441 §3)."""
        async with self._opening:
            if self._listening is not None:
                return
            await self.end.open()
            assert self.scheme == "http" or self.end.protocol == "h2"
            self.h2.initiate_connection()
            self.h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES - WINDOW_BYTES)
            self.push()
            self._listening = asyncio.get_running_loop().create_task(self._listen())
            await self.until(lambda: self._has_settings)
        assert self.h2.remote_settings.enable_connect_protocol == 1

    async def until(self, claim: Callable[[], object]) -> None:
        """Returns when `claim()` holds; raises ConnectionResetError when the connection ends before."""
        while not claim():
            self.check()
            await self._news.wait()

    def check(self) -> None:
        """Raises ConnectionResetError when the connection has ended, AssertionError when by a fault."""
        assert self.fault is None, f"the server broke HTTP/2: {self.fault!r}"
        if self.is_over:
            raise ConnectionResetError("the HTTP/2 connection has ended")

    def push(self) -> None:
        """Send what h2 has to send."""
        if not self._is_held and not self.is_over:
            self.end.post(self.h2.data_to_send())

    async def push_in_pieces(self, sizes: list[int]) -> None:
        """The same in pieces of these sizes, with a turn of the loop after each; the last piece is the rest."""
        self._is_held = True
        data, at = self.h2.data_to_send(), 0
        for size in sizes:
            self.end.post(data[at : at + size])
            at += size
            await turns(1)
        self.end.post(data[at:])
        self._is_held = False
        self.push()

    async def _listen(self) -> None:
        try:
            while piece := await self.end.recv(1 << 18):
                self._raw += piece
                self._take_frames()
                self.push()
                self._tell()
        except ConnectionResetError:
            pass
        except ProtocolError as fault:
            self.fault = fault
            self.push()
        finally:
            self.is_over = True
            self._tell()
            if self._is_rude:
                self.end.reset()
            else:
                self.end.close()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _take_frames(self) -> None:
        while len(self._raw) >= (size := FRAME_HEAD_BYTES + int.from_bytes(self._raw[:3])):
            frame = bytes(self._raw[:size])
            del self._raw[:size]
            kind, stream_id = frame[3], int.from_bytes(frame[5:9])
            if kind == GOAWAY:
                self.goaway_code = int.from_bytes(frame[13:17])
            elif kind == DATA and stream_id in self.dropped:  # was under way
                if length := size - FRAME_HEAD_BYTES:
                    self.h2.increment_flow_control_window(length)
            else:
                for event in self.h2.receive_data(frame):
                    self._note(event)

    def _note(self, event: Event) -> None:
        if isinstance(event, RemoteSettingsChanged):
            self._has_settings = True
        elif stream := self.streams.get(getattr(event, "stream_id", 0)):
            stream.note(event)

    def close(self) -> None:
        """Say goodbye and end, whatever the streams are doing."""
        if self._listening is None:
            self.is_over = True
            self.end.close()
        elif not self.is_over:
            self.h2.close_connection()
            self.push()
            self.is_over = True
            self._listening.cancel()  # it is the one that reads the socket, so it closes it

    def reset(self) -> None:
        """End without a goodbye, and all streams with it."""
        assert self._listening is not None
        self.is_over = self._is_rude = True
        self._listening.cancel()


class Stream:
    """The end of a wire that is one stream: END_STREAM is its half-close, RST_STREAM its reset.

    Closed while something is unread, it resets, as a socket does; else it ends its side, and resets when the server
    goes on talking.
    """

    def __init__(self, connection: Connection, window_bytes: int = WINDOW_BYTES) -> None:
        self.connection = connection
        self.id = 0
        self.headers: dict[str, str] | None = None
        self.reset_code: ErrorCodes | None = None
        self.has_ended = False
        """The server has said all."""
        self.unread = bytearray()
        """What has come and was not asked for yet; the window holds it to some size."""
        self._window_bytes = window_bytes
        self._has_said_all = self._is_closed = False
        connection.members.add(self)

    @property
    def sock(self) -> Any:
        return self.connection.end.sock

    async def open(self) -> None:
        await self.connection.open()

    def begin(self, headers: Sequence[tuple[str, str]], *, end_stream: bool = False) -> None:
        """Open the stream with this request; `push` of the connection sends it."""
        h2 = self.connection.h2
        self.id = h2.get_next_available_stream_id()
        self.connection.streams[self.id] = self
        h2.send_headers(self.id, headers, end_stream=end_stream)
        if self._window_bytes > LEAST_WINDOW_BYTES:
            h2.increment_flow_control_window(self._window_bytes - LEAST_WINDOW_BYTES, self.id)
        self._has_said_all = end_stream

    def note(self, event: Event) -> None:
        """What h2 has to say about this stream."""
        if isinstance(event, ResponseReceived):
            self.headers = dict(event.headers)
        elif isinstance(event, DataReceived):
            self.unread += event.data
            self.has_ended = event.stream_ended is not None
            self._acknowledge(event.flow_controlled_length - len(event.data))  # padding
            if self._is_closed:
                self._drop()
        elif isinstance(event, StreamEnded):
            self.has_ended = True
        elif isinstance(event, StreamReset):
            assert event.remote_reset, f"h2 reset the stream: {event}"
            self.reset_code = event.error_code
        if self._is_closed and self._is_over:
            self._forget()

    @property
    def _is_over(self) -> bool:
        """Nothing more can come."""
        return self.has_ended or self.reset_code is not None or self.connection.is_over

    def _acknowledge(self, count: int) -> None:
        if count:
            self.connection.h2.acknowledge_received_data(count, self.id)

    def _check(self) -> None:
        if self.reset_code is not None:
            raise ConnectionResetError(f"RST_STREAM {self.reset_code!r}")
        self.connection.check()

    # --- what a Wire does

    async def send(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            await self.connection.end.outbox.flushed()
            view = view[self.send_now(view) :]
            if view:
                await self.connection.until(lambda: self.reset_code is not None or self._room)
        await self.connection.end.outbox.flushed()

    @property
    def _room(self) -> int:
        """What the windows let us say, in one frame."""
        h2 = self.connection.h2
        return max(0, min(h2.local_flow_control_window(self.id), h2.max_outbound_frame_size))

    def send_now(self, data: bytes | memoryview) -> int:
        self._check()
        if self._has_said_all or self._is_closed:
            raise BrokenPipeError("this side of the stream has ended")
        if not self.connection.end.outbox.is_empty:
            return 0
        if part := bytes(data[: self._room]):
            self.connection.h2.send_data(self.id, part)
            self.connection.push()
        return len(part)

    async def recv(self, limit: int) -> bytes:
        while (piece := self.recv_now(limit)) is None:
            await self.connection.until(lambda: self.unread or self.has_ended or self.reset_code is not None)
        return piece

    def recv_now(self, limit: int) -> bytes | None:
        if self.unread:
            piece = bytes(self.unread[:limit])
            del self.unread[:limit]
            self._acknowledge(len(piece))
            self.connection.push()
            return piece
        if self.has_ended and self.reset_code in {None, ErrorCodes.NO_ERROR}:
            return b""
        self._check()
        return None

    def half_close(self) -> None:
        if not self._has_said_all and self.reset_code is None and not self.connection.is_over:
            self.connection.h2.end_stream(self.id)
            self.connection.push()
        self._has_said_all = True

    def finish(self, data: bytes) -> None:
        """The last of what is said, and END_STREAM, in one frame."""
        self.connection.h2.send_data(self.id, data, end_stream=True)
        self.connection.push()
        self._has_said_all = True

    def reset(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._drop()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self.unread:
            self._drop()
            return
        if self.id:
            self.half_close()
        if self._is_over or not self.id:
            self._forget()

    def _drop(self) -> None:
        """RST_STREAM where that says anything, and the connection's window gets back what nobody will read."""
        if self.id in self.connection.streams and not self.connection.is_over:
            self._acknowledge(len(self.unread))
            if self.reset_code is None and not (self.has_ended and self._has_said_all):
                self.connection.h2.reset_stream(self.id, ErrorCodes.CANCEL)
            self.connection.push()
        self._forget()

    def _forget(self) -> None:
        self.unread.clear()
        self.connection.members.discard(self)
        if self.connection.streams.pop(self.id, None) and not self._is_over:
            self.connection.dropped.add(self.id)


class H2Client(Client):
    """As Client, over a stream; each request takes a new one of the same connection."""

    welcome = 200
    end: Stream

    def __init__(self, connection: Connection, window_bytes: int = WINDOW_BYTES) -> None:
        super().__init__(Stream(connection, window_bytes))
        self.connection = connection
        self._window_bytes = window_bytes

    async def request(self, path: str = "/", headers: Sequence[tuple[str, str]] = (), method: str = "GET") -> Response:
        head = [(":method", method), (":scheme", self.connection.scheme), (":authority", NAME), (":path", path)]
        return await self.ask([*head, *headers], end_stream=True)

    async def upgrade(
        self,
        path: str = "/",
        headers: Sequence[tuple[str, str]] = (),
        *,
        early: bytes = b"",
        cuts: list[int] | None = None,
        has_key: bool = False,
    ) -> Response:
        """Extended CONNECT; raises Refused unless it is a 200 as RFC 8441 §5 wants it.

        in      early    frames sent in the same piece as the head
                cuts     send the head (and `early`) in pieces of these sizes
                has_key  send a Sec-WebSocket-Key all the same, as some do; its Accept is checked
        """
        key = base64.b64encode(os.urandom(16)).decode()
        response = await self.ask(
            [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", self.connection.scheme),
                (":authority", NAME),
                (":path", path),
                ("sec-websocket-version", "13"),
                *([("sec-websocket-key", key)] if has_key else []),
                *headers,
            ],
            early=early,
            cuts=cuts,
        )
        if response.status != self.welcome:
            raise Refused(response)
        assert response.headers.get("sec-websocket-accept") == (accept_of(key) if has_key else None)
        assert "sec-websocket-extensions" not in response.headers, "no extension was offered"
        self.response = response
        return response

    async def ask(
        self,
        headers: Sequence[tuple[str, str]],
        *,
        end_stream: bool = False,
        early: bytes = b"",
        cuts: list[int] | None = None,
    ) -> Response:
        """Any request head, and the whole answer (of a tunnel that opens: its head)."""
        await self.connection.open()
        if self.end.id:
            self.end.close()
            self.end = Stream(self.connection, self._window_bytes)
        self.end.begin([(name.lower(), value) for name, value in headers], end_stream=end_stream)
        if early:
            self.connection.h2.send_data(self.end.id, early)
        await self.connection.push_in_pieces(cuts or [])
        await self.connection.until(lambda: self.end.headers is not None or self.end.reset_code is not None)
        if self.end.headers is None:
            raise ConnectionResetError(f"RST_STREAM {self.end.reset_code!r} and no answer")
        fields = dict(self.end.headers)
        status = int(fields.pop(":status"))
        is_tunnel = status == self.welcome and not end_stream
        body = b"" if is_tunnel else await self.recv_to_end()
        return Response(status, fields, body)
