"""Commands to one that runs, end to end: status, reload, drain, stop, and what is said when nobody is there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run
from tests.system.programs import DEADLINE_S, ECHO, is_alive, program
from tests.wire.clients import TEXT, Client, close_frame, frame
from wstunnel import TcpAddress, cli

ROOT = Path(cli.__file__).parent.parent

TWO = "max-procs = 2\nmin-procs = 1"

ENVIRONMENT = r"""
    opendir my $fds, "/proc/self/fd";
    my @fds = sort { $a <=> $b } grep { /^\d+$/ && $_ != fileno(STDIN) && readlink "/proc/self/fd/$_" } readdir $fds;
    my $said = join(",", @fds) . "\n" . join("\n", map { "$_=$ENV{$_}" } sort keys %ENV) . "\n.\n";
    """


class Service:
    """A running `python -m wstunnel -f FILE` with a folder, a file and a runtime folder of its own."""

    def __init__(self, folder: Path, text: str, *, name: str = "wstunnel.toml", is_waited_for: bool = True) -> None:
        self.file = folder / name
        self.file.write_text(text)
        self.environ = {**os.environ, "RUNTIME_DIRECTORY": str(folder / "run"), "SECRET": "sesame", "COLUMNS": "120"}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "wstunnel", "-f", str(self.file)],
            cwd=folder,
            env={**self.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self.process.stdout is not None
        greeting = self.process.stdout.readline() if is_waited_for else ""
        found = re.search(r"https?://127\.0\.0\.1:([0-9]+)/", greeting)
        assert found or not is_waited_for, self.log()
        self.address = TcpAddress("127.0.0.1", int(found[1]) if found else 0)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *about: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.communicate()
        self._log.close()

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def command(self, *words: str, file: str | None = None) -> subprocess.CompletedProcess[str]:
        """One of the commands, as an operator gives it."""
        return subprocess.run(
            [sys.executable, "-m", "wstunnel", *words, "-f", file or str(self.file)],
            cwd=ROOT,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S * 2,
            check=False,
        )

    def done(self, *words: str) -> str:
        """What a command that succeeds says."""
        done = self.command(*words)
        assert (done.returncode, done.stderr) == (0, ""), self.log()
        return done.stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.done("status", "--json"))
        return found

    def ended(self) -> int:
        return self.process.wait(DEADLINE_S)


def text_of(folder: Path, *routes: str, more: str = "") -> str:
    tables = "".join(f"[[route]]\n{route}\n" for route in routes)
    return f'listen = ["127.0.0.1:0"]\nallow-unsafe-places = true\n{more}\n{tables}'


def echo_route(folder: Path, path: str = "/", more: str = "") -> str:
    argv = program(folder, ECHO, f"echo{path.strip('/')}")
    return f'path = "{path}"\nsocket = "{folder}/b{path.strip("/")}"\nbin-path = "{argv[0]}"\n{more}'


@pytest.fixture
def run() -> Run:
    return Run("uvloop")


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.01)


async def tunnel(service: Service, path: str = "/") -> Client:
    client = await Client.reach(service.address)
    await client.upgrade(path)
    await echoes(client)
    return client


async def echoes(client: Client) -> None:
    await client.send(frame(TEXT, b"hello\n"))
    assert await client.payload(6) == b"hello\n"


async def heard(client: Client) -> bytes:
    """What comes next."""
    got = await client.frame()
    assert got is not None, "the end came first"
    return bytes(got.data) if got.opcode is TEXT else b""


async def told(service: Service, *words: str) -> str:
    return await asyncio.to_thread(service.done, *words)


async def goes(client: Client) -> None:
    await client.send(close_frame(1000))
    assert (await client.to_end()).code == 1000
    client.close()


# --- status


def test_status_is_a_table_for_people_and_json_for_machines(run: Run, tmp_path):
    async def story(service: Service) -> None:
        client, other = await tunnel(service), await tunnel(service, "/cat")
        try:
            status = await asyncio.to_thread(service.status)
            assert status["pid"] == service.process.pid
            assert (status["state"], status["generation"]) == ("serving", 1)
            assert [worker["state"] for worker in status["workers"]] == ["serving", "serving"]
            assert sum(worker["tunnels"] for worker in status["workers"]) == 2
            (pool,) = status["pools"]
            assert [slot["state"] for slot in pool["slots"]] == ["running", "idle"]
            assert [slot["load"] for slot in pool["slots"]] == [1, 0]
            assert is_alive(pool["slots"][0]["pid"])
            assert [each["running"] for each in status["stdio"]] == [1]
            usual = {"routes": ["/cgi/"], "running": 0, "max_forks": 7, "forked": 0, "failed": 0}
            assert status["cgi"] == [{"name": str(tmp_path), **usual}]

            table = await told(service, "status")
            assert f"pid {service.process.pid}  serving" in table
            assert f"listening on  127.0.0.1:{service.address.port}" in table
            assert re.search(r"^ +1 +[0-9]+  serving", table, re.MULTILINE)
            assert re.search(r"^ +echo-0 +[0-9]+  running", table, re.MULTILINE)
            assert re.search(r"^ +echo-1 +-  idle", table, re.MULTILINE)
            assert re.search(r"^cat +/cat +1 ", table, re.MULTILINE)
            assert re.search(r"^PER REQUEST .*\n.* +/cgi/ +0 +7 +0 +0$", table, re.MULTILINE)
        finally:
            await goes(client)
            await goes(other)

    scripts = f'path = "/cgi/"\ngateway = "cgi"\nalias = "{tmp_path}"\ncgi-assign = {{ ".pl" = "" }}\nmax-forks = 7'
    routes = ('path = "/cat"\nstdio = "cat"', scripts, echo_route(tmp_path, more=TWO))
    with Service(tmp_path, text_of(tmp_path, *routes, more="workers = 2")) as service:
        run(story(service))


# --- reload


def test_a_reload_serves_what_stands_in_the_file_and_tunnels_go_on(run: Run, tmp_path):
    async def story(service: Service) -> None:
        old = await tunnel(service)
        before = (await asyncio.to_thread(service.status))["pools"]
        text = text_of(tmp_path, echo_route(tmp_path, more=TWO), 'path = "/cat"\nstdio = "cat"', more="workers = 2")
        service.file.write_text(text.replace("127.0.0.1:0", str(service.address)))
        assert await told(service, "reload") == ""
        await echoes(old)
        status = await asyncio.to_thread(service.status)
        assert (status["state"], status["generation"]) == ("serving", 2)
        states = sorted((worker["generation"], worker["state"]) for worker in status["workers"])
        assert states == [(1, "quiet"), (2, "serving"), (2, "serving")]
        assert status["pools"][0]["slots"][0]["pid"] == before[0]["slots"][0]["pid"]
        await goes(await tunnel(service))
        await goes(old)
        until(lambda: len(service.status()["workers"]) == 2, "the old worker is gone")

    with Service(tmp_path, text_of(tmp_path, echo_route(tmp_path, more=TWO))) as service:
        run(story(service))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text + "\n[[route]]\nprot = 1\n", r"route\[2\]\.prot: unknown; did you mean port\?"),
        (lambda text: text.replace('["127.0.0.1:0"]', '["127.0.0.1:0", "unix:/proc/no"]'), "/proc/no"),
    ],
    ids=["a typo", "an address that cannot be bound"],
)
def test_a_reload_of_what_cannot_be_used_says_why_and_changes_nothing(run: Run, tmp_path, change, why):
    async def story(service: Service) -> None:
        client = await tunnel(service)
        before = await asyncio.to_thread(service.status)
        right = service.file.read_text()
        service.file.write_text(change(right))
        control = next((tmp_path / "run").iterdir())
        done = await asyncio.to_thread(service.command, "reload", "--control", str(control), file="/dev/null")
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert re.search(why, done.stderr), done.stderr
        assert done.stderr.startswith("wstunnel: ")
        service.process.send_signal(signal.SIGHUP)
        until(lambda: "reload: nothing has changed: " in service.log(), "the log says it too")
        service.file.write_text(right)
        after = await asyncio.to_thread(service.status)
        assert (after["state"], after["generation"]) == ("serving", 1)
        assert [each["pid"] for each in after["workers"]] == [each["pid"] for each in before["workers"]]
        await echoes(client)
        await goes(client)
        await goes(await tunnel(service))

    with Service(tmp_path, text_of(tmp_path, echo_route(tmp_path))) as service:
        run(story(service))


# --- drain, stop


def test_a_drain_lets_the_last_tunnel_finish_and_refuses_new_ones(run: Run, tmp_path):
    async def story(service: Service) -> None:
        client = await tunnel(service)
        assert await told(service, "drain") == ""
        control = next((tmp_path / "run").iterdir())
        status = json.loads(await told(service, "status", "--json", "--control", str(control)))
        assert status["state"] == "draining"
        assert "not listening any more" in await told(service, "status", "--control", str(control))
        with pytest.raises(ConnectionRefusedError):
            await Client.reach(service.address)
        await echoes(client)
        assert service.process.poll() is None
        await goes(client)
        assert await asyncio.to_thread(service.ended) == 0

    with Service(tmp_path, text_of(tmp_path, echo_route(tmp_path))) as service:
        run(story(service))
        assert "error" not in service.log()
    assert left_in(tmp_path) == []


def left_in(folder: Path) -> list[str]:
    """What was not there before."""
    return sorted(each.name for each in folder.iterdir() if each.name not in {"wstunnel.toml", "echo", "told"})


def test_a_stop_asks_clients_to_leave_and_returns_when_all_is_over(run: Run, tmp_path):
    async def story(service: Service) -> None:
        client = await tunnel(service)
        stopping = asyncio.create_task(told(service, "stop"))
        assert (await client.to_end(answer=True)).code == 1001
        client.close()
        assert await stopping == ""
        assert service.process.poll() == 0

    with Service(tmp_path, text_of(tmp_path, echo_route(tmp_path))) as service:
        pids = [each["pid"] for each in service.status()["workers"]]
        run(story(service))
        assert not any(map(is_alive, pids))
    assert left_in(tmp_path) == []


# --- nobody there, or too many


def test_a_wrong_control_path_names_the_right_one(tmp_path):
    with Service(tmp_path, text_of(tmp_path, echo_route(tmp_path))) as service:
        name = next((tmp_path / "run").iterdir()).name
        wrong = str(tmp_path / "run" / "nobody.control")
        done = service.command("status", "--control", wrong)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{wrong}: there is no such socket" in done.stderr
        assert name in done.stderr
        service.done("stop")
        done = service.command("reload", "--control", str(tmp_path / "run" / name))
        assert (done.returncode, done.stdout) == (1, "")
        assert "there is no such socket: is wstunnel running" in done.stderr


def test_a_second_wstunnel_with_the_same_control_socket_does_not_start(tmp_path):
    (tmp_path / "second").mkdir()
    more = f'control = "{tmp_path}/control"'
    with Service(tmp_path, text_of(tmp_path, echo_route(tmp_path), more=more)) as first:
        text = text_of(tmp_path, 'socket = "/nowhere"', more=more)
        with Service(tmp_path / "second", text, is_waited_for=False) as second:
            assert second.ended() == 1
            assert re.search(
                rf"unix:{tmp_path}/control: another wstunnel is controlled there; stop it "
                rf"\(wstunnel stop --control {tmp_path}/control\)",
                second.log(),
            )
        assert first.status()["state"] == "serving"


# --- what a backend gets of us


@pytest.mark.parametrize("kind", ["bin-path", "stdio"])
def test_a_backend_has_the_listed_environment_and_three_descriptors(run: Run, tmp_path, kind):
    """Through a real master, that holds listeners, a board, channels and a control socket."""
    serve = "accept(my $client, \\*STDIN); syswrite $client, $said; close $client; sleep 1000;"
    talk = "syswrite STDOUT, $said;"
    argv = program(tmp_path, ENVIRONMENT + (talk if kind == "stdio" else serve), "told")
    options = 'bin-environment = { COLOUR = "red" }\nbin-copy-environment = ["COLUMNS"]'
    place = "" if kind == "stdio" else f'socket = "{tmp_path}/b"\n'
    route = f'path = "/"\n{place}{kind} = "{argv[0]}"\n{options}'

    async def story(service: Service) -> None:
        client = await Client.reach(service.address)
        await client.upgrade()
        said = b""
        async with asyncio.timeout(DEADLINE_S):
            while not said.endswith(b"\n.\n"):
                said += await heard(client)
        assert (await client.to_end(answer=True)).code == 1000
        client.close()
        fds, *variables = said.decode().removesuffix("\n.\n").split("\n")
        assert set(fds.split(",")) <= {"1", "2", "3", "4"}  # perl's own: its script, and the folder that it reads
        names = {variable.partition("=")[0] for variable in variables}
        ours = {name for name in names if kind == "bin-path" or not re.match("HTTP_|REQUEST_|REMOTE_|SERVER_", name)}
        of_requests = {"GATEWAY_INTERFACE", "QUERY_STRING", "PATH_INFO", "SCRIPT_NAME"} if kind == "stdio" else set()
        assert ours == {"PATH", "COLOUR", "COLUMNS"} | of_requests
        assert "COLUMNS=120" in variables

    with Service(tmp_path, text_of(tmp_path, route)) as service:
        run(story(service))


# --- a master that is killed


def test_without_their_master_workers_serve_their_tunnels_to_the_end_and_exit(run: Run, tmp_path):
    """Nobody is left who could end the backends: they live on, and a service manager ends them with the group."""

    async def story(service: Service, status: dict[str, Any]) -> None:
        pids = [each["pid"] for each in status["workers"]]
        backend = status["pools"][0]["slots"][0]["pid"]
        client = await tunnel(service)
        service.process.kill()
        await asyncio.to_thread(service.ended)
        until(lambda: service.log().count("the master is gone") == len(pids), "all have seen it")
        await refused(service)
        await echoes(client)
        await goes(client)
        until(lambda: not any(map(is_alive, pids)), "the workers have ended")
        assert is_alive(backend)

    with Service(tmp_path, text_of(tmp_path, echo_route(tmp_path), more="workers = 2")) as service:
        status = service.status()
        try:
            run(story(service, status))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(status["pools"][0]["slots"][0]["pid"], signal.SIGKILL)


async def refused(service: Service) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        assert time.monotonic() < deadline, "clients are still let in"
        try:
            client = await Client.reach(service.address)
        except ConnectionRefusedError:
            return
        client.close()
        await asyncio.sleep(0.01)
