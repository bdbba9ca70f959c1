"""What is measured: rows of load, and how much of it a quick or a whole run takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["FULL", "GREEDY", "PROXY_FLAGS", "QUICK", "SCENARIOS", "Memory", "Plan", "Row"]

GREEDY = "100 x 64 B x 1 beside 1 greedy"
PROXY_FLAGS = "--gateway proxy --upgrade true"
_WORKERS = ("floor", "wstunnel", "wstunnel --workers 2")
_PIPES = ("floor", "wstunnel", f"wstunnel {PROXY_FLAGS}")
_PROXIES = (f"wstunnel {PROXY_FLAGS}", "nginx", "haproxy-http")


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

    @property
    def backend(self) -> str:
        return {"upload": "sink", "download": "pour"}.get(self.mode, "echo")

    @property
    def title(self) -> str:
        load = f"{self.connections:,} x {_bytes(self.size)}"
        if self.mode == "echo":
            load += f" x {self.in_flight}"
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


def _bytes(n: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if n % unit == 0:
            return f"{n // unit} {name}"
    return f"{n} B"


def _echo(connections: int, size: int, in_flight: int = 1, scenario: str = "echo") -> tuple[Row]:
    return (Row(scenario, "echo", connections, size, in_flight),)


_KIB, _MIB = 1 << 10, 1 << 20

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
    ),
    memory=(
        Memory("idle", "idle tunnels", "hold", "echo", (1000, 3000, 6000, 9000)),
        Memory("stall", "the client does not read", "deaf", "pour", (200,), (2.0, 5.0)),
        Memory("stall", "the backend does not read", "flood", "deaf", (200,), (2.0, 5.0)),
    ),
)

QUICK = Plan(
    rounds=3,
    seconds=0.3,
    warm_up=0.1,
    rows=(_echo(100, 64), _echo(1000, 64), _echo(10, 64 * _KIB, 4), _CHURN),
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
    "idle": "memory by tunnels that say nothing",
    "stall": "memory of tunnels whose one side does not read while the other one pours",
}
