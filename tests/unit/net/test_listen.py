"""Client listeners: where they are, who accepts from them, and what is left of them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wstunnel.errors import StartError
from wstunnel.net import listen
from wstunnel.net.listen import Listener, ListenerSet, open_listener, open_listeners
from wstunnel.settings import Address, TcpAddress, UnixAddress


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


# --- sets


TCP = TcpAddress("127.0.0.1", 0)


@pytest.fixture
def opening() -> Iterator[Callable[..., list[ListenerSet]]]:
    """`open_listeners` with a short backlog; what it opens is closed at the end."""
    opened: list[ListenerSet] = []

    def run(*addresses: Address, count: int = 1, **options: Any) -> list[ListenerSet]:
        sets = open_listeners(addresses, count=count, backlog=256, **options)
        opened.extend(sets)
        return sets

    yield run
    for each in opened:
        each.close()


@pytest.fixture
def passed(tmp_path: Path) -> Iterator[Callable[[Address], ListenerSet]]:
    """A set as a service manager passes it."""
    made: list[ListenerSet] = []

    def make(address: Address) -> ListenerSet:
        if isinstance(address, UnixAddress):
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(address.path)
        else:
            sock = socket.socket()
            sock.bind((address.host, address.port))
        sock.listen(16)
        made.append(ListenerSet.of_passed(sock.detach()))
        return made[-1]

    yield make
    for each in made:
        each.close()


def connect(address: Address) -> socket.socket:
    if isinstance(address, TcpAddress):
        return socket.create_connection((address.host, address.port))
    client = socket.socket(socket.AF_UNIX)
    client.connect(address.path)
    return client


def accepted(listener: Listener) -> int:
    """How many connections wait in a backlog; they are taken and closed."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.socket.accept()[0].close()
            count += 1
    return count


def test_each_worker_has_a_socket_of_its_own_on_tcp_and_the_kernel_spreads_connections(opening):
    (found,) = opening(TCP, count=3)
    workers = [found.share(index, 3) for index in range(3)]
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connect(found.address))
        taken = [accepted(listener) for (listener,) in workers]

    assert sum(taken) == 300
    assert min(taken) > 50
    assert not any(listener.is_shared for (listener,) in workers)
    assert len({listener.socket.fileno() for (listener,) in workers}) == 3 == len(found.fds)
    assert {listener.address for (listener,) in workers} == {found.address}


def test_sockets_for_workers_do_not_block_and_are_not_inherited(opening):
    (found,) = opening(TCP, count=2)
    assert [os.get_blocking(fd) for fd in found.fds] == [False, False]
    assert [os.get_inheritable(fd) for fd in found.fds] == [False, False]


def test_workers_share_one_unix_socket(opening, tmp_path):
    (found,) = opening(UnixAddress(str(tmp_path / "s")), count=2)
    (one,), (two,) = found.share(0, 2), found.share(1, 2)
    assert one.socket is two.socket
    assert one.is_shared
    assert two.is_shared


def test_one_worker_shares_with_nobody(opening, tmp_path):
    for each in opening(TCP, UnixAddress(str(tmp_path / "s"))):
        (listener,) = each.share(0, 1)
        assert not listener.is_shared


def test_what_a_worker_closes_of_its_share_leaves_the_path(opening, tmp_path):
    """The path belongs to the set: a worker that ends takes nothing away from the others."""
    (found,) = opening(UnixAddress(str(tmp_path / "s")))
    found.share(0, 1)[0].close()
    assert os.listdir(tmp_path) == ["s"]


def test_a_second_wstunnel_of_the_same_user_is_refused_however_many_workers_it_has(opening):
    (found,) = opening(TCP, count=2)
    for count in (1, 2):
        with pytest.raises(StartError, match="another process listens there"):
            opening(found.address, count=count)


def test_when_one_address_cannot_be_had_nothing_stays_open(opening, tmp_path):
    path = tmp_path / "s"
    before = os.listdir("/proc/self/fd")
    with pytest.raises(StartError, match="does not exist"):
        opening(TCP, UnixAddress(str(path)), UnixAddress(str(tmp_path / "no" / "s")), count=2)
    assert not path.exists()
    assert os.listdir("/proc/self/fd") == before


# --- more workers, and fewer


def test_a_socket_for_one_more_worker_takes_nothing_before_the_worker_does(opening):
    (found,) = opening(TCP)
    found.grow(2)
    first, second = found.share(0, 2)[0], found.share(1, 2)[0]
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(found.address))
        assert accepted(first) == 20
        assert not second.is_listening

        second.socket.listen(256)
        for _ in range(200):
            stack.enter_context(connect(found.address))

        assert accepted(first) > 40
        assert accepted(second) > 40


def test_growing_to_what_there_is_changes_nothing(opening, tmp_path):
    tcp, unix = opening(TCP, UnixAddress(str(tmp_path / "s")), count=2)
    for each in (tcp, unix):
        before = each.fds
        each.grow(2)
        each.grow(1)
        assert each.fds == before


@pytest.mark.parametrize(("sockets", "workers"), [(3, 2), (3, 1), (2, 3), (1, 4)])
def test_however_many_workers_there_are_every_socket_is_accepted_from_and_every_worker_accepts(
    opening, monkeypatch, sockets, workers
):
    (found,) = opening(TCP, count=sockets)
    shares = [found.share(index, workers) for index in range(workers)]

    takers = {fd: [share for share in shares if fd in fds_of(share)] for fd in found.fds}
    assert all(takers.values())
    assert all(shares)
    for share in shares:
        for listener in share:
            assert listener.is_shared == (len(takers[listener.socket.fileno()]) > 1)


def fds_of(share: list[Listener]) -> list[int]:
    return [listener.socket.fileno() for listener in share]


