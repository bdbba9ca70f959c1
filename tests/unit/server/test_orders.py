"""What a worker is told before it starts, through a descriptor."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal

import pytest

from wstunnel.limits import HeadLimits, Limits
from wstunnel.server.orders import ListenerOrder, Orders
from wstunnel.settings import Host, Route, Settings, TcpAddress, UnixAddress
from wstunnel.supervise.place import SlotPlace

ORDERS = Orders(
    settings=Settings(
        listen=(TcpAddress("::1", 80), UnixAddress("/run/front")),
        routes=(
            Route(path="/a", hosts=(Host(socket="/run/a"), Host(bin_path=("x", "y"), kill_signal=signal.SIGHUP))),
            Route(path=None, suffix=".ws", stdio=("cat",)),
        ),
        limits=Limits(head=HeadLimits(max_fields=7)),
    ),
    places=(((SlotPlace("a", UnixAddress("/run/a"), 3),), (SlotPlace("x-0", TcpAddress("::1", 1), 4),)), ()),
    listeners=(ListenerOrder(7, TcpAddress("::1", 80), False), ListenerOrder(8, UnixAddress("/run/front"), True)),
    board_fd=3,
    channel_fd=5,
    row=2,
    generation=11,
)


def test_orders_are_read_as_they_were_given_and_the_descriptor_is_closed():
    fd = ORDERS.write()
    assert not os.get_inheritable(fd)
    assert Orders.read(fd) == ORDERS
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_orders_of_any_length_arrive():
    routes = tuple(Route(path=f"/{number}", socket=f"/run/{number}") for number in range(5000))
    long = dataclasses.replace(ORDERS, settings=dataclasses.replace(ORDERS.settings, routes=routes))
    assert Orders.read(long.write()) == long


def test_what_is_no_order_is_not_obeyed():
    fd = os.memfd_create("x")
    os.write(fd, pickle.dumps(("quit", "now")))
    os.lseek(fd, 0, os.SEEK_SET)
    with pytest.raises(TypeError, match="these are no orders of a worker"):
        Orders.read(fd)
