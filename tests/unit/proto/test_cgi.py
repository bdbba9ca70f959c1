"""A request as CGI variables: what each says, and what no client can make any of them say. The head of an answer."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.differential.frames import PATIENT, pieces
from wstunnel.errors import BackendError, PeerError
from wstunnel.limits import GatewayLimits, HeadLimits
from wstunnel.proto.cgi import ResponseHeadReader, is_variable, variables
from wstunnel.proto.http1 import HeadReader
from wstunnel.proto.request import Request
from wstunnel.proto.response import ResponseHead

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


def found(request: Request, *, script_name: str = "/", **more: Any) -> dict[str, str]:
    return variables(request, script_name=script_name, software="wstunnel/1", **more)


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
    ("scheme", "subject", "expected"),
    [
        ("http", "", {}),
        ("https", "", {"SSL_CLIENT_VERIFY": "NONE"}),
        ("https", "CN=ann", {"SSL_CLIENT_VERIFY": "SUCCESS", "SSL_CLIENT_S_DN": "CN=ann"}),
    ],
)
def test_whom_a_certificate_names_is_said_by_us_alone(scheme, subject, expected):
    own = (("ssl-client-verify", "SUCCESS"), ("ssl-client-s-dn", "CN=root"), ("remote-user", "root"), ("https", "on"))
    said = found(request_of(scheme=scheme, client_subject=subject, headers=own))
    assert {name: value for name, value in said.items() if name.startswith("SSL_")} == expected
    assert ("HTTPS" in said) is (scheme == "https")
    assert "REMOTE_USER" not in said


@pytest.mark.parametrize(
    ("version", "is_handshake", "with_upgrade", "expected"),
    [
        ("HTTP/1.1", False, True, "HTTP/1.1"),
        ("HTTP/2", False, True, "HTTP/2.0"),
        ("HTTP/2", True, False, "HTTP/2.0"),
        ("HTTP/2", True, True, "HTTP/1.1"),
    ],
)
def test_a_handshake_is_one_of_http_1_1_however_it_came(version, is_handshake, with_upgrade, expected):
    request = request_of(version=version, wants_websocket=is_handshake)
    assert found(request, with_upgrade=with_upgrade)["SERVER_PROTOCOL"] == expected


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


def test_a_body_has_a_length_and_no_coding():
    request = request_of(headers=(("content-length", "9"), ("transfer-encoding", "chunked")))

    assert found(request, content_length=5).items() - found(request).items() == {("CONTENT_LENGTH", "5")}
    assert found(request).keys() == OURS


@pytest.mark.parametrize("length", [None, 0])
def test_without_a_body_or_its_length_none_is_said(length):
    assert "CONTENT_LENGTH" not in found(request_of(), content_length=length)


def test_a_program_is_told_where_its_files_are():
    """php-cgi runs nothing without REDIRECT_STATUS."""
    said = found(request_of(), script_filename="/srv/a.php", document_root="/srv", path_translated="/srv/info")

    assert said.items() - found(request_of()).items() == {
        ("SCRIPT_FILENAME", "/srv/a.php"),
        ("REDIRECT_STATUS", "200"),
        ("DOCUMENT_ROOT", "/srv"),
        ("PATH_TRANSLATED", "/srv/info"),
    }


@pytest.mark.parametrize("name", ["script_filename", "document_root", "path_translated"])
def test_a_control_character_in_a_path_of_files_is_refused(name):
    with pytest.raises(PeerError, match=f"control character in {name.upper()}"):
        found(request_of(), **{name: "/srv/a\nb"})


def test_a_program_that_may_not_upgrade_is_not_asked_to():
    headers = (("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-version", "13"))

    assert found(request_of(headers=headers)).keys() - OURS == {
        "HTTP_UPGRADE",
        "HTTP_CONNECTION",
        "HTTP_SEC_WEBSOCKET_VERSION",
    }
    assert found(request_of(headers=headers), with_upgrade=False).keys() - OURS == {"HTTP_SEC_WEBSOCKET_VERSION"}


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


def test_every_variable_may_be_said_and_no_other():
    every = found(
        request_of(scheme="https", client_subject="CN=a", headers=(("content-type", "a"), ("x-a", "b"))),
        content_length=1,
        script_filename="/a",
        document_root="/",
        path_translated="/b",
    )
    assert {"HTTPS", "CONTENT_TYPE", "CONTENT_LENGTH", "HTTP_X_A", "DOCUMENT_ROOT", "PATH_TRANSLATED"} <= every.keys()
    assert all(map(is_variable, every))
    for name in (
        "",
        "PATH",
        "LD_PRELOAD",
        "PERL5OPT",
        "HTTP_PROXY",
        "HTTP_",
        "HTTP_a",
        "HTTP_A\n",
        "HTTP_A=B",
        "XHTTP_A",
    ):
        assert not is_variable(name), name
    assert is_variable("HTTP_PROXY_AUTHORIZATION")


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
    assert all(map(is_variable, said))
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


# --- the head of an answer

SMALL = GatewayLimits(max_head_bytes=40, max_fields=3)
PLAIN = b"Content-Type: text/plain\n\n"


def answer(
    wire: bytes, cuts: Iterable[int] = (), limits: GatewayLimits | None = None
) -> tuple[ResponseHead | None, bytes]:
    """The head, and what follows it."""
    reader = ResponseHeadReader(limits or GatewayLimits())
    head, beyond = None, b""
    for piece in pieces(wire, list(cuts)):
        if head is None:
            head = reader.feed(piece)
        else:
            beyond += piece
    return head, reader.leftover + beyond


def head_of(wire: bytes) -> ResponseHead:
    head, beyond = answer(wire)
    assert head is not None
    assert beyond == b""
    return head


def refusal(wire: bytes, cuts: Iterable[int] = (), limits: GatewayLimits | None = None) -> str:
    with pytest.raises(BackendError) as caught:
        answer(wire, cuts, limits)
    assert caught.value.status == 502
    assert str(caught.value).isprintable()
    return str(caught.value).removeprefix("the head of the program's answer ")


def test_an_answer_is_a_status_fields_and_a_length():
    head = head_of(
        b"Status: 404 Not here\r\nContent-Type: text/html\r\nSet-Cookie: a\r\nSet-Cookie:  b \t\r\n"
        b"X-Name: caf\xe9\r\nContent-Length: 12\r\nX-Empty:\r\n\r\n"
    )

    assert head == ResponseHead(
        status=404,
        headers=(
            ("content-type", "text/html"),
            ("set-cookie", "a"),
            ("set-cookie", "b"),
            ("x-name", "caf\xe9"),
            ("x-empty", ""),
        ),
        body_bytes=12,
    )


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_what_follows_the_head_is_the_body(end):
    assert answer(b"A: b" + end + end + b"\r\n\nbody")[1] == b"\r\n\nbody"


def test_lines_may_end_either_way_in_one_head():
    assert head_of(b"A: b\r\nC: d\n\r\n").headers == (("a", "b"), ("c", "d"))


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"A: b\n", 200),
        (b"Status: 200\n", 200),
        (b"status:599 \n", 599),
        (b"STATUS: 204 No: Content\n", 204),
        (b"Location: http://b.example/\n", 302),
        (b"Location: /elsewhere?a\n", 302),
        (b"Location: /made\nStatus: 201 Created\n", 201),
        (b"Status: 301\nStatus: 301\nLocation: /a\nLocation: /a\n", 301),
    ],
)
def test_the_status_is_said_or_follows_from_location(fields, status):
    assert head_of(fields + b"\n").status == status


def test_a_path_in_location_goes_to_the_client():
    assert head_of(b"Location: /elsewhere\n\n").headers == (("location", "/elsewhere"),)


def test_what_may_stand_once_and_is_repeated_word_for_word_is_said_once():
    assert head_of(b"Content-Type: a\nContent-Type: a\nContent-Length: 1\nContent-Length: 1\n\n") == ResponseHead(
        status=200, headers=(("content-type", "a"),), body_bytes=1
    )


def test_an_upgrade_is_a_101_with_upgrade():
    head = head_of(
        b"Status: 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: x\r\nContent-Length: 5\r\n\r\n"
    )

    assert head == ResponseHead(
        status=101,
        headers=(("upgrade", "websocket"), ("sec-websocket-accept", "x")),
        body_bytes=0,
        is_upgrade=True,
    )


@pytest.mark.parametrize("status", [b"", b"Status: 200\n", b"Status: 426\n"])
def test_upgrade_means_nothing_without_101(status):
    head = head_of(status + b"Upgrade: websocket\nA: b\n\n")

    assert (head.headers, head.is_upgrade) == ((("a", "b"),), False)


def test_fields_of_one_connection_are_dropped():
    head = head_of(
        b"Connection: close, X-Mine\nKeep-Alive: 5\nProxy-Connection: close\nTE: trailers\nTrailer: a\n"
        b"Transfer-Encoding: chunked\nX-Mine: a\nX-Other: b\n\n"
    )

    assert head.headers == (("x-other", "b"),)


@pytest.mark.parametrize("status", [b"204", b"304"])
def test_an_answer_that_has_no_body_has_none_whatever_it_says(status):
    assert head_of(b"Status: " + status + b"\nContent-Length: 9\n\n").body_bytes == 0
    assert head_of(b"Status: " + status + b"\n\n").body_bytes == 0


def test_without_a_length_a_body_goes_on_until_its_end():
    assert head_of(PLAIN).body_bytes is None
    assert head_of(b"Content-Length: 0\n\n").body_bytes == 0


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (b"\n", "begins with an empty line"),
        (b"\r\nA: b\n\n", "begins with an empty line"),
        (
            b"HTTP/1.1 200 OK\r\n",
            'begins with "HTTP/1.1 200 OK": a status is said with "Status:", not with an HTTP status line',
        ),
        (b"Traceback (most recent call last):\n", 'holds "Traceback (most recent call last):", which is no field'),
        (b"Hello\n", 'holds "Hello", which is no field'),
        (b": a\n", 'holds ": a", which is no field'),
        (b"A : b\n", 'holds "A : b", which is no field'),
        (b"A: b\n c\n", 'holds " c", which is no field'),
        (b"A: b\rC: d\n", 'holds "A: b\\rC: d", which is no field'),
        (b"A: b\r\r\n", 'holds "A: b\\r", which is no field'),
        (b"A: \0\n", 'holds "A: \\x00", which is no field'),
        (b"A\xe9: b\n", 'holds "A\\xe9: b", which is no field'),
        (b"Status: 101\n\n", "says 101 without Upgrade"),
        (b"Status: 100\n\n", "says 100, after which another answer would have to come"),
        (b"Status: 103\nUpgrade: x\n\n", "says 103, after which another answer would have to come"),
        (b"Status: 200\nStatus: 404\n\n", 'says status twice, "200" and "404"'),
        (b"Location: /a\nA: b\nLocation: /b\n\n", 'says location twice, "/a" and "/b"'),
        (b"Content-Length: 1\nContent-Length: 2\n\n", 'says content-length twice, "1" and "2"'),
        (b"Content-Type: a\nContent-Type: b\n\n", 'says content-type twice, "a" and "b"'),
    ],
)
def test_what_is_no_head_is_refused_in_words_that_help(wire, expected):
    assert refusal(wire) == expected


@pytest.mark.parametrize(
    "status", [b"", b"99", b"600", b"0200", b"20", b"2000", b"200OK", b"OK", b"-200", b"+20", b"2 0", b"\xb2\xb2\xb2"]
)
def test_a_status_is_a_number_of_three_digits(status):
    assert "instead of a number from 100 to 599" in refusal(b"Status: " + status + b"\n\n")


@pytest.mark.parametrize("length", [b"", b"-1", b"+1", b"1, 1", b"0x1", b"1.0", b"1_0", b"\xb2", b"9" * 19])
def test_a_length_is_a_number(length):
    assert refusal(b"Content-Length: " + length + b"\n\n").startswith('says "Content-Length: ')


def test_a_head_has_a_bound():
    fits = b"A: " + b"x" * 35 + b"\n\n"
    assert len(fits) == 40

    assert answer(fits, (), SMALL)[0] is not None
    assert answer(fits + b"x" * 100, (), SMALL)[1] == b"x" * 100
    for cuts in ([], range(50)):
        assert refusal(b"A" + fits, cuts, SMALL) == "does not end within 40 bytes"
        assert refusal(b"A" * 40, cuts, SMALL) == "does not end within 40 bytes"
    assert answer(b"A" * 39, (), SMALL)[0] is None


def test_fields_have_a_bound():
    assert answer(b"A: b\n" * 3 + b"\n", (), SMALL)[0] is not None
    assert refusal(b"A: b\n" * 4, (), SMALL) == "has more than 3 fields"


words = st.sampled_from(
    [
        b"Status", b"Location", b"Content-Length", b"Upgrade", b"A", b":", b": ", b"200", b"101", b"x", b" ", b"\n",
        b"\r\n", b"\n\n", b"\r", b"\0", b"\xe9", b"HTTP/1.1 ",
    ]
)  # fmt: skip
lines = st.sampled_from(
    [b"A: b\n", b"Status: 200\r\n", b"Location: /\n", b"Upgrade: x\n", b"Status: 101\n", b"\n", b"\r\n"]
)
heads = st.lists(st.one_of(words, lines, lines), max_size=12).map(b"".join)


def outcome(wire: bytes, cuts: Iterable[int]) -> object:
    try:
        return answer(wire, cuts, SMALL)
    except BackendError as error:
        return error.status, str(error)


@PATIENT
@given(st.one_of(heads, st.binary()), st.lists(st.integers(0, 60), max_size=8))
def test_a_cut_changes_nothing_and_garbage_raises_nothing_else(wire, cuts):
    assert outcome(wire, cuts) == outcome(wire, range(len(wire))) == outcome(wire, [])


@pytest.mark.parametrize("wire", [b"A: b\n" * 40_000, b"A" * 400_000, b"A: " + b" " * 400_000, b"a:\r" * 100_000])
@pytest.mark.parametrize("step", [0, 100])
def test_time_is_linear_in_the_bytes_whatever_they_are(wire, step):
    limits = GatewayLimits(max_head_bytes=10**6, max_fields=10**6)

    def took_s(size: int) -> float:
        start_s = time.process_time()
        outcome_of_all = answer(wire[:size], range(0, size, step) if step else (), limits)
        assert outcome_of_all == (None, b"")
        return time.process_time() - start_s

    size = len(wire)
    assert min(took_s(size) for _ in range(3)) < 40 * min(took_s(size // 8) for _ in range(5)) + 0.01
