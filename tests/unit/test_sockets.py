"""Listening sockets: what can be bound, what cannot and why, and what is taken away again."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from wstunnel.errors import StartError
from wstunnel.sockets import (
    SOCKET_PATH_BYTES,
    bind_tcp,
    bind_unix,
    bind_unix_beside,
    join_tcp,
    make_folder_of,
    unlink_if_ours,
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is the working directory too, so that its sockets can have short relative paths."""
    before = os.getcwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def leave_stale_socket(path: str) -> int:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(path)
    return os.lstat(path).st_ino


def connect_at_once(client: socket.socket, path: str) -> bool:
    client.setblocking(False)
    try:
        client.connect(path)
    except BlockingIOError:
        return False
    return True


def test_a_bound_path_takes_connections(folder):
    with bind_unix("s", backlog=8), socket.socket(socket.AF_UNIX) as client:
        client.connect("s")


def test_a_listener_blocks_and_is_not_inherited(folder):
    socket.setdefaulttimeout(1.0)
    try:
        with bind_unix("s", backlog=8) as unix, bind_tcp("127.0.0.1", 0, backlog=8) as tcp:
            assert os.get_blocking(unix.fileno())
            assert os.get_blocking(tcp.fileno())
            assert not os.get_inheritable(unix.fileno())
            assert not os.get_inheritable(tcp.fileno())
    finally:
        socket.setdefaulttimeout(None)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_socket_has_its_mode_whatever_the_umask(folder, mask, mode):
    with umask(mask), bind_unix("s", backlog=8, mode=mode):
        assert stat.S_IMODE(os.lstat("s").st_mode) == mode


def test_the_socket_never_has_a_wider_mode(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "chmod", lambda path, mode: seen.append(stat.S_IMODE(os.lstat(path).st_mode)))

    with umask(0), bind_unix("s", backlog=8):
        pass

    assert seen == [0o600]


def test_the_umask_of_the_process_is_left_alone(folder, monkeypatch):
    def refuse(mask):
        raise AssertionError("umask was called")

    monkeypatch.setattr(os, "umask", refuse)

    with bind_unix("s", backlog=8):
        pass


def test_a_stale_socket_is_replaced(folder):
    leave_stale_socket("s")

    with bind_unix("s", backlog=8), socket.socket(socket.AF_UNIX) as client:
        client.connect("s")


def test_a_path_that_another_process_listens_on_is_refused_and_goes_on_working(folder):
    with bind_unix("s", backlog=8):
        with pytest.raises(StartError, match="unix:s: another process listens there; stop it"):
            bind_unix("s", backlog=8)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("s")


def test_a_listener_whose_backlog_is_full_is_a_listener(folder):
    with contextlib.ExitStack() as stack:
        stack.enter_context(bind_unix("s", backlog=0))
        while connect_at_once(stack.enter_context(socket.socket(socket.AF_UNIX)), "s"):
            pass

        with pytest.raises(StartError, match="another process listens"):
            bind_unix("s", backlog=8)


def test_a_datagram_socket_of_another_process_is_left_alone(folder):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind("s")

        with pytest.raises(StartError, match="another process"):
            bind_unix("s", backlog=8)

        assert os.path.exists("s")


def test_a_file_in_the_way_is_refused_and_stays(folder):
    Path("s").write_text("precious")

    with pytest.raises(StartError, match="unix:s: exists and is not a socket; remove it"):
        bind_unix("s", backlog=8)

    assert Path("s").read_text() == "precious"


@pytest.mark.parametrize("target", ["nowhere", "stale"])
def test_a_symlink_in_the_way_is_refused_and_stays(folder, target):
    leave_stale_socket("stale")
    os.symlink(target, "s")

    with pytest.raises(StartError, match="not a socket"):
        bind_unix("s", backlog=8)

    assert os.readlink("s") == target


def test_a_missing_folder_is_named(folder):
    with pytest.raises(StartError, match="the folder a/b does not exist; create it"):
        bind_unix("a/b/s", backlog=8)


def test_a_file_where_a_folder_should_be_is_an_error_of_ours(folder):
    Path("file").touch()

    with pytest.raises(StartError, match=r"unix:file/s: .*Not a directory"):
        bind_unix("file/s", backlog=8)


def test_the_longest_path_a_socket_can_carry_is_bound(folder):
    with bind_unix("s" * 107, backlog=8), socket.socket(socket.AF_UNIX) as client:
        client.connect("s" * 107)


def test_a_path_too_long_is_refused_with_its_length_in_bytes(folder):
    with pytest.raises(StartError, match=r"the path is 108 bytes long .* at most 107"):
        bind_unix("s" * 106 + "é", backlog=8)


def test_nothing_stays_behind_when_listening_fails(folder, monkeypatch):
    def fail(path, mode):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", fail)

    with pytest.raises(StartError, match="Operation not permitted"):
        bind_unix("s", backlog=8)

    assert os.listdir() == []


def test_out_of_descriptors_is_an_error_of_ours(folder, monkeypatch):
    def fail(*args):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", fail)

    with pytest.raises(StartError, match="Too many open files"):
        bind_unix("s", backlog=8)
    with pytest.raises(StartError, match="Too many open files"):
        bind_tcp("127.0.0.1", 0, backlog=8)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_bound_port_takes_connections(host):
    with bind_tcp(host, 0, backlog=8) as listener, socket.socket(listener.family) as client:
        client.connect(listener.getsockname())


def test_an_ipv6_listener_leaves_the_ipv4_port_to_others():
    with bind_tcp("::", 0, backlog=8) as six:
        port = six.getsockname()[1]
        with bind_tcp("0.0.0.0", port, backlog=8) as four:
            assert four.getsockname()[1] == port


