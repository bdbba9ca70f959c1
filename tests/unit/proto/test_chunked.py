"""Chunked bodies in any pieces: what is taken, what is refused, and what a refusal costs."""

from __future__ import annotations

import contextlib
import time
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.differential.frames import PATIENT, pieces
from wstunnel.errors import BackendError, PeerError, TunnelError
from wstunnel.limits import GatewayLimits
from wstunnel.proto.chunked import LAST_CHUNK, ChunkedReader, encode_chunk

LIMITS = GatewayLimits()
SMALL = GatewayLimits(max_chunk_line_bytes=16, max_trailer_bytes=24)


def read(wire: bytes, cuts: list[int], limits: GatewayLimits = LIMITS) -> tuple[bytes, bool, bytes, str]:
    """Payload, is it complete, what follows it, and why it was refused."""
    reader = ChunkedReader(limits)
    payload = beyond = b""
    for piece in pieces(wire, cuts):
        if reader.is_complete:
            beyond += piece
            continue
        try:
            payload += reader.feed(piece)
        except PeerError as error:
            return payload, False, b"", str(error)
    return payload, reader.is_complete, reader.leftover + beyond, ""


def refusal(wire: bytes, limits: GatewayLimits = LIMITS) -> str:
    return read(wire, [], limits)[3]


# --- what is taken


@pytest.mark.parametrize(
    ("wire", "payload"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"1\r\na\r\n2\r\nbc\r\n000\r\n\r\n", b"abc"),
        (b"0000A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"a\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n0\r\n\r\n"),
        (b"1;a\r\nx\r\n0;b=c\r\n\r\n", b"x"),
        (b'1 ; a = "b;\\"\r\t c" ;d\r\nx\r\n0\r\n\r\n'.replace(b"\r\t", b"\t"), b"x"),
        (b"1\r\nx\r\n0\r\nA: b\r\nContent-Length: 9\r\n\r\n", b"x"),
    ],
)
def test_payload_is_what_the_chunks_hold(wire, payload):
    assert read(wire + b"GET /", []) == (payload, True, b"GET /", "")


def test_payload_flows_before_its_chunk_has_come_whole():
    reader = ChunkedReader(LIMITS)

    assert reader.feed(b"7fffffffffffffff\r\nabc") == b"abc"
    assert reader.feed(b"d") == b"d"
    assert not reader.is_complete


def test_a_piece_of_one_chunk_is_not_copied():
    reader = ChunkedReader(LIMITS)
    reader.feed(b"100000\r\n")
    piece = bytes(64 * 1024)

    assert reader.feed(piece) is piece


# --- what is refused


@pytest.mark.parametrize(
    "line",
    [
        b"\r\n", b";a\r\n", b" 1\r\n", b"1 \r\n", b"1\n", b"1\r\r\n", b"+1\r\n", b"-1\r\n", b"0x1\r\n", b"1_0\r\n",
        b"g\r\n", b"1,1\r\n", b"1;\r\n", b"1;a=\r\n", b"1;=b\r\n", b"1;a b\r\n", b'1;a="b\r\n', b'1;a="\\\r\n',
        b"1;\xe9\r\n", b"1;a\n\r\n", b"1;a\rb\r\n", b"1;a\0\r\n", b"\xd9\xa1\r\n",
    ],
)  # fmt: skip
def test_a_line_that_another_reader_might_take_otherwise_is_refused(line):
    assert refusal(line + b"x\r\n0\r\n\r\n").startswith("malformed line of a chunk")


@pytest.mark.parametrize("size", [b"8000000000000000", b"10000000000000000", b"f" * 40])
def test_a_size_that_some_reader_cannot_count_to_is_refused(size):
    assert "cannot be counted" in refusal(size + b"\r\n")


@pytest.mark.parametrize("after", [b"\n", b"x\r\n", b"\rx", b"0\r\n\r\n", b"\r\r\n"])
def test_a_chunk_ends_where_its_size_says(after):
    assert refusal(b"1\r\na" + after) == "a chunk is longer than its size, or no CRLF follows it"


@pytest.mark.parametrize(
    "line", [b"\n", b" a: b\r\n", b"a\r\n", b"a : b\r\n", b": b\r\n", b"a: b\n", b"a: \0\r\n", b"\r\r\n"]
)
def test_a_malformed_trailer_is_refused(line):
    assert refusal(b"0\r\nX: y\r\n" + line + b"\r\n").startswith("malformed trailer")


