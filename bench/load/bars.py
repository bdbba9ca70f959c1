"""What wstunnel must reach, held against the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.load.scenarios import PROXY_FLAGS
from bench.load.table import Result, Run, cost_of, rate_of, ratio, slope_bytes

__all__ = ["Bar", "as_json", "bars", "markdown"]

_KIB = 1024
_LARGEST_NEAR_FLOOR = 64 * _KIB
_SLOW = ("websockify", "websocketd", "websockets")


@dataclass(frozen=True)
class Bar:
    """One promise: `found` has to be at most (or at least) `bar`, and better still `beyond`."""

    what: str
    found: float
    bar: float
    beyond: float | None = None
    is_least: bool = False  # the bar is what it has to be at least
    unit: str = "x"

    @property
    def is_reached(self) -> bool:
        return self._reaches(self.bar)

    @property
    def verdict(self) -> str:
        if self.beyond is not None and self._reaches(self.beyond):
            return "beyond"
        return "reached" if self.is_reached else "NOT REACHED"

    def _reaches(self, bar: float) -> bool:
        return self.found >= bar if self.is_least else self.found <= bar


def bars(results: Sequence[Result], peers: Iterable[str] = ("wstunnel",)) -> list[Bar]:
    """Every promise that these results say something about, for the first of the peers that is wstunnel."""
    subject = next((name for name in peers if name.startswith("wstunnel")), "wstunnel")
    return [bar for result in results for bar in _of(result, results, subject)]


def _of(result: Result, results: Sequence[Result], subject: str) -> Iterator[Bar]:
    name = f"{result['scenario']} {result['title']}"
    if result["kind"] == "memory":
        yield from _memory(result, name, subject)
        return
    if result["scenario"] in {"pipe", "get"}:
        yield from _proxied(result, name, f"{subject} {PROXY_FLAGS}", subject)
        return
    if subject not in result["runs"]:
        return
    if result["scenario"] in {"tls", "h2c", "h2tls"}:
        yield from _carried(result, results, name, subject)
        return
    if result["scenario"] == "h2stall":
        yield from _beside_a_stalled_one(result, results, name, subject)
        return
    if result["scenario"] == "handshake":
        return
    if result["scenario"] == "workers":
        against_one = ratio(result, f"{subject} --workers 2", subject)
        if against_one is not None:
            yield Bar(f"{name}: CPU of two workers against one", against_one, 1.05)
    elif result["scenario"] == "fair":
        yield from _fair(result, results, subject)
    elif result["scenario"] != "sweep":
        yield from _against(result, name, subject)


def _against(result: Result, name: str, subject: str) -> Iterator[Bar]:
    floor = ratio(result, subject, "floor")
    if floor is not None and result["mode"] != "churn":
        is_alone = result["connections"] == 1
        is_bulk = result["mode"] != "echo" or result["size"] > _LARGEST_NEAR_FLOOR
        bar, beyond = (1.10, 1.05) if is_alone else (1.15, 1.05) if is_bulk else (1.10, 1.03)
        yield Bar(f"{name}: CPU against the floor", floor, bar, beyond)
        latency = ratio(result, subject, "floor", _latency("p50")) if is_alone else None
        if latency is not None:
            yield Bar(f"{name}: median latency against the floor", latency, bar, beyond)
    lighttpd = ratio(result, subject, "lighttpd")
    if lighttpd is not None and result["mode"] == "churn":
        yield Bar(f"{name}: CPU against lighttpd", lighttpd, 1.0, 0.8)
    elif lighttpd is not None:
        is_many = result["connections"] >= 1000
        bar = 1.4 if is_many else 6.0 if result["mode"] == "echo" and result["size"] == _LARGEST_NEAR_FLOOR else 1.0
        yield Bar(f"{name}: times cheaper than lighttpd", 1 / lighttpd, bar, is_least=True)
        p99 = ratio(result, subject, "lighttpd", _latency("p99")) if is_many else None
        if p99 is not None:
            yield Bar(f"{name}: p99 latency against lighttpd", p99, 0.9)
    if (result["mode"], result["connections"], result["size"], result["in_flight"]) == ("echo", 100, 64, 1):
        for slow in _SLOW:
            share = ratio(result, subject, slow)
            if share is not None:
                yield Bar(f"{name}: times cheaper than {slow}", 1 / share, 5.0, 10.0, is_least=True)


def _proxied(result: Result, name: str, proxy: str, subject: str) -> Iterator[Bar]:
    against_tunnel = ratio(result, proxy, subject)
    if against_tunnel is not None:
        yield Bar(f"{name}: CPU of a proxied pipe against a tunnel", against_tunnel, 1.0)
    against_nginx = ratio(result, proxy, "nginx")
    if against_nginx is not None:
        yield Bar(f"{name}: CPU of a proxied request against nginx", against_nginx, 2.0)


def _carried(result: Result, results: Sequence[Result], name: str, subject: str) -> Iterator[Bar]:
    if result["wire"] == "h1":
        return
    against_lighttpd = ratio(result, subject, "lighttpd")
    if against_lighttpd is not None:
        is_large = result["wire"] == "tls" and result["size"] == _LARGEST_NEAR_FLOOR
        yield Bar(f"{name}: CPU against lighttpd", against_lighttpd, 0.5 if is_large else 1.0)
    plain = [other for other in results if _is_same_load(result, other) and other["wire"] == "h1"]
    if plain:
        share = _against_beside(result, plain[0], subject, cost_of)
        if share is not None:
            yield Bar(f"{name}: CPU against HTTP/1.1", share, 1.5)


def _beside_a_stalled_one(result: Result, results: Sequence[Result], name: str, subject: str) -> Iterator[Bar]:
    alone = [other for other in results if _is_same_load(result, other) and not other["stalled_by"]]
    share = _against_beside(result, alone[0], subject, rate_of) if alone and result["stalled_by"] else None
    if share is not None:
        yield Bar(f"{name}: messages per second against alone", share, 0.9, is_least=True)


def _is_same_load(result: Result, other: Result) -> bool:
    return all(result[what] == other.get(what) for what in ("scenario", "mode", "connections", "size", "in_flight"))


def _against_beside(result: Result, other: Result, subject: str, of: Callable[[Result, Run], float]) -> float | None:
    """The median, over the rounds, of a figure of one row divided by that of another row of the same group."""
    runs = zip(result["runs"].get(subject, ()), other["runs"].get(subject, ()), strict=False)
    shares = [of(result, run) / of(other, beside) for run, beside in runs if of(other, beside)]
    return median(shares) if shares else None


def _fair(result: Result, results: Sequence[Result], subject: str) -> Iterator[Bar]:
    alone = [other for other in results if other["scenario"] == "fair" and not other["greedy"]]
    if not result["greedy"] or not alone:
        return
    runs = zip(result["runs"][subject], alone[0]["runs"].get(subject, ()), strict=False)
    p99 = _latency("p99")
    shares = [p99(result, beside) / p99(alone[0], before) for beside, before in runs]
    if shares:
        yield Bar(f"fair {result['title']}: p99 against alone", median(shares), 2.0)


def _memory(result: Result, name: str, subject: str) -> Iterator[Bar]:
    looks = result["looks"].get(subject)
    if not looks or result["scenario"] == "tlsidle":
        return
    if result["scenario"] == "idle":
        each = slope_bytes(looks)
        if each is not None:
            yield Bar(f"{name}: memory of each", each / _KIB, 3.0, 1.5, unit="KiB")
        return
    base, first, last = looks[0], looks[1], looks[-1]
    each, at_first = ((look["bytes"] - base["bytes"]) / look["tunnels"] for look in (last, first))
    yield Bar(f"stall, {result['title']}: memory of each", each / _KIB, 64.0, unit="KiB")
    yield Bar(f"stall, {result['title']}: growth over time, of each", (each - at_first) / _KIB, 4.0, unit="KiB")


def _latency(which: str) -> Callable[[Result, Run], float]:
    return lambda _result, run: float(run["latency_us"][which])


def markdown(found: Sequence[Bar]) -> str:
    """A table of what is reached and what is not."""
    lines: list[tuple[str, ...]] = [("promise", "found", "bar", "beyond", "verdict"), ("---",) * 5]
    for bar in found:
        sign = ">=" if bar.is_least else "<="
        beyond = "" if bar.beyond is None else f"{sign} {bar.beyond:g}"
        lines.append((bar.what, f"{bar.found:.2f} {bar.unit}", f"{sign} {bar.bar:g}", beyond, bar.verdict))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_json(found: Sequence[Bar]) -> list[dict[str, Any]]:
    return [
        {"what": b.what, "found": b.found, "bar": b.bar, "beyond": b.beyond, "unit": b.unit, "verdict": b.verdict}
        for b in found
    ]
