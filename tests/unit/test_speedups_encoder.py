"""Server frames: the shortest header, and nothing but the payload behind it."""

from __future__ import annotations

import pytest

from wstunnel._speedups import encode_frame, frame_header

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (0, "82 00"),
        (1, "82 01"),
        (125, "82 7d"),
        (126, "82 7e 00 7e"),
        (127, "82 7e 00 7f"),
        (255, "82 7e 00 ff"),
        (256, "82 7e 01 00"),
        (65535, "82 7e ff ff"),
        (65536, "82 7f 00 00 00 00 00 01 00 00"),
        (0x0123456789ABCDEF, "82 7f 01 23 45 67 89 ab cd ef"),
        (2**63 - 1, "82 7f 7f ff ff ff ff ff ff ff"),
    ],
)
def test_a_length_takes_its_shortest_form(length, header):
    assert frame_header(BINARY, length) == bytes.fromhex(header)


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
@pytest.mark.parametrize("length", [0, 5, 125, 126, 65535, 65536])
def test_a_frame_is_its_header_and_its_payload_unmasked(opcode, length):
    payload = bytes(range(256)) * (length // 256 + 1)

    frame = encode_frame(opcode, payload[:length])

    assert frame == frame_header(opcode, length) + payload[:length]
    assert frame[0] == 0x80 | opcode


def test_any_buffer_of_bytes_can_be_a_payload():
    assert encode_frame(TEXT, bytearray(b"abc")) == encode_frame(TEXT, memoryview(b"-abc-")[1:4]) == b"\x81\x03abc"


@pytest.mark.parametrize("opcode", [-1, 16])
def test_an_opcode_has_four_bits(opcode):
    with pytest.raises(ValueError, match="opcode"):
        frame_header(opcode, 0)


def test_a_length_has_63_bits():
    with pytest.raises(ValueError, match="payload"):
        frame_header(BINARY, 2**63)
    with pytest.raises(OverflowError):
        frame_header(BINARY, -1)
