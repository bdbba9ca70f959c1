"""Programs per tunnel, really started: what they get, how their end is seen, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import Run, children, open_descriptors
from wstunnel.errors import BackendError, StartError
from wstunnel.limits import Limits, SpawnLimits
from wstunnel.supervise import procfs
from wstunnel.supervise.child import Child, ExitStatus
from wstunnel.supervise.forks import Fork, ForkProgram, Forks
from wstunnel.supervise.scripts import ScriptFolder
from wstunnel.supervise.spawn import CHILD_PATH

DEADLINE_S = 20.0
NEVER_S = 1000.0
"""A kill timeout that no test waits for."""
CAT = ForkProgram("cat", ("cat",), 1000)


async def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "what was waited for did not happen"
        await asyncio.sleep(0.002)


def shell(script: str, *, max_forks: int = 1000, **more: Any) -> ForkProgram:
    return ForkProgram("sh", ("sh", "-c", script), max_forks, **more)


@contextlib.asynccontextmanager
async def forks_of(*programs: ForkProgram, kill_timeout_s: float = NEVER_S, **limits: float) -> AsyncIterator[Forks]:
    """Stopped at the end, with nothing left of them."""
    fds, running = open_descriptors(), children()
    forks = Forks(dict(enumerate(programs)), Limits(spawn=SpawnLimits(**limits)), kill_timeout_s=kill_timeout_s)
    try:
        yield forks
    finally:
        forks.abort()
        await forks.stop()
    assert open_descriptors().items() <= fds.items() | open_descriptors_of_loop().items()
    assert children() <= running


def open_descriptors_of_loop() -> dict[int, str]:
    """What a loop opens when it is first needed."""
    return {fd: what for fd, what in open_descriptors().items() if "eventpoll" in what or "eventfd" in what}


class Stream:
    """Our end of a program's stream."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()

    async def say(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.sock, data)

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    async def read(self) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self.loop.sock_recv(self.sock, 65536)

    async def line(self) -> bytes:
        got = b""
        while not got.endswith(b"\n"):
            some = await self.read()
            assert some, f"the program ended its stream after {got!r}"
            got += some
        return got

    async def read_to_end(self) -> bytes:
        got = b""
        while some := await self.read():
            got += some
        return got


@contextlib.asynccontextmanager
async def forked(
    forks: Forks, index: int = 0, environment: dict[str, str] | None = None, script: str = ""
) -> AsyncIterator[tuple[Fork, Stream]]:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            fork = await forks.fork(index, environment or {}, theirs, script)
        ours.setblocking(False)
        yield fork, Stream(ours)


async def refused(
    forks: Forks, index: int = 0, environment: dict[str, str] | None = None, script: str = ""
) -> BackendError:
    with pytest.raises(BackendError) as caught:
        async with forked(forks, index, environment, script):
            pass
    return caught.value


def levels(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.message) for record in caplog.records if record.name == "wstunnel.supervise"]


# --- what a program gets


def test_a_program_has_the_stream_as_its_input_and_output(run: Run):
    async def main() -> None:
        async with forks_of(CAT) as forks, forked(forks) as (fork, stream):
            await stream.say(b"one\n")
            assert await stream.line() == b"one\n"
            await stream.say(b"last words")
            stream.end()
            assert await stream.read_to_end() == b"last words"
            assert await fork.wait() == ExitStatus(code=0)

    run(main())


def test_a_program_has_three_descriptors_and_no_more(run: Run):
    async def main() -> None:
        os.set_inheritable(stray, True)
        async with forks_of(ForkProgram("ls", ("ls", "-l", "/proc/self/fd"), 1)) as forks, forked(forks) as (_, stream):
            dump = (await stream.read_to_end()).decode()
        found = dict(re.findall(r" (\d+) -> (\S+)\n", dump))
        assert found.pop("3").startswith("/proc/"), "where ls itself looks"
        assert {fd: what.split(":")[0] for fd, what in found.items()} == {"0": "socket", "1": "socket", "2": "pipe"}

    stray = os.open(os.devnull, os.O_RDONLY)
    try:
        run(main())
    finally:
        os.close(stray)


