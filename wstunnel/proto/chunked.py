"""Bodies of unknown length on HTTP/1.1: chunks in, payload out; payload in, chunks out."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto

from wstunnel.errors import PeerError, TunnelError, safe
from wstunnel.limits import GatewayLimits

__all__ = ["LAST_CHUNK", "ChunkedReader", "encode_chunk"]

LAST_CHUNK = b"0\r\n\r\n"
"""Ends a chunked body, without trailers."""

_CRLF = b"\r\n"
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+"'
_EXTENSION = rb"[ \t]*+;[ \t]*+%b(?:[ \t]*+=[ \t]*+(?:%b|%b))?" % (_TOKEN, _TOKEN, _QUOTED)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]++)(?:%b)*+\r\n" % _EXTENSION)
_TRAILER_LINE = re.compile(rb"%b:[\t\x20-\x7e\x80-\xff]*+\r\n" % _TOKEN)
_MAX_CHUNK_BYTES = 2**63 - 1  # what every reader of it can count to


class _Part(Enum):
    """What comes next, when it is no payload."""

    SIZE = auto()
    CHUNK_END = auto()
    TRAILER = auto()


class ChunkedReader:
    """Takes the payload out of a chunked body, in any pieces, and stops behind its last byte. One reader, one body.

    in      fault  makes the error of its text: PeerError for a client's body, a BackendError of 502 for a backend's
    bound   `max_chunk_line_bytes` per chunk and `max_trailer_bytes` are held, no payload; sizes up to 2^63-1
    source  RFC 9112 §7.1: lines end with CRLF and nothing else, extensions are well-formed and mean nothing, trailers
            are well-formed and dropped. Leniency in any of these is how requests are smuggled
    """

    __slots__ = ("_fault", "_held", "_left", "_limits", "_part", "_trailer_bytes", "is_complete", "leftover")

    def __init__(self, limits: GatewayLimits, fault: Callable[[str], TunnelError] = PeerError) -> None:
        self._limits, self._fault = limits, fault
        self._held = b""  # the line under way
        self._left = 0  # bytes of the chunk that have not come
        self._part = _Part.SIZE
        self._trailer_bytes = 0
        self.is_complete = False
        self.leftover = b""
        """What followed the body in the piece that completed it: the next message."""

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`, which may be none.

        raises  what `fault` makes; payload of the same piece is lost with it. Nothing may be fed after an error, or
                once the body is complete
        """
        taken: list[bytes] = []
        data = self._held + data
        self._held = b""
        at = 0
        while at < len(data) and not self.is_complete:
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                at += len(piece)
                taken.append(piece)
            else:
                end = data.find(b"\n", at) + 1
                line = data[at : end or None]
                self._check(line, is_whole=end > 0)
                if not end:
                    self._held = line
                    break
                at = end
        if self.is_complete:
            self.leftover = data[at:]
        return b"".join(taken)

    def _check(self, line: bytes, *, is_whole: bool) -> None:
        """Take in a line, or hold its beginning to what can be said of it already."""
        match self._part:
            case _Part.SIZE:
                if len(line) > self._limits.max_chunk_line_bytes:
                    raise self._fault(f"the line of a chunk is longer than {self._limits.max_chunk_line_bytes} bytes")
                if is_whole:
                    self._left = self._size(line)
                    self._part = _Part.CHUNK_END if self._left else _Part.TRAILER
            case _Part.CHUNK_END:
                if not _CRLF.startswith(line):
                    raise self._fault("a chunk is longer than its size, or no CRLF follows it")
                if is_whole:
                    self._part = _Part.SIZE
            case _Part.TRAILER:
                if self._trailer_bytes + len(line) > self._limits.max_trailer_bytes:
                    raise self._fault(f"the trailers of a body are longer than {self._limits.max_trailer_bytes} bytes")
                if is_whole:
                    self._trailer_bytes += len(line)
                    self.is_complete = line == _CRLF
                    if not self.is_complete and not _TRAILER_LINE.fullmatch(line):
                        raise self._fault(f'malformed trailer: "{safe(line)}"')

    def _size(self, line: bytes) -> int:
        parts = _CHUNK_LINE.fullmatch(line)
        if not parts:
            raise self._fault(f'malformed line of a chunk: "{safe(line)}"')
        size = int(parts[1], 16)
        if size > _MAX_CHUNK_BYTES:
            raise self._fault(f'a chunk of "{safe(parts[1])}" bytes cannot be counted')
        return size


def encode_chunk(data: bytes) -> bytes:
    """`data` as one chunk; of no data no chunk, since an empty one would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
