"""HTTP/2 heads: fields in, one `Request` out; a status and fields in, fields out.

HPACK and the states of streams are h2's. What a request's fields must be is said here and not by h2, for which every
fault ends the connection: behind a proxy, that would be everybody's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus

from wstunnel.errors import LimitError, PeerError, safe
from wstunnel.limits import HeadLimits
from wstunnel.proto.request import Headers, Request
from wstunnel.proto.target import check_authority, decode_path

__all__ = ["Fields", "has_own_key", "request_of", "response_fields"]

Fields = Sequence[tuple[bytes, bytes]]

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?|")
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH = re.compile(r"/[\x21\x22\x24-\x7e]*")  # all that is printable, but a fragment
_LENGTH = re.compile(r"[0-9]{1,18}")
_PSEUDO = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})
_OF_CONNECTION = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
_LEFT_OUT = _OF_CONNECTION | {b"sec-websocket-key", b"te"}
_KEY, _ACCEPT = "sec-websocket-key", b"sec-websocket-accept"


def request_of(
    fields: Fields,
    *,
    limits: HeadLimits,
    peer: str,
    local: str,
    scheme: str,
    subject: str,
    is_whole: bool,
    key: str,
) -> Request:
    """The request that the fields of a HEADERS frame make.

    in      is_whole  the client says no more: there is no body
            key       for a handshake (extended CONNECT) of a client that has sent none
    out     a handshake is what it would be over HTTP/1.1: a GET with Upgrade, Connection and a key
    raises  PeerError: 400 on a malformed request, 501 on what CONNECT may ask for besides; LimitError(431)
    source  RFC 9113 §8.2, §8.3; RFC 8441 §4, §5
    """
    if len(fields) > limits.max_fields:
        raise LimitError("fields of a request head", limits.max_fields, len(fields), close_code=1009, status=431)
    pseudo, headers = _split(fields)
    method, path, protocol = pseudo.get(":method", ""), pseudo.get(":path", ""), pseudo.get(":protocol")
    if not _METHOD.fullmatch(method):
        raise PeerError(f'"{safe(method)}" is no method')
    if method == "CONNECT" and protocol != "websocket":
        what = "CONNECT" if protocol is None else f'CONNECT for "{safe(protocol)}"'
        raise PeerError(f"{what} is not served, only for websocket", status=HTTPStatus.NOT_IMPLEMENTED)
    if protocol is not None and method != "CONNECT":
        raise PeerError(":protocol is for CONNECT")
    if ":scheme" not in pseudo:
        raise PeerError("a request has a :scheme")
    if not _PATH.fullmatch(path):
        raise PeerError(f'a request target is a path, not "{safe(path)}"')
    host = _host(pseudo.get(":authority"), headers)
    if "host" not in dict(headers):
        headers = [("host", host), *headers]
    raw_path, _, query = path.partition("?")
    return Request(
        method="GET" if protocol else method,
        target=path,
        path=decode_path(raw_path),
        query=query,
        host=host,
        headers=_handshake(headers, key) if protocol else tuple(headers),
        peer=peer,
        local=local,
        scheme=scheme,
        wants_websocket=protocol is not None,
        body_bytes=0 if protocol else _body_bytes(headers, is_whole=is_whole),
        version="HTTP/2",
        client_subject=subject,
    )


def has_own_key(fields: Fields) -> bool:
    """Did the client send a key? HTTP/2 needs none, but who sends one wants its Accept (undici, niquests)."""
    return any(name == b"sec-websocket-key" for name, _ in fields)


def response_fields(status: int, headers: Iterable[tuple[str, str]] | bytes, *, with_accept: bool = False) -> Fields:
    """The fields of an answer's HEADERS frame: without those that speak of one connection.

    in      headers      or lines that are well-formed already, each with its CRLF
            status       101 becomes 200, and 426 becomes 400: there is no Upgrade in HTTP/2
            with_accept  Sec-WebSocket-Accept stays
    raises  ValueError on a name that is not a token, or a value with a control character
    source  RFC 9113 §8.2.2, RFC 8441 §5
    """
    if status == HTTPStatus.SWITCHING_PROTOCOLS:
        status = HTTPStatus.OK
    elif status == HTTPStatus.UPGRADE_REQUIRED:
        status = HTTPStatus.BAD_REQUEST
    if isinstance(headers, bytes):
        lines = [line.partition(b":")[::2] for line in headers.split(b"\r\n") if line]
        pairs = [(name.lower(), value.strip(b" \t")) for name, value in lines]
    else:
        pairs = [(name.lower().encode("latin-1"), value.strip(" \t").encode("latin-1")) for name, value in headers]
    fields = [(b":status", b"%d" % status)]
    for name, value in pairs:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f'not a field of a response head: "{safe(name)}: {safe(value)}"')
        if name not in _LEFT_OUT and (with_accept or name != _ACCEPT):
            fields.append((name, value))
    return fields


def _split(fields: Fields) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Pseudo-fields, and the others in their order. raises PeerError(400) on what makes a request malformed"""
    pseudo: dict[str, str] = {}
    headers: list[tuple[str, str]] = []
    for name, value in fields:
        text = value.decode("latin-1")
        if not _VALUE.fullmatch(value):
            raise PeerError(f'"{safe(value)}" is no value of a field')
        if name[:1] == b":":
            shown = name.decode("latin-1")
            if name not in _PSEUDO or shown in pseudo or headers:
                raise PeerError(f'"{safe(name)}" is no pseudo-field of a request, comes twice, or behind others')
            pseudo[shown] = text
            continue
        if not _NAME.fullmatch(name):
            raise PeerError(f'"{safe(name)}" is no name of a field')
        if name in _OF_CONNECTION or (name == b"te" and value != b"trailers"):
            raise PeerError(f'"{safe(name)}: {safe(value)}" has no meaning in HTTP/2')
        headers.append((name.decode("ascii"), text))
    cookies = [value for name, value in headers if name == "cookie"]
    if len(cookies) > 1:  # one for those who speak HTTP/1.1 (§8.2.3)
        headers = [field for field in headers if field[0] != "cookie"] + [("cookie", "; ".join(cookies))]
    return pseudo, headers


