"""Certificates and keys: real files with real modes, and what is said about those that are of no use."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.conftest import Run
from tests.wire.sockets import DEADLINE_S, eventually
from wstunnel.errors import ConfigError
from wstunnel.limits import CertificateLimits
from wstunnel.net.tls import ServerTls
from wstunnel.server import certificates
from wstunnel.server.certificates import (
    CertificateWatch,
    Material,
    Reading,
    material_of,
    read_front,
    renew,
    servers_of,
)
from wstunnel.settings import Entrance, Front, Settings, TcpAddress

US = frozenset({0, os.geteuid()})
STRANGER = 4_000_001
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
SOON = CertificateLimits(look_s=0.02)


def read(front: Front, held: Material | None = None) -> Reading:
    return read_front(front, trusted=US, held=held)


def flaws(front: Front, held: Material | None = None) -> list[str]:
    return [str(each) for each in read(front, held).flaws]


# --- reading


def test_a_certificate_and_its_key_are_what_their_files_say(authority: Authority):
    files = authority.files("a")
    reading = read(Front(tls_cert=(files.cert,), tls_key=(files.key,), tls_client_ca=authority.ca))
    assert (reading.flaws, reading.kept) == ((), ())
    assert reading.material.pem == {path: Path(path).read_bytes() for path in (files.cert, files.key, authority.ca)}


def test_a_key_may_stand_in_the_file_of_its_certificate(authority: Authority):
    files = authority.files("a")
    front = Front(tls_cert=(files.both,))
    reading = read(front)
    assert not reading.flaws
    assert servers_of([front], reading.material).keys() == {front}


def test_keys_belong_to_certificates_in_their_order(authority: Authority):
    a, b = authority.files("a", "a.example"), authority.files("b", "b.example")
    assert not flaws(Front(tls_cert=(a.cert, b.both), tls_key=(a.key, b.both)))
    assert len(flaws(Front(tls_cert=(a.cert, b.cert), tls_key=(b.key, a.key)))) == 2


def test_a_key_of_another_certificate_is_told(authority: Authority):
    a, b = authority.files("a"), authority.files("b")
    (told,) = flaws(Front(tls_cert=(a.cert,), tls_key=(b.key,)))
    assert told == f'tls-key: "{b.key}": does not belong to the certificate'


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda files: os.unlink(files.cert), 'tls-cert: "{cert}" cannot be read: no such file or directory'),
        (lambda files: os.truncate(files.cert, 0), 'tls-cert: "{cert}": holds no certificate in PEM'),
        (lambda files: os.truncate(files.key, 0), 'tls-key: "{key}" holds no private key in PEM form'),
        (lambda files: os.truncate(files.cert, 1024 * 1024 + 1), 'tls-cert: "{cert}" has more than 1048576 bytes'),
        (lambda files: os.truncate(files.cert, 200), 'tls-cert: "{cert}": holds no certificate in PEM'),
        (lambda files: (os.unlink(files.key), os.mkfifo(files.key)), 'tls-key: "{key}" is not a file'),
        (lambda files: (os.unlink(files.key), os.mkdir(files.key)), 'tls-key: "{key}" cannot be read: is a directory'),
    ],
)  # fmt: skip
def test_a_file_that_is_of_no_use_is_told(authority: Authority, spoil: Callable[..., object], told: str):
    files = authority.files("a")
    spoil(files)
    (found,) = flaws(Front(tls_cert=(files.cert,), tls_key=(files.key,)))
    assert found.startswith(told.format(cert=files.cert, key=files.key))


def test_a_certificate_alone_is_told_what_it_misses(authority: Authority):
    files = authority.files("a")
    assert flaws(Front(tls_cert=(files.cert,))) == [
        f'tls-cert: "{files.cert}" holds no private key in PEM form; name the file of its key with tls-key'
    ]


def test_an_authority_that_is_none_is_told(authority: Authority, tmp_path):
    files = authority.files("a")
    (tmp_path / "ca").write_text("-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n")
    (told,) = flaws(Front(tls_cert=(files.both,), tls_client_ca=str(tmp_path / "ca")))
    assert told.startswith(f'tls-client-ca: "{tmp_path}/ca": ')


def test_everything_that_is_wrong_is_told_at_once(authority: Authority):
    files = authority.files("a")
    missing = Front(tls_cert=("/nowhere/a", "/nowhere/b"), tls_key=(files.key, files.key), tls_client_ca="/nowhere/c")
    assert [each.partition(" cannot")[0] for each in flaws(missing)] == [
        'tls-cert: "/nowhere/a"',
        'tls-cert: "/nowhere/b"',
        'tls-client-ca: "/nowhere/c"',
    ]


def test_an_encrypted_key_asks_nobody_for_a_pass_phrase(authority: Authority, tmp_path):
    files = authority.files("a")
    locked = tmp_path / "locked"
    locked.touch(0o600)
    argv = ["openssl", "pkey", "-in", files.key, "-aes128", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(argv, check=True)
    (told,) = flaws(Front(tls_cert=(files.cert,), tls_key=(str(locked),)))
    assert told.startswith(f'tls-key: "{locked}": ')


# --- who else may read a key


@pytest.mark.parametrize(("mode", "is_taken"), [(0o600, True), (0o400, True), (0o604, False), (0o660, False)])
def test_a_key_that_others_may_read_is_refused_with_the_remedy(authority: Authority, mode: int, is_taken: bool):
    files = authority.files("a")
    os.chmod(files.key, mode)
    told = flaws(Front(tls_cert=(files.cert,), tls_key=(files.key,)))
    assert bool(told) is not is_taken
    for each in told:
        assert f'"{files.key}" holds a private key that others may read (mode {mode:04o}); chmod 600' in each


def test_a_certificate_with_its_key_is_kept_as_secret_as_a_key(authority: Authority):
    files = authority.files("a")
    os.chmod(files.both, 0o644)
    (told,) = flaws(Front(tls_cert=(files.both,)))
    assert told.startswith(f'tls-cert: "{files.both}" holds a private key that others may read')


@ONLY_ROOT
def test_the_group_of_roots_key_may_read_it_and_that_of_anybody_elses_may_not(authority: Authority):
    files = authority.files("a")
    front = Front(tls_cert=(files.cert,), tls_key=(files.key,))
    os.chmod(files.key, 0o640)
    assert not flaws(front)
    os.chown(files.key, STRANGER, -1)
    assert not read_front(front, trusted=US | {STRANGER}).material.pem.keys() & {files.key}
    os.chmod(files.key, 0o600)
    assert not read_front(front, trusted=US | {STRANGER}).flaws


@ONLY_ROOT
def test_a_key_of_a_stranger_is_refused(authority: Authority):
    files = authority.files("a")
    os.chown(files.key, STRANGER, -1)
    (told,) = flaws(Front(tls_cert=(files.cert,), tls_key=(files.key,)))
    assert f"holds a private key and belongs to user {STRANGER}, who could read it; chown it to root" in told


# --- what may not be read any more


@pytest.fixture
def forbid(monkeypatch) -> Callable[..., None]:
    """Makes files unreadable, for root too."""
    opened = os.open
    forbidden: set[str] = set()

    def checked(path: str, *more: int, **options: int) -> int:
        if path in forbidden:
            raise PermissionError(13, "Permission denied")
        return opened(path, *more, **options)

    monkeypatch.setattr(certificates.os, "open", checked)
    return lambda *paths: forbidden.update(paths)


def test_a_key_that_we_may_not_read_any_more_stays_what_it_was(authority: Authority, forbid):
    files = authority.files("a")
    front = Front(tls_cert=(files.cert,), tls_key=(files.key,))
    held = read(front).material
    forbid(files.key)
    reading = read(front, held)
    assert reading.material == held
    assert not reading.flaws
    (told,) = map(str, reading.kept)
    assert told.startswith(f'tls-key: "{files.key}" cannot be read any more: what it said stays in use')
    assert "let our group read it (chgrp, chmod 640)" in told


def test_a_new_certificate_whose_key_we_may_not_read_waits_for_a_restart(authority: Authority, forbid):
    files = authority.files("a")
    front = Front(tls_cert=(files.cert,), tls_key=(files.key,))
    held = read(front).material
    authority.files("a")
    forbid(files.key)
    reading = read(front, held)
    assert (reading.material, reading.flaws, reading.is_behind) == (held, (), True)
    assert len(reading.kept) == 1


def test_a_key_that_we_could_never_read_is_refused(authority: Authority, forbid):
    files = authority.files("a")
    forbid(files.key)
    (told,) = flaws(Front(tls_cert=(files.cert,), tls_key=(files.key,)), Material())
    assert told.startswith(f'tls-key: "{files.key}" cannot be read: permission denied; start as root, or let our group')


# --- what is handed on


def test_no_text_shows_a_key(authority: Authority):
    files = authority.files("a")
    front = Front(tls_cert=(files.both,))
    reading = read(front)
    credentials = reading.material.credentials(front)
    for shown in (repr(reading), repr(credentials), str(credentials), repr(reading.material)):
        assert "PRIVATE" not in shown


def test_material_is_read_as_it_was_written(authority: Authority):
    files = authority.files("a")
    material = Material({"/a \xe9": b"\xff\x00PEM", files.key: Path(files.key).read_bytes()})
    with material.write() as file:
        fd = os.dup(file.fileno())
    assert not os.get_inheritable(fd)
    assert Material.read(fd) == material
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert Material.adopt(material.export()) == material


def test_a_front_in_the_clear_has_no_credentials():
    assert Material().credentials(Front()) is None
    assert servers_of([Front(), Front(h2c=True)], Material()) == {}


def test_the_files_of_all_listeners_are_read(authority: Authority):
    a, b = authority.files("a"), authority.files("b")
    settings = Settings(
        tls_cert=(a.both,),
        listeners=(Entrance(listen=(TcpAddress("127.0.0.1", 0),), tls_cert=(b.cert,), tls_key=(b.key,)),),
    )
    assert material_of(settings).pem.keys() == {a.both, b.cert, b.key}
    os.unlink(a.both)
    os.unlink(b.cert)
    with pytest.raises(ConfigError) as caught:
        material_of(settings)
    assert [each.partition(" cannot")[0] for each in caught.value.problems] == [
        f'tls-cert: "{a.both}"',
        f'tls-cert: "{b.cert}"',
    ]


def test_new_material_that_is_of_no_use_is_logged_and_changes_nothing(authority: Authority, caplog, monkeypatch):
    files = authority.files("a")
    front = Front(tls_cert=(files.both,))
    servers = servers_of([front], read(front).material)
    renew(servers, Material({files.both: b"no certificate"}))
    assert f'"{files.both}": the certificate that was there before stays in use: ' in caplog.text

    asked: list[object] = []
    monkeypatch.setattr(ServerTls, "renew", lambda self, credentials: asked.append(credentials))
    renew(servers, Material({"/elsewhere": b""}))
    assert not asked


# --- watching


class Watched:
    """A watch over one front, and what it has told."""

    def __init__(self, front: Front) -> None:
        self.told: list[Material] = []
        self.watch = CertificateWatch([front], read(front).material, SOON, self.told.append)

    async def looked(self, times: int = 4) -> None:
        """Wait until it has looked so often."""
        for _ in range(times):
            before = self.watch._timer
            await eventually(lambda before=before: self.watch._timer is not before, "it looks")  # type: ignore[misc]

    async def says(self, number: int) -> Material:
        await eventually(lambda: len(self.told) == number, f"it has told {number} times")
        return self.told[-1]


def test_a_new_certificate_is_told_once(run: Run, authority: Authority, caplog):
    caplog.set_level(logging.INFO)

    async def story() -> None:
        files = authority.files("a")
        watched = Watched(Front(tls_cert=(files.both,)))
        await watched.looked()
        assert not watched.told
        authority.files("a")
        assert (await watched.says(1)).pem == {files.both: Path(files.both).read_bytes()}
        os.utime(files.both)
        await watched.looked()
        assert len(watched.told) == 1
        watched.watch.stop()

    run(story(), timeout_s=DEADLINE_S)
    assert caplog.text.count("the certificates have changed: new connections get the new ones") == 1


def test_a_bad_certificate_is_told_once_and_the_old_one_stays(run: Run, authority: Authority, caplog):
    async def story() -> None:
        files = authority.files("a")
        good = Path(files.both).read_bytes()
        watched = Watched(Front(tls_cert=(files.both,)))
        await watched.looked()
        Path(files.both).write_bytes(good[: len(good) // 2])
        await eventually(lambda: "stays in use" in caplog.text, "it is logged")
        await watched.looked()
        assert not watched.told
        authority.files("a")
        assert (await watched.says(1)).pem[files.both] != good
        watched.watch.stop()

    run(story(), timeout_s=DEADLINE_S)
    (record,) = [each for each in caplog.records if "stays in use" in each.message]
    assert record.levelno == logging.ERROR


def test_a_key_that_cannot_be_read_is_a_warning_at_the_start_and_an_error_when_it_changes(
    run: Run, authority: Authority, caplog, forbid
):
    async def story() -> None:
        files = authority.files("a")
        watched = Watched(Front(tls_cert=(files.cert,), tls_key=(files.key,)))
        forbid(files.key)
        await eventually(lambda: len(caplog.records) == 1, "it warns")
        await watched.looked()
        os.utime(files.key)
        await eventually(lambda: len(caplog.records) == 2, "it tells of the change")
        await watched.looked()
        assert not watched.told
        watched.watch.stop()

    run(story(), timeout_s=DEADLINE_S)
    assert [each.levelno for each in caplog.records] == [logging.WARNING, logging.ERROR]


def test_a_new_certificate_whose_key_cannot_be_read_is_an_error_from_the_start(
    run: Run, authority: Authority, caplog, forbid
):
    async def story() -> None:
        files = authority.files("a")
        watched = Watched(Front(tls_cert=(files.cert,), tls_key=(files.key,)))
        authority.files("a")
        forbid(files.key)
        await eventually(lambda: len(caplog.records) == 1, "it is told")
        watched.watch.stop()

    run(story(), timeout_s=DEADLINE_S)
    assert [each.levelno for each in caplog.records] == [logging.ERROR]


def test_a_file_that_is_being_written_is_left_alone(run: Run, authority: Authority, monkeypatch):
    async def story() -> None:
        files = authority.files("a")
        watched = Watched(Front(tls_cert=(files.both,)))
        await watched.looked()
        signs = iter(range(10**9))
        monkeypatch.setattr(certificates, "_sign", lambda path: next(signs))
        authority.files("a")
        await watched.looked(8)
        assert not watched.told
        monkeypatch.undo()
        await watched.says(1)
        watched.watch.stop()

    run(story(), timeout_s=DEADLINE_S)


def test_nothing_is_looked_at_where_there_is_no_tls(run: Run):
    async def story() -> None:
        watch = CertificateWatch([Front()], Material(), SOON, lambda material: None)
        assert watch._timer is None
        watch.stop()
        await asyncio.sleep(0)

    run(story())
