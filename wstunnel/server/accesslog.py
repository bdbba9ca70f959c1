"""One line per tunnel, at its end."""

from __future__ import annotations

import logging

from wstunnel.errors import safe
from wstunnel.limits import LogLimits
from wstunnel.proto.close import describe

__all__ = ["log_tunnel", "tunnels_are_logged"]

_log = logging.getLogger("wstunnel.access")


def tunnels_are_logged() -> bool:
    """Does anybody want the lines? To be asked first: what they say costs more to gather than a short tunnel."""
    return _log.isEnabledFor(logging.INFO)


def log_tunnel(
    *,
    peer: str,
    path: str,
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
    """Write the line: bytes are payload, `in` is from the client, `code` is RFC 6455's close code."""
    _log.info(
        "tunnel closed: %s",
        describe(code),
        extra={
            "fields": {
                "peer": peer,
                "path": safe(path, limits.path_chars),
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
