"""A program of its own for every tunnel, from the handshake to the last process: in one loop, and in processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run
from tests.wire.clients import TEXT, Client, Refused, close_frame, frame
from tests.wire.stage import LogTap
from tools.chaos.service import Service
from wstunnel import Route, Settings, TcpAddress, Tunnel
from wstunnel.supervise import procfs

DEADLINE_S = 20.0
"""How long anything that must happen may take."""
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MIB = 1024 * 1024
DEAF = "trap '' TERM; echo $$; while :; do sleep 1000; done"


async def until(claim: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not claim():
        assert time.monotonic() < deadline_s, "what was waited for did not happen"
        await asyncio.sleep(0.005)


class Served:
    """A route of stdio, and what its operator sees."""

    def __init__(self, address: TcpAddress, log: Callable[[], str], service: Service | None = None) -> None:
        self.address, self.log, self.service = address, log, service

    @contextlib.asynccontextmanager
    async def client(
        self, headers: Sequence[tuple[str, str]] = (), path: str = "/ws/a%20b?c=d"
    ) -> AsyncIterator[Client]:
        client = await Client.reach(self.address)
        try:
            await client.upgrade(path, headers)
            yield client
        finally:
            client.close()


@contextlib.asynccontextmanager
async def in_one_loop(folder: Path, argv: Sequence[str], kill_timeout_s: float, **route: Any) -> AsyncIterator[Served]:
    made = Route(path="/ws", stdio=tuple(argv), ping_interval_s=0.0, **route)
    settings = Settings(listen=(TcpAddress("127.0.0.1", 0),), kill_timeout_s=kill_timeout_s, routes=(made,))
    with LogTap("wstunnel") as log:
        async with Tunnel(settings) as tunnel:
            yield Served(tunnel.addresses[0], lambda: "\n".join(log.texts()))


def config(argv: Sequence[str], kill_timeout_s: float, **route: Any) -> dict[str, Any]:
    options = {name.removesuffix("_s").replace("_", "-"): value for name, value in route.items()}
    return {
        "workers": 2,
        "kill-timeout": kill_timeout_s,
        "route": [{"path": "/ws", "stdio": shlex.join(argv), **options}],
    }


@contextlib.asynccontextmanager
async def in_processes(folder: Path, argv: Sequence[str], kill_timeout_s: float, **route: Any) -> AsyncIterator[Served]:
    async with Service(str(folder), config(argv, kill_timeout_s, **route)) as service:
        yield Served(TcpAddress(*service.tcp), service.log, service)
        if service.exit_code is None:
            service.signal(signal.SIGTERM)
        assert await service.ended() == 0
        assert not [pid for pid in service.pids() if not procfs.is_gone_or_ending(pid)]  # init may be slow to reap
        assert service.complaints() == []


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Served]]


@pytest.fixture(params=["asyncio", "uvloop", "processes"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def run(kind: str) -> Run:
    return Run("uvloop" if kind == "processes" else kind)


@pytest.fixture
def serve(kind: str, tmp_path: Path) -> Serve:
    """`async with serve(argv, **route options) as served`; nothing of it is left behind."""

    def start(argv: Sequence[str], *, kill_timeout_s: float = DEADLINE_S, **route: Any):
        return (in_processes if kind == "processes" else in_one_loop)(tmp_path, argv, kill_timeout_s, **route)

    return start


def shell(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


async def line(client: Client) -> bytes:
    got = bytearray()
    while not got.endswith(b"\n"):
        heard = await client.frame()
        assert heard is not None, f"the end came after {bytes(got)!r}"
        assert heard.opcode is TEXT, heard
        got += heard.data
    return bytes(got)


# --- what flows


def test_every_tunnel_has_its_own_program(run: Run, serve: Serve):
    async def story() -> None:
        async with serve(shell("echo $$; exec cat")) as served, served.client() as one, served.client() as two:
            pids = [int(await line(client)) for client in (one, two)]
            assert pids[0] != pids[1]
            for client, word in ((one, b"one"), (two, b"two")):
                await client.send(frame(TEXT, word))
                assert await client.payload(3) == word
                await client.send(close_frame(1000))
                assert (await client.to_end()).code == 1000
            await until(lambda: all(map(procfs.is_gone_or_ending, pids)))

    run(story())


def test_a_client_that_leaves_is_the_end_of_the_programs_input_and_gets_its_last_words(run: Run, serve: Serve):
    """However much they are, and though they come when the client has said CLOSE."""

    async def story() -> None:
        async with serve(shell("wc -c; head -c 1048576 /dev/zero")) as served, served.client() as client:
            for _ in range(16):
                await client.send(frame(TEXT, bytes(MIB // 16)))
            await client.send(close_frame(1000))
            heard = await client.to_end()
            count, rest = bytes(heard.data).split(b"\n", 1)
            assert int(count) == MIB
            assert rest == bytes(MIB)
            assert heard.code == 1000

    run(story())


ENDINGS = """
echo bye
case $QUERY_STRING in
well) exit 0;;
badly) exit 3;;
killed) kill -KILL $$;;
early) exec <&- >&-; sleep 0.01; exit 3;;
never) exec <&- >&-; sleep 1000;;
esac
"""


def test_the_close_code_says_how_the_program_ended(run: Run, serve: Serve, tmp_path):
    """`early` ends its stream before it exits; `never` lives on then."""

    async def story() -> None:
        program = tmp_path / "ends.sh"
        program.write_text(f"#!/bin/sh{ENDINGS}")
        program.chmod(0o755)
        codes = {"well": 1000, "badly": 1011, "killed": 1011, "early": 1011, "never": 1000}
        async with serve((str(program),)) as served:
            for how, code in codes.items():
                async with served.client(path=f"/ws?{how}") as client:
                    heard = await client.to_end(answer=True)
                    assert (how, heard.data, heard.code, heard.reset) == (how, b"bye\n", code, False)

    run(story())


# --- what a program gets


def test_a_program_has_its_stream_its_log_and_what_the_request_says_and_nothing_else(
    run: Run, serve: Serve, tmp_path, monkeypatch
):
    """Issue 3, item 9; robustness goals 16 and 22; CVE-2016-5385 (httpoxy)."""

    async def story() -> None:
        dump = (sys.executable, "-IS", str(program))
        given = (("Proxy", "http://evil.example/"), ("X_Real_IP", "evil"), ("Cookie", "a=1"), ("Cookie", "b=2"))
        async with serve(dump, bin_copy_environment=("COLOR",)) as served, served.client(given) as client:
            fds, environment = eval(bytes((await client.to_end(answer=True)).data))
            port = str(served.address.port)
        assert [(fd, what.split(":")[0]) for fd, what in fds] == [(0, "socket"), (1, "socket"), (2, "pipe")]
        assert fds[0] == (0, fds[1][1])
        assert re.fullmatch(r"\d+", environment.pop("REMOTE_PORT"))
        assert environment.pop("HTTP_SEC_WEBSOCKET_KEY")
        assert environment == {
            "COLOR": "red",
            "GATEWAY_INTERFACE": "CGI/1.1",
            "HTTP_CONNECTION": "keep-alive, Upgrade",
            "HTTP_COOKIE": "a=1; b=2",
            "HTTP_HOST": "tunnel.test",
            "HTTP_SEC_WEBSOCKET_VERSION": "13",
            "HTTP_UPGRADE": "websocket",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PATH_INFO": "/a b",
            "QUERY_STRING": "c=d",
            "REMOTE_ADDR": "127.0.0.1",
            "REQUEST_METHOD": "GET",
            "REQUEST_SCHEME": "http",
            "REQUEST_URI": "/ws/a%20b?c=d",
            "SCRIPT_NAME": "/ws",
            "SERVER_ADDR": "127.0.0.1",
            "SERVER_NAME": "tunnel.test",
            "SERVER_PORT": port,
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_SOFTWARE": "wstunnel",
        }

    program = tmp_path / "dump.py"
    program.write_text(DUMP)
    monkeypatch.setenv("COLOR", "red")
    monkeypatch.setenv("SECRET", "hunter2")
    run(story())


DUMP = """
import os
fds = []
for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
    try:
        fds.append((fd, os.readlink(f"/proc/self/fd/{fd}")))
    except FileNotFoundError:  # where the listing looked
        pass
