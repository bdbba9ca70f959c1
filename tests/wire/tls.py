"""A TLS client whose every ciphertext byte the test decides, and certificates to meet it with."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import datetime
import functools
import socket
import ssl
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.wire.clients import Client
from tests.wire.sockets import connected, turns
from wstunnel import TcpAddress, UnixAddress
from wstunnel.net.tls import Credentials

_OPENSSL = ctypes.CDLL(ssl._ssl.__file__)  # type: ignore[attr-defined]  # what `ssl` has no call for
_UPDATE_REQUESTED = 1

__all__ = [
    "TlsClient",
    "TlsPeer",
    "authority",
    "client_context",
    "credentials",
    "issued",
    "pem",
    "undecodable",
]


@functools.cache
def authority(name: str) -> trustme.CA:
    """A certificate authority, one of each name per test run. Clients trust "ours"."""
    return trustme.CA(organization_name=name)


@functools.cache
def issued(*names: str, by: str = "ours", **how: Any) -> trustme.LeafCert:
    """A certificate for these host names."""
    return authority(by).issue_cert(*names, **how)


def pem(leaf: trustme.LeafCert) -> tuple[bytes, bytes]:
    """Its chain and its key."""
    return b"".join(each.bytes() for each in leaf.cert_chain_pems), leaf.private_key_pem.bytes()


@functools.cache
def undecodable() -> tuple[bytes, bytes]:
    """A certificate of our authority, and its key: OpenSSL takes it, and `ssl` cannot say which names are in it."""
    ours = x509.load_pem_x509_certificate(authority("ours").cert_pem.bytes())
    signer = serialization.load_pem_private_key(authority("ours").private_key_pem.bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "odd")]))
        .issuer_name(ours.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(ours.not_valid_before_utc)
        .not_valid_after(datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(
            x509.UnrecognizedExtension(x509.ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x30\x03\x82\x01\xff"),
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def credentials(*leaves: trustme.LeafCert, **how: Any) -> Credentials:
    """Of a server with these certificates; one for localhost, if none is given."""
    return Credentials(tuple(pem(leaf) for leaf in leaves or (issued("localhost"),)), **how)


def client_context(
    version: ssl.TLSVersion | None = None, *, ciphers: str | None = None, leaf: trustme.LeafCert | None = None
) -> ssl.SSLContext:
    """Of a client that trusts our authority.

    in      version  the only one that it speaks; ciphers: of TLS 1.2; leaf: its own certificate
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority("ours").configure_trust(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if ciphers is not None:
        context.set_ciphers(ciphers)
    if leaf is not None:
        leaf.configure_cert(context)
    return context


class TlsPeer:
    """The client's end of a connection. Nothing is sent but by a call of `send...`; a read takes what is there."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext | None = None,
        *,
        name: str | None = "localhost",
        session: ssl.SSLSession | None = None,
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.is_cut = False
        """The connection ended without close_notify."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = context or client_context()
        if name is None:
            context.check_hostname = False
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name, session=session)
        self._loop = asyncio.get_running_loop()

    def said(self) -> bytes:
        """Ciphertext that is to be sent."""
        return self._outgoing.read()

    def sealed(self, data: bytes) -> bytes:
        """The ciphertext of `data`, which is not sent."""
        self.tls.write(data)
        return self.said()

    def goodbye(self) -> bytes:
        """Our close_notify, which is not sent."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.said()

    def rekeyed(self) -> bytes:
        """A KeyUpdate that asks for one (RFC 8446 §4.6.3), which is not sent."""
        assert _OPENSSL.SSL_key_update(self._openssl(), _UPDATE_REQUESTED) == 1
        self.tls.do_handshake()
        return self.said()

    def renegotiation(self) -> bytes:
        """A ClientHello for a second handshake (RFC 5246 §7.4.1), which is not sent."""
        assert _OPENSSL.SSL_renegotiate(self._openssl()) == 1
        assert not self.step()
        return self.said()

    def server_random(self) -> bytes:
        """Of the handshake (RFC 5246 §7.4.1.3)."""
        found = ctypes.create_string_buffer(32)
        assert _OPENSSL.SSL_get_server_random(self._openssl(), found, ctypes.c_size_t(32)) == 32
        return found.raw

    def _openssl(self) -> ctypes.c_void_p:
        """The `SSL*` of Modules/_ssl.c: behind the object's head and a reference to its socket."""
        inner = self.tls._sslobj  # type: ignore[attr-defined]
        return ctypes.c_void_p.from_address(id(inner) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p))

    def step(self) -> bool:
        """Go on with the handshake by what has come; is our part done? raises ssl.SSLError"""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    async def listen(self) -> bool:
        """Take ciphertext from the socket; False: it has ended."""
        sealed = await self._loop.sock_recv(self.sock, 1 << 16)
        self._incoming.write(sealed)
        return bool(sealed)

    async def shake(self, *, last: bool = True) -> bytes:
        """The whole handshake; the last flight is sent only if asked for, and returned otherwise."""
        while not self.step():
            await self.send_raw(self.said())
            if not await self.listen():
                raise ConnectionResetError("the server left")
        flight = self.said()
        if last:
            await self.send_raw(flight)
        return flight

    async def shake_and_listen(self) -> bytes:
        """What the server says first."""
        await self.shake()
        return await self.recv()

    async def send_raw(self, sealed: bytes) -> None:
        await self._loop.sock_sendall(self.sock, sealed)

    async def send(self, data: bytes) -> None:
        await self.send_raw(self.sealed(data))

    async def recv(self, limit: int = 1 << 16) -> bytes:
        """Some plain bytes, b"" at the end. raises ssl.SSLError: on an alert"""
        while True:
            try:
                return self.tls.read(limit)
            except ssl.SSLWantReadError:
                if not await self.listen():
                    self.is_cut = True
                    return b""
            except ssl.SSLZeroReturnError:
                return b""

    async def recv_exactly(self, count: int) -> bytes:
        got = b""
        while len(got) < count and (piece := await self.recv()):
            got += piece
        assert len(got) == count, f"the end came after {len(got)} of {count} bytes"
        return got

    async def recv_to_end(self) -> bytes:
        got = b""
        while piece := await self.recv():
            got += piece
        return got

    def close(self) -> None:
        self.sock.close()


class TlsClient(Client):
    """A `Client` over TLS. `half_close` is its close_notify; what it says goes out at once or the test fails."""

    peer: TlsPeer

    @classmethod
    async def meet(cls, address: TcpAddress | UnixAddress, context: ssl.SSLContext | None = None) -> TlsClient:
        """Connected, the handshake being done. raises ssl.SSLError"""
        client = cls(await connected(address))
        client.peer = TlsPeer(client.sock, context)
        await client.peer.shake()
        return client

    async def send(self, data: bytes | memoryview) -> None:
        await self.peer.send(bytes(data))

    async def recv(self, limit: int | None = None) -> bytes:
        await turns(self.lull_turns)
        return await self.peer.recv(limit or self.read_bytes)

    def half_close(self) -> None:
        self.sock.sendall(self.peer.goodbye())
