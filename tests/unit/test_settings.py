"""Defaults are those that --help tells, and the issue asks for."""

from __future__ import annotations

import dataclasses
import re
import signal

import pytest

from wstunnel.config.options import ROUTE_OPTIONS, SERVER_OPTIONS, Option
from wstunnel.settings import Host, Route, Settings, TcpAddress, UnixAddress

OPTIONS = list((SERVER_OPTIONS | ROUTE_OPTIONS).values())


def test_defaults_are_those_of_the_issue():
    settings, route = Settings(), Route()
    assert settings.listen == (TcpAddress("127.0.0.1", 8081),)
    assert settings.max_connections is None
    assert (settings.workers, settings.drain_timeout_s, settings.kill_timeout_s) == (1, 10.0, 5.0)
    assert (route.path, route.max_procs, route.min_procs, route.frame_type) == ("/", 1, None, "text")
    assert (route.idle_timeout_s, route.disable_time_s, route.connect_timeout_s) == (60.0, 1.0, 8.0)
    assert (route.read_timeout_s, route.write_timeout_s, route.kill_signal) == (0.0, 0.0, signal.SIGTERM)
    assert (route.balance, route.max_load_per_proc, route.max_load_policy) == ("least-connection", 1, "share")
    assert route.origins is None
    assert route.subprotocols == ("binary",)
    assert (route.ping_interval_s, route.ping_timeout_s) == (20.0, 20.0)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (TcpAddress("127.0.0.1", 80), "127.0.0.1:80"),
        (TcpAddress("::1", 80), "[::1]:80"),
        (TcpAddress("localhost", 0), "localhost:0"),
        (UnixAddress("/run/a.sock"), "unix:/run/a.sock"),
    ],
)
def test_an_address_reads_as_it_is_written(address, text):
    assert str(address) == text


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_an_option_is_named_after_its_field_with_its_unit_left_out(option: Option):
    assert option.name == option.field.removesuffix("_s").replace("_", "-")


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_the_help_tells_the_default(option: Option):
    told = re.search(r"\(default: ([^ ]+)\)$", option.help)
    if told and option.field == "listen":
        assert option.kind.from_toml([told[1]]) == option.default
    elif option.is_flag and option.default is not None and option.default != ():
        assert told
        assert option.kind.from_text(told[1]) == option.default


def test_a_route_is_its_own_host_unless_it_has_others():
    host = Host(port=1)
    assert Route(port=2).backends == (Route(port=2),)
    assert Route(hosts=(host, host)).backends == (host, host)
    assert Route(stdio=("cat",)).backends == ()


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().routes = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        Route().port = 1
