"""`make chaos`: what a service that stays up promises, tried on real processes with real clients on loopback.

    python -m tools.chaos [--only NAME ...] [--seed N] [--keep]

One line per scenario with its figures; the exit code is 1 if a promise did not hold.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial

import uvloop

from tools.chaos.changing import reloaded, upgraded
from tools.chaos.ending import deaf_child, drained
from tools.chaos.killing import backends_killed, workers_killed
from tools.chaos.outcome import Outcome
from tools.chaos.sharing import few_descriptors, two_workers
from tools.chaos.starting import bad_programs

_Scenario = Callable[[str], Awaitable[Outcome]]


def _scenarios(seed: int) -> dict[str, tuple[str, _Scenario]]:
    return {
        "backends": ("kill -9 of backends", backends_killed),
        "workers": ("kill -9 of workers", workers_killed),
        "reload": ("SIGHUP under load", partial(reloaded, seed=seed)),
        "upgrade": ("SIGUSR2 under load", partial(upgraded, seed=seed)),
        "drain": ("SIGTERM in mid-message", drained),
        "deaf": ("a child that ignores SIGTERM", deaf_child),
        "programs": ("programs that cannot run", bad_programs),
        "share": ("two workers", two_workers),
        "descriptors": ("few descriptors", few_descriptors),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description="the promises of a service that stays up")
    parser.add_argument("--only", nargs="+", choices=list(_scenarios(0)), help="these scenarios and no others")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn by lot (default: 0)")
    parser.add_argument("--keep", action="store_true", help="keep the folders with configuration and log")
    said = parser.parse_args()
    found = {}
    for name, (title, scenario) in _scenarios(said.seed).items():
        if said.only is None or name in said.only:
            found[title] = _run(name, title, scenario, said.keep)
    _say("")
    for title, (outcome, took_s) in found.items():
        _say(f"{title:<30} {_verdict(outcome):<10} {took_s:6.1f} s")
    return any(outcome.broken or outcome.slow for outcome, _ in found.values())


def _run(name: str, title: str, scenario: _Scenario, keep: bool) -> tuple[Outcome, float]:
    folder = tempfile.mkdtemp(prefix=f"chaos-{name}-")
    begun_s = time.monotonic()
    try:
        outcome = uvloop.run(scenario(folder))
    except Exception as error:  # the other scenarios have their turn all the same
        outcome = Outcome(broken=[f"{type(error).__name__}: {error}"])
    took_s = time.monotonic() - begun_s
    _say(f"{title}: {'; '.join(outcome.figures)}")
    for what in (*outcome.broken, *outcome.slow):
        _say(f"  DOES NOT HOLD: {what}")
    if outcome.broken or keep:
        _say(f"  log: {os.path.join(folder, 'log')}")
    else:
        shutil.rmtree(folder)
    return outcome, took_s


def _verdict(outcome: Outcome) -> str:
    return "BROKEN" if outcome.broken else "TOO SLOW" if outcome.slow else "holds"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
