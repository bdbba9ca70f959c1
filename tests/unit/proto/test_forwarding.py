"""The request that a backend gets: what is for it as received, what spoke of the client's connection left out."""

from __future__ import annotations

from typing import Any

import h11
import pytest

from wstunnel.limits import HeadLimits
from wstunnel.proto.forwarding import encode_request
from wstunnel.proto.http1 import HeadReader
from wstunnel.proto.request import Request

ADDED = [
    ("x-forwarded-for", "10.0.0.7"),
    ("x-forwarded-host", "Example.test:8080"),
    ("x-forwarded-proto", "http"),
]


def request(*headers: tuple[str, str], **changes: Any) -> Request:
    given: dict[str, Any] = {
        "method": "GET",
        "target": "/a%2Fb/../c?d=%20",
        "path": "/c",
        "query": "d=%20",
        "host": "Example.test:8080",
        "headers": (("host", "Example.test:8080"), *headers),
        "peer": "10.0.0.7:4711",
        "local": "10.0.0.1:8080",
    }
    return Request(**{**given, **changes})


def sent(*headers: tuple[str, str], keeps_alive: bool = True, **changes: Any) -> list[tuple[str, str]]:
    """The fields that the backend gets behind Host, as h11 reads them; names in lower case."""
    how = {name: changes.pop(name) for name in ("forwarded", "with_upgrade") if name in changes}
    raw = encode_request(request(*headers, **changes), keeps_alive=keeps_alive, **how)
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    fields = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
    assert fields[0] == ("host", "Example.test:8080")
    return fields[1:]


def test_a_request_goes_on_with_its_target_as_received():
    raw = encode_request(request(("accept", "*/*"), ("cookie", "a=b; c")), keeps_alive=True)
    assert raw == (
        b"GET /a%2Fb/../c?d=%20 HTTP/1.1\r\nHost: Example.test:8080\r\naccept: */*\r\ncookie: a=b; c\r\n"
        b"X-Forwarded-For: 10.0.0.7\r\nX-Forwarded-Host: Example.test:8080\r\nX-Forwarded-Proto: http\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("target", "origin_form"),
    [
        (b"http://h.test/a?b", b"/a?b"),
        (b"http://h.test", b"/"),
        (b"HTTPS://h.test?b=http://x/", b"/?b=http://x/"),
        (b"//h.test/a", b"//h.test/a"),
    ],
)
def test_a_target_is_put_into_origin_form(target, origin_form):
    reader = HeadReader(HeadLimits(), peer="10.0.0.7:1")
    read = reader.feed(b"GET %b HTTP/1.1\r\nHost: other\r\n\r\n" % target)
    assert read is not None
    line, host, *_ = encode_request(read, keeps_alive=True).split(b"\r\n")
    assert line == b"GET %b HTTP/1.1" % origin_form
    assert host == (b"Host: other" if target.startswith(b"//") else b"Host: h.test")


@pytest.mark.parametrize(
    "dropped",
    [
        [("connection", "keep-alive")],
        [("connection", "close, X-Gone"), ("x-gone", "1"), ("x-gone", "2")],
        [("connection", "x-gone"), ("connection", "X-AWAY"), ("x-gone", "1"), ("x-away", "2")],
        [("keep-alive", "timeout=5")],
        [("proxy-connection", "keep-alive")],
        [("proxy-authorization", "Basic x")],
        [("proxy", "http://evil")],
        [("te", "gzip")],
        [("trailer", "X")],
        [("transfer-encoding", "chunked")],
        [("content-length", "5")],
        [("upgrade", "websocket"), ("connection", "Upgrade")],
        [("upgrade", "h2c"), ("connection", "Upgrade, HTTP2-Settings"), ("http2-settings", "x")],
        [("expect", "100-continue")],
        [("x-forwarded-host", "evil")],
        [("x-forwarded-proto", "https")],
        [("forwarded", "for=evil")],
        [("content_length", "5")],
        [("transfer_encoding", "chunked")],
        [("x_forwarded_for", "evil")],
        [("x-forwarded_proto", "https")],
    ],
)
def test_what_is_not_for_the_backend_is_left_out(dropped):
    assert sent(("a", "1"), *dropped, ("b", "2")) == [("a", "1"), ("b", "2"), *ADDED]


def test_a_name_with_an_underscore_that_is_like_no_field_of_ours_goes_on():
    assert sent(("a_b", "1")) == [("a_b", "1"), *ADDED]