def _host(authority: str | None, headers: list[tuple[str, str]]) -> str:
    """What the request is for. raises PeerError(400) where that is not said, or in two ways (RFC 9113 §8.3.1)"""
    hosts = [value for name, value in headers if name == "host"]
    said = {*hosts} if authority is None else {authority, *hosts}
    if len(said) != 1 or len(hosts) > 1:
        raise PeerError(f"a request has one host, this one has {max(len(said), len(hosts))}")
    host = said.pop()
    check_authority(host)
    return host


def _handshake(headers: list[tuple[str, str]], key: str) -> Headers:
    """The fields of the same handshake over HTTP/1.1."""
    if any(name == "content-length" for name, _ in headers):
        raise PeerError("a handshake has no body")
    keyed: Headers = () if any(name == _KEY for name, _ in headers) else ((_KEY, key),)
    return (*headers, ("upgrade", "websocket"), ("connection", "Upgrade"), *keyed)


def _body_bytes(headers: list[tuple[str, str]], *, is_whole: bool) -> int | None:
    """As `Request.body_bytes`. That as much comes is checked by whoever reads it. raises PeerError(400)"""
    lengths = [value for name, value in headers if name == "content-length"]
    if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
        raise PeerError(f'Content-Length "{safe(", ".join(lengths))}" is no length')
    announced_bytes = int(lengths[0]) if lengths else None
    if is_whole and announced_bytes:
        raise PeerError(f"{announced_bytes} bytes of a body were announced, and none come")
    return 0 if is_whole else announced_bytes
