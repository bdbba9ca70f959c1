"""Scripts by CGI, really run: which one a path leads to, what it is told, and what becomes of what it says."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, children, open_descriptors
from tests.exchanges import FakeExchange, request_of
from wstunnel._hub import Hub, HubTransport
from wstunnel.errors import BackendError, CutAnswerError, LimitError, PeerError
from wstunnel.gateways.cgi import CgiGateway
from wstunnel.gateways.claim import Upgraded
from wstunnel.limits import GatewayLimits, Limits, SpawnLimits
from wstunnel.net.stream import BackendStream
from wstunnel.net.wheel import TimerWheel
from wstunnel.proto.handshake import accept_hash
from wstunnel.proto.request import Request
from wstunnel.server.service import forks_of
from wstunnel.settings import Route, Settings

DEADLINE_S = 20.0
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = (
    ("upgrade", "websocket"),
    ("connection", "Upgrade"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", KEY),
)
LIMITS = Limits(
    gateway=GatewayLimits(max_collected_bytes=200_000),
    spawn=SpawnLimits(fork_exit_wait_s=DEADLINE_S, exit_wait_s=DEADLINE_S),
)
"""Nobody is ended, or judged, before it could end by itself."""


async def until(claim: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not claim():
        assert time.monotonic() < deadline_s, "what was waited for did not happen"
        await asyncio.sleep(0.002)


class Scripts:
    """A folder of scripts."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def sh(self, name: str, text: str) -> None:
        self.write(name, "#!/bin/sh\n" + textwrap.dedent(text))

    def write(self, name: str, text: str, mode: int = 0o755) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)


@pytest.fixture
def scripts(tmp_path) -> Scripts:
    root = tmp_path / "root"
    root.mkdir()
    return Scripts(root)


class Served:
    def __init__(self, gateway: CgiGateway, forks: Any) -> None:
        self.gateway, self.forks = gateway, forks

    async def get(self, path: str, **given: Any) -> FakeExchange:
        """The answer to a request of `path`."""
        exchange = FakeExchange(request_of(path=path, target=path, **given))
        assert await self.serve(exchange) is None
        assert exchange.is_complete
        return exchange

    async def serve(self, exchange: FakeExchange) -> Upgraded | None:
        async with asyncio.timeout(DEADLINE_S):
            return await self.gateway.serve(exchange)


@contextlib.asynccontextmanager
async def served(scripts: Scripts, limits: Limits = LIMITS, **route: Any) -> AsyncIterator[Served]:
    """A gateway to the scripts. When every request is over, nothing of them runs or is open any more."""
    fds, running = open_descriptors(), children()
    usual = {
        "path": "/",
        "gateway": "cgi",
        "docroot": str(scripts.root),
        "cgi_assign": ((".cgi", ""), (".sh", "/bin/sh")),
    }
    made = Route(**(usual | route))
    loop = asyncio.get_running_loop()
    wheel = TimerWheel(0.01, loop.time())
    wheel.start(loop)
    hub = Hub(loop, wheel, read_bytes=65536, bulk_bytes=131072, turn_bytes=262144, look_s=0.5)
    forks = forks_of(Settings(routes=(made,), limits=limits, kill_timeout_s=DEADLINE_S))
    gateway = CgiGateway(forks, 0, made, limits)
    gateway.open(hub)
    try:
        yield Served(gateway, forks)
        await until(lambda: forks.running(0) == 0)
    finally:
        forks.abort()
        await forks.stop()
        hub.close()
        wheel.stop()
        await asyncio.sleep(0)
    await until(lambda: open_descriptors().keys() <= fds.keys() | opened_by_loop())
    assert children() <= running


def opened_by_loop() -> set[int]:
    """What a loop opens when it is first needed."""
    return {
        fd for fd, what in open_descriptors().items() if "eventpoll" in what or "eventfd" in what or what == os.devnull
    }


# --- which script


