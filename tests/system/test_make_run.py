"""`make run`, in a terminal: it says what to open, and Ctrl-C ends all of it well."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 60.0


TAKE_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *command: str, tmp: Path) -> None:
        self.text = ""
        self._fd, inner = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *command],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(tmp), "RUNTIME_DIRECTORY": str(tmp / "run")},
            stdin=inner,
            stdout=inner,
            stderr=inner,
        )
        os.close(inner)

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read until the text holds the pattern; the match."""
        while not (found := re.search(pattern, self.text)):
            assert self._read(), f"ended before {pattern!r}:\n{self.text}"
        return found

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def wait(self) -> int:
        """Read to the end; the exit code, or minus the signal that ended the command."""
        while self._read():
            pass
        return self._process.wait(DEADLINE_S)

    def close(self) -> None:
        """End what is left."""
        if self._process.poll() is None:
            self._process.terminate()
            self.wait()
        os.close(self._fd)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._fd], [], [], DEADLINE_S)
        assert ready, f"nothing more was said:\n{self.text}"
        try:
            piece = os.read(self._fd, 4096)
        except OSError:  # EIO: everybody on the other side is gone
            return False
        self.text += piece.decode(errors="replace").replace("\r\n", "\n")
        return bool(piece)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """`make run` on a free port, with this interpreter and the modules as they are built."""
    if shutil.which("make") is None:
        assert not os.environ.get("CI"), "make is missing"
        pytest.skip("needs the package make")
    made = ["-o", "/nowhere/.ready", "-o", "/nowhere/.built", "VENV=/nowhere", f"PY={sys.executable}"]
    terminal = Terminal("make", "run", "ARGS=--listen 127.0.0.1:0", *made, tmp=tmp_path)
    yield terminal
    terminal.close()


@pytest.mark.timeout(120)
def test_make_run_serves_a_page_until_ctrl_c_and_leaves_nothing(terminal, tmp_path):
    address = terminal.read_until(r"page +(http://127\.0\.0\.1:[0-9]+/)\n")[1]
    terminal.read_until(r"websocket +ws://127\.0\.0\.1:[0-9]+/ws/\n")
    (folder,) = tmp_path.glob("wstunnel-*")
    assert [each.name.partition("-")[0] for each in (tmp_path / "run").iterdir()] == ["control"]
    for each in (folder, tmp_path / "run"):
        assert each.stat().st_mode & 0o777 == 0o700
    with urllib.request.urlopen(address, timeout=DEADLINE_S) as answer:
        assert b"<title>" in answer.read()

    terminal.type("\x03")

    assert terminal.wait() == 0
    assert "make:" not in terminal.text
    assert "Traceback" not in terminal.text
    assert list(tmp_path.iterdir()) == []


def test_make_alone_lists_what_there_is(tmp_path):
    terminal = Terminal("make", tmp=tmp_path)
    try:
        assert terminal.wait() == 0
        listed = re.findall(r"^  make ([a-z-]+)  ", terminal.text, re.MULTILINE)
        bench = ["bench", "bench-quick", "bench-micro"]
        assert listed == ["help", "run", "test", "check", *bench, "chaos", "annotate", "asan", "clean"]
    finally:
        terminal.close()
