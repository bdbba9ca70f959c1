"""Which options mean something beside which others: what does not is neither taken nor shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from wstunnel.settings import Host

__all__ = ["HOST_FIELDS", "UNCONNECTED", "unfit"]

UNCONNECTED = frozenset({"stdio", "cgi", "static"})
"""Gateways that connect to no backend."""

HOST_FIELDS = frozenset(each.name for each in dataclasses.fields(Host))

_OF_PROGRAMS = ("bin_environment", "bin_copy_environment", "kill_signal")
_OF_POOLS = ("max_procs", "min_procs", "idle_timeout_s", "listen_backlog")
_OF_CONNECTING = ("socket", "host", "port", "bin_path", *_OF_POOLS, "max_load_per_proc", "max_load_policy")

_NO_PROGRAM = "needs a bin-path: it is about programs that are spawned here"
_STDIO = "cannot stand beside stdio, which starts a program for each tunnel and connects to none"
_UNCONNECTED = "cannot stand beside a gateway of {}, which connects to no backend"
_NO_LIMIT = "needs a bin-path, or a max-load-policy of queue or refuse"

_FRAMED = ("tunnel", "stdio")
_SPOKEN = ("proxy", "cgi", "scgi", "fastcgi")
_BACKENDS = (*_FRAMED, *_SPOKEN)
_KINDS_OF: dict[str, tuple[str, ...]] = {
    "frame_type": _FRAMED,
    "subprotocols": _FRAMED,
    "ping_interval_s": _FRAMED,
    "ping_timeout_s": _FRAMED,
    "upgrade": _SPOKEN,
    "forwarded": ("proxy",),
    "max_forks": ("stdio", "cgi"),
    "cgi_assign": ("cgi",),
    "docroot": ("cgi", "scgi", "fastcgi", "static"),
    "alias": ("cgi", "static"),
    "check_local": ("scgi", "fastcgi"),
    "index_file_names": ("static",),
    "mimetype_assign": ("static",),
    "origins": _BACKENDS,
    "read_timeout_s": _BACKENDS,
    "write_timeout_s": _BACKENDS,
    "connect_timeout_s": _BACKENDS,
    "tcp_fin_propagate": _BACKENDS,
    "max_read_idle_s": _BACKENDS,
    "max_write_idle_s": _BACKENDS,
    "close_timeout_s": _BACKENDS,
}
"""Fields that mean something to some gateways only."""


def unfit(has: Callable[[str], bool], *, kind: str, is_shared: bool) -> dict[str, str]:
    """Fields that mean nothing in this route or host, with the reason of each.

    in      has         whether a field is set
            kind        as `Route.kind`
            is_shared   max-load-policy is share
    """
    fields = {field: _needs(kinds) for field, kinds in _KINDS_OF.items() if kind not in kinds}
    if kind in UNCONNECTED:
        why = _STDIO if kind == "stdio" else _UNCONNECTED.format(kind)
        fields |= dict.fromkeys((*_OF_CONNECTING, "disable_time_s", "balance"), why)
        if kind == "stdio":
            fields["gateway"] = why
        elif kind == "static":
            fields |= dict.fromkeys(_OF_PROGRAMS, why)
        return fields
    if not has("bin_path"):
        fields |= dict.fromkeys((*_OF_POOLS, *_OF_PROGRAMS), _NO_PROGRAM)
        if is_shared:
            fields["max_load_per_proc"] = _NO_LIMIT
    return fields


def _needs(kinds: tuple[str, ...]) -> str:
    """What a field wants beside it that only some gateways take."""
    stdio = ["a stdio"] if "stdio" in kinds else []
    gateways = [kind for kind in kinds if kind != "stdio"]
    return f"needs {' or '.join([*stdio, 'a gateway of ' + ' or '.join(gateways)])}"
