"""The opening handshake of RFC 6455: may this request become a WebSocket, and with what answer."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

from wstunnel.errors import PeerError, safe
from wstunnel.proto.request import Headers, Request

__all__ = ["Answer", "accept_hash", "answer", "choose_subprotocol"]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION = "13"
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")  # what base64 makes of 16 bytes
_UPGRADE: Headers = (("Upgrade", "websocket"), ("Connection", "Upgrade"))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the 101 says. It is made before the backend is connected and sent after."""

    headers: Headers
    subprotocol: str | None


def answer(request: Request, subprotocols: tuple[str, ...] = ()) -> Answer:
    """The answer to a good handshake. Extensions are ignored: none is spoken here.

    in      subprotocols  what the route accepts, best first
    raises  PeerError with the status and fields that the client gets: 405 for anything but GET, 426 for a request
            that is no upgrade or of another version, 400 for a key that is missing, repeated or not 16 bytes
    source  RFC 6455 §4.2
    """
    if request.method != "GET":
        raise PeerError("a WebSocket handshake is a GET", status=405, headers=(("Allow", "GET"),))
    if not request.wants_websocket:
        raise PeerError("this path is a WebSocket", status=426, headers=_UPGRADE)
    versions = request.all("sec-websocket-version")
    if versions != [_VERSION]:
        raise PeerError(
            f'WebSocket version "{safe(", ".join(versions))}" is not spoken, only {_VERSION}',
            status=426,
            headers=(("Sec-WebSocket-Version", _VERSION), *_UPGRADE),
        )
    keys = request.all("sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise PeerError(f'one Sec-WebSocket-Key of 16 bytes is needed, not "{safe(", ".join(keys))}"')
    subprotocol = choose_subprotocol(request, subprotocols)
    headers = (*_UPGRADE, ("Sec-WebSocket-Accept", accept_hash(keys[0])))
    if subprotocol is not None:
        headers = (*headers, ("Sec-WebSocket-Protocol", subprotocol))
    return Answer(headers, subprotocol)


def choose_subprotocol(request: Request, accepted: tuple[str, ...]) -> str | None:
    """The first of `accepted` that the client offers, or None; nothing is answered that was not offered.

    Names compare as they are written, case included. RFC 6455 §4.1 wants each offered once; a repeated
    offer is tolerated, as it changes nothing.
    """
    offered = {name.strip(" \t") for value in request.all("sec-websocket-protocol") for name in value.split(",")}
    return next((name for name in accepted if name in offered), None)


def accept_hash(key: str) -> str:
    """Sec-WebSocket-Accept for a key (RFC 6455 §4.2.2)."""
    digest = hashlib.sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")
