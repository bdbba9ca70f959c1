"""Programs that run once per tunnel or per request, with a stream of it as their standard input and output."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any

from wstunnel.errors import BackendError, StartError, safe
from wstunnel.limits import Limits
from wstunnel.proto.cgi import is_variable
from wstunnel.supervise import procfs
from wstunnel.supervise.child import Child, ExitStatus, signal_orphans
from wstunnel.supervise.scripts import ScriptFolder
from wstunnel.supervise.spawn import CHILD_PATH, Program, check_program, find_program, spawn
from wstunnel.supervise.stderr import StderrPipe, printable

__all__ = ["Fork", "ForkProgram", "Forks"]

_log = logging.getLogger("wstunnel.supervise")

_NO_ROOM = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What the machine lacks for the moment; the program is as good as ever."""


@dataclass(frozen=True, slots=True)
class ForkProgram:
    """A program of the settings, or a folder of them.

    in      argv         empty where there are scripts
            environment  what every process of it has, whatever the request says
            scripts      each request names one of them
    bound   `max_forks` processes at once
    """

    name: str
    argv: tuple[str, ...]
    max_forks: int
    environment: Mapping[str, str] = field(default_factory=lambda: {"PATH": CHILD_PATH})
    kill_signal: int = signal.SIGTERM
    scripts: ScriptFolder | None = None


class _Kind:
    """The processes of one program."""

    __slots__ = (
        "failed",
        "forks",
        "found",
        "is_full_logged",
        "is_stubborn_logged",
        "program",
        "short_logged_s",
        "started",
        "trouble",
    )

    def __init__(self, program: ForkProgram, found: Program | None) -> None:
        self.program, self.found = program, found
        self.forks: set[Fork] = set()
        self.started = self.failed = 0
        self.trouble: str | None = None
        """Why it could not be started when that was last tried."""
        self.is_full_logged = self.is_stubborn_logged = False
        self.short_logged_s: float | None = None


