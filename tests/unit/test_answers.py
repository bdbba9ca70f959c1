"""Plain heads of answers, read in C: the usual ones are taken, and none that the careful reader reads otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel._answers import read_plain_answer
from wstunnel.errors import BackendError
from wstunnel.limits import GatewayLimits
from wstunnel.proto.http1_response import ResponseReader

LIMITS = GatewayLimits()
USUAL = {
    "nginx": b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sun, 22 Nov 2026 23:03:14 GMT\r\nContent-Type: text/css"
    b'\r\nContent-Length: 1024\r\nConnection: keep-alive\r\nETag: "6560-400"\r\nAccept-Ranges: bytes\r\n\r\n',
    "apache": b"HTTP/1.1 200 OK\r\nDate: Sun, 22 Nov 2026 23:03:14 GMT\r\nServer: Apache/2.4\r\nContent-Length: 12\r\n"
    b"Keep-Alive: timeout=5, max=100\r\nConnection: Keep-Alive\r\nContent-Type: text/html\r\n\r\n",
    "node": b"HTTP/1.1 404 Not Found\r\nX-Powered-By: Express\r\nContent-Type: application/json; charset=utf-8\r\n"
    b'Content-Length: 99\r\nETag: W/"63-x"\r\nDate: x\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n',
    "gunicorn": b"HTTP/1.1 200 OK\r\nServer: gunicorn\r\nDate: x\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 0\r\n\r\n",
    "uvicorn": b"HTTP/1.1 200 OK\r\ndate: x\r\nserver: uvicorn\r\ncontent-length: 17\r\ncontent-type: text/html\r\n"
    b"\r\n",
    "django": b"HTTP/1.1 302 Found\r\nLocation: /a\r\nSet-Cookie: a=b; Path=/\r\nSet-Cookie: c=\xe4\r\n"
    b"Content-Length: 0\r\n\r\n",
    "lighttpd": b"HTTP/1.1 304 Not Modified\r\nContent-Length:4\r\nDate: x \t\r\n\r\n",
}
PLAIN = b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 5\r\n\r\n"


class Careful(ResponseReader):
    """Never takes the short way."""

    _feed_first = ResponseReader._feed_head


def outcome(reader: ResponseReader, data: bytes) -> Any:
    try:
        payload = reader.feed(data)
    except BackendError:
        return None
    return (reader.head, payload, reader.is_complete, reader.is_reusable, reader.leftover)


def is_taken(head: bytes, max_bytes: int = 4096, max_fields: int = 100) -> bool:
    return read_plain_answer(head, max_bytes, max_fields) is not None


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("body", [b"", b"x" * 2000])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_servers_send_is_taken_as_the_careful_reader_takes_it(name, body, method):
    head = USUAL[name]
    assert is_taken(head)
    expected = outcome(Careful(LIMITS, method), head + body)
    assert expected is not None
    assert outcome(ResponseReader(LIMITS, method), head + body) == expected


@pytest.mark.parametrize(
    "head",
    [
        b"",
        PLAIN[:-1],
        PLAIN.replace(b"1.1", b"1.0"),
        PLAIN.replace(b"HTTP", b"http"),
        PLAIN.replace(b"200", b"100"),
        PLAIN.replace(b"200", b"101"),
        PLAIN.replace(b"200", b"600"),
        PLAIN.replace(b"200", b"2x0"),
        PLAIN.replace(b"200 OK", b"2000"),
        PLAIN.replace(b"OK", b"\x00"),
        PLAIN.replace(b"OK\r\n", b"OK\n"),
        PLAIN.replace(b"A: b\r\n", b"A: b\n"),
        PLAIN.replace(b"A: b", b"A : b"),
        PLAIN.replace(b"A: b", b" A: b"),
        PLAIN.replace(b"A: b", b": b"),
        PLAIN.replace(b"A: b", b"A: b\x7f"),
        PLAIN.replace(b"A: b", b"A: \rb"),
        PLAIN.replace(b"A: b", b"Transfer-Encoding: chunked"),
        PLAIN.replace(b"A: b", b"Connection: X-Own"),
        PLAIN.replace(b"A: b", b"Connection: close, close"),
        PLAIN.replace(b"A: b", b"Connection: close\r\nConnection: keep-alive"),
        PLAIN.replace(b"A: b", b"Content-Length: 5"),
        PLAIN.replace(b"5", b""),
        PLAIN.replace(b"5", b"5, 5"),
        PLAIN.replace(b"5", b"+5"),
        PLAIN.replace(b"5", b"1234567890123456789"),
        b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n",
        PLAIN.replace(b"A: b", b"A: " + b"b" * 4096),
    ],
)
def test_anything_else_is_left_to_the_careful_reader(head):
    assert not is_taken(head)


def test_fields_of_the_connection_are_left_out():
    own = b"Keep-Alive: 1\r\nTE: x\r\nTrailer: y\r\nUpgrade: h2c\r\nProxy-Connection: z\r\nConnection: close\r\n"
    plain = read_plain_answer(PLAIN.replace(b"A: b\r\n", own + b"A:  b \r\n"), 4096, 100)
    assert plain is not None
    assert plain[:4] == (200, b"A:  b \r\n", 5, False)


def test_bounds_are_those_that_are_given():
    assert is_taken(PLAIN, max_bytes=len(PLAIN), max_fields=2)
    assert not is_taken(PLAIN, max_bytes=len(PLAIN) - 1)
    assert not is_taken(PLAIN, max_fields=1)


PIECES = st.sampled_from(
    [
        b"HTTP/1.1 ",
        b"200 OK",
        b"204",
        b"\r\n",
        b"\n",
        b"\r",
        b"Content-Length",
        b"Connection",
        b"Keep-Alive",
        b"TE",
        b"Transfer-Encoding",
        b": ",
        b":",
        b" ",
        b"5",
        b"05",
        b"close",
        b"keep-alive",
        b"chunked",
        b"A: b\r\n",
        b"Upgrade: x\r\n",
        b"\x00",
        b"\xff",
    ]
)


@st.composite
def mutated(draw: Any) -> bytes:
    head = bytearray(draw(st.sampled_from([*USUAL.values(), PLAIN])))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(head)))
        head[at : at + draw(st.integers(0, 3))] = draw(st.one_of(PIECES, st.binary(max_size=2)))
    return bytes(head) + draw(st.sampled_from([b"", b"hello", b"hello!"]))


@given(mutated() | st.lists(PIECES, max_size=12).map(lambda pieces: b"HTTP/1.1 200 OK\r\n" + b"".join(pieces)))
def test_whatever_is_taken_is_what_the_careful_reader_takes(data):
    assert outcome(ResponseReader(LIMITS, "GET"), data) == outcome(Careful(LIMITS, "GET"), data)


def test_every_byte_in_every_place_is_read_the_same_or_left():
    for at in range(len(PLAIN)):
        for byte in range(256):
            data = PLAIN[:at] + bytes([byte]) + PLAIN[at + 1 :] + b"hello"
            assert outcome(ResponseReader(LIMITS, "GET"), data) == outcome(Careful(LIMITS, "GET"), data), data
