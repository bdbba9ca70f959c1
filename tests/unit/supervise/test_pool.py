"""The backend of one route: its addresses, and a pool of what somebody else runs. Spawned ones: tests/system."""

from __future__ import annotations

import asyncio

import pytest

from wstunnel.errors import ConfigError, StartError
from wstunnel.limits import Limits
from wstunnel.settings import Address, Route, TcpAddress, UnixAddress
from wstunnel.supervise.pool import Pool, slot_addresses

ECHO = ("./echo.pl",)


@pytest.mark.parametrize(
    ("route", "addresses"),
    [
        (Route(socket="/run/x"), [UnixAddress("/run/x")]),
        (Route(socket="/run/x", max_procs=3), [UnixAddress("/run/x")]),
        (Route(socket="/run/x", bin_path=ECHO), [UnixAddress("/run/x-0")]),
        (Route(socket="/run/x", bin_path=ECHO, max_procs=2), [UnixAddress("/run/x-0"), UnixAddress("/run/x-1")]),
        (Route(host="::1", port=7000), [TcpAddress("::1", 7000)]),
        (Route(port=7000), [TcpAddress("127.0.0.1", 7000)]),
        (Route(port=7000, bin_path=ECHO), [TcpAddress("127.0.0.1", 7000)]),
        (Route(port=65534, bin_path=ECHO, max_procs=2), [TcpAddress("127.0.0.1", n) for n in (65534, 65535)]),
        (Route(port=0, bin_path=ECHO, max_procs=2), [TcpAddress("127.0.0.1", 0)] * 2),
    ],
)
def test_addresses_are_numbered_for_what_we_spawn_and_bare_for_what_we_do_not(route, addresses):
    assert list(slot_addresses(route)) == addresses


def test_a_route_that_says_nothing_about_its_backend_is_refused():
    with pytest.raises(ConfigError, match="route /ws: says nothing about its backend; give socket, or host and port"):
        slot_addresses(Route(path="/ws", host="127.0.0.1"))


def test_ports_past_the_last_one_are_refused():
    with pytest.raises(ConfigError, match=r"route \.ws: port 65535 and max-procs 2 go past 65535"):
        slot_addresses(Route(path=None, suffix=".ws", port=65535, bin_path=ECHO, max_procs=2))


def pool_of(*addresses: Address) -> Pool:
    pool = Pool("theirs", addresses=addresses, limits=Limits())
    asyncio.run(pool.start())
    return pool


def test_slots_of_somebody_else_are_called_by_their_address_and_balanced_alike():
    pool = pool_of(UnixAddress("/run/a"), TcpAddress("127.0.0.1", 7000))

    leases = [pool.lease() for _ in range(3)]

    assert [slot.name for slot in pool.slots] == ["unix:/run/a", "127.0.0.1:7000"]
    assert [lease.slot for lease in leases if lease] == [pool.slots[0], pool.slots[1], pool.slots[0]]
    assert [slot.load for slot in pool.slots] == [2, 1]


def test_a_pool_that_is_not_started_has_nothing_to_give():
    pool = Pool("theirs", addresses=[UnixAddress("/run/a")], limits=Limits())

    assert pool.slots == ()
    assert pool.lease() is None


def test_stopping_and_aborting_what_is_not_ours_does_nothing(tmp_path):
    (tmp_path / "socket").touch()
    pool = pool_of(UnixAddress(str(tmp_path / "socket")))

    pool.abort()
    asyncio.run(pool.stop())

    assert (tmp_path / "socket").exists()


def test_a_program_that_is_nowhere_is_found_out_before_anything_is_bound(tmp_path):
    pool = Pool("echo", addresses=[UnixAddress(str(tmp_path / "run" / "s"))], argv=("no-such-one",), limits=Limits())

    with pytest.raises(StartError, match="no-such-one"):
        asyncio.run(pool.start())

    assert list(tmp_path.iterdir()) == []
