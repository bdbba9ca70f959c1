"""The control socket: who may ask what, and what they are told; what it costs the process at most."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import os
import re
import resource
import select
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wstunnel
from tests.conftest import open_descriptors
from tests.wire.sockets import eventually, turns
from wstunnel.errors import ConfigError, StartError
from wstunnel.limits import MasterLimits
from wstunnel.server import control
from wstunnel.server.control import COMMANDS, ControlServer, ask

LIMITS = MasterLimits()
WITHIN_S = 20.0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is the working directory too, so that its sockets have short names."""
    before = os.getcwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


async def echo(command: str) -> dict[str, Any]:
    return {"ok": True, "command": command}


@contextlib.contextmanager
def serving(on_command=echo, path: str = "control-a", **bounds: Any) -> Iterator[ControlServer]:
    server = ControlServer(path, on_command, dataclasses.replace(LIMITS, **bounds))
    try:
        yield server
    finally:
        server.close()


class Client:
    """A raw client of the control socket."""

    def __init__(self, path: str = "control-a", sock: socket.socket | None = None) -> None:
        self.sock = sock or socket.socket(socket.AF_UNIX)
        self.sock.setblocking(False)
        self.sock.connect(path)

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def all(self, *, is_last: bool = True) -> bytes:
        """What comes until the server ends the connection; our end goes too, if it is the last thing done with it."""
        said = b""
        with contextlib.suppress(ConnectionResetError):  # it did not read all that was said
            while some := await asyncio.get_running_loop().sock_recv(self.sock, 65536):
                said += some
        if is_last:
            self.sock.close()
        return said

    async def refused(self) -> str:
        answer = json.loads(await self.all())
        assert answer.pop("ok") is False
        (error,) = answer.values()
        return error


async def told(data: bytes) -> str:
    """Why what a client says is refused."""
    client = Client()
    await client.say(data)
    return await client.refused()


async def asked(command: str = "status", path: str = "control-a") -> dict[str, Any]:
    return await asyncio.to_thread(ask, path, command, WITHIN_S)


# --- asking and being told


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_reaches_the_master_and_its_answer_the_client(run, folder, command):
    async def scene():
        with serving():
            assert await asked(command) == {"ok": True, "command": command}

    run(scene())


def test_an_answer_is_one_line_of_json_and_the_end_of_the_connection(run, folder):
    async def scene():
        with serving():
            client = Client()
            await client.say(b'{"command": "status"}\n')
            assert await client.all() == b'{"ok": true, "command": "status"}\n'

    run(scene())


def test_a_request_may_come_in_pieces_and_end_without_a_line_end(run, folder):
    async def scene():
        with serving():
            client = Client()
            for byte in b'{"command": "drain"}':
                await client.say(bytes([byte]))
                await turns(1)
            client.sock.shutdown(socket.SHUT_WR)
            assert json.loads(await client.all())["command"] == "drain"

    run(scene())


def test_an_answer_larger_than_the_socket_holds_arrives_whole(run, folder):
    async def scene():
        async def long(command: str) -> dict[str, Any]:
            return {"ok": True, "long": "x" * 4_000_000}

        with serving(long):
            assert len((await asked())["long"]) == 4_000_000

    run(scene())


def test_what_a_command_fails_with_is_the_clients_answer(run, folder):
    async def scene():
        async def fail(command: str) -> dict[str, Any]:
            raise ConfigError(("wstunnel.toml:3: no such option", "wstunnel.toml:4: nor that one"))

        with serving(fail):
            assert await asked("reload") == {
                "ok": False,
                "error": "wstunnel.toml:3: no such option\nwstunnel.toml:4: nor that one",
            }

    run(scene())


def test_a_mistake_of_ours_is_logged_and_the_client_sent_to_the_log(run, folder, caplog):
    async def scene():
        async def fail(command: str) -> dict[str, Any]:
            raise ZeroDivisionError("a mistake")

        with serving(fail):
            with pytest.raises(StartError, match=r"ended the connection without an answer; see the log"):
                await asked()
            with pytest.raises(StartError):
                await asked()

    run(scene())
    assert [record.exc_info[0] for record in caplog.records] == [ZeroDivisionError] * 2


