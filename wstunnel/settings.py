"""Every option, with its name in lighttpd's words, its unit and its default.

One table for all ways in: flags, wstunnel.toml and (later) lighttpd.conf all fill these classes,
and `--help`, `check` and the documentation are printed from them. A field's metadata holds

    name     the option's name in files and flags
    help     one line for `--help`
    flag     False where the option cannot be given on the command line
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from wstunnel.limits import Limits

__all__ = [
    "Address",
    "FrameType",
    "GatewayName",
    "LogFormat",
    "LogLevel",
    "Route",
    "Settings",
    "TcpAddress",
    "UnixAddress",
]

FrameType = Literal["text", "binary"]
GatewayName = Literal["tunnel"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def _option(default: Any, name: str, help_: str, *, flag: bool = True) -> Any:
    return field(default=default, metadata={"name": name, "help": help_, "flag": flag})


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A URL path, its policy, and how its backend is reached."""

    path: str | None = _option("/", "path", "URL path prefix that reaches the backend (default /)")
    suffix: str | None = _option(None, "suffix", "URL path suffix instead of a prefix", flag=False)
    gateway: GatewayName = _option("tunnel", "gateway", "how the backend is reached", flag=False)
    socket: str | None = _option(None, "socket", "UNIX socket of the backend; spawned ones get PATH-0, PATH-1, ...")
    host: str | None = _option(None, "host", "TCP host of the backend")
    port: int | None = _option(None, "port", "TCP port of the backend; spawned ones get PORT, PORT+1, ...")
    bin_path: tuple[str, ...] = _option((), "bin-path", "program to spawn and supervise, split as a shell does")
    max_procs: int = _option(1, "max-procs", "processes of bin-path to keep running (default 1)")
    frame_type: FrameType = _option("text", "frame-type", "frames sent to clients: text or binary (default text)")
    origins: tuple[str, ...] | None = _option(
        None,
        "origins",
        "origins that browsers may come from: https://a.example, a.example, *.a.example, *; default: same origin",
    )
    subprotocols: tuple[str, ...] = _option(
        ("binary",), "subprotocols", "subprotocols to accept, best first", flag=False
    )
    ping_interval_s: float = _option(20.0, "ping-interval", "seconds of silence before a PING, 0 = off (default 20)")
    ping_timeout_s: float = _option(20.0, "ping-timeout", "seconds to wait for the PONG (default 20)")
    max_read_idle_s: float = _option(
        0.0, "max-read-idle", "seconds without a byte from the client, PONGs included, 0 = off (default 0)"
    )
    max_write_idle_s: float = _option(
        360.0, "max-write-idle", "seconds in which a peer takes none of the bytes waiting for it (default 360)"
    )
    close_timeout_s: float = _option(
        5.0, "close-timeout", "seconds an ending tunnel waits for the other side (default 5)"
    )
    connect_timeout_s: float = _option(8.0, "connect-timeout", "seconds to connect to the backend (default 8)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole of one wstunnel. Relative paths are made absolute by the config readers."""

    listen: tuple[Address, ...] = _option(
        (TcpAddress("127.0.0.1", 8081),), "listen", "HOST:PORT, [HOST]:PORT or unix:PATH, repeatable"
    )
    document_root: str | None = _option(None, "document-root", "folder of static files for plain GET and HEAD")
    max_connections: int | None = _option(
        None, "max-connections", "connections at once (default: what the descriptor limit carries)"
    )
    log_level: LogLevel = _option("info", "log-level", "debug, info, warning or error (default info)")
    log_format: LogFormat = _option("text", "log-format", "text or json, one line each, to stderr (default text)")
    routes: tuple[Route, ...] = field(default=(), metadata={"name": "route", "help": "", "flag": False})
    limits: Limits = field(default_factory=Limits, metadata={"name": "", "help": "", "flag": False})
