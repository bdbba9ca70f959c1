"""`wstunnel.toml` -> Settings: any number of listeners and routes, all errors at once, each with its line."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping
from typing import Any

from wstunnel.config.drafts import Draft, Place, Problems
from wstunnel.config.files import text_of
from wstunnel.config.lines import KeyPath, key_lines
from wstunnel.config.names import nearest
from wstunnel.config.options import (
    HOST_OPTIONS,
    LISTENER_OPTIONS,
    ROUTE_OPTIONS,
    SERVER_OPTIONS,
    Option,
    OptionError,
    shown,
)
from wstunnel.config.rules import Settled, settle
from wstunnel.errors import ConfigError
from wstunnel.server.certificates import Material
from wstunnel.settings import Settings

__all__ = ["load", "read", "read_top"]

_ROUTE, _LISTENER, _HOSTS = "route", "listener", "hosts"
_TOP: KeyPath = ()
_OPTIONS: dict[KeyPath, Mapping[str, Option]] = {
    _TOP: SERVER_OPTIONS,
    (_ROUTE,): ROUTE_OPTIONS,
    (_ROUTE, _HOSTS): HOST_OPTIONS,
    (_LISTENER,): LISTENER_OPTIONS,
}
"""By the name of a table: the top of the file, a [[route]], a [[route.hosts]], a [[listener]]."""


def load(path: str) -> Settings:
    """The settings in a file. Relative paths in it start from its own folder.

    raises  ConfigError with every problem as `wstunnel.toml:12: route[2].max-procs: needs ...`
    """
    return read(path).settings


def read(path: str, over: Draft | None = None, held: Material | None = None) -> Settled:
    """What `load` gives, with its warnings; the values of `over` (the command line) win over those of the file.

    in      held  as for `settle`
    """
    text = text_of(path)
    file = _File(path, text, _tables_of(path, text))
    problems = Problems()
    server = file.server(problems)
    routes = [file.route(table, (_ROUTE, str(number)), problems) for number, table in file.routes(problems)]
    if file.top.get(_ROUTE, []) == [] and not any(
        draft.has("document_root") for draft in (server, over) if draft is not None
    ):
        problems.add(server.where(None), "nothing to serve: it takes a [[route]] or a document-root")
    return settle([server] if over is None else [server, over], routes, problems, held)


def read_top(path: str, fields: Collection[str], problems: Problems) -> Draft:
    """What the top of a file says about a few options; the rest may be wrong.

    raises  ConfigError when it cannot be read or is not TOML
    """
    text = text_of(path)
    file = _File(path, text, _tables_of(path, text))
    return file.server(problems, fields)


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
        self._lines: dict[KeyPath, int] = {}
        for key, line in key_lines(text).items():
            for length in range(1, len(key) + 1):  # `a.b = 1` has the line of `a` too, unless that has its own
                self._lines.setdefault(key[:length], line)
        self.top = top

    def routes(self, problems: Problems) -> list[tuple[int, dict[str, Any]]]:
        """Each [[route]] with its number, from 1."""
        return self._tables(self.top.get(_ROUTE, []), (_ROUTE,), problems) or []

    def _tables(self, value: object, at: KeyPath, problems: Problems) -> list[tuple[int, dict[str, Any]]] | None:
        """The tables of an array, numbered from 1; None, and a problem, where it is something else."""
        if isinstance(value, list) and all(isinstance(table, dict) for table in value):
            return list(enumerate(value, 1))
        name = ".".join(part for part in at if not part.isdigit())
        is_table = isinstance(value, dict)
        problems.add(
            self._place(at), f"write [[{name}]], with double brackets" if is_table else f"needs [[{name}]] tables"
        )
        return None

    def server(self, problems: Problems, fields: Collection[str] | None = None) -> Draft:
        """The values of the top, and of each [[listener]]; of a few options only, if they are named."""
        tables = {_ROUTE, _LISTENER}
        draft = self._some(
            {name: value for name, value in self.top.items() if name not in tables}, _TOP, fields, problems
        )
        found = self._tables(self.top.get(_LISTENER, []), (_LISTENER,), problems) or ()
        draft.listeners = [self._some(table, (_LISTENER, str(number)), fields, problems) for number, table in found]
        return draft

    def _some(self, table: Mapping[str, Any], at: KeyPath, fields: Collection[str] | None, problems: Problems) -> Draft:
        """As `draft`, of a few options only, if they are named."""
        if fields is not None:
            options = _OPTIONS[at[::2]]
            table = {name: value for name, value in table.items() if name in options and options[name].field in fields}
        return self.draft(table, at, problems)

    def route(self, table: Mapping[str, Any], at: KeyPath, problems: Problems) -> Draft:
        """The values of a [[route]], and of its hosts."""
        draft = self.draft({name: value for name, value in table.items() if name != _HOSTS}, at, problems)
        if _HOSTS in table:
            tables = self._tables(table[_HOSTS], (*at, _HOSTS), problems)
            draft.hosts = [self.draft(host, (*at, _HOSTS, str(number)), problems) for number, host in tables or ()]
            if tables is None:
                draft.refused.add(_HOSTS)
        return draft

    def draft(self, table: Mapping[str, Any], at: KeyPath, problems: Problems) -> Draft:
        """The values of one table; what cannot be read goes to `problems`."""
        kind = at[::2]
        names = {option.field: option.name for option in _OPTIONS[kind].values()} | {_HOSTS: _HOSTS}
        draft = Draft(lambda field: self._place(at if field is None else (*at, names[field])), self._base)
        for name, value in table.items():
            option = _OPTIONS[kind].get(name)
            misnamed = _misnamed_tables(name, kind) if _is_tables(value) else None
            if misnamed is not None:
                problems.add(self._place((*at, name)), misnamed)
                draft.hosts = []
                draft.refused.add(_HOSTS)
            elif option is None:
                problems.add(self._place((*at, name)), _unknown(name, kind))
            else:
                try:
                    draft.values[option.field] = option.kind.from_toml(value)
                except OptionError as bad:
                    problems.add(self._place((*at, name)), str(bad))
                    draft.refused.add(option.field)
        return draft

    def _place(self, key: KeyPath) -> Place:
        """The line of a key, of what is first in it, or of the nearest thing around it that has one."""
        around = key
        while around and around not in self._lines:
            around = around[:-1]
        line = self._lines.get(around, 0)
        file = f"{self._path}:{line}" if line else self._path
        if not key:
            return Place(line, file)
        parts = [part if re.fullmatch("[A-Za-z0-9_-]+", part) else shown(part) for part in key]
        if key[:1] == (_ROUTE,) and key[2:3] == (_HOSTS,) and len(key) > 3:
            parts[2:4] = [f"{_HOSTS}[{key[3]}]"]
        if key[0] in {_ROUTE, _LISTENER} and len(key) > 1:
            parts[:2] = [f"{key[0]}[{key[1]}]"]
        return Place(line, f"{file}: {'.'.join(parts)}")


_WHERE: dict[KeyPath, str] = {
    _TOP: "stands at the top of the file, before the first [[route]]",
    (_ROUTE,): "stands in a [[route]]",
    (_ROUTE, _HOSTS): "stands in a [[route.hosts]]",
    (_LISTENER,): "stands in a [[listener]]",
}
_TABLES: dict[KeyPath, dict[str, str]] = {
    _TOP: {
        _ROUTE: "unknown; routes are written as [[route]]",
        _LISTENER: "unknown; further listeners are written as [[listener]]",
    },
    (_ROUTE,): {_HOSTS: "unknown; hosts are written as [[route.hosts]]"},
}


def _is_tables(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict) for each in value))


def _misnamed_tables(name: str, kind: KeyPath) -> str | None:
    """What to tell about a name that is like that of the tables inside this one."""
    tables = _TABLES.get(kind, {})
    meant = nearest(name, tables)
    return tables[meant] if meant else None


def _unknown(name: str, kind: KeyPath) -> str:
    """Why a name is unknown in a table of this kind, with what was meant."""
    tables = _TABLES.get(kind, {})
    meant = nearest(name, (*tables, *_OPTIONS[kind]))
    if meant in tables:
        return tables[meant]
    here = nearest(name, _OPTIONS[kind])
    around = [kind[:depth] for depth in range(len(kind) - 1, -1, -1)]
    for other in (*around, *(each for each in _OPTIONS if each != kind and each not in around)):
        there = nearest(name, _OPTIONS[other])
        if there is not None and (here is None or name in _OPTIONS[other]):
            return f"unknown here; {there} {_WHERE[other]}"
    return "unknown" if here is None else f"unknown; did you mean {here}?"
