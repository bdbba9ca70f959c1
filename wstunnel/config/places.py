"""Whether other users may put theirs in the place of a program that we run or a socket that we bind, or among scripts.

Looked at are the file, its folder, every folder above it, and the same for each symbolic link on the way. Trusted are
root, ourselves, and the user that we become: a file or folder of anybody else is refused, and so is one that anybody
else may write to. A group counts as nobody else while the user database names no other member: on Debian and its kin
everybody has a group of their own, and an umask of 002.

In a sticky folder such as /tmp everybody may write, but only the owner of an entry may replace it. So a folder of a
trusted user in it is safe, and a program or a socket right in it deserves a warning: its name may be taken by others
while it is not there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from wstunnel.config.options import shown
from wstunnel.owners import other_writers, user_name

__all__ = ["Danger", "program_danger", "scripts_danger", "socket_danger"]

_MAX_LINKS = 40  # path_resolution(7)


@dataclass(frozen=True, slots=True)
class Danger:
    """Who could do what, and the remedy: the end of a sentence that begins with an option's name."""

    text: str
    is_refused: bool
    """False: only to be warned of."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A folder, link or file on the way."""

    path: str
    found: os.stat_result

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.found.st_mode)

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.found.st_mode)

    @property
    def is_sticky_folder(self) -> bool:
        return self.is_folder and bool(self.found.st_mode & stat.S_ISVTX)


def program_danger(path: str, trusted: frozenset[int]) -> Danger | None:
    """What others could do about a program; None: nothing.

    in      path      absolute
            trusted   user ids
    """
    steps = _walked(path)
    return _refusal(steps, trusted, f"run a program of theirs instead of {shown(path)}") or _sticky_warning(
        steps, trusted, f"{shown(path)} could be somebody else's whenever ours is not there"
    )


def socket_danger(path: str, trusted: frozenset[int]) -> Danger | None:
    """What others could do about a socket that is to be bound; None: nothing.

    in      path      absolute; its folder, if it is missing, is one that we make for ourselves
            trusted   user ids
    """
    steps = _walked(os.path.dirname(path))
    return _refusal(steps, trusted, f"bind a socket of theirs in the place of {shown(path)}") or _sticky_warning(
        [*steps, _Step(path, steps[-1].found)], trusted, f"{shown(path)} could be taken whenever we do not listen there"
    )


def scripts_danger(folder: str, trusted: frozenset[int]) -> Danger | None:
    """What others could do about a folder whose scripts are run; None: nothing.

    in      folder    absolute, and there
            trusted   user ids
    Scripts come and go: each is judged when it is to run (supervise/scripts.py), and a sticky folder is no more than
    warned of because that refuses what others have put into it.
    """
    steps = _walked(folder)
    inside = _Step(os.path.join(steps[-1].path, "*"), steps[-1].found)
    return _refusal(steps, trusted, f"put scripts of theirs into {shown(folder)}") or _sticky_warning(
        [*steps, inside], trusted, f"scripts in {shown(folder)} are run only if they belong to root or to us"
    )


def _refusal(steps: list[_Step], trusted: frozenset[int], deed: str) -> Danger | None:
    loose = _loose_folders(steps, trusted)
    for step in steps:
        if step.is_link and os.path.dirname(step.path) not in loose:
            continue  # whoever owns it, only its folder says who may replace it
        if step.found.st_uid not in trusted:
            owner = user_name(step.found.st_uid)
            text = f"{shown(step.path)} belongs to {owner}, who could {deed}; use a place of your own"
            if os.geteuid() == 0:
                text += f" or root's, become that user (user = {shown(owner)})"
            return Danger(f"{text}, or set allow-unsafe-places", is_refused=True)
        writers = None if step.is_link or step.path in loose else other_writers(step.path, step.found, trusted)
        if writers is not None:
            who, remedy = writers
            mode = f"{stat.S_IMODE(step.found.st_mode):04o}"
            text = f"{who} may write to {shown(step.path)} (mode {mode}) and could {deed}"
            return Danger(f"{text}; {remedy} {shlex.quote(step.path)}, or set allow-unsafe-places", is_refused=True)
    return None


def _sticky_warning(steps: list[_Step], trusted: frozenset[int], deed: str) -> Danger | None:
    """A warning if a link, or the last step, stands in a folder where everybody may put files."""
    loose = _loose_folders(steps, trusted)
    for step in steps:
        folder = os.path.dirname(step.path)
        if folder in loose and (step.is_link or step is steps[-1]):
            return Danger(f"{loose[folder]} may put files into {shown(folder)}: {deed}", is_refused=False)
    return None


def _loose_folders(steps: list[_Step], trusted: frozenset[int]) -> dict[str, str]:
    """The sticky folders that others may write to, each with who may."""
    loose = {}
    for step in steps:
        writers = other_writers(step.path, step.found, trusted) if step.is_sticky_folder else None
        if writers is not None:
            loose[step.path], _ = writers
    return loose


def _walked(path: str) -> list[_Step]:
    """The steps that there are, to the end or not."""
    steps: list[_Step] = []
    with contextlib.suppress(OSError):
        steps.extend(_steps(path))  # what it got before an error stays
    return steps


def _steps(path: str) -> Iterator[_Step]:
    """Every folder, link and file on the way to an absolute path, as the kernel finds it.

    raises  OSError where the way ends
    """
    parts = path.split("/")[::-1]
    folder, links = "/", 0
    yield _Step(folder, os.lstat(folder))
    while parts:
        part = parts.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            folder = os.path.dirname(folder)
            continue
        step = _Step(os.path.join(folder, part), os.lstat(os.path.join(folder, part)))
        yield step
        if not step.is_link:
            folder = step.path
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(step.path)
        if target.startswith("/"):
            folder = "/"
        parts += target.split("/")[::-1]
