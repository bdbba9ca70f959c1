"""`python -m wstunnel ...`: arguments -> Settings -> a master that runs until it is asked to end, or a word to one."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, repeat
from typing import IO, Any

import uvloop

from wstunnel import __version__
from wstunnel.config.check import as_toml
from wstunnel.config.flags import COMMANDS, asked_of_running, flag_parser, settings_of
from wstunnel.config.names import nearest
from wstunnel.config.reload import unreloadable
from wstunnel.config.rules import Settled
from wstunnel.config.runtime import control_socket, keep_runtime_folder
from wstunnel.config.service import ServiceEnvironment, service_environment
from wstunnel.errors import ConfigError, StartError
from wstunnel.server import report
from wstunnel.server.activation import passed_listeners
from wstunnel.server.certificates import Material
from wstunnel.server.control import ask
from wstunnel.server.image import STATE_VARIABLE, Image, inherited_state
from wstunnel.server.logs import open_logs
from wstunnel.server.master import SIGNALS, Master
from wstunnel.server.notify import Notifier
from wstunnel.server.privileges import identity_of
from wstunnel.settings import Address, Settings, TcpAddress
from wstunnel.supervise.spawn import catch_ignored_signals

__all__ = ["main"]

_ENDED, _FAILED, _UNUSABLE = 0, 1, 2
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}

_logger = logging.getLogger("wstunnel")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code.

    out     0 ended as asked, 1 failed at run time, 2 unusable configuration
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command = words.pop(0) if words and not words[0].startswith("-") else None
    try:
        if command is not None and command not in COMMANDS:
            meant = nearest(command, COMMANDS)
            raise ConfigError((f"{command}: unknown command" + (f"; did you mean {meant}?" if meant else ""),))
        parser = flag_parser(command)
        said, strangers = parser.parse_known_args(words)
        if said.help or said.version:
            sys.stdout.write(parser.format_help() if said.help else f"wstunnel {__version__}\n")
            return _ENDED
        match command:
            case None:
                return _run(words, _interpreter(len(words)) if argv is None else (sys.executable, "-m", "wstunnel"))
            case "check" | "convert":
                state = os.environ.get(STATE_VARIABLE)  # where a running one asks whether it may become us
                return _check(settings_of(said, strangers, _held(None if state is None else inherited_state(state))))
            case _:
                return _tell_running(command, said, control_socket(asked_of_running(said, strangers)))
    except ConfigError as bad:
        _tell(sys.stderr, *(f"wstunnel: {problem}" for problem in bad.problems))
        return _UNUSABLE
    except StartError as bad:
        _tell(sys.stderr, f"wstunnel: {bad}")
        return _FAILED


def _check(settled: Settled) -> int:
    _tell(sys.stderr, *(f"wstunnel: warning: {warning}" for warning in settled.warnings))
    sys.stdout.write(as_toml(settled.settings))
    return _ENDED


# --- a word to one that runs


def _tell_running(command: str, said: argparse.Namespace, control: str) -> int:
    limits = Settings().limits.master
    asking = partial(ask, control, timeout_s=limits.control_timeout_s)
    if command == "status":
        return _status(said, lambda: asking("status"))
    answer = asking(command)
    if not answer["ok"]:
        _tell(sys.stderr, f"wstunnel: {answer['error']}")
        return _FAILED
    if command == "stop":
        _wait_for_end(answer["pid"])
    return _ENDED


def _wait_for_end(pid: int) -> None:
    """Return when that process is gone."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        select.select((pidfd,), (), ())
        os.close(pidfd)


def _status(said: argparse.Namespace, asking: Callable[[], dict[str, Any]]) -> int:
    if said.json:
        sys.stdout.write(report.as_json(asking))
        return _ENDED
    if said.watch:
        return report.watch(asking, write=_page, size=shutil.get_terminal_size, colour=sys.stdout.isatty())
    width = shutil.get_terminal_size().columns
    sys.stdout.write(report.once(asking, width=width, colour=sys.stdout.isatty()))
    return _ENDED


def _page(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


# --- being one that runs


def _run(words: Sequence[str], prefix: Sequence[str]) -> int:
    """Serve what the flags, and the file that they name, say."""
    keep_runtime_folder()
    state = os.environ.pop(STATE_VARIABLE, None)
    inherited = None if state is None else inherited_state(state)
    settled = _settle(words, _held(inherited))
    environment = service_environment(os.environ, os.getpid())
    settings = settled.settings
    who = identity_of(settings.user, settings.group)
    owner = None if who is None else (who.uid, who.gid)
    open_logs(settings.log_level, settings.log_format, settings.log_file, owner=owner)
    for warning in settled.warnings:
        _logger.warning("%s", warning)
    image = Image(tuple(prefix), tuple(words))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settled, partial(_settle, words), environment, image, inherited))
    return _ENDED


