"""What TLS listeners are served with: certificates by server name, and whose clients are let in."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from wstunnel.errors import ConfigError
from wstunnel.settings import ClientVerify

__all__ = ["Credentials", "ServerTls", "subject_of"]

_ALPN = ["h2", "http/1.1"]  # what is offered, the best first

_SHORT = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}  # RFC 4514 §3
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME, which `ssl` does not name
_SPECIAL = frozenset('",+;<>\\')
_REASONS = {
    "EE_KEY_TOO_SMALL": "is too small for this machine's OpenSSL; make a new one",
    "KEY_VALUES_MISMATCH": "does not belong to the certificate",
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """Certificates with their chains and keys, PEM, and by whom clients are known."""

    certificates: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    """Each certificate with its chain, and its key. The first one serves whoever asks for no name that we have."""
    client_ca: bytes | None = field(default=None, repr=False)
    client_verify: ClientVerify = "required"
    names: tuple[tuple[str, str], ...] = ()
    """What the operator calls each certificate and its key: for errors."""
    client_ca_name: str = "the client CA"


class ServerTls:
    """The contexts of one listener.

    in      credentials  with at least one certificate
    raises  ConfigError naming each certificate or key that cannot be used
    Session tickets are each process's own: a client that comes back to another one makes a whole handshake.
    """

    def __init__(self, credentials: Credentials) -> None:
        self.renew(credentials)

    def renew(self, credentials: Credentials) -> None:
        """Serve new connections with these from now on. raises as above; nothing is changed then"""
        problems: list[str] = []
        stale: list[str] = []
        contexts: list[ssl.SSLContext] = []
        names: dict[str, ssl.SSLContext] = {}
        for index, (chain, key) in enumerate(credentials.certificates):
            called = (
                credentials.names[index]
                if credentials.names
                else (f"certificate {index + 1}", f"the key of certificate {index + 1}")
            )
            try:
                context = _context(chain, key, called)
                seen = _certificate_of(context, chain, called[0])
                for name in _names_in(seen):
                    names.setdefault(name, context)
                if why := _untimely(seen):
                    stale.append(f"{called[0]} {why}")
            except ConfigError as error:
                problems += error.problems
                continue
            contexts.append(context)
        try:
            for context in contexts:
                context.set_alpn_protocols(_ALPN)
                _demand(context, credentials)
        except (ssl.SSLError, ValueError) as error:
            problems.append(f"{credentials.client_ca_name}: holds no certificates in PEM ({_said(error)})")
        if problems:
            raise ConfigError(tuple(problems))

        def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            chosen = None if name is None else _lookup(names, name.lower())
            if chosen is not None:
                connection.context = chosen

        if len(contexts) > 1:
            contexts[0].sni_callback = choose
        self._context = contexts[0]
        self.stale = tuple(stale)
        """Certificates that clients will not take, because it is too late or too early: sentences for the operator."""

    @property
    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        return self._context


def subject_of(certificate: Mapping[str, Any] | None) -> str:
    """Whom a certificate names, as RFC 4514 writes it, in printable ASCII; "" without a certificate.

    in      certificate  as `ssl.SSLSocket.getpeercert` has it
    """
    if not certificate:
        return ""
    parts = [
        "+".join(f"{_SHORT.get(name, name)}={_escaped(value)}" for name, value in part)
        for part in certificate.get("subject", ())
    ]
    return ",".join(reversed(parts))


def _escaped(value: str) -> str:
    """RFC 4514 §2.4; what is not printable ASCII goes by the hexadecimal pairs of its UTF-8."""
    shown = [
        f"\\{each}"
        if each in _SPECIAL
        else each
        if " " <= each <= "~"
        else "".join(f"\\{byte:02X}" for byte in each.encode("utf-8", "surrogatepass"))
        for each in value
    ]
    if shown and shown[0] in {" ", "#"}:
        shown[0] = f"\\{shown[0]}"
    if len(shown) > 1 and shown[-1] == " ":
        shown[-1] = "\\ "
    return "".join(shown)


def _context(chain: bytes, key: bytes, called: tuple[str, str]) -> ssl.SSLContext:
    """A server's context with this certificate. raises ConfigError"""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    certificate_name, key_name = called

    def passphrase() -> bytes:
        raise ConfigError((f"{key_name}: has a passphrase, and nobody to ask for it; store it without (openssl pkey)",))

    try:
        with _file(chain) as certificate_path:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(certificate_path)
            with _file(key) as key_path:
                try:
                    context.load_cert_chain(certificate_path, key_path, password=passphrase)
                except ssl.SSLError as error:
                    why = _REASONS.get(error.reason or "", f"is no private key in PEM ({_said(error)})")
                    who = certificate_name if error.reason == "EE_KEY_TOO_SMALL" else key_name
                    raise ConfigError((f"{who}: {why}",)) from error
    except ssl.SSLError as error:
        raise ConfigError((f"{certificate_name}: holds no certificate in PEM ({_said(error)})",)) from error
    return context


