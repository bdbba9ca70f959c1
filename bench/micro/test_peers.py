"""The frame kernel beside others that do the same work on the same bytes, a row for each, everyone through Python.

What a row contains:

memcpy        `bytes(bytearray)`: one allocation and one copy of all bytes, of the whole read where it is parsed
wstunnel      `mask`, `FrameParser.feed` and `encode_frame` make a new `bytes`; `Utf8Validator.feed` only counts
in place      `FrameParser.feed_in_place`: what the relay does with a read; no bytes object is made
websockets    mask: its C `apply_mask`. UTF-8: `bytes.decode`, which it calls, and which makes the text too. Parse:
              `Protocol.receive_data` and `events_received`, a Frame object per frame. Encode: `Frame.serialize`
wsaccel       mask: a masker for the key, and one call of it. UTF-8: `Utf8Validator.validate`. It knows no frames
wsproto       mask: its masker, in Python. UTF-8: its incremental decoder. Parse: `receive_bytes` and `received_frames`,
              a Frame object per frame. Encode: `send_data`
picows        parse: a read into the buffer of a server's protocol (the copy is in the time) and one call of a Python
              listener per frame, its way of handing them over. Masking, UTF-8 and encoding cannot be called alone
"""

from __future__ import annotations

import asyncio
import socket
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest

from bench.micro.samples import READ_BYTES, SCRIPTS, text
from tests.differential.frames import BINARY, KEY, client_frame, masked
from wstunnel._speedups import FrameParser, Utf8Validator, encode_frame, mask

SIZES = [64, 1024, READ_BYTES]

Work = Callable[[], object]
Feed = Callable[[bytearray], int]  # takes a read, says how many bytes of payload it made


