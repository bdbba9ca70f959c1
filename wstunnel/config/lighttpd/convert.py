"""A lighttpd.conf -> Settings, and everything that is done otherwise than by lighttpd, or not at all, as a warning."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TypeVar

from wstunnel.config.drafts import Draft, Place, Problems
from wstunnel.config.lighttpd.conditions import Claim
from wstunnel.config.lighttpd.draft import Filling, at
from wstunnel.config.lighttpd.evaluate import Block, Setting, evaluate
from wstunnel.config.lighttpd.known import FEATURES_LEFT, MODULE_OF, MODULES, OPTIONS, left
from wstunnel.config.lighttpd.known import SERVER_OPTIONS as OF_SERVER
from wstunnel.config.lighttpd.listeners import address_of
from wstunnel.config.lighttpd.reading import entries, number, switch, text, texts
from wstunnel.config.lighttpd.routes import Maker
from wstunnel.config.lighttpd.tls import Certificates
from wstunnel.config.lighttpd.values import Value
from wstunnel.config.names import nearest
from wstunnel.config.options import LISTENER_OPTIONS, SERVER_OPTIONS, OptionError, shown
from wstunnel.config.rules import Settled, settle
from wstunnel.server.certificates import Material
from wstunnel.settings import Address, Settings

__all__ = ["load", "read", "read_top"]

T = TypeVar("T")

_DEFAULT_PORT = 80
_GRACE = "server.graceful-shutdown-timeout"
_H2, _H2C = "server.h2proto", "server.h2c"


def load(path: str) -> Settings:
    """The settings in a file. Relative paths in it start from the current folder, as in lighttpd.

    raises  ConfigError with every problem as `lighttpd.conf:12: server.port: needs ...`
    """
    return read(path).settings


def read(path: str, over: Draft | None = None, held: Material | None = None) -> Settled:
    """What `load` gives, with its warnings; the values of `over` (the command line) win over those of the file.

    in      held  as for `settle`
    """
    problems = Problems()
    conversion = _Conversion(path, problems)
    server = conversion.server()
    routes = Maker(conversion.blocks, conversion.modules, problems).routes()
    conversion.warn_of_the_rest()
    if not routes and not any(draft.has("document_root") for draft in (server, over) if draft is not None):
        problems.raise_any()  # which may be why
        problems.add(Place(0, path), "nothing to serve: it takes a server.document-root, or a wstunnel.server")
    return settle([server] if over is None else [server, over], routes, problems, held)


def read_top(path: str, fields: Collection[str]) -> Draft:
    """What the file says about a few options of the server; the rest may be wrong.

    raises  ConfigError when it cannot be read, or it cannot be told where it listens
    """
    problems = Problems()
    conversion = _Conversion(path, problems)
    problems.raise_any()
    draft = conversion.server()
    for each in (draft, *draft.listeners):
        each.values = {field: value for field, value in each.values.items() if field in fields}
    return draft


@dataclass(slots=True)
class _Bound:
    """An address where we listen, where that is written, and the block that says how it is served."""

    address: Address
    place: Place
    block: Block


class _Conversion:
    """What a file says about the server, and which of its blocks count."""

    def __init__(self, path: str, problems: Problems) -> None:
        self._problems = problems
        every = evaluate(path, os.environ, problems)
        self._top = every[0]
        self.modules = self._read_modules()
        self._port = self._value("server.port", number, _DEFAULT_PORT)
        self._is_ipv6 = self._value("server.use-ipv6", switch, False)
        self._bound: list[_Bound] = []
        self._bind()
        self.blocks = [self._top, *(block for block in every[1:] if self._takes_part(block))]
        self._certificates = Certificates(self.blocks, problems)
        self._h2c: Place | None = None
        """Where HTTP/2 in the clear is asked for."""

    # --- the server

    def server(self) -> Draft:
        """Everything that is no route."""
        filling = Filling(SERVER_OPTIONS, self._top.place, self._problems)
        for name, ours in (("server.document-root", "document-root"), ("server.errorlog", "log-file")):
            if (setting := self._top.options.get(name)) is not None:
                if name == "server.errorlog" and isinstance(said := setting.value.data, str) and said.startswith("|"):
                    self._problems.warn(at(setting.place, name), "a log cannot be a program; it goes to stderr")
                else:
                    filling.read(ours, setting.value, at(setting.place, name), text)
        for name, ours in (("server.max-connections", "max-connections"), ("server.max-worker", "workers")):
            if (setting := self._top.options.get(name)) is not None and setting.value.data not in (0, "0"):
                filling.read(ours, setting.value, at(setting.place, name), number)
        for name, ours in (("server.username", "user"), ("server.groupname", "group")):
            if (setting := self._top.options.get(name)) is not None:
                if os.geteuid() == 0:
                    filling.read(ours, setting.value, at(setting.place, name), text)
                else:
                    self._problems.warn(at(setting.place, name), "ignored, as by lighttpd: only root may change users")
        if (setting := self._top.options.get("server.feature-flags")) is not None:
            self._read_features(setting, filling)
        self._fill_listeners(filling)
        return filling.draft

    def _read_modules(self) -> list[str]:
        setting = self._top.options.get("server.modules")
        if setting is None:
            return []
        try:
            modules = texts(setting.value)
        except OptionError as bad:
            self._problems.add(at(setting.place, "server.modules"), str(bad))
            return []
        data = setting.value.data
        for item in data if isinstance(data, tuple) else ():
            if item.value.data not in MODULES:
                self._problems.warn(
                    at(item.value.place, "server.modules"),
                    f"{item.value.shown}: not done here; what it does is missing",
                )
        return list(dict.fromkeys(modules))

    def _read_features(self, setting: Setting, filling: Filling) -> None:
        try:
            for item in entries(setting.value, '("server.graceful-shutdown-timeout" => 8)'):
                place = at(item.value.place, f"server.feature-flags[{shown(item.key or '')}]")
                if item.key == _GRACE:
                    filling.read("drain-timeout", item.value, place, number)
                elif item.key == _H2C:
                    self._h2c = place if switch(item.value) else None
                elif item.key == _H2:
                    if not switch(item.value):
                        self._problems.warn(place, "without effect: with TLS clients take HTTP/2 as they like")
                elif item.key in FEATURES_LEFT:
                    self._problems.warn(place, "without effect here")
                else:
                    self._problems.warn(place, "not done here; it is ignored")
        except OptionError as bad:
            self._problems.add(at(setting.place, "server.feature-flags"), str(bad))

    def _value(self, name: str, read: Callable[[Value], T], default: T) -> T:
        """What an option of the outermost block says, if it says anything that can be read."""
        setting = self._top.options.get(name)
        if setting is not None:
            try:
                return read(setting.value)
            except OptionError as bad:
                self._problems.add(at(setting.place, name), str(bad))
        return default

    # --- listeners

    def _bind(self) -> None:
        """The server's own listener."""
        said = self._top.options.get("server.bind")
        port = self._top.options.get("server.port")
        told = said or port
        place = at(told.place, "server.bind" if said else "server.port") if told else self._top.place
        try:
            address = address_of("" if said is None else text(said.value), self._port, is_ipv6=self._is_ipv6)
        except OptionError as bad:
            self._problems.add(place, str(bad))
        else:
            self._bound.append(_Bound(address, place, self._top))

    def _fill_listeners(self, filling: Filling) -> None:
        """The listeners that are served as the first one is stand at the top, the others in tables of their own."""
        groups: list[tuple[Filling, list[Address]]] = []
        for bound in self._bound:
            front = Filling(LISTENER_OPTIONS, bound.place, self._problems)
            has_tls = self._certificates.fill(front, bound.address, bound.block)
            if self._h2c is not None and not has_tls:
                front.put("h2c", True, self._h2c)
            addresses = next((found for each, found in groups if each.draft.values == front.draft.values), None)
            if addresses is None:
                addresses = []
                groups.append((front, addresses))
            addresses.append(bound.address)
        for front, addresses in groups:
            front.put("listen", [str(address) for address in addresses], front.draft.where(None))
        if groups:
            first, *others = (front for front, _ in groups)
            filling.take(first)
            filling.draft.listeners = [front.draft for front in others]

    def _takes_part(self, block: Block) -> bool:
        """Whether requests can be of a block. Its claims about sockets become claims about addresses of ours."""
        if block.when is None:
            return False
        claims = []
        for claim in block.when:
            if claim.field != "socket":
                claims.append(claim)
                continue
            address = self._address(claim, block.place)
            if address is None:
                return False
            if claim.holds:
                self._listen(address, block)
            claims.append(replace(claim, value=str(address)))
        block.when = tuple(claims)
        return True

    def _address(self, claim: Claim, place: Place) -> Address | None:
        if claim.operator != "==":
            self._problems.warn(
                place, '$SERVER["socket"] is asked with == and != only; what stands in this block is ignored'
            )
            return None
        try:
            return address_of(claim.value, self._port, is_ipv6=self._is_ipv6)
        except OptionError as bad:
            self._problems.add(place, str(bad))
            return None

    def _listen(self, address: Address, block: Block) -> None:
        """Have a listener there, served as the block says."""
        there = next((bound for bound in self._bound if bound.address == address), None)
        if there is None:
            self._bound.append(_Bound(address, block.place, block))
        elif there.block is self._top:  # which says the same of server.bind, and more of how it is served
            there.block = block

    # --- warnings

    def warn_of_the_rest(self) -> None:
        """Everything that is written and has no effect."""
        self._certificates.warn_of_the_rest()
        for block in self.blocks:
            for name, setting in block.options.items():
                if not name.startswith("var."):
                    self._warn_of(name, at(setting.place, shown(name)[1:-1]), is_top=block is self._top)

    def _warn_of(self, name: str, place: Place, *, is_top: bool) -> None:
        module = MODULE_OF.get(name.partition(".")[0])
        if module is not None and module not in self.modules:
            self._problems.warn(
                place, f'ignored, as by lighttpd: server.modules += ("{module}") above it would load its module'
            )
        elif name in OF_SERVER:
            if not is_top:
                self._problems.warn(place, "is for the whole server and is ignored inside a condition")
        elif name not in OPTIONS:
            self._problems.warn(place, left(name) + _meant(name))


def _meant(name: str) -> str:
    """A guess at what an unknown option was to be, of those of the same module."""
    module, _, rest = name.partition(".")
    mine = {known.partition(".")[2] for known in OPTIONS if known.startswith(f"{module}.")}
    meant = nearest(rest, mine) if left(name) == left("") else None
    return f"; did you mean {module}.{meant}?" if meant else ""
