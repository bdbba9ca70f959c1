"""Plain heads: what the compiled reader takes, it reads as HeadReader does; and it does take what clients send."""

from __future__ import annotations

import dataclasses

import pytest
import wsproto
import wsproto.events
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from wstunnel._heads import field_values, read_plain_head
from wstunnel.errors import PeerError
from wstunnel.limits import HeadLimits
from wstunnel.proto.http1 import HeadReader
from wstunnel.proto.request import Request

LIMITS = HeadLimits()
KEY = b"AQIDBAUGBwgJCgsMDQ4PEA=="
FRAMES = b"\x81\x80abcd"


def plain(head: bytes, limits: HeadLimits = LIMITS) -> tuple[Request, bytes] | None:
    return read_plain_head(head, len(head), limits, "127.0.0.1:1", "127.0.0.1:2", "https", "CN=a")


def careful(head: bytes, limits: HeadLimits = LIMITS) -> tuple[Request, bytes] | None:
    """What HeadReader makes of the same bytes; None: refused, or not whole."""
    reader = HeadReader(limits, peer="127.0.0.1:1", local="127.0.0.1:2", scheme="https", subject="CN=a")
    try:
        request = reader.feed(head)
    except PeerError:
        return None
    return None if request is None else (request, reader.leftover)


def taken(head: bytes, limits: HeadLimits = LIMITS) -> bool:
    """Is it taken, and read as HeadReader reads it?"""
    found = plain(head, limits)
    return found is not None and found == careful(head, limits)


def head_of(*fields: bytes, target: bytes = b"/ws") -> bytes:
    return b"\r\n".join([b"GET " + target + b" HTTP/1.1", *fields, b"", b""])


def of_websockets() -> bytes:
    client = ClientProtocol(parse_uri("ws://127.0.0.1:8081/ws?x=1"))
    client.send_request(client.connect())
    return b"".join(client.data_to_send())


def of_wsproto() -> bytes:
    client = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    return client.send(wsproto.events.Request(host="a.example", target="/ws", subprotocols=["binary"]))


CHROMIUM = head_of(
    b"Host: 127.0.0.1:8081",
    b"Connection: Upgrade",
    b"Pragma: no-cache",
    b"Cache-Control: no-cache",
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36",
    b"Upgrade: websocket",
    b"Origin: http://127.0.0.1:8081",
    b"Sec-WebSocket-Version: 13",
    b"Accept-Encoding: gzip, deflate, br, zstd",
    b"Accept-Language: en-US,en;q=0.9",
    b"Cookie: session=0f9d; theme=dark",
    b"Sec-WebSocket-Key: " + KEY,
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    target=b"/ws/echo",
)
FIREFOX = head_of(
    b"Host: a.example",
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    b"Accept: */*",
    b"Accept-Language: de,en-US;q=0.7,en;q=0.3",
    b"Accept-Encoding: gzip, deflate, br, zstd",
    b"Sec-WebSocket-Version: 13",
    b"Origin: https://a.example",
    b"Sec-WebSocket-Protocol: binary, base64",
    b"Sec-WebSocket-Extensions: permessage-deflate",
    b"Sec-WebSocket-Key: " + KEY,
    b"DNT: 1",
    b"Sec-GPC: 1",
    b"Connection: keep-alive, Upgrade",
    b"Sec-Fetch-Dest: empty",
    b"Sec-Fetch-Mode: websocket",
    b"Sec-Fetch-Site: same-origin",
    b"Pragma: no-cache",
    b"Cache-Control: no-cache",
    b"Upgrade: websocket",
    target=b"/?token=a%20b&next=//x/../y",
)
SAFARI = head_of(
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Host: [::1]:8081",
    b"Origin: http://[::1]:8081",
    b"Pragma: no-cache",
    b"Cache-Control: no-cache",
    b"Sec-WebSocket-Key: " + KEY,
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Extensions: permessage-deflate",
    b"User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Safari/605",
)
NODE_WS = head_of(
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: " + KEY,
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    b"Host: localhost:8081",
)
CLIENTS = {
    "Chromium": CHROMIUM,
    "Firefox": FIREFOX,
    "Safari": SAFARI,
    "noVNC in Chromium": CHROMIUM.replace(b"/ws/echo", b"/websockify").replace(
        b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: binary\r\n\r\n"
    ),
    "node ws": NODE_WS,
    "websockets": of_websockets(),
    "wsproto": of_wsproto(),
    "picows": head_of(
        b"Host: 127.0.0.1:8081",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: " + KEY,
    ),
    "curl": head_of(
        b"Host: 127.0.0.1:8081",
        b"User-Agent: curl/8.14.1",
        b"Accept: */*",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: " + KEY,
    ),
    "curl, a plain request": head_of(b"Host: a_b.example.:81", b"User-Agent: curl/8.14.1", b"Accept: */*"),
    "a browser, a page": head_of(
        b"Host: a.example",
        b"Connection: keep-alive",
        b'sec-ch-ua: "Chromium";v="140", "Not=A?Brand";v="24"',
        b"sec-ch-ua-mobile: ?0",
        b'sec-ch-ua-platform: "Linux"',
        b"Upgrade-Insecure-Requests: 1",
        b"Sec-Fetch-User: ?1",
        b'If-None-Match: "5e-1"',
        b"If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
        target=b"/app/index.html?",
    ),
    "Firefox behind HAProxy": FIREFOX.replace(
        b"DNT: ", b"x-forwarded-for: 192.0.2.7\r\nx-forwarded-proto: https\r\ndnt: "
    ),
    "Chromium behind nginx": head_of(
        b"Upgrade: websocket",
        b"Connection: upgrade",
        b"Host: a.example",
        b"X-Real-IP: 192.0.2.7",
        b"X-Forwarded-For: 192.0.2.7, 10.0.0.1",
        b"X-Forwarded-Proto: https",
        *CHROMIUM.split(b"\r\n")[3:6],
        *CHROMIUM.split(b"\r\n")[7:-2],
    ),
}


