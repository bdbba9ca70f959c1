"""Under a service manager: what it passes is served, what it asks is told, and root is given up."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.programs import DEADLINE_S

# Runs a command as a service manager does: its first argument's descriptors from 3 on, and named as for that process.
LAUNCH = """
import os, sys
fds, words = sys.argv[1], sys.argv[2:]
for index, fd in enumerate(filter(None, fds.split(","))):
    os.dup2(int(fd), 3 + index, inheritable=True)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(index + 1))
os.execv(words[0], words)
"""


class Service:
    """A running wstunnel, and its manager's ear."""

    def __init__(
        self, folder: Path, *flags: str, passed: tuple[socket.socket, ...] = (), watchdog_s: float = 0
    ) -> None:
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(f"\0{folder}/notify")
        self._ear.settimeout(DEADLINE_S)
        environ = {**os.environ, "NOTIFY_SOCKET": f"@{folder}/notify", "RUNTIME_DIRECTORY": str(folder / "run")}
        if watchdog_s:
            environ["WATCHDOG_USEC"] = str(round(watchdog_s * 1_000_000))
        fds = [sock.fileno() for sock in passed]
        words = [sys.executable, "-m", "wstunnel", "--document-root", str(folder), *flags]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, ",".join(map(str, fds)), *words],
            env=environ,
            pass_fds=fds,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for sock in passed:
            sock.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *about: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self._ear.close()

    def hear(self) -> list[str]:
        """The next message; those of the watchdog are passed over."""
        while (message := self.hear_any()) == ["WATCHDOG=1"]:
            pass
        return message

    def hear_any(self) -> list[str]:
        return self._ear.recv(4096).decode().split("\n")

    def end(self) -> int:
        """Ask it to end; its exit code."""
        self.process.terminate()
        assert self.hear()[0] == "STOPPING=1"
        return self.process.wait(DEADLINE_S)

    def pids(self) -> set[int]:
        """The master and its workers."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as file:
            return {self.process.pid, *map(int, file.read().split())}


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a page in it, and open to other users, which pytest's own folders are not."""
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        made.chmod(0o755)
        (made / "index.html").write_text("a page")
        (made / "index.html").chmod(0o644)
        yield made


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    return sock


def page(address: tuple[str, int] | str) -> bytes:
    """What a GET for the page is answered with."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        client.settimeout(DEADLINE_S)
        client.connect(address)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while read := client.recv(4096):
            answer += read
    return answer


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.01)


def test_passed_sockets_are_served_by_every_worker_and_are_the_managers_at_the_end(folder):
    path = str(folder / "passed")
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(path)
    unix.listen(64)
    tcp = listening()
    address = tcp.getsockname()
    with tcp.dup() as ours, Service(folder, "--workers", "2", passed=(tcp, unix)) as service:
        assert service.hear()[0] == "READY=1"
        for _ in range(10):
            assert page(address).endswith(b"a page")
            assert page(path).endswith(b"a page")

        assert service.end() == 0

        assert os.path.exists(path)
        with socket.create_connection(address):  # it waits for the next start
            ours.setblocking(False)
            ours.accept()[0].close()


def test_the_manager_is_told_of_start_reload_and_end_and_hears_that_the_loop_turns(folder):
    with Service(folder, "--listen", "127.0.0.1:0", watchdog_s=0.2) as service:
        assert service.hear()[0] == "READY=1"
        for _ in range(3):
            assert service.hear_any() == ["WATCHDOG=1"]

        service.process.send_signal(signal.SIGHUP)
        reloading, moment, *_ = service.hear()
        assert reloading == "RELOADING=1"
        assert moment.startswith("MONOTONIC_USEC=")
        assert service.hear()[0] == "READY=1"

        service.process.send_signal(signal.SIGUSR2)  # another program in the same process, which the manager watches
        assert service.hear()[0] == "READY=1"
        for _ in range(3):
            assert service.hear_any() == ["WATCHDOG=1"]

        assert service.end() == 0


def test_master_and_workers_go_on_in_a_new_log_file_when_theirs_has_been_moved(folder):
    log = folder / "log"
    with Service(folder, "--listen", "127.0.0.1:0", "--workers", "2", "--log-file", str(log)) as service:
        service.hear()
        assert len(service.pids()) == 3
        log.rename(folder / "log.1")
        assert all(str(folder / "log.1") in opened_by(pid) for pid in service.pids())

        service.process.send_signal(signal.SIGUSR1)

        until(lambda: all(str(log) in opened_by(pid) for pid in service.pids()), "the new file is open")
        assert not any(str(folder / "log.1") in opened_by(pid) for pid in service.pids())
        assert service.end() == 0
    assert "SIGTERM: ending" in log.read_text()
    assert "SIGTERM" not in (folder / "log.1").read_text()


def opened_by(pid: int) -> set[str]:
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_wstunnel_of_the_same_user_is_refused_at_the_same_port(folder, workers):
    tcp = listening()
    port = tcp.getsockname()[1]
    tcp.close()
    flags = ("--listen", f"127.0.0.1:{port}", "--workers", workers)
    with Service(folder, *flags) as first:
        assert first.hear()[0] == "READY=1"
        (folder / "second").mkdir()
        with Service(folder / "second", *flags) as second:
            said, _ = second.process.communicate(timeout=DEADLINE_S)
            assert second.process.returncode == 1
            assert f"127.0.0.1:{port}: another process listens there" in said
        assert first.end() == 0


@pytest.fixture
def nobody() -> pwd.struct_passwd:
    """A user that can run Python and wstunnel as they stand here."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    who = pwd.getpwnam("nobody")
    try:
        subprocess.run([sys.executable, "-c", "import wstunnel"], user=who.pw_uid, check=True, stderr=subprocess.PIPE)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip(f"nobody may not run {sys.executable} with wstunnel")
    return who


def test_all_of_it_runs_as_the_user_and_reload_upgrade_and_log_go_on(folder, nobody):
    flags = ("--workers", "2", "--user", "nobody", "--log-file", str(folder / "log"))
    tcp = listening()
    address = tcp.getsockname()
    with Service(folder, *flags, passed=(tcp,)) as service:
        assert service.hear()[0] == "READY=1"
        for number in (signal.SIGHUP, signal.SIGUSR2):
            service.process.send_signal(number)
            while service.hear()[0] != "READY=1":
                pass
            assert {os.stat(f"/proc/{pid}/stat").st_uid for pid in service.pids() - {service.process.pid}} == {
                nobody.pw_uid
            }
            with open(f"/proc/{service.process.pid}/status", encoding="ascii") as file:
                assert f"Uid:\t{nobody.pw_uid}\t{nobody.pw_uid}\t{nobody.pw_uid}\t{nobody.pw_uid}\n" in file.readlines()
            assert page(address).endswith(b"a page")
        assert service.end() == 0
