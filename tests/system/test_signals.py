"""How the program ends when it is asked to, and goes on when it is not."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.programs import DEADLINE_S, is_alive

PAUSE_S = 0.001
"""Between two signals, so that the program comes to do anything else than hear them."""


class Service:
    """`python -m wstunnel` in a session of its own, with a program that idles."""

    def __init__(self, folder: Path, *before: str) -> None:
        program = folder / "idle"
        program.write_text("#!/bin/sh\nexec sleep 1000\n", encoding="ascii")
        program.chmod(0o755)
        flags = ("--listen", "127.0.0.1:0", "--socket", str(folder / "idle.sock"), "--bin-path", str(program))
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- no pipe: a full one that nobody reads blocks
        self.process = subprocess.Popen(
            (*before, sys.executable, "-m", "wstunnel", *flags),
            env={**os.environ, "RUNTIME_DIRECTORY": str(folder / "run")},
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )

    def address(self) -> tuple[str, int]:
        """Where it listens, as soon as it does."""
        assert self.process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:([0-9]+)/", self.process.stdout.readline())
        assert found, self.log()
        return "127.0.0.1", int(found[1])

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"still not: {what}: {self.log()}"
            time.sleep(0.01)

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        self._log.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """`start()`: a service in the test's folder. It is gone after the test."""
    started: list[Service] = []

    def make(*before: str) -> Service:
        started.append(Service(tmp_path, *before))
        return started[-1]

    yield make
    for each in started:
        each.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_however_often_it_is_asked_it_ends_with_0(start, number, tmp_path):
    """The last signals come when the loop is gone already and the interpreter is on its way out."""
    service = start()
    service.address()
    while service.process.returncode is None:
        os.kill(service.process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            service.process.wait(PAUSE_S)
    assert service.process.returncode == 0, service.log()
    assert "Traceback" not in service.log()
    assert os.listdir(tmp_path) == ["idle"]


def test_asked_to_end_before_it_serves_it_ends_with_0_and_leaves_nothing(start, tmp_path):
    service = start()
    service.until(lambda: (tmp_path / "idle.sock-0").exists() or (tmp_path / "idle.sock").exists(), "it starts")
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(DEADLINE_S) == 0, service.log()
    assert "Traceback" not in service.log()
    assert os.listdir(tmp_path) == ["idle"]


def test_ctrl_c_in_a_terminal_is_heard_by_the_master_alone(start, tmp_path):
    """A terminal signals its whole foreground group: workers and backends must not be in it."""
    service = start()
    service.address()
    pids = children_of(service)
    assert len(pids) == 2
    assert all(os.getpgid(pid) == pid for pid in pids)
    os.killpg(service.process.pid, signal.SIGINT)
    assert service.process.wait(DEADLINE_S) == 0, service.log()
    assert not any(map(is_alive, pids))


def test_a_hangup_is_a_reload(start, tmp_path):
    service = start()
    address = service.address()
    for generation in (2, 3):
        service.process.send_signal(signal.SIGHUP)
        service.until(lambda count=generation: f"generation {count} serves" in service.log(), "it is reloaded")
    with socket.create_connection(address, DEADLINE_S):
        pass
    service.process.terminate()
    assert service.process.wait(DEADLINE_S) == 0, service.log()


def test_under_nohup_a_hangup_is_nothing(start):
    service = start("nohup")
    service.address()
    service.process.send_signal(signal.SIGHUP)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(DEADLINE_S) == 0, service.log()
    assert "reload" not in service.log()


def test_a_program_does_not_get_our_signals_blocked_or_ignored(start):
    """Not of the first image, and not of that behind an upgrade, which holds signals back while it starts."""
    service = start("nohup")
    service.address()
    assert signals_of(idle_of(service)) == (0, 0)
    service.process.send_signal(signal.SIGUSR2)
    service.until(lambda: "generation 2 serves" in service.log(), "it is upgraded")
    before = idle_of(service)
    os.kill(before, signal.SIGKILL)
    service.until(lambda: idle_of(service) not in {0, before}, "it is started again")
    assert signals_of(idle_of(service)) == (0, 0)
    service.process.terminate()
    assert service.process.wait(DEADLINE_S) == 0, service.log()


def children_of(service: Service) -> list[int]:
    with open(f"/proc/{service.process.pid}/task/{service.process.pid}/children", encoding="ascii") as file:
        return [int(pid) for pid in file.read().split()]


def idle_of(service: Service) -> int:
    """The pid of its program; 0: it has none."""
    for pid in children_of(service):
        with contextlib.suppress(FileNotFoundError):
            if Path(f"/proc/{pid}/comm").read_text() == "sleep\n":
                return pid
    return 0


_OF_THE_C_LIBRARY = 1 << 31 | 1 << 32
"""Signals 32 and 33: no program can use them, and whoever was started by posix_spawn finds them ignored."""


def signals_of(pid: int) -> tuple[int, int]:
    """Those that are blocked, and those that are ignored, bit by bit."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["SigBlk"], 16), int(lines["SigIgn"], 16) & ~_OF_THE_C_LIBRARY