# --- what it takes


@pytest.mark.parametrize("name", CLIENTS)
def test_what_clients_send_is_taken(name):
    """Nobody would notice otherwise that the slow reader does all the work."""
    assert taken(CLIENTS[name] + FRAMES)


def test_request_holds_everything_that_the_head_says():
    found = plain(b"GET /a.b/c/?x=%2e&/..//y HTTP/1.1\r\nHOST: [::1]:80\r\nX-Odd!:\t \xe9 c \t\r\nA:\r\n\r\n" + FRAMES)

    assert found == (
        Request(
            method="GET",
            target="/a.b/c/?x=%2e&/..//y",
            path="/a.b/c/",
            query="x=%2e&/..//y",
            host="[::1]:80",
            headers=(("host", "[::1]:80"), ("x-odd!", "\xe9 c"), ("a", "")),
            peer="127.0.0.1:1",
            local="127.0.0.1:2",
            scheme="https",
            client_subject="CN=a",
            wants_websocket=False,
        ),
        FRAMES,
    )


def test_request_is_as_frozen_as_any_other():
    found = plain(CHROMIUM)
    assert found is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        found[0].path = "/admin"  # type: ignore[misc]
    assert hash(found[0]) == hash(careful(CHROMIUM)[0])  # type: ignore[index]
    assert dataclasses.replace(found[0], path="/other").path == "/other"


def test_nothing_of_the_buffer_is_kept():
    """The next connection is read into the same one."""
    room = bytearray(CHROMIUM + FRAMES)
    found = read_plain_head(memoryview(room), len(room), LIMITS, "127.0.0.1:1", "127.0.0.1:2", "https", "CN=a")
    room[:] = bytes(len(room))
    room.clear()  # BufferError, were the buffer still lent
    assert found == careful(CHROMIUM + FRAMES)


@pytest.mark.parametrize(
    "host", [b"a", b"a.b:80", b"[::1]", b"[::1]:80", b"1.2.3.4", b"a_b-c.d.", b"a:", b"%41", b"a:00080"]
)
def test_good_hosts_are_taken(host):
    assert taken(head_of(b"Host: " + host))


@pytest.mark.parametrize(
    "fields",
    [
        (b"UPGRADE: WEBSOCKET", b"CONNECTION: UPGRADE"),
        (b"Upgrade: h2c , websocket", b"Connection: keep-alive", b"Connection: upgrade"),
        (b"Upgrade: h2c", b"Upgrade:websocket", b"Connection: ,upgrade\t ,"),
        (b"Upgrade: websocket", b"Upgrade: h2c", b"Connection: upgrade", b"Connection: close"),
        (b"Upgrade: websocket", b"Connection: no-upgrade"),
        (b"Upgrade: websockets", b"Connection: upgrade"),
        (b"Upgrade: websocket/13", b"Connection: upgrade"),
        (b"Upgrade: web,socket", b"Connection: upgrade"),
        (b"Upgrade: websocket", b"Connection: "),
        (b"Connection: upgrade",),
    ],
)
def test_upgrade_and_connection_are_token_lists_in_any_case(fields):
    assert taken(head_of(b"Host: a", *fields))