def test_clients_are_answered_while_a_long_command_runs(run, folder):
    async def scene():
        loaded = asyncio.Event()

        async def slow(command: str) -> dict[str, Any]:
            if command == "reload":
                await loaded.wait()
            return {"ok": True, "command": command}

        with serving(slow):
            reload = asyncio.ensure_future(asked("reload"))
            assert (await asked("status"))["command"] == "status"
            assert not reload.done()
            loaded.set()
            assert (await reload)["command"] == "reload"

    run(scene())


def test_a_command_goes_on_when_its_client_has_gone(run, folder):
    async def scene():
        begun, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def slow(command: str) -> dict[str, Any]:
            begun.set()
            await go_on.wait()
            ended.set()
            return {"ok": True}

        with serving(slow):
            client = Client()
            await client.say(b'{"command": "reload"}\n')
            await begun.wait()
            client.sock.close()
            go_on.set()
            await ended.wait()
            assert (await asked())["ok"]

    run(scene())


# --- bad input


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"status", 'not a line of JSON such as {"command": "status"}: status'),
        (b"\xff\x00", r"not a line of JSON such as .*: \\xff\\x00"),
        (b"[" * 3000, "not a line of JSON"),
        (b"9" * 4096, "not a "),
        (b"[]", "not a request such as"),
        (b"{}", "not a request such as"),
        (b'{"command": 7}', "not a request such as"),
        (b'{"command": "halt"}', "unknown command halt: the commands are status, reload, drain, stop"),
        (b'{"command": "STOP"}', "unknown command STOP"),
        (b'{"command": "status", "wide\\n": 1}', r"unknown in a request: wide\\n; it has a command"),
        (b'{"command": "stop"}\n{"command": "stop"}', "one request for each connection"),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(run, folder, line, why):
    async def scene():
        async def never(command: str) -> dict[str, Any]:
            raise AssertionError(command)

        with serving(never):
            assert re.search(why, await told(line + b"\n"))

    run(scene())


def test_a_request_longer_than_the_bound_is_refused_without_waiting_for_its_end(run, folder):
    async def scene():
        with serving(control_bytes=64):
            assert await told(b"x" * 65) == "the request is longer than 64 bytes"
            assert await told(b" " * 1000) == "the request is longer than 64 bytes"

            client = Client()
            await client.say(b'{"command": "status"}'.ljust(64))
            await turns(10)
            await client.say(b"\n")
            assert json.loads(await client.all())["ok"]

    run(scene())


def test_who_says_nothing_gets_no_answer(run, folder, caplog):
    """As the next wstunnel does that looks whether somebody listens here."""

    async def scene():
        with serving():
            client = Client()
            client.sock.shutdown(socket.SHUT_WR)
            assert await client.all() == b""

    run(scene())
    assert not caplog.records


def test_who_asks_too_slowly_is_told_so(run, folder):
    async def scene():
        with serving(control_timeout_s=0.05):
            client = Client()
            await client.say(b'{"command"')
            assert await client.refused() == "no request came within 0.05 s"

    run(scene())


def test_who_does_not_read_its_answer_is_cut_off(run, folder):
    async def scene():
        async def long(command: str) -> dict[str, Any]:
            return {"ok": True, "long": "x" * 4_000_000}

        with serving(long, control_timeout_s=0.05) as server:
            deaf = Client()
            await deaf.say(b'{"command": "status"}\n')
            await eventually(lambda: len(server._clients) == 1, "a client")
            await eventually(lambda: not server._clients, "no client")
            assert 0 < len(await deaf.all()) < 4_000_000

    run(scene())


# --- who may ask


@pytest.mark.parametrize("uid", [0, 4711])
def test_our_own_user_and_root_may_ask(run, folder, monkeypatch, uid):
    async def scene():
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        monkeypatch.setattr(control, "_peer_uid", lambda sock: uid)
        with serving():
            assert (await asked())["ok"]

    run(scene())


def test_another_user_is_told_why_not(run, folder, monkeypatch):
    """Somebody may have widened the socket's mode."""

    async def scene():
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
        monkeypatch.setattr(control, "_peer_uid", lambda sock: 4712)
        with serving():
            assert await asked("stop") == {
                "ok": False,
                "error": "this wstunnel takes orders from uid 4711 and from root, and you are uid 4712",
            }

    run(scene())


def test_the_kernel_says_who_asks():
    near, far = socket.socketpair()
    with near, far:
        assert control._peer_uid(near) == os.geteuid()


