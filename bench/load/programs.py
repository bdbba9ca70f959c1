"""The programs in C that the bench brings itself: client, with and without TLS, backend, floor."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

__all__ = ["ROOT", "MissingError", "Programs", "compiler"]

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "c")
_TLS = "apt-get install libssl-dev"
_FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra")


class MissingError(Exception):
    """Something that has to be installed first; the text says how."""


def compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


@dataclass(frozen=True)
class Programs:
    """Where the compiled programs are."""

    folder: str

    @property
    def client(self) -> str:
        return os.path.join(self.folder, "client")

    @property
    def tls_client(self) -> str:
        """The same, with OpenSSL; not there if that cannot be compiled."""
        return os.path.join(self.folder, "tls-client")

    @property
    def backend(self) -> str:
        return os.path.join(self.folder, "backend")

    @property
    def floor(self) -> str:
        return os.path.join(self.folder, "floor")

    def build(self) -> None:
        """Compile what is older than its source.

        raises  MissingError without a compiler, CalledProcessError if it fails
        """
        os.makedirs(self.folder, exist_ok=True)
        for program in (self.client, self.backend, self.floor):
            _compile(program, f"{os.path.basename(program)}.c")
        if _has_openssl():
            _compile(self.tls_client, "client.c", "-DWITH_TLS", "-lssl", "-lcrypto")

    def need_tls(self) -> None:
        """raises  MissingError if there is no tls_client"""
        if not os.path.exists(self.tls_client):
            raise MissingError(_TLS)


def _compile(program: str, name: str, *flags: str) -> None:
    source = os.path.join(_SOURCES, name)
    sources = [source, *(os.path.join(_SOURCES, header) for header in os.listdir(_SOURCES) if header.endswith(".h"))]
    if os.path.exists(program) and os.path.getmtime(program) > max(map(os.path.getmtime, sources)):
        return
    command = compiler()
    if command is None:
        raise MissingError("the load client is a C program: apt-get install gcc libc6-dev")
    subprocess.run([command, *_FLAGS, "-o", f"{program}.new", source, *flags], check=True)
    os.replace(f"{program}.new", program)


def _has_openssl() -> bool:
    command = [compiler() or "cc", "-E", "-x", "c", "-"]
    asked = subprocess.run(command, input="#include <openssl/ssl.h>", text=True, capture_output=True, check=False)
    return asked.returncode == 0
