"""A client of HTTP/2 whose every step is the test's: h2 for the wire, websockets for the frames of a tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    InformationalResponseReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes, Settings
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Protocol, Side

__all__ = ["H2Client", "H2Stream", "H2WebSocket", "connected"]

DEADLINE_S = 20.0
"""How long anything that must happen may take: generous, only ever waited for in a failure."""
READ_BYTES = 65536
FRAME_HEAD_BYTES, GOAWAY = 9, 7

Pairs = Sequence[tuple[str, str]]


class H2Stream:
    """What has come of the answer to one request."""

    def __init__(self, client: H2Client, stream_id: int) -> None:
        self.client, self.id = client, stream_id
        self.interim: list[int] = []
        self.status = 0
        self.pairs: list[tuple[str, str]] = []
        self.body = bytearray()
        self.unread_bytes = 0
        """Of its window, while the client is slow."""
        self.is_whole = self.has_trailers = False
        self.reset_code: ErrorCodes | None = None
        self.on_data: Callable[[bytes], None] = self.body.extend

    @property
    def fields(self) -> dict[str, str]:
        assert len(dict(self.pairs)) == len(self.pairs), self.pairs
        return dict(self.pairs)

    @property
    def is_over(self) -> bool:
        return self.is_whole or self.reset_code is not None or self.client.is_over

    async def send(self, data: bytes, *, is_last: bool = True) -> None:
        """Send some of the body, as windows and the frame size allow. Stops where the server wants no more."""
        h2, at = self.client.h2, 0
        while at < len(data):
            await self.client.until(lambda: self.is_over or h2.local_flow_control_window(self.id) > 0)
            if self.is_over:
                return
            n = min(h2.local_flow_control_window(self.id), h2.max_outbound_frame_size)
            h2.send_data(self.id, data[at : at + n])
            at += n
            self.client.push()
        if is_last:
            self.end()

    def end(self) -> None:
        if self.reset_code is None:
            self.client.h2.end_stream(self.id)
            self.client.push()

    def reset(self) -> None:
        self.reset_code = ErrorCodes.CANCEL
        self.client.h2.reset_stream(self.id, self.reset_code)
        self.client.push()

    def take(self) -> None:
        """Give back the window of what has come."""
        n, self.unread_bytes = self.unread_bytes, 0
        if n:
            self.client.h2.acknowledge_received_data(n, self.id)
            self.client.push()

    async def head(self) -> H2Stream:
        await self.client.until(lambda: self.status or self.is_over)
        return self

    async def answer(self) -> H2Stream:
        """To its end, good or bad."""
        await self.client.until(lambda: self.is_over)
        return self


class H2Client:
    """One connection. See `connected`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, scheme: str) -> None:
        self.reader, self.writer, self.scheme = reader, writer, scheme
        self.streams: dict[int, H2Stream] = {}
        self.is_slow = False
        """Windows are given back by `H2Stream.take` alone."""
        self.is_over = False
        self.goaway_codes: list[int] = []
        self.order: list[int] = []
        """The stream of each DATA frame that has come, in order."""
        self.resets: list[int] = []
        """The streams that the server has reset, each as often as it did."""
        self.h2 = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding="latin-1",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._raw = bytearray()
        self._has_settings = False
        self._news = asyncio.Event()

    def push(self) -> None:
        if data := self.h2.data_to_send():
            self.writer.write(data)

    def reset(self) -> None:
        """Leave so that the server sees it: RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def until(self, claim: Callable[[], object]) -> None:
        """Returns when the claim holds, which is looked at whenever something has come."""
        async with asyncio.timeout(DEADLINE_S):
            while not claim():
                assert not self.is_over, "the connection has ended"
                self._news.clear()
                await self._news.wait()

    async def start(self, window_bytes: int | None) -> None:
        if window_bytes is not None:
            ours = {SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: window_bytes}
            self.h2.local_settings = Settings(client=True, initial_values=ours)
        self.h2.initiate_connection()
        self.push()

    async def settled(self) -> None:
        """Wait for the server's SETTINGS, behind which CONNECT may be extended."""
        await self.until(lambda: self._has_settings)

    async def listen(self) -> None:
        try:
            while data := await self.reader.read(READ_BYTES):
                self._raw += data
                self._take_frames()
                self.push()
                self._news.set()
        except ConnectionResetError:
            pass
        finally:
            self.is_over = True
            self._news.set()

    def _take_frames(self) -> None:
        while len(self._raw) >= (size := FRAME_HEAD_BYTES + int.from_bytes(self._raw[:3], "big")):
            frame = bytes(self._raw[:size])
            del self._raw[:size]
            if frame[3] == GOAWAY:  # for h2 all would be over
                self.goaway_codes.append(int.from_bytes(frame[13:17], "big"))
                continue
            for event in self.h2.receive_data(frame):
                self._note(event)

    def ask(self, path: str = "/", *fields: tuple[str, str], method: str = "GET", is_whole: bool = True) -> H2Stream:
        """Open a stream with a request; its body, if it has one, is sent by `H2Stream.send`."""
        head = [(":method", method), (":scheme", self.scheme), (":authority", "a.example"), (":path", path)]
        return self.say([*head, *fields], is_whole=is_whole)

    def say(self, pairs: Pairs, *, is_whole: bool = True) -> H2Stream:
        """Open a stream with exactly these fields."""
        stream = H2Stream(self, self.h2.get_next_available_stream_id())
        self.streams[stream.id] = stream
        self.h2.send_headers(stream.id, pairs, end_stream=is_whole)
        self.push()
        return stream

    def shake(self, path: str = "/", *fields: tuple[str, str], is_whole: bool = False) -> H2Stream:
        """Ask for a WebSocket."""
        head = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", self.scheme),
            (":path", path),
            (":authority", "a.example"),
            ("sec-websocket-version", "13"),
        ]
        return self.say([*head, *fields], is_whole=is_whole)

    async def websocket(self, path: str = "/", *fields: tuple[str, str]) -> H2WebSocket:
        await self.settled()
        stream = await self.shake(path, *fields).head()
        assert stream.status == 200, (stream.status, bytes(stream.body))
        return H2WebSocket(stream)

    def _note(self, event: Event) -> None:
        if isinstance(event, RemoteSettingsChanged):
            self._has_settings = True
        stream = self.streams.get(getattr(event, "stream_id", None) or 0)
        if stream is None:
            return
        match event:
            case InformationalResponseReceived():
                stream.interim.append(int(dict(event.headers)[":status"]))
            case ResponseReceived():
                (_, status), *stream.pairs = event.headers
                stream.status = int(status)
            case TrailersReceived():
                stream.has_trailers = True
            case DataReceived():
                self.order.append(stream.id)
                stream.unread_bytes += event.flow_controlled_length
                stream.on_data(event.data)
                if not self.is_slow:
                    stream.take()
            case StreamEnded():
                stream.is_whole = True
                stream.on_data(b"")
            case StreamReset():
                assert event.remote_reset
                self.resets.append(stream.id)
                stream.reset_code = event.error_code
                stream.on_data(b"")


