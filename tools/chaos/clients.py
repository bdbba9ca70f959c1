"""WebSocket clients by the thousand, and visits that never stop.

Nothing of wstunnel is used. A `Client` costs some 0.2 ms of a processor; `Visits` has some of its visits made by the
`websockets` library, which is somebody else's idea of the protocol.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from websockets.asyncio.client import connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

__all__ = ["Address", "Client", "Cut", "End", "NoHandshake", "Visits", "open_many"]

Address = tuple[str, int] | str
"""HOST and port, or the path of a UNIX socket."""

PATIENCE_S = 30.0
"""A handshake or an echo that takes longer has failed."""

CONT, TEXT, CLOSE, PING, PONG = 0x0, 0x1, 0x8, 0x9, 0xA
_AT_ONCE = 64
"""Handshakes under way while many tunnels are opened."""

_FIN, _MASKED = 0x80, 0x80
_LENGTH_16, _LENGTH_64 = 126, 127
_KEY = base64.b64encode(bytes(16))
_ACCEPT = base64.b64encode(hashlib.sha1(_KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
_HEAD = (
    b"GET %s HTTP/1.1\r\nHost: chaos.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + _KEY + b"\r\n\r\n"
)


class NoHandshake(Exception):
    """No 101. `status` is that of the response; None: there was none."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


