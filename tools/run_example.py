"""`make run`: the page and the echo of examples/ on 127.0.0.1:8081, until Ctrl-C.

    python -m tools.run_example [more wstunnel flags]

The backend's socket lives in a folder of its own, which is gone afterwards.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from wstunnel.cli import main

_EXAMPLES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "examples")


def run(more_flags: Sequence[str]) -> int:
    """Run the example with these flags added; wstunnel's exit code."""
    with tempfile.TemporaryDirectory(prefix="wstunnel-") as folder, _own_foreground():
        flags = ["--document-root", os.path.relpath(os.path.join(_EXAMPLES, "www")), "--path", "/ws/"]
        flags += ["--socket", os.path.join(folder, "echo.sock")]
        flags += ["--bin-path", shlex.quote(os.path.join(os.path.relpath(_EXAMPLES), "echo.pl"))]
        flags += more_flags
        sys.stdout.write(f"$ python -m wstunnel {shlex.join(flags)}\n")
        sys.stdout.flush()
        return main(flags)


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
