"""The one head of an answer that every backend that speaks HTTP or CGI yields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wstunnel.proto.request import Headers, tokens

__all__ = ["ResponseHead", "end_to_end"]

_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Fields that speak of one connection (RFC 9110 §7.6.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """A whole head of an answer, as the client may see it.

    status       200 to 599, or 101
    headers      without those that speak of the backend's connection, of which a 101 keeps Upgrade, and without
                 Content-Length. Connection is the sender's to add
    body_bytes   length of the body; None: it goes on until the backend ends it. An answer to HEAD has no body all the
                 same
    is_upgrade   a 101: what follows is not HTTP any more
    """

    status: int
    headers: Headers
    body_bytes: int | None
    is_upgrade: bool = False


def end_to_end(headers: Iterable[tuple[str, str]], *, with_upgrade: bool = False) -> Headers:
    """`headers` without those that speak of one connection, by their name or because Connection names them.

    in      with_upgrade  Upgrade stays
    """
    every = tuple(headers)
    dropped = _HOP_BY_HOP.union(tokens(every, "connection")) - ({"upgrade"} if with_upgrade else set())
    return tuple([field for field in every if field[0] not in dropped])
