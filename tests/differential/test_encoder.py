"""Our frames as wsproto and websockets read them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, Protocol
from wsproto.frame_protocol import FrameProtocol

from tests.differential.frames import BINARY, PATIENT, PING, PONG, TEXT
from wstunnel._speedups import encode_frame, frame_header

EDGES = st.sampled_from([0, 1, 124, 125, 126, 127, 65534, 65535, 65536, 65537, 200_000])


@st.composite
def sent(draw: st.DrawFn) -> tuple[int, bytes]:
    opcode = draw(st.sampled_from([TEXT, BINARY, PING, PONG]))
    if opcode in (PING, PONG):
        return opcode, draw(st.binary(max_size=125))
    if opcode == TEXT:
        return opcode, draw(st.text(max_size=200)).encode() * draw(st.sampled_from([1, 1, 500]))
    return opcode, (draw(st.binary(min_size=1, max_size=50)) * 200_000)[: draw(EDGES)]


@settings(PATIENT, max_examples=150)
@given(st.lists(sent(), max_size=6))
def test_wsproto_reads_what_we_write(frames):
    parser = FrameProtocol(client=True, extensions=[])
    parser.receive_bytes(b"".join(encode_frame(opcode, payload) for opcode, payload in frames))

    read = list(parser.received_frames())

    assert [(int(frame.opcode), as_bytes(frame.payload), frame.message_finished) for frame in read] == [
        (opcode, payload, True) for opcode, payload in frames
    ]


@settings(PATIENT, max_examples=150)
@given(st.lists(sent(), max_size=6))
def test_websockets_reads_what_we_write(frames):
    protocol = Protocol(CLIENT, max_size=None)
    protocol.receive_data(b"".join(encode_frame(opcode, payload) for opcode, payload in frames))

    read = protocol.events_received()

    assert protocol.parser_exc is None
    assert [(int(frame.opcode), bytes(frame.data), frame.fin) for frame in read] == [
        (opcode, payload, True) for opcode, payload in frames
    ]


@settings(PATIENT)
@given(st.sampled_from([TEXT, BINARY]), st.one_of(EDGES, st.integers(0, 2**63 - 1)))
def test_a_header_is_what_websockets_would_write(opcode, length):
    class Claimed(bytes):
        """Says that it is longer than any memory."""

        def __len__(self) -> int:
            return length

    assert frame_header(opcode, length) == Frame(Opcode(opcode), Claimed()).serialize(mask=False)


def as_bytes(payload: bytes | str) -> bytes:
    return payload.encode() if isinstance(payload, str) else bytes(payload)