def test_a_line_of_a_chunk_has_a_bound():
    fits = b"1;" + b"a" * 12 + b"\r\n"

    assert refusal(fits, SMALL) == ""
    assert refusal(b"0" + fits, SMALL) == "the line of a chunk is longer than 16 bytes"
    assert refusal(b"0" * 17, SMALL) == "the line of a chunk is longer than 16 bytes"


def test_all_trailers_together_have_a_bound():
    trailers = b"a: b\r\n" * 3
    fits, over = (b"0\r\n" + trailers + last + b"\r\n" for last in (b"c:\r\n", b"cd:\r\n"))

    assert refusal(fits, SMALL) == ""
    assert refusal(over, SMALL) == "the trailers of a body are longer than 24 bytes"
    assert refusal(b"0\r\n" + b"a" * 25, SMALL) == "the trailers of a body are longer than 24 bytes"


def test_who_is_at_fault_is_said_by_who_reads():
    with pytest.raises(PeerError) as client:
        ChunkedReader(LIMITS).feed(b"x\r\n")
    with pytest.raises(BackendError) as backend:
        ChunkedReader(LIMITS, partial(BackendError, status=502)).feed(b"x\r\n")

    assert (client.value.status, backend.value.status) == (400, 502)


def test_what_is_quoted_of_a_line_is_printable():
    assert refusal(b"\x1b[31m\r\n") == 'malformed line of a chunk: "\\x1b[31m\\r\\n"'


# --- under every cut

good_lines = st.sampled_from([b"\r\n", b";a\r\n", b' ;a="\\\\";b\r\n'])
chunks = st.tuples(st.binary(min_size=1, max_size=20), good_lines).map(
    lambda c: b"%x" % len(c[0]) + c[1] + c[0] + b"\r\n"
)
bodies = st.tuples(st.lists(chunks, max_size=4).map(b"".join), good_lines, st.sampled_from([b"", b"a: b\r\n"])).map(
    lambda b: b[0] + b"0" + b[1] + b[2] + b"\r\n"
)
noise = st.lists(st.sampled_from([b"0", b"1", b"f", b"\r", b"\n", b"\r\n", b";", b"a", b":", b" ", b'"', b"=", b"\0"]))
wires = st.one_of(
    bodies, st.binary(), noise.map(b"".join), st.tuples(bodies, st.binary(), noise.map(b"".join)).map(b"".join)
)
cuts_of = st.lists(st.integers(0, 200), max_size=10)


@PATIENT
@example(b"1\r\na\r\n0\r\n\r\n", [4])
@example(b"1\r\na\rb", [5])
@given(wires, cuts_of)
def test_a_cut_changes_nothing(wire, cuts):
    one_by_one = read(wire, list(range(len(wire))), SMALL)
    cut = read(wire, cuts, SMALL)

    assert cut[1:] == one_by_one[1:]
    assert one_by_one[0].startswith(cut[0])
    assert cut[0] == one_by_one[0] or cut[3]


@PATIENT
@given(st.binary())
def test_garbage_raises_nothing_but_what_the_reader_was_told_to_raise(wire):
    class Told(TunnelError):
        pass

    reader = ChunkedReader(SMALL, Told)
    try:
        payload = reader.feed(wire)
    except Told:
        return
    assert len(payload) + len(reader.leftover) <= len(wire)


@pytest.mark.parametrize(
    "wire",
    [
        b"1\r\na\r\n" * 100_000,
        b"1" + b';a="b"' * 100_000,
        b"1" + b" " * 500_000,
        b"0\r\n" + b"a:\r\n" * 100_000,
        b"0\r\n" + b"a" * 500_000,
    ],
)
def test_time_is_linear_in_the_bytes_whatever_they_are(wire):
    def took_s(size: int) -> float:
        reader = ChunkedReader(GatewayLimits(max_chunk_line_bytes=10**6, max_trailer_bytes=10**6))
        start_s = time.process_time()
        with contextlib.suppress(PeerError):
            reader.feed(wire[:size] + b"\r\n")
        return time.process_time() - start_s

    size = len(wire)
    assert min(took_s(size) for _ in range(3)) < 40 * min(took_s(size // 8) for _ in range(5)) + 0.01


# --- writing


@given(st.lists(st.binary(), max_size=5))
def test_what_is_written_is_read_again(parts):
    wire = b"".join(map(encode_chunk, parts)) + LAST_CHUNK

    assert read(wire, []) == (b"".join(parts), True, b"", "")


def test_no_data_does_not_end_the_body():
    assert encode_chunk(b"") == b""
    assert encode_chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
