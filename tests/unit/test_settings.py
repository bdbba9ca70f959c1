"""Defaults are those that --help tells, and the issue asks for."""

from __future__ import annotations

import dataclasses
import re

import pytest

from wstunnel.config.options import ROUTE_OPTIONS, SERVER_OPTIONS, Option
from wstunnel.settings import Route, Settings, TcpAddress, UnixAddress

OPTIONS = list((SERVER_OPTIONS | ROUTE_OPTIONS).values())


def test_defaults_are_those_of_the_issue():
    settings, route = Settings(), Route()
    assert settings.listen == (TcpAddress("127.0.0.1", 8081),)
    assert settings.max_connections is None
    assert (route.path, route.gateway, route.max_procs, route.frame_type) == ("/", "tunnel", 1, "text")
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
    if isinstance(option.default, int | float) and option.is_flag:
        assert told
        assert float(told[1]) == option.default
    elif isinstance(option.default, str) and option.is_flag:
        assert told
        assert told[1] == option.default
    elif told and option.field == "listen":
        assert option.kind.from_toml([told[1]]) == option.default


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().routes = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        Route().port = 1
