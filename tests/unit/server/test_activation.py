"""Listening sockets that a service manager passes, at descriptors that the test chooses."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wstunnel.errors import StartError
from wstunnel.net.listen import ListenerSet
from wstunnel.server.activation import passed_listeners
from wstunnel.settings import TcpAddress, UnixAddress

FIRST = 200
"""Where the passed descriptors begin here: 3 is somebody else's in a test run."""

Passing = Callable[..., list[ListenerSet]]


@pytest.fixture
def passing() -> Iterator[Passing]:
    """`passing(sockets, names)`: what a service with these descriptors gets. They are inheritable, as after an exec."""
    sets: list[ListenerSet] = []

    def run(*files: socket.socket | int, names: tuple[str, ...] = ()) -> list[ListenerSet]:
        for index, file in enumerate(files):
            os.dup2(file if isinstance(file, int) else file.fileno(), FIRST + index, inheritable=True)
            if not isinstance(file, int):
                file.close()
        sets.extend(passed_listeners(len(files), names, first_fd=FIRST))
        return sets

    yield run
    for each in sets:
        each.close()
    assert not [fd for fd in range(FIRST, FIRST + 8) if os.path.exists(f"/proc/self/fd/{fd}")], "left open"


def listening(family: int = socket.AF_INET, at: object = ("127.0.0.1", 0)) -> socket.socket:
    sock = socket.socket(family)
    sock.bind(at)
    sock.listen(8)
    return sock


def test_passed_sockets_take_connections_in_their_order(passing, tmp_path):
    path = str(tmp_path / "s")
    tcp, six, unix = listening(), listening(socket.AF_INET6, ("::1", 0)), listening(socket.AF_UNIX, path)
    port, port_of_six = tcp.getsockname()[1], six.getsockname()[1]

    sets = passing(tcp, six, unix)

    assert [each.address for each in sets] == [
        TcpAddress("127.0.0.1", port),
        TcpAddress("::1", port_of_six),
        UnixAddress(path),
    ]
    assert all(each.is_passed for each in sets)
    with socket.create_connection(("127.0.0.1", port)) as client:
        served, address = sets[0].share(0, 1)[0].socket.accept()
        assert address == client.getsockname()
        served.close()


def test_they_do_not_block_and_no_child_inherits_them(passing):
    (passed,) = passing(listening())
    (fd,) = passed.fds
    assert fd == FIRST
    assert not os.get_blocking(fd)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_a_passed_path_stays_when_we_go(passing, tmp_path):
    (passed,) = passing(listening(socket.AF_UNIX, str(tmp_path / "s")))
    passed.close()
    assert os.listdir(tmp_path) == ["s"]


def test_an_abstract_socket_has_a_name_that_can_be_printed(passing, tmp_path):
    (passed,) = passing(listening(socket.AF_UNIX, f"\0wstunnel-test-{tmp_path}"))
    assert passed.address == UnixAddress(f"@wstunnel-test-{tmp_path}")


def file_in(folder: Path) -> int:
    return os.open(folder / "file", os.O_RDWR | os.O_CREAT)


def connected_in(folder: Path) -> socket.socket:
    one, other = socket.socketpair()
    other.close()
    return one


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (file_in, "is no socket"),
        (lambda folder: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "is not a stream socket"),
        (lambda folder: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), "is not a stream socket"),
        (lambda folder: socket.socket(), "does not listen"),
        (connected_in, "does not listen"),
        (lambda folder: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), "is a socket of another family"),
    ],
    ids=["file", "datagram", "seqpacket", "unbound", "connected", "netlink"],
)
def test_what_is_no_listening_stream_socket_is_refused_by_number_and_name(passing, tmp_path, make, fault):
    with pytest.raises(StartError, match=rf"descriptor {FIRST + 1} \(bad\\x1b\) from the service manager {fault}"):
        passing(listening(), make(tmp_path), listening(), names=("good", "bad\x1b"))


def test_fewer_than_announced_is_refused(passing):
    with pytest.raises(StartError, match=rf"descriptor {FIRST} from the service manager cannot be used: Bad file desc"):
        passed_listeners(1, first_fd=FIRST)
