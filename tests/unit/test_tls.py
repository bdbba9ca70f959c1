"""TLS below the transport: what is sent and received over it, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hmac
import itertools
import random
import select
import socket
import ssl
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.conftest import LOOPS, Run, open_descriptors
from tests.wire.clients import BINARY, frame
from tests.wire.sockets import eventually, turns
from tests.wire.tls import TlsPeer, authority, client_context, credentials, issued, undecodable
from wstunnel._handshake import Handshake
from wstunnel._hub import Hub, HubTransport
from wstunnel._relay import BackendLeg, ClientLeg, Policy, Relay
from wstunnel._tls import Tls
from wstunnel.net.tls import ServerTls, subject_of
from wstunnel.net.wheel import TimerWheel

READ_BYTES = 48 * 1024
SIZES = {"read_bytes": READ_BYTES, "bulk_bytes": 128 * 1024, "turn_bytes": 256 * 1024}
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = pytest.mark.parametrize("version", [TLS12, TLS13], ids=["TLS1.2", "TLS1.3"])
TIMEOUT_S = 5.0
PER_TURN = 4
OWED_MAX = 4096


@pytest.fixture(params=list(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    return Run(request.param)


class Protocol:
    """Notes what it is told, in order; `reads`: from the beginning, else once it has resumed reading."""

    def __init__(self, hub: Hub, *, reads: bool = True) -> None:
        self._hub, self._reads = hub, reads
        self.told: list[Any] = []
        self.data = b""

    @property
    def events(self) -> list[str]:
        return [each for each in self.told if isinstance(each, str)]

    def connection_made(self, transport: HubTransport) -> None:
        self.transport = transport
        self.told.append("made")
        if not self._reads:
            transport.pause_reading()

    def buffer_updated(self, nbytes: int) -> None:
        self.told.append(bytes(self._hub.view[:nbytes]))
        self.data += self.told[-1]

    def eof_received(self) -> bool:
        self.told.append("eof")
        return True

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.told.append("lost" if error is None else f"lost: {type(error).__name__}")


class Bench:
    """`async with Bench() as bench`: a hub that serves TLS. Nothing is left of it behind."""

    def __init__(
        self, *, within_s: float = TIMEOUT_S, max_bytes: int = 128 * 1024, tls: ServerTls | None = None
    ) -> None:
        self._within_s, self._max_bytes = within_s, max_bytes
        self.tls = tls or ServerTls(credentials())
        self.ends: list[str | None] = []
        self.fault: Exception | None = None
        self.handshakes: list[Handshake] = []

    async def __aenter__(self) -> Bench:
        self._fds = _descriptors()
        loop = asyncio.get_running_loop()
        self.wheel = TimerWheel(0.1, loop.time())
        self.hub = Hub(loop, self.wheel, **SIZES, look_s=0.5)
        self._peers: list[socket.socket] = []
        self._protocols: list[Protocol] = []
        return self

    def accept(self, *, narrow: bool = False, is_unix: bool = False, **how: Any) -> tuple[Protocol, socket.socket]:
        """A protocol that is attached once the handshake is done, and the client's socket."""
        if is_unix:
            near, far = socket.socketpair()
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            return self._shake(near, far, **how)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            if narrow:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            far = socket.socket()
            if narrow:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            far.connect(listener.getsockname())
            near, _ = listener.accept()
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._shake(near, far, **how)

    def _shake(self, near: socket.socket, far: socket.socket, **how: Any) -> tuple[Protocol, socket.socket]:
        near.setblocking(False)
        protocol = Protocol(self.hub, **how)

        def ended(handshake: Handshake, fault: str | None) -> None:
            self.ends.append(fault)
            if self.fault is not None:
                raise self.fault
            if fault is None:
                handshake.attach(protocol)

        self.handshakes.append(
            Handshake(
                self.hub,
                near.detach(),
                self.tls.context,
                on_end=ended,
                within_s=self._within_s,
                max_bytes=self._max_bytes,
                per_turn=PER_TURN,
            )
        )
        self._protocols.append(protocol)
        self._peers.append(far)
        return protocol, far

    async def peer(self, context: ssl.SSLContext | None = None, **how: Any) -> tuple[Protocol, TlsPeer]:
        """Likewise, the handshake being done."""
        protocol, far = self.accept(**how)
        peer = TlsPeer(far, context)
        await peer.shake()
        await eventually(lambda: "made" in protocol.told, "the transport")
        return protocol, peer

    async def __aexit__(self, *_: object) -> None:
        for handshake in self.handshakes:
            handshake.abort()
        for protocol in self._protocols:
            if "made" in protocol.told:
                protocol.transport.abort()
        for peer in self._peers:
            peer.close()
        await turns(3)
        self.hub.close()
        await eventually(lambda: _descriptors() == self._fds, "every descriptor closed")
        assert len(self.wheel) == 0


