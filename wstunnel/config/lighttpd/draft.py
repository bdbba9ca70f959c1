"""A draft that is filled from lighttpd's values, each remembered with its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from wstunnel.config.drafts import Draft, Place, Problems
from wstunnel.config.lighttpd.values import Value
from wstunnel.config.options import Option, OptionError

__all__ = ["Filling", "at"]


def at(place: Place, what: str) -> Place:
    """The same line, with what stands there."""
    return Place(place.line, f"{place.text}: {what}")


class Filling:
    """A draft while it is filled.

    in      options  whose names are ours
            place    of the whole
    """

    def __init__(self, options: Mapping[str, Option], place: Place, problems: Problems) -> None:
        self._options = options
        self._problems = problems
        self._places: dict[str, Place] = {}
        self.draft = Draft(lambda field: place if field is None else self._places.get(field, place), os.getcwd())

    def put(self, name: str, value: object, place: Place) -> None:
        """Set an option of ours to what a wstunnel.toml would say."""
        option = self._options[name]
        self._places[option.field] = place
        try:
            self.draft.values[option.field] = option.kind.from_toml(value)
        except OptionError as bad:
            self._refuse(option, place, bad)

    def read(self, name: str, value: Value, place: Place, reading: Callable[[Value], Any]) -> Any:
        """Set an option of ours to what `reading` makes of a value; what that is, or None."""
        try:
            plain = reading(value)
        except OptionError as bad:
            self._places[self._options[name].field] = place
            self._refuse(self._options[name], place, bad)
            return None
        self.put(name, plain, place)
        return plain

    def take(self, other: Filling) -> None:
        """Set what another one has set."""
        self.draft.values |= other.draft.values
        self.draft.refused |= other.draft.refused
        self._places |= other._places

    def _refuse(self, option: Option, place: Place, why: OptionError) -> None:
        self._problems.add(place, str(why))
        self.draft.refused.add(option.field)
