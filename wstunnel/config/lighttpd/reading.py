"""Values of a lighttpd.conf as lighttpd takes them: numbers may be strings, switches are enable and disable."""

from __future__ import annotations

import re

from wstunnel.config.lighttpd.values import Item, Value
from wstunnel.config.options import OptionError
from wstunnel.limits import ConfLimits

__all__ = ["entries", "number", "pairs", "switch", "text", "texts"]

_ON, _OFF = frozenset({"enable", "enabled", "true", "1"}), frozenset({"disable", "disabled", "false", "0"})


def switch(value: Value) -> bool:
    """enable or disable, in any case; 1 or 0."""
    word = str(value.data).lower() if not isinstance(value.data, tuple) else ""
    if word not in _ON | _OFF:
        raise OptionError(f'needs "enable" or "disable", got {value.shown}')
    return word in _ON


def number(value: Value) -> int:
    """A whole number, in quotation marks or without."""
    if isinstance(value.data, int):
        return value.data
    digits = value.data.strip() if isinstance(value.data, str) else ""
    if not re.fullmatch("[0-9]+", digits) or len(digits) > len(str(ConfLimits().max_number)):
        raise OptionError(f"needs a whole number, got {value.shown}")
    return int(digits)


def text(value: Value) -> str:
    if not isinstance(value.data, str):
        raise OptionError(f"needs a string, got {value.shown}")
    return value.data


def texts(value: Value) -> list[str]:
    """A list of strings; one string alone is such a list too."""
    if isinstance(value.data, str):
        return [value.data]
    return [text(item.value) for item in _items(value, '("...", "...")')]


def pairs(value: Value) -> dict[str, str]:
    """Keys with a string or a number each."""
    found = {}
    for item in _items(value, '("..." => "...")'):
        if item.key is None or isinstance(item.value.data, tuple):
            raise OptionError(f'needs entries such as "key" => "value", got {item.value.shown}')
        found[item.key] = str(item.value.data)
    return found


def entries(value: Value, like: str) -> tuple[Item, ...]:
    """The entries of a hash; all of them have a key."""
    items = _items(value, like)
    if any(item.key is None for item in items):
        raise OptionError(f"needs entries such as {like}, got one without a key")
    return items


def _items(value: Value, like: str) -> tuple[Item, ...]:
    if not isinstance(value.data, tuple):
        raise OptionError(f"needs a list such as {like}, got {value.shown}")
    return value.data
