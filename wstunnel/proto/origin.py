"""Which web pages may open a tunnel: the defence against cross-site WebSocket hijacking."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from wstunnel._heads import field_values
from wstunnel.errors import PeerError, safe
from wstunnel.proto.request import Request

__all__ = ["OriginPolicy"]

_LABEL = r"[a-z0-9_-]+"
_HOST = rf"(?:\[[0-9a-f:.]+\]|{_LABEL}(?:\.{_LABEL})*\.?)"
_AUTHORITY = re.compile(rf"({_HOST})(?::([0-9]{{0,5}}))?")
_ORIGIN = re.compile(rf"([a-z][a-z0-9+.-]*)://({_HOST})(?::([0-9]{{1,5}}))?")
_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_MAX_PORT = 65535
_DEVIATIONS = "ßς\u200c\u200d"
"""Characters that browsers (IDNA 2008) encode and the standard library's codec (IDNA 2003) replaces by others."""


class _Origin(NamedTuple):
    """Scheme and host in lower case; port with the scheme's default filled in, None where it has none."""

    scheme: str
    host: str
    port: int | None


class OriginPolicy:
    """Says yes or no to an Origin header. Parsed once, from a route's `origins`.

    in      origins  None: the same origin as the Host, which is the default. Else any of
                     `https://a.example` or `https://a.example:8443`: that scheme, host and port only;
                     `a.example`: that host by any scheme and on any port;
                     `*.a.example`: any host below a.example, but not a.example itself, by any scheme and port;
                     `*`: every page, sandboxed and local ones (`null`) included.
                     Letters beyond ASCII are compared in their punycode form, which is what browsers send; the four
                     on whose form the standards differ have to be written in punycode.
    raises  ValueError with a sentence for the operator on anything else

    A request without Origin comes from a program, not from a page, and is always allowed: such a client
    could send any Origin it likes.

    Same origin means the same host and the same port, where a port that is not written is the default of the
    *page's* scheme, on both sides. So a proxy that terminates TLS for us changes nothing: the page's
    `https://a.example` and our `Host: a.example` agree although we see plain http. When the connection to us
    itself is TLS, an http page is not of the same origin.

    bound   one answer is kept, the last yes: nearly all pages of a service have the same origin
    """

    __slots__ = ("_allows_all", "_exact", "_hosts", "_is_same_origin", "_passed", "_suffixes")

    def __init__(self, origins: tuple[str, ...] | None) -> None:
        self._is_same_origin = origins is None
        self._passed: tuple[str, str, str] | None = None  # origin, host and scheme
        self._allows_all = False
        self._exact: set[_Origin] = set()
        self._hosts: set[str] = set()
        suffixes: list[str] = []
        for entry in origins or ():
            if entry == "*":
                self._allows_all = True
            elif entry.startswith("*."):
                suffixes.append("." + _host_of(entry, entry[2:]))
            elif "://" in entry:
                self._exact.add(_origin_of(entry))
            else:
                self._hosts.add(_host_of(entry, entry))
        self._suffixes = tuple(suffixes)

    def check(self, request: Request) -> None:
        """Nothing, if the request may pass.

        raises  PeerError(403), also for more than one Origin
        """
        origins = field_values(request.headers, "origin")
        if not origins:
            return
        if len(origins) > 1:
            raise PeerError("more than one Origin", status=403)
        asked = (origins[0], request.host, request.scheme)
        if asked == self._passed:
            return
        if not self.allows(*asked):
            raise PeerError(f'origin "{safe(origins[0])}" is not allowed', status=403)
        self._passed = asked

    def allows(self, origin: str | None, host: str, scheme: str) -> bool:
        """May a page from `origin` pass? `host` is the request's authority, `scheme` that of the connection to us."""
        if origin is None or self._allows_all:
            return True
        page = _parse_origin(origin.lower())
        if page is None:
            return False
        if self._is_same_origin:
            return _is_same(page, host, scheme)
        return page in self._exact or page.host in self._hosts or page.host.endswith(self._suffixes)


def _is_same(page: _Origin, host: str, scheme: str) -> bool:
    parts = _AUTHORITY.fullmatch(host.lower())
    if not parts or page.scheme not in {"http", "https"} or (scheme == "https" and page.scheme != "https"):
        return False
    port = int(parts[2]) if parts[2] else _DEFAULT_PORTS[page.scheme]
    return (page.host, page.port) == (_canonical(parts[1]), port)


def _parse_origin(lowered: str) -> _Origin | None:
    parts = _ORIGIN.fullmatch(lowered)
    if not parts:
        return None
    scheme, host, port = parts.groups()
    canonical = _canonical(host)
    number = int(port) if port else _DEFAULT_PORTS.get(scheme)
    if canonical is None or (number is not None and number > _MAX_PORT):
        return None
    return _Origin(scheme, canonical, number)


def _canonical(host: str) -> str | None:
    """An address in its shortest form, any other host as it is; None: not an address after all."""
    if not host.startswith("["):
        return host
    try:
        return f"[{ipaddress.IPv6Address(host[1:-1]).compressed}]"
    except ValueError:
        return None


def _origin_of(entry: str) -> _Origin:
    scheme, _, rest = entry.partition("://")
    host, colon, port = rest.rpartition(":") if re.search(r":[0-9]*\Z", rest) else (rest, "", "")
    origin = _parse_origin(f"{scheme.lower()}://{_ascii(host)}{colon}{port}")
    if origin is None:
        raise ValueError(f'"{entry}" is not an origin: scheme://host or scheme://host:port, without path or user')
    return origin


def _host_of(entry: str, text: str) -> str:
    parts = _AUTHORITY.fullmatch(_ascii(text))
    host = _canonical(parts[1]) if parts else None
    if parts is None or host is None or parts[2] is not None or host == "null":
        raise ValueError(
            f'"{entry}" is not an origin: write https://host, https://host:port, a host without port, *.host or *'
        )
    return host


def _ascii(host: str) -> str:
    """A host in lower case and punycode; what cannot be converted stays, and is refused by the grammar."""
    if host.isascii():
        return host.lower()
    if any(character in _DEVIATIONS for character in host):
        return host
    try:
        return host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return host