def test_the_socket_is_for_its_owner_only(run, folder):
    async def scene():
        with serving():
            assert stat.S_IMODE(os.lstat("control-a").st_mode) == 0o600

    run(scene())


# --- the socket's life


def test_a_stale_socket_is_replaced_and_taken_away_at_the_end(run, folder):
    async def scene():
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind("control-a")
        with serving():
            assert (await asked())["ok"]
        assert os.listdir() == []

    run(scene())


def test_before_an_upgrade_those_who_have_connected_are_served_and_the_others_wait(run, folder):
    """What the image has accepted dies with it; what is in the backlog the next one finds."""

    async def main() -> None:
        answered = asyncio.Event()

        async def slowly(command: str) -> dict[str, Any]:
            await answered.wait()
            return {"ok": True, "command": command}

        with serving(slowly) as server:
            early = asyncio.ensure_future(asked("status"))
            await eventually(lambda: len(server._clients) == 1, "the first client accepted")
            resting = asyncio.ensure_future(server.rest())
            late = asyncio.ensure_future(asked("stop"))
            await turns(20)
            assert not resting.done()
            answered.set()
            await resting
            assert (await early)["command"] == "status"
            assert not late.done()
            server.go_on()
            assert (await late)["command"] == "stop"

    run(main())


def test_going_on_after_an_upgrade_that_failed_lets_in_no_more_than_before(run, folder):
    async def scene():
        begun, answered = 0, asyncio.Event()

        async def slowly(command: str) -> dict[str, Any]:
            nonlocal begun
            begun += 1
            await answered.wait()
            return {"ok": True}

        with serving(slowly, control_clients=1, control_rest_s=0.01) as server:
            clients = [Client(), Client()]
            for client in clients:
                await client.say(b'{"command": "status"}\n')
            await eventually(lambda: begun == 1, "the first client served")
            await server.rest()
            server.go_on()
            await turns(20)
            assert begun == 1
            answered.set()
            for client in clients:
                assert json.loads(await client.all())["ok"]

    run(scene())


def test_where_another_wstunnel_is_controlled_the_remedy_is_named_and_it_goes_on(run, folder):
    async def scene():
        with serving():
            with pytest.raises(
                StartError,
                match=r"unix:control-a: another wstunnel is controlled there; stop it \(.*--control control-a\) or",
            ):
                ControlServer("control-a", echo, LIMITS)
            assert (await asked())["ok"]

    run(scene())


def test_another_wstunnel_that_is_busy_is_another_wstunnel(run, folder):
    async def scene():
        with full_backlog(), pytest.raises(StartError, match="another wstunnel is controlled there"):
            ControlServer("control-a", echo, LIMITS)

    run(scene())


def test_a_path_that_is_something_else_is_refused_and_stays(run, folder):
    async def scene():
        Path("control-a").write_text("precious")
        with pytest.raises(StartError, match=r"control socket unix:control-a: exists and is not a socket"):
            ControlServer("control-a", echo, LIMITS)

    run(scene())
    assert Path("control-a").read_text() == "precious"


def test_a_socket_that_another_has_put_in_our_place_stays(run, folder):
    async def scene():
        with serving():
            os.unlink("control-a")
            Path("control-a").touch()

    run(scene())
    assert os.listdir() == ["control-a"]


def test_closing_cuts_off_who_has_no_answer_yet_and_gives_back_every_descriptor(run, folder):
    async def scene():
        before = open_descriptors()
        begun = asyncio.Event()

        async def endless(command: str) -> dict[str, Any]:
            begun.set()
            await asyncio.Event().wait()
            return {"ok": True}

        with serving(endless) as server:
            waiting, silent = Client(), Client()
            await waiting.say(b'{"command": "stop"}\n')
            await begun.wait()
            just_come = Client()
            server.close()
            assert [await client.all() for client in (waiting, silent, just_come)] == [b""] * 3
        assert open_descriptors() == before

    run(scene())


def test_the_next_image_of_the_process_goes_on_with_the_socket(run, folder):
    """What exec leaves: the descriptor, and what the old image said about it."""

    async def scene():
        async def next_image(command: str) -> dict[str, Any]:
            return {"ok": True, "image": "next"}

        old = ControlServer("control-a", echo, LIMITS)
        exported = json.loads(json.dumps(old.export()))
        kept = os.dup(exported["fd"])
        inode = os.lstat("control-a").st_ino
        old._inode = -1  # exec closes nothing and unlinks nothing
        old.close()
        os.set_inheritable(kept, True)
        early = Client()
        await early.say(b'{"command": "status"}\n')

        server = ControlServer.adopt(exported | {"fd": kept}, next_image, LIMITS)
        try:
            assert not os.get_inheritable(kept)
            assert os.lstat("control-a").st_ino == inode
            assert json.loads(await early.all())["image"] == "next"
            assert (await asked())["image"] == "next"
        finally:
            server.close()
        assert os.listdir() == []

    run(scene())


