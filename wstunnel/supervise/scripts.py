"""Programs that are files under one folder: which of them a path leads to, and what runs it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from wstunnel.errors import StartError, safe
from wstunnel.folders import check_folder, find_file, names_of
from wstunnel.limits import LogLimits
from wstunnel.owners import other_writers, user_name
from wstunnel.supervise.spawn import Program, check_program

__all__ = ["Script", "ScriptFolder"]

_INTERPRETER_OPTION = "cgi-assign"
_SCRIPT_OPTION = "script"
_LIMITS = LogLimits()


@dataclass(frozen=True, slots=True)
class Script:
    """A script that is there.

    file  its path under the folder
    rest  what followed it on the path that led to it: empty, or with a slash in front
    """

    file: str
    rest: str


@dataclass(frozen=True, slots=True)
class ScriptFolder:
    """The scripts under `root`.

    in      assign             suffixes, "" for all, and what runs scripts of that name: a program, or "" for the script
                               itself. The first suffix that fits counts
            allows_strangers   run scripts whoever they belong to, and whoever may write to them
    """

    root: str
    assign: tuple[tuple[str, str], ...]
    allows_strangers: bool = False

    def check(self) -> None:
        """raises StartError when the folder, or a program that runs scripts, is not there"""
        check_folder(self.root, option="docroot")
        for _, interpreter in self.assign:
            if interpreter:
                check_program(Program(interpreter, option=_INTERPRETER_OPTION))

    def find(self, path: str) -> Script | None:
        """The script at the beginning of a path, whose names are as in a URL; None: nothing that is to be run."""
        names = names_of(path)
        count = None if names is None else find_file(self.root, names)
        if names is None or count is None:
            return None
        script = Script(_text(b"/".join(names[:count])), _text(b"".join([b"/" + name for name in names[count:]])))
        return None if self._interpreter(script.file) is None else script

    def program(self, file: str) -> Program | None:
        """What runs a script, by its path under the folder; None when that is no script of ours, whoever says so.

        raises  StartError when it, or a folder on the way to it, belongs to somebody else than root and us, or may be
                written to by others; when it is to run by itself, and cannot
        """
        script = self.find(f"/{file}")
        if script != Script(file, ""):
            return None
        raw = os.path.join(os.fsencode(self.root), file.encode("utf-8", "surrogateescape"))
        path = os.fsdecode(raw)
        if not self.allows_strangers:
            _check_hands(self.root, file)
        interpreter = self._interpreter(file)
        if interpreter:
            return Program(interpreter, (path,), _INTERPRETER_OPTION, os.path.dirname(path))
        program = Program(path, option=_SCRIPT_OPTION)
        check_program(program)
        return program

    def variables(self, file: str, path_info: str) -> dict[str, str]:
        """What a script is told of where it stands (RFC 3875 §4.1.6), and what php-cgi wants to hear before it runs."""
        root = _text(os.fsencode(self.root))
        found = {"DOCUMENT_ROOT": root, "SCRIPT_FILENAME": f"{root.rstrip('/')}/{file}", "REDIRECT_STATUS": "200"}
        if path_info:
            found["PATH_TRANSLATED"] = f"{root.rstrip('/')}{path_info}"
        return found

    def _interpreter(self, file: str) -> str | None:
        return next((program for suffix, program in self.assign if file.endswith(suffix)), None)


def _check_hands(root: str, file: str) -> None:
    """raises StartError for a script that others may have written. What is left can be changed by root and us alone, so
    it is still the same when it runs a moment later; the folder itself and those above it are judged by config/places.
    """
    trusted = frozenset({0, os.geteuid()})
    path = os.fsencode(root)
    for name in file.encode("utf-8", "surrogateescape").split(b"/"):
        path = os.path.join(path, name)
        _check_step(os.fsdecode(path), trusted)


def _check_step(path: str, trusted: frozenset[int]) -> None:
    what = f"{_SCRIPT_OPTION} {safe(path, _LIMITS.path_chars)}"
    try:
        found = os.lstat(path)
    except OSError as error:
        raise StartError(f"{what}: {error.strerror}") from error
    if found.st_uid not in trusted:
        raise StartError(
            f"{what}: belongs to {user_name(found.st_uid)}, and nothing is run but what belongs to root or to the user "
            "that runs wstunnel; chown it, or set allow-unsafe-places"
        )
    writers = other_writers(path, found, trusted)
    is_sticky_folder = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if writers is not None and not is_sticky_folder:  # in which only the owner of an entry may replace it
        who, remedy = writers
        raise StartError(
            f"{what}: {who} may write to it (mode {stat.S_IMODE(found.st_mode):04o}), so it is not run; {remedy} it, "
            "or set allow-unsafe-places"
        )


def _text(raw: bytes) -> str:
    """A path as requests and variables have it, whatever the encoding of file names is here."""
    return raw.decode("utf-8", "surrogateescape")
