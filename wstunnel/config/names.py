"""Which known name an unknown one was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Collection

__all__ = ["nearest"]


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that `name` is most like, `_` for `-` and case aside; None where nothing is near."""
    matches = difflib.get_close_matches(name.replace("_", "-").lower(), known, n=1)
    return matches[0] if matches else None
