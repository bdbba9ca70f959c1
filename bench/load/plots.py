"""Results as pictures: what costs how much, by size, by number of connections, by percentile."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from bench.load.programs import MissingError
from bench.load.table import Result, Run, cost_of, rate_of

__all__ = ["draw"]

_COLOURS = {
    "floor": "#888888",
    "wstunnel": "#d62728",
    "lighttpd": "#1f77b4",
    "haproxy": "#17becf",
    "picows": "#2ca02c",
    "websockets": "#9467bd",
    "websockify": "#8c564b",
    "websocketd": "#ff7f0e",
}
_FURTHER_COLOURS = ("#e377c2", "#bcbd22", "#000000")  # for wstunnel with flags
_PERCENTILES = ("p50", "p90", "p99", "p99.9")
_SIZES_AT = 100  # connections
_CONNECTIONS_AT = 64  # bytes

Points = list[tuple[float, float]]


def draw(results: Sequence[Result], folder: str) -> list[str]:
    """Write SVG files; the paths of those that there was something to draw for.

    raises  MissingError without matplotlib
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise MissingError("plots need matplotlib: pip install --no-deps -r bench/load/requirements.txt") from None
    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "wstunnel", "svg.fonttype": "none", "font.size": 9, "axes.grid": True})
    mpl.rcParams.update({"grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})
    echoes = [r for r in results if r["scenario"] in {"echo", "sweep"} and r["in_flight"] == 1]
    by_size = [r for r in echoes if r["connections"] == _SIZES_AT]
    by_connections = [r for r in echoes if r["size"] == _CONNECTIONS_AT]
    drawn = []
    for name, title, rows, key in (
        ("size", f"{_SIZES_AT} connections, one message in flight each", by_size, "size"),
        ("connections", f"messages of {_CONNECTIONS_AT} bytes, one in flight each", by_connections, "connections"),
    ):
        if len(rows) > 1:
            panels = [
                ("server CPU per message, µs", _lines(rows, key, cost_of)),
                ("messages per second", _lines(rows, key, rate_of)),
            ]
            marks = {float(row[key]): _short(row[key]) for row in rows}
            label = "payload" if key == "size" else "connections"
            drawn.append(_figure(os.path.join(folder, f"{name}.svg"), title, label, panels, marks, xscale="log"))
    drawn += _latency(by_connections, folder) + _idle(results, folder)
    return drawn


def _peers(rows: Sequence[Result], key: str = "runs") -> list[str]:
    found = {peer for row in rows for peer in row[key]}
    return [name for name in _COLOURS if name in found] + sorted(found - set(_COLOURS))


def _lines(rows: Sequence[Result], key: str, of: Callable[[Result, Run], float]) -> dict[str, Points]:
    lines: dict[str, Points] = {}
    for peer in _peers(rows):
        runs = [(float(row[key]), [of(row, run) for run in row["runs"].get(peer, ())]) for row in rows]
        lines[peer] = sorted((x, median(values)) for x, values in runs if values)
    return lines


def _latency(rows: Sequence[Result], folder: str) -> list[str]:
    panels = []
    for row in rows:
        if row["connections"] < 100:
            continue
        lines: dict[str, Points] = {}
        for peer in _peers([row]):
            lines[peer] = [
                (float(at), median(run["latency_us"][which] for run in row["runs"][peer]))
                for at, which in enumerate(_PERCENTILES)
            ]
        panels.append((f"latency, µs: {row['title']}", lines))
    if not panels:
        return []
    path = os.path.join(folder, "latency.svg")
    marks = {float(at): name for at, name in enumerate(_PERCENTILES)}
    return [_figure(path, "latency of an echoed message", "percentile", panels, marks)]


def _idle(results: Sequence[Result], folder: str) -> list[str]:
    rows = [row for row in results if row["scenario"] == "idle"]
    if not rows:
        return []
    lines = {
        peer: [(look["tunnels"], look["bytes"] / (1 << 20)) for look in rows[0]["looks"][peer]]
        for peer in _peers(rows, "looks")
    }
    panels = [("memory of the server, MiB", lines)]
    return [_figure(os.path.join(folder, "idle.svg"), "idle tunnels", "tunnels", panels)]


def _short(n: int) -> str:
    for unit, name in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if n % unit == 0:
            return f"{n // unit} {name}"
    return f"{n:,}"


def _figure(
    path: str,
    title: str,
    label: str,
    panels: Sequence[tuple[str, dict[str, Points]]],
    marks: dict[float, str] | None = None,  # on the x axis
    *,
    xscale: str = "linear",
) -> str:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(max(6.6, 5.2 * len(panels)), 4.2), squeeze=False)
    for axis, (what, lines) in zip(axes[0], panels, strict=True):
        _panel(axis, lines)
        axis.set_title(what, fontsize=9)
        axis.set_xlabel(label)
        axis.set_xscale(xscale)
        axis.set_yscale("log")
        if marks:
            axis.set_xticks(list(marks), list(marks.values()))
            axis.set_xticks([], minor=True)
    figure.suptitle(title, fontsize=10)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=4 * len(panels), frameon=False)
    figure.tight_layout(rect=(0, 0.05 + 0.05 * -(-len(names) // (4 * len(panels))), 1, 1))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _panel(axis: Any, lines: dict[str, Points]) -> None:
    further = iter(_FURTHER_COLOURS)
    for peer, points in lines.items():
        if not points:
            continue
        is_ours = peer.startswith("wstunnel")
        axis.plot(
            *zip(*points, strict=True),
            label=peer,
            color=_COLOURS.get(peer) or next(further, "#000000"),
            linestyle="--" if peer == "floor" else "-",
            linewidth=2.2 if is_ours else 1.3,
            marker="o",
            markersize=4 if is_ours else 3,
            zorder=3 if is_ours else 2,
        )