@pytest.mark.parametrize("name", ["connection", "host", "pragma", "x-none", ""])
@pytest.mark.parametrize("client", CLIENTS)
def test_field_values_are_those_that_the_request_has(client, name):
    """However its names came about: those of the careful reader are no constants of this module."""
    for found in (plain(CLIENTS[client]), careful(CLIENTS[client])):
        assert found is not None
        twice = (*found[0].headers, *found[0].headers[::-1])
        assert field_values(twice, name) == dataclasses.replace(found[0], headers=twice).all(name)


# --- what it leaves to HeadReader

LEFT = {
    "another method": b"POST / HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute target": head_of(b"Host: a", target=b"http://b/"),
    "escape": head_of(b"Host: a", target=b"/%61"),
    "dot segment": head_of(b"Host: a", target=b"/a/../b"),
    "empty segment": head_of(b"Host: a", target=b"//b"),
    "empty line before": b"\r\n" + head_of(b"Host: a"),
    "length of nothing": head_of(b"Host: a", b"Content-Length: 0"),
    "fragment": head_of(b"Host: a", target=b"/a#b"),
    "fragment behind a query": head_of(b"Host: a", target=b"/a?b#c"),
    "length": head_of(b"Host: a", b"content-length: 1"),
    "chunks": head_of(b"Host: a", b"TRANSFER-ENCODING: chunked"),
    "no Host": head_of(b"A: b"),
    "two Hosts": head_of(b"Host: a", b"hOST: a"),
    "empty Host": head_of(b"Host:"),
    "long port": head_of(b"Host: a:123456"),
    "Host with a user": head_of(b"Host: u@a"),
    "Host without its bracket": head_of(b"Host: [::1"),
    "empty brackets": head_of(b"Host: []"),
    "letters behind the bracket": head_of(b"Host: [::1]a"),
    "obs-fold": head_of(b"Host: a", b"A: b\r\n c"),
    "bare LF": head_of(b"Host: a", b"A: b\nB: c"),
    "bare CR": head_of(b"Host: a", b"A: b\rB: c"),
    "bare CR at the end": head_of(b"Host: a")[:-2] + b"\r\r\n",
    "blank before the colon": head_of(b"Host: a", b"A : b"),
    "no name": head_of(b"Host: a", b": b"),
    "no colon": head_of(b"Host: a", b"A"),
    "HTTP/1.0": head_of(b"Host: a").replace(b"1.1", b"1.0"),
    "two blanks": head_of(b"Host: a", target=b" /"),
    "no fields": b"GET / HTTP/1.1\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", LEFT)
def test_anything_else_is_left_to_the_careful_reader(name):
    assert plain(LEFT[name]) is None


@pytest.mark.parametrize(
    "head", [CHROMIUM, SAFARI, head_of(b"Host: a", target=b"/?")], ids=["Chromium", "Safari", "short"]
)
def test_part_of_a_head_is_left_to_the_careful_reader_though_the_rest_lies_behind_it(head):
    """What an earlier read has left in the buffer is not ours."""
    for nbytes in range(len(head)):
        assert read_plain_head(head, nbytes, LIMITS, "p", "l", "http", "") is None
        assert plain(head[:nbytes]) is None


@pytest.mark.parametrize("nbytes", [-1, len(NODE_WS) + 1])
def test_more_bytes_than_there_are_is_a_mistake_of_ours(nbytes):
    with pytest.raises(ValueError, match=str(nbytes)):
        read_plain_head(NODE_WS, nbytes, LIMITS, "p", "l", "http", "")


def test_bounds_are_those_of_the_limits():
    exact = HeadLimits(max_head_bytes=len(NODE_WS), max_fields=6)

    assert taken(NODE_WS + FRAMES, exact)
    assert plain(NODE_WS + FRAMES, dataclasses.replace(exact, max_head_bytes=len(NODE_WS) - 1)) is None
    assert plain(NODE_WS + FRAMES, dataclasses.replace(exact, max_fields=5)) is None