_IMAGE = """
import asyncio, json, os, sys
from wstunnel.limits import MasterLimits
from wstunnel.server.control import ControlServer

async def main():
    ended = asyncio.Event()

    async def obey(command):
        if command == "reload":
            exported = server.export()
            os.set_inheritable(exported["fd"], True)
            os.execv(sys.executable, [sys.executable, "-c", os.environ["IMAGE"], json.dumps(exported)])
        if command == "stop":
            ended.set()
        return {"ok": True, "pid": os.getpid(), "image": len(sys.argv)}

    if len(sys.argv) == 1:
        server = ControlServer("control-a", obey, MasterLimits())
    else:
        server = ControlServer.adopt(json.loads(sys.argv[1]), obey, MasterLimits())
    print("ready", flush=True)
    await ended.wait()
    server.close()

asyncio.run(main())
"""


def test_an_exec_does_not_interrupt_the_control_of_a_process(folder):
    environment = {"IMAGE": _IMAGE, "PYTHONPATH": os.path.dirname(os.path.dirname(wstunnel.__file__))}
    with subprocess.Popen([sys.executable, "-c", _IMAGE], env=environment, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert ask("control-a", "status", WITHIN_S) == {"ok": True, "pid": process.pid, "image": 1}
        with pytest.raises(StartError, match="without an answer"):
            ask("control-a", "reload", WITHIN_S)
        assert ask("control-a", "status", WITHIN_S) == {"ok": True, "pid": process.pid, "image": 2}
        ask("control-a", "stop", WITHIN_S)
    assert process.returncode == 0
    assert os.listdir() == []


# --- what it may cost


def test_more_clients_than_allowed_wait_in_the_backlog_and_are_served_after(run, folder):
    async def scene():
        running, go_on = 0, asyncio.Event()

        async def slow(command: str) -> dict[str, Any]:
            nonlocal running
            running += 1
            await go_on.wait()
            return {"ok": True}

        with serving(slow, control_clients=2):
            clients = [Client() for _ in range(3)]
            for client in clients:
                await client.say(b'{"command": "status"}\n')
            await eventually(lambda: running == 2, "two served")
            await turns(20)
            assert running == 2
            go_on.set()
            for client in clients:
                assert json.loads(await client.all())["ok"]

    run(scene())


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[Callable[[], None]]:
    """Every descriptor below the limit is taken; the value takes those that have become free since."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, before[1]))

    def take() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(taken[0]))

    try:
        take()
        yield take
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in taken:
            os.close(fd)


def test_one_client_after_the_other_is_answered_when_no_descriptor_is_left(run, folder):
    async def scene():
        with serving():
            socks = [socket.socket(socket.AF_UNIX) for _ in range(3)]
            with no_descriptor_left() as take:
                for sock in socks:
                    client = Client(sock=sock)
                    await client.say(b'{"command": "status"}\n')
                    assert json.loads(await client.all(is_last=False))["ok"]
                    take()
            for sock in socks:
                sock.close()

    run(scene())


def test_the_descriptor_that_was_kept_back_does_not_outlive_the_server(run, folder):
    async def scene():
        begun = asyncio.Event()

        async def endless(command: str) -> dict[str, Any]:
            begun.set()
            await asyncio.Event().wait()
            return {"ok": True}

        before = open_descriptors()
        with socket.socket(socket.AF_UNIX) as sock, serving(endless) as server:
            with no_descriptor_left():
                client = Client(sock=sock)
                await client.say(b'{"command": "status"}\n')
                await begun.wait()
            server.close()
            await client.all(is_last=False)
        assert open_descriptors() == before

    run(scene())


def test_without_a_descriptor_at_all_it_pauses_says_so_once_and_comes_back(run, folder, monkeypatch, caplog):
    async def scene():
        calls = 0
        is_short = True
        accept = socket.socket.accept

        def scarce(sock):
            nonlocal calls
            calls += 1
            if is_short:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return accept(sock)

        monkeypatch.setattr(socket.socket, "accept", scarce)
        with serving(control_pause_s=0.01):
            client = Client()
            await client.say(b'{"command": "status"}\n')
            await eventually(lambda: calls >= 4, "tries after pauses")
            seen = calls
            await turns(50)
            assert calls - seen <= 4
            is_short = False
            assert json.loads(await client.all())["ok"]

    run(scene())
    (record,) = caplog.records
    assert "cannot accept: Too many open files" in record.getMessage()


def test_a_pause_lasts_whoever_goes_meanwhile(run, folder, monkeypatch):
    async def scene():
        calls, go_on = 0, asyncio.Event()
        accept = socket.socket.accept

        def scarce(sock):
            nonlocal calls
            calls += 1
            if calls > 1:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return accept(sock)

        async def slow(command: str) -> dict[str, Any]:
            await go_on.wait()
            return {"ok": True}

        monkeypatch.setattr(socket.socket, "accept", scarce)
        with serving(slow, control_pause_s=WITHIN_S):
            first, second = Client(), Client()
            await first.say(b'{"command": "status"}\n')
            await eventually(lambda: calls == 3, "a try with the descriptor kept back")
            go_on.set()
            await first.all()
            await turns(20)
            assert calls == 3
        second.sock.close()

    run(scene())


def test_closing_during_a_pause_is_the_end(run, folder, monkeypatch):
    async def scene():
        def never(sock):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(socket.socket, "accept", never)
        with serving() as server:
            client = Client()
            await eventually(lambda: server._pause is not None, "a pause")
        client.sock.close()
        assert server._pause.cancelled()

    run(scene())


# --- the client


def answer_one(listener: socket.socket, *pieces: bytes) -> None:
    sock, _ = listener.accept()
    with sock:
        sock.recv(4096)
        for piece in pieces:
            sock.sendall(piece)


@contextlib.contextmanager
def answering(*pieces: bytes, path: str = "control-a") -> Iterator[None]:
    """Somebody who says these pieces to whoever connects, and ends the connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        thread = threading.Thread(target=lambda: answer_one(listener, *pieces))
        thread.start()
        try:
            yield
        finally:
            thread.join()


def test_nobody_there_names_who_is(run, folder):
    async def scene():
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind("control-stale")
        Path("control-file").touch()
        why = (
            r"^unix:control-a: there is no such socket: is wstunnel running, and with this --control\?; "
            r"these are live in \.: control-b, control-c$"
        )
        with (
            serving(path="control-b"),
            serving(path="control-c"),
            serving(path="d.sock"),
            pytest.raises(StartError, match=why),
        ):
            await asked()

    run(scene())


def test_no_more_are_named_than_a_line_holds(run, folder):
    async def scene():
        with contextlib.ExitStack() as stack:
            for number in range(5):
                stack.enter_context(serving(path=f"control-{number}"))
            few, enough = (dataclasses.replace(LIMITS, control_named=count) for count in (2, 5))
            with pytest.raises(StartError, match=r"control-4$"):
                await asyncio.to_thread(ask, "control-a", "status", WITHIN_S, enough)
            with pytest.raises(StartError, match=r"these are live in \.: control-0, control-1 and 3 more$"):
                await asyncio.to_thread(ask, "control-a", "status", WITHIN_S, few)

    run(scene())


@pytest.mark.parametrize("path", ["control-a", "no/control-a", "file/control-a"])
def test_nobody_anywhere_is_one_question(folder, path):
    Path("file").touch()
    with pytest.raises(StartError, match=r"there is no such socket: is wstunnel running, and with this --control\?$"):
        ask(path, "status", WITHIN_S)


def test_a_socket_that_a_killed_wstunnel_left_is_called_that(folder):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind("control-a")
    with pytest.raises(StartError, match=r"nobody listens there: the wstunnel that did has ended$"):
        ask("control-a", "status", WITHIN_S)


def test_what_another_user_runs_is_not_to_be_asked(folder, monkeypatch):
    monkeypatch.setattr(socket, "socket", failing_socket(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(StartError, match=r"you may not connect there; be the user that wstunnel runs as, or root"):
        ask("control-a", "status", WITHIN_S)


def test_any_other_failure_is_an_error_of_ours(folder, monkeypatch):
    monkeypatch.setattr(socket, "socket", failing_socket(OSError(errno.EPROTOTYPE, "Protocol wrong type for socket")))
    with pytest.raises(StartError, match=r"cannot be connected: Protocol wrong type"):
        ask("control-a", "status", WITHIN_S)


def failing_socket(error: OSError) -> Callable[..., socket.socket]:
    class Failing(socket.socket):
        def connect(self, path):
            raise error

    return Failing


def test_a_path_too_long_for_a_socket_is_said_to_be(folder):
    with pytest.raises(StartError, match=r"the path is 120 bytes long and a UNIX socket carries at most 107"):
        ask("é" * 60, "status", WITHIN_S)


@contextlib.contextmanager
def full_backlog() -> Iterator[socket.socket]:
    """Somebody who listens, and whose backlog has no room."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind("control-a")
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect("control-a")
        yield listener


def test_a_full_backlog_is_waited_for_and_then_said(folder):
    with full_backlog(), pytest.raises(StartError, match=r"busy with others and took no connection within 0\.05 s"):
        ask("control-a", "status", 0.05)


def test_room_in_a_backlog_is_taken(folder, monkeypatch):
    with full_backlog() as listener:
        thread = threading.Thread(target=lambda: answer_one(listener, b'{"ok": true}\n'))

        def make_room(seconds: float) -> None:
            listener.accept()[0].close()
            thread.start()

        monkeypatch.setattr(time, "sleep", make_room)
        assert ask("control-a", "status", WITHIN_S) == {"ok": True}
        thread.join()


def test_an_end_before_the_question_was_read_is_an_end_without_an_answer(folder):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("control-a")
        listener.listen()

        def close_unread() -> None:
            sock, _ = listener.accept()
            select.select([sock], [], [])
            sock.close()  # the kernel tells the client of a reset

        thread = threading.Thread(target=close_unread)
        thread.start()
        with pytest.raises(StartError, match="ended the connection without an answer"):
            ask("control-a", "status", WITHIN_S)
        thread.join()


def test_an_answer_that_trickles_in_is_bound_by_the_same_time(folder):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("control-a")
        listener.listen()
        heard = threading.Event()

        def trickle() -> None:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                while not heard.wait(0.005):
                    sock.sendall(b" ")

        thread = threading.Thread(target=trickle)
        thread.start()
        with pytest.raises(StartError, match=r"no answer within 0\.1 s"):
            ask("control-a", "status", 0.1)
        heard.set()
        thread.join()


@pytest.mark.parametrize("timeout_s", [0, 0.05])
def test_no_answer_in_time_is_said(folder, timeout_s):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("control-a")
        listener.listen()
        with pytest.raises(StartError, match=rf"unix:control-a: no answer within {timeout_s} s; see the log"):
            ask("control-a", "status", timeout_s)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n", b"[]\n", b"{}\n", b'{"ok": 1}\n', b"[" * 3000])
def test_an_answer_that_is_not_ours_is_not_believed(folder, answer):
    with answering(answer), pytest.raises(StartError, match=r"no wstunnel of this version answers there: [\[{H]"):
        ask("control-a", "status", WITHIN_S)


def test_an_answer_in_pieces_is_put_together(folder):
    with answering(b'{"ok": ', b"true", b"}\n"):
        assert ask("control-a", "status", WITHIN_S) == {"ok": True}


def test_an_endless_answer_is_not_read_for_ever(folder):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("control-a")
        listener.listen()
        read = 0

        def flood() -> None:
            nonlocal read
            sock, _ = listener.accept()
            with sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                while True:
                    read += sock.send(b"x" * 4096)

        thread = threading.Thread(target=flood)
        thread.start()
        with pytest.raises(StartError, match="no wstunnel of this version answers there"):
            ask("control-a", "status", WITHIN_S, dataclasses.replace(LIMITS, control_answer_bytes=100_000))
        thread.join()
        assert read < 10_000_000


def test_a_refusal_is_read_although_nobody_heard_the_question(folder, monkeypatch):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("control-a")
        listener.listen()

        class Late(socket.socket):
            def sendall(self, data, *flags):
                fd, _ = listener._accept()
                os.write(fd, b'{"ok": false, "error": "not you"}\n')
                os.close(fd)
                super().sendall(data, *flags)

        monkeypatch.setattr(socket, "socket", Late)
        assert ask("control-a", "status", WITHIN_S)["error"] == "not you"
