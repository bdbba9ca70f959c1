"""Arguments in, exit code and words out; the master itself is a stand-in here."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from tests.authority import Authority
from wstunnel import __version__, cli
from wstunnel.config.toml import load
from wstunnel.errors import ConfigError, StartError
from wstunnel.server.certificates import Material, read_front
from wstunnel.server.image import STATE_FORMAT, STATE_VARIABLE, Image
from wstunnel.server.master import SIGNALS
from wstunnel.server.notify import Notifier
from wstunnel.settings import Address, Front, Settings, TcpAddress, UnixAddress

ROUTE = ("--port", "7000")


@pytest.fixture(autouse=True)
def _own_folder_and_loggers(tmp_path, monkeypatch) -> Iterator[None]:
    """A current folder and a runtime folder of its own; loggers and signals as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    loggers = [logging.getLogger(name) for name in ("wstunnel", "asyncio")]
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    signals = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    for number, handler in signals.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    for logger, handlers, propagate, level in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


Part = Callable[["FakeMaster"], Awaitable[None]]


class FakeMaster:
    """Listens nowhere; `on_start` and `on_stop` say what happens meanwhile."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_start: Part,
        on_stop: Part,
        material: Material,
        reread: Callable[[Material], tuple[Settings, Material]],
        control_at: Callable[[Settings, Sequence[Address]], str],
        passed: Sequence[object],
        notifier: Notifier,
        on_serving: Callable[[Sequence[Address]], None],
        image: Image,
        inherited: dict[str, Any] | None,
    ) -> None:
        self.settings, self.image, self.inherited = settings, image, inherited
        self.material = material
        self.reread, self.control_at, self.passed = partial(reread, material), control_at, passed
        self.calls: list[str] = []
        self.called = asyncio.Event()
        self._on_start, self._on_stop, self._on_serving = on_start, on_stop, on_serving
        self._is_asked = asyncio.Event()
        notifier.close()

    async def run(self) -> None:
        self.calls.append("run")
        await self._on_start(self)
        self._on_serving(
            [
                TcpAddress(each.host, each.port or 4711) if isinstance(each, TcpAddress) else each
                for each in self.settings.addresses
            ]
        )
        await self._is_asked.wait()
        await self._on_stop(self)
        self.calls.append("ended")

    async def until(self, *calls: str) -> None:
        """What was called last, in this order."""
        async with asyncio.timeout(30):
            while self.calls[-len(calls) :] != list(calls):
                self.called.clear()
                await self.called.wait()

    def _note(self, name: str) -> None:
        self.calls.append(name)
        self.called.set()

    def stop(self) -> None:
        self._note("stop")
        self._is_asked.set()

    def reload(self) -> None:
        self._note("reload")

    def reopen(self) -> None:
        self._note("reopen")

    def upgrade(self) -> None:
        self._note("upgrade")


async def nothing(master: FakeMaster) -> None:
    pass


def send(*numbers: signal.Signals) -> Part:
    async def part(master: FakeMaster) -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return part


end = send(signal.SIGTERM)


class Run:
    """`run(*words)`: the exit code of a command line whose master, `run.master`, gets SIGTERM once it has started."""

    master: FakeMaster

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, *words: str, on_start: Part = end, on_stop: Part = nothing) -> int:
        def make(settings: Settings, **given: Any) -> FakeMaster:
            self.master = FakeMaster(settings, on_start=on_start, on_stop=on_stop, **given)
            return self.master

        self._monkeypatch.setattr(cli, "Master", make)
        return cli.main(words)


@pytest.fixture
def run(monkeypatch) -> Iterator[Run]:
    """Signals are as before afterwards."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield Run(monkeypatch)
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


# --- without a run


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["check", "--help"], ["--nonsense", "--help"]])
def test_help_is_printed_and_ends_well(words, capfd):
    assert cli.main(words) == 0
    out, err = capfd.readouterr()
    assert out.startswith("usage: wstunnel [flags]")
    assert err == ""


