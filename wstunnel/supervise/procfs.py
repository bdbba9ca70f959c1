"""What /proc tells about processes: which are ending or at rest, and who is left in a process group."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["ProcessStat", "is_ending", "is_gone_or_ending", "orphans_live", "parse_stat", "read_stat"]

_PF_EXITING = 0x4  # linux/sched.h: set before the descriptors are closed, so before any peer sees an EOF


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """The fields of /proc/PID/stat that are used here."""

    state: str
    group: int
    flags: int
    cpu_ticks: int
    """Processor time used, in the kernel's ticks of 10 ms."""

    @property
    def is_asleep(self) -> bool:
        """Waiting for something that may never come, and not for the disk."""
        return self.state == "S"

    @property
    def is_dead(self) -> bool:
        return self.state in {"Z", "X"}

    @property
    def is_ending(self) -> bool:
        """Dead, or past the point of no return."""
        return self.is_dead or bool(self.flags & _PF_EXITING)


def parse_stat(line: bytes) -> ProcessStat:
    """The fields of one /proc/PID/stat; the program's name in it may hold blanks and parentheses.

    source  proc(5): (1) pid (2) comm (3) state (4) ppid (5) pgrp ... (9) flags ... (14) utime (15) stime
    """
    state, _, group, _, _, _, flags, _, _, _, _, user, system, _ = line[line.rindex(b")") + 1 :].split(None, 13)
    return ProcessStat(state.decode("ascii"), int(group), int(flags), int(user) + int(system))


def read_stat(pid: int | str) -> ProcessStat | None:
    """What the kernel says of a process now; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return parse_stat(file.read())
    except OSError:  # gone, at open or at read
        return None


def is_ending(pid: int) -> bool:
    """Is a child of ours, not yet reaped, dead or in the act of exiting? One short read, no waiting."""
    found = read_stat(pid)
    return found is not None and found.is_ending


def is_gone_or_ending(pid: int) -> bool:
    """The same of another process's child, which may have been reaped by now: then it has no entry any more."""
    found = read_stat(pid)
    # Without a descriptor left there is no reading, and so no knowing; whether there is an entry is seen without one.
    return found.is_ending if found is not None else not os.path.exists(f"/proc/{pid}")


def orphans_live(group: int) -> bool:
    """Does a process group whose leader was reaped still have a living member?

    A process with the group's own number proves that the number was given out again, which cannot happen
    before the group is empty: then the group of that number is not ours to touch.
    """
    if os.path.exists(f"/proc/{group}"):
        return False
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists
    # Members that are dead but that nobody reaps (a container without an init) count for killpg; they do not here.
    stats = (read_stat(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return any(found is not None and found.group == group and not found.is_dead for found in stats)
