"""One running process: how to watch it, end it, and learn how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass

from wstunnel.supervise import procfs

__all__ = ["Child", "ExitStatus", "signal_orphans"]


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: an exit code, or a signal, or neither when nobody could tell."""

    code: int | None = None
    signal: int | None = None

    @property
    def word(self) -> int:
        """The status in one number, for a row of the board: an exit code, or the negative number of a signal."""
        return -self.signal if self.signal is not None else self.code or 0

    @property
    def is_known(self) -> bool:
        return self.code is not None or self.signal is not None

    @classmethod
    def of_word(cls, word: int) -> ExitStatus:
        """The known status that `word` stands for."""
        return cls(signal=-word) if word < 0 else cls(code=word)

    @property
    def clean(self) -> bool:
        return self.code == 0

    def __str__(self) -> str:
        if self.code is not None:
            return f"exited with status {self.code}"
        if self.signal is not None:
            try:
                return f"killed by {signal.Signals(self.signal).name}"
            except ValueError:  # real-time signals have no names
                return f"killed by signal {self.signal}"
        return "ended"


class Child:
    """A child process that leads its own process group. `pidfd` becomes readable when it has ended.

    in      pid and pidfd  of a child of this very process, whichever program it ran when it started the child: an
                           upgrade in place keeps its children
    """

    __slots__ = ("_is_exiting", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid, self.pidfd = pid, pidfd
        self._is_exiting = False

    @classmethod
    def of(cls, popen: subprocess.Popen[bytes]) -> Child:
        """Takes over what was just started: from now on only the Child reaps it.

        raises  OSError when no descriptor for watching is left; the process is ended then
        """
        try:
            pidfd = os.pidfd_open(popen.pid)
        except OSError:
            popen.kill()
            popen.wait()
            raise
        popen.returncode = 0  # Popen would wait for the process on its own when it is collected
        return cls(popen.pid, pidfd)

    def is_exiting(self) -> bool:
        """Dead but not yet reaped, or in the act of exiting."""
        if not self._is_exiting:  # there is no way back, and every tunnel of a dead process asks
            self._is_exiting = procfs.is_ending(self.pid)
        return self._is_exiting

    def signal_group(self, number: int) -> None:
        """Signal the process and its group; no error if they are gone or not ours to signal."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:  # it has moved itself to another group
                signal.pidfd_send_signal(self.pidfd, number)

    def reap(self) -> ExitStatus | None:
        """How the process ended, its zombie gone; None while it runs (or a debugger holds the zombie)."""
        try:
            info = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            # Our own starter made us ignore SIGCHLD, or somebody else in this process reaps every child.
            return ExitStatus()
        if info is None:
            return None
        is_exit = info.si_code == os.CLD_EXITED
        return ExitStatus(code=info.si_status) if is_exit else ExitStatus(signal=info.si_status)

    def close(self) -> None:
        """Stop watching."""
        os.close(self.pidfd)


def signal_orphans(group: int, number: int) -> None:
    """Signal what is left of a process group whose leader was reaped; no error if nothing is, or it is not ours."""
    if procfs.orphans_live(group):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
