"""Listening sockets that a service manager has opened for us (sd_listen_fds(3))."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Sequence

from wstunnel.errors import StartError, safe
from wstunnel.net.listen import ListenerSet

__all__ = ["FIRST_PASSED_FD", "passed_listeners"]

FIRST_PASSED_FD = 3

_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})


def passed_listeners(count: int, names: Sequence[str] = (), *, first_fd: int = FIRST_PASSED_FD) -> list[ListenerSet]:
    """The `count` sockets from descriptor 3 on, each checked; no child inherits them any more.

    in      names   what the manager calls them; only for messages
    raises  StartError when one of them is not a listening stream socket; none is then left open
    """
    sets: list[ListenerSet] = []
    with contextlib.ExitStack() as undo:
        for index in range(count):
            name = names[index] if index < len(names) else ""
            fault = _fault(first_fd + index)
            if fault:
                for fd in range(first_fd + index, first_fd + count):
                    with contextlib.suppress(OSError):
                        os.close(fd)
                called = f" ({safe(name)})" if name else ""
                raise StartError(
                    f"descriptor {first_fd + index}{called} from the service manager {fault}; pass listening stream "
                    f"sockets only (ListenStream= with Accept=no in systemd)"
                )
            sets.append(ListenerSet.of_passed(first_fd + index))
            undo.callback(sets[-1].close)
        undo.pop_all()
    return sets


def _fault(fd: int) -> str | None:
    """What is wrong with a descriptor that should be a listening stream socket."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return "is no socket"
        duplicate = os.dup(fd)
    except OSError as error:
        return f"cannot be used: {error.strerror}"
    with socket.socket(fileno=duplicate) as sock:
        if sock.family not in _FAMILIES:
            return f"is a socket of another family ({sock.family})"
        if sock.type != socket.SOCK_STREAM:
            return "is not a stream socket"
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return "does not listen"
    return None