def test_a_client_cannot_have_host_or_the_framing_left_out():
    fields = sent(("connection", "host, content-length, x-forwarded-for"), method="POST", body_bytes=5)
    assert fields == [*ADDED, ("content-length", "5")]


def test_the_clients_address_stands_behind_what_it_says_itself():
    fields = dict(
        sent(("x-forwarded-for", "1.1.1.1, 2.2.2.2"), ("x-forwarded-for", "3.3.3.3"), ("x-forwarded-for", ""))
    )
    assert fields["x-forwarded-for"] == "1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.7"


@pytest.mark.parametrize(("peer", "shown"), [("[::1]:1", "::1"), ("unix:", "unknown")])
def test_every_kind_of_peer_has_an_address(peer, shown):
    assert dict(sent(peer=peer))["x-forwarded-for"] == shown


def test_the_scheme_is_told():
    assert dict(sent(scheme="https"))["x-forwarded-proto"] == "https"


# --- Forwarded


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        (("for",), "for=10.0.0.7"),
        (("proto", "host"), 'proto=http;host="Example.test:8080"'),
        (("for", "by", "host", "proto"), 'for=10.0.0.7;by="10.0.0.1:8080";host="Example.test:8080";proto=http'),
    ],
)
def test_forwarded_says_what_the_route_lists(parts, shown):
    assert dict(sent(forwarded=parts))["forwarded"] == shown


def test_forwarded_quotes_what_is_no_token_and_has_a_word_for_what_has_no_address():
    fields = dict(sent(forwarded=("for", "by"), peer="[::1]:1", local="[::1]:8080"))
    assert fields["forwarded"] == 'for="[::1]";by="[::1]:8080"'
    fields = dict(sent(forwarded=("for", "by"), peer="unix:", local="unix:"))
    assert fields["forwarded"] == "for=unknown;by=unknown"


@pytest.mark.parametrize(
    "value", ["for=1.1.1.1", 'for="[::2]:1";proto=https, for=unknown', 'host="a\\"b"; by=_x , for=y']
)
def test_a_forwarded_of_the_client_stands_before_ours(value):
    fields = dict(sent(("forwarded", value), forwarded=("for",)))
    assert fields["forwarded"] == f"{value}, for=10.0.0.7"


@pytest.mark.parametrize("value", ['for="', "for", "", "for=a b", 'for="a\\"', "for=a,", ";for=a", "for=[::1]"])
def test_a_forwarded_of_the_client_that_would_swallow_ours_is_left_out(value):
    fields = dict(sent(("forwarded", value), forwarded=("for",)))
    assert fields["forwarded"] == "for=10.0.0.7"


# --- the connection and the body


def test_a_connection_that_is_not_to_be_kept_is_to_be_closed():
    assert sent(keeps_alive=False) == [*ADDED, ("connection", "close")]


def test_trailers_are_asked_for_on_our_own_connection():
    fields = sent(("te", "trailers, gzip"), ("connection", "TE"))
    assert fields == [*ADDED, ("te", "trailers"), ("connection", "TE")]


def test_a_handshake_is_passed_on_whole():
    ws = [
        ("sec-websocket-key", "x"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-extensions", "permessage-deflate"),
        ("sec-websocket-protocol", "chat"),
        ("origin", "http://a"),
    ]
    fields = sent(("upgrade", "WebSocket, h2c"), ("connection", "keep-alive, Upgrade"), *ws, with_upgrade=True)
    assert fields == [*ws, *ADDED, ("upgrade", "websocket"), ("connection", "Upgrade")]
    assert ("connection", "Upgrade") in sent(with_upgrade=True, keeps_alive=False)


@pytest.mark.parametrize(
    ("method", "body_bytes", "framing"),
    [
        ("GET", 0, []),
        ("HEAD", 0, []),
        ("POST", 0, [("content-length", "0")]),
        ("DELETE", 0, [("content-length", "0")]),
        ("GET", 7, [("content-length", "7")]),
        ("POST", 7, [("content-length", "7")]),
        ("POST", None, [("transfer-encoding", "chunked")]),
    ],
)
def test_a_body_is_announced_as_it_comes(method, body_bytes, framing):
    received = [("content-length", "7"), ("transfer-encoding", "chunked")]
    assert sent(*received, method=method, body_bytes=body_bytes) == [*ADDED, *framing]
