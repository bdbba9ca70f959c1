"""`make run`: the page and the echo of examples/ on 127.0.0.1:8081, until Ctrl-C.

    python -m tools.run_example [--tls] [more wstunnel flags]

The backend's socket lives in a folder of its own, which is gone afterwards. With --tls (`make run TLS=1`) it is all
served by https and wss, with a certificate that nobody has signed; it stays in build/tls for the next time, so that a
browser has to be told only once that it may be trusted.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from wstunnel.cli import main

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_EXAMPLES = os.path.join(_ROOT, "examples")
_DAY_S = 24 * 60 * 60
_NO_OPENSSL = """\
a certificate takes the openssl command, and there is none: install the package openssl, or bring a certificate
of your own: make run ARGS="--tls-cert FILE --tls-key FILE"
"""


def run(more_flags: Sequence[str]) -> int:
    """Run the example with these flags added; wstunnel's exit code."""
    with tempfile.TemporaryDirectory(prefix="wstunnel-") as folder, _own_foreground():
        flags = ["--document-root", os.path.relpath(os.path.join(_EXAMPLES, "www")), "--path", "/ws/"]
        flags += ["--socket", os.path.join(folder, "echo.sock")]
        flags += ["--bin-path", shlex.quote(os.path.join(os.path.relpath(_EXAMPLES), "echo.pl"))]
        more_flags = list(more_flags)
        if more_flags[:1] == ["--tls"]:
            try:
                more_flags[:1] = _certificate(os.path.join(_ROOT, "build", "tls"))
            except FileNotFoundError:
                sys.stderr.write(_NO_OPENSSL)
                return 1
        flags += more_flags
        sys.stdout.write(f"$ python -m wstunnel {shlex.join(flags)}\n")
        sys.stdout.flush()
        return main(flags)


def _certificate(folder: str) -> list[str]:
    """Flags for a certificate for this machine, made in a folder unless one is there that is good for another day.

    raises  FileNotFoundError without the openssl command
    """
    cert, key = os.path.join(folder, "example.pem"), os.path.join(folder, "example.key")
    check = ["openssl", "x509", "-noout", "-checkend", str(_DAY_S), "-in", cert]
    if subprocess.run(check, capture_output=True, check=False).returncode or not os.path.exists(key):
        os.makedirs(folder, exist_ok=True)
        before = os.umask(0o077)
        try:
            subprocess.run(
                [
                    *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                    *("-nodes", "-days", "90", "-subj", "/CN=wstunnel example"),
                    *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"),
                    *("-keyout", key, "-out", cert),
                ],
                capture_output=True,
                check=True,
            )
        finally:
            os.umask(before)
    return ["--tls-cert", os.path.relpath(cert), "--tls-key", os.path.relpath(key)]


@contextmanager
def _own_foreground() -> Iterator[None]:
    """Take the terminal's Ctrl-C for this process alone, while the context lasts.

    make dies of a Ctrl-C itself, however well its recipe ends. So the recipe leaves make's process group. Ctrl-Z
    is off meanwhile: it would stop this process and leave the shell waiting for make.
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # no terminal, no Ctrl-C
        yield
        return
    before = os.getpgrp()
    if before == os.getpid() or os.tcgetpgrp(terminal) != before:  # it is alone already, or in the background
        os.close(terminal)
        yield
        return
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.tcsetpgrp(terminal, os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(terminal, before)
        os.close(terminal)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
