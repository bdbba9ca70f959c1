"""One line per tunnel, at its end."""

from __future__ import annotations

import logging

from wstunnel.errors import safe
from wstunnel.limits import LogLimits
from wstunnel.proto.close import describe
from wstunnel.proto.request import Request

__all__ = ["log_tunnel", "tunnels_are_logged", "wire_of"]

_log = logging.getLogger("wstunnel.access")


def tunnels_are_logged() -> bool:
    """Does anybody want the lines? To be asked first: what they say costs more to gather than a short tunnel."""
    return _log.isEnabledFor(logging.INFO)


def wire_of(request: Request) -> str:
    """How a client speaks to us: `http/1.1`, `http/1.1+tls`, `h2c` or `h2+tls`."""
    has_tls = request.scheme == "https"
    if request.version == "HTTP/2":
        return "h2+tls" if has_tls else "h2c"
    return "http/1.1+tls" if has_tls else "http/1.1"


def log_tunnel(
    *,
    peer: str,
    path: str,
    wire: str,
    client_subject: str,
    backend: str,
    bytes_in: int,
    bytes_out: int,
    messages_in: int,
    messages_out: int,
    duration_s: float,
    code: int,
    closed_by: str,
    limits: LogLimits,
) -> None:
    """Write the line: bytes are payload, `in` is from the client, `code` is RFC 6455's close code.

    in      wire            as `wire_of`
            client_subject  as in Request; where it is empty, the line has no such field
    """
    _log.info(
        "tunnel closed: %s",
        describe(code),
        extra={
            "fields": {
                "peer": peer,
                "path": safe(path, limits.path_chars),
                "wire": wire,
                **({"client_subject": _subject(client_subject, limits.subject_chars)} if client_subject else {}),
                "backend": backend,
                "bytes_in": bytes_in,
                "bytes_out": bytes_out,
                "messages_in": messages_in,
                "messages_out": messages_out,
                "duration_s": round(duration_s, 3),
                "code": code,
                "closed_by": closed_by,
            }
        },
    )


def _subject(text: str, limit_chars: int) -> str:
    """It has escapes of its own, and a log that escapes those again is not what anybody looks for."""
    if not (text.isascii() and text.isprintable()):
        return safe(text, limit_chars)
    return text if len(text) <= limit_chars else f"{text[: limit_chars - 3]}..."