@pytest.mark.parametrize(
    ("route", "path", "expected"),
    [
        ({}, "/a.cgi", ("a.cgi", "")),
        ({}, "/sub/b.sh/more/of.it", ("sub/b.sh", "/more/of.it")),
        ({}, "/a.cgi/", ("a.cgi", "/")),
        ({}, "/a.txt", None),
        ({}, "/sub", None),
        ({}, "/nothing.cgi", None),
        ({}, "/.hidden.cgi", None),
        ({}, "/link.cgi", None),
        ({}, "/../outside.cgi", None),
        ({"cgi_assign": (("", ""),)}, "/a.txt/x", ("a.txt", "/x")),
        ({"alias": True, "path": "/bin/"}, "/bin/sub/b.sh", ("sub/b.sh", "")),
        ({"alias": True, "path": "/bin"}, "/bin/a.cgi/x", ("a.cgi", "/x")),
        ({"alias": True, "path": "/bin"}, "/bina.cgi", None),
        ({"alias": True, "path": "/bin"}, "/bin", None),
        ({"alias": True, "path": "/"}, "/a.cgi", ("a.cgi", "")),
    ],
)
def test_a_path_leads_to_the_first_file_on_it_if_that_is_a_script(scripts: Scripts, route, path, expected):
    for name in ("a.cgi", "sub/b.sh", "a.txt", ".hidden.cgi", "../outside.cgi"):
        scripts.sh(name, "")
    (scripts.root / "link.cgi").symlink_to("a.cgi")
    folder = {"alias": str(scripts.root)} if route.pop("alias", False) else {"docroot": str(scripts.root)}
    usual = {"path": "/", "cgi_assign": ((".cgi", ""), (".sh", "/bin/sh"))}
    gateway = CgiGateway(None, 0, Route(gateway="cgi", **folder, **(usual | route)), LIMITS)  # type: ignore[arg-type]
    script = gateway.finds(request_of(path=path))
    assert (script and (script.file, script.rest)) == expected


def test_a_script_that_is_gone_when_it_is_to_run_is_not_found(run: Run, scripts: Scripts):
    async def main() -> None:
        async with served(scripts) as it:
            with pytest.raises(PeerError, match="no such script") as caught:
                await it.serve(FakeExchange(request_of(path="/a.cgi")))
            assert caught.value.status == 404

    run(main())


# --- what a script is told


def variables_of(exchange: FakeExchange) -> dict[str, str]:
    entries = exchange.sent.decode("utf-8", "surrogateescape").split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


ENV = """
    printf 'Content-Type: text/plain\\n\\n'
    env -0
"""


def test_a_script_is_told_of_the_request_and_of_its_place_and_nothing_of_ours(run: Run, scripts: Scripts, monkeypatch):
    async def main() -> None:
        scripts.sh("sub/env.cgi", ENV)
        async with served(scripts, bin_environment=(("ROOM", "red"),), bin_copy_environment=("COLOUR",)) as it:
            exchange = await it.get(
                "/sub/env.cgi/more/\udce9",
                query="a=b",
                headers=(("x-a", "1"), ("proxy", "evil"), ("upgrade", "websocket"), ("connection", "upgrade")),
            )
        said = variables_of(exchange)
        for noise in ("PWD", "SHLVL", "OLDPWD", "_"):
            said.pop(noise, None)
        assert said == {
            "COLOUR": "blue",
            "DOCUMENT_ROOT": str(scripts.root),
            "GATEWAY_INTERFACE": "CGI/1.1",
            "HTTP_X_A": "1",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PATH_INFO": "/more/\udce9",
            "PATH_TRANSLATED": f"{scripts.root}/more/\udce9",
            "QUERY_STRING": "a=b",
            "REDIRECT_STATUS": "200",
            "REMOTE_ADDR": "192.0.2.7",
            "REMOTE_PORT": "4711",
            "REQUEST_METHOD": "GET",
            "REQUEST_SCHEME": "http",
            "REQUEST_URI": "/sub/env.cgi/more/\udce9",
            "ROOM": "red",
            "SCRIPT_FILENAME": f"{scripts.root}/sub/env.cgi",
            "SCRIPT_NAME": "/sub/env.cgi",
            "SERVER_ADDR": "192.0.2.1",
            "SERVER_NAME": "a.example",
            "SERVER_PORT": "8081",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_SOFTWARE": "wstunnel",
        }

    monkeypatch.setenv("COLOUR", "blue")
    monkeypatch.setenv("SECRET", "hunter2")
    run(main())