def _descriptors() -> dict[int, str]:
    return {fd: name for fd, name in open_descriptors().items() if name != "/dev/null"}


async def arrived(protocol: Protocol, data: bytes) -> None:
    await eventually(lambda: len(protocol.data) >= len(data), f"{len(data)} bytes")
    assert protocol.data == data


# --- bytes


@pytest.mark.parametrize(
    ("version", "cipher"),
    [
        (TLS12, "ECDHE-ECDSA-AES128-GCM-SHA256"),
        (TLS12, "ECDHE-ECDSA-CHACHA20-POLY1305"),
        (TLS12, "ECDHE-ECDSA-AES256-SHA384"),
        (TLS13, None),
    ],
)
def test_plain_bytes_go_both_ways(run: Run, version: ssl.TLSVersion, cipher: str | None):
    async def check() -> None:
        tls = ServerTls(credentials())
        tls.context.set_ciphers("ALL")
        async with Bench(tls=tls) as bench:
            protocol, peer = await bench.peer(client_context(version, ciphers=cipher))
            assert cipher is None or peer.tls.cipher()[0] == cipher

            for size in (1, 64, 16384, 16385, 70000):
                data = random.Random(size).randbytes(size)
                await peer.send(data)
                await eventually(lambda n=size: len(protocol.data) == n, f"{size} bytes")
                assert protocol.data == data
                protocol.data = b""
                protocol.transport.write(data)
                assert await peer.recv_exactly(size) == data
            assert bench.ends == [None]

    run(check())


@VERSIONS
def test_whatever_way_the_ciphertext_is_cut_the_bytes_are_the_same(run: Run, version: ssl.TLSVersion):
    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.accept()
            peer = TlsPeer(far, client_context(version))
            while not peer.step():
                for byte in peer.said():
                    await peer.send_raw(bytes([byte]))
                    await turns(2)
                assert await peer.listen()
            words = b"".join(b"word %d " % n for n in range(4))
            sealed = peer.said() + b"".join(peer.sealed(word + b" ") for word in words.split())
            for byte in sealed:
                await peer.send_raw(bytes([byte]))
                await turns(2)

            await arrived(protocol, words)

    run(check())


@VERSIONS
def test_many_records_in_one_segment_and_the_head_of_the_next(run: Run, version: ssl.TLSVersion):
    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer(client_context(version))
            sizes = [1, 16384, 100, 0, 16384, 16384, 5, 700] + [64] * 400
            pieces = [random.Random(n).randbytes(size) for n, size in enumerate(sizes)]
            sealed = b"".join(peer.sealed(piece) for piece in pieces)
            at = 0
            cuts = random.Random(7)
            while at < len(sealed):
                size = cuts.choice([1, 3, 5, 17, 16389, 16390, 40000])
                await peer.send_raw(sealed[at : at + size])
                at += size
                await turns(2)

            await arrived(protocol, b"".join(pieces))

    run(check())