def test_a_port_in_use_is_refused():
    with bind_tcp("127.0.0.1", 0, backlog=8) as first:
        port = first.getsockname()[1]

        with pytest.raises(StartError, match=f"127.0.0.1:{port}: another process listens there; stop it"):
            bind_tcp("127.0.0.1", port, backlog=8)


def test_a_port_whose_connections_linger_is_bound_again():
    with bind_tcp("127.0.0.1", 0, backlog=8) as first, socket.socket() as client:
        address = first.getsockname()
        client.connect(address)
        served, _ = first.accept()
        served.close()  # the side that closes first lingers in FIN-WAIT and TIME-WAIT

    with bind_tcp(*address, backlog=8):
        pass


def waiting(listener: socket.socket) -> int:
    """How many connections wait in a backlog; they are taken and closed."""
    listener.setblocking(False)
    count = 0
    while True:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return count
        sock.close()
        count += 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_are_spread_over_a_socket_that_joins_once_it_listens(host):
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(bind_tcp(host, 0, backlog=256))
        second = stack.enter_context(join_tcp(first))
        for _ in range(20):
            stack.enter_context(socket.create_connection(first.getsockname()[:2]))
        assert waiting(first) == 20

        second.listen(256)
        for _ in range(200):
            stack.enter_context(socket.create_connection(first.getsockname()[:2]))

        assert waiting(first) > 40
        assert waiting(second) > 40


def test_a_second_wstunnel_cannot_take_a_share_of_the_connections():
    """SO_REUSEPORT alone would let any process of the same user in, and nobody would be told."""
    with bind_tcp("127.0.0.1", 0, backlog=8) as first, join_tcp(first) as joined:
        joined.listen(8)

        with pytest.raises(StartError, match="another process listens there"):
            bind_tcp("127.0.0.1", first.getsockname()[1], backlog=8)


def test_a_socket_that_nothing_has_joined_is_alone_even_for_who_asks_to_share():
    with bind_tcp("127.0.0.1", 0, backlog=8) as first, socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

        with pytest.raises(OSError, match="Address already in use"):
            stranger.bind(first.getsockname())


def test_a_socket_that_joins_blocks_and_is_not_inherited():
    with bind_tcp("127.0.0.1", 0, backlog=8) as first, join_tcp(first) as joined:
        assert os.get_blocking(joined.fileno())
        assert not os.get_inheritable(joined.fileno())


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(StartError, match=r"192\.0\.2\.1:0: is not an address of this machine"):
        bind_tcp("192.0.2.1", 0, backlog=8)


def test_a_name_that_does_not_resolve_is_refused(monkeypatch):
    def fail(*args, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)

    with pytest.raises(StartError, match=r"the host name gone.example cannot be resolved: .*not known"):
        bind_tcp("gone.example", 80, backlog=8)


def test_a_name_that_cannot_be_one_is_refused():
    with pytest.raises(StartError, match=r"the host name a..b cannot be resolved"):
        bind_tcp("a..b", 80, backlog=8)


def test_a_missing_folder_is_made_for_its_owner_only(folder):
    assert make_folder_of("run/s") == "run"
    assert stat.S_IMODE(os.stat("run").st_mode) == 0o700


@pytest.mark.parametrize("path", ["s", "there/s"])
def test_a_folder_that_exists_is_not_reported_as_made(folder, path):
    os.mkdir("there")

    assert make_folder_of(path) is None


def test_only_one_level_of_folders_is_made(folder):
    with pytest.raises(StartError, match=r"the folder a/b does not exist and cannot be made .* create it"):
        make_folder_of("a/b/s")

    assert os.listdir() == []


def test_our_own_socket_is_unlinked(folder):
    inode = leave_stale_socket("s")

    unlink_if_ours("s", inode)

    assert not os.path.exists("s")


def test_a_path_that_another_process_has_taken_since_stays(folder):
    inode = leave_stale_socket("ours")
    leave_stale_socket("s")

    unlink_if_ours("s", inode)

    assert os.path.exists("s")


@pytest.mark.parametrize("path", ["gone", "gone/s", "file/s"])
def test_unlinking_what_is_gone_is_no_error(folder, path):
    Path("file").touch()

    unlink_if_ours(path, 1)


# --- Beside a path that is in use


def test_a_socket_beside_another_one_leaves_it_alone_and_takes_connections(folder):
    with bind_unix("s", backlog=8) as first, socket.socket(socket.AF_UNIX) as client:
        inode = os.lstat("s").st_ino
        second, path = bind_unix_beside("s", backlog=8)
        with second:
            client.connect(path)
            second.accept()[0].close()

            assert path.startswith("s~")
            assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
            assert (second.getblocking(), os.get_inheritable(second.fileno())) == (True, False)
            assert os.lstat("s").st_ino == inode
            first.setblocking(False)
            with pytest.raises(BlockingIOError):
                first.accept()


def test_two_sockets_beside_one_path_have_two_names(folder):
    first, one = bind_unix_beside("s", backlog=8)
    second, other = bind_unix_beside("s", backlog=8)
    with first, second:
        assert one != other


def test_a_path_too_long_for_another_name_beside_it_is_refused(folder):
    longest = "s" * (SOCKET_PATH_BYTES - 9)

    bind_unix_beside(longest, backlog=8)[0].close()
    with pytest.raises(StartError, match=r"is in use, and the path is too long for another one beside it; choose"):
        bind_unix_beside(longest + "s", backlog=8)


def test_a_name_beside_a_path_that_cannot_be_bound_is_told_by_the_path(folder):
    with pytest.raises(StartError, match=r"^unix:gone/s: the folder gone does not exist; create it"):
        bind_unix_beside("gone/s", backlog=8)
