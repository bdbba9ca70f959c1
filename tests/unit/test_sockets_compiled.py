"""Descriptors without socket objects: names, flags, and the errors of the system calls."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

import pytest

from tests.conftest import open_descriptors
from wstunnel._sockets import accept, connect_unix, local_name

# sizeof(sockaddr_un.sun_path), unix(7)
PATH_BYTES = 108


def test_nobody_who_waits_is_none():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        assert accept(listener.fileno()) is None


def test_what_cannot_be_accepted_from_is_an_error():
    with socket.socket() as sock, pytest.raises(OSError, match="Invalid argument") as raised:
        accept(sock.fileno())
    assert raised.value.errno == errno.EINVAL


def test_a_client_with_a_path_of_its_own_has_the_name_that_all_unix_clients_have(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        client.bind(str(tmp_path / "c"))
        client.connect(str(tmp_path / "s"))
        found = accept(listener.fileno())
        assert found is not None
        os.close(found[0])
        assert found[1] == "unix:"


@pytest.mark.parametrize(
    ("family", "host", "shown"), [(socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")]
)
def test_a_bound_socket_has_its_address_for_a_name(family, host, shown):
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        assert local_name(sock.fileno()) == f"{shown}:{sock.getsockname()[1]}"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.10.200.99", "127.255.100.9"])
def test_addresses_and_ports_of_any_length_are_written_as_python_writes_them(host):
    with socket.socket() as sock:
        assert local_name(sock.fileno()) == "0.0.0.0:0"
        for port in range(1024, 10_000):  # any short one that is free
            with contextlib.suppress(OSError):
                sock.bind((host, port))
                break
        assert local_name(sock.fileno()) == f"{host}:{port}"


def test_no_descriptor_has_no_name():
    with pytest.raises(OSError, match="Bad file descriptor"):
        local_name(-1)


@pytest.mark.parametrize("length", [1, PATH_BYTES - 1])
@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_unix_socket_is_connected_by_the_name_it_was_bound_to(tmp_path, monkeypatch, kind, length):
    monkeypatch.chdir(tmp_path)
    name = "s" * length if kind == "path" else f"\0{os.getpid()}".ljust(length + 1, "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        fd = connect_unix(name)
        try:
            assert not os.get_blocking(fd)
            assert not os.get_inheritable(fd)
            near, _ = listener.accept()
            with near:
                near.send(b"hello")
                assert os.read(fd, 9) == b"hello"
        finally:
            os.close(fd)


@pytest.mark.parametrize(
    ("name", "number"),
    [("missing", errno.ENOENT), ("", errno.EINVAL), ("dead", errno.ECONNREFUSED), ("x" * PATH_BYTES, None)],
)
def test_a_unix_socket_that_cannot_be_connected_is_the_systems_error_and_leaves_nothing(
    tmp_path, monkeypatch, name, number
):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("dead")
    before = open_descriptors()

    with pytest.raises(OSError) as raised:
        connect_unix(name)

    assert raised.value.errno == number
    assert open_descriptors() == before


def test_a_full_backlog_is_would_block_and_leaves_nothing(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        first.connect(str(tmp_path / "s"))
        before = open_descriptors()

        with pytest.raises(BlockingIOError):
            connect_unix(str(tmp_path / "s"))

        assert open_descriptors() == before
