"""A request as CGI variables: what each says, and what no client can make any of them say."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.errors import PeerError
from wstunnel.limits import HeadLimits
from wstunnel.proto.cgi import variables
from wstunnel.proto.http1 import HeadReader
from wstunnel.proto.request import Request

OURS = {
    "GATEWAY_INTERFACE",
    "SERVER_SOFTWARE",
    "SERVER_PROTOCOL",
    "SERVER_NAME",
    "SERVER_ADDR",
    "SERVER_PORT",
    "REMOTE_ADDR",
    "REMOTE_PORT",
    "REQUEST_METHOD",
    "REQUEST_SCHEME",
    "REQUEST_URI",
    "SCRIPT_NAME",
    "PATH_INFO",
    "QUERY_STRING",
}
"""What every request gets, whatever it holds."""


def request_of(**given_: Any) -> Request:
    usual = {
        "method": "GET",
        "target": "/ws",
        "path": "/ws",
        "query": "",
        "host": "a.example",
        "headers": (),
        "peer": "192.0.2.7:4711",
        "local": "192.0.2.1:8081",
    }
    return Request(**(usual | given_))


def read(head: bytes) -> Request:
    request = HeadReader(HeadLimits(), peer="192.0.2.7:4711", local="192.0.2.1:8081").feed(head)
    assert request is not None
    return request


def found(request: Request, *, script_name: str = "/") -> dict[str, str]:
    return variables(request, script_name=script_name, software="wstunnel/1")


def sent(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


# --- what they say


def test_everything_that_is_said_about_a_handshake():
    request = read(
        b"GET /ws/room/caf%C3%A9?name=a%20b&x HTTP/1.1\r\nHost: A.example:8081\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nX-9-Lives: 9\r\n\r\n"
    )

    assert found(request, script_name="/ws/") == {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": "wstunnel/1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "A.example",
        "SERVER_ADDR": "192.0.2.1",
        "SERVER_PORT": "8081",
        "REMOTE_ADDR": "192.0.2.7",
        "REMOTE_PORT": "4711",
        "REQUEST_METHOD": "GET",
        "REQUEST_SCHEME": "http",
        "REQUEST_URI": "/ws/room/caf%C3%A9?name=a%20b&x",
        "SCRIPT_NAME": "/ws",
        "PATH_INFO": "/room/café",
        "QUERY_STRING": "name=a%20b&x",
        "HTTP_HOST": "A.example:8081",
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_KEY": "AAAAAAAAAAAAAAAAAAAAAA==",
        "HTTP_X_9_LIVES": "9",
    }


def test_https_is_said_of_https_only():
    assert "HTTPS" not in found(request_of())
    assert found(request_of(scheme="https"))["HTTPS"] == "on"


@pytest.mark.parametrize(
    ("path", "script_name", "expected"),
    [
        ("/ws", "/ws", ("/ws", "")),
        ("/ws/", "/ws", ("/ws", "/")),
        ("/ws/a/b", "/ws", ("/ws", "/a/b")),
        ("/ws/a/b", "/ws/", ("/ws", "/a/b")),
        ("/ws/a", "/ws/a", ("/ws/a", "")),
        ("/wsx/a", "/ws", ("/wsx", "/a")),
        ("/wsx", "/ws", ("/wsx", "")),
        ("/", "/", ("", "/")),
        ("/a/b", "/", ("", "/a/b")),
        ("/a/b.ws", "/a/b.ws", ("/a/b.ws", "")),
    ],
)
def test_script_name_ends_with_a_segment_and_path_info_is_the_rest(path, script_name, expected):
    said = found(request_of(path=path), script_name=script_name)

    assert (said["SCRIPT_NAME"], said["PATH_INFO"]) == expected


def test_a_prefix_of_another_path_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match="does not lead"):
        found(request_of(path="/a"), script_name="/b")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a?b=http://c/d", "/a?b=http://c/d"),
        ("http://a.example/b/c?d", "/b/c?d"),
        ("HTTP://a.example", "/"),
        ("http://a.example?b/c", "/?b/c"),
        ("ws://a.example:1/?", "/?"),
    ],
)
def test_request_uri_is_path_and_query_as_sent_whatever_the_form_of_the_target(target, expected):
    request = read(f"GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n".encode())

    assert found(request)["REQUEST_URI"] == expected


@pytest.mark.parametrize(
    ("local", "host", "scheme", "expected"),
    [
        ("192.0.2.1:8081", "a.example:99", "http", ("a.example", "192.0.2.1", "8081")),
        ("[2001:db8::1]:8081", "[2001:db8::1]:8081", "http", ("[2001:db8::1]", "2001:db8::1", "8081")),
        ("unix:", "a.example", "http", ("a.example", "", "80")),
        ("unix:", "a.example:", "https", ("a.example", "", "443")),
        ("unix:", "[::1]", "https", ("[::1]", "", "443")),
        ("", "a.example:99", "http", ("a.example", "", "99")),
    ],
)
def test_the_server_is_where_the_client_came_to(local, host, scheme, expected):
    """A UNIX socket has no port: then it is that of the Host field, which a proxy passes on, or the scheme's."""
    said = found(request_of(local=local, host=host, scheme=scheme))

    assert (said["SERVER_NAME"], said["SERVER_ADDR"], said["SERVER_PORT"]) == expected


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("192.0.2.7:4711", ("192.0.2.7", "4711")),
        ("[2001:db8::7]:4711", ("2001:db8::7", "4711")),
        ("[fe80::1%eth0]:4711", ("fe80::1%eth0", "4711")),
        ("unix:", ("", "")),
        ("gone", ("", "")),
    ],
)
def test_the_client_is_an_address_without_brackets_and_a_port(peer, expected):
    said = found(request_of(peer=peer))

    assert (said["REMOTE_ADDR"], said["REMOTE_PORT"]) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x-forwarded-for", "a, b; c, d"),
        ("cookie", "a; b; c; d"),
    ],
)
def test_repeated_fields_are_joined_as_their_grammar_has_it(name, expected):
    request = request_of(headers=((name, "a"), ("x-other", "x"), (name, "b; c"), (name, "d")))

    assert found(request)[f"HTTP_{name.upper().replace('-', '_')}"] == expected


