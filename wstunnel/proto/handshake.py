"""The opening handshake of RFC 6455: may this request become a WebSocket, and with what answer."""

from __future__ import annotations

import binascii
import hashlib
import re
from dataclasses import dataclass

from wstunnel._heads import field_values, plain_key
from wstunnel.errors import PeerError, safe
from wstunnel.proto.http1 import encode_field, encode_head
from wstunnel.proto.request import Headers, Request

__all__ = ["Answer", "accept_hash", "answer", "choose_subprotocol"]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION = "13"
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")  # what base64 makes of 16 bytes
_UPGRADE: Headers = (("Upgrade", "websocket"), ("Connection", "Upgrade"))
_SWITCHING = encode_head(101, _UPGRADE).removesuffix(b"\r\n") + b"Sec-WebSocket-Accept: "
_SHA1 = hashlib.sha1(usedforsecurity=False)  # to be copied, which costs less than to ask for a new one


@dataclass(slots=True)
class Answer:
    """What the 101 says. It is made before the backend is connected and sent after.

    head  the whole 101, as it goes to the client
    """

    accept: str
    subprotocol: str | None
    head: bytes

    @property
    def headers(self) -> Headers:
        """The fields of the head."""
        headers = (*_UPGRADE, ("Sec-WebSocket-Accept", self.accept))
        return headers if self.subprotocol is None else (*headers, ("Sec-WebSocket-Protocol", self.subprotocol))


def answer(request: Request, subprotocols: tuple[str, ...] = ()) -> Answer:
    """The answer to a good handshake. Extensions are ignored: none is spoken here.

    in      subprotocols  what the route accepts, best first
    raises  PeerError with the status and fields that the client gets: 405 for anything but GET, 426 for a request
            that is no upgrade or of another version, 400 for a key that is missing, repeated or not 16 bytes
    source  RFC 6455 §4.2
    """
    if request.wants_websocket and request.method == "GET" and (key := plain_key(request.headers)) is not None:
        accept = accept_hash(key)
        return Answer(accept, None, _SWITCHING + accept.encode("ascii") + b"\r\n\r\n")
    if request.method != "GET":
        raise PeerError("a WebSocket handshake is a GET", status=405, headers=(("Allow", "GET"),))
    if not request.wants_websocket:
        raise PeerError("this path is a WebSocket", status=426, headers=_UPGRADE)
    versions = field_values(request.headers, "sec-websocket-version")
    if versions != [_VERSION]:
        raise PeerError(
            f'WebSocket version "{safe(", ".join(versions))}" is not spoken, only {_VERSION}',
            status=426,
            headers=(("Sec-WebSocket-Version", _VERSION), *_UPGRADE),
        )
    keys = field_values(request.headers, "sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise PeerError(f'one Sec-WebSocket-Key of 16 bytes is needed, not "{safe(", ".join(keys))}"')
    accept = accept_hash(keys[0])
    offers = field_values(request.headers, "sec-websocket-protocol")
    subprotocol = choose_subprotocol(offers, subprotocols) if offers else None
    field = b"" if subprotocol is None else encode_field("Sec-WebSocket-Protocol", subprotocol)
    return Answer(accept, subprotocol, b"%b%b\r\n%b\r\n" % (_SWITCHING, accept.encode("ascii"), field))


def choose_subprotocol(offers: list[str], accepted: tuple[str, ...]) -> str | None:
    """The first of `accepted` that the client offers, or None; nothing is answered that was not offered.

    in      offers  the values of its Sec-WebSocket-Protocol fields

    Names compare as they are written, case included. RFC 6455 §4.1 wants each offered once; a repeated
    offer is tolerated, as it changes nothing.
    """
    offered = {name.strip(" \t") for value in offers for name in value.split(",")}
    return next((name for name in accepted if name in offered), None)


def accept_hash(key: str) -> str:
    """Sec-WebSocket-Accept for a key (RFC 6455 §4.2.2)."""
    digest = _SHA1.copy()
    digest.update(key.encode("ascii") + _GUID)
    return binascii.b2a_base64(digest.digest(), newline=False).decode("ascii")
