"""Other people's programs and packages, which not every machine has."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["command", "listening", "running", "unpacked"]

NPM_TIMEOUT_S = 60.0
DEADLINE_S = 30.0


def command(name: str, package: str) -> str:
    """Where this command is; without it the test is skipped, and under CI it fails."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin")
    if found is None:
        missing = f"no {name} here: install Debian's package `{package}`"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def unpacked(package: str, sha512: str, folder: Path) -> Path:
    """The folder of this package, `name@version`, in `folder`; nothing else is fetched. Without npm or it: skip."""
    argv = [command("npm", "npm"), "pack", "--silent", "--fetch-retries=0", package]
    try:
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=NPM_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not fetch {package} within {NPM_TIMEOUT_S:g} s")
    if done.returncode:
        pytest.skip(f"npm cannot fetch {package}; `npm pack {package}` says why")
    archive = folder / done.stdout.split()[-1]
    assert base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() == sha512
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / "package"


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    """A socket that a program can take over: no port is looked for that somebody else may take first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)  # nginx leaves that as it finds it
        yield listener


@contextlib.contextmanager
def running(folder: Path, listener: socket.socket, argv: list[str], **environment: str) -> Iterator[int]:
    """This program, which serves the listener until the end of the block; the listener's port."""
    port = listener.getsockname()[1]
    with (folder / "front.log").open("wb") as log:
        process = subprocess.Popen(
            argv,
            cwd=folder,
            env={**os.environ, **environment},
            pass_fds=(listener.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    listener.close()  # where the program ends, clients are refused and do not wait
    try:
        yield port
    finally:
        print((folder / "front.log").read_text())  # pytest shows it where the test fails
        process.terminate()
        try:
            process.wait(DEADLINE_S)
        finally:
            process.kill()
            process.wait()