def test_the_version_is_printed_and_ends_well(capfd):
    assert cli.main(["--version"]) == 0
    assert capfd.readouterr().out == f"wstunnel {__version__}\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            [],
            "nothing to serve: give --bin-path, --socket, --port, --stdio, --document-root or -f; --help has examples",
        ),
        (["chek"], "chek: unknown command; did you mean check?"),
        (["serve", "--port", "1"], "serve: unknown command"),
        (["--port"], "--port: expected one argument"),
        (["--prot", "1", *ROUTE], "--prot: unknown flag; did you mean --port?"),
        (["-f", "missing.toml"], "missing.toml: cannot be read: no such file or directory"),
        (["check", "-f", "missing.toml"], "missing.toml: cannot be read: no such file or directory"),
    ],
)
def test_what_cannot_be_used_is_told_and_ends_with_2(words, text, capfd):
    assert cli.main(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err == f"wstunnel: {text}\n"


def test_every_problem_has_a_line(capfd):
    assert cli.main(["check", "--port", "0", "--path", "x"]) == 2
    assert [line.split()[1] for line in capfd.readouterr().err.splitlines()] == ["--path:", "--port:"]


def test_check_prints_a_file_that_can_be_loaded(capfd, tmp_path):
    assert cli.main(["check", *ROUTE, "--listen", "[::]:80"]) == 0
    out, err = capfd.readouterr()
    (tmp_path / "again.toml").write_text(out)
    again = load("again.toml")
    assert again.listen == (TcpAddress("::", 80),)
    assert again.routes[0].port == 7000
    assert err == ""
    assert cli.main(["check", "-f", "again.toml"]) == 0
    assert capfd.readouterr().out == out


def test_convert_prints_a_lighttpd_conf_as_a_file_that_can_be_loaded(capfd, tmp_path):
    (tmp_path / "a.conf").write_text('server.modules = ("mod_proxy")\nproxy.server = ("" => (("port" => 1)))\n')
    assert cli.main(["convert", "a.conf"]) == 0
    out, err = capfd.readouterr()
    (tmp_path / "again.toml").write_text(out)
    assert load("again.toml").routes[0].gateway == "proxy"
    assert err == ""
    assert cli.main(["check", "-f", "a.conf"]) == 0
    assert capfd.readouterr().out == out


def test_check_tells_warnings_apart_from_the_file(capfd, tmp_path):
    (tmp_path / "a.toml").write_text("[[route]]\nport = 1\n[[route]]\nport = 2\n")
    assert cli.main(["check", "-f", "a.toml"]) == 0
    out, err = capfd.readouterr()
    assert "never" not in out
    assert (
        err == "wstunnel: warning: a.toml:3: route[2].path: never reached, a.toml:1: route[1] takes all its requests\n"
    )


# --- with a run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_well(run, number, capfd):
    assert run(*ROUTE, on_start=send(number)) == 0
    assert run.master.calls == ["run", "stop", "ended"]
    assert f" info wstunnel {number.name}: ending\n" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("number", "call"), [(signal.SIGHUP, "reload"), (signal.SIGUSR1, "reopen"), (signal.SIGUSR2, "upgrade")]
)
def test_other_signals_ask_for_what_they_stand_for_and_end_nothing(run, number, call, capfd):
    async def start(master: FakeMaster) -> None:
        for _ in range(2):
            os.kill(os.getpid(), number)
            await master.until(call)
            master.calls.append("heard")
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(*ROUTE, on_start=start) == 0
    assert run.master.calls == ["run", call, "heard", call, "heard", "stop", "ended"]
    assert number.name not in capfd.readouterr().err


def test_a_second_signal_cuts_the_stop_short(run, capfd):
    async def stop(master: FakeMaster) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await master.until("stop", "stop")

    assert run(*ROUTE, on_stop=stop) == 0
    assert run.master.calls == ["run", "stop", "stop", "ended"]
    assert " info wstunnel SIGINT again: ending at once\n" in capfd.readouterr().err


