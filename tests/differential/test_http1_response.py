"""Answers of backends, as h11 reads them: what we take, it takes, and to the same end."""

from __future__ import annotations

from typing import Any

import h11
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.errors import BackendError
from wstunnel.limits import GatewayLimits
from wstunnel.proto.http1_response import ResponseReader

NAMES = st.sampled_from(
    [b"Content-Length", b"Transfer-Encoding", b"Connection", b"Set-Cookie", b"X", b"content-length"]
)
VALUES = st.sampled_from(
    [b"", b"0", b"3", b"5", b"3, 3", b"chunked", b"Chunked", b"close", b"gzip", b"\xe4 b", b"a\tb"]
)
STARTS = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.1 200 ", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 x", b"HTTP/1.1 404 x"]
)
BODIES = st.sampled_from(
    [b"", b"abc", b"abcde", b"3\r\nabc\r\n0\r\n\r\n", b"2;a=b\r\nab\r\n0\r\nT: v\r\n\r\nrest", b"zz\r\n"]
)


@st.composite
def wires(draw: Any) -> bytes:
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    lines = [draw(STARTS), *(name + b": " + value for name, value in fields)]
    return interim + b"\r\n".join(lines) + b"\r\n\r\n" + draw(BODIES)


def by_h11(wire: bytes, method: str) -> tuple[int, bytes, bytes] | None:
    """Status, payload and what follows; None: refused, or not at its end."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(wire)
    payload, status, is_at_eof = b"", 0, False
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA and not is_at_eof:
                connection.receive_data(b"")
                is_at_eof = True
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                payload += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return status, payload, connection.trailing_data[0]
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except h11.RemoteProtocolError:
        return None


@given(wires(), st.sampled_from(["GET", "HEAD", "POST"]))
def test_an_answer_that_is_taken_is_the_same_to_h11(wire, method):
    reader = ResponseReader(GatewayLimits(), method)
    try:
        payload = reader.feed(wire)
        reader.feed_eof()
    except BackendError:
        return
    assert reader.head is not None
    assert by_h11(wire, method) == (reader.head.status, payload, reader.leftover)
