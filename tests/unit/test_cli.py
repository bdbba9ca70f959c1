"""Arguments in, exit code and words out; the tunnel itself is a stand-in here."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator

import pytest

from wstunnel import __version__, cli
from wstunnel.config.toml import load
from wstunnel.errors import StartError
from wstunnel.settings import Address, Settings, TcpAddress, UnixAddress

ROUTE = ("--port", "7000")


@pytest.fixture(autouse=True)
def _own_folder_and_loggers(tmp_path, monkeypatch) -> Iterator[None]:
    """A current folder of its own; loggers and signals as they were."""
    monkeypatch.chdir(tmp_path)
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


Part = Callable[["FakeTunnel"], Awaitable[None]]


class FakeTunnel:
    """Listens nowhere; `on_start` and `on_stop` say what happens meanwhile."""

    def __init__(self, settings: Settings, on_start: Part, on_stop: Part) -> None:
        self.settings = settings
        self.calls: list[str] = []
        self.aborted = asyncio.Event()
        self._on_start, self._on_stop = on_start, on_stop

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(
            TcpAddress(each.host, each.port or 4711) if isinstance(each, TcpAddress) else each
            for each in self.settings.listen
        )

    async def __aenter__(self) -> FakeTunnel:
        self.calls.append("start")
        await self._on_start(self)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.calls.append("stop")
        await self._on_stop(self)
        self.calls.append("stopped")

    def abort(self) -> None:
        self.calls.append("abort")
        self.aborted.set()


async def nothing(tunnel: FakeTunnel) -> None:
    pass


def send(number: signal.Signals) -> Part:
    async def part(tunnel: FakeTunnel) -> None:
        os.kill(os.getpid(), number)

    return part


end = send(signal.SIGTERM)


class Run:
    """`run(*words)`: the exit code of a command line whose tunnel, `run.tunnel`, gets SIGTERM once it has started."""

    tunnel: FakeTunnel

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, *words: str, on_start: Part = end, on_stop: Part = nothing) -> int:
        def make(settings: Settings) -> FakeTunnel:
            self.tunnel = FakeTunnel(settings, on_start, on_stop)
            return self.tunnel

        self._monkeypatch.setattr(cli, "Tunnel", make)
        return cli.main(words)


@pytest.fixture
def run(monkeypatch) -> Iterator[Run]:
    """Signals are as before afterwards."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield Run(monkeypatch)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


# --- without a run


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["check", "--help"], ["--nonsense", "--help"]])
def test_help_is_printed_and_ends_well(words, capsys):
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: wstunnel [flags]")
    assert err == ""


def test_the_version_is_printed_and_ends_well(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"wstunnel {__version__}\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "nothing to serve: give --socket, --port, --document-root or -f; --help has examples"),
        (["chek"], "chek: unknown command; did you mean check?"),
        (["serve", "--port", "1"], "serve: unknown command"),
        (["--port"], "--port: expected one argument"),
        (["--prot", "1", *ROUTE], "--prot: unknown flag; did you mean --port?"),
        (["-f", "missing.toml"], "missing.toml: cannot be read: no such file or directory"),
        (["check", "-f", "missing.toml"], "missing.toml: cannot be read: no such file or directory"),
    ],
)
def test_what_cannot_be_used_is_told_and_ends_with_2(words, text, capsys):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"wstunnel: {text}\n"


def test_every_problem_has_a_line(capsys):
    assert cli.main(["check", "--port", "0", "--path", "x"]) == 2
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["--path:", "--port:"]


def test_check_prints_a_file_that_can_be_loaded(capsys, tmp_path):
    assert cli.main(["check", *ROUTE, "--listen", "[::]:80"]) == 0
    out, err = capsys.readouterr()
    (tmp_path / "again.toml").write_text(out)
    again = load("again.toml")
    assert again.listen == (TcpAddress("::", 80),)
    assert again.routes[0].port == 7000
    assert err == ""
    assert cli.main(["check", "-f", "again.toml"]) == 0
    assert capsys.readouterr().out == out


def test_check_tells_warnings_apart_from_the_file(capsys, tmp_path):
    (tmp_path / "a.toml").write_text("[[route]]\nport = 1\n[[route]]\nport = 2\n")
    assert cli.main(["check", "-f", "a.toml"]) == 0
    out, err = capsys.readouterr()
    assert "never" not in out
    assert (
        err == "wstunnel: warning: a.toml:3: route[2].path: never reached, a.toml:1: route[1] takes all its requests\n"
    )


