"""The listening socket of a slot."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from wstunnel.errors import StartError
from wstunnel.settings import TcpAddress, UnixAddress
from wstunnel.sockets import bind_unix
from wstunnel.supervise.endpoint import Endpoint

BACKLOG = 4


def unix(folder: Path, *, is_taken: bool = False) -> Endpoint:
    return Endpoint.bind(UnixAddress(str(folder / "s")), backlog=BACKLOG, is_taken=is_taken)


def connected(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20.0)
    client.connect(path)
    return client


def path_of(endpoint: Endpoint) -> str:
    assert isinstance(endpoint.address, UnixAddress)
    return endpoint.address.path


def serves(endpoint: Endpoint, path: str | Path) -> bool:
    """Does a connect to the path arrive at this endpoint?"""
    with connected(str(path)):
        if not endpoint.has_backlog():
            return False
        endpoint.drop_backlog()
        return True


def test_a_unix_endpoint_stands_where_it_was_wanted_and_leaves_nothing(tmp_path):
    endpoint = unix(tmp_path)

    assert endpoint.address == endpoint.wanted == UnixAddress(str(tmp_path / "s"))
    assert serves(endpoint, tmp_path / "s")

    endpoint.close()
    assert os.listdir(tmp_path) == []


def test_a_tcp_endpoint_knows_its_real_port():
    endpoint = Endpoint.bind(TcpAddress("127.0.0.1", 0), backlog=BACKLOG, is_taken=False)

    assert endpoint.address == endpoint.wanted == TcpAddress("127.0.0.1", endpoint.listener.getsockname()[1])
    endpoint.publish()
    endpoint.close()


def test_connections_that_wait_are_seen_and_cut_off_and_the_socket_blocks_again(tmp_path):
    endpoint = unix(tmp_path)
    assert not endpoint.has_backlog()
    clients = [connected(path_of(endpoint)) for _ in range(BACKLOG + 1)]
    clients[0].sendall(b"hello")
    assert endpoint.has_backlog()

    endpoint.drop_backlog()

    assert not endpoint.has_backlog()
    assert endpoint.listener.getblocking()
    with pytest.raises(ConnectionResetError):  # it had said something
        clients[0].recv(1)
    assert [client.recv(1) for client in clients[1:]] == [b""] * BACKLOG
    for client in clients:
        client.close()
    endpoint.close()


def test_one_beside_another_serves_at_once_and_gets_the_path_without_a_refusal(tmp_path):
    first, second = unix(tmp_path), unix(tmp_path, is_taken=True)
    assert second.wanted == first.address
    assert second.address != second.wanted
    assert serves(first, tmp_path / "s")
    assert serves(second, path_of(second))

    second.publish()
    assert serves(second, tmp_path / "s")
    assert serves(second, path_of(second))

    first.close()
    assert serves(second, tmp_path / "s")
    second.close()
    assert os.listdir(tmp_path) == []


def test_a_second_publish_changes_nothing(tmp_path):
    first, second = unix(tmp_path), unix(tmp_path, is_taken=True)
    first.publish()
    second.publish()
    second.publish()

    assert len(os.listdir(tmp_path)) == 2
    assert serves(second, tmp_path / "s")
    first.close()
    second.close()
    assert os.listdir(tmp_path) == []


def test_a_path_that_cannot_be_given_is_said_so_and_the_endpoint_goes_on(tmp_path, caplog):
    first, second = unix(tmp_path), unix(tmp_path, is_taken=True)
    first.close()
    (tmp_path / "s").mkdir()
    own = path_of(second)

    second.publish()

    assert caplog.messages == [f"unix:{tmp_path}/s: stays at unix:{own}: Is a directory"]
    assert serves(second, own)
    second.close()
    assert os.listdir(tmp_path) == ["s"]


def test_one_that_has_its_path_has_nothing_to_publish(tmp_path, caplog):
    endpoint = unix(tmp_path)
    (tmp_path / "s").unlink()

    endpoint.publish()

    assert caplog.messages == []
    endpoint.close()


def test_a_path_that_is_free_by_now_is_given_too(tmp_path):
    first, second = unix(tmp_path), unix(tmp_path, is_taken=True)
    first.close()

    second.publish()

    assert serves(second, tmp_path / "s")
    second.close()
    assert os.listdir(tmp_path) == []


def test_what_somebody_has_put_in_our_place_stays(tmp_path):
    endpoint = unix(tmp_path)
    (tmp_path / "s").unlink()
    (tmp_path / "s").write_text("theirs")

    endpoint.close()

    assert (tmp_path / "s").read_text() == "theirs"


def test_a_strangers_socket_is_an_error_even_where_one_of_ours_might_be_replaced(tmp_path):
    with bind_unix(str(tmp_path / "s"), backlog=BACKLOG), pytest.raises(StartError, match="another process listens"):
        unix(tmp_path)


@pytest.mark.parametrize("is_taken", [False, True])
def test_an_endpoint_goes_on_in_another_pair_of_hands(tmp_path, is_taken):
    before = unix(tmp_path, is_taken=is_taken)
    facts = before.facts()
    before.listener.detach()

    after = Endpoint.adopt(UnixAddress(str(tmp_path / "s")), BACKLOG, facts)

    assert (after.address, after.wanted, after.facts()) == (before.address, before.wanted, facts)
    assert serves(after, path_of(after))
    after.close()
    assert os.listdir(tmp_path) == []


def test_a_tcp_endpoint_keeps_its_port_in_another_pair_of_hands():
    before = Endpoint.bind(TcpAddress("127.0.0.1", 0), backlog=BACKLOG, is_taken=False)
    facts = before.facts()
    before.listener.detach()

    after = Endpoint.adopt(TcpAddress("127.0.0.1", 0), BACKLOG, facts)

    assert after.address == before.address
    after.close()