def module(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed; `make bench-micro` brings it")


def measure(benchmark: Any, group: str, size: int, work: Work) -> None:
    benchmark.group = group
    benchmark.pedantic(work, rounds=200, iterations=10, warmup_rounds=10)
    note(benchmark, size)


def note(benchmark: Any, size: int, frames: int = 0) -> None:
    """Beside the times: how fast the fastest round was."""
    if benchmark.stats is None:  # --benchmark-disable
        return
    best_s = benchmark.stats.stats.min
    benchmark.extra_info["GB_per_s"] = round(size / best_s / 1e9, 2)
    if frames:
        benchmark.extra_info["ns_per_frame"] = round(best_s * 1e9 / frames, 1)


# --- masking


def mask_wsproto(data: bytes) -> Work:
    masker = module("wsproto.frame_protocol").XorMaskerSimple
    changeable = bytearray(data)
    return lambda: masker(KEY).process(changeable)


def mask_wsaccel(data: bytes) -> Work:
    create = module("wsaccel.xormask").createXorMasker
    return lambda: create(KEY, len(data)).process(data)


def mask_websockets(data: bytes) -> Work:
    apply_mask = module("websockets.speedups").apply_mask
    return lambda: apply_mask(data, KEY)


MASKS: dict[str, Callable[[bytes], Work]] = {
    "wstunnel": lambda data: lambda: mask(data, KEY),
    "websockets": mask_websockets,
    "wsaccel": mask_wsaccel,
    "wsproto": mask_wsproto,
}


@pytest.mark.parametrize("peer", ["memcpy", *MASKS])
@pytest.mark.parametrize("size", SIZES)
def test_mask(benchmark: Any, size: int, peer: str) -> None:
    data = bytes(range(64)) * (size // 64)
    if peer == "memcpy":
        work = memcpy(data)
    else:
        work = MASKS[peer](data)
        assert work() == masked(data, KEY)

    measure(benchmark, f"mask {size} B", size, work)


def memcpy(data: bytes) -> Work:
    source = bytearray(data)
    return lambda: bytes(source)


# --- UTF-8


def utf8_wsaccel(data: bytes) -> Work:
    validate = module("wsaccel.utf8validator").Utf8Validator().validate
    return lambda: validate(data)


def utf8_wstunnel(data: bytes) -> Work:
    feed = Utf8Validator().feed
    return lambda: feed(data)


UTF8: dict[str, Callable[[bytes], Work]] = {
    "memcpy": memcpy,
    "wstunnel": utf8_wstunnel,
    "websockets": lambda data: data.decode,
    "wsaccel": utf8_wsaccel,
    "wsproto": lambda data: partial(getincrementaldecoder("utf-8")().decode, data),
}


@pytest.mark.parametrize("peer", UTF8)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_utf8(benchmark: Any, script: str, size: int, peer: str) -> None:
    data = text(script, size)

    measure(benchmark, f"UTF-8 {script} {size} B", len(data), UTF8[peer](data))


# --- parsing


@contextmanager
def feed_memcpy() -> Iterator[Feed]:
    yield lambda read: len(bytes(read))


@contextmanager
def feed_wstunnel() -> Iterator[Feed]:
    parser = FrameParser()
    yield lambda read: len(parser.feed(read)[0])


@contextmanager
def feed_in_place() -> Iterator[Feed]:
    parser = FrameParser()
    yield lambda read: parser.feed_in_place(read)[0]


@contextmanager
def feed_websockets() -> Iterator[Feed]:
    protocol = module("websockets.protocol")
    peer = protocol.Protocol(protocol.SERVER, state=protocol.OPEN, max_size=None)

    def work(read: bytearray) -> int:
        peer.receive_data(read)
        return sum(len(frame.data) for frame in peer.events_received())

    yield work


@contextmanager
def feed_wsproto() -> Iterator[Feed]:
    peer = module("wsproto.frame_protocol").FrameProtocol(client=False, extensions=[])

    def work(read: bytearray) -> int:
        peer.receive_bytes(read)
        return sum(len(frame.payload) for frame in peer.received_frames())

    yield work


@contextmanager
def feed_picows() -> Iterator[Feed]:
    picows = module("picows")

    class Listener(picows.WSListener):  # type: ignore[misc]
        payload_bytes = 0

        def on_ws_connected(self, transport: Any) -> None:
            connected.set_result(transport)

        def on_ws_frame(self, _transport: Any, frame: Any) -> None:
            self.payload_bytes += frame.payload_size

        def on_ws_disconnected(self, _transport: Any) -> None:
            gone.set_result(None)

    loop = asyncio.new_event_loop()
    connected, gone = loop.create_future(), loop.create_future()
    listener = Listener()
    server = loop.run_until_complete(picows_server(picows, listener))
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        client.sendall(UPGRADE)
        transport = loop.run_until_complete(asyncio.wait_for(connected, DEADLINE_S))
        protocol = transport.underlying_transport.get_protocol()

        def work(read: bytearray) -> int:
            before = listener.payload_bytes
            left = memoryview(read)
            while left:
                room = protocol.get_buffer(-1)
                size = min(len(left), len(room))
                room[:size] = left[:size]
                protocol.buffer_updated(size)
                left = left[size:]
            return listener.payload_bytes - before

        yield work
        transport.disconnect()
        loop.run_until_complete(asyncio.wait_for(gone, DEADLINE_S))
    server.close()
    loop.run_until_complete(server.wait_closed())
    loop.close()


async def picows_server(picows: Any, listener: Any) -> asyncio.Server:
    server: asyncio.Server = await picows.ws_create_server(lambda _request: listener, "127.0.0.1", 0)
    return server


DEADLINE_S = 30.0
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
FEEDS: dict[str, Callable[[], AbstractContextManager[Feed]]] = {
    "memcpy": feed_memcpy,
    "wstunnel": feed_wstunnel,
    "in place": feed_in_place,
    "picows": feed_picows,
    "websockets": feed_websockets,
    "wsproto": feed_wsproto,
}


@pytest.mark.parametrize("peer", FEEDS)
@pytest.mark.parametrize("size", [64, 1024, 16 * 1024])
def test_parse_a_full_read(benchmark: Any, size: int, peer: str) -> None:
    frame = client_frame(BINARY, b"x" * size)
    frames = READ_BYTES // len(frame)
    wire = frame * frames
    read = bytearray(wire)

    def arrive() -> tuple[tuple[bytearray], dict[str, object]]:
        read[:] = wire
        return (read,), {}

    with FEEDS[peer]() as feed:
        assert feed(bytearray(wire)) == (len(wire) if peer == "memcpy" else size * frames)

        benchmark.group = f"parse {frames} frames of {size} B"
        benchmark.pedantic(feed, setup=arrive, rounds=300)
    note(benchmark, len(wire), frames)


# --- encoding


def encode_websockets(payload: bytes) -> Work:
    frames = module("websockets.frames")
    return lambda: frames.Frame(frames.Opcode.BINARY, payload).serialize(mask=False)


def encode_wsproto(payload: bytes) -> Work:
    peer = module("wsproto.frame_protocol").FrameProtocol(client=False, extensions=[])
    return lambda: peer.send_data(payload, True)


ENCODERS: dict[str, Callable[[bytes], Work]] = {
    "wstunnel": lambda payload: lambda: encode_frame(BINARY, payload),
    "websockets": encode_websockets,
    "wsproto": encode_wsproto,
}


@pytest.mark.parametrize("peer", ["memcpy", *ENCODERS])
@pytest.mark.parametrize("size", SIZES)
def test_encode(benchmark: Any, size: int, peer: str) -> None:
    payload = bytes(size)
    if peer == "memcpy":
        work = memcpy(payload)
    else:
        work = ENCODERS[peer](payload)
        assert work() == encode_frame(BINARY, payload)

    measure(benchmark, f"encode {size} B", size, work)
