"""The typed face of the head scanner; see _heads.pyx."""

from typing_extensions import Buffer

from wstunnel.limits import HeadLimits
from wstunnel.proto.request import Headers, Request

__all__ = ["field_values", "plain_key", "read_plain_head"]

def field_values(headers: Headers, name: str) -> list[str]:
    """Every value of a field, in order, as `Request.all` says: for those who ask on every handshake."""

def plain_key(headers: Headers) -> str | None:
    """The Sec-WebSocket-Key of a handshake as nearly every client makes it: one version, 13, one key of 16 bytes, no
    subprotocol. None: look at it more closely."""

def read_plain_head(
    data: Buffer, nbytes: int, limits: HeadLimits, peer: str, local: str, scheme: str, subject: str
) -> tuple[Request, bytes] | None:
    """The request at the front of the first `nbytes` of `data`, and what follows its head; None: ask a HeadReader."""
