"""Certificates: which one a client gets, whom it names, and what is said of one that cannot be used."""

from __future__ import annotations

import contextlib
import datetime
import pickle
import ssl

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from tests.wire.tls import authority, client_context, credentials, issued, pem, undecodable
from wstunnel.errors import ConfigError
from wstunnel.net.tls import Credentials, ServerTls, subject_of


def served(tls: ServerTls, name: str | None, *, alpn: list[str] | None = None) -> tuple[set[str], str | None]:
    """The names in the certificate that a client gets who asks for `name`, and the protocol."""
    context = client_context()
    context.check_hostname = False
    context.set_alpn_protocols(alpn or [])
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = context.wrap_bio(back, there, server_hostname=name)
    far = tls.context.wrap_bio(there, back, server_side=True)
    for _ in range(2):
        for side in (near, far):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    certificate = near.getpeercert()
    assert certificate is not None
    assert near.selected_alpn_protocol() == far.selected_alpn_protocol()
    return {str(value) for _, value in certificate["subjectAltName"]}, near.selected_alpn_protocol()


def problems(given: Credentials) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        ServerTls(given)
    return raised.value.problems


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("a.example.org", "a.example.org"),
        ("B.Example.org", "b.example.org"),
        ("c.example.org", "*.example.org"),
        ("d.c.example.org", "a.example.org"),
        ("example.org", "a.example.org"),
        ("elsewhere", "a.example.org"),
        (None, "a.example.org"),
    ],
)
def test_the_certificate_is_that_of_the_name_asked_for_else_the_first(asked: str | None, got: str):
    tls = ServerTls(
        credentials(issued("a.example.org"), issued("b.example.org", "bb.example.org"), issued("*.example.org"))
    )

    assert got in served(tls, asked)[0]


def test_a_certificate_without_alternative_names_serves_its_common_name():
    tls = ServerTls(credentials(issued("a.example.org"), issued("x@b.example.org", common_name="b.example.org")))

    assert served(tls, "b.example.org")[0] == {"x@b.example.org"}


@pytest.mark.parametrize("name", ["a.example.org", "b.example.org"])
def test_protocols_are_offered_whatever_the_certificate(name: str):
    given = credentials(issued("a.example.org"), issued("b.example.org"))

    assert served(ServerTls(given), name, alpn=["http/1.1", "h2"])[1] == "h2"
    assert served(ServerTls(given), name, alpn=["http/1.1"])[1] == "http/1.1"
    assert served(ServerTls(given), name)[1] is None


def test_renewing_serves_the_new_and_a_bad_one_changes_nothing():
    tls = ServerTls(credentials(issued("a.example.org")))
    tls.renew(credentials(issued("b.example.org")))
    with pytest.raises(ConfigError):
        tls.renew(Credentials(((b"", b""),)))

    assert served(tls, "a.example.org")[0] == {"b.example.org"}


def test_today_s_defaults():
    context = ServerTls(
        credentials(),
    ).context

    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert ssl.OP_NO_RENEGOTIATION in context.options
    assert ssl.OP_NO_COMPRESSION in context.options
    assert context.verify_mode == ssl.CERT_NONE


def test_credentials_travel_and_their_keys_are_not_shown():
    given = credentials()

    assert pickle.loads(pickle.dumps(given)) == given
    assert b"PRIVATE" in given.certificates[0][1]
    assert "PRIVATE" not in repr(given)


# --- what cannot be used


def test_a_key_of_another_certificate():
    given = Credentials(((pem(issued("a.example.org"))[0], pem(issued("b.example.org"))[1]),))

    assert problems(given) == ("the key of certificate 1: does not belong to the certificate",)


def test_what_is_no_certificate_and_no_key_each_by_the_operators_name():
    chain, key = pem(issued("a.example.org"))
    names = tuple((f"/etc/{n}.pem", f"/etc/{n}.key") for n in range(4))
    given = Credentials(((b"", key), (key, key), (chain, b"nothing"), (chain, chain)), names=names)

    found = problems(given)
    assert [each.partition(" (")[0] for each in found] == [
        "/etc/0.pem: holds no certificate in PEM",
        "/etc/1.pem: holds no certificate in PEM",
        "/etc/2.key: is no private key in PEM",
        "/etc/3.key: is no private key in PEM",
    ]


def test_a_certificate_whose_names_cannot_be_decoded():
    (problem,) = problems(Credentials((undecodable(),)))

    assert problem.startswith("certificate 1: the names in it cannot be read: ")


def test_a_key_with_a_passphrase_is_not_asked_for():
    chain, key = pem(issued("a.example.org"))
    locked = serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )

    (problem,) = problems(Credentials(((chain, locked),)))
    assert problem.startswith("the key of certificate 1: has a passphrase")


@pytest.mark.parametrize(("days", "why"), [(-1, "has expired, on "), (None, "is not valid before "), (9, "")])
def test_a_certificate_outside_its_time_is_served_and_told_of(days: int | None, why: str):
    """It may be the machine's clock; and what else is served must not end with it."""
    now = datetime.datetime.now(datetime.UTC)
    times = (
        {"not_after": now + datetime.timedelta(days=days)}
        if days is not None
        else {"not_before": now + datetime.timedelta(days=2)}
    )
    leaf = trustme.CA().issue_cert("a.example.org", **times)

    tls = ServerTls(credentials(leaf))

    assert [text[: len(f"certificate 1 {why}")] for text in tls.stale] == ([f"certificate 1 {why}"] if why else [])
    assert tls.context.cert_store_stats()


@pytest.mark.parametrize("ca", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_client_ca_that_is_none(ca: bytes):
    (problem,) = problems(credentials(client_ca=ca, client_ca_name="/etc/ca.pem"))

    assert problem.startswith("/etc/ca.pem: holds no certificates in PEM")


@pytest.mark.parametrize(("verify", "mode"), [("required", ssl.CERT_REQUIRED), ("optional", ssl.CERT_OPTIONAL)])
def test_a_client_ca_is_asked_of_every_client(verify: str, mode: ssl.VerifyMode):
    given = credentials(client_ca=authority("ours").cert_pem.bytes(), client_verify=verify)

    assert ServerTls(given).context.verify_mode == mode


# --- subjects


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ([], ""),
        ([[("commonName", "Ann")]], "CN=Ann"),
        ([[("countryName", "CH")], [("organizationName", "Acme")], [("commonName", "Ann")]], "CN=Ann,O=Acme,C=CH"),
        ([[("commonName", "Ann"), ("userId", "7")]], "CN=Ann+UID=7"),
        ([[("emailAddress", "a@b.c")]], "emailAddress=a@b.c"),
        ([[("commonName", 'a,b+c"d\\e<f>g;h=i')]], 'CN=a\\,b\\+c\\"d\\\\e\\<f\\>g\\;h=i'),
        ([[("commonName", " #a ")]], "CN=\\ #a\\ "),
        ([[("commonName", "#a")]], "CN=\\#a"),
        ([[("commonName", " ")]], "CN=\\ "),
        ([[("commonName", "")]], "CN="),
        ([[("commonName", "J\u00f6rg\r\n\x00\x7f")]], "CN=J\\C3\\B6rg\\0D\\0A\\00\\7F"),
    ],
)
def test_a_subject_is_written_as_rfc_4514_has_it_in_ascii(subject: list[list[tuple[str, str]]], text: str):
    assert subject_of({"subject": tuple(tuple(part) for part in subject)}) == text


def test_no_certificate_names_nobody():
    assert subject_of(None) == subject_of({}) == ""
