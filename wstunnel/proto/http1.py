"""HTTP/1.1 heads: bytes in, one `Request` out; a status and fields in, bytes out.

llhttp (httptools) holds the grammar of fields. This module adds what llhttp lets through and a tunnel
must not: the exact request line, one valid Host, one length of a body, bounds. Every refusal is a `PeerError` that
comes at the same byte however the head was cut, and nobody reads on behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus

import httptools

from wstunnel.errors import LimitError, PeerError, safe
from wstunnel.limits import HeadLimits
from wstunnel.proto.request import Headers, Request, tokens
from wstunnel.proto.target import check_authority, decode_path

__all__ = ["HeadReader", "encode_field", "encode_head"]

_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_CRLF = b"\r\n"
_END = b"\r\n\r\n"
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rf"({_TOKEN}) ([\x21-\x7e]+) (HTTP/[0-9]\.[0-9])\r\n")
_ABSOLUTE = re.compile(r"(?:https?|wss?)://([^/?]*)(.*)", re.IGNORECASE)
_LENGTH = re.compile(r"[0-9]{1,18}")
_FIELD_NAME = re.compile(_TOKEN)
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class HeadReader:
    """Reads one request head, in any pieces, and stops behind its last byte. One reader, one head.

    bound   `max_head_bytes` and `max_fields`; linear in the bytes, however they are cut
    source  RFC 9112 §2-§5; robustness goals 4, 5, 18
    """

    __slots__ = (
        "_headers",
        "_held",
        "_is_late",
        "_limits",
        "_local",
        "_parser",
        "_peer",
        "_scheme",
        "_seen_bytes",
        "_start",
        "_subject",
        "leftover",
    )

    def __init__(
        self, limits: HeadLimits, *, peer: str, local: str = "", scheme: str = "http", subject: str = ""
    ) -> None:
        self._limits = limits
        self._peer, self._local, self._scheme, self._subject = peer, local, scheme, subject
        self._parser = httptools.HttpRequestParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._held = bytearray()  # the line under way
        self._start: tuple[str, str] | None = None  # method and target, once the request line is whole
        self._is_late = False  # has an empty line come before it?
        self._seen_bytes = 0
        self.leftover = b""
        """What followed the head in the piece that completed it: the next request, or frames."""

    @property
    def is_empty(self) -> bool:
        """Has no byte of the head arrived?"""
        return not self._seen_bytes

    def feed(self, data: bytes) -> Request | None:
        """The request once its head is whole, else None: feed more.

        raises  PeerError(400) on a head that is not strict HTTP/1.1, 501 for an unknown coding; LimitError(431).
                Nothing may be fed after either, or after the request.
        """
        room = self._limits.max_head_bytes - self._seen_bytes
        piece, beyond = data[:room], data[room:]
        self._seen_bytes += len(piece)
        if self._start is None:
            piece = self._feed_start(piece)
        if self._start is not None:
            cut = piece.rfind(b"\n") + 1
            self._held += piece[:cut] or piece
            if cut:
                lines, self._held = bytes(self._held), bytearray(piece[cut:])
                if end := _end_of_head(lines):
                    self._parse(lines[:end])
                    self.leftover = lines[end:] + piece[cut:] + beyond
                    return self._request(*self._start)
                self._parse(lines)
        if self._seen_bytes >= self._limits.max_head_bytes:
            raise LimitError(
                "bytes of a request head",
                self._limits.max_head_bytes,
                self._seen_bytes + len(beyond),
                close_code=1009,
                status=431,
            )
        return None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools."""
        self._headers.append((name, value))

    def _feed_start(self, piece: bytes) -> bytes:
        """Feed up to the end of the request line, and check it; the bytes behind it.

        llhttp gets its bytes at once, so that what is not HTTP at all is refused at its first byte. One empty
        line before the request line is skipped (RFC 9112 §2.2).
        """
        while end := piece.find(b"\n") + 1:
            self._held += piece[:end]
            self._parse(piece[:end])
            piece = piece[end:]
            line = bytes(self._held)
            self._held.clear()
            if line != _CRLF or self._is_late:
                self._start = _split_start(line)
                return piece
            self._is_late = True
        self._held += piece
        self._parse(piece)
        return b""

    def _parse(self, piece: bytes) -> None:
        fault: httptools.HttpParserError | None = None
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            pass  # llhttp's word for a whole head with Upgrade; what it asks for is decided elsewhere
        except httptools.HttpParserError as error:
            fault = error
        if len(self._headers) > self._limits.max_fields:
            raise LimitError(
                "fields of a request head", self._limits.max_fields, len(self._headers), close_code=1009, status=431
            ) from fault
        if fault is not None:
            raise PeerError(f"malformed request head: {fault}") from fault

    def _request(self, method: str, target: str) -> Request:
        headers = tuple([(n.decode("ascii").lower(), v.decode("latin-1").strip(" \t")) for n, v in self._headers])
        hosts = [value for name, value in headers if name == "host"]
        if len(hosts) != 1:
            raise PeerError(f"a request has one Host field, this one has {len(hosts)}")
        host = hosts[0]
        check_authority(host)
        body_bytes = _body_bytes(headers)
        wants_websocket = "websocket" in tokens(headers, "upgrade") and "upgrade" in tokens(headers, "connection")
        if wants_websocket and body_bytes != 0:
            raise PeerError("a handshake has no body")

        rest = target
        if absolute := _ABSOLUTE.fullmatch(target):
            host, rest = absolute.groups()
            check_authority(host)
            headers = tuple((name, host if name == "host" else value) for name, value in headers)
        raw_path, _, query = rest.partition("?")
        return Request(
            method=method,
            target=target,
            path=decode_path(raw_path),
            query=query,
            host=host,
            headers=headers,
            peer=self._peer,
            local=self._local,
            scheme=self._scheme,
            wants_websocket=wants_websocket,
            body_bytes=body_bytes,
            client_subject=self._subject,
        )


