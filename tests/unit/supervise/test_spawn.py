"""Starting a program the way a backend expects it: which one is meant, and why it cannot be started."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from wstunnel.errors import StartError
from wstunnel.supervise.spawn import CHILD_PATH, Program, find_program, spawn


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as bound:
        yield bound


def why_not(listener: socket.socket, path: Path | str, *arguments: str) -> str:
    with pytest.raises(StartError) as caught, open(os.devnull, "w") as stderr:
        spawn(
            Program(str(path), arguments),
            stdin=listener.fileno(),
            stdout=None,
            stderr_fd=stderr.fileno(),
            environment={"PATH": CHILD_PATH},
        )
    return str(caught.value)


def file(path: Path, content: bytes, mode: int = 0o755) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_name_without_a_slash_is_searched_in_the_path_of_children(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")

    assert find_program(("sh", "-c", "exit 1")) in {
        Program("/bin/sh", ("-c", "exit 1")),
        Program("/usr/bin/sh", ("-c", "exit 1")),
    }


def test_a_name_that_is_nowhere_is_refused():
    with pytest.raises(StartError, match=r"bin-path no-such-program: no such program in /usr/local/sbin:.*; give its"):
        find_program(("no-such-program",))


def test_a_path_becomes_absolute_where_we_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert find_program(("./bin/../echo.pl", "./x")) == Program(str(tmp_path / "echo.pl"), ("./x",))


def test_a_program_that_does_not_exist(listener, tmp_path):
    assert why_not(listener, tmp_path / "gone") == (
        f"bin-path {tmp_path}/gone: does not exist; correct the path or install the program"
    )


def test_a_program_in_a_folder_that_does_not_exist(listener, tmp_path):
    assert "gone/too: does not exist" in why_not(listener, tmp_path / "gone" / "too")


def test_a_folder(listener, tmp_path):
    assert "is a folder; name the program in it" in why_not(listener, tmp_path)


def test_a_program_without_the_right_to_be_executed(listener, tmp_path):
    path = file(tmp_path / "echo", b"#!/bin/sh\n", mode=0o644)

    assert f"bin-path {path}: is not executable for this user; chmod +x it" in why_not(listener, path)


def test_a_script_without_a_first_line(listener, tmp_path):
    path = file(tmp_path / "echo", b"echo hello\n")

    assert "neither a binary of this machine nor a script with a #! line; add one" in why_not(listener, path)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"#!/usr/bin/prel -w\n", '"#!/usr/bin/prel -w"'),
        (b"#!/usr/bin/perl\r\n", r'"#!/usr/bin/perl\r"'),
        (b"#!/\x1b[31m\n", r'"#!/\x1b[31m"'),
    ],
)
def test_a_script_whose_interpreter_does_not_exist_shows_its_first_line(listener, tmp_path, line, shown):
    why = why_not(listener, file(tmp_path / "echo", line))

    assert f"its first line, {shown}, names an interpreter that does not exist" in why


def test_a_binary_whose_loader_does_not_exist(listener, tmp_path):
    true = Path(shutil.which("true") or "/bin/true").read_bytes()
    assert b"/ld-" in true
    path = file(tmp_path / "echo", true.replace(b"/ld-", b"/no-"))

    assert "the loader that it asks for does not exist" in why_not(listener, path)


def test_any_other_reason_is_the_kernels(listener):
    assert why_not(listener, "/bin/true", "x" * 1_000_000) == (
        "bin-path /bin/true: cannot be started: Argument list too long"
    )


def test_standard_streams_and_environment_are_the_ones_given():
    """A socket pair on fd 0 and 1 is what a program per tunnel gets."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull, "w") as stderr:
        script = 'read line; echo "$line $NAME $(ls /proc/self/fd | tr "\\n" " ")"; env | wc -l'
        child = spawn(
            Program("/bin/sh", ("-c", script)),
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr_fd=stderr.fileno(),
            environment={"PATH": CHILD_PATH, "NAME": "value"},
        )
        theirs.close()
        ours.sendall(b"hello\n")
        said = b"".join(iter(lambda: ours.recv(4096), b"")).decode()
        os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        child.close()

    # 3 is the listing itself, and the shell adds PWD.
    assert said.splitlines() == ["hello value 0 1 2 3 ", "3"]
