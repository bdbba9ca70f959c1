"""How the program ends when it is asked to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile

import pytest

PAUSE_S = 0.001
"""Between two signals, so that the program comes to do anything else than hear them."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_however_often_it_is_asked_it_ends_with_0(number, tmp_path):
    """The last signals come when the loop is gone already and the interpreter is on its way out."""
    program = tmp_path / "idle"
    program.write_text("#!/bin/sh\nexec sleep 1000\n", encoding="ascii")
    program.chmod(0o755)
    flags = ("--listen", "127.0.0.1:0", "--socket", str(tmp_path / "idle.sock"), "--bin-path", str(program))
    with (
        tempfile.TemporaryFile("w+") as log,  # no pipe: nobody reads while the signals are sent, and a full one blocks
        subprocess.Popen(
            (sys.executable, "-m", "wstunnel", *flags), stdout=subprocess.PIPE, stderr=log, text=True
        ) as running,
    ):
        assert running.stdout is not None
        assert "listening" in running.stdout.readline()
        while running.returncode is None:
            os.kill(running.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(PAUSE_S)
        log.seek(0)
        logged = log.read()
    assert running.returncode == 0, logged
    assert "Traceback" not in logged
    assert os.listdir(tmp_path) == ["idle"]
