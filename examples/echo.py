#!/usr/bin/env python3
"""Line echo: each client gets a thread of its own, and each of its lines back.

The tunnel hands over a listening socket as standard input; what is left to do is to accept and to write.
"""

import socket
import sys
import threading

LONGEST_PIECE_BYTES = 64 * 1024  # a longer line goes back in several writes, so no line can fill the memory


def listening_socket() -> socket.socket:
    """The socket on standard input, or the end of the program with one sentence."""
    try:
        given = socket.socket(fileno=0)
        if given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return given
    except OSError:
        pass
    me = sys.argv[0]
    sys.exit(
        f"{me}: standard input is not a listening socket; "
        f"run me as: python -m wstunnel --socket /tmp/echo.sock --bin-path {me}"
    )


def echo(client: socket.socket) -> None:
    with client, client.makefile("rb") as lines:
        try:
            while line := lines.readline(LONGEST_PIECE_BYTES):
                client.sendall(line)
        except ConnectionError:
            pass  # the client went away in the middle of something


if __name__ == "__main__":
    listener = listening_socket()
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()
