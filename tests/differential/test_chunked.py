"""Our chunked bodies beside h11's, which knows nothing of us.

Where h11 differs from us on purpose: it takes blanks at the end of a chunk's line, any visible characters as an
extension, a line's end without CR where trailers stand, folded trailers, and sizes of up to 20 digits. It judges a line
when it is whole. So whatever we take, h11 takes, with the same payload, and what only h11 takes shows one of these.
"""

from __future__ import annotations

import re

import h11
from hypothesis import example, given
from hypothesis import strategies as st

from tests.differential.frames import PATIENT, pieces
from wstunnel.errors import PeerError
from wstunnel.limits import GatewayLimits
from wstunnel.proto.chunked import LAST_CHUNK, ChunkedReader, encode_chunk

Heard = tuple[bytes, bool, bytes]
"""Payload, is the body complete, and what follows it."""

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
KNOWN = re.compile(rb"^[0-9a-fA-F]+[^\r\n]*[ ;][^\r\n]*\r\n|[^\r]\n|^[0-9a-fA-F]{17,}|\n[ \t]", re.MULTILINE)
"""Blanks or extensions in a chunk's line, LF alone, a long size, a folded trailer."""


def ours(wire: bytes, cuts: list[int]) -> Heard | None:
    reader = ChunkedReader(GatewayLimits())
    payload = beyond = b""
    try:
        for piece in pieces(wire, cuts):
            if reader.is_complete:
                beyond += piece
            else:
                payload += reader.feed(piece)
    except PeerError:
        return None
    return payload, reader.is_complete, reader.leftover + beyond


def theirs(wire: bytes, cuts: list[int]) -> Heard | None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(HEAD)
    assert isinstance(connection.next_event(), h11.Request)
    payload = b""
    try:
        for piece in pieces(wire, cuts):
            if piece:
                connection.receive_data(piece)
            while not isinstance(event := connection.next_event(), type):
                if isinstance(event, h11.EndOfMessage):
                    break
                assert isinstance(event, h11.Data)
                payload += event.data
    except h11.RemoteProtocolError:
        return None
    is_complete = connection.their_state is h11.DONE
    return payload, is_complete, connection.trailing_data[0] if is_complete else b""


chunk = st.binary(min_size=1, max_size=12).map(lambda data: b"%x\r\n%b\r\n" % (len(data), data))
word = st.sampled_from(
    [
        b"0",
        b"1",
        b"a",
        b"A",
        b"f",
        b"00",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b";",
        b"=",
        b":",
        b" ",
        b"\t",
        b'"q"',
        b"0\r\n",
        b"x: y\r\n",
    ]
)
wires = st.lists(st.one_of(chunk, chunk, word), max_size=12).map(b"".join)
cuts_of = st.lists(st.integers(0, 100), max_size=6)


@PATIENT
@example(b"1\r\na\r\n0\r\n\r\n", [])
@example(b"1\r\na\r\n0\r\nx: y\r\n\r\n", [])
@example(b"f;a\r\n", [])
@given(wires, cuts_of)
def test_what_we_take_h11_takes_and_what_only_h11_takes_is_known(wire, cuts):
    we, they = ours(wire, cuts), theirs(wire, cuts)

    if we is None:
        assert they is None or not they[1] or KNOWN.search(wire)
    else:
        assert they == we


@PATIENT
@given(st.lists(st.binary(), max_size=5), cuts_of)
def test_what_we_write_is_what_h11_reads(parts, cuts):
    wire = b"".join(map(encode_chunk, parts)) + LAST_CHUNK

    assert theirs(wire, cuts) == (b"".join(parts), True, b"")
