"""The opening handshake: what becomes a WebSocket, and what a client that may not is told."""

from __future__ import annotations

import base64
import re

import pytest
import wsproto.handshake
from wsproto.events import AcceptConnection
from wsproto.events import Request as WsRequest

from wstunnel._heads import plain_key
from wstunnel.errors import PeerError
from wstunnel.limits import HeadLimits
from wstunnel.proto.handshake import accept_hash, answer, choose_subprotocol
from wstunnel.proto.http1 import HeadReader, encode_head
from wstunnel.proto.request import Request

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
GOOD = {
    "Host": "a",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def request(method: str = "GET", *more: tuple[str, str], **changed: str | None) -> Request:
    """A good handshake with fields changed (`_` for `-`), left out (None) or added."""
    fields = GOOD | {name.replace("_", "-"): value for name, value in changed.items()}
    lines = [f"{name}: {value}\r\n" for name, value in [*fields.items(), *more] if value is not None]
    head = f"{method} / HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1")
    parsed = HeadReader(HeadLimits(), peer="unix:").feed(head)
    assert parsed is not None
    return parsed


def refused(request: Request) -> PeerError:
    with pytest.raises(PeerError) as caught:
        answer(request, ("binary",))
    return caught.value


def test_sample_of_the_rfc_is_answered_as_the_rfc_says():
    assert accept_hash(KEY) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize("place", range(len(KEY)))
def test_every_byte_of_a_key_is_looked_at(place):
    """In the C reader and behind it alike: what base64 makes of 16 bytes passes, and nothing else."""
    for byte in range(0x21, 0x100):
        key = f"{KEY[:place]}{chr(byte)}{KEY[place + 1 :]}"
        fields = (("sec-websocket-version", "13"), ("sec-websocket-key", key))
        asked = Request(
            method="GET", target="/", path="/", query="", host="a", headers=fields, peer="unix:", wants_websocket=True
        )
        if re.fullmatch("[A-Za-z0-9+/]{22}==", key):
            assert plain_key(fields) == key
            assert answer(asked).accept == accept_hash(key)
        else:
            assert plain_key(fields) is None
            assert refused(asked).status == 400


@pytest.mark.parametrize(
    "more", [("sec-websocket-version", "13"), ("sec-websocket-key", KEY), ("sec-websocket-protocol", "binary")]
)
def test_what_is_said_twice_or_beyond_the_usual_is_looked_at_more_closely(more):
    usual = (("host", "a"), ("sec-websocket-version", "13"), ("sec-websocket-key", KEY))
    assert plain_key(usual) == KEY
    assert plain_key((*usual, more)) is None
    assert plain_key(usual[:2]) is plain_key(usual[::2]) is None
    assert plain_key((("sec-websocket-version", "8"), usual[2])) is None


def test_good_handshake_gets_upgrade_connection_and_accept_and_nothing_else():
    assert answer(request()).headers == (
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    )


@pytest.mark.parametrize("offer", [[], ["binary"], ["mqtt", "binary"]])
def test_wsproto_as_client_accepts_the_answer(offer):
    client = wsproto.handshake.H11Handshake(wsproto.ConnectionType.CLIENT)
    head = client.send(WsRequest(host="a", target="/", subprotocols=offer))
    parsed = HeadReader(HeadLimits(), peer="unix:").feed(head)
    assert parsed is not None

    client.receive_data(encode_head(101, answer(parsed, ("binary",)).headers))

    event = next(iter(client.events()))
    assert isinstance(event, AcceptConnection)
    assert event.subprotocol == ("binary" if "binary" in offer else None)


@pytest.mark.parametrize("connection", ["Upgrade", "upgrade", "keep-alive, Upgrade", "UPGRADE,keep-alive"])
def test_connection_is_a_token_list_as_firefox_sends_it(connection):
    assert answer(request(Connection=connection))


def test_extensions_are_not_answered():
    names = [name for name, _ in answer(request(Sec_WebSocket_Extensions="permessage-deflate")).headers]
    assert "Sec-WebSocket-Extensions" not in names


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "OPTIONS", "DELETE"])
def test_anything_but_get_is_405_and_named_get(method):
    error = refused(request(method))
    assert (error.status, error.headers) == (405, (("Allow", "GET"),))


