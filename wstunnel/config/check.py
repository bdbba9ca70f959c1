"""Effective settings as the wstunnel.toml that says them in full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wstunnel.config.options import ROUTE_OPTIONS, SERVER_OPTIONS, Option
from wstunnel.settings import Route, Settings

__all__ = ["as_toml"]

_UNSET = {
    "max-connections": "what the descriptor limit carries",
    "origins": "the same origin as the Host",
}
"""What None means, for options where an operator may wonder."""


def as_toml(settings: Settings) -> str:
    """A file that `toml.load` reads back to equal Settings (limits, which no file sets, aside)."""
    lines = list(_lines(SERVER_OPTIONS, settings))
    for route in settings.routes:
        lines += ["", "[[route]]", *_lines(ROUTE_OPTIONS, route)]
    return "\n".join(lines) + "\n"


def _lines(options: Mapping[str, Option], of: Settings | Route) -> Iterator[str]:
    for name, option in options.items():
        value = getattr(of, option.field)
        if value is None or value == option.default == ():
            if name in _UNSET:
                yield f"# {name}: {_UNSET[name]}"
        else:
            yield f"{name} = {option.kind.to_toml(value)}"
