"""A WebSocket client made of other people's parts, with its hands on every byte.

Heads are h11's, frames are those of `websockets`; nothing of wstunnel is used, so that a mistake made twice does
not look right. It answers nothing by itself: whether a PING or a CLOSE is answered is the test's decision.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import h11
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader

from tests.wire.sockets import Wire, connected
from wstunnel import TcpAddress, UnixAddress

__all__ = [
    "BINARY",
    "CLOSE",
    "CONT",
    "NO_STATUS",
    "PING",
    "PONG",
    "TEXT",
    "Client",
    "Heard",
    "Refused",
    "Response",
    "accept_of",
    "close_frame",
    "crooked",
    "frame",
    "silent",
]

CONT, TEXT, BINARY, CLOSE, PING, PONG = (
    Opcode.CONT,
    Opcode.TEXT,
    Opcode.BINARY,
    Opcode.CLOSE,
    Opcode.PING,
    Opcode.PONG,
)

NO_STATUS = 1005
"""Stands for a CLOSE without a body (RFC 6455 §7.1.5); never on the wire."""

MAX_FRAME_BYTES = 1 << 20
"""No frame of the tunnel is larger: it makes one of each read, and a read is 64 KiB."""


def frame(opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A masked client frame without fault."""
    return Frame(opcode, payload, fin).serialize(mask=True)


def close_frame(code: int | None = None, reason: str = "") -> bytes:
    """A client CLOSE; without a code its body is empty. Any code goes, the forbidden too."""
    body = b"" if code in {None, NO_STATUS} else code.to_bytes(2, "big") + reason.encode()
    return frame(CLOSE, body)


def crooked(first: int, payload: bytes = b"", *, masked: bool = True, length: bytes | None = None) -> bytes:
    """A frame nobody should send: any first byte, any spelling of the length.

    in      length  the bytes of the length field, 7-bit part first; its top bit is set when masked
    """
    if length is None:
        assert len(payload) < 126
        length = bytes([len(payload)])
    key = os.urandom(4) if masked else b""
    head = bytes([first, length[0] | (0x80 if masked else 0)]) + length[1:]
    if masked:
        payload = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
    return head + key + payload


def accept_of(key: str) -> str:
    """The answer to a Sec-WebSocket-Key (RFC 6455 §4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


class Refused(Exception):
    """The tunnel answered the handshake with something other than 101."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"{response.status} {response.body[:200]!r}")
        self.response = response


@dataclass
class Heard:
    """All that a client heard up to the end.

    code    of the CLOSE, NO_STATUS if its body was empty, None if there was no CLOSE at all
    reset   the end was a reset and not an EOF
    """

    data: bytearray = field(default_factory=bytearray)
    opcodes: list[Opcode] = field(default_factory=list)
    pings: list[bytes] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    code: int | None = None
    reason: str = ""
    reset: bool = False


