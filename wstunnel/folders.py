"""What stands under one folder, for whoever names it by a URL: nothing outside the folder is ever reached.

A path is walked name by name from the folder's own descriptor. Hidden names are refused, which takes `.` and `..` with
them; so are symbolic links, whatever they lead to, and names with a backslash, which some browsers take for a slash.
The folder itself may be a link, and is opened anew each time, so that a deployment that swaps it is seen at once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from wstunnel.errors import StartError

__all__ = ["below", "check_folder", "find_file", "names_of", "open_file"]

_ROOT_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FOLDER_FLAGS = _ROOT_FLAGS | os.O_NOFOLLOW
_LOOK_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO opens at once instead of waiting for its writer; O_NOCTTY: a terminal does not become ours.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def check_folder(root: str, *, option: str) -> None:
    """raises StartError if there is no such folder now, or none that can be entered"""
    try:
        os.close(os.open(root, _ROOT_FLAGS))
    except OSError as error:
        raise StartError(f"{option} {root}: {error.strerror}") from None


def below(path: str, prefix: str) -> str | None:
    """What of a URL path is looked for in a folder that stands in the place of `prefix`; None: the path is beside it,
    as /cgi-binary is beside /cgi-bin."""
    stem = prefix.rstrip("/")
    rest = path[len(stem) :]
    return rest if path.startswith(stem) and rest.startswith("/") else None


def names_of(path: str) -> list[bytes] | None:
    """The names of a decoded URL path, in the bytes that the client sent; the last one is empty behind a slash at the
    end. None for a path that does not begin with a slash, or that no bytes could stand for."""
    try:
        first, *names = path.encode("utf-8", "surrogateescape").split(b"/")
    except UnicodeEncodeError:
        return None
    return None if first or not names else names


def open_file(root: str, names: Sequence[bytes]) -> int:
    """A descriptor, to read from, of what stands at `names` under `root`: a file, or a folder, or something else.

    raises  OSError; FileNotFoundError on a name that is never served
    """
    if not all(map(_is_plain, names)):
        raise FileNotFoundError(f"never served: {names!r}")
    folder = os.open(root, _ROOT_FLAGS)
    try:
        for name in names[:-1]:
            inner = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(names[-1], _FILE_FLAGS, dir_fd=folder)
    finally:
        os.close(folder)


def find_file(root: str, names: Sequence[bytes]) -> int | None:
    """How many of `names` lead from `root` to a regular file, behind which nothing is looked at any more; None when
    they lead to none."""
    try:
        folder = os.open(root, _ROOT_FLAGS)
    except OSError:
        return None
    try:
        for count, name in enumerate(names, start=1):
            if not _is_plain(name):
                return None
            inner = os.open(name, _LOOK_FLAGS, dir_fd=folder)
            os.close(folder)
            folder = inner
            kind = os.fstat(folder).st_mode
            if stat.S_ISREG(kind):
                return count
            if not stat.S_ISDIR(kind):
                return None
    except OSError:
        return None
    finally:
        os.close(folder)
    return None


def _is_plain(name: bytes) -> bool:
    """Can it be the name of something that is served? An empty one is left to the kernel, which knows none."""
    return not (name.startswith(b".") or b"\0" in name or b"\\" in name)
