"""Who else may write to a file or folder, and who its owner is."""

from __future__ import annotations

import grp
import os
import pwd
import stat

__all__ = ["other_writers", "user_name"]

_ACCESS_LIST = "system.posix_acl_access"


def other_writers(path: str, found: os.stat_result, trusted: frozenset[int]) -> tuple[str, str] | None:
    """Who else may write to a file or folder, whoever its owner is, and the command that takes it from them.

    in      found    what lstat says of it
            trusted  user ids
    out     such as ("everybody", "chmod o-w"); None: nobody else may
    A group counts as nobody else while the user database names no other member.
    """
    mode, gid = found.st_mode, found.st_gid
    if mode & stat.S_IWOTH:
        return "everybody", "chmod o-w"
    if mode & stat.S_IWGRP and _has_access_list(path):  # the group's bits are the most that it gives to anybody
        return "whoever its access control list names", "setfacl -b"
    if mode & stat.S_IWGRP and _has_strangers(gid, trusted):
        return f"the group {_group_name(gid)}", "chmod g-w"
    return None


def user_name(uid: int) -> str:
    """The user as operators know it: by name, or by number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _has_access_list(path: str) -> bool:
    try:
        return bool(os.getxattr(path, _ACCESS_LIST))
    except OSError:
        return False


def _has_strangers(gid: int, trusted: frozenset[int]) -> bool:
    """May anybody be in the group who is not trusted? Yes for a group that nobody knows."""
    try:
        members = grp.getgrgid(gid).gr_mem
    except KeyError:
        return True
    users = pwd.getpwall()
    if any(user.pw_gid == gid and user.pw_uid not in trusted for user in users):
        return True
    return not {user.pw_name for user in users if user.pw_uid in trusted}.issuperset(members)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