def test_an_alias_stands_in_the_place_of_the_path(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh("env.cgi", ENV)
        async with served(scripts, docroot=None, alias=str(scripts.root), path="/cgi-bin/") as it:
            said = variables_of(await it.get("/cgi-bin/env.cgi/x"))
        assert (said["SCRIPT_NAME"], said["PATH_INFO"]) == ("/cgi-bin/env.cgi", "/x")
        assert said["SCRIPT_FILENAME"] == f"{scripts.root}/env.cgi"

    run(main())


def test_an_interpreter_gets_the_script_as_its_argument_and_both_run_in_the_scripts_folder(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.write("sub/a.sh", "printf 'A: b\\n\\n'; echo $0; pwd", mode=0o644)
        scripts.sh("sub/b.cgi", "printf 'A: b\\n\\n'; echo $0; pwd")
        async with served(scripts) as it:
            for name in ("a.sh", "b.cgi"):
                exchange = await it.get(f"/sub/{name}")
                assert exchange.sent.decode() == f"{scripts.root}/sub/{name}\n{scripts.root}/sub\n"

    run(main())


# --- request bodies

LENGTH_AND_BODY = """
    printf 'A: b\\n\\n'
    echo "$CONTENT_LENGTH"
    cat
"""


async def posted(it: Served, path: str, body: Sequence[bytes | Exception], body_bytes: int | None) -> FakeExchange:
    exchange = FakeExchange(request_of(method="POST", path=path, body_bytes=body_bytes), body)
    assert await it.serve(exchange) is None
    return exchange


def test_a_body_reaches_the_script_with_its_length_and_its_end(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh("a.cgi", LENGTH_AND_BODY)
        async with served(scripts) as it:
            assert (await posted(it, "/a.cgi", [], 0)).sent == b"\n"
            assert (await posted(it, "/a.cgi", [b"one ", b"two"], 7)).sent == b"7\none two"
            assert (await posted(it, "/a.cgi", [b"one ", b"two"], None)).sent == b"7\none two"
            assert (await posted(it, "/a.cgi", [], None)).sent == b"\n"

    run(main())


def test_more_than_any_buffer_goes_through_a_script_both_ways(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh("a.cgi", "printf 'A: b\\n\\n'; cat")
        pieces = [bytes([number]) * 65536 for number in range(48)]
        whole = b"".join(pieces)
        async with served(scripts) as it:
            assert (await posted(it, "/a.cgi", pieces, len(whole))).sent == whole
            assert (await posted(it, "/a.cgi", pieces[:3], None)).sent == whole[: 3 * 65536]

    run(main())


def test_a_chunked_body_beyond_the_bound_is_refused_and_nothing_is_started(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh("a.cgi", LENGTH_AND_BODY)
        async with served(scripts) as it:
            with pytest.raises(LimitError) as caught:
                await posted(it, "/a.cgi", [b"x" * 65536] * 4, None)
            assert (caught.value.status, it.forks.started(0)) == (413, 0)

    run(main())


def test_a_script_that_reads_none_of_its_body_is_heard_to_its_end(run: Run, scripts: Scripts):
    """It exits with input unread, which resets the stream; what it said before is longer than one read."""

    async def main() -> None:
        scripts.sh("a.cgi", "printf 'Status: 413\\n\\n'; head -c 150000 /dev/zero")
        pieces = [b"x" * 65536 for _ in range(64)]
        async with served(scripts) as it:
            exchange = await posted(it, "/a.cgi", pieces, 64 * 65536)
            assert (exchange.status, len(exchange.sent), exchange.is_complete) == (413, 150_000, True)
            assert exchange.left, "the rest of the body is not taken"

    run(main())


def test_an_answer_does_not_wait_for_the_rest_of_the_body(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh("a.cgi", "head -c 3 >/dev/null; printf 'Content-Length: 2\\n\\nno'; exec sleep 1000")
        brief = Limits(spawn=SpawnLimits(fork_exit_wait_s=0.01))
        async with served(scripts, brief) as it:
            exchange = FakeExchange(request_of(method="POST", path="/a.cgi", body_bytes=10), [b"abc"], stalls=True)
            assert await it.serve(exchange) is None
            assert exchange.sent == b"no"

    run(main())


def test_a_body_that_is_broken_ends_the_script_and_is_the_clients_fault(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh("a.cgi", "cat >/dev/null; exec sleep 1000")
        async with served(scripts) as it:
            with pytest.raises(PeerError, match="half a body"):
                await posted(it, "/a.cgi", [b"abc", PeerError("half a body")], 10)

    run(main())


def test_a_script_that_takes_nothing_for_write_timeout_is_ended(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh("a.cgi", "exec sleep 1000")
        async with served(scripts, write_timeout_s=0.05) as it:
            with pytest.raises(BackendError, match="took none of the request's body for write-timeout") as caught:
                await posted(it, "/a.cgi", [b"x" * 65536] * 64, 64 * 65536)
            assert caught.value.status == 504

    run(main())


class Waiting(FakeExchange):
    """A client whose body goes on once it has got `head` of the answer."""

    head = b"half"

    async def read(self) -> bytes:
        await until(lambda: self.sent == self.head)
        return await super().read()


def test_write_timeout_behind_the_head_cuts_the_answer(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh("a.cgi", "printf 'A: b\\n\\nhalf'; exec sleep 1000")
        async with served(scripts, write_timeout_s=0.05) as it:
            request = request_of(method="POST", path="/a.cgi", body_bytes=64 * 65536)
            with pytest.raises(CutAnswerError, match=r"a\.cgi\[\d+\]: took none of the request's body"):
                await it.serve(Waiting(request, [b"x" * 65536] * 64))

    run(main())


def test_read_timeout_behind_the_head_cuts_the_answer(run: Run, scripts: Scripts):
    """It counts from the end of the body: a slow machine has started the script by then."""

    async def main() -> None:
        scripts.sh("a.cgi", "printf 'A: b\\n\\nhalf'; exec sleep 1000")
        async with served(scripts, read_timeout_s=0.05) as it:
            exchange = Waiting(request_of(method="POST", path="/a.cgi", body_bytes=1), [b"x"])
            with pytest.raises(CutAnswerError, match="silent for read-timeout"):
                await it.serve(exchange)
            assert (exchange.sent, exchange.is_complete) == (b"half", False)

    run(main())


def test_read_timeout_does_not_count_while_the_client_is_slow(run: Run, scripts: Scripts, monkeypatch):
    async def main() -> None:
        scripts.sh("a.cgi", LENGTH_AND_BODY)
        steps: list[str] = []

        class Noting(FakeExchange):
            async def read(self) -> bytes:
                steps.append("client")
                return await super().read()

        monkeypatch.setattr(BackendStream, "hold_clock", lambda _: steps.append("held"))
        monkeypatch.setattr(BackendStream, "start_clock", lambda _: steps.append("started"))
        async with served(scripts, read_timeout_s=DEADLINE_S) as it:
            exchange = Noting(request_of(method="POST", path="/a.cgi", body_bytes=3), [b"abc"])
            assert await it.serve(exchange) is None
        assert steps == ["held", "client", "started", "held", "client", "started"]

    run(main())


# --- answers


def test_a_status_and_fields_are_the_scripts(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh("a.cgi", "printf 'Status: 404 Gone\\r\\nContent-Type: text/x\\r\\n\\r\\nbody'")
        scripts.sh("b.cgi", "printf 'Location: /elsewhere\\n\\n'")
        scripts.sh("c.cgi", "printf 'Status: 204\\n\\n'")
        async with served(scripts) as it:
            first = await it.get("/a.cgi")
            assert (first.status, first.headers, first.sent) == (404, (("content-type", "text/x"),), b"body")
            second = await it.get("/b.cgi")
            assert (second.status, second.headers, second.sent) == (302, (("location", "/elsewhere"),), b"")
            assert (await it.get("/c.cgi")).status == 204
            head = await it.get("/a.cgi", method="HEAD")
            assert (head.status, head.sent) == (404, b"")

    run(main())


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo one >&2; echo why >&2; exit 3", r"a\.cgi\[\d+\]: exited with status 3 before the head .*words: why"),
        ("exit 0", r"a\.cgi\[\d+\]: exited with status 0 before the head of its answer$"),
        ("kill -9 $$", r"a\.cgi\[\d+\]: .*a\.cgi\[\d+\] was killed by SIGKILL"),
        ("printf 'no head\\n\\n'", r"a\.cgi\[\d+\]: .*is no field"),
        ("printf 'HTTP/1.1 200 OK\\n\\n'", "HTTP status line"),
        ("printf 'Status: 101\\nUpgrade: websocket\\n\\n'", "says 101 which nobody has asked it for"),
        ("printf 'Status: 101\\n\\n'", "101 without Upgrade"),
    ],
)
def test_a_script_without_a_good_head_is_a_bad_gateway_and_the_log_says_why(run: Run, scripts: Scripts, script, why):
    async def main() -> None:
        scripts.sh("a.cgi", script)
        async with served(scripts) as it:
            exchange = FakeExchange(request_of(path="/a.cgi"))
            with pytest.raises(BackendError, match=why) as caught:
                await it.serve(exchange)
            assert (caught.value.status, exchange.status) == (502, 0)

    run(main())


def test_a_silent_script_is_a_timeout_and_is_ended(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh("a.cgi", "exec sleep 1000")
        async with served(scripts, read_timeout_s=0.05) as it:
            with pytest.raises(BackendError, match="no answer within read-timeout") as caught:
                await it.serve(FakeExchange(request_of(path="/a.cgi")))
            assert caught.value.status == 504

    run(main())


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("printf 'A: b\\n\\nhalf'; kill -9 $$", "was killed by SIGKILL"),
        ("printf 'Content-Length: 9\\n\\nhalf'", "ended 5 bytes before the end of the 9"),
    ],
)
def test_an_answer_that_breaks_off_is_cut(run: Run, scripts: Scripts, script, why):
    async def main() -> None:
        scripts.sh("a.cgi", script)
        async with served(scripts) as it:
            exchange = FakeExchange(request_of(path="/a.cgi"))
            with pytest.raises(CutAnswerError, match=why):
                await it.serve(exchange)
            assert (exchange.sent, exchange.is_complete) == (b"half", False)

    run(main())


def test_a_status_of_failure_behind_an_answer_changes_nothing(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh("a.cgi", "printf 'A: b\\n\\nwhole'; exit 1")
        async with served(scripts) as it:
            assert (await it.get("/a.cgi")).sent == b"whole"

    run(main())


def test_a_script_has_a_moment_to_end_behind_its_answer_and_is_ended_then(run: Run, scripts: Scripts, tmp_path):
    async def main() -> None:
        scripts.sh("a.cgi", f"printf 'Content-Length: 2\\n\\nok'; sleep 0.05; echo done > {tmp_path}/done")
        scripts.sh("b.cgi", "printf 'Content-Length: 2\\n\\nok'; exec sleep 1000")
        async with served(scripts) as it:
            assert (await it.get("/a.cgi")).sent == b"ok"
            assert (tmp_path / "done").exists()
        async with served(scripts, Limits(spawn=SpawnLimits(fork_exit_wait_s=0.01))) as it:
            assert (await it.get("/b.cgi")).sent == b"ok"

    run(main())


def test_a_client_that_leaves_ends_the_script_and_all_that_it_has_started(run: Run, scripts: Scripts, tmp_path):
    async def main() -> None:
        scripts.sh("a.cgi", f"sleep 1000 & echo up > {tmp_path}/up; wait")
        async with served(scripts) as it:
            task = asyncio.create_task(it.gateway.serve(FakeExchange(request_of(path="/a.cgi"))))
            await until((tmp_path / "up").exists)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())


def test_its_signal_is_the_routes(run: Run, scripts: Scripts, tmp_path):
    async def main() -> None:
        scripts.sh("a.cgi", f"trap 'echo usr1 > {tmp_path}/got; exit' USR1; echo > {tmp_path}/up; sleep 1000 & wait")
        async with served(scripts, kill_signal=signal.SIGUSR1) as it:
            task = asyncio.create_task(it.gateway.serve(FakeExchange(request_of(path="/a.cgi"))))
            await until((tmp_path / "up").exists)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until((tmp_path / "got").exists)

    run(main())


# --- refusals


def test_a_script_that_may_not_be_executed_is_forbidden_and_the_log_says_why(run: Run, scripts: Scripts, caplog):
    async def main() -> None:
        scripts.write("a.cgi", "#!/bin/sh\n", mode=0o644)
        async with served(scripts) as it:
            with pytest.raises(PeerError, match="this script cannot be run") as caught:
                await it.serve(FakeExchange(request_of(path="/a.cgi")))
            assert (caught.value.status, it.forks.failed(0)) == (403, 1)

    with caplog.at_level(logging.ERROR, "wstunnel"):
        run(main())
    assert "a.cgi: is not executable for this user; chmod +x it" in caplog.text


def test_beyond_max_forks_nothing_is_started(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh("a.cgi", "exec sleep 1000")
        async with served(scripts, max_forks=1) as it:
            task = asyncio.create_task(it.gateway.serve(FakeExchange(request_of(path="/a.cgi"))))
            await until(lambda: it.forks.running(0))
            with pytest.raises(BackendError, match="max-forks = 1 of / reached") as caught:
                await it.serve(FakeExchange(request_of(path="/a.cgi")))
            assert caught.value.status == 503
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())


def test_without_a_descriptor_to_hear_it_a_script_is_ended(run: Run, scripts: Scripts, monkeypatch):
    async def main() -> None:
        scripts.sh("a.cgi", "exec sleep 1000")

        def fail(fd: int) -> int:
            raise OSError(24, os.strerror(24))

        async with served(scripts) as it:
            with monkeypatch.context() as patch:
                patch.setattr(os, "dup", fail)
                with pytest.raises(BackendError, match="cannot be heard: Too many open files"):
                    await it.serve(FakeExchange(request_of(path="/a.cgi")))

    run(main())


# --- upgrades


def upgrading(**given: Any) -> Request:
    return request_of(**({"path": "/ws.cgi", "headers": HANDSHAKE, "wants_websocket": True} | given))


def test_a_script_that_says_101_becomes_a_pipe(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh(
            "ws.cgi",
            f"""
            test "$HTTP_UPGRADE" = websocket || exit 1
            printf 'Status: 101\\nUpgrade: WebSocket\\nSec-WebSocket-Accept: {accept_hash(KEY)}\\n\\nhello '
            exec cat
            """,
        )
        async with served(scripts, upgrade=True) as it:
            upgraded = await it.serve(FakeExchange(upgrading()))
            assert upgraded is not None
            assert dict(upgraded.headers) == {
                "upgrade": "WebSocket",
                "sec-websocket-accept": accept_hash(KEY),
                "Connection": "Upgrade",
            }
            transport, got = upgraded.backend.transport, upgraded.backend.leftover
            assert isinstance(transport, HubTransport)
            sock, loop = socket.socket(fileno=os.dup(transport.fileno())), asyncio.get_running_loop()
            await loop.sock_sendall(sock, b"you")
            async with asyncio.timeout(DEADLINE_S):
                while len(got) < 9:
                    got += await loop.sock_recv(sock, 100)
            assert got == b"hello you"
            sock.close()
            assert upgraded.lease.name.startswith("ws.cgi[")
            upgraded.close()

    run(main())


def test_a_script_may_refuse_a_handshake(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh("ws.cgi", "printf 'Status: 403\\n\\nno'")
        async with served(scripts, upgrade=True) as it:
            exchange = FakeExchange(upgrading())
            assert await it.serve(exchange) is None
            assert (exchange.status, exchange.sent) == (403, b"no")

    run(main())


@pytest.mark.parametrize(("upgrade", "body_bytes"), [(False, 0), (True, 4), (True, None)])
def test_without_upgrade_or_with_a_body_a_script_sees_an_ordinary_request(
    run: Run, scripts: Scripts, upgrade, body_bytes
):
    async def main() -> None:
        scripts.sh("ws.cgi", "printf 'A: b\\n\\n'; echo \"<$HTTP_UPGRADE>\"; cat")
        async with served(scripts, upgrade=upgrade) as it:
            body = [] if body_bytes == 0 else [b"body"]
            exchange = FakeExchange(upgrading(body_bytes=body_bytes), body)
            assert await it.serve(exchange) is None
            assert exchange.sent == b"<>\n" + b"".join(body)

    run(main())


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"headers": HANDSHAKE[:3]}, 400),
        ({"headers": (*HANDSHAKE[:2], HANDSHAKE[3])}, 426),
        ({"method": "POST"}, 405),
    ],
)
def test_what_is_no_handshake_does_not_reach_a_script(run: Run, scripts: Scripts, given, status):
    async def main() -> None:
        scripts.sh("ws.cgi", "exit 1")
        async with served(scripts, upgrade=True) as it:
            with pytest.raises(PeerError) as caught:
                await it.serve(FakeExchange(upgrading(**given)))
            assert (caught.value.status, it.forks.started(0)) == (status, 0)

    run(main())


def test_an_accept_of_another_key_ends_the_script(run: Run, scripts: Scripts):
    async def main() -> None:
        scripts.sh("ws.cgi", "printf 'Status: 101\\nUpgrade: websocket\\nSec-WebSocket-Accept: x\\n\\n'; exec cat")
        async with served(scripts, upgrade=True) as it:
            with pytest.raises(BackendError, match="does not fit the request"):
                await it.serve(FakeExchange(upgrading()))

    run(main())
