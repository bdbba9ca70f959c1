"""The Common Gateway Interface, for programs that speak no HTTP: a request as variables, and the head of an answer.

SCGI and FastCGI carry the same variables and the same answers.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from wstunnel.errors import BackendError, PeerError, safe
from wstunnel.limits import GatewayLimits
from wstunnel.proto.request import Headers, Request
from wstunnel.proto.response import ResponseHead, end_to_end

__all__ = ["ResponseHeadReader", "is_variable", "split_path", "variables"]

_FIELD_NAME = re.compile(r"[a-z0-9-]+")
"""Names from which a variable is made. With `_`, or with what others turn into `_`, two names would be one variable,
and a client could put its own field in the place of one that a proxy vouches for (X-Real-IP, X_Real-IP)."""

_NOT_FIELDS = frozenset(
    {
        "proxy",  # HTTP_PROXY is where programs find their own proxy: CVE-2016-5385 and its kin, https://httpoxy.org
        "content-type",  # CONTENT_TYPE
        "content-length",  # CONTENT_LENGTH
        "transfer-encoding",  # the body is passed on without it
    }
)
_UPGRADE_FIELDS = frozenset({"upgrade", "connection"})
_VARIABLES = frozenset(
    {
        "CONTENT_LENGTH",
        "CONTENT_TYPE",
        "DOCUMENT_ROOT",
        "GATEWAY_INTERFACE",
        "HTTPS",
        "PATH_INFO",
        "PATH_TRANSLATED",
        "QUERY_STRING",
        "REDIRECT_STATUS",
        "REMOTE_ADDR",
        "REMOTE_PORT",
        "REQUEST_METHOD",
        "REQUEST_SCHEME",
        "REQUEST_URI",
        "SCRIPT_FILENAME",
        "SCRIPT_NAME",
        "SERVER_ADDR",
        "SERVER_NAME",
        "SERVER_PORT",
        "SERVER_PROTOCOL",
        "SERVER_SOFTWARE",
        "SSL_CLIENT_S_DN",
        "SSL_CLIENT_VERIFY",
    }
)
_FIELD_VARIABLE = re.compile(r"HTTP_(?!PROXY\Z)[A-Z0-9_]+")
_AUTHORITY = re.compile(r"(?:\[([^\]]*)\]|([^:]*))(?::([0-9]*))?")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_PROTOCOLS = {"HTTP/2": "HTTP/2.0"}
"""As lighttpd, Apache and nginx write them. A handshake is one of HTTP/1.1, however it came (RFC 8441 §5)."""

_RESPONSE_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_RESPONSE_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_STATUS = re.compile(r"([1-5][0-9]{2})(?:[ \t].*)?")
_LENGTH = re.compile(r"[0-9]{1,18}")
_BODILESS = frozenset({HTTPStatus.SWITCHING_PROTOCOLS, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_AT_MOST_ONCE = frozenset({"status", "location", "content-length", "content-type"})
_OURS = frozenset({"status", "content-length"})  # told apart from the fields of a `ResponseHead`


def variables(
    request: Request,
    *,
    script_name: str,
    software: str,
    content_length: int | None = None,
    script_filename: str | None = None,
    document_root: str | None = None,
    path_translated: str | None = None,
    with_upgrade: bool = True,
) -> dict[str, str]:
    """What RFC 3875 §4.1 wants said about a request, with REQUEST_URI, REQUEST_SCHEME, HTTPS, REMOTE_PORT, SERVER_ADDR
    and, over TLS, SSL_CLIENT_VERIFY and SSL_CLIENT_S_DN, which lighttpd, Apache and websocketd add.

    in      script_name  the part of the URL path that leads to the program: a route's prefix, or the whole path.
                         SCRIPT_NAME goes on to the end of the segment in which it ends; PATH_INFO is the rest
            software     SERVER_SOFTWARE
            content_length   bytes of the body that the program will get; without, or with 0, there is no CONTENT_LENGTH
            script_filename  the file to run: SCRIPT_FILENAME, with REDIRECT_STATUS, without which php-cgi does not
            document_root, path_translated  DOCUMENT_ROOT, PATH_TRANSLATED; absent when not given
            with_upgrade     the program may become what Upgrade names: it sees HTTP_UPGRADE and HTTP_CONNECTION
    out     text that UTF-8 with `surrogateescape` turns into the bytes that the client sent
    raises  PeerError(400) on a control character, NUL included; a tab is none
    bound   twice the request's head, and the few values that are ours
    source  RFC 3875 §4.1; robustness goal 22

    No field of the request takes the place of another variable. Authorization becomes HTTP_AUTHORIZATION: nobody but
    the program could check it.
    """
    script, path_info = split_path(request.path, script_name)
    server_addr, server_port = _split_address(request.local)
    remote_addr, remote_port = _split_address(request.peer)
    host, host_port = _split_authority(request.host)
    is_upgrade = with_upgrade and request.wants_websocket
    found = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": software,
        "SERVER_PROTOCOL": "HTTP/1.1" if is_upgrade else _PROTOCOLS.get(request.version, request.version),
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
        found |= {"HTTPS": "on", "SSL_CLIENT_VERIFY": "SUCCESS" if request.client_subject else "NONE"}
    if request.client_subject:
        found["SSL_CLIENT_S_DN"] = request.client_subject
    if content_length:
        found["CONTENT_LENGTH"] = str(content_length)
    if script_filename is not None:
        found |= {"SCRIPT_FILENAME": script_filename, "REDIRECT_STATUS": "200"}
    if document_root is not None:
        found["DOCUMENT_ROOT"] = document_root
    if path_translated is not None:
        found["PATH_TRANSLATED"] = path_translated
    content_type = request.first("content-type")
    if content_type is not None:
        found["CONTENT_TYPE"] = _as_sent(content_type)
    dropped = _NOT_FIELDS if with_upgrade else _NOT_FIELDS | _UPGRADE_FIELDS
    for name, value in request.headers:
        if _FIELD_NAME.fullmatch(name) and name not in dropped:
            key = f"HTTP_{name.upper().replace('-', '_')}"
            before = f"{found[key]}{_joint(name)}" if key in found else ""
            found[key] = before + _as_sent(value)
    for key, value in found.items():
        if _CONTROL.search(value):
            raise PeerError(f'control character in {key}: "{safe(value)}"')
    return found


def is_variable(name: str) -> bool:
    """Is it a name that `variables` may say? Any other one could change what a program does: LD_PRELOAD, PERL5OPT."""
    return name in _VARIABLES or _FIELD_VARIABLE.fullmatch(name) is not None


class ResponseHeadReader:
    """Reads the head of a program's answer, in any pieces, and stops behind its last byte. One reader, one head.

    Lines end with LF or CRLF, and an empty one ends the head. What the fields mean:

    - `Status: 404 reason` is the status; without it, 302 if there is a Location, else 200;
    - `Location` goes to the client as it is, a path on this server too, where RFC 3875 §6.2.2 would have the server
      serve that path in place of the answer;
    - `Content-Length` is what the body will be held to; 101, 204 and 304 have none whatever they say;
    - `Status: 101` with Upgrade is an upgrade; Upgrade means nothing without 101, and neither does 101 without Upgrade;
    - fields of one connection (Connection, Transfer-Encoding ...) are dropped: the connection is ours.

    bound   `max_head_bytes` and `max_fields`; linear in the bytes, however they are cut
    source  RFC 3875 §6
    """

    __slots__ = ("_fields", "_held", "_limits", "_seen_bytes", "leftover")

    def __init__(self, limits: GatewayLimits) -> None:
        self._limits = limits
        self._fields: list[tuple[str, str]] = []
        self._held = bytearray()  # the line under way
        self._seen_bytes = 0
        self.leftover = b""
        """What followed the head in the piece that completed it: the body, or what the new protocol says."""

    def feed(self, data: bytes) -> ResponseHead | None:
        """The head once it is whole, else None: feed more.

        raises  BackendError(502) on what is no head of an answer. Nothing may be fed after it, or after the head.
        """
        room = self._limits.max_head_bytes - self._seen_bytes
        at = 0
        while end := data.find(b"\n", at, room) + 1:
            line = bytes(self._held) + data[at:end]
            self._held.clear()
            at = end
            if line in {b"\n", b"\r\n"}:
                self.leftover = data[end:]
                return _response_head(tuple(self._fields))
            self._fields.append(_field(line))
            if len(self._fields) > self._limits.max_fields:
                raise _no_answer(f"has more than {self._limits.max_fields} fields")
        self._held += data[at:room]
        self._seen_bytes += len(data)
        if self._seen_bytes >= self._limits.max_head_bytes:
            raise _no_answer(f"does not end within {self._limits.max_head_bytes} bytes")
        return None


def _field(line: bytes) -> tuple[str, str]:
    """Name, in lower case, and value of a field line."""
    text = line.decode("latin-1").removesuffix("\n").removesuffix("\r")
    name, colon, value = text.partition(":")
    if text.startswith("HTTP/"):
        raise _no_answer(f'begins with "{safe(text)}": a status is said with "Status:", not with an HTTP status line')
    if not (colon and _RESPONSE_NAME.fullmatch(name) and _RESPONSE_VALUE.fullmatch(value)):
        raise _no_answer(f'holds "{safe(text)}", which is no field')
    return name.lower(), value.strip(" \t")


def _response_head(fields: Headers) -> ResponseHead:
    told: dict[str, str] = {}
    kept: list[tuple[str, str]] = []
    for name, value in fields:
        if name not in _AT_MOST_ONCE or name not in told:
            kept.append((name, value))
        elif told[name] != value:
            raise _no_answer(f'says {name} twice, "{safe(told[name])}" and "{safe(value)}"')
        told[name] = value
    if not told:
        raise _no_answer("begins with an empty line")
    status = _status(told.get("status"), default=302 if "location" in told else 200)
    is_upgrade = status == HTTPStatus.SWITCHING_PROTOCOLS
    if is_upgrade and "upgrade" not in told:
        raise _no_answer("says 101 without Upgrade")
    return ResponseHead(
        status=status,
        headers=end_to_end([field for field in kept if field[0] not in _OURS], with_upgrade=is_upgrade),
        body_bytes=0 if status in _BODILESS else _length(told.get("content-length")),
        is_upgrade=is_upgrade,
    )


def _status(value: str | None, *, default: int) -> int:
    if value is None:
        return default
    parts = _STATUS.fullmatch(value)
    if not parts:
        raise _no_answer(f'says "Status: {safe(value)}" instead of a number from 100 to 599')
    status = int(parts[1])
    if status < HTTPStatus.OK and status != HTTPStatus.SWITCHING_PROTOCOLS:
        raise _no_answer(f"says {status}, after which another answer would have to come")
    return status


def _length(value: str | None) -> int | None:
    if value is None:
        return None
    if not _LENGTH.fullmatch(value):
        raise _no_answer(f'says "Content-Length: {safe(value)}"')
    return int(value)


def _no_answer(why: str) -> BackendError:
    return BackendError(f"the head of the program's answer {why}", status=HTTPStatus.BAD_GATEWAY)


def split_path(path: str, prefix: str) -> tuple[str, str]:
    """SCRIPT_NAME without a slash at its end, and PATH_INFO, which is empty or begins with one.

    in      prefix  `script_name` of `variables`
    raises  ValueError when `path` does not begin with it
    """
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
