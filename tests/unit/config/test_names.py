"""Suggestions for names that nobody knows."""

from __future__ import annotations

import pytest

from wstunnel.config.names import nearest

KNOWN = ["bin-path", "max-procs", "max-connections", "path", "port", "ping-interval", "ping-timeout"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_procs", "max-procs"),
        ("Max-Procs", "max-procs"),
        ("max-proc", "max-procs"),
        ("pingtimeout", "ping-timeout"),
        ("ping_intervall", "ping-interval"),
        ("bin-paht", "bin-path"),
        ("colour", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_found_if_one_is_near(name, meant):
    assert nearest(name, KNOWN) == meant


def test_among_no_names_there_is_none():
    assert nearest("path", []) is None