def test_a_content_type_is_no_http_variable_and_a_length_is_none_at_all():
    said = found(request_of(headers=(("content-type", "text/plain"), ("content-length", "0"))))

    assert said["CONTENT_TYPE"] == "text/plain"
    assert said.keys() == OURS | {"CONTENT_TYPE"}


@pytest.mark.parametrize("raw", [b"caf\xc3\xa9", b"caf\xe9", b"\xff\xfe", bytes(range(0x80, 0x100)), b"a\tb"])
def test_a_value_keeps_its_bytes(raw):
    request = read(b"GET /%FF%C3%A9 HTTP/1.1\r\nHost: a\r\nX-Name: " + raw + b"\r\nX-Name: " + raw + b"\r\n\r\n")
    said = found(request)

    assert sent(said["HTTP_X_NAME"]) == raw + b", " + raw
    assert sent(said["PATH_INFO"]) == b"/\xff\xc3\xa9"


# --- what they never say


@pytest.mark.parametrize("spelling", [b"Proxy", b"proxy", b"PROXY", b"pRoXy"])
def test_no_client_chooses_the_proxy_of_a_program(spelling):
    """CVE-2016-5385, CVE-2016-5386, CVE-2016-5387, CVE-2016-5388, CVE-2016-1000109: httpoxy."""
    request = read(b"GET / HTTP/1.1\r\nHost: a\r\n" + spelling + b": http://evil.example/\r\n\r\n")

    assert "HTTP_PROXY" not in found(request)
    assert "evil" not in repr(found(request))


@pytest.mark.parametrize(
    "name", ["x_real_ip", "x-real_ip", "x.real.ip", "x~real~ip", "x!real-ip", "_", "x-réal-ip", ""]
)
def test_a_name_that_could_pass_for_another_is_dropped(name):
    request = request_of(headers=(("x-real-ip", "192.0.2.9"), (name, "evil")))

    assert found(request)["HTTP_X_REAL_IP"] == "192.0.2.9"
    assert "evil" not in repr(found(request))


@pytest.mark.parametrize("control", ["\0", "\n", "\r", "\x1b", "\x7f"])
@pytest.mark.parametrize("place", ["path", "query", "header"])
def test_a_control_character_is_refused_wherever_it_stands(control, place):
    bad = f"/a{control}b"
    request = request_of(**({"headers": (("x-a", bad),)} if place == "header" else {place: bad}))

    with pytest.raises(PeerError, match="control character in") as caught:
        found(request)

    assert caught.value.status == 400
    assert str(caught.value).isprintable()


def test_a_newline_that_was_escaped_in_the_path_is_refused_too():
    with pytest.raises(PeerError, match=r'control character in PATH_INFO: "/a\\nb"'):
        found(read(b"GET /a%0Ab HTTP/1.1\r\nHost: a\r\n\r\n"))


latin1 = st.text(st.characters(codec="latin-1"))
fields = st.tuples(
    st.one_of(
        latin1,
        st.text("abc-_.", max_size=4),
        st.sampled_from([name.lower() for name in OURS] + ["https", "proxy", "path", "ld-preload", "content-type"]),
    ).map(str.lower),
    st.one_of(st.text(st.characters(codec="latin-1", exclude_categories=("Cc",))), latin1),
)


@given(st.lists(fields, max_size=8).map(tuple))
def test_whatever_the_fields_are_called_only_http_variables_come_of_them(headers):
    bare = found(request_of())
    try:
        said = found(request_of(headers=headers))
    except PeerError:
        assert any(re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value) for _, value in headers)
        return

    theirs = {key: value for key, value in said.items() if key not in bare}
    assert {key: said[key] for key in bare} == bare
    assert all(re.fullmatch(r"HTTP_[A-Z0-9_]*|CONTENT_TYPE", key) for key in theirs)
    assert "HTTP_PROXY" not in theirs
    assert not any(byte < 0x20 and byte != 0x09 for value in said.values() for byte in sent(value))
    for key, value in theirs.items():
        name = key.removeprefix("HTTP_").replace("_", "-").lower()
        values = [value for field, value in headers if field == name]
        if key == "CONTENT_TYPE":
            assert sent(value) == values[0].encode("latin-1")
        else:
            assert sent(value) == ("; " if name == "cookie" else ", ").join(values).encode("latin-1")


@given(st.lists(fields, max_size=8).map(tuple), st.text("a/?%", max_size=50))
def test_variables_are_no_larger_than_twice_the_head_and_what_is_ours(headers, rest):
    clean = tuple((name, re.sub(r"[\x00-\x1f\x7f]", "", value)) for name, value in headers)
    path, _, query = rest.partition("?")
    request = request_of(target=f"/{rest}", path=f"/{path}", query=query, headers=clean)
    head_bytes = len(rest) + sum(len(f"{name}: {value}\r\n") for name, value in clean)
    ours_bytes = sum(len(key) + len(value) for key, value in found(request_of(target="", path="/", query="")).items())

    size = sum(len(key) + len(sent(value)) for key, value in found(request).items())

    assert size <= 2 * head_bytes + ours_bytes + len("/")
