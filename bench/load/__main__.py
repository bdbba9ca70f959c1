"""The command: what to measure, how often, and where the results go."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
from dataclasses import replace
from typing import Any

from bench.load import bars, publish
from bench.load.measure import Bench
from bench.load.peers import NAMES, Peer, peer_named
from bench.load.processes import Cpus, descriptors, raise_descriptors
from bench.load.programs import ROOT, MissingError, Programs
from bench.load.scenarios import FULL, QUICK, SCENARIOS, Plan
from bench.load.table import markdown

__all__ = ["arguments", "main"]

_DESCRIPTORS = 24_000  # for 9,000 tunnels, with some to spare

_EPILOG = "\n".join(
    [
        "scenarios:",
        *(f"  {name:<10} {what}" for name, what in SCENARIOS.items()),
        "",
        "peers:",
        *(f"  {name:<10} {peer_named(name).what}" for name in NAMES),
        "  'wstunnel FLAGS', such as 'wstunnel --workers 2': this project, run with further flags",
        "",
        "A peer that is not installed is named with the command that installs it.",
        "Servers run on the first processor that we may use; clients and backends share the second one.",
        "A figure is a median over rounds, in each of which every peer has its turn; a ratio is the median of the",
        "ratios within each round. Nothing else should run meanwhile.",
    ]
)


def arguments() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.load",
        description="How fast wstunnel is beside others that do the same work.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a few rows, 3 rounds: about a minute")
    parser.add_argument(
        "--scenario", nargs="+", action="extend", choices=list(SCENARIOS), metavar="NAME", help="these and no others"
    )
    parser.add_argument("--peer", action="append", metavar="NAME", help="this one and no others; may be repeated")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="how often each peer has its turn (default: 5; quick: 3)"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="of one measurement (default: 0.4; quick: 0.3)")
    parser.add_argument("--row", action="append", metavar="TEXT", help='rows with this in their title: "1,000 x 64 B"')
    parser.add_argument("--check", action="store_true", help="compare every byte; figures are not comparable then")
    parser.add_argument("--out", metavar="DIR", help="where results.json and plots go (default: build/bench)")
    parser.add_argument("--publish", action="store_true", help="results, plots and figures into docs/performance*")
    parser.add_argument("--no-plots", action="store_true", help="results only")
    return parser


def _peers(names: list[str] | None, plan: Plan) -> list[Peer]:
    """Those that were asked for, or all; then their kin that only some rows name."""
    peers = [peer_named(name) for name in names or NAMES]
    known = {peer.name for peer in peers}
    named = dict.fromkeys(name for group in plan.rows for name in group[0].only if name not in NAMES)
    guests = [name for name in named if name not in known and name.partition(" ")[0] in known]
    return peers + [replace(peer_named(name), is_guest=True) for name in guests]


def _machine(cpus: Cpus) -> dict[str, Any]:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": models[0] if models else platform.machine(),
        "cpus": os.cpu_count(),
        "server_cpu": cpus.server,
        "load_cpu": cpus.load,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "descriptors": descriptors(),
    }


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    parser = arguments()
    said = parser.parse_args()
    plan = QUICK if said.quick else FULL
    plan = replace(plan, rounds=said.rounds or plan.rounds, seconds=said.seconds or plan.seconds)
    if said.scenario:
        plan = plan.only(tuple(said.scenario))
    if said.row:
        rows = tuple(g for g in plan.rows if any(text in row.title for text in said.row for row in g))
        plan = replace(plan, rows=rows, memory=())
    if not plan.rows and not plan.memory:
        parser.error("no row is left to measure")
    try:
        peers = _peers(said.peer, plan)
        programs = Programs(os.path.join(ROOT, "build", "bench"))
        programs.build()
    except (ValueError, MissingError) as error:
        parser.error(str(error))
    raise_descriptors(_DESCRIPTORS)
    cpus = Cpus()
    machine = _machine(cpus)
    _say(
        f"{machine['cpu']}, server on CPU {cpus.server}, clients and backends on CPU {cpus.load}, load average "
        f"{machine['load_average']:.2f}"
    )
    if not cpus.are_apart:
        _say("ONE PROCESSOR ONLY: servers, clients and backends share it; ratios mean little")
    names = [peer.name for peer in peers]

    def finished(result: dict[str, Any]) -> None:
        _say("\n" + markdown(result, names))

    bench = Bench(programs, plan, peers, finished, checks=said.check, cpus=cpus)
    results = bench.run()
    promises = bars.bars(results, names)
    if promises:
        _say("\n" + bars.markdown(promises))
    found = {
        "format": 1,
        "machine": machine,
        "plan": {"rounds": plan.rounds, "seconds": plan.seconds, "warm_up": plan.warm_up, "checks": said.check},
        "peers": {peer.name: _about(peer) for peer in peers},
        "results": results,
        "promises": bars.as_json(promises),
    }
    out = publish.DOCS if said.publish else said.out or os.path.join(ROOT, "build", "bench")
    try:
        written = publish.write(found, out, pictures=not said.no_plots)
    except MissingError as error:
        _say(f"\n{os.path.join(out, 'results.json')}\nno plots: {error}")
        return 1
    _say("\n" + "\n".join(written))
    if said.publish:
        publish.write_page(found, [path for path in written if path.endswith(".svg")])
    return 0


def _about(peer: Peer) -> dict[str, Any]:
    missing = peer.missing()
    return {"what": peer.what, "missing": missing, "version": None if missing else peer.version()}


if __name__ == "__main__":
    sys.exit(main())