# --- with a run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_run_well(run, number, capsys):
    assert run(*ROUTE, on_start=send(number)) == 0
    assert run.tunnel.calls == ["start", "stop", "stopped"]
    assert f" info wstunnel {number.name}: ending\n" in capsys.readouterr().err


def test_a_second_signal_cuts_the_stop_short(run, capsys):
    async def stop(tunnel: FakeTunnel) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(tunnel.aborted.wait(), 30)

    assert run(*ROUTE, on_stop=stop) == 0
    assert run.tunnel.calls == ["start", "stop", "abort", "stopped"]
    assert " info wstunnel SIGINT again: ending at once\n" in capsys.readouterr().err


def test_a_flood_of_signals_is_no_flood_of_lines(run, capsys):
    """A pipe that nobody reads is full at some point, and the stop would hang in a line about the stop."""

    async def stop(tunnel: FakeTunnel) -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(tunnel.aborted.wait(), 30)
            tunnel.aborted.clear()

    assert run(*ROUTE, on_stop=stop) == 0
    assert run.tunnel.calls.count("abort") == 3
    assert capsys.readouterr().err.count("again") == 1


def test_a_hangup_that_is_to_be_ignored_is_ignored(run):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    aborted = []

    async def stop(tunnel: FakeTunnel) -> None:
        os.kill(os.getpid(), signal.SIGHUP)  # would be the second one
        for _ in range(10):
            await asyncio.sleep(0)
        aborted.append(tunnel.aborted.is_set())

    assert run(*ROUTE, on_stop=stop) == 0
    assert aborted == [False]


def test_what_cannot_be_had_is_told_and_ends_with_1(run, capsys):
    async def start(tunnel: FakeTunnel) -> None:
        raise StartError("127.0.0.1:8081: another process listens there")

    assert run(*ROUTE, on_start=start) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "wstunnel: 127.0.0.1:8081: another process listens there\n"


def test_each_listener_is_told_with_its_real_port_and_what_to_open(run, capsys, tmp_path):
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "index.html").write_text("")
    words = "--listen unix:http.sock --listen [::]:0 --listen 127.0.0.1:80 --document-root www --path /ws/"
    assert run(*words.split(), *ROUTE) == 0
    assert capsys.readouterr().out == (
        f"wstunnel {__version__} listening on unix:{tmp_path}/http.sock\n"
        f"wstunnel {__version__} listening on http://[::]:4711/\n"
        f"wstunnel {__version__} listening on http://127.0.0.1:80/\n"
        "  page       http://[::1]:4711/\n"
        "  websocket  ws://[::1]:4711/ws/\n"
    )


def test_a_folder_without_an_index_has_no_page_to_open(run, capsys, tmp_path):
    assert run("--document-root", ".") == 0
    assert capsys.readouterr().out == f"wstunnel {__version__} listening on http://127.0.0.1:8081/\n"


def test_a_unix_listener_alone_has_nothing_to_open(run, capsys, tmp_path):
    assert run("--listen", "unix:a", *ROUTE) == 0
    assert capsys.readouterr().out == f"wstunnel {__version__} listening on unix:{tmp_path}/a\n"


def test_warnings_are_logged_at_the_start(run, capsys, tmp_path):
    (tmp_path / "a.toml").write_text("[[route]]\nport = 1\n[[route]]\nport = 2\n")
    assert run("-f", "a.toml", "--log-format", "json") == 0
    assert (
        '"level": "warning", "logger": "wstunnel", "message": "a.toml:3: route[2].path: never'
        in capsys.readouterr().err
    )


def test_settings_reach_the_tunnel(run):
    assert run("--listen", "unix:/a", *ROUTE) == 0
    assert run.tunnel.settings.listen == (UnixAddress("/a"),)
    assert run.tunnel.settings.routes[0].port == 7000


def test_the_module_can_be_run():
    done = subprocess.run([sys.executable, "-m", "wstunnel", "--nothing"], cwd=os.path.dirname(cli.__file__) + "/..",
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("wstunnel: --nothing: unknown flag")
