"""wstunnel.server, proxy.server, cgi.assign and the like -> routes, in the order in which lighttpd asks its modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from wstunnel.config.drafts import Draft, Place, Problems
from wstunnel.config.lighttpd.conditions import Cell, Claim, as_condition, decided, split
from wstunnel.config.lighttpd.draft import Filling, at
from wstunnel.config.lighttpd.evaluate import Block, Setting
from wstunnel.config.lighttpd.hosts import ReadHost, read_host
from wstunnel.config.lighttpd.known import GATEWAY_MODULES
from wstunnel.config.lighttpd.reading import entries, number, pairs, switch, text, texts
from wstunnel.config.lighttpd.values import Value
from wstunnel.config.options import ROUTE_OPTIONS, OptionError, shown
from wstunnel.limits import ConfLimits

__all__ = ["Maker"]

_SERVER_SHAPE = '("/path/" => (("host" => "...", "port" => 80)))'
_IDLE = {"server.max-read-idle": "max-read-idle", "server.max-write-idle": "max-write-idle"}
_FILES = ("server.document-root", "alias.url")
_OF_STATIC = (*_FILES, "index-file.names", "mimetype.assign")
_OF = {
    "wstunnel": ("server", "balance", "map-extensions", "frame-type", "origins", "ping-interval"),
    "proxy": ("server", "balance", "map-extensions", "header", "forwarded"),
    "cgi": ("assign", "upgrade", "limits"),
    "scgi": ("server", "balance", "map-extensions"),
    "fastcgi": ("server", "balance", "map-extensions"),
}
_BALANCES = ("least-connection", "fair", "round-robin", "hash", "sticky")
_FORWARDED = ("for", "proto", "host", "by")
_FORWARDED_LEFT = "remote_user"
_CGI_LIMITS = ("read-timeout", "write-timeout")

_TUNNEL_DIFFERENCES = (
    ("wstunnel.origins", 'pages of other origins are refused (wstunnel.origins = ("*") lets all in)'),
    ("wstunnel.ping-interval", "a PING after 20 s of silence (wstunnel.ping-interval = 0: none)"),
)
_UPGRADE_DIFFERENCE = (
    "differs from lighttpd on purpose: WebSocket handshakes from pages of other origins are refused; to let them in, "
    "convert this file to a wstunnel.toml and give the route origins"
)

Options = dict[str, Setting]


@dataclass(frozen=True, slots=True)
class _Case:
    """Some requests, and the options that hold for them."""

    claims: tuple[Claim, ...]
    options: Options


@dataclass(frozen=True, slots=True)
class _Way:
    """A path prefix or suffix, and what else has to be true."""

    path: str | None
    suffix: str | None
    claims: tuple[Claim, ...]


class Maker:
    """Makes the routes.

    in      blocks    that are used, the global one first
            modules   gateways in the order of server.modules
    """

    def __init__(self, blocks: Sequence[Block], modules: Sequence[str], problems: Problems) -> None:
        self._blocks = blocks
        self._modules = [GATEWAY_MODULES[module] for module in modules if module in GATEWAY_MODULES]
        self._problems = problems

    def routes(self) -> list[Draft]:
        """All of them; the files that the server's own document root serves are no route."""
        by_url: list[Draft] = []
        by_file: list[Draft] = []
        for name in self._modules:
            if name == "cgi":
                by_file += self._cgi()
            else:
                for is_local, draft in self._of_servers(name):
                    (by_file if is_local else by_url).append(draft)
        return [*by_url, *by_file, *self._static()]

    # --- cases

    def _cases(self, *names: str) -> list[_Case]:
        """What these options are for all requests, each of which is in one case."""
        involved = [
            (index, block.when or ())
            for index, block in enumerate(self._blocks)
            if index and any(name in block.options for name in names)
        ]
        most = ConfLimits().max_cells
        cells = split(involved, most)
        if cells is None:
            place = self._blocks[involved[-1][0]].place
            self._problems.add(
                place,
                f"there are more than {most} combinations of conditions about {names[0].partition('.')[0]}; use fewer "
                "conditions, or such that exclude each other",
            )
            return []
        return [_Case(cell.claims, self._options(cell, names)) for cell in cells]

    def _options(self, cell: Cell, names: tuple[str, ...]) -> Options:
        found: Options = {}
        for index in (0, *cell.blocks):
            options = self._blocks[index].options
            found.update((name, options[name]) for name in names if name in options)
        return found

    # --- ways

    def _ways(self, key: str, claims: tuple[Claim, ...]) -> Iterator[_Way]:
        """How requests for a key are told: at most one way, none where the claims exclude it."""
        if key.startswith("/") or not key:
            prefix = key or "/"
            for claim in claims:
                if (claim.field, claim.operator, claim.holds) == ("url", "=^", True) and claim.value.startswith(prefix):
                    prefix = claim.value
            mine, path, suffix = Claim("url", "=^", prefix), prefix, None
        else:
            mine, path, suffix = Claim("url", "=$", key), None, key
        answers = [(claim, decided(mine, claim)) for claim in claims]
        if all(answer is not False for _, answer in answers):
            yield _Way(path, suffix, tuple(claim for claim, answer in answers if answer is None))

    def _filling(self, way: _Way, kind: str, place: Place) -> Filling:
        filling = Filling(ROUTE_OPTIONS, place, self._problems)
        if kind != "tunnel":
            filling.put("gateway", kind, place)
        if way.suffix is not None:
            filling.put("suffix", way.suffix, place)
        elif way.path is not None:
            filling.put("path", way.path, place)
        if way.claims:
            conditions = [as_condition(claim) for claim in way.claims]
            filling.put("when", [str(condition) for condition in conditions], place)
            if filling.draft.values.get("when", tuple(conditions)) != tuple(conditions):
                self._problems.add(place, "a condition begins with a blank, which cannot be said in a route")
        return filling

    def _put_idle(self, filling: Filling, options: Options) -> None:
        for name, ours in _IDLE.items():
            if name in options:
                filling.read(ours, options[name].value, at(options[name].place, name), number)

    # --- backends

    def _of_servers(self, name: str) -> Iterator[tuple[bool, Draft]]:
        """The routes of wstunnel.server, proxy.server, scgi.server or fastcgi.server; whether each asks for a file."""
        names = [f"{name}.{option}" for option in _OF[name]]
        if name in {"scgi", "fastcgi"}:
            names.append("server.document-root")
        for case in self._cases(*names, *_IDLE):
            server = case.options.get(f"{name}.server")
            if server is None:
                continue
            place = at(server.place, f"{name}.server")
            try:
                groups = {item.key or "": item.value for item in entries(server.value, _SERVER_SHAPE)}
                keys = [*self._mapped(name, case.options, groups), *((key, key) for key in groups)]
            except OptionError as bad:
                self._problems.add(place, str(bad))
                continue
            if name == "wstunnel":
                self._warn_of_tunnels(place, case.options)
            for key, of in keys:
                yield from self._of_key(name, key, groups[of], case)

    def _mapped(self, name: str, options: Options, groups: dict[str, Value]) -> Iterator[tuple[str, str]]:
        """`map-extensions`: further suffixes for a key, which come first."""
        setting = options.get(f"{name}.map-extensions")
        if setting is None:
            return
        place = at(setting.place, f"{name}.map-extensions")
        try:
            mapped = pairs(setting.value)
        except OptionError as bad:
            self._problems.add(place, str(bad))
            return
        for suffix, key in mapped.items():
            if key in groups:
                yield suffix, key
            else:
                self._problems.warn(place, f"there is no {shown(key)} in {name}.server")

    def _of_key(self, name: str, key: str, group: Value, case: _Case) -> Iterator[tuple[bool, Draft]]:
        kind = "tunnel" if name == "wstunnel" else name
        place = at(group.place, f"{name}.server[{shown(key)}]")
        hosts = list(self._hosts(group, place, kind))
        if not hosts:
            return
        of_route = {field: said for host in hosts for field, said in host.of_route.items()}
        is_local = kind in {"scgi", "fastcgi"} and of_route.get("check-local", (True, place))[0]
        for way in self._ways(key, case.claims):
            filling = self._filling(way, kind, place)
            self._put_idle(filling, case.options)
            if kind == "tunnel":
                self._put_tunnel(filling, case.options)
            elif kind == "proxy":
                self._put_proxy(filling, case.options, of_route)
            else:
                self._put_cgi_like(filling, case.options, of_route, is_local=is_local)
            if len(hosts) > 1:
                self._put_balance(filling, name, case.options)
            self._warn_of_upgrade(filling)
            self._join(filling.draft, hosts)
            yield is_local, filling.draft

    def _hosts(self, group: Value, place: Place, kind: str) -> Iterator[ReadHost]:
        if not isinstance(group.data, tuple) or not group.data:
            self._problems.add(place, f"needs hosts, as in {_SERVER_SHAPE}")
            return
        for item in group.data:
            if not isinstance(item.value.data, tuple):
                self._problems.add(place, f"needs one more pair of ( ) around its hosts, as in {_SERVER_SHAPE}")
                return
            yield read_host(item.value.data, at(item.value.place, place.text.partition(": ")[2]), kind, self._problems)

    @staticmethod
    def _join(draft: Draft, hosts: list[ReadHost]) -> None:
        """A single host is the route's own."""
        if len(hosts) > 1:
            draft.hosts = [host.draft for host in hosts]
            return
        own, where = hosts[0].draft, draft.where
        draft.values.update(own.values)
        draft.refused |= own.refused
        draft.where = lambda field: own.where(field) if field is not None and own.has(field) else where(field)

    def _put_balance(self, filling: Filling, name: str, options: Options) -> None:
        setting = options.get(f"{name}.balance")
        if setting is None:
            return
        place = at(setting.place, f"{name}.balance")
        if setting.value.data in _BALANCES:
            filling.read("balance", setting.value, place, text)
        else:
            self._problems.warn(
                place, f"{setting.value.shown} is none of {', '.join(_BALANCES)}; it is least-connection"
            )

    # --- kinds

    def _warn_of_tunnels(self, place: Place, options: Options) -> None:
        told = [what for name, what in _TUNNEL_DIFFERENCES if name not in options]
        if told:
            self._problems.warn(place, f"differs from lighttpd on purpose: {'; '.join(told)}")

    def _warn_of_upgrade(self, filling: Filling) -> None:
        if filling.draft.values.get("upgrade"):
            self._problems.warn(filling.draft.where("upgrade"), _UPGRADE_DIFFERENCE)

    def _put_tunnel(self, filling: Filling, options: Options) -> None:
        if (setting := options.get("wstunnel.frame-type")) is not None:
            self._put_frame_type(filling, setting)
        if (setting := options.get("wstunnel.ping-interval")) is not None:
            filling.read("ping-interval", setting.value, at(setting.place, "wstunnel.ping-interval"), number)
        if (setting := options.get("wstunnel.origins")) is not None:
            place = at(setting.place, "wstunnel.origins")
            filling.read("origins", setting.value, place, lambda value: self._origins(value, place))

    def _put_frame_type(self, filling: Filling, setting: Setting) -> None:
        place = at(setting.place, "wstunnel.frame-type")
        said = filling.read("frame-type", setting.value, place, lambda value: _frame_type(text(value)))
        if said is not None and str(setting.value.data).lower() not in {"binary", "text"}:
            self._problems.warn(place, f"{setting.value.shown} is taken for text, as by lighttpd")

    def _origins(self, value: Value, place: Place) -> list[str]:
        """lighttpd compares the end of the Origin; where more stands before, it has to end with a dot."""
        ours = []
        for said in texts(value):
            if "://" in said or said == "*" or said.startswith("*."):
                ours.append(said)
                continue
            below = f"*.{said.removeprefix('.')}"
            ours.append(below)
            self._problems.warn(
                place,
                f"{shown(said)} lets pages of {below} in, on any port; as in lighttpd not those of {shown(said)} "
                f"itself, for which https://{said} is needed beside it",
            )
        return ours

    def _put_proxy(self, filling: Filling, options: Options, of_route: dict[str, tuple[Any, Place]]) -> None:
        upgrade = of_route.get("upgrade")
        if (setting := options.get("proxy.header")) is not None:
            upgrade = self._proxy_header(setting) or upgrade
        if upgrade is not None:
            filling.put("upgrade", *upgrade)
        if (setting := options.get("proxy.forwarded")) is not None:
            place = at(setting.place, "proxy.forwarded")
            filling.read("forwarded", setting.value, place, lambda value: self._forwarded(value, place))
            if filling.draft.values.get("forwarded") == ():
                del filling.draft.values["forwarded"]

    def _proxy_header(self, setting: Setting) -> tuple[bool, Place] | None:
        """What it says about `upgrade`."""
        place = at(setting.place, "proxy.header")
        upgrade = None
        try:
            for item in entries(setting.value, '("upgrade" => "enable")'):
                if item.key == "upgrade":
                    upgrade = (switch(item.value), place)
                else:
                    self._problems.warn(place, f"{shown(item.key or '')} is not done here; it is ignored")
        except OptionError as bad:
            self._problems.add(place, str(bad))
        return upgrade

    def _forwarded(self, value: Value, place: Place) -> list[str]:
        ours = []
        for item in entries(value, '("for" => 1, "proto" => 1)'):
            if item.key == _FORWARDED_LEFT:
                self._problems.warn(place, f"{shown(item.key)} is not done here; it is left out")
            elif item.key not in _FORWARDED:
                raise OptionError(f"needs {', '.join(_FORWARDED)} as keys, got {shown(item.key)}")
            elif switch(item.value):
                ours.append(item.key)
        return ours

    def _put_cgi_like(
        self, filling: Filling, options: Options, of_route: dict[str, tuple[Any, Place]], *, is_local: bool
    ) -> None:
        """scgi and fastcgi."""
        if "docroot" in of_route:
            filling.put("docroot", *of_route["docroot"])
        elif (root := options.get("server.document-root")) is not None:
            filling.read("docroot", root.value, at(root.place, "server.document-root"), text)
        if is_local:
            filling.put("check-local", True, filling.draft.where(None))
        if "upgrade" in of_route:
            filling.put("upgrade", *of_route["upgrade"])

    # --- files

    def _folders(self, options: Options) -> Iterator[tuple[str, Setting]]:
        """Each prefix with its folder, in order; the document root comes last, with no prefix."""
        if (setting := options.get("alias.url")) is not None:
            try:
                for item in entries(setting.value, '("/files/" => "/var/files/")'):
                    yield item.key or "/", Setting(Value(text(item.value), item.value.place), item.value.place)
            except OptionError as bad:
                self._problems.add(at(setting.place, "alias.url"), str(bad))
        if (root := options.get("server.document-root")) is not None:
            yield "", root

    def _of_folders(self, case: _Case, kind: str, place: Place) -> Iterator[Filling]:
        """A route for each folder that requests may be for."""
        claims = case.claims
        for prefix, folder in self._folders(case.options):
            for way in self._ways(prefix, claims):
                filling = self._filling(way, kind, place)
                name = "alias" if prefix else "docroot"
                where = at(folder.place, "alias.url" if prefix else "server.document-root")
                filling.read(name, folder.value, where, text)
                yield filling
            if prefix:
                claims = (*claims, Claim("url", "=^", prefix, holds=False))

    def _cgi(self) -> Iterator[Draft]:
        for case in self._cases(*(f"cgi.{option}" for option in _OF["cgi"]), *_FILES, *_IDLE):
            assign = case.options.get("cgi.assign")
            if assign is None or assign.value.data == ():
                continue
            place = at(assign.place, "cgi.assign")
            if "server.document-root" not in case.options:
                self._problems.add(place, "needs a server.document-root")
                continue
            for filling in self._of_folders(case, "cgi", place):
                filling.read("cgi-assign", assign.value, place, pairs)
                if (setting := case.options.get("cgi.upgrade")) is not None:
                    filling.read("upgrade", setting.value, at(setting.place, "cgi.upgrade"), switch)
                if (setting := case.options.get("cgi.limits")) is not None:
                    self._put_cgi_limits(filling, setting)
                self._put_idle(filling, case.options)
                self._warn_of_upgrade(filling)
                yield filling.draft

    def _put_cgi_limits(self, filling: Filling, setting: Setting) -> None:
        place = at(setting.place, "cgi.limits")
        try:
            for item in entries(setting.value, '("read-timeout" => 60)'):
                where = at(item.value.place, f"cgi.limits[{shown(item.key or '')}]")
                if item.key in _CGI_LIMITS:
                    filling.read(item.key, item.value, where, number)
                elif item.key == "tcp-fin-propagate":
                    filling.read("kill-signal", item.value, where, _signal)
                else:
                    self._problems.warn(where, "unknown; it is ignored")
        except OptionError as bad:
            self._problems.add(place, str(bad))

    def _static(self) -> Iterator[Draft]:
        """Files, but for those that the server's document root serves as it is."""
        default = self._blocks[0].options.get("server.document-root")
        for case in self._cases(*_OF_STATIC):
            options = case.options
            index, types, root = (options.get(name) for name in (*_OF_STATIC[2:], _OF_STATIC[0]))
            for filling in self._of_folders(case, "static", (root or self._blocks[0]).place):
                if "alias" not in filling.draft.values and root is default and index is types is None:
                    continue
                if index is not None:
                    filling.read("index-file-names", index.value, at(index.place, "index-file.names"), texts)
                if types is not None:
                    filling.read("mimetype-assign", types.value, at(types.place, "mimetype.assign"), _types)
                yield filling.draft


def _frame_type(said: str) -> str:
    return "binary" if said.lower() == "binary" else "text"


def _types(value: Value) -> dict[str, str]:
    """The type for everything else comes last."""
    said = pairs(value)
    return {suffix: said[suffix] for suffix in sorted(said, key=lambda suffix: not suffix)}


def _signal(value: Value) -> object:
    return int(value.data) if isinstance(value.data, str) and re.fullmatch("[0-9]+", value.data) else value.data
