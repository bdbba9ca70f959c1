"""What a reload cannot change."""

from __future__ import annotations

from wstunnel.config.options import SERVER_OPTIONS
from wstunnel.settings import Settings

__all__ = ["unreloadable"]

_UNTIL_RESTART = ("user", "group", "control")


def unreloadable(old: Settings, new: Settings) -> list[str]:
    """A sentence for each option whose new value needs a restart.

    in      old   in force
            new   asked for
    """
    told = []
    for option in SERVER_OPTIONS.values():
        if option.field in _UNTIL_RESTART:
            before, after = getattr(old, option.field), getattr(new, option.field)
            if before != after:
                said = "leaving it out" if after is None else f"{option.name} = {option.kind.to_toml(after)}"
                told.append(f"{option.name}: a reload does not change it; {said} needs a restart")
    if old.control is None and new.control is None and old.addresses[0] != new.addresses[0]:
        told.append(
            f"control: keeps its name after {old.addresses[0]}, the first listener before, until a restart; "
            "give control a path to be independent of it"
        )
    return told
