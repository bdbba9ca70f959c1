"""How the program ends when it is asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_however_often_it_is_asked_it_ends_with_0(number, tmp_path):
    """The last signals come when the loop is gone already and the interpreter is on its way out."""
    program = tmp_path / "idle"
    program.write_text("#!/bin/sh\nexec sleep 1000\n", encoding="ascii")
    program.chmod(0o755)
    flags = ("--listen", "127.0.0.1:0", "--socket", str(tmp_path / "idle.sock"), "--bin-path", str(program))
    with subprocess.Popen(
        (sys.executable, "-m", "wstunnel", *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert "listening" in running.stdout.readline()
        while running.poll() is None:
            os.kill(running.pid, number)
        _, logged = running.communicate()
    assert running.returncode == 0, logged
    assert "Traceback" not in logged
    assert os.listdir(tmp_path) == ["idle"]
