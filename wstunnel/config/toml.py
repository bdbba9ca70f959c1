"""`wstunnel.toml` -> Settings: any number of listeners and routes, all errors at once, each with its line."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from wstunnel.config.lines import KeyPath, key_lines
from wstunnel.config.names import nearest
from wstunnel.config.options import ROUTE_OPTIONS, SERVER_OPTIONS, Option, OptionError, shown
from wstunnel.config.rules import Draft, Place, Problems, Settled, settle
from wstunnel.errors import ConfigError
from wstunnel.limits import OptionLimits
from wstunnel.settings import Settings

__all__ = ["load", "read"]

_ROUTE = "route"


def load(path: str) -> Settings:
    """The settings in a file. Relative paths in it start from its own folder.

    raises  ConfigError with every problem as `wstunnel.toml:12: route[2].max-procs: needs ...`
    """
    return read(path).settings


def read(path: str, over: Draft | None = None) -> Settled:
    """What `load` gives, with its warnings; the values of `over` (the command line) win over those of the file."""
    text = _text_of(path)
    file = _File(path, text, _tables_of(path, text))
    problems = Problems()
    server = file.draft({name: value for name, value in file.top.items() if name != _ROUTE}, (), problems)
    routes = [file.draft(table, (_ROUTE, str(number)), problems) for number, table in file.routes(problems)]
    if file.top.get(_ROUTE, []) == [] and not any(
        draft.has("document_root") for draft in (server, over) if draft is not None
    ):
        problems.add(server.where(None), "nothing to serve: it takes a [[route]] or a document-root")
    return settle([server] if over is None else [server, over], routes, problems)


def _text_of(path: str) -> str:
    bound = OptionLimits().max_file_bytes
    try:
        with open(path, "rb") as file:
            raw = file.read(bound + 1)
    except OSError as bad:
        raise ConfigError((f"{path}: cannot be read: {(bad.strerror or 'unknown error').lower()}",)) from None
    except ValueError:  # a NUL in the name
        raise ConfigError((f"{shown(path)}: is not a file name",)) from None
    if len(raw) > bound:
        raise ConfigError((f"{path}: has more than {bound} bytes",))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as bad:
        line = raw.count(b"\n", 0, bad.start) + 1
        raise ConfigError((f"{path}:{line}: is not UTF-8",)) from None


def _tables_of(path: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError((f"{path}: is nested too deeply",)) from None
    except ValueError as bad:
        told = re.fullmatch(r"(?s)(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", str(bad))
        if told is None:
            raise ConfigError((f"{path}: is not TOML: {bad}",)) from None
        what, line, column = told.groups()
        if line is None:
            raise ConfigError((f"{path}:{text.count(chr(10)) + 1}: is not TOML: {what} at the end",)) from None
        raise ConfigError((f"{path}:{line}: is not TOML: {what} at column {column}",)) from None


class _File:
    """A file that is TOML: its tables, and in which line everything stands."""

    def __init__(self, path: str, text: str, top: dict[str, Any]) -> None:
        self._path = path
        self._base = os.path.dirname(os.path.abspath(path))
        self._lines = key_lines(text)
        self.top = top

    def routes(self, problems: Problems) -> list[tuple[int, dict[str, Any]]]:
        """Each [[route]] with its number, from 1."""
        tables = self.top.get(_ROUTE, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            what = "write [[route]], with double brackets" if isinstance(tables, dict) else "needs [[route]] tables"
            problems.add(self._place((_ROUTE,)), what)
            return []
        return list(enumerate(tables, 1))

    def draft(self, table: Mapping[str, Any], at: KeyPath, problems: Problems) -> Draft:
        """The values of one table; what cannot be read goes to `problems`."""
        options, others = (ROUTE_OPTIONS, SERVER_OPTIONS) if at else (SERVER_OPTIONS, ROUTE_OPTIONS)
        names = {option.field: option.name for option in options.values()}
        draft = Draft(lambda field: self._place(at if field is None else (*at, names[field])), self._base)
        for name, value in table.items():
            option = options.get(name)
            if option is None:
                problems.add(self._place((*at, name)), _unknown(name, options, others, in_route=bool(at)))
                continue
            try:
                draft.values[option.field] = option.kind.from_toml(value)
            except OptionError as bad:
                problems.add(self._place((*at, name)), str(bad))
                draft.refused.add(option.field)
        return draft

    def _place(self, key: KeyPath) -> Place:
        """The line of a key, or of the nearest thing around it that has one."""
        around = key
        while around and around not in self._lines:
            around = around[:-1]
        line = self._lines.get(around, 0)
        file = f"{self._path}:{line}" if line else self._path
        if not key:
            return Place(line, file)
        parts = [part if re.fullmatch("[A-Za-z0-9_-]+", part) else shown(part) for part in key]
        if key[0] == _ROUTE and len(key) > 1:
            parts[:2] = [f"{_ROUTE}[{key[1]}]"]
        return Place(line, f"{file}: {'.'.join(parts)}")


def _unknown(name: str, options: Mapping[str, Option], others: Mapping[str, Option], *, in_route: bool) -> str:
    known, elsewhere = nearest(name, options), nearest(name, others)
    if elsewhere is not None and (known is None or name in others):
        if in_route:
            return f"unknown here; {elsewhere} stands at the top of the file, before the first [[route]]"
        return f"unknown here; {elsewhere} stands in a [[route]]"
    if not in_route and nearest(name, (_ROUTE,)):
        return "unknown; routes are written as [[route]]"
    return "unknown" if known is None else f"unknown; did you mean {known}?"