@pytest.mark.parametrize("reads", [True, False])
@VERSIONS
def test_what_comes_in_one_segment_with_the_end_of_the_handshake_is_told(
    run: Run, version: ssl.TLSVersion, reads: bool
):
    """No event of the socket tells of it any more."""

    async def check() -> None:
        async with Bench() as bench:
            protocol, far = bench.accept(reads=reads)
            peer = TlsPeer(far, client_context(version))
            if version is TLS13:
                flight = await peer.shake(last=False)
                await peer.send_raw(flight + peer.sealed(b"GET / ") + peer.sealed(b"HTTP/1.1")[:-3])
            else:
                await peer.shake()
                await peer.send_raw(peer.sealed(b"GET / ") + peer.sealed(b"HTTP/1.1")[:-3])
            if not reads:
                await eventually(lambda: "made" in protocol.told, "the transport")
                await turns(3)
                assert protocol.data == b""
                protocol.transport.resume_reading()

            await arrived(protocol, b"GET / ")

    run(check())


@VERSIONS
def test_a_mebibyte_each_way_through_narrow_buffers_arrives(run: Run, version: ssl.TLSVersion):
    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer(client_context(version), narrow=True)
            data = random.Random(1).randbytes(1 << 20)
            protocol.transport.write(data)
            assert protocol.transport.get_write_buffer_size() > 0
            assert "pause" in protocol.told

            async def say() -> None:
                sealed = peer.sealed(data)
                await peer.send_raw(sealed)

            saying = asyncio.ensure_future(say())
            assert await peer.recv_exactly(len(data)) == data
            await saying
            await arrived(protocol, data)
            assert "resume" in protocol.told

    run(check())


# --- what OpenSSL says of its own


def test_keys_are_renewed_when_the_client_asks(run: Run):
    """OpenSSL answers in front of what is written next, or when it is asked again."""

    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer()
            await peer.send_raw(peer.rekeyed() + peer.sealed(b"by the new key"))
            await arrived(protocol, b"by the new key")
            protocol.transport.write(b"as we answer")
            assert await peer.recv_exactly(12) == b"as we answer"
            await peer.send_raw(b"".join(peer.rekeyed() for _ in range(100)) + peer.sealed(b", and on"))
            await arrived(protocol, b"by the new key, and on")
            protocol.transport.write(b"as we answer")

            assert await peer.recv_exactly(12) == b"as we answer"

    run(check())


def test_an_answer_to_what_came_with_the_end_of_the_handshake_is_sent_at_once(run: Run):
    async def check() -> None:
        tls = ServerTls(credentials())
        tls.context.num_tickets = 0
        async with Bench(tls=tls) as bench:
            peer = TlsPeer(bench.accept()[1])
            flight = await peer.shake(last=False)
            await peer.send_raw(flight + peer.rekeyed() + peer.rekeyed())  # the second one has the first one answered

            assert await peer.listen()

    run(check())