@contextlib.asynccontextmanager
async def connected(window_bytes: int | None = None, scheme: str = "http", **how: Any) -> AsyncIterator[H2Client]:
    """A connection that is read all the time, and has been closed behind the block.

    in      window_bytes  of each stream, from the server
            how           as `asyncio.open_connection`
    """
    client = H2Client(*await asyncio.open_connection(**how), scheme=scheme)
    await client.start(window_bytes)
    listening = asyncio.create_task(client.listen())
    try:
        yield client
    finally:
        client.writer.close()
        with contextlib.suppress(ConnectionError):
            await client.writer.wait_closed()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        if listening.done() and not listening.cancelled() and (fault := listening.exception()) is not None:
            raise AssertionError(f"the server broke HTTP/2: {fault!r}") from fault


class H2WebSocket:
    """What websockets' `ClientConnection` is for a test of echoes, over one stream."""

    def __init__(self, stream: H2Stream) -> None:
        self.stream = stream
        self.protocol = Protocol(Side.CLIENT, max_size=None)
        self._frames: deque[Frame] = deque()
        self._is_at_eof = False
        early = bytes(stream.body)
        stream.body.clear()
        stream.on_data = self._heed
        if early:
            self._heed(early)
        if stream.is_over:
            self._heed(b"")

    @property
    def close_code(self) -> int | None:
        return self.protocol.close_code

    def _heed(self, data: bytes) -> None:
        if data:
            self.protocol.receive_data(data)
        elif not self._is_at_eof:
            self._is_at_eof = True
            self.protocol.receive_eof()
        for frame in self.protocol.events_received():
            assert isinstance(frame, Frame)
            self._frames.append(frame)

    async def _push(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                await self.stream.send(data, is_last=False)
            elif not self.stream.is_over:
                self.stream.end()

    async def _next(self, *opcodes: Opcode) -> Frame:
        """The next of these; others are dropped. raises ConnectionClosed"""
        while True:
            await self.stream.client.until(lambda: self._frames or self.stream.is_over)
            if not self._frames:
                raise ConnectionClosedError(self.protocol.close_rcvd, self.protocol.close_sent)
            frame = self._frames.popleft()
            if frame.opcode is Opcode.CLOSE:
                await self._push()
                await self.stream.answer()
                raise self.protocol.close_exc
            if frame.opcode in opcodes:
                return frame

    async def send(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.protocol.send_text(message.encode())
        else:
            self.protocol.send_binary(message)
        await self._push()

    async def recv(self) -> str | bytes:
        frame = await self._next(Opcode.TEXT, Opcode.BINARY)
        opcode, pieces = frame.opcode, [bytes(frame.data)]
        while not frame.fin:
            frame = await self._next(Opcode.CONT)
            pieces.append(bytes(frame.data))
        whole = b"".join(pieces)
        return whole.decode() if opcode is Opcode.TEXT else whole

    async def pinged(self, data: bytes) -> None:
        """PING, and its PONG."""
        self.protocol.send_ping(data)
        await self._push()
        while bytes((await self._next(Opcode.PONG)).data) != data:
            pass

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """The whole closing handshake, to the end of the stream."""
        self.protocol.send_close(code, reason)
        await self._push()
        with contextlib.suppress(ConnectionClosed):
            await self._next()

    def drop(self) -> None:
        """Leave without a word."""
        self.stream.reset()

    @property
    def close_rcvd(self) -> Close | None:
        return self.protocol.close_rcvd
