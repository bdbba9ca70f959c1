"""server.bind, server.port and $SERVER["socket"] -> addresses."""

from __future__ import annotations

import re

from wstunnel.config.options import SERVER_OPTIONS, OptionError, shown
from wstunnel.settings import Address, UnixAddress

__all__ = ["address_of"]

_PORT = r"[0-9]+"


def address_of(text: str, port: int, *, is_ipv6: bool = False) -> Address:
    """`127.0.0.1:80`, `:80`, `[::]:80`, `*`, `/run/http.sock`: what is left out comes from the other options.

    in      port      where the text has none
            is_ipv6   every interface is [::], which takes IPv4 too
    raises  OptionError
    """
    if text.startswith(("/", "unix:/")):
        return UnixAddress(text.removeprefix("unix:"))
    parts = re.fullmatch(rf"(\[[^\]]*\]|[^:]*)(?::({_PORT}))?", text)
    host, said_port = parts.groups() if parts is not None else (f"[{text}]", None)  # IPv6 without its brackets
    if host in {"", "*", "[]"}:
        host = "[::]" if is_ipv6 or host == "[]" else "0.0.0.0"
    return _listed(f"{host}:{said_port or port}", text)


def _listed(text: str, written: str) -> Address:
    try:
        (address,) = SERVER_OPTIONS["listen"].kind.from_toml([text])
    except OptionError:
        raise OptionError(
            f"{shown(written)} is not an address: it takes host:port, :port, [IPv6]:port or a path"
        ) from None
    found: Address = address
    return found
