"""A client's request as a proxy passes it on: its head in new bytes, with what only concerned us left out."""

from __future__ import annotations

import re
from collections.abc import Collection

from wstunnel.proto.request import Request, tokens

__all__ = ["encode_request"]

_ABSOLUTE = re.compile(r"[A-Za-z]+://[^/?]*(.*)")
_LEFT_OUT = frozenset(
    {
        # of the client's connection (RFC 9110 §7.6.1); Proxy-* is asked for on the spot
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        # a program behind a CGI server would get it as HTTP_PROXY (httpoxy, CVE-2016-5385)
        "proxy",
        # answered by us
        "expect",
        # told anew
        "host",
        "content-length",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
    }
)
_BODILESS_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_PAIR = rf'{_TOKEN}=(?:{_TOKEN}|"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+")'
_FORWARDED = re.compile(rf"{_PAIR}(?:[ \t]*+[;,][ \t]*+{_PAIR})*+")
_UNKNOWN = "unknown"


def encode_request(
    request: Request, *, forwarded: Collection[str] = (), keeps_alive: bool, with_upgrade: bool = False
) -> bytes:
    """The head that the backend gets: the target as received in origin-form, Host and all fields that are for it.

    in      forwarded     what a Forwarded field says (RFC 7239); where nothing, the client's own is left out too, since
                          the backend could take it for ours
            keeps_alive   else the backend is asked to end the connection behind its answer
            with_upgrade  the request is a WebSocket handshake that is to be one for the backend too
    bound   what we add is as long as Host and an address

    The client's address is added to X-Forwarded-For, which says as much as the client wants in front of that;
    X-Forwarded-Host and -Proto are ours alone. Names with `_` that a CGI server could not tell from one of those that
    are left out or told anew are left out too. The body comes with the length that was announced, or in chunks.
    """
    headers = request.headers
    named = tokens(headers, "connection")
    left_out = _LEFT_OUT.union(named) if named else _LEFT_OUT
    lines = [f"{request.method} {_origin_form(request.target)} HTTP/1.1\r\nHost: {request.host}\r\n"]
    lines += [
        f"{name}: {value}\r\n"
        for name, value in headers
        if name not in left_out
        and not name.startswith("proxy-")
        and not ("_" in name and name.replace("_", "-") in _LEFT_OUT)
    ]
    client = _address(request.peer)
    before = "".join([f"{value}, " for value in request.all("x-forwarded-for") if value])
    lines.append(
        f"X-Forwarded-For: {before}{client}\r\n"
        f"X-Forwarded-Host: {request.host}\r\n"
        f"X-Forwarded-Proto: {request.scheme}\r\n"
    )
    if forwarded:
        lines.append(f"Forwarded: {_forwarded(request, forwarded, client)}\r\n")
    options = []
    if "trailers" in tokens(headers, "te"):
        lines.append("TE: trailers\r\n")
        options.append("TE")
    if with_upgrade:
        lines.append("Upgrade: websocket\r\n")
        options.append("Upgrade")
    elif not keeps_alive:
        options.append("close")
    if options:
        lines.append(f"Connection: {', '.join(options)}\r\n")
    if request.body_bytes is None:
        lines.append("Transfer-Encoding: chunked\r\n")
    elif request.body_bytes or request.method not in _BODILESS_METHODS:
        lines.append(f"Content-Length: {request.body_bytes}\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("latin-1")


def _origin_form(target: str) -> str:
    if target.startswith("/"):
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    rest = absolute[1] if absolute else ""
    return rest if rest.startswith("/") else f"/{rest}"


def _address(name: str) -> str:
    """`127.0.0.1` or `::1` of a peer's name; `unknown` for a UNIX socket's."""
    host = name.rpartition(":")[0].strip("[]")
    return _UNKNOWN if host in {"", "unix"} else host


def _forwarded(request: Request, parts: Collection[str], client: str) -> str:
    """What the client has said of those before it, where it is well-formed, and our own element."""
    nodes = {
        "for": f'"[{client}]"' if ":" in client else client,
        "by": _UNKNOWN if _address(request.local) == _UNKNOWN else f'"{request.local}"',
        "host": f'"{request.host}"',
        "proto": request.scheme,
    }
    own = ";".join([f"{part}={nodes[part]}" for part in parts])
    before = [value for value in request.all("forwarded") if _FORWARDED.fullmatch(value)]
    return ", ".join([*before, own])
