"""What an operator wrote, before it is held against the rules: values, where each stands, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wstunnel.errors import ConfigError

__all__ = ["Draft", "Place", "Problems"]


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where an operator wrote something: a line (0: none) to sort by, and the words for it."""

    line: int
    text: str


class Problems:
    """Everything that is wrong, each with its place, in the order of the file; and what is only to be warned of."""

    def __init__(self) -> None:
        self._found: list[tuple[Place, str]] = []
        self._warnings: list[tuple[Place, str]] = []

    def add(self, place: Place, text: str) -> None:
        self._found.append((place, text))

    def warn(self, place: Place, text: str) -> None:
        self._warnings.append((place, text))

    def raise_any(self) -> None:
        """Raise one ConfigError with all that is wrong, if there is anything."""
        if self._found:
            raise ConfigError(_in_order(self._found))

    @property
    def warnings(self) -> tuple[str, ...]:
        return _in_order(self._warnings)


def _in_order(found: list[tuple[Place, str]]) -> tuple[str, ...]:
    in_order = sorted(found, key=lambda entry: entry[0].line)
    return tuple(dict.fromkeys(f"{place.text}: {text}" for place, text in in_order))  # routes may share a line


@dataclass(slots=True)
class Draft:
    """What one table, or the command line, says: values that were read, not yet held against each other.

    where     the place of an option, or of the whole with None
    base      the folder that relative paths start from
    values    by the field that they fill
    refused   fields that were written, but whose value could not be read
    hosts     the [[route.hosts]] of a [[route]]; None where there are none
    listeners the [[listener]]s beside the top of a file
    """

    where: Callable[[str | None], Place]
    base: str
    values: dict[str, Any] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    hosts: list[Draft] | None = None
    listeners: list[Draft] = field(default_factory=list)

    def has(self, name: str) -> bool:
        """Was the option written, soundly or not?"""
        return name in self.values or name in self.refused