class Forks:
    """Starts the programs of all stdio and cgi routes, watches them, and ends those whose tunnel or request is over.

    Whoever asks is not believed: nothing runs but what the settings name, with no variables but those of a request.

    in      programs        by the number of their route
            kill_timeout_s  from the kill signal to SIGKILL
    raises  StartError when a program is not there or may not be executed
    bound   a process costs two descriptors here: one to see its death, one to read its stderr. A pipe per program would
            save the second, but could not tell whose line it is, and would mix halves of lines. `reserved_fds` of them
            are left to others
    """

    def __init__(self, programs: Mapping[int, ForkProgram], limits: Limits, *, kill_timeout_s: float) -> None:
        self.limits = limits.spawn
        self._reserved_fds, self._log_every_s = limits.accept.reserved_fds, limits.accept.log_every_s
        self.kill_timeout_s = kill_timeout_s
        self.loop = asyncio.get_running_loop()
        self._kinds = {index: _Kind(program, _checked(program)) for index, program in programs.items()}
        self._is_stopping = False
        self._changed = asyncio.Event()

    def running(self, index: int) -> int:
        """Processes of a route, those that are being ended included."""
        return len(self._kinds[index].forks)

    def started(self, index: int) -> int:
        """Processes of a route that were started, ever."""
        return self._kinds[index].started

    def failed(self, index: int) -> int:
        """Starts that failed, ever."""
        return self._kinds[index].failed

    async def fork(self, index: int, environment: Mapping[str, str], stream: socket.socket, script: str = "") -> Fork:
        """A process of its own for a tunnel or a request.

        in      index        the number of the route
                environment  the request's variables
                stream       blocking; becomes its stdin and stdout, and stays the caller's
                script       its path under the folder of a route that has scripts
        out     to be released when the tunnel is over. It leads its own process group, in the program's folder, with
                no further descriptor; its stderr goes to our log
        raises  BackendError, with 503 when there are `max_forks` or the machine is short of something, with 502 when
                the program cannot be executed; 404 for what is no script, 403 for one that may not be executed
        """
        kind = self._kinds.get(index)
        if kind is None:
            raise BackendError(f"route {index} has no program", status=HTTPStatus.BAD_GATEWAY)
        _check_variables(environment)
        program = kind.program
        if self._is_stopping:
            raise BackendError(f"{program.name} is not started any more")
        if len(kind.forks) >= program.max_forks:
            self._note_full(kind)
            raise BackendError(f"max-forks = {program.max_forks} of {program.name} reached")
        if program.scripts is not None:
            fork = self._start_script(kind, program.scripts, script, environment, stream)
        elif script:
            raise BackendError(f"{program.name} runs no scripts", status=HTTPStatus.BAD_GATEWAY)
        else:
            fork = self._start_program(kind, environment, stream)
        kind.started += 1
        return fork

    def _start_program(self, kind: _Kind, environment: Mapping[str, str], stream: socket.socket) -> Fork:
        if kind.found is None:
            raise BackendError(f"{kind.program.name} is not started any more")
        try:
            fork = self._start(kind, kind.found, kind.program.name, environment, stream)
        except StartError as error:
            kind.failed += 1
            if _is_short(error):
                self._note_short(kind, error)
            elif str(error) != kind.trouble:
                kind.trouble = str(error)
                _log.error("%s; tunnels are refused meanwhile", error)
            raise _refusal(error) from error
        if kind.trouble is not None:
            kind.trouble = None
            _log.info("%s: can be started again", kind.program.name)
        return fork

    def _start_script(
        self, kind: _Kind, scripts: ScriptFolder, file: str, environment: Mapping[str, str], stream: socket.socket
    ) -> Fork:
        try:
            program = scripts.program(file)
        except StartError as error:
            kind.failed += 1
            raise BackendError(str(error), status=HTTPStatus.FORBIDDEN) from error
        if program is None:
            raise BackendError(f'"{safe(file)}" is no script of {scripts.root}', status=HTTPStatus.NOT_FOUND)
        name = printable(file.rpartition("/")[2].encode("utf-8", "surrogateescape"))
        given = {**environment, **scripts.variables(file, environment.get("PATH_INFO", ""))}
        try:
            return self._start(kind, program, name, given, stream)
        except StartError as error:
            kind.failed += 1
            if _is_short(error):
                self._note_short(kind, error)
            raise _refusal(error) from error

    def _start(
        self, kind: _Kind, program: Program, name: str, environment: Mapping[str, str], stream: socket.socket
    ) -> Fork:
        # Programs get the client's bytes, whatever encoding our own locale has.
        given = {name: os.fsdecode(value.encode("utf-8", "surrogateescape")) for name, value in environment.items()}
        try:
            read_fd, write_fd = self._pipe()
        except OSError as error:
            raise StartError(f"{program.option} {program.path}: no pipe for its log: {error.strerror}") from error
        try:
            child = spawn(
                program,
                stdin=stream.fileno(),
                stdout=stream.fileno(),
                stderr_fd=write_fd,
                environment={**given, **kind.program.environment},
            )
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        return Fork(self, kind, child.pid, child, read_fd, label=name)

    def _pipe(self) -> tuple[int, int]:
        """A pipe that is not made of the last descriptors: whoever starts programs needs some for other things too, a
        new worker or whoever asks for the state of it all."""
        read_fd, write_fd = os.pipe()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if write_fd >= soft - self._reserved_fds and soft != resource.RLIM_INFINITY:  # the kernel gives the lowest free
            os.close(read_fd)
            os.close(write_fd)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return read_fd, write_fd

    def _note_full(self, kind: _Kind) -> None:
        if not kind.is_full_logged:
            kind.is_full_logged = True
            _log.warning(
                "%s: max-forks = %d reached, further tunnels are refused; raise max-forks if this is usual load",
                kind.program.name,
                kind.program.max_forks,
            )

    def _note_short(self, kind: _Kind, error: StartError) -> None:
        now_s = self.loop.time()
        if kind.short_logged_s is None or now_s - kind.short_logged_s >= self._log_every_s:
            kind.short_logged_s = now_s
            _log.error(
                "%s; %d run and are unharmed, further tunnels are refused; raise the limit (ulimit -n and -u, "
                "LimitNOFILE, TasksMax) or lower max-forks",
                error,
                len(kind.forks),
            )

    def gone(self, kind: _Kind, fork: Fork) -> None:
        """Nothing of a process is left."""
        kind.forks.discard(fork)
        if len(kind.forks) <= kind.program.max_forks // 2:  # not at once: at its limit a route would write on and on
            kind.is_full_logged = False
        self._changed.set()

    async def stop(self) -> None:
        """End every process; start no more.

        bound   `kill_timeout_s` from the kill signal to SIGKILL, and as long (at least `exit_wait_s`) for what even
                SIGKILL cannot end
        """
        self._is_stopping = True
        for fork in self._all():
            fork.release()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.kill_timeout_s + self.reap_within_s):
                while self._all():
                    self._changed.clear()
                    await self._changed.wait()
        for fork in self._all():
            fork.abandon()

    def abort(self) -> None:
        """SIGKILL every process now; start no more. `stop`, waiting already or called later, does the rest."""
        self._is_stopping = True
        for fork in self._all():
            fork.kill()

    @property
    def reap_within_s(self) -> float:
        """How long SIGKILL may take."""
        return max(self.kill_timeout_s, self.limits.exit_wait_s)

    def _all(self) -> list[Fork]:
        return [fork for kind in self._kinds.values() for fork in kind.forks]

    # --- Handing over

    def export(self) -> dict[str, Any]:
        """What `adopt` needs to go on from here in another image of this process, for JSON.

        out     `fds`: every descriptor that must survive the exec
        """
        facts = [fork.facts(index) for index, kind in self._kinds.items() for fork in kind.forks]
        return {
            "programs": [[index, asdict(kind.program)] for index, kind in self._kinds.items()],
            "forks": facts,
            "fds": [each[name] for each in facts for name in ("pidfd", "stderr") if each[name] is not None],
        }

    @classmethod
    def adopt(cls, exported: Mapping[str, Any], limits: Limits, *, kill_timeout_s: float) -> Forks:
        """Go on where the Forks that said `exported` has stopped. Its programs are not looked for again: processes of
        one that is gone run on."""
        forks = cls({}, limits, kill_timeout_s=kill_timeout_s)
        for index, facts in exported["programs"]:
            scripts = facts.get("scripts")
            if scripts is not None:
                scripts = ScriptFolder(
                    scripts["root"],
                    tuple((suffix, program) for suffix, program in scripts["assign"]),
                    scripts.get("allows_strangers", False),
                )
            program = ForkProgram(**{**facts, "argv": tuple(facts["argv"]), "scripts": scripts})
            forks._kinds[index] = _Kind(program, Program(program.argv[0], program.argv[1:]) if program.argv else None)
        for fd in exported["fds"]:
            os.set_inheritable(fd, False)
        for facts in exported["forks"]:
            forks._adopt(**facts)
        return forks

    def by_pid(self) -> dict[int, Fork]:
        """Every process that is not quite gone."""
        return {fork.pid: fork for fork in self._all()}

    def _adopt(
        self, *, index: int, pid: int, pidfd: int | None, stderr: int, is_released: bool, label: str | None = None
    ) -> None:
        kind = self._kinds[index]
        child = None if pidfd is None else Child(pid, pidfd)
        fork = Fork(self, kind, pid, child, stderr, label=label or kind.program.name)
        if is_released:
            fork.release()


