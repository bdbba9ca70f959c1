"""Starting a program the way a backend expects it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from wstunnel.errors import StartError, safe
from wstunnel.supervise.child import Child

__all__ = ["CHILD_PATH", "Program", "catch_ignored_signals", "check_program", "find_program", "spawn"]

CHILD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The environment of a backend is this PATH, and what the configuration adds to it."""

_FIRST_LINE_BYTES = 256  # linux/binfmts.h, BINPRM_BUF_SIZE: what the kernel itself reads of a #! line


@dataclass(frozen=True, slots=True)
class Program:
    """A program with an absolute path, its arguments, the option that names it, for errors, and the folder that it runs
    in: its own, or another."""

    path: str
    arguments: tuple[str, ...] = ()
    option: str = "bin-path"
    folder: str | None = None


def find_program(argv: tuple[str, ...], *, option: str = "bin-path") -> Program:
    """The program that `argv` means; a name without a slash is searched as a shell would.

    raises  StartError when the search finds nothing; a path is not looked at before it is started
    """
    name, *arguments = argv
    if "/" in name:
        return Program(os.path.abspath(name), tuple(arguments), option)
    found = shutil.which(name, path=f"{CHILD_PATH}:{os.defpath}")
    if found is None:
        raise StartError(f"{option} {name}: no such program in {CHILD_PATH}; give its whole path")
    return Program(found, tuple(arguments), option)


def check_program(program: Program) -> None:
    """raises StartError, as `spawn` would, for what can be seen without starting it"""
    if not os.path.exists(program.path):
        reason = errno.ENOENT
    elif os.path.isdir(program.path) or not os.access(program.path, os.X_OK, effective_ids=True):
        reason = errno.EACCES
    else:
        return
    raise StartError(f"{program.option} {program.path}: {_why_not(program.path, OSError(reason, os.strerror(reason)))}")


def spawn(program: Program, *, stdin: int, stdout: int | None, stderr_fd: int, environment: Mapping[str, str]) -> Child:
    """The running program, its exec already done.

    in      stdin        descriptor that becomes fd 0; it and the others stay open here
            stdout       becomes fd 1; None: /dev/null
            stderr_fd    becomes fd 2
            environment  the whole of it
    out     a process that leads a new process group, with no further descriptor, no signal blocked, in its folder
    raises  StartError saying why the program could not be started
    """
    try:
        with _no_signal_blocked():
            popen = subprocess.Popen(
                (program.path, *program.arguments),
                stdin=stdin,
                stdout=subprocess.DEVNULL if stdout is None else stdout,
                stderr=stderr_fd,
                cwd=program.folder or os.path.dirname(program.path),
                env=environment,
                process_group=0,
            )
        return Child.of(popen)
    except OSError as error:
        raise StartError(f"{program.option} {program.path}: {_why_not(program.path, error)}") from error


@contextlib.contextmanager
def _no_signal_blocked() -> Iterator[None]:
    """A process inherits the signal mask of the thread that starts it, so this thread has none for a moment."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def catch_ignored_signals() -> None:
    """Signals that our own starter made us ignore (nohup, a shell's &) stay without effect here, and children
    start with their defaults again: exec keeps "ignored", but not a handler. Call once, from the main thread.

    SIGCHLD goes back to its default here too, or the kernel would throw exit statuses away. Signals that Python
    itself ignores are given back by subprocess.
    """
    pythons_own = {signal.SIGPIPE, signal.SIGXFSZ}
    for number in signal.valid_signals() - pythons_own:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else lambda *_: None)


def _why_not(path: str, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT if os.path.exists(path):
            first_line = _first_line(path)
            if first_line.startswith(b"#!"):
                why = f'its first line, "{safe(first_line)}", names an interpreter that does not exist; correct it'
            else:
                why = "the loader that it asks for does not exist; take a program built for this system"
        case errno.ENOENT:
            why = "does not exist; correct the path or install the program"
        case errno.EACCES if os.path.isdir(path):
            why = "is a folder; name the program in it"
        case errno.EACCES:
            why = "is not executable for this user; chmod +x it, and see that its folders can be entered"
        case errno.ENOEXEC:
            why = "is neither a binary of this machine nor a script with a #! line; add one"
        case _:
            why = f"cannot be started: {error.strerror}"
    return why


def _first_line(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.readline(_FIRST_LINE_BYTES).rstrip(b"\n")
    except OSError:
        return b""
