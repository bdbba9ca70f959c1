"""Where results go: a file for programs, pictures, and the figures in docs/performance.md."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from bench.load import bars, plots, table
from bench.load.programs import ROOT

__all__ = ["DOCS", "PAGE", "write", "write_page"]

DOCS = os.path.join(ROOT, "docs", "performance")
PAGE = os.path.join(ROOT, "docs", "performance.md")
_BEGIN, _END = "<!-- figures: written by `make bench ARGS=--publish` -->", "<!-- end of figures -->"


def write(found: dict[str, Any], folder: str, *, pictures: bool) -> list[str]:
    """results.json and, if wanted, the plots; the paths of all that was written.

    raises  MissingError if plots are wanted and cannot be drawn
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "results.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file, indent=1)
        file.write("\n")
    return [path, *(plots.draw(found["results"], folder) if pictures else [])]


def write_page(found: dict[str, Any], pictures: list[str], path: str = PAGE) -> None:
    """Put these figures where the old ones stand in the page.

    raises  ValueError if the page does not say where
    """
    with open(path, encoding="utf-8") as file:
        page = file.read()
    figures = f"{_BEGIN}\n\n{_figures(found, pictures)}\n\n{_END}"
    page, times = re.subn(f"{re.escape(_BEGIN)}.*{re.escape(_END)}", lambda _: figures, page, flags=re.DOTALL)
    if times != 1:
        raise ValueError(f"{path}: {_BEGIN!r} and {_END!r} have to stand there once")
    with open(path, "w", encoding="utf-8") as file:
        file.write(page)


def _figures(found: dict[str, Any], pictures: list[str]) -> str:
    machine, plan = found["machine"], found["plan"]
    parts = [
        f"Measured at {machine['at']} on {machine['cpus']} CPUs of {machine['cpu']}, Linux {machine['kernel']}, "
        f"Python {machine['python']}; {plan['rounds']} rounds of {plan['seconds']} s each; load average before it "
        f"began {machine['load_average']:.2f}.",
        _peers(found["peers"]),
        *(f"![{os.path.basename(path)}](performance/{os.path.basename(path)})" for path in pictures),
        *(table.markdown(result, found["peers"]) for result in found["results"]),
        "### Promises",
        bars.markdown(bars.bars(found["results"], found["peers"])),
    ]
    return "\n\n".join(parts)


def _peers(peers: dict[str, Any]) -> str:
    lines = ["| peer | what it is | version |", "| --- | --- | --- |"]
    for name, about in peers.items():
        lines.append(f"| {name} | {about['what']} | {about['version'] or 'missing: ' + about['missing']} |")
    return "\n".join(lines)