def test_a_flood_of_signals_is_no_flood_of_lines(run, capfd):
    """A pipe that nobody reads is full at some point, and the stop would hang in a line about the stop."""

    async def stop(master: FakeMaster) -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            await master.until("stop", "stop")
            master.calls.append("heard")
            master.calls.append("stop")

    assert run(*ROUTE, on_stop=stop) == 0
    assert run.master.calls.count("heard") == 3
    assert capfd.readouterr().err.count("again") == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_to_be_ignored_is_ignored(run, number):
    """SIGHUP by nohup, SIGINT by a shell's &."""
    signal.signal(number, signal.SIG_IGN)

    async def start(master: FakeMaster) -> None:
        os.kill(os.getpid(), number)
        for _ in range(10):
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(*ROUTE, on_start=start) == 0
    assert run.master.calls == ["run", "stop", "ended"]


def test_signals_that_an_upgrade_has_held_back_are_heard(run):
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # to this thread: others do not block it
        assert run(*ROUTE, on_start=nothing) == 0
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def test_signals_behind_the_end_are_ignored(run):
    assert run(*ROUTE) == 0
    for number in SIGNALS:
        os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_IGN


def test_what_cannot_be_had_is_told_and_ends_with_1(run, capfd):
    async def start(master: FakeMaster) -> None:
        raise StartError("127.0.0.1:8081: another process listens there")

    assert run(*ROUTE, on_start=start) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "wstunnel: 127.0.0.1:8081: another process listens there\n"


def test_each_listener_is_told_with_its_real_port_and_what_to_open(run, capfd, tmp_path):
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "index.html").write_text("")
    words = "--listen unix:http.sock --listen [::]:0 --listen 127.0.0.1:80 --document-root www --path /ws/"
    assert run(*words.split(), *ROUTE) == 0
    assert capfd.readouterr().out == (
        f"wstunnel {__version__} listening on unix:{tmp_path}/http.sock\n"
        f"wstunnel {__version__} listening on http://[::]:4711/\n"
        f"wstunnel {__version__} listening on http://127.0.0.1:80/\n"
        "  page       http://[::1]:4711/\n"
        "  websocket  ws://[::1]:4711/ws/\n"
    )


def test_a_folder_without_an_index_has_no_page_to_open(run, capfd, tmp_path):
    assert run("--document-root", ".") == 0
    assert capfd.readouterr().out == f"wstunnel {__version__} listening on http://127.0.0.1:8081/\n"


def test_a_unix_listener_alone_has_nothing_to_open(run, capfd, tmp_path):
    assert run("--listen", "unix:a", *ROUTE) == 0
    assert capfd.readouterr().out == f"wstunnel {__version__} listening on unix:{tmp_path}/a\n"


def test_warnings_are_logged_at_the_start(run, capfd, tmp_path):
    (tmp_path / "a.toml").write_text("[[route]]\nport = 1\n[[route]]\nport = 2\n")
    assert run("-f", "a.toml", "--log-format", "json") == 0
    assert (
        '"level": "warning", "logger": "wstunnel", "message": "a.toml:3: route[2].path: never' in capfd.readouterr().err
    )


def test_settings_reach_the_master(run):
    assert run("--listen", "unix:/a", *ROUTE) == 0
    assert run.master.settings.listen == (UnixAddress("/a"),)
    assert run.master.settings.routes[0].port == 7000


def test_what_is_read_again_is_what_stands_there_then(run, tmp_path, capfd):
    path = tmp_path / "a.toml"
    path.write_text("[[route]]\nport = 1\n")

    async def start(master: FakeMaster) -> None:
        path.write_text('user = "nobody"\n[[route]]\nport = 2\n[[route]]\nport = 3\n')
        assert [route.port for route in master.reread()[0].routes] == [2, 3]
        path.write_text("[[route]\n")
        with pytest.raises(ConfigError, match=r"a\.toml:1: "):
            master.reread()
        await end(master)

    assert run("-f", "a.toml", on_start=start) == 0
    said = capfd.readouterr().err
    assert "user: a reload does not change it" in said
    assert "route[2].path: never reached" in said


