"""Every option, with its name in lighttpd's words, its unit and its default.

One table for all ways in: flags, wstunnel.toml and (later) lighttpd.conf all fill these classes,
and `--help`, `check` and the documentation are printed from them. A field's metadata holds

    name      the option's name in files and flags
    help      one line for `--help`, with the default where it is not obvious
    metavar   what stands for the value in `--help`
    group     the heading it stands under in `--help`
    flag      False where the option can only be given in a file
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
    "OptionGroup",
    "Route",
    "Settings",
    "TcpAddress",
    "UnixAddress",
]

FrameType = Literal["text", "binary"]
GatewayName = Literal["tunnel"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
OptionGroup = Literal["listening", "backend", "policy", "timeouts", "files", "logging"]


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


def _option(default: Any, name: str, metavar: str, group: OptionGroup, help_: str, *, flag: bool = True) -> Any:
    metadata = {"name": name, "metavar": metavar, "group": group, "help": help_, "flag": flag}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A URL path, its policy, and how its backend is reached."""

    path: str | None = _option(
        "/", "path", "PREFIX", "backend", "URL path prefix that reaches the backend (default: /)"
    )
    suffix: str | None = _option(None, "suffix", "SUFFIX", "backend", "URL path suffix instead of a prefix", flag=False)
    gateway: GatewayName = _option("tunnel", "gateway", "KIND", "backend", "how the backend is reached", flag=False)
    socket: str | None = _option(
        None,
        "socket",
        "PATH",
        "backend",
        "UNIX socket that the backend listens on; with --bin-path its processes listen on PATH-0, PATH-1, ...",
    )
    host: str | None = _option(
        None, "host", "H", "backend", "TCP address that the backend listens on (default: 127.0.0.1)"
    )
    port: int | None = _option(
        None,
        "port",
        "N",
        "backend",
        "TCP port that the backend listens on; with --bin-path its processes listen on N, N+1, ...",
    )
    bin_path: tuple[str, ...] = _option(
        (),
        "bin-path",
        "CMD",
        "backend",
        "program to spawn and to keep running, with its arguments, split as a shell does",
    )
    max_procs: int = _option(1, "max-procs", "N", "backend", "processes of --bin-path (default: 1)")
    frame_type: FrameType = _option(
        "text", "frame-type", "TYPE", "policy", "frames that clients get: text or binary (default: text)"
    )
    origins: tuple[str, ...] | None = _option(
        None,
        "origins",
        "LIST",
        "policy",
        "origins of the pages that may connect, with commas between them: https://example.com, example.com, "
        "*.example.com or * (default: pages of the same origin only)",
    )
    subprotocols: tuple[str, ...] = _option(
        ("binary",), "subprotocols", "LIST", "policy", "subprotocols to accept, best first", flag=False
    )
    ping_interval_s: float = _option(
        20.0, "ping-interval", "S", "timeouts", "seconds of silence before a PING; 0: never (default: 20)"
    )
    ping_timeout_s: float = _option(20.0, "ping-timeout", "S", "timeouts", "seconds to wait for the PONG (default: 20)")
    max_read_idle_s: float = _option(
        0.0,
        "max-read-idle",
        "S",
        "timeouts",
        "seconds without a byte from the client, PONGs included, that end a tunnel; 0: never (default: 0)",
    )
    max_write_idle_s: float = _option(
        360.0,
        "max-write-idle",
        "S",
        "timeouts",
        "seconds in which a side takes none of the bytes that wait for it, that end a tunnel; 0: never (default: 360)",
    )
    close_timeout_s: float = _option(
        5.0, "close-timeout", "S", "timeouts", "seconds that an ending tunnel waits for the other side (default: 5)"
    )
    connect_timeout_s: float = _option(
        8.0, "connect-timeout", "S", "timeouts", "seconds to connect to the backend (default: 8)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole of one wstunnel. Relative paths are made absolute by the config readers."""

    listen: tuple[Address, ...] = _option(
        (TcpAddress("127.0.0.1", 8081),),
        "listen",
        "ADDR",
        "listening",
        "address to serve: HOST:PORT, [IPV6]:PORT or unix:PATH; may be repeated (default: 127.0.0.1:8081)",
    )
    max_connections: int | None = _option(
        None,
        "max-connections",
        "N",
        "listening",
        "connections at once (default: what the descriptor limit carries)",
    )
    document_root: str | None = _option(
        None, "document-root", "DIR", "files", "folder of static files for plain GET and HEAD"
    )
    log_level: LogLevel = _option(
        "info", "log-level", "LEVEL", "logging", "debug, info, warning or error (default: info)"
    )
    log_format: LogFormat = _option(
        "text", "log-format", "FORMAT", "logging", "text or json, one line a record, to stderr (default: text)"
    )
    routes: tuple[Route, ...] = field(default=(), metadata={"name": "route"})
    limits: Limits = field(default_factory=Limits, metadata={})
