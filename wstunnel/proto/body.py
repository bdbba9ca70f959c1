"""The body of a client's request, by length or by chunks: bytes in, payload out."""

from __future__ import annotations

from typing import Protocol

from wstunnel.limits import GatewayLimits
from wstunnel.proto.chunked import ChunkedReader

__all__ = ["BodyReader", "body_reader"]


class BodyReader(Protocol):
    """Takes the payload out of a body, in any pieces, and stops behind its last byte."""

    is_complete: bool
    leftover: bytes
    """What followed the body in the piece that completed it: the next request."""

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`, which may be none. raises PeerError(400)"""


class _SizedReader:
    __slots__ = ("_left_bytes", "is_complete", "leftover")

    def __init__(self, length_bytes: int) -> None:
        self._left_bytes = length_bytes
        self.is_complete = False
        self.leftover = b""

    def feed(self, data: bytes) -> bytes:
        payload = data[: self._left_bytes]
        self._left_bytes -= len(payload)
        if not self._left_bytes:
            self.is_complete, self.leftover = True, data[len(payload) :]
        return payload


def body_reader(body_bytes: int | None, limits: GatewayLimits) -> BodyReader | None:
    """The reader for a request whose `body_bytes` these are; None: it has no body."""
    if body_bytes is None:
        return ChunkedReader(limits)
    return _SizedReader(body_bytes) if body_bytes else None
