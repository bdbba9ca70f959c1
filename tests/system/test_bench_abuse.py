"""The bench of hostile HTTP/2 clients does what it says, however long that takes."""

from __future__ import annotations

import subprocess
import sys

from bench.load.programs import ROOT


def test_a_flood_has_a_row_that_tells_of_its_goaway():
    ran = subprocess.run(
        [sys.executable, "-m", "bench.abuse", "--rounds", "1", "pings"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    row = [cell.strip() for cell in ran.stdout.splitlines()[-1].split("|")]
    assert row[1] == "pings"
    assert row[3] == "11"
