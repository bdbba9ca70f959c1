"""Files and paths that an operator wrote: read, made absolute, and those looked at that have to be there already."""

from __future__ import annotations

import os
import shutil
import stat

from wstunnel.config.drafts import Draft, Place, Problems
from wstunnel.config.options import shown
from wstunnel.errors import ConfigError
from wstunnel.limits import OptionLimits
from wstunnel.settings import UnixAddress
from wstunnel.supervise.spawn import CHILD_PATH

__all__ = ["make_absolute", "text_of"]


def text_of(path: str) -> str:
    """What a configuration file says.

    raises  ConfigError
    bound   OptionLimits.max_file_bytes
    """
    bound = OptionLimits().max_file_bytes
    try:
        with open(path, "rb") as file:
            raw = file.read(bound + 1)
    except OSError as bad:
        raise ConfigError((f"{path}: cannot be read: {(bad.strerror or 'unknown error').lower()}",)) from None
    except ValueError:  # a NUL in the name
        raise ConfigError((f"{shown(path)}: is not a file name",)) from None
    if len(raw) > bound:
        raise ConfigError((f"{path}: has more than {bound} bytes",))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as bad:
        line = raw.count(b"\n", 0, bad.start) + 1
        raise ConfigError((f"{path}:{line}: is not UTF-8",)) from None


def make_absolute(draft: Draft, problems: Problems) -> None:
    """Make every path of a draft absolute, and look at those that have to be there already."""
    values = draft.values

    def absolute(path: str) -> str:
        return os.path.abspath(os.path.join(draft.base, path))

    if "listen" in values:
        values["listen"] = tuple(
            UnixAddress(absolute(each.path)) if isinstance(each, UnixAddress) else each for each in values["listen"]
        )
    if "socket" in values:
        values["socket"] = absolute(values["socket"])
    for field in ("control", "log_file", "tls_client_ca"):
        if field in values:
            values[field] = absolute(values[field])
    for field in ("tls_cert", "tls_key"):
        if field in values:
            values[field] = tuple(map(absolute, values[field]))
    if "log_file" in values:
        _check_log_file(values["log_file"], draft.where("log_file"), problems)
    for field in ("document_root", "docroot", "alias"):
        if field in values:
            values[field] = absolute(values[field])
            _check_folder(values[field], draft.where(field), problems)
    if "cgi_assign" in values:
        values["cgi_assign"] = tuple(
            (suffix, program and _found_program((program,), "cgi_assign", draft, problems)[0])
            for suffix, program in values["cgi_assign"]
        )
    for field in ("bin_path", "stdio"):
        if field in values:
            values[field] = _found_program(values[field], field, draft, problems)


def _check_folder(path: str, place: Place, problems: Problems) -> None:
    if not os.path.isdir(path):
        problems.add(place, f"{shown(path)} is not a folder")
    elif not os.access(path, os.R_OK | os.X_OK):
        problems.add(place, f"{shown(path)} may not be read by this user")


def _check_log_file(path: str, place: Place, problems: Problems) -> None:
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        problems.add(place, f"{shown(path)} is a folder; name a file in it")
    elif not os.path.isdir(folder):
        problems.add(place, f"the folder {shown(folder)} does not exist; create it")


def _found_program(argv: tuple[str, ...], field: str, draft: Draft, problems: Problems) -> tuple[str, ...]:
    program, *arguments = argv
    if "/" in program:
        found: str | None = os.path.abspath(os.path.join(draft.base, program))
    else:
        found = shutil.which(program, path=CHILD_PATH)
    trouble = _why_not_a_program(program, found)
    if trouble is not None and field == "bin_path" and draft.values.get("min_procs") == 0:
        problems.warn(draft.where(field), f"{trouble}; with min-procs = 0 its clients get 503 until it can be started")
    elif trouble is not None:
        problems.add(draft.where(field), trouble)
    return (found or program, *arguments)


def _why_not_a_program(program: str, found: str | None) -> str | None:
    if found is None:
        return (
            f"no program {shown(program)} in {CHILD_PATH}; write ./{program} for one in the current folder, "
            "or its whole path"
        )
    try:
        mode = os.stat(found).st_mode
    except OSError as bad:
        return f"{shown(found)} cannot be started: {(bad.strerror or 'unknown error').lower()}"
    if not stat.S_ISREG(mode):
        return f"{shown(found)} is not a program"
    if not os.access(found, os.X_OK):
        return f"{shown(found)} is not executable; chmod +x makes it so"
    return None