def encode_head(status: int, headers: Iterable[tuple[str, str]], fields: bytes = b"") -> bytes:
    """A response head with its closing empty line.

    in      headers  in the order in which they are to be sent; Date and framing are the caller's
            fields   lines before them that are well-formed already, each with its CRLF
    raises  ValueError on a name that is not a token, or a value with a control character
    """
    lines = [encode_field(name, value) for name, value in headers]
    return b"".join((f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode("ascii"), fields, *lines, _CRLF))


def encode_field(name: str, value: str) -> bytes:
    """One line of a response head.

    raises  ValueError on a name that is not a token, or a value with a control character
    """
    if not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
        raise ValueError(f'not a field of a response head: "{safe(name)}: {safe(value)}"')
    return f"{name}: {value}\r\n".encode("latin-1")


def _end_of_head(lines: bytes) -> int:
    """Where the head ends in whole field lines, or 0: not in these."""
    if lines.startswith(_CRLF):
        return len(_CRLF)
    at = lines.find(_END)
    return at + len(_END) if at >= 0 else 0


def _split_start(line: bytes) -> tuple[str, str]:
    """Method and target of a request line, held to `METHOD target HTTP/1.1` with single spaces; llhttp is lenient.

    raises  PeerError(400): other versions, RTSP and ICE, blanks, a fragment, `*` and authority-form
    """
    parts = _REQUEST_LINE.fullmatch(line.decode("latin-1"))
    if not parts:
        raise PeerError(f'malformed request line "{safe(line)}"')
    method, target, version = parts.groups()
    if version != "HTTP/1.1":
        raise PeerError(f"{version} is not served, only HTTP/1.1")
    if "#" in target:
        raise PeerError(f'a request target has no fragment: "{safe(target)}"')
    if method == "CONNECT" or not (target.startswith("/") or _ABSOLUTE.fullmatch(target)):
        raise PeerError(f'a request target is a path or an http URL, not "{safe(target)}"')
    return method, target


def _body_bytes(headers: Headers) -> int | None:
    """As `Request.body_bytes`.

    raises  PeerError(400) on what two readers could take in two ways, which is how requests are smuggled: more than
            one length or coding, or both; PeerError(501) on a coding that is not spoken (RFC 9112 §6.1, §6.3)
    """
    codings = [value for name, value in headers if name == "transfer-encoding"]
    lengths = [value for name, value in headers if name == "content-length"]
    if len(codings) + len(lengths) > 1:
        raise PeerError("a body has one Content-Length or one Transfer-Encoding")
    if codings:
        if codings[0].lower() != "chunked":
            raise PeerError(f'Transfer-Encoding "{safe(codings[0])}" is not taken, only chunked', status=501)
        return None
    if not lengths:
        return 0
    if not _LENGTH.fullmatch(lengths[0]):
        raise PeerError(f'Content-Length "{safe(lengths[0])}" is no length')
    return int(lengths[0])
