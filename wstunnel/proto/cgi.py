"""A request as the variables of the Common Gateway Interface, for programs that speak no HTTP."""

from __future__ import annotations

import re

from wstunnel.errors import PeerError, safe
from wstunnel.proto.request import Request

__all__ = ["variables"]

_FIELD_NAME = re.compile(r"[a-z0-9-]+")
"""Names from which a variable is made. With `_`, or with what others turn into `_`, two names would be one variable,
and a client could put its own field in the place of one that a proxy vouches for (X-Real-IP, X_Real-IP)."""

_NOT_FIELDS = frozenset(
    {
        "proxy",  # HTTP_PROXY is where programs find their own proxy: CVE-2016-5385 and its kin, https://httpoxy.org
        "content-type",  # CONTENT_TYPE
        "content-length",  # CONTENT_LENGTH, which whoever passes a body on sets
    }
)
_AUTHORITY = re.compile(r"(?:\[([^\]]*)\]|([^:]*))(?::([0-9]*))?")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def variables(request: Request, *, script_name: str, software: str) -> dict[str, str]:
    """What RFC 3875 §4.1 wants said about a request, with REQUEST_URI, REQUEST_SCHEME, HTTPS, REMOTE_PORT and
    SERVER_ADDR, which lighttpd, Apache and websocketd add.

    in      script_name  the part of the URL path that leads to the program: a route's prefix, or the whole path.
                         SCRIPT_NAME goes on to the end of the segment in which it ends; PATH_INFO is the rest
            software     SERVER_SOFTWARE
    out     text that UTF-8 with `surrogateescape` turns into the bytes that the client sent. No CONTENT_LENGTH: there
            is no body
    raises  PeerError(400) on a control character, NUL included; a tab is none
    bound   twice the request's head, and the few values that are ours
    source  RFC 3875 §4.1; robustness goal 22

    No field of the request takes the place of another variable. Authorization becomes HTTP_AUTHORIZATION: nobody but
    the program could check it.
    """
    script, path_info = _split_path(request.path, script_name)
    server_addr, server_port = _split_address(request.local)
    remote_addr, remote_port = _split_address(request.peer)
    host, host_port = _split_authority(request.host)
    found = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": software,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": f"[{host}]" if ":" in host else host,
        "SERVER_ADDR": server_addr,
        "SERVER_PORT": server_port or host_port or _DEFAULT_PORTS.get(request.scheme, ""),
        "REMOTE_ADDR": remote_addr,
        "REMOTE_PORT": remote_port,
        "REQUEST_METHOD": request.method,
        "REQUEST_SCHEME": request.scheme,
        "REQUEST_URI": _request_uri(request.target),
        "SCRIPT_NAME": script,
        "PATH_INFO": path_info,
        "QUERY_STRING": request.query,
    }
    if request.scheme == "https":
        found["HTTPS"] = "on"
    content_type = request.first("content-type")
    if content_type is not None:
        found["CONTENT_TYPE"] = _as_sent(content_type)
    for name, value in request.headers:
        if _FIELD_NAME.fullmatch(name) and name not in _NOT_FIELDS:
            key = f"HTTP_{name.upper().replace('-', '_')}"
            before = f"{found[key]}{_joint(name)}" if key in found else ""
            found[key] = before + _as_sent(value)
    for key, value in found.items():
        if _CONTROL.search(value):
            raise PeerError(f'control character in {key}: "{safe(value)}"')
    return found


def _split_path(path: str, prefix: str) -> tuple[str, str]:
    """SCRIPT_NAME without a slash at its end, and PATH_INFO, which is empty or begins with one."""
    if not path.startswith(prefix):
        raise ValueError(f"{prefix!r} does not lead to {path!r}")
    end = path.find("/", len(prefix.rstrip("/")))
    return (path, "") if end < 0 else (path[:end], path[end:])


def _split_authority(authority: str) -> tuple[str, str]:
    """Host, without brackets, and port, which may be empty, of `host:port` or `[host]:port`."""
    parts = _AUTHORITY.fullmatch(authority)
    return (parts[1] or parts[2], parts[3] or "") if parts else (authority, "")


def _split_address(address: str) -> tuple[str, str]:
    """Host and port of a TCP address; both are empty for any other."""
    host, port = _split_authority(address)
    return (host, port) if port else ("", "")


def _request_uri(target: str) -> str:
    """Path and query of a target as they were sent, without the authority of an absolute one."""
    if target.startswith("/"):
        return target
    rest = target.partition("://")[2]
    at = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
    return rest[at:] if rest.startswith("/", at) else f"/{rest[at:]}"


def _joint(name: str) -> str:
    """What stands between the values of a repeated field (RFC 9110 §5.3; RFC 9113 §8.2.3)."""
    return "; " if name == "cookie" else ", "


def _as_sent(value: str) -> str:
    """A field's value, read as latin-1, as text that is encoded to the same bytes again."""
    return value.encode("latin-1").decode("utf-8", "surrogateescape")
