"""The one request that every wire yields."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Headers", "Request", "tokens"]

Headers = tuple[tuple[str, str], ...]
"""Field lines in wire order: lower-case name, value with outer blanks removed, both latin-1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A whole request head.

    target   as received, latin-1
    path     absolute, percent-decoded, dot segments removed; what routes are matched against
    query    after the first `?`, as received, without it
    host     the authority: the Host field, or that of an absolute-form target
    peer     where it comes from: `127.0.0.1:4711`, `[::1]:4711` or `unix:`
    local    where it came to, written likewise; empty where nobody knows
    body_bytes  how long its body is: 0, there is none; None: nobody knows yet
    version  `HTTP/1.1` or `HTTP/2`; what gateways see is the same: an extended CONNECT (RFC 8441) has become a GET with
             the fields of a handshake
    client_subject  of the certificate by which the client is known, as RFC 4514 writes it; empty without one
    """

    method: str
    target: str
    path: str
    query: str
    host: str
    headers: Headers
    peer: str
    local: str = ""
    scheme: str = "http"
    wants_websocket: bool = False
    body_bytes: int | None = 0
    version: str = "HTTP/1.1"
    client_subject: str = ""

    def all(self, name: str) -> list[str]:
        """Every value of a field, in order; `name` in lower case."""
        return [value for key, value in self.headers if key == name]

    def first(self, name: str) -> str | None:
        """The first value of a field, or None; `name` in lower case."""
        return next((value for key, value in self.headers if key == name), None)

    def tokens(self, name: str) -> list[str]:
        """As the function `tokens`."""
        return tokens(self.headers, name)


def tokens(headers: Headers, name: str) -> list[str]:
    """The members of a comma-separated field over all its lines, in lower case (RFC 9110 §5.6.1)."""
    members = [member.strip(" \t") for key, value in headers if key == name for member in value.lower().split(",")]
    return [member for member in members if member]
