"""What a service manager says in the environment: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3)."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from wstunnel.errors import ConfigError, safe

__all__ = ["ServiceEnvironment", "service_environment"]

_USEC_PER_S = 1_000_000


@dataclass(frozen=True, slots=True)
class ServiceEnvironment:
    """What the manager wants to be told, and what it has opened for us."""

    notify_socket: str | None = None
    watchdog_s: float | None = None
    """Time without a word from us after which it takes us for dead; None: it does not watch."""
    listen_fds: int = 0
    """Sockets from descriptor 3 on."""
    listen_names: tuple[str, ...] = ()
    """What it calls them."""


def service_environment(environ: MutableMapping[str, str], pid: int) -> ServiceEnvironment:
    """What the variables say to the process `pid`. They are gone from `environ` then: they are for us and not for
    programs that we start.

    raises  ConfigError when a variable that is meant for us holds no number
    """
    said = {name: environ.pop(name, "") for name in _VARIABLES}
    problems: list[str] = []
    watchdog_usec, listen_fds = 0, 0
    if said["WATCHDOG_PID"] in {"", str(pid)}:
        watchdog_usec = _number(said, "WATCHDOG_USEC", problems)
    if said["LISTEN_PID"] == str(pid):
        listen_fds = _number(said, "LISTEN_FDS", problems)
    if problems:
        raise ConfigError(tuple(problems))
    return ServiceEnvironment(
        notify_socket=said["NOTIFY_SOCKET"] or None,
        watchdog_s=watchdog_usec / _USEC_PER_S if watchdog_usec else None,
        listen_fds=listen_fds,
        listen_names=tuple(said["LISTEN_FDNAMES"].split(":")) if listen_fds and said["LISTEN_FDNAMES"] else (),
    )


_VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
)


def _number(said: Mapping[str, str], name: str, problems: list[str]) -> int:
    text = said[name]
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        problems.append(f'{name}: "{safe(text)}" in the environment is no number; it is for the service manager to set')
        return 0
    return int(text)
