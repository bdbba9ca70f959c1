"""Which known name an unknown one was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is most like, `_` for `-` and case aside; None where nothing is near."""
    names = list(known)
    spelled = name.replace("_", "-").lower()
    if spelled in names:
        return spelled
    matches = difflib.get_close_matches(spelled, names, n=1)
    return matches[0] if matches else None
