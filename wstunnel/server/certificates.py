"""Certificates and their keys: read by who may, handed on as bytes, and read again when their files change.

Keys belong to root, as a rule, and whoever carries traffic has given root up. So the master reads them, and no other
process gets a path of theirs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from wstunnel.errors import ConfigError, safe
from wstunnel.limits import CertificateLimits
from wstunnel.net.tls import Credentials, ServerTls
from wstunnel.owners import user_name
from wstunnel.settings import Front, Settings

__all__ = ["CertificateWatch", "Flaw", "Material", "Reading", "material_of", "read_front", "renew", "servers_of"]

_log = logging.getLogger("wstunnel")

_Option = Literal["tls_cert", "tls_key", "tls_client_ca"]
_NAMES: dict[_Option, str] = {"tls_cert": "tls-cert", "tls_key": "tls-key", "tls_client_ca": "tls-client-ca"}
_KEY = b"PRIVATE KEY-----"
_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OF_OTHERS_THAN_READERS = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Material:
    """What files with certificates and keys say, by path; no text shows it."""

    pem: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def with_(self, other: Material) -> Material:
        """Both, the other's where they differ."""
        return Material({**self.pem, **other.pem})

    def credentials(self, front: Front) -> Credentials | None:
        """What a front needs of it; None: it is in the clear."""
        if not front.tls_cert:
            return None
        return Credentials(
            certificates=tuple((self.pem[cert], self.pem[key]) for cert, key in _pairs(front)),
            client_ca=None if front.tls_client_ca is None else self.pem[front.tls_client_ca],
            client_verify=front.tls_client_verify,
            names=tuple((_shown(cert), _shown(key)) for cert, key in _pairs(front)),
            client_ca_name=_shown(front.tls_client_ca or ""),
        )

    def export(self) -> dict[str, str]:
        """For JSON that no other process can read."""
        return {path: pem.decode("latin-1") for path, pem in self.pem.items()}

    @classmethod
    def adopt(cls, exported: Mapping[str, str]) -> Material:
        """What `export` said."""
        return cls({path: text.encode("latin-1") for path, text in exported.items()})

    def write(self) -> BinaryIO:
        """A file without a name that says it all, for another process to `read`."""
        file = open(os.memfd_create("wstunnel-certificates", os.MFD_CLOEXEC), "r+b")  # noqa: SIM115 -- is handed on
        file.write(json.dumps(self.export()).encode("ascii"))
        file.seek(0)
        return file

    @classmethod
    def read(cls, fd: int) -> Material:
        """What somebody has written behind this descriptor, which is closed."""
        with open(fd, "rb") as file:
            return cls.adopt(json.load(file))


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with a file: the option that names it, and a sentence that begins with its path."""

    option: _Option
    text: str

    def __str__(self) -> str:
        return f"{_NAMES[self.option]}: {self.text}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found in the files of a front.

    material  of all its files; of use only where there is no flaw
    flaws     why they cannot be used
    kept      files that we may not read any more, and what they said when we could stays in use
    stale     certificates whose time is over, or has not come: no reason to serve nothing at all
    is_behind others of them say something new, which is of no use without those
    """

    material: Material
    flaws: tuple[Flaw, ...] = ()
    kept: tuple[Flaw, ...] = ()
    stale: tuple[Flaw, ...] = ()
    is_behind: bool = False


def read_front(front: Front, *, trusted: frozenset[int], held: Material | None = None) -> Reading:
    """Read the files that a front names, and try whether they can be used.

    in      trusted  user ids who may own a private key
            held     what they said when they could be read: in the place of what we may not read any more, since root
                     was given up
    bound   `CertificateLimits.max_file_bytes` each
    """
    before = held or Material()
    pem: dict[str, bytes] = {}
    flaws: list[Flaw] = []
    kept: list[Flaw] = []
    files = _files(front)
    for path, option in files.items():
        try:
            pem[path] = _read(path, trusted)
        except PermissionError:
            remedy = "start as root, or let our group read it (chgrp, chmod 640)"
            if path in before.pem:
                pem[path] = before.pem[path]
                text = f"{_shown(path)} cannot be read any more: what it said stays in use, and what is new there takes"
                kept.append(Flaw(option, f"{text} a restart; {remedy}"))
            else:
                flaws.append(Flaw(option, f"{_shown(path)} cannot be read: permission denied; {remedy}"))
        except OSError as bad:
            flaws.append(Flaw(option, f"{_shown(path)} cannot be read: {(bad.strerror or 'unknown error').lower()}"))
        except _FlawedFileError as bad:
            flaws.append(Flaw(option, f"{_shown(path)} {bad}"))
    stale: tuple[Flaw, ...] = ()
    if not flaws:
        flaws, stale = _tried(front, Material(pem))
    if flaws and kept and before.pem.keys() >= files.keys():  # a new certificate, whose key we may not read
        return Reading(Material({path: before.pem[path] for path in files}), kept=tuple(kept), is_behind=True)
    return Reading(Material(pem), tuple(flaws), tuple(kept), stale)


def material_of(settings: Settings) -> Material:
    """What all files that the settings name say.

    raises  ConfigError with everything that is wrong with them
    """
    material = Material()
    flaws: list[Flaw] = []
    for front in dict.fromkeys(settings.fronts):
        reading = read_front(front, trusted=_trusted())
        material = material.with_(reading.material)
        flaws += reading.flaws
    if flaws:
        raise ConfigError(tuple(map(str, flaws)))
    return material


def servers_of(fronts: Iterable[Front], material: Material) -> dict[Front, ServerTls]:
    """How those of the fronts that have TLS are served.

    raises  ConfigError
    """
    servers = {}
    for front in fronts:
        credentials = None if front in servers else material.credentials(front)
        if credentials is not None:
            servers[front] = ServerTls(credentials)
    return servers


