#!/usr/bin/env python3
"""Unbuffered echo: bytes go back as they come, whole lines or not.

The first argument, where given, is the size of the pieces in bytes: `raw_echo.py 1000` cuts everything after each
thousandth byte, in the middle of characters too, to see what the way back makes of it.
"""

import socket
import sys
import threading


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
        f"run me as: python -m wstunnel --socket /tmp/raw.sock --bin-path {me}"
    )


def echo(client: socket.socket, piece_bytes: int) -> None:
    with client:
        try:
            while piece := client.recv(piece_bytes):
                client.sendall(piece)
        except ConnectionError:
            pass  # the client went away in the middle of something


if __name__ == "__main__":
    listener = listening_socket()
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 64 * 1024
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=echo, args=(connection, size), daemon=True).start()