def test_the_environment_is_the_requests_variables_and_the_programs_own(run: Run, monkeypatch):
    """The program's own wins: no request changes what the operator has set. Nothing of ours gets in."""

    async def main() -> None:
        program = ForkProgram("env", ("env", "-0"), 1, {"PATH": CHILD_PATH, "HTTP_ROOM": "red"})
        given = {"HTTP_ROOM": "blue", "HTTP_X": "caf\u00e9", "PATH_INFO": "/\udcff \udce9"}
        async with forks_of(program) as forks, forked(forks, 0, given) as (_, stream):
            found = dict(entry.split(b"=", 1) for entry in (await stream.read_to_end()).split(b"\0") if entry)
        assert found == {
            b"PATH": CHILD_PATH.encode(),
            b"HTTP_ROOM": b"red",
            b"HTTP_X": b"caf\xc3\xa9",
            b"PATH_INFO": b"/\xff \xe9",
        }

    monkeypatch.setenv("SECRET", "hunter2")
    run(main())


def test_values_keep_their_bytes_whatever_our_own_locale_is(run: Run, monkeypatch):
    """With the encoding of a Latin-1 locale, that of Python's file names."""

    async def main() -> None:
        async with forks_of(ForkProgram("env", ("env", "-0"), 1)) as forks:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsdecode", lambda raw: raw.decode("latin-1"))
                patch.setattr(os, "fsencode", lambda text: text.encode("latin-1") if isinstance(text, str) else text)
                async with forked(forks, 0, {"HTTP_A": "€\udcff"}) as (_, stream):
                    assert b"HTTP_A=\xe2\x82\xac\xff\0" in await stream.read_to_end()

    run(main())


def test_a_program_runs_in_its_folder_and_leads_a_group_of_its_own(run: Run, tmp_path):
    async def main() -> None:
        program = tmp_path / "where.sh"
        program.write_text("#!/bin/sh\npwd\nread x\n")
        program.chmod(0o755)
        async with forks_of(ForkProgram("where.sh", (str(program),), 1)) as forks, forked(forks) as (fork, stream):
            assert await stream.line() == f"{tmp_path}\n".encode()
            assert os.getpgid(fork.pid) == fork.pid != os.getpgid(0)

    run(main())


def test_every_line_of_stderr_is_logged_with_name_and_pid(run: Run, caplog):
    async def main() -> None:
        program = shell("read x; echo one >&2; printf two >&2")
        async with forks_of(program) as forks, forked(forks) as (first, stream), forked(forks) as (second, other):
            for each in (other, stream):
                await each.say(b"\n")
                await each.read_to_end()
            await first.wait()
            await second.wait()
            pids.extend((second.pid, first.pid))

    pids: list[int] = []
    caplog.set_level(logging.INFO, "wstunnel.backend")
    run(main())

    said = [record.message for record in caplog.records if record.name == "wstunnel.backend"]
    assert sorted(said) == sorted(f"sh[{pid}]: {line}" for pid in pids for line in ("one", "two"))


def test_a_closed_stderr_costs_no_processor_time(run: Run):
    """Its pipe is at its end, and would be readable for ever."""

    async def main() -> None:
        async with forks_of(shell("exec 2>&-; echo; exec cat")) as forks, forked(forks) as (_, stream):
            await stream.line()
            used_s = time.process_time()
            await asyncio.sleep(0.2)
            assert time.process_time() - used_s < 0.1

    run(main())


# --- how its end is seen


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", ExitStatus(code=0)),
        ("exit 3", ExitStatus(code=3)),
        ("kill -KILL $$", ExitStatus(signal=signal.SIGKILL)),
    ],
)
def test_how_a_program_ended_is_known_when_its_stream_has_ended(run: Run, script, status):
    """The kernel marks a process as exiting before it closes its stream."""

    async def main() -> None:
        async with forks_of(shell(script)) as forks, forked(forks) as (fork, stream):
            await stream.read_to_end()
            assert fork.is_exiting()
            assert await fork.exit_status() == status
            assert await fork.wait() == status

    run(main())


