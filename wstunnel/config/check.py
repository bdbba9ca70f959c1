"""Effective settings as the wstunnel.toml that says them in full."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import fields

from wstunnel.config.fitting import HOST_FIELDS, unfit
from wstunnel.config.options import HOST_OPTIONS, LISTENER_OPTIONS, ROUTE_OPTIONS, SERVER_OPTIONS, Option
from wstunnel.settings import Entrance, Front, Host, Route, Settings

__all__ = ["as_toml"]

_UNSET = {
    "max-connections": "what the descriptor limit carries",
    "control": "in the runtime folder, named after the first listener",
    "log-file": "stderr",
    "origins": "the same origin as the Host",
    "min-procs": "as max-procs",
}
"""What None means, for options where an operator may wonder."""


def as_toml(settings: Settings) -> str:
    """A file that `toml.load` reads back to equal Settings (limits, which no file sets, aside)."""
    lines = list(_lines(SERVER_OPTIONS, settings, _hidden_of_front(settings)))
    for listener in settings.listeners:
        lines += ["", "[[listener]]", *_lines(LISTENER_OPTIONS, listener, _hidden_of_front(listener))]
    for route in settings.routes:
        lines += ["", "[[route]]", *_lines(ROUTE_OPTIONS, route, _hidden_of_route(route))]
        for host in route.hosts:
            lines += ["", "[[route.hosts]]", *_lines(HOST_OPTIONS, host, _hidden(host, route.kind))]
    return "\n".join(lines) + "\n"


def _hidden_of_front(front: Settings | Entrance) -> Collection[str]:
    if not front.listen:
        return ["listen", *(each.name for each in fields(Front))]
    return () if front.tls_client_ca else ("tls_client_verify",)


def _hidden_of_route(route: Route) -> Collection[str]:
    hidden = set(_hidden(route, route.kind))
    if route.hosts:
        hidden |= HOST_FIELDS
    if len(route.hosts) < 2 and route.balance == ROUTE_OPTIONS["balance"].default:
        hidden.add("balance")  # there is nothing to choose from, and nobody has set it
    return hidden


def _hidden(host: Host, kind: str) -> Collection[str]:
    return unfit(lambda field: bool(getattr(host, field, None)), kind=kind, is_shared=host.max_load_policy == "share")


def _lines(options: Mapping[str, Option], of: Front | Host, hidden: Container[str]) -> Iterator[str]:
    for name, option in options.items():
        if option.field in hidden:
            continue
        value = getattr(of, option.field)
        if value is None or value == option.default == ():
            if name in _UNSET:
                yield f"# {name}: {_UNSET[name]}"
        else:
            yield f"{name} = {option.kind.to_toml(value)}"
