"""A service to be visited over TLS and over HTTP/2, with and without something in front of it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.authority import Authority, Files
from tests.system.test_control import ROOT, Service, until

__all__ = ["FILE_BYTES", "Stand", "standing"]

FILE_BYTES = 300_000
CLOSE_TIMEOUT_S = 1.0
"""undici never ends its side of a stream: that is waited for so long."""


@dataclass(frozen=True)
class Stand:
    """A service with a listener that speaks TLS and one that does not, which takes HTTP/2 all the same."""

    service: Service
    secure: str
    clear: str
    ca: str
    certificate: Files
    files: Path

    def tunnels(self, count: int) -> list[dict[str, str]]:
        """The fields of the last `count` tunnels in the log; there must be none that has not ended."""
        until(lambda: self.service.status()["totals"]["tunnels"] == 0, "all tunnels have ended")
        lines = [line for line in self.service.log().splitlines() if "tunnel closed: " in line]
        return [dict(re.findall(r" ([a-z_]+)=(\S+)", line)) for line in lines[-count:]]


def _text(folder: Path, files: Files) -> str:
    return f"""
        allow-unsafe-places = true
        document-root = "{folder}/www"
        [[listener]]
        listen = ["127.0.0.1:0"]
        tls-cert = ["{files.cert}"]
        tls-key = ["{files.key}"]
        [[listener]]
        listen = ["127.0.0.1:0"]
        h2c = true
        [[route]]
        path = "/ws/"
        socket = "{folder}/backend"
        bin-path = "{ROOT}/examples/raw_echo.py"
        close-timeout = {CLOSE_TIMEOUT_S}
        """


@contextlib.contextmanager
def standing(folder: Path) -> Iterator[Stand]:
    """A Stand until the end of the block; it has to end well, and must have had no error."""
    authority = Authority(folder)
    certificate = authority.files("server")
    (folder / "www").mkdir()
    (folder / "www" / "file").write_bytes(os.urandom(FILE_BYTES))
    with Service(folder, _text(folder, certificate)) as service:
        secure, clear = service.status()["listeners"]
        yield Stand(service, secure, clear, authority.ca, certificate, folder / "www")
        service.process.terminate()
        assert service.ended() == 0
        assert "error" not in re.findall(r"^\S+ (\w+) wstunnel", service.log(), re.MULTILINE)