def test_a_program_that_ends_its_output_and_lives_on_is_not_exiting_nor_waited_for(run: Run):
    async def main() -> None:
        program = shell("exec <&- >&-; sleep 1000")
        async with forks_of(program, exit_wait_s=NEVER_S) as forks, forked(forks) as (fork, stream):
            await stream.read_to_end()
            assert not fork.is_exiting()
            async with asyncio.timeout(DEADLINE_S):
                assert await fork.exit_status() is None

    run(main())


def test_a_status_that_does_not_come_is_awaited_for_its_time_only(run: Run, monkeypatch):
    async def main() -> None:
        async with forks_of(CAT, exit_wait_s=0.01) as forks, forked(forks) as (fork, _):
            monkeypatch.setattr(Child, "is_exiting", lambda child: True)
            assert await fork.exit_status() is None

    run(main())


def test_waiting_for_an_end_can_be_called_off(run: Run):
    async def main() -> None:
        async with forks_of(CAT) as forks, forked(forks) as (fork, stream):
            waiting = asyncio.ensure_future(fork.wait())
            await asyncio.sleep(0)
            waiting.cancel()
            stream.end()
            assert await fork.wait() == ExitStatus(code=0)

    run(main())


# --- how it is ended


def test_a_program_whose_tunnel_is_over_gets_its_kill_signal(run: Run):
    async def main() -> None:
        script = "trap 'echo bye; exit 7' USR1; echo; while :; do sleep 0.01; done"
        async with forks_of(shell(script, kill_signal=signal.SIGUSR1)) as forks, forked(forks) as (fork, stream):
            await stream.line()
            fork.release()
            assert await stream.read_to_end() == b"bye\n"
            assert await fork.wait() == ExitStatus(code=7)
            await until(lambda: forks.running(0) == 0)

    run(main())


def test_a_tunnel_is_over_once_only(run: Run, monkeypatch):
    async def main() -> None:
        async with forks_of(CAT) as forks, forked(forks) as (fork, _):
            with monkeypatch.context() as patch:
                patch.setattr(Child, "signal_group", lambda child, number: signals.append(number))
                fork.release()
                fork.release()

    signals: list[int] = []
    run(main())

    assert signals == [signal.SIGTERM]


@pytest.mark.parametrize("ending", ["release", "kill"])
def test_nothing_is_done_when_its_time_is_over_to_one_that_is_gone_by_then(run: Run, ending, caplog):
    async def main() -> None:
        script = "echo; exec cat" if ending == "release" else "trap '' TERM; echo; while :; do sleep 1000; done"
        async with (
            forks_of(shell(script), kill_timeout_s=0.1, exit_wait_s=0.1) as forks,
            forked(forks) as (fork, stream),
        ):
            await stream.line()
            fork.release()
            if ending == "kill":
                fork.kill()
            await until(lambda: forks.running(0) == 0)
            over = asyncio.Event()
            asyncio.get_running_loop().call_later(0.11, over.set)
            await over.wait()

    caplog.set_level(logging.INFO, "wstunnel.supervise")
    run(main())

    assert levels(caplog) == []


def test_one_that_ignores_it_gets_sigkill_after_kill_timeout_and_that_is_said_once(run: Run, caplog):
    async def main() -> None:
        script = "trap '' TERM; echo; while :; do sleep 1000; done"
        async with forks_of(shell(script), kill_timeout_s=0.05) as forks:
            for _ in range(2):
                async with forked(forks) as (fork, stream):
                    await stream.line()
                    began_s = time.monotonic()
                    fork.release()
                    assert await fork.wait() == ExitStatus(signal=signal.SIGKILL)
                    assert time.monotonic() - began_s >= 0.05
                    await until(lambda: forks.running(0) == 0)
                    pids.append(fork.pid)

    pids: list[int] = []
    caplog.set_level(logging.INFO, "wstunnel.supervise")
    run(main())

    assert levels(caplog) == [
        ("WARNING", f"sh[{pids[0]}]: still running 0.1 s after the kill signal; sending SIGKILL"),
    ]