def test_the_control_socket_is_where_it_was_asked_for(run, tmp_path):
    assert run(*ROUTE, "--control", "here") == 0
    assert run.master.control_at(run.master.settings, ()) == str(tmp_path / "here")


def test_an_image_says_how_to_start_us_again(run):
    assert run(*ROUTE) == 0
    assert run.master.image == Image((sys.executable, "-m", "wstunnel"), ROUTE)
    assert run.master.inherited is None


def left_behind(**state: Any) -> str:
    fd = os.memfd_create("state")
    os.write(fd, json.dumps(state).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return str(fd)


def test_what_the_image_before_has_left_reaches_the_master_and_no_child(run, monkeypatch):
    notify = {"address": None, "watchdog_s": None}
    monkeypatch.setenv(STATE_VARIABLE, left_behind(format=STATE_FORMAT, notify=notify, generation=7, material={}))
    assert run(*ROUTE) == 0
    assert run.master.inherited["generation"] == 7
    assert STATE_VARIABLE not in os.environ


@pytest.mark.parametrize("command", [(), ("check",)])
def test_the_state_of_another_version_cannot_be_used(run, monkeypatch, capfd, command):
    monkeypatch.setenv(STATE_VARIABLE, left_behind(format=0))
    assert run(*command, *ROUTE) == 1
    assert "this version cannot go on where the one that runs has stopped" in capfd.readouterr().err


def test_a_stdout_that_nobody_reads_is_no_reason_to_end(tmp_path):
    """It may have been closed by now: an upgrade tells again where it listens."""
    program = (
        "import os, signal, sys, threading\n"
        "from wstunnel import cli\n"
        "class Master:\n"
        "    def __init__(self, *_, notifier, on_serving, **__): self.tell = on_serving\n"
        "    async def run(self): self.tell([]); self.tell(cli.Settings().listen); sys.stderr.write('went on')\n"
        "cli.Master = Master\n"
        "sys.exit(cli.main(['--port', '7000']))\n"
    )
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with open(write_fd, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=os.path.dirname(cli.__file__) + "/..",
            env={**os.environ, "RUNTIME_DIRECTORY": str(tmp_path)},
            stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "went on")


def test_the_module_can_be_run():
    done = subprocess.run([sys.executable, "-m", "wstunnel", "--nothing"], cwd=os.path.dirname(cli.__file__) + "/..",
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("wstunnel: --nothing: unknown flag")


def test_certificates_that_the_image_before_has_read_stay_at_hand(run, monkeypatch, authority: Authority):
    files = authority.files("a")
    front = Front(tls_cert=(files.cert,), tls_key=(files.key,))
    material = read_front(front, trusted=frozenset({os.geteuid()})).material
    notify = {"address": None, "watchdog_s": None}
    state = {"format": STATE_FORMAT, "notify": notify, "material": material.export()}
    opened = os.open

    def checked(path: str, *more: int, **options: int) -> int:
        if path == files.key:
            raise PermissionError(13, "Permission denied")
        return opened(path, *more, **options)

    monkeypatch.setattr(os, "open", checked)
    words = (*ROUTE, "--tls-cert", files.cert, "--tls-key", files.key)
    assert run(*words) == 2
    assert run("check", *words) == 2
    for command in ((), ("check",)):
        monkeypatch.setenv(STATE_VARIABLE, left_behind(**state))
        assert run(*command, *words) == 0
    assert run.master.material == material


def test_it_greets_with_https_where_there_is_tls(run, capfd, authority: Authority):
    files = authority.files("a")
    assert run(*ROUTE, "--listen", "127.0.0.1:0", "--listen", "unix:/a", "--tls-cert", files.both) == 0
    assert capfd.readouterr().out.splitlines() == [
        f"wstunnel {__version__} listening on https://127.0.0.1:4711/",
        f"wstunnel {__version__} listening on unix:/a with TLS",
        "  websocket  wss://127.0.0.1:4711/",
    ]