def renew(servers: Mapping[Front, ServerTls], material: Material) -> None:
    """Have new connections served with this; where it is of no use, with what there was, which is logged.

    in      material  says nothing of the files of a front that is not in force any more
    """
    for front, server in servers.items():
        try:
            credentials = material.credentials(front) if material.pem.keys() >= _files(front).keys() else None
            if credentials is not None:
                server.renew(credentials)
        except ConfigError as bad:
            _log.error("%s: the certificate that was there before stays in use: %s", _shown(front.tls_cert[0]), bad)


class CertificateWatch:
    """Looks at the files of some fronts again and again, and reads those that have changed.

    in      material    what is in use
            on_renewed  gets what is to be used from now on: files that cannot be used are logged, once for each change,
                        and for the front that names them everything stays as it was
    """

    def __init__(
        self,
        fronts: Iterable[Front],
        material: Material,
        limits: CertificateLimits,
        on_renewed: Callable[[Material], None],
    ) -> None:
        self.material = material
        self._fronts = [front for front in dict.fromkeys(fronts) if front.tls_cert]
        self._look_s, self._on_renewed = limits.look_s, on_renewed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._last: _Signs = {}
        self._read: _Signs = {}
        self._is_first = True
        if self._fronts:
            self._wait()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = self._loop.call_later(self._look_s, self._look)

    def _look(self) -> None:
        """Read what differs from what was read, once two looks have found the same: before, it may be half written."""
        signs = {path: _sign(path) for front in self._fronts for path in _files(front)}
        if signs == self._last and signs != self._read:
            self._read = signs
            self._renew()
            self._is_first = False
        self._last = signs
        self._wait()

    def _renew(self) -> None:
        material = self.material
        for front in self._fronts:
            reading = read_front(front, trusted=_trusted(), held=self.material)
            for flaw in reading.flaws:
                _log.error("%s; the certificate that was there before stays in use", flaw)
            for each in reading.kept:
                _log.log(logging.WARNING if self._is_first and not reading.is_behind else logging.ERROR, "%s", each)
            for each in reading.stale:
                _log.warning("%s", each)
            if not reading.flaws:
                material = material.with_(reading.material)
        if material != self.material:
            self.material = material
            self._on_renewed(material)
            _log.info("the certificates have changed: new connections get the new ones")


_Signs = dict[str, tuple[int, int, int] | None]


def _sign(path: str) -> tuple[int, int, int] | None:
    """What tells a file from what it was before."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _pairs(front: Front) -> Iterable[tuple[str, str]]:
    """Each certificate's file and that of its key, which may be the same one."""
    return zip(front.tls_cert, front.tls_key or front.tls_cert, strict=True)


def _files(front: Front) -> dict[str, _Option]:
    """The files that a front names, with the first option that does."""
    files: dict[str, _Option] = dict.fromkeys(front.tls_cert, "tls_cert")
    for path in front.tls_key:
        files.setdefault(path, "tls_key")
    if front.tls_client_ca is not None:
        files.setdefault(front.tls_client_ca, "tls_client_ca")
    return files


class _FlawedFileError(Exception):
    """Why the file is not taken: the end of a sentence that begins with its path."""


def _read(path: str, trusted: frozenset[int]) -> bytes:
    """What a file says, if it may be told.

    raises  OSError, _FlawedFileError
    """
    bound = CertificateLimits().max_file_bytes
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise _FlawedFileError("is not a file")
        pem = file.read(bound + 1)
    if len(pem) > bound:
        raise _FlawedFileError(f"has more than {bound} bytes")
    if _KEY in pem:
        _check_secrecy(path, found, trusted)
    return pem


def _check_secrecy(path: str, found: os.stat_result, trusted: frozenset[int]) -> None:
    """Nobody but its owner may touch a private key; and who is in its group may read one that is root's.

    raises  _FlawedFileError
    source  ssh and PostgreSQL ask for the same
    """
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in trusted:
        raise _FlawedFileError(
            f"holds a private key and belongs to {user_name(found.st_uid)}, who could read it; "
            f"chown it to root or to {user_name(os.geteuid())}"
        )
    is_roots = found.st_uid == 0
    if mode & (_OF_OTHERS_THAN_READERS if is_roots else _OF_OTHERS):
        wanted = 0o640 if is_roots and mode & stat.S_IRGRP and os.geteuid() != 0 else 0o600
        raise _FlawedFileError(
            f"holds a private key that others may read (mode {mode:04o}); chmod {wanted:o} {_shown(path)}"
        )


def _tried(front: Front, material: Material) -> tuple[list[Flaw], tuple[Flaw, ...]]:
    """What is wrong with what was read, and what is late or early."""
    of_key: _Option = "tls_key" if front.tls_key else "tls_cert"
    remedy = "" if front.tls_key else "; name the file of its key with tls-key"
    flaws = [
        Flaw(of_key, f"{_shown(key)} holds no private key in PEM form{remedy}")
        for _, key in _pairs(front)
        if _KEY not in material.pem[key]
    ]
    credentials = None if flaws else material.credentials(front)
    if credentials is not None:
        try:
            stale = ServerTls(credentials).stale
            return [], tuple(Flaw("tls_cert", text) for text in stale)
        except ConfigError as bad:
            named = [(option, f"{_shown(path)}: ") for path, option in _files(front).items()]
            flaws = [
                Flaw(next((option for option, name in named if text.startswith(name)), of_key), text)
                for text in bad.problems
            ]
    return flaws, ()


def _trusted() -> frozenset[int]:
    return frozenset({0, os.geteuid()})


def _shown(path: str) -> str:
    return f'"{safe(path, len(path) * 4)}"'
