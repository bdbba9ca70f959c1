"""Client listeners: where they are, and what is left of them."""

from __future__ import annotations

import os
import socket

import pytest

from wstunnel.errors import StartError
from wstunnel.net import listen
from wstunnel.net.listen import open_listener
from wstunnel.settings import TcpAddress, UnixAddress


def test_port_0_becomes_a_port_that_takes_connections():
    listener = open_listener(TcpAddress("127.0.0.1", 0), backlog=4)
    assert isinstance(listener.address, TcpAddress)
    assert listener.address.port != 0

    with socket.create_connection((listener.address.host, listener.address.port)):
        pass
    listener.close()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((listener.address.host, listener.address.port))


def test_an_address_keeps_the_host_as_the_operator_wrote_it():
    listener = open_listener(TcpAddress("localhost", 0), backlog=4)
    assert listener.address.host == "localhost"
    listener.close()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_listener_does_not_block(tmp_path, kind):
    address = TcpAddress("127.0.0.1", 0) if kind == "tcp" else UnixAddress(str(tmp_path / "s"))
    listener = open_listener(address, backlog=4)
    with pytest.raises(BlockingIOError):
        listener.socket.accept()
    listener.close()


def test_close_takes_the_path_away(tmp_path):
    listener = open_listener(UnixAddress(str(tmp_path / "s")), backlog=4)
    assert os.listdir(tmp_path) == ["s"]

    listener.close()

    assert os.listdir(tmp_path) == []


def test_close_leaves_a_path_that_somebody_else_has_taken(tmp_path):
    path = str(tmp_path / "s")
    listener = open_listener(UnixAddress(path), backlog=4)
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        listener.close()
        assert os.path.exists(path)


def test_the_path_goes_before_the_socket_does(tmp_path, monkeypatch):
    """An open socket keeps its inode's number from being given to somebody else's file."""
    listener = open_listener(UnixAddress(str(tmp_path / "s")), backlog=4)
    seen = []
    monkeypatch.setattr(listen, "unlink_if_ours", lambda path, inode: seen.append(listener.socket.fileno() >= 0))

    listener.close()

    assert seen == [True]


def test_a_taken_port_is_a_start_error_that_names_it():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"127.0.0.1:{port}: another process listens there"):
            open_listener(TcpAddress("127.0.0.1", port), backlog=4)


def test_a_taken_path_is_a_start_error_and_stays(tmp_path):
    path = str(tmp_path / "s")
    first = open_listener(UnixAddress(path), backlog=4)
    with pytest.raises(StartError, match="another process listens there"):
        open_listener(UnixAddress(path), backlog=4)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    first.close()
