"""The real lighttpd, where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest

_LIGHTTPD = shutil.which("lighttpd", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


@pytest.fixture
def lighttpd(tmp_path) -> Callable[[str], bool]:
    """Does it read a text?"""
    if _LIGHTTPD is None:
        assert "CI" not in os.environ, "lighttpd is missing"
        pytest.skip("lighttpd is not installed")

    def reads(text: str) -> bool:
        path = tmp_path / "real.conf"
        path.write_bytes(f'server.document-root = "/tmp"\nserver.modules = ()\n{text}\n'.encode())
        return subprocess.run([_LIGHTTPD, "-tt", "-f", path], capture_output=True, check=False).returncode == 0

    return reads
