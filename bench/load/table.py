"""Results as text: medians, how far they spread, and how they stand to the floor and to lighttpd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

__all__ = ["Result", "Run", "cost_of", "figures", "markdown", "rate_of", "ratio", "slope_bytes"]

_MIB = 1 << 20
_YARDSTICKS = {
    "pipe": ("floor", "wstunnel"),
    "get": ("nginx", "haproxy-http"),
    "tls": ("haproxy", "lighttpd"),
    **dict.fromkeys(("h2c", "h2tls", "handshake"), ("lighttpd",)),
    "h2stall": (),
}

Run = dict[str, Any]
Result = dict[str, Any]


def _work(result: Result, run: Run) -> float:
    """What was done in a run: messages, or MiB of payload for streams."""
    if result["mode"] == "upload":
        return float(run["sunk_bytes"]) / _MIB
    if result["mode"] == "download":
        return float(run["payload_bytes"]) / _MIB
    return float(run["messages"])


def cost_of(result: Result, run: Run, whose: str = "server") -> float:
    """Microseconds of CPU per message, or per MiB."""
    return float(run[f"{whose}_cpu_ns"]) / 1e3 / max(_work(result, run), 1e-9)


def rate_of(result: Result, run: Run) -> float:
    return _work(result, run) / (run["wall_ns"] / 1e9)


def ratio(result: Result, peer: str, other: str, of: Callable[[Result, Run], float] = cost_of) -> float | None:
    """The median, over the rounds, of a peer's figure divided by another one's of the same round."""
    pairs = list(zip(result["runs"].get(peer, ()), result["runs"].get(other, ()), strict=False))
    shares = [of(result, run) / of(result, beside) for run, beside in pairs if of(result, beside)]
    return median(shares) if shares else None


def slope_bytes(looks: Sequence[dict[str, float]]) -> float | None:
    """Bytes per tunnel: the least-squares line through all looks that have tunnels."""
    points = [(look["tunnels"], look["bytes"]) for look in looks if look["tunnels"]]
    if len({x for x, _ in points}) < 2:
        return None
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def _latency(run: Run, which: str) -> float | None:
    found = run.get("latency_us")
    return float(found[which]) if found else None


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def figures(result: Result, peers: Iterable[str]) -> tuple[list[str], list[list[str]]]:
    """Column names and a line for each peer, the missing ones included."""
    return _memory(result, peers) if result["kind"] == "memory" else _load(result, peers)


def _load(result: Result, peers: Iterable[str]) -> tuple[list[str], list[list[str]]]:
    is_stream = result["mode"] in {"upload", "download"}
    unit, rate = ("MiB", "MiB/s") if is_stream else ("request" if result["mode"] == "get" else "message", "k/s")
    yardsticks = _YARDSTICKS.get(result["scenario"], ("floor", "lighttpd"))
    names = ["peer", f"µs per {unit}", "min", "max", *(f"x {other}" for other in yardsticks), rate]
    names += ["p50 µs", "p99 µs", "client µs"]
    lines = []
    for peer in peers:
        runs = result["runs"].get(peer, [])
        if peer in result["failed"]:
            lines.append([peer, result["failed"][peer]])
        elif runs:
            costs = [cost_of(result, run) for run in runs]
            rates = median(rate_of(result, run) for run in runs) / (1 if is_stream else 1e3)
            line = [peer, *map(_number, (median(costs), min(costs), max(costs)))]
            line += [_number(ratio(result, peer, other)) for other in yardsticks]
            line.append(_number(rates))
            for which in ("p50", "p99"):
                seen = [found for run in runs if (found := _latency(run, which)) is not None]
                line.append(_number(median(seen)) if seen else "")
            line.append(_number(median(cost_of(result, run, "client") for run in runs)))
            lines.append(line)
    return names, lines


def _memory(result: Result, peers: Iterable[str]) -> tuple[list[str], list[list[str]]]:
    is_idle = result["scenario"] in {"idle", "tlsidle"}
    names = ["peer", "tunnels", "KiB with none", "KiB per tunnel"] + ([] if is_idle else ["at the first look"])
    lines = []
    for peer in peers:
        if peer in result["failed"]:
            lines.append([peer, result["failed"][peer]])
        elif peer in result["looks"]:
            looks = result["looks"][peer]
            base, first, last = looks[0], looks[1], looks[-1]
            each = slope_bytes(looks)
            if each is None:
                each = (last["bytes"] - base["bytes"]) / last["tunnels"]
            line = [peer, f"{last['tunnels']:,.0f}", _number(base["bytes"] / 1024), _number(each / 1024)]
            if not is_idle:
                line.append(_number((first["bytes"] - base["bytes"]) / first["tunnels"] / 1024))
            lines.append(line)
    return names, lines


def markdown(result: Result, peers: Iterable[str]) -> str:
    """A table, aligned so that it reads well as it stands."""
    names, lines = figures(result, peers)
    full = [line for line in lines if len(line) == len(names)]
    widths = [max(map(len, column)) for column in zip(names, *full, strict=True)]
    widths[0] = max(widths[0], *(len(line[0]) for line in lines)) if lines else widths[0]
    text = [f"**{result['scenario']}: {result['title']}**", "", _line(names, widths)]
    text.append("| --- |" + " ---: |" * (len(names) - 1))
    text += [_line(line, widths) if line in full else f"| {line[0]:<{widths[0]}} | {line[1]} |" for line in lines]
    return "\n".join(text)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return "| " + " | ".join([cells[0].ljust(len(first)), *rest]) + " |"
