"""Request heads in any pieces, what is refused and by which rule, and response heads."""

from __future__ import annotations

import time

import h11
import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wstunnel.errors import LimitError, PeerError
from wstunnel.limits import HeadLimits
from wstunnel.proto.http1 import HeadReader, encode_head
from wstunnel.proto.request import Request

LIMITS = HeadLimits()
PLAIN = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def read(*pieces: bytes, limits: HeadLimits = LIMITS) -> tuple[Request | None, bytes]:
    """The request and what follows it, all pieces fed to one reader."""
    reader = HeadReader(limits, peer="127.0.0.1:1", local="127.0.0.1:2", scheme="http")
    for at, piece in enumerate(pieces):
        request = reader.feed(piece)
        if request is not None:
            return request, reader.leftover + b"".join(pieces[at + 1 :])
    return None, b""


def request_of(head: bytes) -> Request:
    request, leftover = read(head)
    assert request is not None
    assert leftover == b""
    return request


def outcome(*pieces: bytes) -> object:
    """Whatever reading comes to, as a value that can be compared."""
    try:
        return read(*pieces)
    except PeerError as error:
        return type(error), error.status, str(error)


# --- what is yielded


def test_request_holds_everything_that_the_head_says():
    head = b"GET /chat/%C3%A9?x=%20&y HTTP/1.1\r\nHost: A.example:80\r\nX-Two:\t b  c \t\r\n\r\n"

    request = request_of(head)

    assert request == Request(
        method="GET",
        target="/chat/%C3%A9?x=%20&y",
        path="/chat/é",
        query="x=%20&y",
        host="A.example:80",
        headers=(("host", "A.example:80"), ("x-two", "b  c")),
        peer="127.0.0.1:1",
        local="127.0.0.1:2",
        scheme="http",
        wants_websocket=False,
    )


@pytest.mark.parametrize("cut", range(len(PLAIN) + 1))
def test_head_is_the_same_however_it_is_cut(cut):
    assert read(PLAIN[:cut], PLAIN[cut:]) == (request_of(PLAIN), b"")


@pytest.mark.parametrize("frames", [b"\x81\x85\r\n\r\n\r\n\x00\xff", b"\xff", b"\n" * 70_000, bytes(70_000)])
def test_what_follows_the_head_is_handed_back_untouched(frames):
    """More than a head may hold, too: a read is larger than that."""
    assert read(PLAIN + frames)[1] == frames


def test_pipelined_request_is_handed_back():
    assert read(PLAIN + b"GET /2 HTTP/1.1\r\nHo")[1] == b"GET /2 HTTP/1.1\r\nHo"


def test_reader_is_empty_until_the_first_byte():
    reader = HeadReader(LIMITS, peer="unix:")
    assert reader.is_empty
    reader.feed(b"G")
    assert not reader.is_empty


def test_one_empty_line_before_the_request_is_skipped():
    assert read(b"\r\n" + PLAIN) == (request_of(PLAIN), b"")


