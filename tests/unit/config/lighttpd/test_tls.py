"""ssl.* of a lighttpd.conf: which listener is served with what, as lighttpd 1.4.69 does where nothing else is said."""

from __future__ import annotations

import os

import pytest

from tests.authority import Authority, Files
from tests.unit.config.lighttpd.test_convert import Write, problems_of, settings_of, settled, warnings_of, write
from wstunnel.config.lighttpd.convert import read_top
from wstunnel.settings import Entrance, Front, TcpAddress

__all__ = ["write"]

MAIN, OTHER, THIRD = (TcpAddress("127.0.0.1", port) for port in (8001, 8002, 8003))
TOP = 'server.document-root = "www"\nserver.bind = "127.0.0.1"\nserver.port = 8001\n'


@pytest.fixture
def a(authority: Authority) -> Files:
    return authority.files("a", "a.example")


@pytest.fixture
def b(authority: Authority) -> Files:
    return authority.files("b", "b.example")


def socket_block(address: TcpAddress, said: str) -> str:
    return f'$SERVER["socket"] == "{address}" {{\n{said}\n}}\n'


def fronts(path: str) -> dict[TcpAddress, Front]:
    found = settings_of(path)
    return dict(zip(found.addresses, found.fronts, strict=True))


def both(files: Files) -> Front:
    return Front(tls_cert=(files.both,))


def test_a_certificate_and_its_key_in_one_file_or_in_two(write: Write, a: Files):
    one = write(f'{TOP}ssl.engine = "enable"\nssl.pemfile = "{a.both}"\n')
    assert fronts(one) == {MAIN: both(a)}
    two = write(f'{TOP}ssl.engine = "enable"\nssl.pemfile = "{a.cert}"\nssl.privkey = "{os.path.relpath(a.key)}"\n')
    assert fronts(two) == {MAIN: Front(tls_cert=(a.cert,), tls_key=(a.key,))}
    assert warnings_of(two) == []


def test_what_is_said_of_all_holds_for_every_socket_that_does_not_say_otherwise(write: Write, a: Files, b: Files):
    path = write(
        f'{TOP}ssl.engine = "enable"\nssl.pemfile = "{a.both}"\n'
        + socket_block(OTHER, "")
        + socket_block(THIRD, f'ssl.pemfile = "{b.cert}"\nssl.privkey = "{b.key}"')
        + socket_block(TcpAddress("127.0.0.1", 8004), 'ssl.engine = "disable"')
    )
    assert fronts(path) == {
        MAIN: both(a),
        OTHER: both(a),
        THIRD: Front(tls_cert=(b.cert,), tls_key=(b.key,)),
        TcpAddress("127.0.0.1", 8004): Front(),
    }
    found = settled(path).settings
    assert found.listen == (MAIN, OTHER)
    assert found.listeners == (
        Entrance(listen=(THIRD,), tls_cert=(b.cert,), tls_key=(b.key,)),
        Entrance(listen=(TcpAddress("127.0.0.1", 8004),)),
    )


def test_a_certificate_for_all_serves_nobody_without_an_engine(write: Write, a: Files):
    path = write(f'{TOP}ssl.pemfile = "{a.both}"\n' + socket_block(OTHER, 'ssl.engine = "enable"'))
    assert fronts(path) == {MAIN: Front(), OTHER: both(a)}
    assert warnings_of(path) == []
    alone = write(f'{TOP}ssl.pemfile = "{a.both}"\n')
    (told,) = warnings_of(alone)
    assert told == "lighttpd.conf:4: ssl.pemfile: without effect: it is for no listener with ssl.engine"


def test_the_socket_of_the_server_itself_is_served_as_its_block_says(write: Write, a: Files):
    path = write(TOP + socket_block(MAIN, f'ssl.engine = "enable"\nssl.pemfile = "{a.both}"'))
    assert fronts(path) == {MAIN: both(a)}


def test_hosts_have_certificates_of_their_own(write: Write, authority: Authority, a: Files, b: Files):
    c = authority.files("c", "c.example")
    path = write(
        f'{TOP}ssl.engine = "enable"\nssl.pemfile = "{a.both}"\n'
        f'$HTTP["host"] == "b.example" {{\nssl.pemfile = "{b.cert}"\nssl.privkey = "{b.key}"\n}}\n'
        + socket_block(OTHER, f'$HTTP["host"] =~ "c" {{ ssl.pemfile = "{c.both}" }}')
    )
    assert fronts(path) == {
        MAIN: Front(tls_cert=(a.both, b.cert), tls_key=(a.both, b.key)),
        OTHER: Front(tls_cert=(a.both, b.cert, c.both), tls_key=(a.both, b.key, c.both)),
    }
    assert warnings_of(path) == []


