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

import signal
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from wstunnel.limits import H2Limits, Limits, SpawnLimits

__all__ = [
    "Address",
    "Balance",
    "ClientVerify",
    "Condition",
    "ConditionField",
    "ConditionOperator",
    "Entrance",
    "Forwarded",
    "FrameType",
    "Front",
    "Gateway",
    "Host",
    "Io",
    "LoadPolicy",
    "LogFormat",
    "LogLevel",
    "OptionGroup",
    "Route",
    "Settings",
    "TcpAddress",
    "UnixAddress",
]

FrameType = Literal["text", "binary"]
Gateway = Literal["tunnel", "proxy", "cgi", "scgi", "fastcgi", "static"]
Forwarded = Literal["for", "by", "host", "proto"]
ConditionField = Literal["url", "host", "socket"]
ConditionOperator = Literal["==", "!=", "=^", "=$", "=~", "!~"]
Balance = Literal["least-connection", "round-robin", "hash", "sticky"]
ClientVerify = Literal["required", "optional"]
Io = Literal["auto", "hub", "protocol"]
LoadPolicy = Literal["share", "queue", "refuse"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
OptionGroup = Literal["listening", "backend", "processes", "policy", "timeouts", "files", "logging"]


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


@dataclass(frozen=True, slots=True)
class Condition:
    """What else has to be true of a request: lighttpd's `$HTTP["url"]`, `$HTTP["host"]` and `$SERVER["socket"]`.

    field     `url`: the decoded path; `host`: the Host field in lower case, and without a port unless `value` has one;
              `socket`: `HOST:PORT` or `:PORT` of the listener
    operator  equal, not equal, begins with, ends with, found by a regular expression, not found by it
    """

    field: ConditionField
    operator: ConditionOperator
    value: str

    def __str__(self) -> str:
        return f"{self.field} {self.operator} {self.value}"


def _option(default: Any, name: str, metavar: str, group: OptionGroup, help_: str, *, flag: bool = True) -> Any:
    metadata = {"name": name, "metavar": metavar, "group": group, "help": help_, "flag": flag}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One backend: where it listens, and the program behind it if we spawn it. lighttpd's host options."""

    socket: str | None = _option(
        None,
        "socket",
        "PATH",
        "backend",
        "UNIX socket that the backend listens on; with --bin-path its processes listen on PATH-0, PATH-1, ... "
        "(default with --bin-path: in the runtime folder, named after the program)",
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
    max_procs: int = _option(1, "max-procs", "N", "processes", "processes of --bin-path (default: 1)")
    min_procs: int | None = _option(
        None,
        "min-procs",
        "N",
        "processes",
        "processes that run however idle they are, further ones as the load asks for them; 0: started by the first "
        "connection (default: max-procs)",
    )
    max_load_per_proc: int = _option(
        1,
        "max-load-per-proc",
        "N",
        "processes",
        "connections of a process beyond which another one is started (default: 1)",
    )
    max_load_policy: LoadPolicy = _option(
        "share",
        "max-load-policy",
        "KIND",
        "processes",
        "when max-procs processes have max-load-per-proc connections each: share them out all the same, queue until "
        "one is free, or refuse with 503 (default: share)",
    )
    idle_timeout_s: float = _option(
        60.0,
        "idle-timeout",
        "S",
        "processes",
        "seconds without a connection after which a process beyond min-procs is ended (default: 60)",
    )
    bin_environment: tuple[tuple[str, str], ...] = _option(
        (), "bin-environment", "NAME=VALUE,...", "processes", "variables to set for the program"
    )
    bin_copy_environment: tuple[str, ...] = _option(
        (), "bin-copy-environment", "NAME,...", "processes", "variables of our own environment that the program gets"
    )
    listen_backlog: int = _option(
        SpawnLimits().listen_backlog,
        "listen-backlog",
        "N",
        "processes",
        "connections that may wait for a process to accept them (default: 4096)",
    )
    kill_signal: signal.Signals = _option(
        signal.SIGTERM, "kill-signal", "SIGNAL", "processes", "signal that asks a process to end (default: SIGTERM)"
    )
    disable_time_s: float = _option(
        1.0,
        "disable-time",
        "S",
        "timeouts",
        "seconds in which a backend that could not be connected is not tried again (default: 1)",
    )
    connect_timeout_s: float = _option(
        8.0, "connect-timeout", "S", "timeouts", "seconds to connect to the backend (default: 8)"
    )
    read_timeout_s: float = _option(
        0.0,
        "read-timeout",
        "S",
        "timeouts",
        "seconds of silence from the backend that end a tunnel; 0: never (default: 0)",
    )
    write_timeout_s: float = _option(
        0.0,
        "write-timeout",
        "S",
        "timeouts",
        "seconds in which the backend takes none of the bytes that wait for it, that end a tunnel; 0: never "
        "(default: 0)",
    )
    tcp_fin_propagate: bool = _option(
        True,
        "tcp-fin-propagate",
        "BOOL",
        "policy",
        "end the backend's input when a client ends its side without a CLOSE (default: true)",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Route(Host):
    """A URL path, its policy, and how its backend is reached: by the host that it is itself, or by any of `hosts`."""

    path: str | None = _option(
        "/", "path", "PREFIX", "backend", "URL path prefix that reaches the backend (default: /)"
    )
    suffix: str | None = _option(None, "suffix", "SUFFIX", "backend", "URL path suffix instead of a prefix", flag=False)
    when: tuple[Condition, ...] = _option(
        (),
        "when",
        "LIST",
        "backend",
        "what else has to be true of a request: url, host or socket, an operator (== != =^ =$ =~ !~) and a value",
        flag=False,
    )
    gateway: Gateway = _option(
        "tunnel",
        "gateway",
        "KIND",
        "backend",
        "what the backend speaks: tunnel (plain bytes), proxy (HTTP), cgi, scgi or fastcgi; or static, for files "
        "(default: tunnel)",
    )
    upgrade: bool = _option(
        False,
        "upgrade",
        "BOOL",
        "policy",
        "pass WebSocket handshakes through to a backend that speaks HTTP or a kind of CGI (default: false)",
    )
    stdio: tuple[str, ...] = _option(
        (),
        "stdio",
        "CMD",
        "backend",
        "program to run once per tunnel, with the tunnel as its standard input and output",
    )
    max_forks: int = _option(
        SpawnLimits().max_forks, "max-forks", "N", "processes", "processes of --stdio at once (default: 1000)"
    )
    hosts: tuple[Host, ...] = field(default=(), metadata={"name": "hosts"})
    """Several backends; the route's own host options are not used then."""
    balance: Balance = _option(
        "least-connection",
        "balance",
        "KIND",
        "backend",
        "which of several hosts: least-connection, round-robin, hash (of Host and path) or sticky (by client address)",
        flag=False,
    )
    docroot: str | None = _option(
        None, "docroot", "DIR", "files", "folder of the scripts or files of this route", flag=False
    )
    alias: str | None = _option(
        None,
        "alias",
        "DIR",
        "files",
        "folder that stands in the place of the path, as in lighttpd's alias.url",
        flag=False,
    )
    check_local: bool = _option(
        False,
        "check-local",
        "BOOL",
        "files",
        "pass a request on to scgi or fastcgi only if there is a file of its path",
        flag=False,
    )
    cgi_assign: tuple[tuple[str, str], ...] = _option(
        (),
        "cgi-assign",
        "TABLE",
        "files",
        'suffixes of scripts, and the program that runs them; "" for every suffix, "" for scripts that run alone',
        flag=False,
    )
    index_file_names: tuple[str, ...] = _option(
        ("index.html",),
        "index-file-names",
        "LIST",
        "files",
        "files that stand for their folder, best first",
        flag=False,
    )
    mimetype_assign: tuple[tuple[str, str], ...] = _option(
        (), "mimetype-assign", "TABLE", "files", "types by suffix, before those that are known anyway", flag=False
    )
    forwarded: tuple[Forwarded, ...] = _option(
        (),
        "forwarded",
        "LIST",
        "policy",
        "what a proxy says in a Forwarded field (RFC 7239): for, by, host, proto",
        flag=False,
    )
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

    @property
    def kind(self) -> Gateway | Literal["stdio"]:
        """The gateway that the route has."""
        return "stdio" if self.stdio else self.gateway

    @property
    def backends(self) -> tuple[Host, ...]:
        """The hosts to choose from; none where a program is started for each request, or files are served."""
        if self.kind in {"stdio", "cgi", "static"}:
            return ()
        return self.hosts or (self,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """How clients reach an address: in the clear or by TLS, and by which HTTP."""

    tls_cert: tuple[str, ...] = _option(
        (),
        "tls-cert",
        "FILE",
        "listening",
        "serve https and wss with this certificate and its chain (PEM); may be repeated, for several names",
    )
    tls_key: tuple[str, ...] = _option(
        (), "tls-key", "FILE", "listening", "private key of the certificate (default: in the file of the certificate)"
    )
    tls_client_ca: str | None = _option(
        None, "tls-client-ca", "FILE", "listening", "certificates that sign those by which clients are known (PEM)"
    )
    tls_client_verify: ClientVerify = _option(
        "required",
        "tls-client-verify",
        "KIND",
        "listening",
        "whether a client has to have a certificate of tls-client-ca: required or optional (default: required)",
    )
    h2c: bool = _option(
        False,
        "h2c",
        "BOOL",
        "listening",
        "take HTTP/2 in the clear too, from those who begin with it, as proxies in front do (default: false)",
    )
    max_streams: int = _option(
        H2Limits().max_streams,
        "max-streams",
        "N",
        "listening",
        "streams at once of an HTTP/2 connection (default: 128)",
    )

    @property
    def front(self) -> Front:
        """This alone, of whatever else has it."""
        return Front(**{each.name: getattr(self, each.name) for each in fields(Front)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrance(Front):
    """A [[listener]]: further addresses, with a front of their own."""

    listen: tuple[Address, ...] = _option(
        (), "listen", "ADDR", "listening", "address to serve in this way, or a list of them", flag=False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Front):
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
        "connections at once, of each worker (default: what the descriptor limit carries)",
    )
    workers: int | Literal["auto"] = _option(
        1, "workers", "N", "listening", "processes that carry the traffic, or auto: one per processor (default: 1)"
    )
    io: Io = _option(
        "auto",
        "io",
        "KIND",
        "listening",
        "how sockets without TLS are read, for measurements and tests: by a hub of our own, or protocol: by "
        "the event loop; auto is hub (default: auto)",
    )
    user: str | None = _option(
        None, "user", "NAME", "listening", "user to become once the listeners are bound (started as root)"
    )
    group: str | None = _option(None, "group", "NAME", "listening", "group to become (default: the user's own)")
    control: str | None = _option(
        None,
        "control",
        "PATH",
        "listening",
        "control socket for status, reload, drain and stop (default: in the runtime folder, named after the first "
        "listener)",
    )
    drain_timeout_s: float = _option(
        10.0, "drain-timeout", "S", "timeouts", "seconds that a stop gives the tunnels to end (default: 10)"
    )
    reload_timeout_s: float = _option(
        0.0,
        "reload-timeout",
        "S",
        "timeouts",
        "seconds after a reload that tunnels of the old configuration may last; 0: to their own end (default: 0)",
    )
    kill_timeout_s: float = _option(
        5.0, "kill-timeout", "S", "timeouts", "seconds from a program's kill-signal to its SIGKILL (default: 5)"
    )
    document_root: str | None = _option(
        None, "document-root", "DIR", "files", "folder of static files, for requests that no route takes"
    )
    allow_unsafe_places: bool = _option(
        False,
        "allow-unsafe-places",
        "BOOL",
        "files",
        "run programs and bind sockets where other users may put theirs in place (default: false)",
    )
    log_level: LogLevel = _option(
        "info", "log-level", "LEVEL", "logging", "debug, info, warning or error (default: info)"
    )
    log_format: LogFormat = _option(
        "text", "log-format", "FORMAT", "logging", "text or json, one line a record (default: text)"
    )
    log_file: str | None = _option(
        None, "log-file", "PATH", "logging", "file for the log, opened again at SIGUSR1 (default: stderr)"
    )
    listeners: tuple[Entrance, ...] = field(default=(), metadata={"name": "listener"})
    """Beside `listen`, which may be empty where there are such."""
    routes: tuple[Route, ...] = field(default=(), metadata={"name": "route"})
    limits: Limits = field(default_factory=Limits, metadata={})

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All that is served."""
        return (*self.listen, *(address for each in self.listeners for address in each.listen))

    @property
    def fronts(self) -> tuple[Front, ...]:
        """How each of `addresses` is served."""
        own = self.front
        return (*(own for _ in self.listen), *(each.front for each in self.listeners for _ in each.listen))
