"""Programs that are files under one folder: which of them a path leads to, and what runs it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from wstunnel.folders import check_folder, find_file, names_of
from wstunnel.supervise.spawn import Program, check_program

__all__ = ["Script", "ScriptFolder"]

_INTERPRETER_OPTION = "cgi-assign"
_SCRIPT_OPTION = "script"


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

    in      assign  suffixes, "" for all, and what runs scripts of that name: a program, or "" for the script itself.
                    The first suffix that fits counts
    """

    root: str
    assign: tuple[tuple[str, str], ...]

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

        raises  StartError when it is to run by itself, and cannot
        """
        script = self.find(f"/{file}")
        if script != Script(file, ""):
            return None
        raw = os.path.join(os.fsencode(self.root), file.encode("utf-8", "surrogateescape"))
        path = os.fsdecode(raw)
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


def _text(raw: bytes) -> str:
    """A path as requests and variables have it, whatever the encoding of file names is here."""
    return raw.decode("utf-8", "surrogateescape")
