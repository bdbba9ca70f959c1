"""`make run`, in a terminal: it says what to open, and Ctrl-C ends all of it well."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
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


Running = Callable[..., Terminal]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """`make run` on a free port, with this interpreter and the modules as they are built, and with these words."""
    if shutil.which("make") is None:
        assert not os.environ.get("CI"), "make is missing"
        pytest.skip("needs the package make")
    made = ["-o", "/nowhere/.ready", "-o", "/nowhere/.built", "VENV=/nowhere", f"PY={sys.executable}"]
    terminals: list[Terminal] = []

    def run(*words: str, args: str = "--listen 127.0.0.1:0") -> Terminal:
        terminals.append(Terminal("make", "run", f"ARGS={args}", *made, *words, tmp=tmp_path))
        return terminals[-1]

    yield run
    for each in terminals:
        each.close()


@pytest.mark.timeout(120)
def test_make_run_serves_a_page_until_ctrl_c_and_leaves_nothing(running: Running, tmp_path):
    terminal = running()
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


@pytest.mark.timeout(120)
def test_make_run_with_tls_serves_the_page_by_https_and_keeps_its_certificate(running: Running):
    if shutil.which("openssl") is None:
        assert not os.environ.get("CI"), "openssl is missing"
        pytest.skip("needs the package openssl")
    terminal = running("TLS=1")
    address = terminal.read_until(r"page +(https://127\.0\.0\.1:[0-9]+/)\n")[1]
    terminal.read_until(r"websocket +wss://127\.0\.0\.1:[0-9]+/ws/\n")
    cert = ROOT / "build" / "tls" / "example.pem"
    before = cert.read_bytes()
    assert cert.with_suffix(".key").stat().st_mode & 0o777 == 0o600
    trusting = ssl.create_default_context(cafile=str(cert))
    with urllib.request.urlopen(address, timeout=DEADLINE_S, context=trusting) as answer:
        assert b"<title>" in answer.read()
    terminal.type("\x03")
    assert terminal.wait() == 0

    again = running("TLS=1")
    again.read_until("websocket")
    again.type("\x03")
    assert again.wait() == 0
    assert cert.read_bytes() == before


@pytest.mark.timeout(120)
def test_make_run_with_tls_says_what_it_needs_for_it(running: Running):
    tools = ("make", "sh")
    folder = Path(tempfile.mkdtemp())
    try:
        for tool in tools:
            (folder / tool).symlink_to(str(shutil.which(tool)))
        terminal = running("TLS=1", f"PATH={folder}")
        terminal.read_until("install the package openssl, or bring a certificate")
        assert terminal.wait() == 2
    finally:
        shutil.rmtree(folder)


def test_make_alone_lists_what_there_is(tmp_path):
    terminal = Terminal("make", tmp=tmp_path)
    try:
        assert terminal.wait() == 0
        listed = re.findall(r"^  make ([a-z-]+)  ", terminal.text, re.MULTILINE)
        bench = ["bench", "bench-quick", "bench-micro"]
        assert listed == ["help", "run", "test", "check", *bench, "chaos", "annotate", "asan", "clean"]
    finally:
        terminal.close()