def _interpreter(words: int) -> tuple[str, ...]:
    """How Python was made to run us, without our own arguments, of which there were so many."""
    return (sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - words])


def _settle(words: Sequence[str], held: Material) -> Settled:
    return settings_of(*flag_parser().parse_known_args(words), held)


def _held(inherited: Mapping[str, Any] | None) -> Material:
    """The certificates and keys of the image before us, which may have read what we may not."""
    return Material() if inherited is None else Material.adopt(inherited["material"])


async def _serve(
    first: Settled,
    settle: Callable[[Material], Settled],
    environment: ServiceEnvironment,
    image: Image,
    inherited: Mapping[str, Any] | None,
) -> None:
    """Serve until a signal or a command asks for the end; a second one cuts the stop short."""
    loop = asyncio.get_running_loop()
    settings = first.settings

    def reread(held: Material) -> tuple[Settings, Material]:
        settled = settle(held)
        for warning in (*settled.warnings, *unreloadable(settings, settled.settings)):
            _logger.warning("%s", warning)
        return settled.settings, settled.material

    master = Master(
        settings,
        material=first.material,
        reread=reread,
        control_at=control_socket,
        passed=passed_listeners(environment.listen_fds, environment.listen_names),
        notifier=Notifier(environment.notify_socket, environment.watchdog_s)
        if inherited is None
        else Notifier.adopt(inherited["notify"]),
        on_serving=partial(_greet, settings),
        image=image,
        inherited=inherited,
    )
    asked = 0

    def hear(number: signal.Signals) -> None:
        nonlocal asked
        match number:
            case signal.SIGHUP:
                master.reload()
            case signal.SIGUSR1:
                master.reopen()
            case signal.SIGUSR2:
                master.upgrade()
            case _:
                asked += 1
                if asked <= len(_ENDING):  # said once: a flood of signals must not fill a pipe that nobody reads
                    _logger.info("%s%s", number.name, _ENDING[asked - 1])
                master.stop()

    with _heard(lambda number: loop.call_soon_threadsafe(hear, number)):
        await master.run()


_ENDING = (": ending", " again: ending at once")


@contextmanager
def _heard(tell: Callable[[signal.Signals], object]) -> Iterator[None]:
    """Tell of each signal that is meant for us, while the context lasts; afterwards they are ignored.

    Not by the loop's own handlers: closing the loop gives a signal its default back, and one that comes while the
    interpreter is on its way out would turn "ended as asked" into "killed".
    """
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup, `&`
    catch_ignored_signals()
    for number in heard:
        signal.signal(number, lambda number, _frame: tell(signal.Signals(number)))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)  # an upgrade has blocked them until we can hear them
    try:
        yield
    finally:
        # Python complains of a signal that was caught and not yet told of when it is ignored. So none comes meanwhile,
        # and blocking them tells of those that came.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
        for number in heard:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _greet(settings: Settings, addresses: Sequence[Address]) -> None:
    """Say on stdout what is served. Nobody has to listen: whoever has started us may have closed its end by now."""
    if sys.stdout is None:
        return
    try:
        _tell(sys.stdout, *_greeting(settings, addresses))
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)  # for what is not yet written, at the end of the process too
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _greeting(settings: Settings, addresses: Sequence[Address]) -> Iterator[str]:
    """Where the tunnel listens, and what can be opened there."""
    here: tuple[str, TcpAddress] | None = None
    for address, front in zip(addresses, chain(settings.fronts, repeat(settings.front)), strict=False):
        s = "s" if front.tls_cert else ""
        if isinstance(address, TcpAddress):
            here = here or (s, _reachable(address))
            yield f"wstunnel {__version__} listening on http{s}://{address}/"
        else:
            yield f"wstunnel {__version__} listening on {address}{' with TLS' if s else ''}"
    if here is None:
        return
    s, where = here
    root = settings.document_root
    if root is not None and os.path.isfile(os.path.join(root, "index.html")):
        yield f"  page       http{s}://{where}/"
    for route in settings.routes:
        yield f"  websocket  ws{s}://{where}{route.path or f'/...{route.suffix}'}"


def _reachable(address: TcpAddress) -> TcpAddress:
    """An address that a browser on this machine can open."""
    return TcpAddress(_ANY_HOST.get(address.host, address.host), address.port)


def _tell(stream: IO[str], *lines: str) -> None:
    stream.writelines(f"{line}\n" for line in lines)
    stream.flush()
