"""ssl.* -> how each listener is served: which certificates it has, and by whom its clients are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from wstunnel.config.drafts import Problems
from wstunnel.config.lighttpd.draft import Filling, at
from wstunnel.config.lighttpd.evaluate import Block, Setting
from wstunnel.config.lighttpd.reading import entries, switch, text
from wstunnel.config.lighttpd.values import Value
from wstunnel.config.options import OptionError, shown
from wstunnel.settings import Address

__all__ = ["Certificates"]

T = TypeVar("T")

_ENGINE, _PEM, _KEY, _CA = "ssl.engine", "ssl.pemfile", "ssl.privkey", "ssl.ca-file"
_ACTIVATE, _ENFORCE, _CLIENT_CA = (f"ssl.verifyclient.{name}" for name in ("activate", "enforce", "ca-file"))
_COMMANDS = "ssl.openssl.ssl-conf-cmd"
_LEAST = "MinProtocol"

_CLIENT_OPTIONS = {
    "ssl.verifyclient.depth": "without effect: a chain may be as long as OpenSSL takes it",
    "ssl.verifyclient.exportcert": "not done here: programs get no SSL_CLIENT_CERT, but SSL_CLIENT_S_DN",
    "ssl.verifyclient.username": "not done here: there is no REMOTE_USER; SSL_CLIENT_S_DN names the client",
}


class Certificates:
    """What the blocks of a file say about TLS.

    in      blocks  those that take part, the global one first; what they claim of sockets are addresses of ours
    """

    def __init__(self, blocks: Sequence[Block], problems: Problems) -> None:
        self._blocks, self._problems = blocks, problems
        self._used: list[Block] = []

    def fill(self, filling: Filling, address: Address, block: Block) -> bool:
        """Set the options of a listener whose block this is; whether it has TLS."""
        engine = block.find(_ENGINE)
        if engine is None or not self._read(engine, _ENGINE, switch, False):
            return False
        own = next((each for each in _around(block) if _PEM in each.options), None)
        if own is None:
            self._problems.add(
                at(engine.place, _ENGINE),
                "needs an ssl.pemfile: the certificate, with its key unless ssl.privkey names that",
            )
            return True
        pairs = dict.fromkeys(
            self._pair(each) for each in (own, *(each for each in self._blocks if _is_for_hosts(each, address)))
        )
        pem = at(own.options[_PEM].place, _PEM)
        filling.put("tls-cert", [cert for cert, _ in pairs], pem)
        if any(cert != key for cert, key in pairs):
            key = own.options.get(_KEY)
            filling.put("tls-key", [key for _, key in pairs], pem if key is None else at(key.place, _KEY))
        self._fill_clients(filling, block)
        return True

    def _pair(self, block: Block) -> tuple[str, str]:
        """The files of a block's certificate and of its key."""
        self._used.append(block)
        cert = self._read(block.options[_PEM], _PEM, text, "")
        key = block.options.get(_KEY)
        return cert, cert if key is None else self._read(key, _KEY, text, "")

    def _fill_clients(self, filling: Filling, block: Block) -> None:
        activate, enforce = block.find(_ACTIVATE), block.find(_ENFORCE)
        if activate is None or not self._read(activate, _ACTIVATE, switch, False):
            return
        name = next((each for each in (_CLIENT_CA, _CA) if block.find(each) is not None), None)
        authority = None if name is None else block.find(name)
        if name is None or authority is None:
            self._problems.add(at(activate.place, _ACTIVATE), f"needs an {_CLIENT_CA}, or an {_CA}")
            return
        filling.read("tls-client-ca", authority.value, at(authority.place, name), text)
        if enforce is not None and not self._read(enforce, _ENFORCE, switch, True):
            filling.put("tls-client-verify", "optional", at(enforce.place, _ENFORCE))

    def _read(self, setting: Setting, name: str, reading: Callable[[Value], T], default: T) -> T:
        try:
            return reading(setting.value)
        except OptionError as bad:
            self._problems.add(at(setting.place, name), str(bad))
            return default

    # --- warnings

    def warn_of_the_rest(self) -> None:
        """What is written and has no effect, or another one than in lighttpd."""
        for block in self._blocks:
            for name, setting in block.options.items():
                for what, told in self._left(block, name, setting):
                    self._problems.warn(at(setting.place, what), told)

    def _left(self, block: Block, name: str, setting: Setting) -> Iterator[tuple[str, str]]:
        match name:
            case "ssl.pemfile" if all(each is not block for each in self._used):
                yield name, f"without effect: it is for no listener with {_ENGINE}"
            case "ssl.privkey" if _PEM not in block.options:
                yield name, f"without effect: there is no {_PEM} beside it"
            case "ssl.ca-file" if block.find(_ACTIVATE) is None or block.find(_CLIENT_CA) is not None:
                yield name, "its certificates are not sent to clients; put them into the pemfile, behind the server's"
            case "ssl.openssl.ssl-conf-cmd":
                yield from self._commands(setting)
            case _ if name in _CLIENT_OPTIONS:
                yield name, _CLIENT_OPTIONS[name]
            case "ssl.verifyclient.activate" | "ssl.verifyclient.enforce" if _names_hosts(block):
                yield name, "not done by host: what the listener asks of its clients, it asks of all"

    def _commands(self, setting: Setting) -> Iterator[tuple[str, str]]:
        try:
            items = entries(setting.value, f'("{_LEAST}" => "TLSv1.2")')
        except OptionError as bad:
            self._problems.add(at(setting.place, _COMMANDS), str(bad))
            return
        for item in items:
            what = f"{_COMMANDS}[{shown(item.key or '')}]"
            if item.key != _LEAST:
                yield what, "not done here; the ciphers and groups are OpenSSL's own"
            elif item.value.data != "TLSv1.2":
                yield what, f"{item.value.shown}: it is always TLSv1.2"


def _around(block: Block | None) -> Iterator[Block]:
    """The block, and those that it stands in."""
    while block is not None:
        yield block
        block = block.parent


def _names_hosts(block: Block) -> bool:
    return any(claim.field == "host" for claim in block.when or ())


def _is_for_hosts(block: Block, address: Address) -> bool:
    """Whether it has a certificate for some names at that address."""
    return (
        _PEM in block.options
        and _names_hosts(block)
        and all(
            claim.field == "host" or (claim.field == "socket" and (claim.value == str(address)) is claim.holds)
            for claim in block.when or ()
        )
    )