def test_field_values_keep_their_bytes_as_latin1():
    assert request_of(b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe9\xff\r\n\r\n").first("x") == "\xe9\xff"


def test_empty_field_values_are_kept_apart():
    request = request_of(b"GET / HTTP/1.1\r\nHost: a\r\nA:\r\nB: \t\r\nC: c\r\n\r\n")
    assert request.headers[1:] == (("a", ""), ("b", ""), ("c", "c"))


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/", "/"),
        (b"/a/b", "/a/b"),
        (b"/a/b/", "/a/b/"),
        (b"/a%20b", "/a b"),
        (b"/%e2%82%ac", "€"),
        (b"/%ff", "\udcff"),
        (b"/a/./b", "/a/b"),
        (b"/a/../b", "/b"),
        (b"/a/b/..", "/a/"),
        (b"/a/b/.", "/a/b/"),
        (b"/..", "/"),
        (b"/../../etc/passwd", "/etc/passwd"),
        (b"/a/%2e%2e/b", "/b"),
        (b"/a%2f..%2fb", "/b"),
        (b"/a%2F%2E%2E%2Fb", "/b"),
        (b"//a///b", "/a/b"),
        (b"/a//", "/a/"),
        (b"/...", "/..."),
        (b"/.a/..b", "/.a/..b"),
        (b"/%252e%252e/x", "/%2e%2e/x"),
        (b"/a;p=1", "/a;p=1"),
        (b"/a%3Fb", "/a?b"),
        (b"/a+b", "/a+b"),
        (b"/%c0%ae%c0%ae/x", "/\udcc0\udcae\udcc0\udcae/x"),
    ],
)
def test_path_is_decoded_and_without_dot_segments(raw, path):
    expected = path if path.startswith("/") else "/" + path
    assert request_of(b"GET " + raw + b" HTTP/1.1\r\nHost: a\r\n\r\n").path == expected


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        (b"http://b.example/x?q", "b.example", "/x", "q"),
        (b"http://b.example:81", "b.example:81", "/", ""),
        (b"HTTP://b.example?q", "b.example", "/", "q"),
        (b"ws://b.example/x", "b.example", "/x", ""),
        (b"wss://[::1]:9/x?a?b", "[::1]:9", "/x", "a?b"),
        (b"https://b.example/", "b.example", "/", ""),
    ],
)
def test_absolute_target_replaces_the_host(target, host, path, query):
    request = request_of(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (request.host, request.first("host"), request.path, request.query) == (host, host, path, query)


@pytest.mark.parametrize(
    ("fields", "wants"),
    [
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\n", True),
        (b"Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n", True),  # Firefox
        (b"UPGRADE: WEBSOCKET\r\nCONNECTION: UPGRADE\r\n", True),
        (b"Upgrade: h2c , websocket\r\nConnection: keep-alive\r\nConnection: upgrade\r\n", True),
        (b"Upgrade: h2c\r\nUpgrade: websocket\r\nConnection: ,upgrade,\r\n", True),
        (b"Connection: upgrade\r\n", False),
        (b"Upgrade: websocket\r\n", False),
        (b"Upgrade: websocket\r\nConnection: keep-alive\r\n", False),
        (b"Upgrade: websockets\r\nConnection: upgrade\r\n", False),
        (b"Upgrade: websocket/13\r\nConnection: upgrade\r\n", False),
        (b"Upgrade: h2c\r\nConnection: upgrade\r\n", False),
        (b"Upgrade: websocket\r\nConnection: no-upgrade\r\n", False),
        (b"", False),
    ],
)
def test_upgrade_and_connection_are_token_lists_in_any_case(fields, wants):
    assert request_of(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n").wants_websocket is wants


@pytest.mark.parametrize(
    ("field", "body_bytes"),
    [
        (b"", 0),
        (b"Content-Length: 0\r\n", 0),
        (b"Content-Length: 00\r\n", 0),
        (b"Content-Length: 10\r\n", 10),
        (b"content-length:  999999999999999999 \r\n", 999_999_999_999_999_999),
        (b"Transfer-Encoding: chunked\r\n", None),
        (b"transfer-encoding:Chunked\r\n", None),
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"POST", b"HEAD"])
def test_a_body_is_announced_by_one_length_or_by_chunks(method, field, body_bytes):
    assert request_of(method + b" / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n").body_bytes == body_bytes


def test_another_coding_than_chunks_is_not_implemented():
    with pytest.raises(PeerError, match=r'"gzip, chunked" is not taken') as caught:
        request_of(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n")
    assert caught.value.status == 501


@pytest.mark.parametrize("host", [b"a", b"a.b:80", b"[::1]", b"[::1]:80", b"1.2.3.4", b"a_b-c.d.", b"a:", b"xn--nxa"])
def test_host_with_an_optional_port_is_taken(host):
    assert request_of(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n").host == host.decode()


# --- what is refused

BY_LLHTTP = "llhttp"
BY_US = "us"

REFUSED = {
    "bare LF after the request line": (BY_LLHTTP, b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
    "bare LF after a field": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\n\r\n"),
    "bare LF at the end": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\r\n\n"),
    "bare LF only": (BY_LLHTTP, b"GET / HTTP/1.1\nHost: a\n\n"),
    "bare LF before the request line": (BY_US, b"\n" + PLAIN),
    "two empty lines before the request line": (BY_US, b"\r\n\r\n" + PLAIN),
    "bare CR in a value": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n"),
    "bare CR at the end": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\r\n\rX: \r\n\r\n"),
    "obs-fold": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n"),
    "obs-fold by tab": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\tc\r\n\r\n"),
    "fold on the request line": (BY_LLHTTP, b"GET / HTTP/1.1\r\n A: b\r\nHost: a\r\n\r\n"),
    "NUL in a value": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\r\nA: b\0c\r\n\r\n"),
    "control byte in a value": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\r\nA: b\x01c\r\n\r\n"),
    "DEL in a value": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\r\nA: b\x7fc\r\n\r\n"),
    "blank in a field name": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\r\nA b: c\r\n\r\n"),
    "blank before the colon": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
    "field without a colon": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\r\nA\r\n\r\n"),
    "field without a name": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\r\n: c\r\n\r\n"),
    "field name that is no token": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\r\nf(o: c\r\n\r\n"),
    "field name beyond ASCII": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\r\nf\xffo: c\r\n\r\n"),
    "unknown method": (BY_LLHTTP, b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "method in lower case": (BY_LLHTTP, b"get / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "method that is no token": (BY_LLHTTP, b"G\x01T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "TLS hello": (BY_LLHTTP, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "HTTP/2 preface": (BY_LLHTTP, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "two blanks before the target": (BY_US, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two blanks behind the target": (BY_US, b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n"),
    "blank at the end of the line": (BY_LLHTTP, b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    "tab for a blank": (BY_LLHTTP, b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "blank in the target": (BY_LLHTTP, b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "fragment": (BY_US, b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "raw UTF-8 in the target": (BY_LLHTTP, b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "control byte in the target": (BY_LLHTTP, b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "relative target": (BY_LLHTTP, b"GET a HTTP/1.1\r\nHost: a\r\n\r\n"),
    "target *": (BY_US, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    "OPTIONS *": (BY_US, b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
    "CONNECT": (BY_US, b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "CONNECT with a path": (BY_US, b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "CONNECT with a URL": (BY_US, b"CONNECT http://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute target of another scheme": (BY_US, b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute target with a user": (BY_US, b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute target without a host": (BY_US, b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n"),
    "no version": (BY_US, b"GET /\r\n"),
    "HTTP/0.9": (BY_US, b"GET / HTTP/0.9\r\nHost: a\r\n\r\n"),
    "HTTP/1.0": (BY_US, b"GET / HTTP/1.0\r\nHost: a\r\n\r\n"),
    "HTTP/1.2": (BY_LLHTTP, b"GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    "HTTP/2.0": (BY_US, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    "http/1.1 in lower case": (BY_LLHTTP, b"GET / http/1.1\r\nHost: a\r\n\r\n"),
    "RTSP": (BY_US, b"GET / RTSP/1.1\r\nHost: a\r\n\r\n"),
    "ICE": (BY_US, b"SOURCE / ICE/1.0\r\nHost: a\r\n\r\n"),
    "no Host": (BY_US, b"GET / HTTP/1.1\r\n\r\n"),
    "no Host beside an absolute target": (BY_US, b"GET http://a/ HTTP/1.1\r\nA: b\r\n\r\n"),
    "two Hosts": (BY_US, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    "two Hosts beside an absolute target": (BY_US, b"GET http://a/ HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n"),
    "empty Host": (BY_US, b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    "Host with a user": (BY_US, b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    "Host with a path": (BY_US, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "Host with a scheme": (BY_US, b"GET / HTTP/1.1\r\nHost: http://a\r\n\r\n"),
    "Host list": (BY_US, b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
    "Host with a bad port": (BY_US, b"GET / HTTP/1.1\r\nHost: a:8x\r\n\r\n"),
    "Host beyond ASCII": (BY_US, b"GET / HTTP/1.1\r\nHost: \xe9\r\n\r\n"),
    "a length of too many digits": (
        BY_US,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0000000000000000001\r\n\r\n",
    ),
    "chunks in a handshake": (
        BY_US,
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    "body in a handshake": (
        BY_US,
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 1\r\n\r\nx",
    ),
    "Transfer-Encoding: identity": (BY_LLHTTP, b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
    "Content-Length, then Transfer-Encoding": (
        BY_LLHTTP,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    "Transfer-Encoding, then Content-Length": (
        BY_LLHTTP,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
    ),
    "two Content-Lengths": (
        BY_LLHTTP,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    ),
    "Content-Length list": (BY_LLHTTP, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0\r\n\r\n"),
    "empty Content-Length": (BY_LLHTTP, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n"),
    "Content-Length with a sign": (BY_LLHTTP, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n"),
    "Content-Length over 64 bits": (
        BY_LLHTTP,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n",
    ),
    "malformed escape": (BY_US, b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n"),
    "cut escape": (BY_US, b"GET /a%2 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "NUL by escape": (BY_US, b"GET /a%00b HTTP/1.1\r\nHost: a\r\n\r\n"),
}


def llhttp_takes(head: bytes) -> bool:
    parser = httptools.HttpRequestParser(object())
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        return True
    except httptools.HttpParserError:
        return False
    return True


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_400_by_the_rule_that_the_table_names(name):
    rule, head = REFUSED[name]

    with pytest.raises(PeerError) as caught:
        read(head)

    assert caught.value.status == 400
    assert not isinstance(caught.value, LimitError)
    assert (rule == BY_US) is llhttp_takes(head)


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_is_the_same_byte_by_byte(name):
    head = REFUSED[name][1]
    assert outcome(*(bytes([byte]) for byte in head)) == outcome(head)


@pytest.mark.parametrize("name", ["TLS hello", "bare LF only", "HTTP/1.0", "no version", "CONNECT", "target *"])
def test_hopeless_head_is_refused_without_waiting_for_its_end(name):
    """A person with netcat, an old proxy or a TLS client at the wrong port gets a word at once, not a 408 later."""
    head = REFUSED[name][1].split(b"\n")[0] + b"\n"
    with pytest.raises(PeerError):
        read(head)


def test_refusal_text_quotes_peer_bytes_escaped():
    with pytest.raises(PeerError) as caught:
        read(b"GET / HTTP/1.1\r\nHost: a\xe9" + b"b" * 200 + b"\r\n\r\n")
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 150


# --- bounds


def head_of(size_bytes: int) -> bytes:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"\r\n\r\n"
    return head[:-4] + b"x" * (size_bytes - len(head)) + b"\r\n\r\n"


def test_head_of_exactly_the_limit_is_read():
    assert len(head_of(LIMITS.max_head_bytes)) == 16 * 1024
    request_of(head_of(LIMITS.max_head_bytes))


@pytest.mark.parametrize(
    "head",
    [
        head_of(LIMITS.max_head_bytes + 1),
        head_of(LIMITS.max_head_bytes + 1)[:-1],
        b"GET /" + b"a" * LIMITS.max_head_bytes,
        head_of(1_000_000),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1_000_000])
def test_longer_head_is_431_as_soon_as_its_end_cannot_come(head, step):
    head = head[: LIMITS.max_head_bytes + 5]
    with pytest.raises(LimitError) as caught:
        read(*(head[at : at + step] for at in range(0, len(head), step)))
    assert caught.value.status == 431
    assert caught.value.allowed == LIMITS.max_head_bytes


def test_hundred_fields_are_read():
    request_of(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 99 + b"\r\n")


@pytest.mark.parametrize("end", [b"\r\n", b"C: d\r\n"])
def test_hundred_and_first_field_is_431(end):
    with pytest.raises(LimitError) as caught:
        read(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 100 + end)
    assert (caught.value.status, caught.value.allowed, caught.value.seen) == (431, 100, 101)


@pytest.mark.parametrize(
    "head",
    [
        head_of(16 * 1024),
        b"GET /" + b"a" * (16 * 1024 - 29) + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"x" * 160 + b":\r\n") * 99 + b"\r\n",
        b"GET /" + b"/.." * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /" + b"%2e%2e/" * 2000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: " + b"," * 16000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: " + b"a." * 8000 + b"\r\n\r\n",
    ],
    ids=["value", "target", "names", "dots", "escaped dots", "commas", "labels"],
)
def test_worst_heads_cost_linear_time_even_byte_by_byte(head):
    """A quadratic reader takes seconds here; the bound is some 20 times what is measured."""
    started_s = time.process_time()
    assert read(*(bytes([byte]) for byte in head))[0] is not None
    assert time.process_time() - started_s < 1.0


# --- against other eyes

fields = st.lists(
    st.tuples(
        st.text("abcXYZ-_!", min_size=1, max_size=6).map(str.encode)
        | st.sampled_from([b"Connection", b"Upgrade", b"Content-Length", b"Transfer-Encoding", b"Host", b"a b", b""]),
        st.text("abc,; \t\xe9\xff", max_size=6).map(lambda text: text.encode("latin-1"))
        | st.sampled_from(
            [b"a", b"upgrade", b"close", b"1", b"0", b"chunked", b"x\r\n y", b"\x0b", b"\0", b"\r", b"\x7f"]
        ),
    ),
    max_size=3,
)


def mostly(good: bytes, *bad: bytes) -> st.SearchStrategy[bytes]:
    """Good nine times out of ten, so that whole heads are good about half the time."""
    return st.integers(0, 9).flatmap(lambda die: st.sampled_from(bad) if die == 9 else st.just(good))


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    method = draw(
        st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS"]) | mostly(b"GET", b"get", b"", b"G T", b"BREW")
    )
    target = draw(mostly(b"/", b"/a?b", b"*", b"http://b/", b"x", b"", b"/\xff", b"/%", b"/a#b"))
    version = draw(mostly(b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.2", b""))
    blank = draw(mostly(b" ", b"  ", b"\t"))
    end = draw(mostly(b"\r\n", b"\n"))
    host = draw(mostly(b"Host: a" + end, b"", b"Host: a b" + end))
    lines = [name + b":" + value + end for name, value in draw(fields)]
    before = draw(mostly(b"", b"\r\n", b"\n"))
    return before + method + blank + target + blank + version + end + host + b"".join(lines) + end


@settings(deadline=None)
@given(heads() | st.binary(max_size=40).map(lambda noise: PLAIN[:10] + noise), st.data())
@example(PLAIN + b"\x81\x80abcd", None)
def test_every_cut_gives_what_one_piece_gives(head, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(head)), max_size=6))) if data else list(range(len(head)))
    pieces = [head[a:b] for a, b in zip([0, *cuts], [*cuts, len(head)], strict=True)]
    assert outcome(*pieces) == outcome(head)


def h11_reads(head: bytes) -> h11.Request | None:
    """h11's server side on a whole head; None: refused, or not whole. It does not know the empty line before."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head.removeprefix(b"\r\n"))
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    return event if isinstance(event, h11.Request) else None


def is_refused_by_us_only(head: bytes, request: h11.Request) -> bool:
    """What h11 takes and we refuse, each with its reason."""
    values = dict(request.headers)
    return (
        b"\n" in head.replace(b"\r\n", b"")  # bare LF: RFC 9112 §2.2 only lets us take it; smugglers use it
        or request.http_version != b"1.1"  # the issue: HTTP/1.0 is 400
        or not request.target.startswith((b"/", b"http://"))  # `*`, relative: no route could serve them
        or b"#" in request.target  # RFC 9112 §3.2: a target has no fragment
        or b"\xff" in request.target  # nor raw bytes
        or b"%" in request.target  # a malformed escape, the only one that is generated
        or request.method in {b"get", b"BREW"}  # no such method: llhttp's list
        or (b"transfer-encoding" in values and b"content-length" in values)  # h11 takes the coding; smugglers use it
        or (b"upgrade" in values and (b"transfer-encoding" in values or b"content-length" in values))  # no handshake
        or head.lower().count(b"content-length") > 1  # h11 folds equal ones
        or any(byte in head for byte in b"\x0b\x7f")  # control bytes: RFC 9110 §5.5 allows none in values
        or b"\r\n " in head  # obs-fold: h11 joins it, RFC 9112 §5.2 lets us refuse it
        or values.get(b"host") != b"a"  # h11 does not look into it; nothing else that is generated is a host
    )


@settings(max_examples=500, deadline=None)
@given(heads())
@example(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length:0\r\nContent-Length:0\r\n\r\n")
def test_h11_takes_what_we_take_and_reads_the_same(head):
    """And what only h11 takes is on the list above."""
    try:
        request, _ = read(head)
    except PeerError:
        request = None
    theirs = h11_reads(head)

    if request is None:
        assert theirs is None or is_refused_by_us_only(head, theirs)
    else:
        assert theirs is not None
        assert request.method.encode() == theirs.method
        assert request.target.encode() == theirs.target
        mine = [(name.encode(), value.encode("latin-1")) for name, value in request.headers]
        assert [pair for pair in mine if pair[0] != b"host"] == [pair for pair in theirs.headers if pair[0] != b"host"]


# --- response heads


def test_response_head_is_read_by_h11():
    head = encode_head(426, (("Sec-WebSocket-Version", "13"), ("X", "\xe9"), ("Content-Length", "0")))

    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    client.receive_data(head)
    response = client.next_event()

    assert isinstance(response, h11.Response)
    assert (response.status_code, response.reason) == (426, b"Upgrade Required")
    assert list(response.headers) == [(b"sec-websocket-version", b"13"), (b"x", b"\xe9"), (b"content-length", b"0")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", "a\r\nSet-Cookie: b"),
        ("X", "a\nb"),
        ("X", "a\rb"),
        ("X", "a\n"),
        ("X", "\0"),
        ("X", "\x7f"),
        ("X", "€"),
        ("X Y", "a"),
        ("X:", "a"),
        ("X\n", "a"),
        ("", "a"),
        ("é", "a"),
    ],
)
def test_response_field_cannot_be_split(name, value):
    with pytest.raises(ValueError, match="not a field"):
        encode_head(200, ((name, value),))


def test_a_status_that_nobody_has_a_phrase_for_has_none():
    assert encode_head(299, ()) == b"HTTP/1.1 299 \r\n\r\n"
