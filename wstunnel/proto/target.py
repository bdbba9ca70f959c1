"""What a request asks for, of whichever HTTP: an authority and a path."""

from __future__ import annotations

import re
from urllib.parse import unquote

from wstunnel.errors import PeerError, safe

__all__ = ["check_authority", "decode_path"]

_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%-]+)(?::[0-9]{0,5})?")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def check_authority(authority: str) -> None:
    """raises PeerError(400) on what is no host with an optional port"""
    if not _AUTHORITY.fullmatch(authority):
        raise PeerError(f'"{safe(authority)}" is not a host with an optional port')


def decode_path(raw: str) -> str:
    """Percent-decoded (bytes that are not UTF-8 become lone surrogates, as in file names), then without dot segments.

    Decoding comes first: `%2e%2e` climbs and `%2F` separates, so no later reader sees another path than we do.
    Runs of slashes count as one.

    raises  PeerError(400) on a malformed escape or NUL
    """
    if _BAD_ESCAPE.search(raw):
        raise PeerError(f'malformed percent-escape in "{safe(raw)}"')
    decoded = unquote(raw, errors="surrogateescape")
    if "\0" in decoded:
        raise PeerError(f'NUL in "{safe(raw)}"')
    kept: list[str] = []
    segments = decoded.split("/")
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment not in {"", "."}:
            kept.append(segment)
    is_folder = segments[-1] in {"", ".", ".."}
    return "/" + "/".join(kept) + ("/" if kept and is_folder else "")
