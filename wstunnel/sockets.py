"""Listening sockets: what can be bound, what cannot and why, and what is taken away again.

Used for the sockets of spawned backends and for client listeners alike. Sockets come back bound,
listening, blocking and not inheritable.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
from typing import Any

from wstunnel.errors import StartError
from wstunnel.settings import TcpAddress, UnixAddress

__all__ = [
    "SOCKET_PATH_BYTES",
    "bind_tcp",
    "bind_unix",
    "bind_unix_beside",
    "join_tcp",
    "make_folder_of",
    "remove_folder",
    "resolve_tcp",
    "unlink_if_ours",
]

_OWN_NAME_BYTES = 4  # of chance: no two names beside one path are the same
SOCKET_PATH_BYTES = 107  # sizeof(sockaddr_un.sun_path) less the final NUL, unix(7)


def bind_unix(path: str, *, backlog: int, mode: int = 0o600) -> socket.socket:
    """A socket that listens at `path`, reachable by nobody beyond `mode` from its first moment.

    in      the folder must exist (`make_folder_of`); a socket that nobody listens on any more is replaced
    raises  StartError when the path is too long, somebody listens there, or it is not a socket; what is
            there then stays untouched
    """
    name = UnixAddress(path)
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_BYTES:
        raise StartError(
            f"{name}: the path is {length} bytes long and a UNIX socket carries at most {SOCKET_PATH_BYTES}; "
            f"choose a shorter one"
        )
    try:
        _clear_stale(path)
    except OSError as error:
        raise StartError(f"{name}: cannot be used: {error.strerror}") from error
    return _listen_at(path, name, backlog, mode)


def bind_unix_beside(path: str, *, backlog: int, mode: int = 0o600) -> tuple[socket.socket, str]:
    """A socket as `bind_unix` makes it, at a new name beside `path`, and that name: for when `path` is in use.

    raises  StartError when the name is too long or cannot be bound
    """
    own = f"{path}~{secrets.token_hex(_OWN_NAME_BYTES)}"
    if len(os.fsencode(own)) > SOCKET_PATH_BYTES:
        raise StartError(
            f"{UnixAddress(path)}: is in use, and the path is too long for another one beside it; choose a shorter "
            f"path, or restart"
        )
    return _listen_at(own, UnixAddress(path), backlog, mode), own


def _listen_at(path: str, name: UnixAddress, backlog: int, mode: int) -> socket.socket:
    try:
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            # On Linux the file takes its mode from the socket, so there is no moment with a wider one and the
            # process-wide umask is left alone; chmod gives back what the umask took, before anyone can connect.
            os.fchmod(listener.fileno(), mode)
            listener.bind(path)
            undo.callback(os.unlink, path)
            os.chmod(path, mode)
            listener.setblocking(True)
            listener.listen(backlog)
            undo.pop_all()
    except FileNotFoundError as error:
        raise StartError(f"{name}: the folder {os.path.dirname(path) or '.'} does not exist; create it") from error
    except OSError as error:
        raise StartError(f"{name}: cannot be bound: {error.strerror}") from error
    return listener


def _clear_stale(path: str) -> None:
    """Unlink the socket at `path` if nobody listens on it; StartError if `path` is anything else."""
    name = UnixAddress(path)
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise StartError(f"{name}: exists and is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            unlink_if_ours(path, found.st_ino)
            return
        except FileNotFoundError:
            return
        except PermissionError as error:
            raise StartError(f"{name}: belongs to another user; remove it or choose another path") from error
        except OSError as error:
            # EAGAIN is a full backlog, EPROTOTYPE a socket of another type: both have an owner.
            if error.errno not in {errno.EAGAIN, errno.EPROTOTYPE}:
                raise
    raise StartError(f"{name}: another process listens there; stop it or choose another path")


def resolve_tcp(host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    """The family and the first address that `host` resolves to; "" is every address of this machine.

    raises  StartError when the name does not resolve
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise StartError(f"{TcpAddress(host, port)}: the host name {host} cannot be resolved: {error}") from error
    family, _, _, _, address = found[0]
    return family, address


def bind_tcp(host: str, port: int, *, backlog: int) -> socket.socket:
    """A socket that listens at the first address `host` resolves to, alone; an IPv6 one takes no IPv4 clients.

    in      port 0 is any free one; host "" is every address of this machine
    raises  StartError when the name does not resolve or the address is taken, not ours or not allowed
    """
    family, address = resolve_tcp(host, port)
    try:
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(_tcp_socket(family))
            listener.bind(address)
            listener.listen(backlog)
            undo.pop_all()
    except OSError as error:
        raise StartError(f"{TcpAddress(host, port)}: {_why_not(error)}") from error
    return listener


def join_tcp(first: socket.socket) -> socket.socket:
    """A socket bound to the address of `first`, which `bind_tcp` made. It does not listen yet: connections are spread
    over both from its `listen` on.

    `first` began alone, without SO_REUSEPORT, and gets it only here. So a second wstunnel of the same user, whose
    first socket asks for the address alone too, never joins unseen and takes a share of the connections: there is no
    moment at which it could. What remains: a program of this user that asks for SO_REUSEPORT itself, from now on.

    raises  OSError: a port below 1024 that is not allowed any more, no descriptor left; EADDRINUSE if `first` belongs
            to another user than ours (`fchown` changes that)
    """
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    with contextlib.ExitStack() as undo:
        joined = undo.enter_context(_tcp_socket(first.family))
        joined.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        joined.bind(first.getsockname())
        undo.pop_all()
    return joined


def _tcp_socket(family: int) -> socket.socket:
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        undo.pop_all()
    return sock


def _why_not(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "another process listens there; stop it or choose another port"
        case errno.EADDRNOTAVAIL:
            return "is not an address of this machine; choose one that is"
        case errno.EACCES:
            return (
                "is not allowed for this user (a port below 1024?); choose another port or grant CAP_NET_BIND_SERVICE"
            )
    return f"cannot be bound: {error.strerror}"


def make_folder_of(path: str) -> str | None:
    """The folder of `path` if it was missing and now is there with mode 0700, else None.

    Only that one folder is made: a typing error further up should show, not become a tree.
    """
    folder = os.path.dirname(path)
    if not folder or os.path.isdir(folder):
        return None
    try:
        os.mkdir(folder, 0o700)
    except OSError as error:
        raise StartError(
            f"{UnixAddress(path)}: the folder {folder} does not exist and cannot be made ({error.strerror}); create it"
        ) from error
    return folder


def remove_folder(folder: str) -> None:
    """Take away what `make_folder_of` made, unless somebody has put something in it or it is gone."""
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def unlink_if_ours(path: str, inode: int) -> None:
    """Remove `path` if it still is the file with that inode; call it while the socket is open, which keeps
    the number from being given to another file."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