@pytest.mark.parametrize("count", range(50, 110))
def test_many_fields_are_read_the_same_or_left(count):
    head = head_of(b"Host: a", *[b"X-%d: y" % n for n in range(count - 1)])
    assert plain(head) == (careful(head) if count <= 64 else None)


# --- against the careful reader, everywhere


@pytest.mark.parametrize(
    "around",
    [
        (b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (b"G", b"T / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (b"GET", b"/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (b"GET ", b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        (b"GET /", b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        (b"GET /a", b"b HTTP/1.1\r\nHost: a\r\n\r\n"),
        (b"GET /a/", b"/b HTTP/1.1\r\nHost: a\r\n\r\n"),
        (b"GET /?a", b"b HTTP/1.1\r\nHost: a\r\n\r\n"),
        (b"GET /", b"HTTP/1.1\r\nHost: a\r\n\r\n"),
        (b"GET / HTTP/1.", b"\r\nHost: a\r\n\r\n"),
        (b"GET / HTTP/1.1", b"\nHost: a\r\n\r\n"),
        (b"GET / HTTP/1.1\r", b"Host: a\r\n\r\n"),
        (b"GET / HTTP/1.1\r\n", b"Host: a\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHo", b"st: a\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX", b": a\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost", b" a\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost:", b"a\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a", b"b\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a:", b"\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost: [:", b"]\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"b\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b", b"\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a", b"\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r", b"\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r", b""),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: ", b"upgrade\r\nUpgrade: websocket\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade", b"\r\nUpgrade: websocket\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: web", b"socket\r\n\r\n"),
    ],
)
def test_every_byte_in_every_place_is_read_the_same_or_left(around):
    before, behind = around
    for byte in range(256):
        head = before + bytes([byte]) + behind
        assert plain(head) is None or taken(head), head


NAMES = [
    b"Host",
    b"Upgrade",
    b"Connection",
    b"Content-Length",
    b"Transfer-Encoding",
    b"X-A",
    b"Proxy-Connection",
    b"Te",
]
VALUES = [
    b"a",
    b"",
    b"websocket",
    b"upgrade",
    b"close",
    b"keep-alive",
    b"0",
    b"chunked",
    b"h2c,websocket",
    b"\xe9",
    b"a:1",
]

odd_fields = st.lists(
    st.tuples(
        st.sampled_from(NAMES) | st.text("aB-_!", min_size=1, max_size=70).map(str.encode),
        st.sampled_from([b":", b": ", b":\t ", b" :"]),
        st.sampled_from(VALUES) | st.text("aB,; \t\xe9", max_size=6).map(lambda text: text.encode("latin-1")),
        st.sampled_from([b"\r\n", b" \r\n", b"\r\n", b"\r\n ", b"\n"]),
    ).map(b"".join),
    max_size=4,
).map(b"".join)
targets = st.lists(st.sampled_from([b"/", b"a", b"?", b".", b"..", b"%20", b"%", b"#", b"//", b"&"]), max_size=6).map(
    lambda parts: b"/" + b"".join(parts)
)
odd_heads = st.tuples(targets, odd_fields, st.binary(max_size=6)).map(
    lambda parts: b"GET " + parts[0] + b" HTTP/1.1\r\nHost: a\r\n" + parts[1] + b"\r\n" + parts[2]
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A client's head with a few bytes changed, left out, put in or repeated."""
    head = bytearray(draw(st.sampled_from(sorted(CLIENTS.values()))))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(head)))
        until = draw(st.integers(at, min(len(head), at + 4)))
        head[at:until] = draw(
            st.binary(max_size=3)
            | st.sampled_from([b"\r\n", b"\r", b"\n", b" ", b"\t", b":", b",", b"/", b"\0", b"\r\n ", b"\r\n\r\n"])
            | st.just(bytes(head[at:until] * 2))
        )
    return bytes(head)


@settings(max_examples=1000, deadline=None)
@given(odd_heads | mutated())
@example(CHROMIUM.replace(b"Pragma", b"Host"))
def test_what_is_taken_is_what_the_careful_reader_takes(head):
    assert plain(head) is None or taken(head)


@settings(max_examples=300, deadline=None)
@given(mutated(), st.integers(20, 700), st.integers(0, 20))
def test_so_it_is_within_any_limits(head, max_head_bytes, max_fields):
    limits = HeadLimits(max_head_bytes=max_head_bytes, max_fields=max_fields)
    assert plain(head, limits) is None or taken(head, limits)
