"""Giving up root: becoming the user that the operator named, for good."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from wstunnel.errors import StartError
from wstunnel.net.listen import ListenerSet

__all__ = ["Identity", "become", "identity_of", "make_folder_for"]

_ROOT = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process can be."""

    user: str
    uid: int
    gid: int
    groups: tuple[int, ...]

    @property
    def is_ours(self) -> bool:
        """Are we that already? A process that never was root keeps the groups that it was started with."""
        mine = os.getresuid() == (self.uid,) * 3 and os.getresgid() == (self.gid,) * 3
        return mine and (self.uid != _ROOT or set(self.groups) == set(os.getgroups()))


def identity_of(user: str | None, group: str | None) -> Identity | None:
    """What the options `user` and `group` mean on this machine; None: stay what we are.

    raises  StartError when there is no such user or group
    """
    if user is None and group is None:
        return None
    try:
        entry = pwd.getpwuid(os.geteuid()) if user is None else pwd.getpwnam(user)
    except KeyError as error:
        raise StartError(f"user: there is no user {user or os.geteuid()} on this machine; create it") from error
    gid = os.getegid() if entry.pw_uid == os.geteuid() != _ROOT else entry.pw_gid  # newgrp may have changed ours
    if group is not None:
        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError as error:
            raise StartError(f"group: there is no group {group} on this machine; create it") from error
    return Identity(entry.pw_name, entry.pw_uid, gid, tuple(os.getgrouplist(entry.pw_name, gid)))


def become(
    user: str | None, group: str | None, listeners: Iterable[ListenerSet] = (), folders: Iterable[str] = ()
) -> None:
    """Be that user with its groups from now on, in all threads and for good; nothing to do where we are it.

    What the process has open it keeps: listeners on ports below 1024, the log. What it opens later it opens as that
    user, who must be able to read it: the configuration at a reload, programs, static files, the folder of the log
    where nobody makes the new file for it. /proc/self belongs to root until the next exec, and no other process of
    the user may trace us or read our memory: backends run as the same user.

    in      listeners   become the user's
            folders     are made for the user where only root may make them (`make_folder_for`)
    raises  StartError when it is not allowed, or when root could be regained afterwards: the process must end then
    """
    who = identity_of(user, group)
    if who is None or who.is_ours:
        return
    if os.geteuid() != _ROOT:
        raise StartError(f"user: only root may become {who.user}; start as root, or leave user and group out")
    for each in folders:
        make_folder_for(each, who)
    try:
        for listener in listeners:
            listener.give_to(who.uid, who.gid)
        os.setgroups(who.groups)
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
    except OSError as error:
        raise StartError(
            f"user: cannot become {who.user}: {error.strerror}; CAP_SETUID and CAP_SETGID are needed, and a container "
            f"must know its ids"
        ) from error
    if not who.is_ours or set(os.getgroups()) != set(who.groups):
        raise StartError(f"user: the kernel did not make us {who.user} entirely")
    if who.uid != _ROOT:
        _hold_to_it(who)


def _hold_to_it(who: Identity) -> None:
    """Try to regain root in every way; none may work.

    raises  StartError when one does
    """
    ways: dict[str, Callable[[], None]] = {
        "user root": lambda: os.setresuid(_ROOT, _ROOT, _ROOT),
        "group root": lambda: os.setresgid(_ROOT, _ROOT, _ROOT),
        "other groups": lambda: os.setgroups([*who.groups, _ROOT]),
    }
    for what, way in ways.items():
        if what == "group root" and who.gid == _ROOT:
            continue
        with contextlib.suppress(PermissionError):
            way()
            raise StartError(
                f"user: as {who.user} we could have {what} again; take CAP_SETUID, CAP_SETGID and the secure bits away "
                f"(SecureBits=, AmbientCapabilities= in systemd)"
            )


def make_folder_for(folder: str, who: Identity) -> None:
    """Make a folder that is missing, with mode 0700, and the user's: for sockets, where only root may make one.

    One that is there is left alone, and so is one whose own folder is not root's: there the user makes it.

    raises  StartError when it cannot be made
    """
    try:
        above = os.stat(os.path.dirname(folder))
        if os.path.isdir(folder) or above.st_uid != _ROOT or os.geteuid() != _ROOT:
            return
        os.mkdir(folder, 0o700)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(fd, who.uid, who.gid)
        finally:
            os.close(fd)
    except OSError as error:
        raise StartError(f"the folder {folder} cannot be made for {who.user}: {error.strerror}; create it") from error
