"""`python -m wstunnel ...`: arguments -> Settings -> a tunnel that runs until it is asked to end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import uvloop

from wstunnel import __version__
from wstunnel.config.check import as_toml
from wstunnel.config.flags import flag_parser, settings_of
from wstunnel.config.names import nearest
from wstunnel.config.rules import Settled
from wstunnel.errors import ConfigError, StartError
from wstunnel.server.logs import open_logs
from wstunnel.server.tunnel import Tunnel
from wstunnel.settings import Address, Settings, TcpAddress
from wstunnel.supervise.spawn import catch_ignored_signals

__all__ = ["main"]

_ENDED, _FAILED, _UNUSABLE = 0, 1, 2
_CHECK = "check"
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}

_logger = logging.getLogger("wstunnel")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code.

    out     0 ended as asked, 1 failed at run time, 2 unusable configuration
    """
    words = list(sys.argv[1:] if argv is None else argv)
    is_check = words[:1] == [_CHECK]
    try:
        if words and not is_check and not words[0].startswith("-"):
            meant = nearest(words[0], (_CHECK,))
            raise ConfigError((f"{words[0]}: unknown command" + (f"; did you mean {meant}?" if meant else ""),))
        parser = flag_parser()
        said, strangers = parser.parse_known_args(words[is_check:])
        if said.help or said.version:
            sys.stdout.write(parser.format_help() if said.help else f"wstunnel {__version__}\n")
            return _ENDED
        settled = settings_of(said, strangers)
    except ConfigError as bad:
        _tell(sys.stderr, *(f"wstunnel: {problem}" for problem in bad.problems))
        return _UNUSABLE
    return _check(settled) if is_check else _run(settled)


def _check(settled: Settled) -> int:
    _tell(sys.stderr, *(f"wstunnel: warning: {warning}" for warning in settled.warnings))
    sys.stdout.write(as_toml(settled.settings))
    return _ENDED


def _run(settled: Settled) -> int:
    open_logs(settled.settings.log_level, settled.settings.log_format)
    for warning in settled.warnings:
        _logger.warning("%s", warning)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(settled.settings))
        except StartError as bad:
            _tell(sys.stderr, f"wstunnel: {bad}")
            return _FAILED
    return _ENDED


async def _serve(settings: Settings) -> None:
    """Serve until a signal asks for the end; a second one cuts the stop short."""
    loop = asyncio.get_running_loop()
    tunnel = Tunnel(settings)
    asked = asyncio.Event()
    is_cut_short = False

    def stop(number: signal.Signals) -> None:
        nonlocal is_cut_short
        if not asked.is_set():
            _logger.info("%s: ending", number.name)
            asked.set()
            return
        if not is_cut_short:  # said once: a flood of signals must not fill a pipe that nobody reads
            _logger.info("%s again: ending at once", number.name)
            is_cut_short = True
        tunnel.abort()

    with _heard(lambda number: loop.call_soon_threadsafe(stop, number)):
        async with tunnel:
            _tell(sys.stdout, *_greeting(settings, tunnel.addresses))
            await asked.wait()


@contextmanager
def _heard(tell: Callable[[signal.Signals], object]) -> Iterator[None]:
    """Tell of each signal that asks for the end, while the context lasts; afterwards they are ignored.

    Not by the loop's own handlers: closing the loop gives a signal its default back, and one that comes while the
    interpreter is on its way out would turn "ended as asked" into "killed".
    """
    heard = [number for number in _STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup, `&`
    catch_ignored_signals()
    for number in heard:
        signal.signal(number, lambda number, _frame: tell(signal.Signals(number)))
    try:
        yield
    finally:
        # Python complains of a signal that was caught and not yet told of when it is ignored. So none comes meanwhile,
        # and blocking them tells of those that came.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
        for number in heard:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _greeting(settings: Settings, addresses: Sequence[Address]) -> Iterator[str]:
    """Where the tunnel listens, and what can be opened there."""
    for address in addresses:
        where = f"http://{address}/" if isinstance(address, TcpAddress) else str(address)
        yield f"wstunnel {__version__} listening on {where}"
    here = next((_reachable(address) for address in addresses if isinstance(address, TcpAddress)), None)
    if here is None:
        return
    root = settings.document_root
    if root is not None and os.path.isfile(os.path.join(root, "index.html")):
        yield f"  page       http://{here}/"
    for route in settings.routes:
        yield f"  websocket  ws://{here}{route.path or f'/...{route.suffix}'}"


def _reachable(address: TcpAddress) -> TcpAddress:
    """An address that a browser on this machine can open."""
    return TcpAddress(_ANY_HOST.get(address.host, address.host), address.port)


def _tell(stream: IO[str], *lines: str) -> None:
    stream.writelines(f"{line}\n" for line in lines)
    stream.flush()