def test_so_many_keys_may_be_renewed_at_once(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer()
            await peer.send_raw(b"".join(peer.rekeyed() for _ in range(400)))
            await eventually(lambda: len(protocol.told) == 2, "the end")

            assert protocol.told == ["made", "lost: OSError"]

    run(check())


def test_a_renewed_key_stands_behind_what_the_client_has_not_taken(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer(narrow=True)
            data = random.Random(1).randbytes(1 << 20)
            protocol.transport.write(data)
            assert protocol.transport.get_write_buffer_size() > 0
            await peer.send_raw(peer.rekeyed() + peer.sealed(b"go on"))
            await arrived(protocol, b"go on")
            protocol.transport.write(b"by the new key")

            assert await peer.recv_exactly((1 << 20) + 14) == data + b"by the new key"

    run(check())


def test_a_second_handshake_is_refused(run: Run):
    """RFC 5246 §7.2.2: by a warning, behind which the client gives up."""

    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer(client_context(TLS12))
            await peer.send_raw(peer.renegotiation())
            assert await peer.listen()
            with pytest.raises(ssl.SSLError, match="NO_RENEGOTIATION"):
                peer.step()
            assert protocol.told == ["made"]

    run(check())


def test_warnings_wait_for_a_client_that_does_not_take_them_and_arrive_in_order(run: Run, tmp_path: Path):
    async def check() -> None:
        context = client_context(TLS12, ciphers=CIPHER)
        context.keylog_filename = str(tmp_path / "keys")
        async with Bench() as bench:
            protocol, peer = await bench.peer(context, is_unix=True)
            hellos = sealed_hellos(peer, (tmp_path / "keys").read_text())
            for _ in range(60):
                await peer.send_raw(next(hellos))
                await turns(2)
            assert 0 < protocol.transport.get_write_buffer_size() < OWED_MAX
            said = b""
            while len(said) < 60 * WARNING_BYTES:
                said += await asyncio.get_running_loop().sock_recv(peer.sock, 1 << 16)

            assert len(said) == 60 * WARNING_BYTES
            # the nonces that GCM sends along are numbers in a row
            numbers = [int.from_bytes(said[at + 5 : at + 13]) for at in range(0, len(said), WARNING_BYTES)]
            assert numbers == list(range(numbers[0], numbers[0] + 60))
            assert protocol.told == ["made"]

    run(check())


def test_so_many_warnings_may_wait_for_a_client_that_asks_for_more(run: Run, tmp_path: Path):
    async def check() -> None:
        context = client_context(TLS12, ciphers=CIPHER)
        context.keylog_filename = str(tmp_path / "keys")
        async with Bench() as bench:
            protocol, peer = await bench.peer(context, is_unix=True)
            hellos = sealed_hellos(peer, (tmp_path / "keys").read_text())
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(1000):
                    await peer.send_raw(next(hellos))
                    await turns(2)
                    assert protocol.transport.get_write_buffer_size() <= OWED_MAX
            await eventually(lambda: len(protocol.told) == 2, "the end")

            assert protocol.told == ["made", "lost: OSError"]

    run(check())


CIPHER = "ECDHE-ECDSA-AES128-GCM-SHA256"
WARNING_BYTES = 5 + 8 + 2 + 16  # head, nonce, alert, tag; RFC 5288 §3


def sealed_hellos(peer: TlsPeer, keylog: str) -> Iterator[bytes]:
    """A ClientHello after the other for a client of TLS 1.2 that has said nothing yet; OpenSSL makes one alone."""
    random_, master = (bytes.fromhex(word) for word in keylog.split()[-2:])
    seed = b"key expansion" + peer.server_random() + random_
    block, a = b"", seed
    while len(block) < 40:
        a = hmac.digest(master, a, "sha256")
        block += hmac.digest(master, a + seed, "sha256")
    key, salt = AESGCM(block[:16]), block[32:36]
    for number in itertools.count(1):
        nonce, hello = number.to_bytes(8), b"\x01\x00\x00\x02\x03\x03"
        sealed = nonce + key.encrypt(salt + nonce, hello, nonce + struct.pack("!BHH", 22, 0x303, len(hello)))
        yield struct.pack("!BHH", 22, 0x303, len(sealed)) + sealed


# --- tunnels


class Session:
    """Of a tunnel that nobody looks at."""

    def backend_ended(self) -> int:
        return 1000

    def ended(self) -> None:
        pass


async def tunnel(bench: Bench, protocol: Protocol) -> tuple[Relay, socket.socket]:
    """What takes over the protocol's transport, and its backend, which gets each write of ours as a packet."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far.setblocking(False)
    near.setblocking(False)
    client, backend = ClientLeg(bench.hub, protocol.transport.fileno()), BackendLeg(bench.hub, near.detach())
    policy = Policy(
        is_binary=True,
        ping_interval_s=0.0,
        ping_timeout_s=0.0,
        max_read_idle_s=0.0,
        max_write_idle_s=0.0,
        close_timeout_s=1.0,
    )
    relay = Relay(bench.hub, policy, client, backend, Session())
    protocol.transport.pause_reading()
    relay.open(protocol.transport)
    backend.own()
    relay.join(bytearray(), False)
    return relay, far


def test_a_stream_is_read_in_larger_pieces_while_its_backend_has_room(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer()
            relay, far = await tunnel(bench, protocol)
            said = random.Random(7).randbytes(512 * 1024)
            talking = asyncio.ensure_future(peer.send(frame(BINARY, said)))
            pieces: list[bytes] = []
            while sum(map(len, pieces)) < len(said):
                pieces.append(await asyncio.get_running_loop().sock_recv(far, 1 << 20))
            await talking

            assert b"".join(pieces) == said
            assert len(pieces[0]) <= SIZES["read_bytes"]
            assert max(map(len, pieces)) > SIZES["read_bytes"]
            relay.abort(1001)
            far.close()

    run(check())


def test_who_has_passed_a_connection_on_says_nothing_more(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer()
            relay, far = await tunnel(bench, protocol)
            protocol.transport.close()
            await peer.send(frame(BINARY, b"hello"))
            assert await asyncio.get_running_loop().sock_recv(far, 100) == b"hello"
            far.send(b"answer")

            assert await peer.recv_exactly(8) == b"\x82\x06answer"
            relay.abort(1001)
            far.close()

    run(check())


# --- ends


@VERSIONS
def test_the_clients_close_notify_is_its_end_and_it_may_still_be_told_something(run: Run, version: ssl.TLSVersion):
    """Data and close_notify in one segment, the connection staying open: nothing more ever comes to wake us."""

    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer(client_context(version))
            await peer.send_raw(peer.sealed(b"last words") + peer.goodbye())
            await eventually(lambda: "eof" in protocol.told, "the end")
            assert protocol.told == ["made", b"last words", "eof"]

            protocol.transport.write(b"still here")
            protocol.transport.write_eof()
            assert await peer.recv_to_end() == b"still here"
            assert not peer.is_cut

    run(check())


@VERSIONS
def test_our_end_is_a_close_notify_and_what_the_client_says_behind_is_read(run: Run, version: ssl.TLSVersion):
    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer(client_context(version))
            protocol.transport.write(b"all of it")
            protocol.transport.write_eof()
            assert await peer.recv_to_end() == b"all of it"
            assert not peer.is_cut
            assert not await peer.listen(), "and the socket is shut down behind it"
            await peer.send(b"and ")
            await arrived(protocol, b"and ")
            await peer.send(b"me")
            await arrived(protocol, b"and me")
            await peer.send_raw(peer.goodbye())
            await eventually(lambda: "eof" in protocol.told, "the end")

    run(check())


def test_our_end_waits_behind_what_the_client_has_not_taken(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer(narrow=True)
            data = random.Random(1).randbytes(1 << 20)
            protocol.transport.write(data)
            protocol.transport.write_eof()

            assert await peer.recv_to_end() == data
            assert not peer.is_cut

    run(check())


@pytest.mark.parametrize("waits", [False, True])
def test_close_says_goodbye_behind_what_waits(run: Run, waits: bool):
    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer(narrow=True)
            data = random.Random(1).randbytes((1 << 20) if waits else 100)
            protocol.transport.write(data)
            protocol.transport.close()

            assert await peer.recv_to_end() == data
            assert not peer.is_cut
            await eventually(lambda: "lost" in protocol.told, "the end")

    run(check())


def test_an_end_without_close_notify_is_an_end(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer()
            await peer.send_raw(peer.sealed(b"whole") + peer.sealed(b"cut")[:-1])
            peer.sock.shutdown(socket.SHUT_WR)
            await eventually(lambda: "eof" in protocol.told, "the end")

            assert protocol.told == ["made", b"whole", "eof"]

    run(check())


def test_a_reset_is_an_error(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer()
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            await eventually(lambda: len(protocol.told) == 2, "the end")

            assert protocol.told == ["made", "lost: ConnectionResetError"]

    run(check())


@pytest.mark.parametrize(
    "garbage", [b"\x17\x03\x03\x00\x20" + bytes(32), b"GET / HTTP/1.1\r\n\r\n", b"\x17\x03\x03\xff\xff", bytes(5)]
)
@VERSIONS
def test_what_is_no_record_ends_the_connection_with_an_alert_behind_what_came_before(
    run: Run, version: ssl.TLSVersion, garbage: bytes
):
    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer(client_context(version))
            await peer.send_raw(peer.sealed(b"before") + garbage)
            await eventually(lambda: len(protocol.told) == 3, "the end")

            assert protocol.told == ["made", b"before", "lost: OSError"]
            with pytest.raises(ssl.SSLError, match="ALERT"):
                await peer.recv_to_end()

    run(check())


# --- handshakes


@pytest.mark.parametrize("size", [1, 60_000])
def test_a_client_of_plain_http_is_told_so_whatever_it_has_said(run: Run, size: int):
    """Unread input would make a reset of the close, and the client would not hear why."""

    async def check() -> None:
        async with Bench() as bench:
            _, far = bench.accept()
            far.setblocking(False)
            loop = asyncio.get_running_loop()
            assert far.send(b"GET / HTTP/1.1\r\nHost: " + b"a" * size) == 22 + size
            said = b""
            while piece := await loop.sock_recv(far, 4096):
                said += piece

            assert said.startswith(b"HTTP/1.1 400 ")
            assert b"https is spoken here" in said
            assert bench.ends == ["the client speaks plain HTTP"]

    run(check())


@pytest.mark.parametrize(
    ("hello", "fault"), [(bytes(100), "wrong version number"), (b"\x16\x03\x01\x00\x02\x01\x00", "unexpected message")]
)
def test_what_is_no_handshake_fails_with_the_reason(run: Run, hello: bytes, fault: str):
    async def check() -> None:
        async with Bench() as bench:
            _, far = bench.accept()
            far.send(hello)
            far.shutdown(socket.SHUT_WR)
            await eventually(lambda: bench.ends != [], "the end")

            assert len(bench.ends) == 1
            assert bench.ends[0] in {fault, "the client left"}

    run(check())


def test_a_client_that_leaves_is_noted_unless_it_said_nothing(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            _, far = bench.accept()
            far.close()
            await eventually(lambda: len(bench.ends) == 1, "the end")
            _, far = bench.accept()
            far.send(b"\x16\x03")
            far.close()
            await eventually(lambda: len(bench.ends) == 2, "the end")

            assert bench.ends == ["", "the client left"]

    run(check())


def test_a_handshake_has_its_time(run: Run):
    async def check() -> None:
        async with Bench(within_s=1.0) as bench:
            _, far = bench.accept()
            begun_s = bench.wheel.now_s
            bench.wheel.advance(begun_s + 0.9)
            assert bench.ends == []
            bench.wheel.advance(begun_s + 1.3)

            assert bench.ends == ["not done within 1 s"]
            assert far.recv(1) == b""

    run(check())


def test_a_handshake_has_so_many_bytes(run: Run):
    async def check() -> None:
        async with Bench(max_bytes=100) as bench:
            _, far = bench.accept()
            peer = TlsPeer(far)
            peer.step()
            await peer.send_raw(peer.said())
            await eventually(lambda: bench.ends != [], "the end")

            assert bench.ends == ["more than 100 bytes of it"]

    run(check())


def test_handshakes_leave_others_their_turn(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            protocol, peer = await bench.peer()
            others = [TlsPeer(bench.accept()[1]) for _ in range(3 * PER_TURN)]
            for other in others:
                other.step()
                await other.send_raw(other.said())
            await peer.send(b"mine")
            turns_taken = 0
            while protocol.data != b"mine":
                bench.hub.wake()
                turns_taken += 1
                answered = sum(bool(select.select([other.sock], [], [], 0)[0]) for other in others)
                assert answered <= turns_taken * PER_TURN
            assert turns_taken == 1

            await asyncio.gather(*(other.shake() for other in others))
            await eventually(lambda: bench.ends == [None] * (1 + len(others)), "every handshake")

    run(check())


def test_who_cannot_go_on_with_a_connection_leaves_no_descriptor(run: Run):
    async def check() -> None:
        faults: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: faults.append(str(told["exception"])))
        async with Bench() as bench:
            bench.fault = ValueError("not today")
            _, far = bench.accept()
            peer = TlsPeer(far)
            await peer.shake()
            with contextlib.suppress(ConnectionResetError):
                assert await peer.recv() == b""

            assert faults == ["not today"]
            assert bench.ends == [None]

    run(check())


def test_a_certificate_that_cannot_be_decoded_is_refused(run: Run, tmp_path: Path):
    """OpenSSL does not look at it, and `ssl` raises UnicodeDecodeError."""

    async def check() -> None:
        ca = authority("ours")
        tls = ServerTls(credentials(client_ca=ca.cert_pem.bytes()))
        context = client_context()
        (tmp_path / "odd.pem").write_bytes(b"".join(undecodable()))
        context.load_cert_chain(tmp_path / "odd.pem")
        async with Bench(tls=tls) as bench:
            _, far = bench.accept()
            peer = TlsPeer(far, context)
            with contextlib.suppress(ssl.SSLError, ConnectionResetError):
                await peer.shake_and_listen()
            await eventually(lambda: bench.ends != [], "the end")

            assert bench.ends[0] is not None
            assert bench.ends[0].startswith("the client's certificate cannot be read: ")

    run(check())


def test_a_descriptor_that_cannot_be_watched_stays_the_callers(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            ended = bench.ends.append
            before = sys.getrefcount(ended)
            with tempfile.TemporaryFile() as file:  # epoll takes none
                with pytest.raises(PermissionError):
                    Handshake(
                        bench.hub,
                        file.fileno(),
                        bench.tls.context,
                        on_end=ended,
                        within_s=1.0,
                        max_bytes=100,
                        per_turn=1,
                    )
                gc.collect()
                assert sys.getrefcount(ended) == before, "nothing is left of it"
                file.write(b"open")

    run(check())


def test_an_old_client_gets_an_alert(run: Run):
    async def check() -> None:
        tls = ServerTls(credentials())
        tls.context.minimum_version = TLS13
        async with Bench(tls=tls) as bench:
            _, far = bench.accept()
            peer = TlsPeer(far, client_context(TLS12))
            with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
                await peer.shake()

            assert bench.ends == ["unsupported protocol"]

    run(check())


@pytest.mark.parametrize("by", ["ours", "theirs", None])
@pytest.mark.parametrize("verify", ["required", "optional"])
@VERSIONS
def test_whose_clients_are_let_in(run: Run, version: ssl.TLSVersion, verify: Any, by: str | None):
    async def check() -> None:
        tls = ServerTls(credentials(client_ca=authority("ours").cert_pem.bytes(), client_verify=verify))
        leaf = None if by is None else issued("client@example.org", by=by, common_name="Ann, client")
        async with Bench(tls=tls) as bench:
            protocol, far = bench.accept()
            peer = TlsPeer(far, client_context(version, leaf=leaf))
            if by == "ours" or (by is None and verify == "optional"):
                await peer.shake()
                await eventually(lambda: "made" in protocol.told, "the transport")
                subject = subject_of(bench.handshakes[0].certificate)
                assert (subject.startswith("CN=Ann\\, client,") and "O=trustme" in subject) if by else subject == ""
            else:
                with pytest.raises(ssl.SSLError, match=r"ALERT|alert"):  # with TLS 1.3 at the first read
                    await peer.shake_and_listen()
                await eventually(lambda: bench.ends != [], "the end")
                wanted = (
                    "peer did not return a certificate" if by is None else "the client's certificate does not pass: "
                )
                assert bench.ends[0] is not None
                assert bench.ends[0].startswith(wanted)

    run(check())


def test_sessions_are_resumed(run: Run):
    async def check() -> None:
        async with Bench() as bench:
            context = client_context()
            protocol, peer = await bench.peer(context)
            protocol.transport.write(b"x")
            await peer.recv_exactly(1)
            protocol, far = bench.accept()
            again = TlsPeer(far, context, session=peer.tls.session)
            await again.shake()

            assert again.tls.session_reused
            await eventually(lambda: "made" in protocol.told, "the transport")

    run(check())


def test_a_hub_with_reads_shorter_than_a_record_takes_no_tls(run: Run):
    async def check() -> None:
        loop = asyncio.get_running_loop()
        hub = Hub(loop, TimerWheel(0.1, 0.0), read_bytes=4096, bulk_bytes=8192, turn_bytes=8192, look_s=0.5)
        with pytest.raises(ValueError, match="at least"):
            Handshake(hub, 0, ServerTls(credentials()).context, on_end=print, within_s=1.0, max_bytes=1, per_turn=1)
        hub.close()

    run(check())


def test_tls_is_made_of_a_servers_context():
    with pytest.raises(ssl.SSLError):
        Tls(client_context())