environment = dict(os.environ)
environment.pop("LC_CTYPE", None)  # Python's own doing
print((fds, environment))
"""


def test_what_a_program_complains_about_is_logged_with_its_pid(run: Run, serve: Serve):
    async def story() -> None:
        async with serve(shell("echo $$; echo 'no luck today' >&2")) as served, served.client() as client:
            pid = int((await client.to_end(answer=True)).data)
            await until(lambda: f"sh[{pid}]: no luck today" in served.log())

    run(story())


def test_the_example_program_says_it_louder(run: Run, serve: Serve):
    async def story() -> None:
        async with serve((str(EXAMPLES / "upper.py"),)) as served, served.client() as client:
            assert await line(client) == b"hello 127.0.0.1, what shall I say louder?\n"
            await client.send(frame(TEXT, "grüße\n".encode()))
            assert await line(client) == "GRÜSSE\n".encode()
            await client.send(close_frame(1000))
            assert (await client.to_end()).code == 1000

    run(story())


# --- how it is ended, and how many there are


@pytest.mark.parametrize("how", ["close", "vanish"])
def test_a_program_that_ignores_everything_is_gone_after_kill_timeout(run: Run, serve: Serve, how):
    async def story() -> None:
        async with serve(shell(DEAF), kill_timeout_s=0.1, close_timeout_s=0.1) as served, served.client() as client:
            pid = int(await line(client))
            if how == "close":
                await client.send(close_frame(1000))
                assert (await client.to_end()).code == 1000
            else:
                client.reset()
            await until(lambda: procfs.is_gone_or_ending(pid))
            await until(
                lambda: f"sh[{pid}]: still running 0.1 s after the kill signal; sending SIGKILL" in served.log()
            )

    run(story())


@pytest.mark.parametrize("is_parent_gone", [False, True])
def test_what_a_program_has_forked_is_gone_too(run: Run, serve: Serve, is_parent_gone):
    async def story() -> None:
        script = f"sh -c 'echo $$; exec sleep 1000' & {'exit 0' if is_parent_gone else 'wait'}"
        async with serve(shell(script), close_timeout_s=0.1) as served, served.client() as client:
            pid = int(await line(client))
            assert not procfs.is_gone_or_ending(pid)
            await client.send(close_frame(1000))
            await client.to_end()
            await until(lambda: procfs.is_gone_or_ending(pid))

    run(story())


def test_no_more_than_max_forks_run_at_once_and_each_of_them_is_served(run: Run, serve: Serve):
    async def visit(served: Served, number: int, everybody: asyncio.Barrier) -> tuple[int, str | None]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                client = await stack.enter_async_context(served.client())
            except Refused as refused:
                await everybody.wait()
                return refused.response.status, refused.response.headers.get("retry-after")
            await client.send(frame(TEXT, b"%d\n" % number))
            assert await line(client) == b"%d\n" % number
            await everybody.wait()
            await client.send(close_frame(1000))
            assert (await client.to_end()).code == 1000
            return 101, None

    async def story() -> None:
        async with serve(("cat",), max_forks=50) as served:
            everybody = asyncio.Barrier(200)
            answers = await asyncio.gather(*(visit(served, number, everybody) for number in range(200)))
            assert (answers.count((101, None)), answers.count((503, "1"))) == (50, 150)
            assert served.log().count("max-forks = 50 reached") == 1

            async def is_served_again() -> bool:
                try:
                    async with served.client():
                        return True
                except Refused:
                    return False

            deadline_s = time.monotonic() + DEADLINE_S
            while not await is_served_again():
                assert time.monotonic() < deadline_s

    run(story())


def test_at_the_end_every_client_hears_1001_and_no_program_is_left(run: Run, serve: Serve):
    async def story() -> None:
        async with contextlib.AsyncExitStack() as clients:
            async with serve(shell("echo $$; exec cat")) as served:
                opened = [await clients.enter_async_context(served.client()) for _ in range(5)]
                pids = [int(await line(client)) for client in opened]
                hearing = [asyncio.ensure_future(client.to_end(answer=True)) for client in opened]
                if served.service is not None:
                    served.service.signal(signal.SIGTERM)
            assert [(await each).code for each in hearing] == [1001] * 5
            assert all(map(procfs.is_gone_or_ending, pids))

    run(story())


def test_a_program_that_goes_away_is_502_and_said_once(run: Run, serve: Serve, tmp_path):
    async def story() -> None:
        program = tmp_path / "echo.sh"
        program.write_text("#!/bin/sh\nexec cat\n")
        program.chmod(0o755)
        async with serve((str(program),)) as served:
            program.unlink()
            for _ in range(3):
                with pytest.raises(Refused) as caught:
                    async with served.client():
                        pass
                assert caught.value.response.status == 502
            assert served.log().count("does not exist; correct the path or install the program; tunnels are") == 1

    run(story())


# --- what only processes do


def test_a_program_that_does_not_exist_is_named_at_the_start(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "wstunnel", "--listen", "127.0.0.1:0", "--stdio", str(tmp_path / "gone")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )

    assert done.returncode == 2
    assert done.stdout == f'wstunnel: --stdio: "{tmp_path}/gone" cannot be started: no such file or directory\n'


def test_the_programs_of_a_killed_worker_are_ended(tmp_path):
    async def story() -> None:
        async with in_processes(tmp_path, shell(DEAF), 0.1) as served, served.client() as client:
            assert served.service is not None
            pid = int(await line(client))
            for worker in served.service.children() - {pid}:
                os.kill(worker, signal.SIGKILL)
            await until(lambda: procfs.is_gone_or_ending(pid))

    Run("uvloop")(story())


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2], ids=lambda number: number.name)
def test_a_tunnel_and_its_program_outlive_a_change_of_everything_else(tmp_path, number):
    """And end as ever afterwards, with the right code."""

    async def story() -> None:
        old = 'echo old; while read word && [ "$word" != quit ]; do echo $word; done; exit 3'
        new = "echo new; exec cat"
        async with in_processes(tmp_path, shell(old), DEADLINE_S) as served, served.client() as client:
            assert served.service is not None
            assert await line(client) == b"old\n"
            served.service.configure(config(shell(new), DEADLINE_S))
            served.service.signal(number)
            await served.service.serves(2)
            async with served.client() as other:
                assert await line(other) == b"new\n"
                await client.send(frame(TEXT, b"still here\n"))
                assert await line(client) == b"still here\n"
            await client.send(frame(TEXT, b"quit\n"))
            assert (await client.to_end(answer=True)).code == 1011

    Run("uvloop")(story())