def test_where_no_socket_can_be_added_workers_share_and_the_log_says_so(opening, monkeypatch, caplog):
    def refuse(first: socket.socket) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(listen, "join_tcp", refuse)
    (found,) = opening(TCP, count=3)

    assert len(found) == 1
    assert all(found.share(index, 3)[0].is_shared for index in range(3))
    (line,) = caplog.messages
    assert line.startswith(f"{found.address}: no listening socket for each of 3 workers (Permission denied)")


def test_a_growth_that_came_to_nothing_is_taken_back(opening):
    (found,) = opening(TCP)
    found.grow(3)
    found.shrink(1)
    found.shrink(0)
    assert len(found) == 1
    connect(found.address).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a socket away")
def test_who_gets_the_sockets_can_add_further_ones_and_connect(tmp_path):
    """SO_REUSEPORT joins sockets of one user only, and the master has become another one by the time of a reload."""
    os.chmod(tmp_path, 0o755)
    script = """
        import os, sys, socket
        from wstunnel.net.listen import open_listeners
        from wstunnel.settings import TcpAddress, UnixAddress
        tcp, unix = open_listeners([TcpAddress("127.0.0.1", 0), UnixAddress("s")], count=1, backlog=8)
        for each in (tcp, unix):
            if sys.argv[1] == "give":
                each.give_to(65534, 65534)
        os.setresuid(65534, 65534, 65534)
        tcp.grow(2)
        print(len(tcp))
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect("s")
            print("connected")
        except PermissionError:
            print("refused")
        """
    words = [sys.executable, "-c", textwrap.dedent(script)]
    environ = {"PYTHONPATH": os.getcwd()}
    for way, said in (("give", "2\nconnected\n"), ("keep", "1\nrefused\n")):
        done = subprocess.run([*words, way], cwd=tmp_path, env=environ, check=True, stdout=subprocess.PIPE, text=True)
        assert done.stdout == said
        os.unlink(tmp_path / "s")


# --- held ones: of the configuration before, or passed


def test_an_address_that_is_asked_for_again_keeps_its_sockets(opening, tmp_path):
    addresses = (TCP, UnixAddress(str(tmp_path / "s")), TCP)
    before = opening(*addresses, count=2)
    after = opening(*addresses, count=2, held=before)
    assert after == before


def test_an_address_that_is_written_differently_is_the_same(opening):
    (before,) = opening(TCP)
    port = before.address.port
    (after,) = opening(TcpAddress("localhost", port), held=[before])
    assert after is before


def test_order_is_that_of_the_new_addresses_and_what_is_not_asked_for_is_left_out(opening, tmp_path):
    one, two = UnixAddress(str(tmp_path / "1")), UnixAddress(str(tmp_path / "2"))
    first, second = opening(one, two)
    third, kept = opening(UnixAddress(str(tmp_path / "3")), two, held=[first, second])
    assert kept is second
    assert third not in (first, second)
    connect(one).close()  # left out, and not closed: that is the caller's, once the new ones are served


def test_more_workers_after_a_reload_have_sockets_that_wait_for_them(opening):
    (before,) = opening(TCP)
    (after,) = opening(TCP, held=[before], count=2)
    assert after is before
    assert [listener.is_listening for index in range(2) for listener in after.share(index, 2)] == [True, False]


def test_a_change_of_host_at_a_port_that_we_hold_is_refused_in_words_that_help(opening):
    (held,) = opening(TcpAddress("0.0.0.0", 0))
    port = held.address.port
    with pytest.raises(StartError, match=f"127.0.0.1:{port}: this wstunnel itself listens .* at 0.0.0.0:{port}"):
        opening(TcpAddress("127.0.0.1", port), held=[held])


def test_passed_sockets_alone_are_served_when_nobody_wrote_an_address(opening, passed):
    held = passed(TCP)
    assert opening(TCP, held=[held], is_default=True) == [held]


def test_without_passed_sockets_the_default_address_is_served(opening):
    (found,) = opening(TCP, is_default=True)
    assert isinstance(found.address, TcpAddress)


def test_addresses_that_somebody_wrote_are_served_beside_passed_ones_each_once(opening, passed, tmp_path):
    tcp, unix = passed(TCP), passed(UnixAddress(str(tmp_path / "passed")))
    own = UnixAddress(str(tmp_path / "own"))
    found = opening(own, tcp.address, held=[tcp, unix], count=2)
    assert [each.address for each in found] == [own, tcp.address, unix.address]
    assert found[1:] == [tcp, unix]


def test_a_passed_socket_is_shared_and_never_joined(opening, passed):
    (found,) = opening(held=[passed(TCP)], count=3)
    assert len(found) == 1
    assert [listener.is_shared for index in range(3) for listener in found.share(index, 3)] == [True] * 3


# --- the next image of the process


def test_the_next_image_goes_on_with_the_sockets(opening, passed, tmp_path):
    path = tmp_path / "s"
    held = passed(UnixAddress(str(tmp_path / "passed")))
    for before in opening(TCP, UnixAddress(str(path)), held=[held], count=2):
        exported = json.loads(json.dumps(before.export()))
        exported["fds"] = [os.dup(fd) for fd in exported["fds"]]  # as the exec does: the numbers stay, the objects go
        client = connect(before.address)

        after = ListenerSet.adopt(exported)

        assert (after.asked, after.address, after.is_passed) == (before.asked, before.address, before.is_passed)
        assert len(after) == len(before)
        assert sum(accepted(listener) for index in range(2) for listener in after.share(index, 2)) == 1
        assert not any(os.get_inheritable(fd) or os.get_blocking(fd) for fd in after.fds)
        client.close()
        after.close()
    assert not path.exists()
    assert os.path.exists(tmp_path / "passed")
