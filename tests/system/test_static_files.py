"""Static files as a client gets them: over a real connection, from the whole server."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from tests.traversal import traversals
from wstunnel.limits import HeadLimits, Limits
from wstunnel.server.tunnel import Tunnel
from wstunnel.settings import Settings, TcpAddress

SECRET = b"the secret beside the root"
MIB = 1024 * 1024


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "www"
    (root / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "www-secret").mkdir()
    for secret in (tmp_path / "secret.txt", tmp_path / "www-secret" / "secret.txt", root / ".env"):
        secret.write_bytes(SECRET)
    (root / "a.txt").write_bytes(b"0123456789")
    (root / "big.bin").write_bytes(os.urandom(4 * MIB))
    (root / "ünï.txt").write_bytes(b"found")
    links = {"link.txt": "../secret.txt", "relative.txt": "../secret.txt", "out": "..", "sub/up": "../.."}
    for link, target in {**links, "sub/hop": "../out", "slash": "/", "proc": "/proc/self/cwd"}.items():
        (root / link).symlink_to(target)
    return root


class Client:
    """One connection that is kept, and what comes over it."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def ask(self, target, *fields, method="GET"):
        """The status, the fields and the body of one answer."""
        lines = (f"{method} {target} HTTP/1.1", "Host: localhost", *fields, "", "")
        self.writer.write("\r\n".join(lines).encode("utf-8"))
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *received = head.rstrip("\r\n").split("\r\n")
        found = {name.lower(): value.strip() for name, value in (field.split(":", 1) for field in received)}
        has_body = method != "HEAD" and " 304 " not in status
        body = await self.reader.readexactly(int(found.get("content-length", 0))) if has_body else b""
        return int(status.split()[1]), found, body

    async def close(self):
        self.writer.close()
        await self.writer.wait_closed()


async def connect(tunnel, **options):
    (address,) = tunnel.addresses
    return Client(*await asyncio.open_connection(address.host, address.port, **options))


def serving(root):
    limits = Limits(head=HeadLimits(linger_s=0.2))
    return Tunnel(Settings(listen=(TcpAddress("127.0.0.1", 0),), document_root=str(root), limits=limits))


def test_one_connection_carries_every_kind_of_answer(run, root):
    async def scenario():
        async with serving(root) as tunnel:
            client = await connect(tunnel)
            status, fields, body = await client.ask("/a.txt")
            assert (status, body, fields["content-length"]) == (200, b"0123456789", "10")
            assert (await client.ask("/a.txt", method="HEAD"))[1]["content-length"] == "10"
            assert (await client.ask("/a.txt", f"If-None-Match: {fields['etag']}"))[0] == 304
            assert (await client.ask("/a.txt", "Range: bytes=2-4"))[::2] == (206, b"234")
            assert (await client.ask("/a.txt", "Range: bytes=10-"))[1]["content-range"] == "bytes */10"
            assert (await client.ask("/sub?x=%20"))[1]["location"] == "/sub/?x=%20"
            assert (await client.ask("/sub/"))[0] == 404
            assert (await client.ask("/%C3%BCn%c3%af.txt"))[2] == b"found"
            assert (await client.ask("/big.bin"))[2] == (root / "big.bin").read_bytes()
            assert (await client.ask("/sub/../a.txt"))[2] == b"0123456789"
            status, fields, _ = await client.ask("/a.txt", method="DELETE")
            assert (status, fields["allow"]) == (405, "GET, HEAD")
            await client.close()

    run(scenario())


def test_a_file_that_shrinks_on_its_way_ends_the_connection_after_right_bytes_only(run, root, caplog):
    whole = (root / "big.bin").read_bytes() * 4
    (root / "big.bin").write_bytes(whole)

    async def scenario():
        async with serving(root) as tunnel:
            client = await connect(tunnel, limit=4096)
            client.writer.write(b"GET /big.bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await client.reader.readuntil(b"\r\n\r\n")
            os.truncate(root / "big.bin", MIB)
            body = bytearray()
            with contextlib.suppress(ConnectionResetError):
                while piece := await client.reader.read(65536):
                    body += piece
            with contextlib.suppress(ConnectionResetError):
                await client.close()
            return bytes(body)

    body = run(scenario())
    assert len(body) < len(whole)
    assert whole.startswith(body)
    assert "while it was sent" in caplog.text


def test_no_target_brings_a_secret_over_the_wire(root, tmp_path):
    """Whatever the server makes of a target: most are 404, some 400, and a climb back into the root may find a file."""
    targets = [*traversals(), f"/slash{tmp_path}/secret.txt", f"/%2e%2e/%2e%2e{tmp_path}/secret.txt"]
    assert len(targets) >= 300

    async def answer_to(tunnel, target):
        client = await connect(tunnel)
        client.writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = await client.reader.read()
        await client.close()
        return answer

    async def scenario():
        statuses = set()
        async with serving(root) as tunnel:
            for target in targets:
                answer = await answer_to(tunnel, target)
                assert SECRET not in answer, target
                assert answer.startswith(b"HTTP/1.1 "), target
                statuses.add(answer.split()[1])
        return statuses

    assert asyncio.run(scenario()) <= {b"301", b"400", b"404"}