@pytest.mark.parametrize("when", ["before its tunnel", "after its tunnel"])
@pytest.mark.parametrize("is_stubborn", [False, True])
def test_what_a_program_has_forked_ends_with_its_tunnel(run: Run, when, is_stubborn):
    """The program itself has ended by then, or ends at the kill signal."""

    async def main() -> None:
        child = "trap '' TERM; echo $$; while :; do sleep 1000; done" if is_stubborn else "echo $$; exec sleep 1000"
        last = "exit 0" if when == "before its tunnel" else "wait"
        script = f'sh -c "{child.replace("$", chr(92) + "$")}" & {last}'
        kill_timeout_s = 0.05 if is_stubborn else NEVER_S
        async with forks_of(shell(script), kill_timeout_s=kill_timeout_s) as forks, forked(forks) as (fork, stream):
            pid = int(await stream.line())
            if when == "before its tunnel":
                await fork.wait()
            assert not procfs.is_gone_or_ending(pid)
            assert forks.running(0) == 1
            fork.release()
            await until(lambda: forks.running(0) == 0)
            assert procfs.is_gone_or_ending(pid)

    run(main())


def test_a_program_that_has_ended_is_forgotten_when_its_tunnel_is(run: Run):
    async def main() -> None:
        async with forks_of(shell("exit 0")) as forks, forked(forks) as (fork, _):
            await fork.wait()
            assert forks.running(0) == 1
            fork.release()
            assert forks.running(0) == 0

    run(main())


def test_stop_ends_every_program_and_starts_no_more(run: Run):
    async def main() -> None:
        async with forks_of(CAT) as forks, forked(forks) as (first, _), forked(forks) as (second, _):
            await forks.stop()
            assert await first.wait() == await second.wait() == ExitStatus(signal=signal.SIGTERM)
            assert str(await refused(forks)) == "cat is not started any more"

    run(main())


def test_abort_makes_a_stop_that_waits_end_at_once(run: Run):
    async def main() -> None:
        program = shell("trap '' TERM; echo; while :; do sleep 1000; done")
        async with forks_of(program) as forks, forked(forks) as (fork, stream):
            await stream.line()
            stopping = asyncio.ensure_future(forks.stop())
            await asyncio.sleep(0)
            forks.abort()
            async with asyncio.timeout(DEADLINE_S):
                await stopping
            assert await fork.wait() == ExitStatus(signal=signal.SIGKILL)

    run(main())


def test_what_even_sigkill_does_not_end_is_left_behind_by_stop_and_said_so(run: Run, monkeypatch, caplog):
    async def main() -> None:
        async with forks_of(CAT, kill_timeout_s=0.01, exit_wait_s=0.05) as forks, forked(forks) as (fork, _):
            with monkeypatch.context() as patch:
                patch.setattr(Child, "signal_group", lambda child, number: None)
                await forks.stop()
            assert forks.running(0) == 0
            assert await fork.wait() == ExitStatus()
            assert await fork.exit_status() is None
            os.kill(fork.pid, signal.SIGKILL)
            os.waitpid(fork.pid, 0)  # noqa: ASYNC222

    run(main())

    assert levels(caplog)[-1][1].endswith("still running after SIGKILL and left behind")


def test_what_even_sigkill_does_not_end_of_what_was_forked_is_left_behind(run: Run, monkeypatch, caplog):
    """Nobody would tell us of its end."""

    async def main() -> None:
        killpg = os.killpg
        program = shell("(echo; exec sleep 1000) & exit 0")
        async with forks_of(program, kill_timeout_s=0.01, exit_wait_s=0.01) as forks, forked(forks) as (fork, stream):
            await stream.line()
            await fork.wait()
            with monkeypatch.context() as patch:
                patch.setattr(os, "killpg", lambda group, number: killpg(group, 0))
                fork.release()
                await until(lambda: forks.running(0) == 0)
            killpg(fork.pid, signal.SIGKILL)

    run(main())

    assert [level for level, _ in levels(caplog)] == ["WARNING", "ERROR"]
    assert levels(caplog)[-1][1].endswith("still running after SIGKILL and left behind")