@pytest.mark.parametrize(
    "changed", [{"Upgrade": None}, {"Connection": None}, {"Upgrade": "h2c"}, {"Connection": "keep-alive"}]
)
def test_plain_get_is_426_and_told_what_to_upgrade_to(changed):
    error = refused(request(**changed))
    assert error.status == 426
    assert error.headers == (("Upgrade", "websocket"), ("Connection", "Upgrade"))


@pytest.mark.parametrize("version", [None, "", "8", "12", "14", "013", "13x", "13.0", "13, 8", "13 13", "+13", "\xb2"])
def test_other_version_is_426_and_told_13(version):
    error = refused(request(Sec_WebSocket_Version=version))
    assert error.status == 426
    assert error.headers == (
        ("Sec-WebSocket-Version", "13"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
    )


@pytest.mark.parametrize("second", ["13", "8"])
def test_two_version_lines_are_426(second):
    assert refused(request("GET", ("Sec-WebSocket-Version", second))).status == 426


@pytest.mark.parametrize(
    "key",
    [
        None,
        "",
        "abc",  # lighttpd takes this
        KEY[:-1],
        KEY[:-2],
        KEY + "=",
        "=" + KEY,
        KEY + " " + KEY,
        KEY.replace("d", "_", 1),  # base64url
        KEY.replace("d", "-", 1),
        KEY.replace("d", "\xe9", 1),
        KEY[:10] + " " + KEY[11:],
        KEY[:10] + "=" + KEY[11:],
        base64.b64encode(bytes(15)).decode(),
        base64.b64encode(bytes(17)).decode(),
        base64.b64encode(bytes(18)).decode(),
        base64.b64encode(bytes(500)).decode(),
        "A" * 24,
        "=" * 24,
    ],
)
def test_key_that_is_not_16_bytes_is_400(key):
    error = refused(request(Sec_WebSocket_Key=key))
    assert (error.status, error.headers) == (400, ())


@pytest.mark.parametrize("second", [KEY, "", base64.b64encode(bytes(16)).decode()])
def test_two_keys_are_400(second):
    assert refused(request("GET", ("Sec-WebSocket-Key", second))).status == 400


@pytest.mark.parametrize("octets", [bytes(16), bytes(range(240, 256)), b"\xff" * 16])
def test_any_16_bytes_are_a_key(octets):
    key = base64.b64encode(octets).decode()
    assert answer(request(Sec_WebSocket_Key=key)).headers[-1] == ("Sec-WebSocket-Accept", accept_hash(key))


@pytest.mark.parametrize(
    ("offer", "accepted", "chosen"),
    [
        ([], ("binary",), None),
        (["binary"], ("binary",), "binary"),
        (["binary"], (), None),
        (["base64"], ("binary",), None),
        (["base64, binary"], ("binary",), "binary"),
        (["base64", "binary"], ("binary",), "binary"),
        (["a,b , \tc"], ("c",), "c"),
        (["a, b"], ("b", "a"), "b"),  # the route's order, not the client's
        (["b", "a"], ("a", "b"), "a"),
        (["binary, binary"], ("binary",), "binary"),  # RFC 6455 §4.1 forbids it to the client; it is tolerated
        (["binary", "binary"], ("binary",), "binary"),
        (["Binary"], ("binary",), None),  # names compare as they are written
        (["binary2"], ("binary",), None),
        (["xbinary"], ("binary",), None),
        (["bin ary"], ("binary",), None),
        ([""], ("binary",), None),
        ([", ,"], ("binary",), None),
        (["mqtt"], ("binary", "mqtt"), "mqtt"),
    ],
)
def test_subprotocol_is_the_first_accepted_one_that_was_offered(offer, accepted, chosen):
    offering = request("GET", *(("Sec-WebSocket-Protocol", line) for line in offer))

    assert choose_subprotocol(offer, accepted) == chosen
    result = answer(offering, accepted)
    assert result.subprotocol == chosen
    said = [value for name, value in result.headers if name == "Sec-WebSocket-Protocol"]
    assert said == ([chosen] if chosen else [])


def test_refusals_quote_peer_bytes_escaped():
    for error in (
        refused(request(Sec_WebSocket_Key="\xe9" * 300)),
        refused(request(Sec_WebSocket_Version="\xe9" * 300)),
    ):
        assert str(error).isascii()
        assert len(str(error)) < 150
