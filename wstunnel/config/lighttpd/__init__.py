"""lighttpd.conf as it stands -> Settings: `grammar` reads the text, `evaluate` its values, `convert` their meaning."""

from __future__ import annotations

__all__ = ["is_lighttpd_conf"]

_ENDING = ".conf"


def is_lighttpd_conf(path: str) -> bool:
    """Whether -f means a lighttpd.conf: by the end of its name, which no wstunnel.toml has."""
    return path.endswith(_ENDING)
