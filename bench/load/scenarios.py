"""What is measured: rows of load, and how much of it a quick or a whole run takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["FULL", "GREEDY", "PROXY_FLAGS", "QUICK", "SCENARIOS", "WIRES", "Memory", "Plan", "Row", "Wire"]

GREEDY = "100 x 64 B x 1 beside 1 greedy"
PROXY_FLAGS = "--gateway proxy --upgrade true"
_WORKERS = ("floor", "wstunnel", "wstunnel --workers 2")
_PIPES = ("floor", "wstunnel", f"wstunnel {PROXY_FLAGS}")
_PROXIES = (f"wstunnel {PROXY_FLAGS}", "nginx", "haproxy-http")
_SECURE = ("wstunnel", "lighttpd", "haproxy")
_BOTH = ("wstunnel", "lighttpd")
_OURS = ("wstunnel",)


@dataclass(frozen=True)
class Wire:
    """What carries tunnels between client and server."""

    what: str
    flags: tuple[str, ...]  # of the client
    front: str  # what the server has to be set up for: "", "tls" or "h2c"; each of them takes HTTP/1.1 as well


WIRES = {
    "h1": Wire("HTTP/1.1", (), ""),
    "tls": Wire("TLS", ("--tls",), "tls"),
    "h2c": Wire("HTTP/2", ("--h2",), "h2c"),
    "h2tls": Wire("HTTP/2 and TLS", ("--tls", "--h2"), "tls"),
}


@dataclass(frozen=True)
class Row:
    """One kind of load that runs for a time, on every peer in turn."""

    scenario: str
    mode: str  # of the client
    connections: int
    size: int
    in_flight: int = 1
    greedy: int = 0
    only: tuple[str, ...] = ()  # these peers and no others
    wire: str = "h1"
    tunnels: int = 1  # on each connection of HTTP/2; `connections` is the number of tunnels then
    stalled_by: str = ""  # one tunnel more, on the first connection, that the client or the backend lets stand still

    @property
    def front(self) -> str:
        return WIRES[self.wire].front

    @property
    def backend(self) -> str:
        return {"upload": "sink", "download": "pour"}.get(self.mode, "echo")

    @property
    def title(self) -> str:
        load = f"{self.connections:,} x {_bytes(self.size)}"
        if self.mode == "echo":
            load += f" x {self.in_flight}"
        if self.scenario in _WIRE_SCENARIOS:
            load += _over(self.wire, self.tunnels)
        if self.stalled_by:
            load += f" beside 1 that its {self.stalled_by} stalls"
        return load + (f" beside {self.greedy} greedy" if self.greedy else "")


@dataclass(frozen=True)
class Memory:
    """One kind of tunnels that are kept, while memory is looked at."""

    scenario: str
    title: str
    mode: str  # of the client
    backend: str
    steps: tuple[int, ...]  # tunnels that there are at each look, or always the same number
    looks_s: tuple[float, ...] = ()  # after the last step; none: a look at each step
    size: int = 64 * 1024
    only: tuple[str, ...] = ()
    wire: str = "h1"
    tunnels: int = 1


@dataclass(frozen=True)
class Plan:
    """How often, for how long, and what."""

    rounds: int
    seconds: float
    warm_up: float
    rows: tuple[tuple[Row, ...], ...]  # rows of one group are measured right after another, in the same round
    memory: tuple[Memory, ...]

    def only(self, scenarios: tuple[str, ...]) -> Plan:
        groups = tuple(group for group in self.rows if group[0].scenario in scenarios)
        return replace(self, rows=groups, memory=tuple(kept for kept in self.memory if kept.scenario in scenarios))


def _over(wire: str, tunnels: int) -> str:
    return f" over {WIRES[wire].what}" + (f", {tunnels} per connection" if tunnels > 1 else "")


def _bytes(n: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if n % unit == 0:
            return f"{n // unit} {name}"
    return f"{n} B"


def _echo(connections: int, size: int, in_flight: int = 1, scenario: str = "echo") -> tuple[Row]:
    return (Row(scenario, "echo", connections, size, in_flight),)


_KIB, _MIB = 1 << 10, 1 << 20

_WIRE_SCENARIOS = {"tls", "h2c", "h2tls", "handshake", "h2stall"}


def _tls(connections: int, size: int, in_flight: int = 1) -> tuple[Row]:
    return (Row("tls", "echo", connections, size, in_flight, only=_SECURE, wire="tls"),)


def _h2tls(connections: int, size: int, in_flight: int = 1, tunnels: int = 1) -> tuple[Row]:
    return (Row("h2tls", "echo", connections, size, in_flight, only=_BOTH, wire="h2tls", tunnels=tunnels),)


def _h2c(connections: int, size: int, in_flight: int = 1, tunnels: tuple[int, ...] = (4,)) -> tuple[Row, ...]:
    """Beside as many tunnels over HTTP/1.1 to the same server, which come first: not every server survives HTTP/2."""
    row = Row("h2c", "echo", connections, size, in_flight, only=_BOTH)
    return row, *(replace(row, wire="h2c", tunnels=each) for each in tunnels)


def _handshake(wire: str) -> tuple[Row]:
    return (Row("handshake", "churn", 16, 64, only=_BOTH, wire=wire),)


def _h2stall(size: int) -> tuple[Row, ...]:
    alone = Row("h2stall", "echo", 99, size, only=_OURS, wire="h2c", tunnels=99)
    return alone, replace(alone, stalled_by="client"), replace(alone, stalled_by="backend")


_UPLOAD = (Row("upload", "upload", 10, 64 * _KIB),)
_DOWNLOAD = (Row("download", "download", 10, 64 * _KIB),)
_CHURN = (Row("churn", "churn", 16, 64),)
_FAIR = (Row("fair", "echo", 100, 64), Row("fair", "echo", 100, 64, greedy=1))

FULL = Plan(
    rounds=5,
    seconds=0.4,
    warm_up=0.15,
    rows=(
        _echo(1, 64),
        _echo(100, 64),
        _echo(1000, 64),
        _echo(100, 64, 16),
        _echo(100, _KIB),
        _echo(10, 64 * _KIB, 4),
        _echo(10, _MIB),
        _echo(10, 64, scenario="sweep"),
        _echo(100, 16 * _KIB, scenario="sweep"),
        _echo(100, 64 * _KIB, scenario="sweep"),
        _echo(100, 256 * _KIB, scenario="sweep"),
        _UPLOAD,
        _DOWNLOAD,
        _CHURN,
        _FAIR,
        (Row("workers", "echo", 100, 64, only=_WORKERS),),
        (Row("workers", "echo", 1000, 64, only=_WORKERS),),
        (Row("pipe", "echo", 100, 64, only=_PIPES),),
        (Row("pipe", "echo", 100, _KIB, only=_PIPES),),
        (Row("pipe", "echo", 10, 64 * _KIB, 4, only=_PIPES),),
        (Row("get", "get", 10, _KIB, only=_PROXIES),),
        (Row("get", "get", 100, _KIB, only=_PROXIES),),
        _tls(100, 64),
        _tls(100, _KIB),
        _tls(10, 64 * _KIB, 4),
        _h2c(100, 64, tunnels=(1, 4)),
        _h2c(100, _KIB, tunnels=(1, 4)),
        _h2c(20, 16 * _KIB),
        _h2c(20, 64 * _KIB, 4),
        _h2tls(100, 64),
        _h2tls(100, 64, tunnels=4),
        _h2tls(100, _KIB, tunnels=4),
        _h2tls(20, 64 * _KIB, 4, tunnels=4),
        _handshake("tls"),
        _handshake("h2c"),
        _handshake("h2tls"),
        _h2stall(64),
        _h2stall(_KIB),
    ),
    memory=(
        Memory("idle", "idle tunnels", "hold", "echo", (1000, 3000, 6000, 9000)),
        Memory("tlsidle", "idle tunnels over TLS", "hold", "echo", (1000, 2000, 4000), only=_SECURE, wire="tls"),
        Memory(
            scenario="tlsidle",
            title="idle tunnels over HTTP/2 and TLS, 4 per connection",
            mode="hold",
            backend="echo",
            steps=(1000, 2000, 4000),
            only=_BOTH,
            wire="h2tls",
            tunnels=4,
        ),
        Memory("stall", "the client does not read", "deaf", "pour", (200,), (2.0, 5.0)),
        Memory("stall", "the backend does not read", "flood", "deaf", (200,), (2.0, 5.0)),
    ),
)

QUICK = Plan(
    rounds=3,
    seconds=0.3,
    warm_up=0.1,
    rows=(_echo(100, 64), _echo(1000, 64), _echo(10, 64 * _KIB, 4), _CHURN, _tls(100, 64), _h2c(100, 64)),
    memory=(),
)

SCENARIOS = {
    "echo": "messages that come back: CPU per message, messages per second, latency",
    "sweep": "further sizes and numbers of connections, for the plots",
    "upload": "streams from clients to the backend: CPU per MiB",
    "download": "streams from the backend to clients: CPU per MiB",
    "churn": "connect, handshake, one message, close: CPU per round",
    "fair": "latency of 100 small tunnels, alone and beside one that sends 1 MiB at a time",
    "workers": "two workers beside one, on the same processor",
    "pipe": "a proxied WebSocket beside a tunnel: CPU per message that comes back",
    "get": "a proxied GET with keep-alive, beside nginx and HAProxy: CPU per request",
    "tls": "echo over TLS: CPU per message",
    "h2c": "echo over HTTP/2 without TLS, beside HTTP/1.1: CPU per message",
    "h2tls": "echo over HTTP/2 with TLS: CPU per message",
    "handshake": "churn over TLS, HTTP/2, and both: CPU per round",
    "h2stall": "99 tunnels on one connection of HTTP/2, alone and beside one that stands still",
    "tlsidle": "memory by tunnels over TLS that say nothing",
    "idle": "memory by tunnels that say nothing",
    "stall": "memory of tunnels whose one side does not read while the other one pours",
}
