"""The command line -> Settings: its parser, its help, and one route at most."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import NoReturn, get_args

from wstunnel.config import toml
from wstunnel.config.drafts import Draft, Place, Problems
from wstunnel.config.lighttpd import is_lighttpd_conf
from wstunnel.config.names import nearest
from wstunnel.config.options import ROUTE_OPTIONS, SERVER_OPTIONS, Option, OptionError, shown
from wstunnel.config.rules import Settled, settle, settle_server
from wstunnel.errors import ConfigError
from wstunnel.server.certificates import Material
from wstunnel.settings import OptionGroup, Settings

__all__ = ["COMMANDS", "asked_of_running", "flag_parser", "settings_of"]

_CONVERT = "convert"
COMMANDS = ("check", _CONVERT, "status", "reload", "drain", "stop")
"""What may stand before the flags; all but `check` and `convert` speak to a wstunnel that runs."""

_USAGE = """wstunnel [flags]          run until SIGINT or SIGTERM
       wstunnel check [flags]    print the effective settings, or all that is wrong with them
       wstunnel convert FILE [flags]
                                 print a lighttpd.conf as wstunnel.toml

   of the one that runs, found by the same flags, by --control or by -f:
       wstunnel status [--json] [--watch] [flags]
                                 what its workers, backends and tunnels are doing
       wstunnel reload [flags]   read the configuration again; tunnels stay
       wstunnel drain [flags]    take no more clients, and end when the last tunnel has
       wstunnel stop [flags]     end now; tunnels get drain-timeout seconds, and this waits for it"""

_STATUS = "status"
_STATUS_FLAGS = ("--json", "--watch")
_REPEATABLE = ("listen", "tls_cert", "tls_key")
_FINDING = ("listen", "control")
"""What tells one wstunnel that runs from another."""

_NOTHING_TO_SERVE = "give --bin-path, --socket, --port, --stdio, --document-root or -f; --help has examples"

_DESCRIPTION = """\
A WebSocket tunnel: browsers and other WebSocket clients reach programs that read and write plain bytes."""

_EXAMPLES = """\
examples:
  spawn ./echo.pl, keep it running, and tunnel every path to it:
    wstunnel --socket /run/wstunnel/echo.sock --bin-path ./echo.pl

  the same beside a folder of pages, open to the network:
    wstunnel --listen '[::]:8080' --document-root www --path /ws/ \\
        --socket /run/wstunnel/echo.sock --bin-path "./echo.pl --loud"

  a program that runs already (VNC on port 5900), for pages of one site only:
    wstunnel --port 5900 --frame-type binary --origins https://example.com

  any number of listeners and routes, and a look at what they amount to:
    wstunnel check -f wstunnel.toml
    wstunnel -f wstunnel.toml

  behind a proxy on the same machine:
    wstunnel --listen unix:/run/wstunnel/http.sock --log-format json --port 7000

exit codes: 0 ended as asked, 1 failed at run time, 2 unusable configuration"""


class _Parser(argparse.ArgumentParser):
    """Argparse that leaves the exit to its caller."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError((message.removeprefix("argument "),))


