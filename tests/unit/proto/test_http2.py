"""Fields of HTTP/2 as one request, or why not, and answers as fields."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wstunnel.errors import LimitError, PeerError
from wstunnel.limits import HeadLimits
from wstunnel.proto.http2 import Fields, has_own_key, request_of, response_fields
from wstunnel.proto.request import Request

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
GET = {b":method": b"GET", b":scheme": b"https", b":authority": b"a.example:81", b":path": b"/x?q"}
CONNECT = {**GET, b":method": b"CONNECT", b":protocol": b"websocket"}


def read(fields: Fields, *, is_whole: bool = True, limits: HeadLimits = HeadLimits()) -> Request:  # noqa: B008
    return request_of(
        fields,
        limits=limits,
        peer="192.0.2.7:4711",
        local="192.0.2.1:443",
        scheme="https",
        subject="CN=somebody",
        is_whole=is_whole,
        key=KEY,
    )


def said(pseudo: dict[bytes, bytes], *more: tuple[bytes, bytes], **changed: bytes | None) -> Fields:
    """These fields with other pseudo-fields (`path=b"/"`; None: without it)."""
    found = {**pseudo, **{f":{name}".encode(): value for name, value in changed.items()}}
    return [*((name, value) for name, value in found.items() if value is not None), *more]


def refusal(fields: Fields, **how: Any) -> PeerError:
    with pytest.raises(PeerError) as caught:
        read(fields, **how)
    return caught.value


# --- requests


def test_a_request_holds_everything_that_its_fields_say():
    fields = said(GET, (b"x-two", b"b \t c"), path=b"/caf%C3%A9/./x?q=%20&y?")

    assert read(fields) == Request(
        method="GET",
        target="/caf%C3%A9/./x?q=%20&y?",
        path="/café/x",
        query="q=%20&y?",
        host="a.example:81",
        headers=(("host", "a.example:81"), ("x-two", "b \t c")),
        peer="192.0.2.7:4711",
        local="192.0.2.1:443",
        scheme="https",
        wants_websocket=False,
        body_bytes=0,
        version="HTTP/2",
        client_subject="CN=somebody",
    )


def test_cookies_are_one_field_again():
    """For whoever speaks HTTP/1.1: RFC 9113 §8.2.3. Browsers send one field for each."""
    request = read(said(GET, (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2; c=3"), (b"cookie", b"d=4")))
    assert request.headers == (("host", "a.example:81"), ("x", "y"), ("cookie", "a=1; b=2; c=3; d=4"))
    assert read(said(GET, (b"cookie", b"a=1"), (b"x", b"y"))).headers[1:] == (("cookie", "a=1"), ("x", "y"))


def test_the_scheme_is_that_of_the_connection_whatever_the_client_says():
    assert read(said(GET, scheme=b"http")).scheme == "https"


@pytest.mark.parametrize(
    ("authority", "hosts"),
    [
        (b"a", []),
        (b"a", [b"a"]),
        (None, [b"a"]),
    ],
)
def test_a_request_has_one_host_whoever_says_it(authority: bytes | None, hosts: list[bytes]):
    request = read(said(GET, *((b"host", host) for host in hosts), authority=authority))
    assert (request.host, request.all("host")) == ("a", ["a"])


@pytest.mark.parametrize(
    ("authority", "hosts"),
    [
        (None, []),
        (b"a", [b"b"]),
        (None, [b"a", b"b"]),
        (b"a", [b"a", b"a"]),
        (b"", []),
        (b"u@a", []),
        (b"a b", []),
        (b"a", [b""]),
    ],
)
def test_a_request_of_no_or_of_several_hosts_is_refused(authority: bytes | None, hosts: list[bytes]):
    assert refusal(said(GET, *((b"host", host) for host in hosts), authority=authority)).status == 400


@pytest.mark.parametrize(
    ("fields", "is_whole", "body_bytes"),
    [
        ([], True, 0),
        ([], False, None),
        ([(b"content-length", b"0")], True, 0),
        ([(b"content-length", b"00")], False, 0),
        ([(b"content-length", b"17")], False, 17),
    ],
)
def test_a_body_is_as_long_as_is_said(fields: list[tuple[bytes, bytes]], is_whole: bool, body_bytes: int | None):
    assert read(said(GET, *fields, method=b"POST"), is_whole=is_whole).body_bytes == body_bytes


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize(
    "values", [[b"x"], [b"-1"], [b"+1"], [b""], [b"1, 1"], [b"1", b"1"], [b"1", b"2"], [b"1" * 19], [b"1.0"]]
)
def test_a_length_that_is_none_is_refused(values: list[bytes], is_whole: bool):
    fields = said(GET, *((b"content-length", value) for value in values), method=b"POST")
    assert refusal(fields, is_whole=is_whole).status == 400


def test_a_length_of_a_body_that_does_not_come_is_refused():
    """HEADERS with END_STREAM: RFC 9113 §8.1.1."""
    assert refusal(said(GET, (b"content-length", b"5"))).status == 400


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"method": None}, 400),
        ({"method": b""}, 400),
        ({"method": b"GET IT"}, 400),
        ({"method": b"CONNECT", "path": None, "scheme": None}, 501),
        ({"scheme": None}, 400),
        ({"path": None}, 400),
        ({"path": b""}, 400),
        ({"path": b"*"}, 400),
        ({"path": b"x"}, 400),
        ({"path": b"/x#y"}, 400),
        ({"path": b"/x y"}, 400),
        ({"path": b"/\xe9"}, 400),
        ({"path": b"/%zz"}, 400),
        ({"path": b"http://a/x"}, 400),
        ({"status": b"200"}, 400),
        ({"protocol": b"websocket"}, 400),
    ],
)
def test_pseudo_fields_that_make_no_request_are_refused(change: dict[str, bytes | None], status: int):
    assert refusal(said(GET, **change)).status == status


@pytest.mark.parametrize(
    "field",
    [
        (b"", b"x"),
        (b"Upper", b"x"),
        (b"a b", b"x"),
        (b"a:", b"x"),
        (b"a\n", b"x"),
        (b"\xe9", b"x"),
        (b":path", b"/again"),
        (b"x", b"a\r\nb: c"),
        (b"x", b"a\0"),
        (b"x", b"a\x7f"),
        (b"x", b" a"),
        (b"x", b"a "),
        (b"x", b"a\t"),
        (b"x", b"a\n"),
        (b":new", b"a\n"),
        (b"connection", b"close"),
        (b"proxy-connection", b"x"),
        (b"keep-alive", b"x"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"websocket"),
        (b"te", b"gzip"),
    ],
)
def test_fields_that_http2_does_not_have_are_refused(field: tuple[bytes, bytes]):
    assert refusal(said(GET, field)).status == 400


@pytest.mark.parametrize(
    "field", [(b"te", b"trailers"), (b"x", b""), (b"x", b"\xe9"), (b"x", b"a\tb"), (b"!#$%&'*+.^_`|~0-9a-z-", b"!")]
)
def test_other_fields_are_taken(field: tuple[bytes, bytes]):
    name, value = field[0].decode(), field[1].decode("latin-1")
    assert read(said(GET, field)).all(name) == [value]


def test_pseudo_fields_come_first():
    first, *rest = said(GET)
    assert refusal([*rest, (b"x", b"y"), first]).status == 400


def test_too_many_fields_are_refused():
    limits = replace(HeadLimits(), max_fields=5)
    read(said(GET, (b"x", b"y")), limits=limits)
    error = refusal(said(GET, (b"x", b"y"), (b"x", b"y")), limits=limits)
    assert isinstance(error, LimitError)
    assert error.status == 431


def test_what_a_client_says_is_escaped_in_errors():
    assert "\x1b" not in str(refusal(said(GET, (b"x", b"\x1b[31m"))))


# --- handshakes


def test_a_handshake_is_what_it_would_be_over_http1():
    request = read(said(CONNECT, (b"sec-websocket-version", b"13")), is_whole=False)
    assert (request.method, request.wants_websocket, request.body_bytes) == ("GET", True, 0)
    assert request.headers == (
        ("host", "a.example:81"),
        ("sec-websocket-version", "13"),
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-key", KEY),
    )


def test_the_clients_own_key_is_kept():
    fields = said(CONNECT, (b"sec-websocket-key", b"of its own"))
    assert read(fields).all("sec-websocket-key") == ["of its own"]
    assert has_own_key(fields)
    assert not has_own_key(said(CONNECT))


@pytest.mark.parametrize("protocol", [b"connect-udp", b"websockets", b"WebSocket", b""])
def test_other_protocols_are_not_served(protocol: bytes):
    assert refusal(said(CONNECT, protocol=protocol)).status == 501


@pytest.mark.parametrize("change", [{"path": None}, {"scheme": None}, {"authority": None}])
def test_a_handshake_lacks_nothing(change: dict[str, None]):
    assert refusal(said(CONNECT, **change)).status == 400


@pytest.mark.parametrize("length", [b"0", b"5"])
def test_a_handshake_has_no_body(length: bytes):
    assert refusal(said(CONNECT, (b"content-length", length)), is_whole=False).status == 400


# --- answers


@pytest.mark.parametrize(
    ("status", "told"), [(200, b"200"), (404, b"404"), (101, b"200"), (426, b"400"), (100, b"100")]
)
def test_a_status_that_speaks_of_upgrades_is_another_one(status: int, told: bytes):
    assert response_fields(status, ()) == [(b":status", told)]


def test_names_become_lower_case_and_values_lose_their_blanks():
    fields = [(b":status", b"200"), (b"x-one", b"a\tb"), (b"x-one", b"\xe9"), (b"empty", b"")]
    assert response_fields(200, (("X-One", " a\tb "), ("x-oNE", "\xe9"), ("Empty", ""))) == fields
    assert response_fields(200, b"X-One:\ta\tb \r\nx-oNE:\xe9\r\nEmpty:\r\n") == fields


@pytest.mark.parametrize(
    "name", ["Connection", "Proxy-Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "TE", "Sec-WebSocket-Key"]
)
def test_fields_of_one_connection_are_left_out(name: str):
    assert response_fields(200, ((name, "x"),)) == [(b":status", b"200")]
    assert response_fields(200, f"{name}: x\r\n".encode()) == [(b":status", b"200")]


def test_the_accept_stays_only_if_it_is_wanted():
    headers = (("Sec-WebSocket-Accept", "x"), ("Sec-WebSocket-Protocol", "chat"))
    protocol = (b"sec-websocket-protocol", b"chat")
    assert response_fields(101, headers) == [(b":status", b"200"), protocol]
    fields = response_fields(101, headers, with_accept=True)
    assert fields == [(b":status", b"200"), (b"sec-websocket-accept", b"x"), protocol]


@pytest.mark.parametrize("pair", [("a b", "x"), ("", "x"), (":status", "200"), ("x", "a\r\nb: c"), ("x", "a\0b")])
def test_what_is_no_field_is_an_error_of_ours(pair: tuple[str, str]):
    with pytest.raises(ValueError, match="not a field of a response head"):
        response_fields(200, (pair,))
    if "\r\n" not in pair[1] and not pair[0].startswith(":"):
        with pytest.raises(ValueError, match="not a field of a response head"):
            response_fields(200, f"{pair[0]}: {pair[1]}\r\n".encode())