def _demand(context: ssl.SSLContext, credentials: Credentials) -> None:
    if credentials.client_ca is None:
        return
    with _file(credentials.client_ca) as path:
        context.load_verify_locations(path)
    context.verify_mode = ssl.CERT_REQUIRED if credentials.client_verify == "required" else ssl.CERT_OPTIONAL


def _certificate_of(context: ssl.SSLContext, chain: bytes, certificate_name: str) -> Mapping[str, Any]:
    """A context's certificate, as `getpeercert` has it, whatever the date. raises ConfigError when nobody can use it

    `ssl` tells what is in a certificate to those who have verified it, so it is shown to a client here that trusts it.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    with _file(chain) as path:
        client.load_verify_locations(path)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(back, there)
    far = context.wrap_bio(there, back, server_side=True)
    try:
        is_done = False
        while not is_done:
            is_done = _step(near)
            _step(far)
    except ssl.SSLCertVerificationError as error:
        raise ConfigError((f"{certificate_name}: clients will not take it: {error.verify_message}",)) from error
    except ssl.SSLError as error:
        raise ConfigError((f"{certificate_name}: cannot be served: {_said(error)}",)) from error
    try:
        seen = near.getpeercert()
    except ValueError as error:
        raise ConfigError((f"{certificate_name}: the names in it cannot be read: {error}",)) from error
    assert seen is not None
    return seen


def _names_in(seen: Mapping[str, Any]) -> list[str]:
    """The host names in a certificate, in lower case."""
    names = [value for kind, value in _pairs(seen.get("subjectAltName", ())) if kind == "DNS"]
    if not names:
        names = [
            value for part in _tuples(seen.get("subject", ())) for name, value in _pairs(part) if name == "commonName"
        ]
    return [name.lower() for name in names]


def _untimely(seen: Mapping[str, Any]) -> str:
    """What is wrong with the time of a certificate, or ""."""
    now_s = time.time()
    if now_s > ssl.cert_time_to_seconds(seen["notAfter"]):
        return f"has expired, on {seen['notAfter']}: clients will not take it"
    if now_s < ssl.cert_time_to_seconds(seen["notBefore"]):
        return f"is not valid before {seen['notBefore']}: clients will not take it"
    return ""


def _step(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _lookup(names: Mapping[str, ssl.SSLContext], name: str) -> ssl.SSLContext | None:
    """RFC 6125 §6.4.3: a wildcard stands for the whole leftmost label."""
    return names.get(name) or names.get("*." + name.partition(".")[2])


@contextmanager
def _file(pem: bytes) -> Iterator[str]:
    """A path at which OpenSSL reads these bytes; they are nowhere else, and gone afterwards."""
    fd = os.memfd_create("wstunnel-pem", os.MFD_CLOEXEC)
    try:
        left = memoryview(pem)
        while left:
            left = left[os.write(fd, left) :]
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _said(error: Exception) -> str:
    reason = error.reason if isinstance(error, ssl.SSLError) else None
    return (reason or str(error)).lower().replace("_", " ")


def _tuples(value: Any) -> tuple[Any, ...]:
    return tuple(value)


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    return tuple(value)