def test_what_even_sigkill_does_not_end_counts_until_it_ends(run: Run, monkeypatch, caplog):
    async def main() -> None:
        async with forks_of(CAT, kill_timeout_s=0.01, exit_wait_s=0.01) as forks, forked(forks) as (fork, stream):
            with monkeypatch.context() as patch:
                patch.setattr(Child, "signal_group", lambda child, number: None)
                fork.release()
                await until(lambda: len(levels(caplog)) == 2)
            assert forks.running(0) == 1
            stream.end()
            await until(lambda: forks.running(0) == 0)

    run(main())

    assert [level for level, _ in levels(caplog)] == ["WARNING", "ERROR"]


# --- bounds and troubles


def test_no_more_than_max_forks_run_at_once_and_that_is_said_once(run: Run, caplog):
    async def main() -> None:
        async with forks_of(ForkProgram("cat", ("cat",), 50)) as forks, contextlib.AsyncExitStack() as stack:
            results = await asyncio.gather(
                *(stack.enter_async_context(forked(forks)) for _ in range(200)), return_exceptions=True
            )
            served = [result for result in results if isinstance(result, tuple)]
            errors = [result for result in results if isinstance(result, BackendError)]
            assert (len(served), len(errors)) == (50, 150)
            assert {(str(error), error.status) for error in errors} == {("max-forks = 50 of cat reached", 503)}
            for number, (_, stream) in enumerate(served):
                await stream.say(b"%d\n" % number)
            for number, (_, stream) in enumerate(served):
                assert await stream.line() == b"%d\n" % number

            served[0][0].release()
            await until(lambda: forks.running(0) == 49)
            await stack.enter_async_context(forked(forks))
            await refused(forks)

    caplog.set_level(logging.INFO, "wstunnel.supervise")
    run(main())

    assert levels(caplog) == [
        ("WARNING", "cat: max-forks = 50 reached, further tunnels are refused; raise max-forks if this is usual load"),
    ]


def test_a_program_that_was_full_says_so_again_after_it_was_half_empty(run: Run, caplog):
    async def main() -> None:
        async with forks_of(ForkProgram("cat", ("cat",), 2)) as forks, forked(forks):
            for _ in range(2):
                async with forked(forks) as (fork, _):
                    await refused(forks)
                    fork.release()
                    await until(lambda: forks.running(0) == 1)

    run(main())

    assert [level for level, _ in levels(caplog)] == ["WARNING", "WARNING"]


def test_programs_do_not_count_for_each_other(run: Run):
    async def main() -> None:
        one = ForkProgram("cat", ("cat",), 1)
        async with forks_of(one, one) as forks, forked(forks, 0), forked(forks, 1):
            assert [forks.running(index) for index in (0, 1)] == [1, 1]
            assert [forks.started(index) for index in (0, 1)] == [1, 1]
            await refused(forks, 0)

    run(main())


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("no-such-program",), "stdio no-such-program: no such program in /usr/local/sbin:"),
        (("/no/such/program",), "stdio /no/such/program: does not exist; correct the path or install the program"),
        (("/etc/passwd",), "stdio /etc/passwd: is not executable for this user; chmod"),
        (("/etc",), "stdio /etc: is a folder; name the program in it"),
    ],
)
def test_a_program_that_cannot_be_had_is_seen_at_the_start(run: Run, argv, why):
    async def main() -> None:
        with pytest.raises(StartError, match=re.escape(why)):
            Forks({0: ForkProgram("x", argv, 1)}, Limits(), kill_timeout_s=1.0)

    run(main())


