"""Processes of the bench: where they run, what they and their children cost, and that none is left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import IO

__all__ = ["Cpus", "Process", "cpu_s", "descriptors", "free_port", "memory_bytes", "raise_descriptors"]

_START_WITHIN_S = 15.0
_STOP_WITHIN_S = 1.0
_PR_SET_PDEATHSIG = 1
_CPUCLOCK_SCHED = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


class Cpus:
    """Which processor the servers have for themselves, and which one clients and backends share."""

    def __init__(self) -> None:
        allowed = sorted(os.sched_getaffinity(0))
        self.server = allowed[0]
        self.load = allowed[1] if len(allowed) > 1 else allowed[0]

    @property
    def are_apart(self) -> bool:
        return self.server != self.load


class Process:
    """A program on one processor, in a process group of its own that ends with the bench."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cpu: int,
        log: str,
        pipes: bool = False,
        environment: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> None:
        def settle() -> None:
            os.sched_setaffinity(0, {cpu})
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        self.name = os.path.basename(command[0])
        self._log = log
        with open(log, "ab") as output:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else output,
                stderr=output,
                env=os.environ | (environment or {}),
                cwd=cwd,
                start_new_session=True,
                preexec_fn=settle,  # noqa: PLW1509 - the bench has one thread
                text=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    @property
    def stdin(self) -> IO[str]:
        assert self._popen.stdin is not None
        return self._popen.stdin

    @property
    def stdout(self) -> IO[str]:
        assert self._popen.stdout is not None
        return self._popen.stdout

    def last_words(self) -> str:
        """The end of what it logged."""
        with contextlib.suppress(OSError), open(self._log, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
            return lines[-1][:300] if lines else ""
        return ""

    def how_it_ended(self) -> str:
        """Exit code or signal, and what it said last."""
        return f"{self._popen.poll()}, {self.last_words() or 'and said nothing'}"

    def listens_within(self, port: int) -> bool:
        """Whether it takes connections at that port before it ends or the time is over."""
        deadline_s = time.monotonic() + _START_WITHIN_S
        while time.monotonic() < deadline_s and self.is_running:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            time.sleep(0.02)
        return False

    def tree(self, but: str) -> list[int]:
        """It and all its descendants, except those that run the program `but` and theirs."""
        found, todo = [], [self.pid]
        while todo:
            pid = todo.pop()
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe") == but:
                    continue
                found.append(pid)
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                        todo += map(int, file.read().split())
        return found

    def stop(self) -> None:
        """End it and all its descendants."""
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        descendants = self.tree(but="")
        self._popen.terminate()
        try:
            self._popen.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        for pid in descendants:  # that it did not end
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def cpu_s(pids: Sequence[int]) -> float:
    """Seconds of CPU that these processes have taken so far."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += time.clock_gettime(_process_clock(pid))
    return total


def _process_clock(pid: int) -> int:
    """The kernel's CPU clock of a process, as clock_getcpuclockid(3) makes it."""
    return (~pid << 3) | _CPUCLOCK_SCHED


def memory_bytes(pids: Sequence[int]) -> int:
    """Memory of these processes; what several share is shared out (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total += sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    return total


def free_port() -> int:
    """A TCP port that nothing listens at just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def raise_descriptors(wanted: int) -> None:
    """As many descriptors as are wanted, for us and for whom we start, or as many as we are allowed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < wanted:
        with contextlib.suppress(ValueError, OSError):  # not root
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, wanted), hard))


def descriptors() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
