"""The three programs in C that the bench brings itself: client, backend, floor."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

__all__ = ["ROOT", "MissingError", "Programs", "compiler"]

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "c")
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
    def backend(self) -> str:
        return os.path.join(self.folder, "backend")

    @property
    def floor(self) -> str:
        return os.path.join(self.folder, "floor")

    def build(self) -> None:
        """Compile what is older than its source.

        raises  MissingError without a compiler, CalledProcessError if it fails
        """
        header = os.path.join(_SOURCES, "common.h")
        os.makedirs(self.folder, exist_ok=True)
        for program in (self.client, self.backend, self.floor):
            source = os.path.join(_SOURCES, f"{os.path.basename(program)}.c")
            if os.path.exists(program) and os.path.getmtime(program) > max(map(os.path.getmtime, (source, header))):
                continue
            command = compiler()
            if command is None:
                raise MissingError("the load client is a C program: apt-get install gcc libc6-dev")
            subprocess.run([command, *_FLAGS, "-o", f"{program}.new", source], check=True)
            os.replace(f"{program}.new", program)