def test_a_program_that_goes_away_is_said_once_and_when_it_comes_again(run: Run, tmp_path, caplog):
    async def main() -> None:
        async with forks_of(ForkProgram("echo.sh", (str(path),), 10)) as forks:
            path.unlink()
            for _ in range(3):
                error = await refused(forks)
                assert (error.status, str(error)) == (502, why)
            assert forks.failed(0) == 3
            path.write_text("echo hello\n")
            path.chmod(0o755)
            await refused(forks)
            write()
            for _ in range(2):
                async with forked(forks) as (_, stream):
                    assert await stream.read_to_end() == b"hello\n"

    def write() -> None:
        path.write_text("#!/bin/sh\necho hello\n")
        path.chmod(0o755)

    path = tmp_path / "echo.sh"
    why = f"stdio {path}: does not exist; correct the path or install the program"
    write()
    caplog.set_level(logging.INFO, "wstunnel.supervise")
    run(main())

    assert levels(caplog) == [
        ("ERROR", f"{why}; tunnels are refused meanwhile"),
        (
            "ERROR",
            f"stdio {path}: is neither a binary of this machine nor a script with a #! line; add one; "
            "tunnels are refused meanwhile",
        ),
        ("INFO", "echo.sh: can be started again"),
    ]


def test_without_a_descriptor_for_its_log_nothing_is_started_and_that_is_not_said_each_time(
    run: Run, monkeypatch, caplog
):
    """At the limit one succeeds now and then."""

    async def main() -> None:
        def fail() -> None:
            raise OSError(24, "Too many open files")

        async with forks_of(CAT) as forks, forked(forks):
            for now_s, said in ((5.0, 1), (14.0, 1), (16.0, 2)):
                with monkeypatch.context() as patch:
                    patch.setattr(os, "pipe", fail)
                    patch.setattr(forks, "loop", Clock(now_s))
                    error = await refused(forks)
                assert error.status == 503
                assert re.fullmatch(r"stdio /.*/cat: no pipe for its log: Too many open files", str(error))
                async with forked(forks):
                    assert len(levels(caplog)) == said

    caplog.set_level(logging.INFO, "wstunnel.supervise")
    run(main())

    level, text = levels(caplog)[0]
    assert level == "ERROR"
    assert "; 1 run and are unharmed, further tunnels are refused; raise the limit" in text


def test_the_last_descriptors_are_left_to_others(run: Run, monkeypatch):
    """To a new worker, or to whoever asks for the state of it all."""

    async def main() -> None:
        async with forks_of(CAT) as forks, forked(forks):
            before = open_descriptors()
            with monkeypatch.context() as patch:
                patch.setattr(resource, "getrlimit", lambda what: (64 + 3, 4096))
                assert "no pipe for its log: Too many open files" in str(await refused(forks))
            assert open_descriptors() == before
            for soft in (4096, resource.RLIM_INFINITY):
                with monkeypatch.context() as patch:
                    patch.setattr(resource, "getrlimit", lambda what, soft=soft: (soft, 4096))
                    async with forked(forks):
                        pass

    run(main())


class Clock:
    """A loop that knows the time, and nothing else."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def time(self) -> float:
        return self.now_s


def test_without_a_descriptor_to_watch_it_nothing_is_left_running(run: Run, monkeypatch):
    async def main() -> None:
        def fail(pid: int) -> None:
            raise OSError(24, "Too many open files")

        async with forks_of(CAT) as forks:
            with monkeypatch.context() as patch:
                patch.setattr(os, "pidfd_open", fail)
                error = await refused(forks)
            assert error.status == 503

    run(main())


# --- scripts


@pytest.fixture
def folder(tmp_path) -> ForkProgram:
    """Scripts of a route, and a program beside them that is none of its."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    for name, text in (("sub/a.sh", "pwd; echo $0; env; echo why >&2"), ("b.cgi", "echo"), ("text", "echo")):
        (root / name).write_text(text)
    (tmp_path / "outside.sh").write_text("echo outside")
    (root / "link.sh").symlink_to("../outside.sh")
    return ForkProgram("/cgi", (), 5, scripts=ScriptFolder(str(root), ((".sh", "/bin/sh"), (".cgi", ""))))


