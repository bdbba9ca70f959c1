"""What a reload cannot change is said in the operator's words."""

from __future__ import annotations

import pytest

from wstunnel.config.reload import unreloadable
from wstunnel.settings import Route, Settings, TcpAddress


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({}, {"user": "www"}, 'user: a reload does not change it; user = "www" needs a restart'),
        ({"group": "a"}, {"group": "b"}, 'group: a reload does not change it; group = "b" needs a restart'),
        ({"control": "/c"}, {}, "control: a reload does not change it; leaving it out needs a restart"),
        (
            {},
            {"listen": (TcpAddress("::", 80),)},
            "control: keeps its name after 127.0.0.1:8081, the first listener before, until a restart; "
            "give control a path to be independent of it",
        ),
    ],
)
def test_what_needs_a_restart_is_named(old, new, told):
    assert unreloadable(Settings(**old), Settings(**new)) == [told]


def test_everything_else_is_left_to_the_reload():
    old = Settings(control="/c", user="a")
    new = Settings(control="/c", user="a", listen=(TcpAddress("::", 80),), workers=3, routes=(Route(port=1),))
    assert unreloadable(old, old) == unreloadable(old, new) == []


def test_further_listeners_do_not_matter_to_the_control_socket():
    first, second = TcpAddress("127.0.0.1", 1), TcpAddress("127.0.0.1", 2)
    assert unreloadable(Settings(listen=(first,)), Settings(listen=(first, second))) == []