def flag_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of every flag; values stay the words that were written, in the order they were written.

    in      command   one of COMMANDS, which is not among the arguments; with `status` they may hold `json`, `watch`
    Its errors are ConfigErrors.
    """
    parser = _Parser(
        prog="wstunnel",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28, width=100),
        allow_abbrev=False,
        add_help=False,
    )
    groups = {group: parser.add_argument_group(group) for group in get_args(OptionGroup)}
    for option in _flags():
        groups[option.group].add_argument(
            f"--{option.name}",
            dest=option.name,
            metavar=option.metavar,
            action="append",
            help=option.help.replace("%", "%%"),
        )
    groups["files"].add_argument(
        "-f",
        dest="file",
        metavar="FILE",
        action="append",
        help="settings and any number of routes in TOML, or a lighttpd.conf if the name ends with .conf; listening, "
        "document root and logging flags win over it",
    )
    other = parser.add_argument_group("other")
    other.add_argument("-h", "--help", action="store_true", help="print this and exit")
    other.add_argument("--version", action="store_true", help="print the version and exit")
    if command == _CONVERT:
        parser.add_argument("conf", metavar="FILE", nargs="?", help=argparse.SUPPRESS)
    if command == _STATUS:
        status = parser.add_argument_group(_STATUS)
        status.add_argument("--json", action="store_true", help="for machines: one line of JSON")
        status.add_argument("--watch", action="store_true", help="again and again, until Ctrl-C")
    return parser


def _flags() -> Iterator[Option]:
    for option in (*SERVER_OPTIONS.values(), *ROUTE_OPTIONS.values()):
        if option.is_flag:
            yield option


def settings_of(said: argparse.Namespace, strangers: Sequence[str] = (), held: Material | None = None) -> Settled:
    """What the flags amount to, together with the file that -f names.

    in      what `flag_parser().parse_known_args` gave: relative paths in it start from the current folder
            held  as for `settle`
    raises  ConfigError with every problem as `--max-procs: needs ...`
    """
    problems = Problems()
    for place, text in _strange(strangers):
        problems.add(Place(0, place), text)
    server = _draft(said, SERVER_OPTIONS, problems)
    route = _draft(said, ROUTE_OPTIONS, problems)
    route_flags = [f"--{name}" for name, option in ROUTE_OPTIONS.items() if route.has(option.field)]
    files: list[str] = said.file or []
    if len(files) > 1:
        problems.add(Place(0, "-f"), "given more than once")
    if "conf" in said:
        if said.conf is None or files:
            raise ConfigError(("convert takes the name of a lighttpd.conf, without -f",))
        files = [said.conf]
    if files:
        if route_flags:
            problems.add(Place(0, ", ".join(route_flags)), f"cannot stand beside -f; routes are in {files[0]}")
        is_conf = "conf" in said or is_lighttpd_conf(files[0])
        read = _lighttpd().read if is_conf else toml.read
        return _with_file(partial(read, files[0], held=held), server, problems)
    if not route_flags and not server.has("document_root"):
        problems.add(Place(0, "nothing to serve"), _NOTHING_TO_SERVE)
    return settle([server], [route] if route_flags else [], problems, held)


def asked_of_running(said: argparse.Namespace, strangers: Sequence[str] = ()) -> Settings:
    """What tells which running wstunnel a command is for: its listeners and its control socket.

    in      as for `settings_of`; the same flags that it was started with will do, and a file may have become unusable
    raises  ConfigError when the flags cannot be read, or the file is missing or no TOML
    """
    problems = Problems()
    for place, text in _strange(strangers):
        problems.add(Place(0, place), text)
    flags = _draft(
        said, {name: option for name, option in SERVER_OPTIONS.items() if option.field in _FINDING}, problems
    )
    files: list[str] = said.file or []
    drafts = [
        _lighttpd().read_top(path, _FINDING) if is_lighttpd_conf(path) else toml.read_top(path, _FINDING, problems)
        for path in files[:1]
    ]
    return settle_server([*drafts, flags], problems)


def _lighttpd() -> ModuleType:
    """The reader of lighttpd.conf, loaded for who has one: its grammar is some megabytes of parser."""
    from wstunnel.config.lighttpd import convert

    return convert


def _with_file(read: Callable[[Draft], Settled], server: Draft, problems: Problems) -> Settled:
    """Settings of a file under the flags' own, with the problems of both."""
    mine: tuple[str, ...] = ()
    try:
        problems.raise_any()
    except ConfigError as bad:
        mine = bad.problems
    try:
        settled = read(server)
    except ConfigError as bad:
        raise ConfigError(mine + bad.problems) from None
    if mine:
        raise ConfigError(mine)
    return settled


def _draft(said: argparse.Namespace, options: Mapping[str, Option], problems: Problems) -> Draft:
    """The values of the flags that were given; what cannot be read goes to `problems`."""
    names = {option.field: f"--{name}" for name, option in options.items()}
    draft = Draft(lambda field: Place(0, names[field] if field is not None else "the route"), os.getcwd())
    for name, option in options.items():
        words: list[str] | None = getattr(said, name, None)
        if words is None:
            continue
        place = Place(0, f"--{name}")
        try:
            if option.field in _REPEATABLE:
                draft.values[option.field] = option.kind.from_toml(words)
            elif len(words) > 1:
                raise OptionError("given more than once; a file (-f) takes any number of routes")
            else:
                draft.values[option.field] = option.kind.from_text(words[0])
        except OptionError as bad:
            problems.add(place, str(bad))
            draft.refused.add(option.field)
    return draft


def _strange(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each argument that no flag took, with what may have been meant; values of unknown flags are passed over."""
    known = [f"--{option.name}" for option in _flags()] + ["--help", "--version", "-f"]
    in_file_only = {f"--{option.name}" for option in ROUTE_OPTIONS.values() if not option.is_flag}
    before = ""
    for word in words:
        name = word.partition("=")[0]
        if name in in_file_only:
            yield name, "stands in a [[route]] of a file (-f) only"
        elif name in _STATUS_FLAGS:
            yield name, f"goes with the {_STATUS} command only, which comes first"
        elif word.startswith("-"):
            meant = nearest(name, known)
            yield shown(name)[1:-1], "unknown flag" if meant is None else f"unknown flag; did you mean {meant}?"
        elif not before.startswith("--") or "=" in before:
            yield shown(word), f"unexpected; a command ({', '.join(COMMANDS)}) comes first"
        before = word