def test_a_script_runs_in_its_folder_and_is_told_of_its_place_by_us(run: Run, folder, tmp_path, caplog):
    """Not by who asks: php-cgi runs what SCRIPT_FILENAME says."""

    async def main() -> None:
        lie = {"SCRIPT_FILENAME": "/etc/passwd", "DOCUMENT_ROOT": "/", "PATH_INFO": "/x", "PATH_TRANSLATED": "/etc"}
        async with forks_of(folder) as forks, forked(forks, 0, lie, "sub/a.sh") as (fork, stream):
            first, second, *rest = (await stream.read_to_end()).decode().splitlines()
            assert (first, second) == (f"{tmp_path}/root/sub", f"{tmp_path}/root/sub/a.sh")
            assert {
                f"DOCUMENT_ROOT={tmp_path}/root",
                f"SCRIPT_FILENAME={tmp_path}/root/sub/a.sh",
                f"PATH_TRANSLATED={tmp_path}/root/x",
                "PATH_INFO=/x",
            } <= set(rest)
            await fork.wait()
            assert fork.last_words == "why"
            assert fork.name == f"a.sh[{fork.pid}]"
            assert forks.started(0) == 1

    with caplog.at_level(logging.INFO, "wstunnel.backend"):
        run(main())
    assert any(re.fullmatch(r"a\.sh\[\d+\]: why", record.message) for record in caplog.records)


@pytest.mark.parametrize(
    "script", ["", "../outside.sh", "link.sh", "text", "/etc/passwd", "sub/../sub/a.sh", "sub/a.sh/x"]
)
def test_who_names_what_is_no_script_of_the_route_gets_nothing(run: Run, folder, script):
    """A worker that was taken over says whatever it likes."""

    async def main() -> None:
        async with forks_of(folder) as forks:
            error = await refused(forks, script=script)
            assert (error.status, forks.started(0)) == (404, 0)
            assert str(error).startswith(f'"{script}" is no script of ')

    run(main())


def test_who_names_a_script_where_there_are_none_or_no_such_route_gets_nothing(run: Run):
    async def main() -> None:
        async with forks_of(CAT) as forks:
            error = await refused(forks, script="a.sh")
            assert (error.status, str(error)) == (502, "cat runs no scripts")
            error = await refused(forks, index=1)
            assert (error.status, str(error)) == (502, "route 1 has no program")

    run(main())


@pytest.mark.parametrize(
    ("name", "value"),
    [("LD_PRELOAD", "/evil.so"), ("PATH", "/evil"), ("HTTP_PROXY", "evil"), ("HTTP_A", "b\0"), ("", "")],
)
def test_no_variable_is_passed_on_that_no_request_could_say(run: Run, name, value):
    async def main() -> None:
        async with forks_of(CAT) as forks:
            error = await refused(forks, environment={name: value})
            assert (error.status, str(error)) == (502, f'"{name}" is no variable of a request')

    run(main())


def test_a_script_that_may_not_be_executed_is_forbidden(run: Run, folder):
    async def main() -> None:
        async with forks_of(folder) as forks:
            error = await refused(forks, script="b.cgi")
            assert (error.status, forks.failed(0)) == (403, 1)
            assert "is not executable for this user" in str(error)

    run(main())


def test_a_script_that_cannot_be_started_is_a_bad_gateway(run: Run, folder, tmp_path):
    async def main() -> None:
        script = tmp_path / "root" / "b.cgi"
        script.write_text("#!/nowhere/sh\n")
        script.chmod(0o755)
        async with forks_of(folder) as forks:
            error = await refused(forks, script="b.cgi")
            assert (error.status, forks.failed(0)) == (502, 1)
            assert "names an interpreter that does not exist" in str(error)

    run(main())


def test_without_room_for_a_script_it_is_refused_for_the_moment(run: Run, folder, monkeypatch):
    async def main() -> None:
        def fail() -> tuple[int, int]:
            raise OSError(24, "Too many open files")

        async with forks_of(folder) as forks:
            with monkeypatch.context() as patch:
                patch.setattr(os, "pipe", fail)
                error = await refused(forks, script="sub/a.sh")
            assert error.status == 503

    run(main())


def test_a_folder_of_scripts_that_is_not_there_is_seen_at_once(run: Run):
    async def main() -> None:
        with pytest.raises(StartError, match="docroot /nowhere"):
            Forks({0: ForkProgram("/cgi", (), 1, scripts=ScriptFolder("/nowhere", ()))}, Limits(), kill_timeout_s=1.0)

    run(main())