class Cut(Exception):
    """The tunnel ended where an echo was expected; with this close code, None: without a CLOSE."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"ended with {code}")
        self.code = code


@dataclass(slots=True)
class End:
    """All that came until the tunnel ended. `code` is None where no CLOSE came."""

    payload: bytes
    code: int | None


class Client:
    """One tunnel. Answers PING and CLOSE while it is read from."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, address: Address, path: str = "/", *, patience_s: float = PATIENCE_S) -> Client:
        """Shaken hands. raises NoHandshake"""
        try:
            async with asyncio.timeout(patience_s):
                return await cls._open(address, path)
        except TimeoutError:
            raise NoHandshake(f"no answer in {patience_s:g} s") from None
        except (OSError, EOFError) as error:
            raise NoHandshake(f"{type(error).__name__}: {error}") from None

    @classmethod
    async def _open(cls, address: Address, path: str) -> Client:
        if isinstance(address, str):
            reader, writer = await asyncio.open_unix_connection(address)
        else:
            reader, writer = await asyncio.open_connection(*address)
        try:
            writer.write(_HEAD % path.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if status != 101:
                raise NoHandshake(f"answered with {status}", status)
            if _ACCEPT not in head:
                raise NoHandshake("101 for another key", status)
        except BaseException:
            writer.close()
            raise
        return cls(reader, writer)

    def send(self, payload: bytes) -> None:
        """A text message."""
        self._write(_frame(TEXT, payload))

    def begin(self, payload: bytes, sent: int) -> bytes:
        """The first `sent` bytes of a message; what of its frame is to follow."""
        frame = _frame(TEXT, payload)
        cut = len(frame) - len(payload) + sent
        self._write(frame[:cut])
        return frame[cut:]

    def go_on(self, rest: bytes) -> None:
        """More of a message that was begun."""
        self._write(rest)

    async def take(self, count: int) -> bytes:
        """`count` bytes of payload, in however many messages. raises Cut"""
        got = bytearray()
        while len(got) < count:
            opcode, payload = await self._message()
            if opcode is None or opcode == CLOSE:
                raise Cut(None if opcode is None else int.from_bytes(payload[:2], "big"))
            got += payload
        return bytes(got)

    async def echo(self, payload: bytes) -> None:
        """Send it and get it back. raises Cut; ValueError when something else comes back"""
        self.send(payload)
        try:
            async with asyncio.timeout(PATIENCE_S):
                got = await self.take(len(payload))
        except TimeoutError:
            raise ValueError(f"no echo in {PATIENCE_S:g} s") from None
        if got != payload:
            raise ValueError(f"{len(payload)} bytes came back as others")

    async def to_end(self) -> End:
        """Everything until the other side ends; then this one does too."""
        got = bytearray()
        code = None
        while True:
            opcode, payload = await self._message()
            if opcode is None:
                self.abort()
                return End(bytes(got), code)
            if opcode == CLOSE:
                code = int.from_bytes(payload[:2], "big") if payload else 1005
                self._write(_frame(CLOSE, payload))
            else:
                got += payload

    async def close(self) -> None:
        """Say goodbye and wait for the end."""
        self._write(_frame(CLOSE, (1000).to_bytes(2, "big")))
        while (await self._message())[0] is not None:
            pass
        self.abort()

    def abort(self) -> None:
        self._writer.close()

    def _write(self, data: bytes) -> None:
        if not self._writer.is_closing():  # the end is told by what is read
            self._writer.write(data)

    async def _message(self) -> tuple[int | None, bytes]:
        """The next data frame or CLOSE; None: the end."""
        try:
            while True:
                first, length = await self._reader.readexactly(2)
                if length >= _LENGTH_16:
                    length = int.from_bytes(await self._reader.readexactly(2 if length == _LENGTH_16 else 8), "big")
                payload = await self._reader.readexactly(length)
                opcode = first & 0xF
                if opcode == PING:
                    self._write(_frame(PONG, payload))
                elif opcode != PONG:
                    return opcode, payload
        except (OSError, EOFError):
            return None, b""


def _frame(opcode: int, payload: bytes) -> bytes:
    count = len(payload)
    if count < _LENGTH_16:
        head = bytes((_FIN | opcode, _MASKED | count))
    elif count < 1 << 16:
        head = bytes((_FIN | opcode, _MASKED | _LENGTH_16)) + count.to_bytes(2, "big")
    else:
        head = bytes((_FIN | opcode, _MASKED | _LENGTH_64)) + count.to_bytes(8, "big")
    key = os.urandom(4)
    stream = (key * (count // 4 + 1))[:count]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")
    return head + key + masked.to_bytes(count, "big")


@dataclass(frozen=True, slots=True)
class Failure:
    """A visit that did not go as it should: when it began (time.monotonic), and why."""

    begun_s: float
    why: str


class Visits:
    """Handshake, echo, goodbye, over and over, as long as the block lasts.

    in      addresses   taken in turn, with `paths` in turn at each
            at_once     visits at the same time; `by_library` of them by the `websockets` library
            pause_s     of each visitor, after each visit
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        *,
        paths: Sequence[str] = ("/",),
        at_once: int = 8,
        by_library: int = 2,
        pause_s: float = 0.005,
    ) -> None:
        self._targets = [(address, path) for address in addresses for path in paths]
        self._at_once, self._by_library, self._pause_s = at_once, by_library, pause_s
        self.handshakes = 0
        self.failed: list[Failure] = []
        """No handshake."""
        self.cut: list[int | None] = []
        """Tunnels that ended before the echo was back, with their close codes."""
        self.wrong: list[str] = []
        """Anything else."""
        self._is_over = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Visits:
        self._tasks = [
            asyncio.create_task(self._come_back(index, self._by_library > index)) for index in range(self._at_once)
        ]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def reach(self, handshakes: int) -> None:
        """Wait until there were so many."""
        while self.handshakes < handshakes:
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)

    async def _come_back(self, index: int, by_library: bool) -> None:
        number = index
        while not self._is_over:
            address, path = self._targets[number % len(self._targets)]
            number += 1
            visit = self._library_visit if by_library else self._visit
            begun_s = time.monotonic()
            try:
                await visit(address, path, b"visit %d\n" % number)
            except NoHandshake as error:
                self.failed.append(Failure(begun_s, str(error)))
            except Cut as cut:
                self.cut.append(cut.code)
            except ValueError as error:
                self.wrong.append(str(error))
            await asyncio.sleep(self._pause_s)

    async def _visit(self, address: Address, path: str, word: bytes) -> None:
        client = await Client.open(address, path)
        self.handshakes += 1
        try:
            await client.echo(word)
            await client.close()
        finally:
            client.abort()

    async def _library_visit(self, address: Address, path: str, word: bytes) -> None:
        # no proxy, and nothing that would wait longer than the visit
        options = {"compression": None, "ping_interval": None, "open_timeout": PATIENCE_S, "close_timeout": PATIENCE_S}
        if isinstance(address, str):
            opening = unix_connect(address, f"ws://chaos.test{path}", **options)
        else:
            opening = connect(f"ws://{address[0]}:{address[1]}{path}", proxy=None, **options)
        try:
            tunnel = await opening
        except (OSError, EOFError, TimeoutError, InvalidHandshake) as error:
            raise NoHandshake(f"{type(error).__name__}: {error}") from None
        self.handshakes += 1
        async with tunnel:
            try:
                await tunnel.send(word.decode())
                async with asyncio.timeout(PATIENCE_S):
                    back = await tunnel.recv(decode=False)
            except ConnectionClosed as closed:
                raise Cut(None if closed.rcvd is None else closed.rcvd.code) from None
            except TimeoutError:
                raise ValueError(f"no echo in {PATIENCE_S:g} s") from None
            if back != word:
                raise ValueError(f"{word!r} came back as {back!r}")


async def open_many(address: Address, count: int, path: str = "/") -> list[Client]:
    """So many tunnels. raises NoHandshake when one cannot be opened"""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one() -> Client:
        async with turns:
            return await Client.open(address, path)

    return list(await asyncio.gather(*(one() for _ in range(count))))
