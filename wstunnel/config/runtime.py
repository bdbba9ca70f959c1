"""Where sockets go that nobody has named: the runtime folder, and the names in it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence

from wstunnel.config.options import shown
from wstunnel.errors import ConfigError
from wstunnel.server.control import CONTROL_PREFIX
from wstunnel.settings import Address, Settings, TcpAddress, UnixAddress
from wstunnel.sockets import SOCKET_PATH_BYTES

__all__ = ["backend_socket", "control_socket", "keep_runtime_folder", "runtime_folder"]

_VARIABLE = "RUNTIME_DIRECTORY"  # systemd.exec(5); with colons between several
_HASH_BYTES = 4
_NAME_BYTES = 40
"""Longest part of a name that is there for the reader."""
_SYSTEM_FOLDER = "/run/wstunnel"


def runtime_folder() -> str:
    """The folder for sockets: systemd's, else the session's, else /run/wstunnel for root or one in /tmp.

    It is the same for every process of a user, so that `wstunnel status` finds what another session has started; root
    has one whether there is a session or not.
    """
    given = os.environ.get(_VARIABLE, "").partition(":")[0]
    if given.startswith("/"):
        return given
    uid = os.geteuid()
    if uid == 0:
        return _SYSTEM_FOLDER
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    if session.startswith("/") and _belongs_to(session, uid):
        return os.path.join(session, "wstunnel")
    return f"/tmp/wstunnel-{uid}"


def keep_runtime_folder() -> None:
    """Have the same runtime folder whoever we become, and in the programs that we become by exec."""
    os.environ[_VARIABLE] = runtime_folder()


def _belongs_to(folder: str, uid: int) -> bool:
    """`su` and `sudo -E` may leave us with the folder of another user's session."""
    try:
        return os.stat(folder).st_uid == uid
    except OSError:
        return False


def backend_socket(program: str, about: Sequence[object]) -> str:
    """The socket of a program that was given none.

    in      program   its name, for the reader
            about     what tells it from any other; the same means the same socket, after a reload too
    """
    return os.path.join(runtime_folder(), f"{_readable(os.path.basename(program))}-{_hash(about)}")


def control_socket(settings: Settings, bound: Sequence[Address] = ()) -> str:
    """The control socket: the one that is set, else in the runtime folder, named after the first listener.

    in      bound   where the listeners are bound, for whoever binds them; who looks for a running one gives none
    raises  ConfigError when it cannot be told, or its path is too long
    """
    if settings.control is not None:
        return settings.control
    if bound:
        path = os.path.join(runtime_folder(), _control_name(bound[0]))
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            raise ConfigError((f"control: {shown(path)} is too long for a socket; give control a shorter path",))
        return path
    listener = settings.addresses[0]
    if isinstance(listener, TcpAddress) and listener.port == 0:
        return _only_control(listener)
    folders = (runtime_folder(), _SYSTEM_FOLDER)  # a service's, even if only root may speak to it
    paths = [os.path.join(folder, _control_name(listener)) for folder in folders]
    return next((path for path in paths if os.path.exists(path)), paths[0])


def _only_control(listener: TcpAddress) -> str:
    """The one control socket of a listener at whatever port it was given."""
    folder = runtime_folder()
    pattern = re.escape(_control_name(listener)).removesuffix("0") + "[0-9]+"
    found = sorted(name for name in _names_in(folder) if re.fullmatch(pattern, name))
    if len(found) != 1:
        seen = f"{len(found)} have been started from here ({', '.join(found)})" if found else "none is there"
        raise ConfigError((f"control: {listener} may be any port, and {seen}; name the port, or give --control",))
    return os.path.join(folder, found[0])


def _names_in(folder: str) -> Iterator[str]:
    try:
        yield from os.listdir(folder)
    except OSError:
        return


def _control_name(listener: Address) -> str:
    if isinstance(listener, UnixAddress):
        return f"{CONTROL_PREFIX}{_readable(os.path.basename(listener.path))}-{_hash((listener.path,))}"
    host = listener.host if len(listener.host) <= _NAME_BYTES else _hash((listener.host,))
    return f"{CONTROL_PREFIX}{TcpAddress(host, listener.port)}"


def _readable(name: str) -> str:
    """The beginning of a file's name, without what would be hard to type."""
    return re.sub("[^A-Za-z0-9._+-]", "_", name)[:_NAME_BYTES]


def _hash(parts: Sequence[object]) -> str:
    return hashlib.blake2b(repr(tuple(parts)).encode(), digest_size=_HASH_BYTES).hexdigest()