def test_clients_are_known_by_the_certificates_of_an_authority(write: Write, authority: Authority, a: Files):
    said = f'{TOP}ssl.engine = "enable"\nssl.pemfile = "{a.both}"\nssl.verifyclient.activate = "enable"\n'
    required = Front(tls_cert=(a.both,), tls_client_ca=authority.ca)
    optional = Front(tls_cert=(a.both,), tls_client_ca=authority.ca, tls_client_verify="optional")
    assert fronts(write(f'{said}ssl.ca-file = "{authority.ca}"')) == {MAIN: required}
    assert fronts(write(f'{said}ssl.verifyclient.ca-file = "{authority.ca}"')) == {MAIN: required}
    path = write(f'{said}ssl.ca-file = "{authority.ca}"\nssl.verifyclient.enforce = "disable"')
    assert fronts(path) == {MAIN: optional}
    assert warnings_of(path) == []
    assert problems_of(write(said)) == [
        "lighttpd.conf:6: ssl.verifyclient.activate: needs an ssl.verifyclient.ca-file, or an ssl.ca-file"
    ]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('ssl.ca-file = "{ca}"', "ssl.ca-file: its certificates are not sent to clients; put them into the pemfile"),
        ("ssl.verifyclient.depth = 3", "ssl.verifyclient.depth: without effect"),
        ('ssl.verifyclient.exportcert = "enable"', "ssl.verifyclient.exportcert: not done here"),
        ('ssl.verifyclient.username = "SSL_CLIENT_S_DN"', "ssl.verifyclient.username: not done here: there is no REMO"),
        ('ssl.openssl.ssl-conf-cmd = ("MinProtocol" => "TLSv1.3")', 'ssl.openssl.ssl-conf-cmd["MinProtocol"]: "TLS'),
        ('ssl.openssl.ssl-conf-cmd = ("Curves" => "x")', 'ssl.openssl.ssl-conf-cmd["Curves"]: not done here; the ciph'),
        ('ssl.stapling-file = "x"', "ssl.stapling-file: not done here"),
        ('ssl.honor-cipher-order = "enable"', "ssl.honor-cipher-order: not done here"),
        ('server.feature-flags = ("server.h2proto" => "disable")', 'server.feature-flags["server.h2proto"]: without'),
        ('$HTTP["host"] == "b" { ssl.privkey = "x" }', "ssl.privkey: without effect: there is no ssl.pemfile"),
        (
            '$HTTP["host"] == "b" { ssl.verifyclient.activate = "enable" }',
            "ssl.verifyclient.activate: not done by host: what the listener asks of its clients, it asks of all",
        ),
        ('$HTTP["url"] == "/b" { ssl.pemfile = "x" }', "ssl.pemfile: without effect: it is for no listener with"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_warned_of(write: Write, authority: Authority, a: Files, said: str, told: str):
    path = write(f'{TOP}ssl.engine = "enable"\nssl.pemfile = "{a.both}"\n{said.replace("{ca}", authority.ca)}')
    (warning,) = warnings_of(path)
    assert warning.startswith(f"lighttpd.conf:6: {told}")


def test_what_is_so_anyway_is_not_warned_of(write: Write, a: Files):
    path = write(
        f'{TOP}ssl.engine = "enable"\nssl.pemfile = "{a.both}"\nserver.modules += ("mod_openssl")\n'
        'ssl.openssl.ssl-conf-cmd = ("MinProtocol" => "TLSv1.2")\n'
        'server.feature-flags = ("server.h2proto" => "enable", "server.h2c" => "disable")\n'
    )
    assert warnings_of(path) == []


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ssl.pemfile = 5", "lighttpd.conf:5: ssl.pemfile: needs a string, got 5"),
        ('ssl.pemfile = "/none"', 'lighttpd.conf:5: ssl.pemfile: "/none" cannot be read: no such file or directory'),
        ('ssl.pemfile = "{cert}"', 'lighttpd.conf:5: ssl.pemfile: "{cert}" holds no private key in PEM form'),
        ('ssl.pemfile = "{cert}"\nssl.privkey = "/none"', 'lighttpd.conf:6: ssl.privkey: "/none" cannot be read'),
        ('ssl.pemfile = "{both}"\nssl.openssl.ssl-conf-cmd = 1', "lighttpd.conf:6: ssl.openssl.ssl-conf-cmd: needs"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_an_error_in_its_line(write: Write, a: Files, said: str, told: str):
    names = {"cert": a.cert, "both": a.both}
    path = write(f'{TOP}ssl.engine = "enable"\n{said.format(**names)}')
    assert problems_of(path)[0].startswith(told.format(**names))


def test_http_2_in_the_clear_is_for_listeners_without_tls(write: Write, a: Files):
    path = write(
        f'{TOP}server.feature-flags = ("server.h2c" => "enable")\n'
        + socket_block(OTHER, f'ssl.engine = "enable"\nssl.pemfile = "{a.both}"')
    )
    assert fronts(path) == {MAIN: Front(h2c=True), OTHER: both(a)}
    assert warnings_of(path) == []


def test_who_asks_for_the_listeners_gets_all_of_them_and_no_more(write: Write):
    path = write(TOP + socket_block(OTHER, 'ssl.engine = "enable"\nssl.pemfile = "/none"'))
    draft = read_top(path, ("listen",))
    assert [each.values for each in (draft, *draft.listeners)] == [{"listen": (MAIN,)}, {"listen": (OTHER,)}]
