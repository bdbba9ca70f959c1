"""The example programs, each driven on its own UNIX socket as the tunnel would hand it over, without the tunnel."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import os
import re
import signal
import socket
import subprocess
import threading
import time
import tomllib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LINE_ECHOES = ["echo.pl", "echo.py"]
ECHOES = [*LINE_ECHOES, "raw_echo.py"]
PROGRAMS = [*ECHOES, "clock.py", "chat.py"]
PER_TUNNEL = ["upper.py"]  # driven by test_stdio.py: it has no socket of its own
DEADLINE_S = 20.0
MIB = 1024 * 1024


class Program:
    """An example that runs with a listening socket as standard input."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.path = str(folder / "example.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen()
            self.process = subprocess.Popen(
                [EXAMPLES / name, *arguments], stdin=listener, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(DEADLINE_S)
        client.connect(self.path)
        return client

    def end(self) -> tuple[int, bytes]:
        """Ask it to end; its exit status and all that it complained about."""
        self.process.terminate()
        try:
            _, complaints = self.process.communicate(timeout=DEADLINE_S)
        finally:
            self.process.kill()
        return self.process.returncode, complaints


@contextlib.contextmanager
def running(folder, name, *arguments):
    """A program that is expected to end on SIGTERM, without a word on stderr."""
    program = Program(folder, name, *arguments)
    try:
        yield program
    except BaseException:
        program.end()
        raise
    status, complaints = program.end()
    assert (status in (0, -signal.SIGTERM), complaints) == (True, b"")


def read(client, size):
    """Exactly `size` bytes, or all until the end."""
    held = bytearray()
    while len(held) < size and (piece := client.recv(min(size - len(held), 65536))):
        held += piece
    return bytes(held)


def exchange(client, sent, size):
    """Send from a thread of its own while `size` bytes are read, so that neither side waits for the other."""
    writer = threading.Thread(target=client.sendall, args=(sent,), daemon=True)
    writer.start()
    got = read(client, size)
    writer.join(DEADLINE_S)
    return got


@pytest.mark.parametrize("name", ECHOES)
def test_two_clients_at_once_get_their_own_lines_back(tmp_path, name):
    with running(tmp_path, name) as program, program.connect() as one, program.connect() as two:
        for number in range(3):
            two.sendall(b"two %d\n" % number)
            one.sendall(b"one %d\n" % number)
            assert (read(one, 6), read(two, 6)) == (b"one %d\n" % number, b"two %d\n" % number)


@pytest.mark.parametrize("name", LINE_ECHOES)
def test_a_line_that_comes_in_pieces_goes_back_whole(tmp_path, name):
    with running(tmp_path, name) as program, program.connect() as client, program.connect() as other:
        for piece in (b"a", b" li", b"ne"):
            client.sendall(piece)
            other.sendall(b"a whole line\n")
            assert read(other, 13) == b"a whole line\n"
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        client.settimeout(DEADLINE_S)
        client.sendall(b"\nand more")
        assert read(client, 7) == b"a line\n"


def test_the_raw_echo_does_not_wait_for_a_line(tmp_path):
    with running(tmp_path, "raw_echo.py") as program, program.connect() as client:
        for piece in (b"a", b" li", b"ne", b"\n\n", b"\xff\x00"):
            client.sendall(piece)
            assert read(client, len(piece)) == piece


def test_the_raw_echo_loses_nothing_in_small_pieces(tmp_path):
    with running(tmp_path, "raw_echo.py", "5") as program, program.connect() as client:
        assert exchange(client, b"0123456789" * 100, 1000) == b"0123456789" * 100


@pytest.mark.parametrize("name", ECHOES)
def test_a_client_that_is_done_writing_still_gets_everything(tmp_path, name):
    with running(tmp_path, name) as program, program.connect() as client:
        client.sendall(b"first\nsecond\nno newline")
        client.shutdown(socket.SHUT_WR)
        assert read(client, MIB) == b"first\nsecond\nno newline"


@pytest.mark.parametrize("name", [*ECHOES, "chat.py"])
def test_a_line_of_a_mebibyte_goes_back(tmp_path, name):
    line = os.urandom(MIB // 2).hex().encode()[:-1] + b"\n"
    with running(tmp_path, name) as program, program.connect() as client:
        assert exchange(client, line, len(line)) == line


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_client_that_vanishes_in_the_middle_harms_nobody(tmp_path, name):
    with running(tmp_path, name) as program, program.connect() as witness:
        for words in (b"half a li", b"whole lines\n" * 20_000):
            goner = program.connect()
            goner.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                goner.sendall(words)
            goner.close()
        witness.sendall(b"still here\n")
        said = b""
        while b"still here\n" not in said and name != "clock.py":
            said += read(witness, 1)
        with program.connect() as late:
            late.sendall(b"and so am I\n")
            assert read(late, 5)


def test_the_clock_says_the_time_at_once_and_each_second(tmp_path):
    with running(tmp_path, "clock.py") as program, program.connect() as one, program.connect() as two:
        length = len("2026-01-01 00:00:00\n")
        lines = [read(one, length).decode() for _ in range(3)]
        assert read(two, length).decode() in lines
    times = [time.mktime(time.strptime(line, "%Y-%m-%d %H:%M:%S\n")) for line in lines]
    assert [later - sooner for sooner, later in itertools.pairwise(times)] == [1, 1]


def test_the_clock_ends_with_its_client_whatever_that_said(tmp_path):
    with running(tmp_path, "clock.py") as program, program.connect() as client:
        client.sendall(b"what is the time?\n" * 10_000)
        client.shutdown(socket.SHUT_WR)
        assert read(client, MIB).endswith(b"\n")


def test_the_chat_brings_each_line_to_everybody_in_one_order(tmp_path):
    with running(tmp_path, "chat.py") as program, program.connect() as one, program.connect() as two:
        for client, line in ((one, b"hello\n"), (two, b"hello yourself\n"), (one, b"and good bye\n")):
            client.sendall(line[:3])
            client.sendall(line[3:])
            assert (read(one, len(line)), read(two, len(line))) == (line, line)
        two.close()
        one.sendall(b"anybody?\n")
        assert read(one, 9) == b"anybody?\n"


def test_the_chat_goes_on_without_a_guest_who_does_not_listen(tmp_path):
    line = b"x" * (MIB - 1) + b"\n"
    with running(tmp_path, "chat.py") as program, program.connect() as deaf, program.connect() as talker:
        for _ in range(24):
            assert exchange(talker, line, len(line)) == line
        deaf.settimeout(DEADLINE_S)
        with contextlib.suppress(ConnectionResetError):
            assert len(read(deaf, 24 * MIB)) < 24 * MIB


def test_the_chat_parts_with_a_guest_who_never_ends_a_line(tmp_path):
    with running(tmp_path, "chat.py") as program, program.connect() as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"x" * (12 * MIB))
        with contextlib.suppress(ConnectionError):
            assert read(client, 1) == b""


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("given", ["null", "pipe", "connected"])
def test_without_a_listening_socket_a_program_says_how_to_run_it(name, given):
    mine, theirs = socket.socketpair()
    with mine, theirs:
        stdin = {"null": subprocess.DEVNULL, "pipe": subprocess.PIPE, "connected": theirs}[given]
        done = subprocess.run(
            [EXAMPLES / name], stdin=stdin, capture_output=True, check=False, text=True, timeout=DEADLINE_S
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "is not a listening socket; run me as: python -m wstunnel --socket " in done.stderr
    assert done.stderr.endswith(f"--bin-path {EXAMPLES / name}\n")


def test_every_program_is_executable_and_driven_here():
    programs = [path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".pl")]
    assert sorted(path.name for path in programs) == sorted(PROGRAMS + PER_TUNNEL)
    assert [path.name for path in programs if not os.access(path, os.X_OK)] == []


def test_the_echo_ends_its_clients_processes_with_itself(tmp_path):
    program = Program(tmp_path, "echo.pl")
    with program.connect() as client:
        client.sendall(b"hello\n")
        assert read(client, 6) == b"hello\n"
        assert program.end() == (0, b"")
        assert read(client, 1) == b""


# --- the page and the configuration


def test_the_page_allows_itself_nothing_but_its_own_style_script_and_socket():
    """Change the page, and this test says which hashes its policy needs now."""
    page = (EXAMPLES / "www" / "index.html").read_text(encoding="utf-8")
    hashes = {}
    for tag in ("style", "script"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes[tag] = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    assert policy == (
        "default-src 'none'; connect-src 'self'; img-src data:; "
        f"style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'"
    )


def test_the_page_asks_nobody_else_for_anything():
    page = (EXAMPLES / "www" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'(?:src|href|action)="([^"]*)"', page) == ["data:,"]
    assert re.findall(r"https?://", page) == []
    assert re.findall(r"\s(?:style|on[a-z]+)=", page) == []


def test_the_configuration_names_programs_and_folders_that_exist():
    with (EXAMPLES / "wstunnel.toml").open("rb") as file:
        config = tomllib.load(file)
    assert (EXAMPLES / config["document-root"] / "index.html").is_file()
    spawned = [route["bin-path"].split()[0] for route in config["route"] if "bin-path" in route]
    assert sorted(spawned) == sorted(f"./{name}" for name in PROGRAMS if name != "echo.py")