class Client(Wire):
    """One connection to the tunnel, from the first request on."""

    welcome = 101
    """The status that opens a tunnel."""

    def __init__(self, end) -> None:
        super().__init__(end)
        self.response: Response | None = None
        self._http = h11.Connection(h11.CLIENT)
        self._reader = StreamReader()
        self._parsing: Generator[None, None, Frame] | None = None

    @classmethod
    async def reach(cls, address: TcpAddress | UnixAddress, *, buffer_bytes: int | None = None) -> Client:
        """Connected, nothing said yet."""
        return cls(await connected(address, buffer_bytes=buffer_bytes))

    # --- the opening handshake, and plain requests

    async def request(self, path: str = "/", headers: Sequence[tuple[str, str]] = (), method: str = "GET") -> Response:
        """One plain request and its whole answer; may be called again where the connection is kept alive."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        head = h11.Request(method=method, target=path, headers=[("Host", "tunnel.test"), *headers])
        await self.send(self._http.send(head) + self._http.send(h11.EndOfMessage()))
        return await self._answer()

    async def upgrade(
        self,
        path: str = "/",
        headers: Sequence[tuple[str, str]] = (),
        *,
        early: bytes = b"",
        cuts: list[int] | None = None,
    ) -> Response:
        """The opening handshake; raises Refused unless it is a 101 as RFC 6455 §4.2.2 wants it.

        in      early   frames sent in the same piece as the head
                cuts    send the head (and `early`) in pieces of these sizes
        """
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        key = base64.b64encode(os.urandom(16)).decode()
        head = self._http.send(
            h11.Request(
                method="GET",
                target=path,
                headers=[
                    ("Host", "tunnel.test"),
                    ("Connection", "keep-alive, Upgrade"),
                    ("Upgrade", "websocket"),
                    ("Sec-WebSocket-Version", "13"),
                    ("Sec-WebSocket-Key", key),
                    *headers,
                ],
            )
        )
        self._http.send(h11.EndOfMessage())
        await self.send_in_pieces(head + early, cuts or [], 1)
        response = await self._answer()
        if response.status != 101:
            raise Refused(response)
        assert response.headers["sec-websocket-accept"] == accept_of(key)
        assert response.headers["upgrade"].lower() == "websocket"
        assert "upgrade" in response.headers["connection"].lower()
        assert "sec-websocket-extensions" not in response.headers, "no extension was offered"
        self.response = response
        self._reader.feed_data(self._http.trailing_data[0])
        return response

    async def _answer(self) -> Response:
        head: h11.Response | h11.InformationalResponse | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self.recv())
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.Response | h11.InformationalResponse):
                head = event
                if head.status_code == 101:
                    break
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise AssertionError(f"no answer but {event!r}")
        assert head is not None
        headers = {name.decode(): value.decode() for name, value in head.headers}
        return Response(head.status_code, headers, bytes(body))

    # --- frames

    async def frame(self) -> Frame | None:
        """The next frame, None at EOF.

        raises  ConnectionResetError on a reset; AssertionError on half a frame before the EOF and on a text frame that
                is not whole, valid UTF-8; websockets' ProtocolError on a frame that no server may send
        """
        if self._parsing is None:
            self._parsing = Frame.parse(self._reader.read_exact, mask=False, max_size=MAX_FRAME_BYTES)
        while True:
            try:
                next(self._parsing)
            except StopIteration as found:
                self._parsing = None
                got: Frame = found.value
                got.data = bytes(got.data)
                if got.opcode is TEXT:
                    assert got.fin, "a text message of the tunnel is one frame"
                    got.data.decode()
                return got
            except EOFError:
                assert not self._reader.buffer, f"the end came inside a frame: {bytes(self._reader.buffer[:80])!r}"
                return None
            piece = await self.recv()
            if piece:
                self._reader.feed_data(piece)
            else:
                self._reader.feed_eof()

    async def payload(self, count: int) -> bytes:
        """`count` payload bytes from whole data frames; frames that end elsewhere, or others, are failures."""
        got = bytearray()
        while len(got) < count:
            heard = await self.frame()
            assert heard is not None, f"the end came after {len(got)} of {count} bytes"
            assert heard.opcode in {TEXT, BINARY}, f"{heard} after {len(got)} of {count} bytes"
            got += heard.data
        assert len(got) == count, f"{len(got)} bytes came where {count} were expected"
        return bytes(got)

    async def to_end(self, *, answer: bool = False) -> Heard:
        """Everything up to the end; then this side closes too, as a client does. A frame after the CLOSE is a failure.

        in      answer  say CLOSE back, with the same code, as a well-behaved client does
        """
        heard = Heard()
        try:
            while (got := await self.frame()) is not None:
                assert heard.code is None, f"{got} after the CLOSE"
                self.note(heard, got)
                if got.opcode is CLOSE and answer:
                    await self.send(close_frame(heard.code))
        except (ConnectionResetError, BrokenPipeError):
            heard.reset = True
        self.close()
        return heard

    @staticmethod
    def note(heard: Heard, got: Frame) -> None:
        """Add one frame to what was heard."""
        if got.opcode is CLOSE:
            parsed = Close.parse(got.data)
            heard.code, heard.reason = int(parsed.code), parsed.reason
        elif got.opcode is PING:
            heard.pings.append(got.data)
        elif got.opcode is PONG:
            heard.pongs.append(got.data)
        else:
            heard.opcodes.append(got.opcode)
            heard.data += got.data


async def silent(wire: Wire, *, for_s: float) -> bool:
    """Nothing comes from the other side for that long."""
    try:
        async with asyncio.timeout(for_s):
            await wire.recv(1)
    except TimeoutError:
        return True
    return False