@pytest.mark.parametrize("allows_strangers", [True, False])
def test_whose_scripts_are_run_is_known_to_another_image_of_the_process(run: Run, folder, allows_strangers):
    async def main() -> None:
        scripts = replace(folder.scripts, allows_strangers=allows_strangers)
        before = Forks({3: replace(folder, scripts=scripts)}, Limits(), kill_timeout_s=NEVER_S)
        after = Forks.adopt(json.loads(json.dumps(before.export())), Limits(), kill_timeout_s=NEVER_S)
        assert after._kinds[3].program.scripts == scripts

    run(main())


def test_scripts_go_on_and_can_be_started_in_another_image_of_the_process(run: Run, folder, tmp_path):
    async def main() -> None:
        (tmp_path / "root" / "wait.sh").write_text("read x; echo $x")
        before = Forks({3: folder}, Limits(), kill_timeout_s=NEVER_S)
        async with forked(before, 3, script="wait.sh") as (fork, stream):
            facts = json.loads(json.dumps(before.export()))
            forget(before)
            after = Forks.adopt(facts, Limits(), kill_timeout_s=NEVER_S)
            (adopted,) = after.by_pid().values()
            assert adopted.name == fork.name == f"wait.sh[{fork.pid}]"
            await stream.say(b"still here\n")
            assert await stream.line() == b"still here\n"
            async with forked(after, 3, script="sub/a.sh") as (second, other):
                await other.read_to_end()
                await second.wait()
                second.release()
            await adopted.wait()
            adopted.release()
            assert after.running(3) == 0

    run(main())


# --- handing over


def test_programs_go_on_in_another_image_of_the_process(run: Run):
    """What the next image is told fits into JSON; the image before forgets all without a word, as exec makes it."""

    async def main() -> None:
        before = Forks({3: CAT}, Limits(), kill_timeout_s=NEVER_S)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                fork = await before.fork(3, {}, theirs)
            ours.setblocking(False)
            stream = Stream(ours)
            facts = json.loads(json.dumps(before.export()))
            forget(before)
            after = Forks.adopt(facts, Limits(), kill_timeout_s=NEVER_S)
            (adopted,) = after.by_pid().values()
            assert (adopted.pid, after.running(3), adopted.is_exiting()) == (fork.pid, 1, False)
            await stream.say(b"still here\n")
            assert await stream.line() == b"still here\n"
            stream.end()
            assert await adopted.wait() == ExitStatus(code=0)
            adopted.release()
            assert after.running(3) == 0

    run(main())


def test_an_end_under_way_goes_on_in_another_image_of_the_process(run: Run, caplog):
    """One that ignores the kill signal, and one that has ended and left a child behind."""

    async def main() -> None:
        scripts = ("trap '' TERM; echo; while :; do sleep 1000; done", "(trap '' TERM; echo; sleep 1000) & exit 0")
        programs = dict(enumerate(map(shell, scripts)))
        before = Forks(programs, Limits(), kill_timeout_s=NEVER_S)
        async with forked(before, 0) as (first, stream), forked(before, 1) as (second, other):
            await stream.line()
            await other.line()
            await second.wait()
            first.release()
            second.release()
            facts = json.loads(json.dumps(before.export()))
            forget(before)
            after = Forks.adopt(facts, Limits(), kill_timeout_s=0.02)
            adopted = [after.by_pid()[fork.pid] for fork in (first, second)]
            assert [(fork.pid, fork.is_exiting()) for fork in adopted] == [(first.pid, False), (second.pid, True)]
            assert await adopted[0].wait() == ExitStatus(signal=signal.SIGKILL)
            assert await adopted[1].exit_status() is None
            await until(lambda: after.running(0) == after.running(1) == 0)

    run(main())


def forget(forks: Forks) -> None:
    """What exec does to the event loop of an image."""
    for fork in forks._all():
        for timer in (fork._timer, fork._poll):
            if timer is not None:
                timer.cancel()
        forks.loop.remove_reader(fork._stderr.fds[0])
        if fork._child is not None:
            forks.loop.remove_reader(fork._child.pidfd)
