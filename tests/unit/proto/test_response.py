"""What of an answer goes on to the client."""

from __future__ import annotations

from wstunnel.proto.response import end_to_end


def test_fields_that_connection_names_go_with_it():
    headers = (
        ("connection", "close, X-A"),
        ("x-a", "1"),
        ("x-b", "2"),
        ("connection", "x-c"),
        ("x-c", "3"),
        ("x-b", "4"),
    )

    assert end_to_end(headers) == (("x-b", "2"), ("x-b", "4"))


def test_upgrade_stays_on_demand_even_where_connection_names_it():
    headers = (("upgrade", "a"), ("connection", "Upgrade"), ("upgrade", "b"))

    assert end_to_end(headers) == ()
    assert end_to_end(iter(headers), with_upgrade=True) == (("upgrade", "a"), ("upgrade", "b"))