def _checked(program: ForkProgram) -> Program | None:
    if program.scripts is not None:
        program.scripts.check()
        return None
    found = find_program(program.argv, option="stdio")
    check_program(found)
    return found


def _check_variables(environment: Mapping[str, str]) -> None:
    """raises BackendError for what no request could have said"""
    for name, value in environment.items():
        if not is_variable(name) or "\0" in value:
            raise BackendError(f'"{safe(name)}" is no variable of a request', status=HTTPStatus.BAD_GATEWAY)


def _is_short(error: StartError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _NO_ROOM


def _refusal(error: StartError) -> BackendError:
    return BackendError(
        str(error), status=HTTPStatus.SERVICE_UNAVAILABLE if _is_short(error) else HTTPStatus.BAD_GATEWAY
    )


class Fork:
    """A program that runs for one tunnel, and what it has forked; counts until nothing of it is left.

    in      child      None: it has ended in an earlier image of this process, and left others of its group behind
            stderr_fd  the reading end of the pipe that is its stderr
            label      its name, for the log
    """

    __slots__ = (
        "_child",
        "_ended",
        "_forks",
        "_is_killed",
        "_is_released",
        "_kind",
        "_label",
        "_poll",
        "_poll_s",
        "_stderr",
        "_timer",
        "pid",
    )

    def __init__(self, forks: Forks, kind: _Kind, pid: int, child: Child | None, stderr_fd: int, *, label: str) -> None:
        self.pid, self._label = pid, label
        self._forks, self._kind, self._child = forks, kind, child
        self._stderr = StderrPipe(self.name, forks.limits, forks.loop, (stderr_fd, -1))
        self._ended: asyncio.Future[ExitStatus] = forks.loop.create_future()
        self._is_released = self._is_killed = False
        self._timer: asyncio.TimerHandle | None = None
        self._poll: asyncio.TimerHandle | None = None
        self._poll_s = forks.limits.group_poll_s
        kind.forks.add(self)
        if child is None:
            self._ended.set_result(ExitStatus())
        else:
            forks.loop.add_reader(child.pidfd, self._reap)

    @property
    def name(self) -> str:
        """The program's name and its pid, for the log."""
        return f"{self._label}[{self.pid}]"

    @property
    def last_words(self) -> str:
        """The last line that it has written to stderr, or the beginning of that; empty when there was none."""
        return printable(self._stderr.last_line[: self._forks.limits.quoted_line_bytes])

    def is_exiting(self) -> bool:
        """To be asked when the program has ended the stream: because it has ended, or is in the act of exiting?"""
        return self._child is None or self._child.is_exiting()

    async def exit_status(self) -> ExitStatus | None:
        """How it ended, awaited for `exit_wait_s` at most; None at once if it has not, or when nobody can tell."""
        if self.is_exiting():
            await asyncio.wait((self._ended,), timeout=self._forks.limits.exit_wait_s)
        return self._ended.result() if self._ended.done() and self._ended.result().is_known else None

    async def wait(self) -> ExitStatus:
        """How it ended, awaited for as long as it runs."""
        return await asyncio.shield(self._ended)

    def release(self) -> None:
        """The tunnel is over: what still runs gets the kill signal, SIGKILL `kill_timeout_s` later, and is reaped.
        Nobody waits for that. A second call does nothing.
        """
        if self._is_released:
            return
        self._is_released = True
        self._signal(self._kind.program.kill_signal)
        self._timer = self._forks.loop.call_later(self._forks.kill_timeout_s, self._escalate)
        self._look()

    def kill(self) -> None:
        """SIGKILL, now."""
        self._is_released = True
        if not self._is_killed:
            self._kill()

    def abandon(self) -> None:
        """Forget what even SIGKILL has not ended."""
        if self._child is not None:
            self._forks.loop.remove_reader(self._child.pidfd)
            self._child.close()
            self._child = None
            self._ended.set_result(ExitStatus())
        _log.error("%s: still running after SIGKILL and left behind", self.name)
        self._finish()

    def facts(self, index: int) -> dict[str, Any]:
        """What `Forks.adopt` needs to know of it."""
        return {
            "index": index,
            "pid": self.pid,
            "pidfd": None if self._child is None else self._child.pidfd,
            "stderr": self._stderr.fds[0],
            "label": self._label,
            "is_released": self._is_released,
        }

    def _signal(self, number: int) -> None:
        if self._child is not None:
            self._child.signal_group(number)
        else:
            signal_orphans(self.pid, number)

    def _reap(self) -> None:
        status = None if self._child is None else self._child.reap()
        if self._child is None or status is None:
            return
        self._forks.loop.remove_reader(self._child.pidfd)
        self._child.close()
        self._child = None
        self._stderr.flush()  # its last words stand before whatever is said of its end
        _log.debug("%s: %s", self.name, status)
        self._ended.set_result(status)
        self._look()

    def _look(self) -> None:
        """Finish once the whole group is gone. Nobody tells us of the death of a process that is not our child, so we
        look, at ever longer intervals."""
        if self._child is not None or not self._is_released:
            return
        if not procfs.orphans_live(self.pid):
            self._finish()
            return
        self._poll = self._forks.loop.call_later(self._poll_s, self._look)
        self._poll_s *= 2

    def _escalate(self) -> None:
        """A time is over, and something of the process still runs."""
        if not self._is_killed:
            level = logging.DEBUG if self._kind.is_stubborn_logged else logging.WARNING
            self._kind.is_stubborn_logged = True
            within_s = self._forks.kill_timeout_s
            _log.log(level, "%s: still running %.1f s after the kill signal; sending SIGKILL", self.name, within_s)
            self._kill()
        elif self._child is None:
            self.abandon()
        else:  # it sleeps in the kernel: it counts, and is reaped when it wakes
            _log.error("%s: still running after SIGKILL", self.name)

    def _kill(self) -> None:
        self._is_killed = True
        self._cancel_timers()
        self._signal(signal.SIGKILL)
        self._timer = self._forks.loop.call_later(self._forks.reap_within_s, self._escalate)
        self._poll_s = self._forks.limits.group_poll_s
        self._look()

    def _finish(self) -> None:
        self._cancel_timers()
        self._stderr.close()
        self._forks.gone(self._kind, self)

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._poll):
            if timer is not None:
                timer.cancel()
