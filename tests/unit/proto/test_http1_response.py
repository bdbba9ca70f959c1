"""A backend's answer: where it ends, under every cut, and what is too ambiguous to have an end."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.errors import BackendError
from wstunnel.limits import GatewayLimits
from wstunnel.proto.http1_response import ResponseReader

LIMITS = GatewayLimits()
SMALL = GatewayLimits(max_head_bytes=200, max_fields=4)


def read(*pieces: bytes, method: str = "GET", ends: bool = False, limits: GatewayLimits = LIMITS) -> ResponseReader:
    """The reader behind these pieces, with all the payload that it gave as `payload`."""
    reader = Reading(limits, method)
    for at, piece in enumerate(pieces):
        if reader.is_complete:
            reader.leftover += b"".join(pieces[at:])
            break
        reader.payload += reader.feed(piece)
    if ends:
        reader.feed_eof()
    return reader


class Reading(ResponseReader):
    """Keeps the payload."""

    payload = b""


UPGRADE = (b"Connection: upgrade, x-z", b"Upgrade: websocket", b"X: y", b"X-Z: y", b"Content-Length: 0")


def answer(*fields: bytes, start: bytes = b"HTTP/1.1 200 OK", body: bytes = b"") -> bytes:
    return b"\r\n".join((start, *fields, b"", body))


# --- heads


def test_a_whole_answer_gives_its_status_its_fields_and_its_payload():
    reader = read(answer(b"X-One:  a b\t", b"SET-Cookie: x=1", b"Set-Cookie: y", b"Content-Length: 3", body=b"abc"))

    assert reader.head is not None
    assert reader.head.status == 200
    assert reader.head.headers == (
        ("x-one", "a b"),
        ("set-cookie", "x=1"),
        ("set-cookie", "y"),
    )
    assert reader.head.body_bytes == 3
    assert reader.payload == b"abc"
    assert reader.is_complete
    assert reader.is_reusable


def test_nothing_is_known_before_the_head_is_whole():
    reader = read(b"HTTP/1.1 200 OK\r\nA: b\r\n")
    assert reader.head is None
    assert not reader.is_complete
    assert not reader.is_empty
    assert read().is_empty


@pytest.mark.parametrize("start", [b"HTTP/1.1 599 ", b"HTTP/1.1 599", b"HTTP/1.1 599 \xe4\t x"])
def test_a_status_needs_no_reason_and_need_not_be_a_known_one(start):
    reader = read(answer(b"Content-Length: 0", start=start))
    assert reader.head is not None
    assert reader.head.status == 599


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\n\n",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\r\n\r\n",
        b"HTTP/1.1 200 O\rK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\n\r\n",
        b"HTTP/1.1 200OK\r\n\r\n",
        b"HTTP/1.2 200 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"<html>",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n A: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n\tc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nAb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA\xe4: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \x7f\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA(): b\r\n\r\n",
    ],
)
@pytest.mark.parametrize("is_cut", [False, True])
def test_what_is_no_strict_head_is_refused_however_it_comes(raw, is_cut):
    pieces = [raw[at : at + 1] for at in range(len(raw))] if is_cut else [raw]
    with pytest.raises(BackendError) as raised:
        read(*pieces)
    assert raised.value.status == 502


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"SSH-2.0-x\r\n", 'the backend does not speak HTTP: "SSH-2.0-x\\\\r\\\\n"'),
        (b"HTTP/1.1 xx\r\n", 'malformed status line in the head of an answer: "HTTP/1.1 xx\\\\r\\\\n"'),
        (b"HTTP/1.1 200\r\nA: b\r\nbad\x1b\r\n", 'malformed field in the head of an answer: "bad\\\\x1b\\\\r\\\\n"'),
    ],
)
def test_the_line_at_fault_is_shown_escaped(raw, text):
    with pytest.raises(BackendError, match=re.escape(text.replace("\\\\", "\\"))):
        read(raw)


def test_a_line_at_fault_is_refused_before_the_head_is_whole():
    """The backend may wait for us meanwhile."""
    with pytest.raises(BackendError):
        read(b"HTTP/1.1 200 OK\r\nA: b\r\n", b"bad\r\n")


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_head_that_is_too_long_is_refused(cut):
    raw = answer(b"A: " + b"x" * 200)
    with pytest.raises(BackendError, match="longer than 200 bytes"):
        read(*(raw[at : at + cut] for at in range(0, len(raw), cut)), limits=SMALL)


def test_a_head_as_long_as_may_be_is_taken_and_its_payload_is_not_counted():
    head = answer(b"Content-Length: 500", b"A: " + b"x" * 155)
    assert len(head) == 200
    reader = read(head + b"y" * 500, limits=SMALL)
    assert reader.payload == b"y" * 500
    assert reader.is_complete


@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_a_head_of_too_many_fields_is_refused(end):
    raw = answer(*[b"A: b"] * 5)[:-2] + end
    with pytest.raises(BackendError, match="more than 4 fields"):
        read(raw, limits=SMALL)


def test_interim_heads_count_as_part_of_the_head():
    with pytest.raises(BackendError, match="longer than 200 bytes"):
        read(b"HTTP/1.1 100 Continue\r\n\r\n" * 100, limits=SMALL)


@pytest.mark.parametrize("is_cut", [False, True])
def test_interim_heads_are_passed_over(is_cut):
    raw = b"HTTP/1.1 100\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    raw += answer(b"Content-Length: 1", b"X: y", body=b"x")
    reader = read(*([raw[at : at + 1] for at in range(len(raw))] if is_cut else [raw]))
    assert reader.head is not None
    assert reader.head.headers == (("x", "y"),)
    assert reader.payload == b"x"
    assert reader.is_reusable


def test_fields_that_speak_of_the_backends_connection_are_not_told():
    fields = (b"Connection: close, X-A", b"X-A: 1", b"Keep-Alive: 1", b"Upgrade: h2c", b"Trailer: X", b"X-B: 2")
    reader = read(answer(*fields, b"Transfer-Encoding: chunked"))
    assert reader.head is not None
    assert reader.head.headers == (("x-b", "2"),)


def test_a_101_that_does_not_upgrade_the_connection_is_refused():
    with pytest.raises(BackendError, match="Connection: Upgrade"):
        read(answer(b"Upgrade: websocket", b"Connection: keep-alive", start=b"HTTP/1.1 101"))


# --- where the payload ends


def test_chunks_are_taken_apart_and_trailers_dropped():
    body = b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nSet-Cookie: evil\r\n\r\n"
    reader = read(answer(b"Transfer-Encoding: Chunked", body=body))
    assert reader.head is not None
    assert reader.head.body_bytes is None
    assert reader.payload == b"abcde"
    assert reader.is_reusable


def test_a_payload_without_a_length_ends_with_the_connection():
    reader = read(answer(), b"abc", b"def")
    assert not reader.is_complete
    reader.feed_eof()
    assert reader.payload == b"abcdef"
    assert reader.is_complete
    assert not reader.is_reusable


@pytest.mark.parametrize(
    ("method", "start", "fields"),
    [
        ("HEAD", b"HTTP/1.1 200 OK", (b"Content-Length: 9",)),
        ("HEAD", b"HTTP/1.1 200 OK", (b"Transfer-Encoding: chunked",)),
        ("HEAD", b"HTTP/1.1 200 OK", ()),
        ("GET", b"HTTP/1.1 204 No Content", ()),
        ("GET", b"HTTP/1.1 204 No Content", (b"Content-Length: 9",)),
        ("GET", b"HTTP/1.1 304 Not Modified", (b"Content-Length: 9",)),
        ("GET", b"HTTP/1.1 304 Not Modified", (b"Transfer-Encoding: chunked",)),
        ("GET", b"HTTP/1.1 200 OK", (b"Content-Length: 0",)),
    ],
)
def test_answers_that_have_no_payload_end_with_their_head(method, start, fields):
    reader = read(answer(*fields, start=start), method=method)
    assert reader.is_complete
    assert reader.is_reusable

    reader = read(answer(*fields, start=start, body=b"HTTP/1.1 200"), method=method)
    assert reader.payload == b""
    assert reader.leftover == b"HTTP/1.1 200"
    assert not reader.is_reusable


def test_a_head_tells_the_length_that_a_get_would_have_brought():
    reader = read(answer(b"Content-Length: 9"), method="HEAD")
    assert reader.head is not None
    assert reader.head.body_bytes == 9


@pytest.mark.parametrize(
    "fields",
    [
        (b"Content-Length: 3", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 3"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked, chunked",),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: chunked, identity",),
        (b"Transfer-Encoding: identity",),
        (b"Transfer-Encoding: xchunked",),
        (b"Transfer-Encoding: \x0bchunked",),
        (b"Transfer-Encoding: chunked;q=1",),
        (b"Transfer-Encoding:",),
        (b"Content-Length: 3", b"Content-Length: 4"),
        (b"Content-Length: 3, 3",),
        (b"Content-Length: 3", b"Content-Length: 03"),
        (b"Content-Length: +3",),
        (b"Content-Length: -3",),
        (b"Content-Length: 0x3",),
        (b"Content-Length: 3 3",),
        (b"Content-Length: \xb3",),
        (b"Content-Length:",),
        (b"Content-Length: 9223372036854775808",),
        (b"Content-Length: " + b"9" * 5000,),
    ],
)
def test_a_payload_that_two_readers_could_end_elsewhere_is_refused(fields):
    for method in ("GET", "HEAD"):
        with pytest.raises(BackendError) as raised:
            read(answer(*fields, body=b"3\r\nabc\r\n0\r\n\r\n"), method=method)
        assert raised.value.status == 502


def test_equal_lengths_are_one():
    assert read(answer(b"Content-Length: 3", b"Content-Length: 3", body=b"abc")).is_reusable


def test_a_coding_of_http_1_0_is_refused():
    with pytest.raises(BackendError, match=r"HTTP/1\.0 with Transfer-Encoding"):
        read(answer(b"Transfer-Encoding: chunked", start=b"HTTP/1.0 200 OK"))


@pytest.mark.parametrize("status", [b"100", b"101", b"103"])
@pytest.mark.parametrize("field", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_an_interim_answer_with_a_payload_is_refused(status, field):
    with pytest.raises(BackendError, match="announces"):
        read(answer(field, start=b"HTTP/1.1 " + status))


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        (answer(b"Content-Length: 5", body=b"abc"), "2 bytes"),
        (answer(b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n"), "its last chunk"),
        (answer()[:-1], "in an answer"),
        (b"", "without an answer"),
        (b"HTTP/1.1 100\r\n\r\n", "in an answer"),
    ],
)
def test_an_answer_that_ends_too_early_is_broken(body, missing):
    with pytest.raises(BackendError, match=missing) as raised:
        read(body, ends=True)
    assert raised.value.status == 502


def test_the_end_of_the_connection_behind_an_answer_is_no_fault():
    read(answer(b"Content-Length: 0"), ends=True)


def test_malformed_chunks_are_the_backends_fault():
    with pytest.raises(BackendError) as raised:
        read(answer(b"Transfer-Encoding: chunked", body=b"3 \r\nabc\r\n"))
    assert raised.value.status == 502


# --- what follows it


@pytest.mark.parametrize(
    ("start", "fields"),
    [
        (b"HTTP/1.0 200 OK", ()),
        (b"HTTP/1.0 200 OK", (b"Connection: keep-alive",)),
        (b"HTTP/1.1 200 OK", (b"Connection: close",)),
        (b"HTTP/1.1 200 OK", (b"Connection: x", b"Connection: keep-alive ,CLOSE")),
    ],
)
def test_a_connection_is_not_used_again_where_one_side_may_end_it(start, fields):
    reader = read(answer(*fields, b"Content-Length: 1", start=start, body=b"x"))
    assert reader.is_complete
    assert not reader.is_reusable


@pytest.mark.parametrize("framing", [b"Content-Length: 2", b"Transfer-Encoding: chunked"])
def test_a_second_answer_for_one_request_is_no_part_of_the_first(framing):
    body = b"ab" if framing.startswith(b"C") else b"2\r\nab\r\n0\r\n\r\n"
    second = answer(b"Content-Length: 4", body=b"evil")
    reader = read(answer(framing, body=body + second))
    assert reader.payload == b"ab"
    assert reader.leftover == second
    assert not reader.is_reusable


def test_what_follows_a_101_is_the_new_protocols():
    reader = read(answer(*UPGRADE, start=b"HTTP/1.1 101 Switching Protocols", body=b"\x81\x00"))
    assert reader.head is not None
    assert reader.head.is_upgrade
    assert reader.head.headers == (("upgrade", "websocket"), ("x", "y"))
    assert reader.payload == b""
    assert reader.leftover == b"\x81\x00"
    assert not reader.is_reusable


# --- under every cut

LINES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n",
        b"HTTP/1.1 101 Switching\r\n",
        b"HTTP/1.1 204\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"A: b\r\n",
        b"A : b\r\n",
        b" folded\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"abc",
    ]
)
WIRES = st.one_of(
    st.lists(LINES, max_size=12).map(b"".join),
    st.lists(LINES, max_size=8).map(lambda lines: b"HTTP/1.1 200 OK\r\n" + b"".join(lines)),
    st.binary(max_size=80),
)


def outcome(pieces: list[bytes], method: str, *, ends: bool) -> object:
    try:
        reader = read(*pieces, method=method, ends=ends, limits=SMALL)
    except BackendError as error:
        return error.status
    return (reader.head, reader.payload, reader.is_complete, reader.is_reusable, reader.leftover)


@given(WIRES, st.lists(st.integers(0, 200)), st.sampled_from(["GET", "HEAD"]), st.booleans())
def test_every_cut_gives_the_same(wire, cuts, method, ends):
    at = sorted({cut for cut in cuts if cut < len(wire)} | {0, len(wire)})
    pieces = [wire[a:b] for a, b in itertools.pairwise(at)]
    whole = outcome([wire], method, ends=ends)
    assert outcome(pieces, method, ends=ends) == whole
    assert outcome([wire[at : at + 1] for at in range(len(wire))], method, ends=ends) == whole
