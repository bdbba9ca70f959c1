"""Which Origin passes which list: one row each. The mistakes of others that these rows repeat are named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wstunnel.errors import PeerError
from wstunnel.proto.origin import OriginPolicy
from wstunnel.proto.request import Request

# origin, Host, scheme of the connection to us, is it allowed?
SAME_ORIGIN = [
    (None, "a.example", "http", True),  # not a browser
    ("http://a.example", "a.example", "http", True),
    ("http://a.example:80", "a.example", "http", True),
    ("http://a.example", "a.example:80", "http", True),
    ("http://a.example:8081", "a.example:8081", "http", True),
    ("http://A.Example", "a.eXAMPLE", "http", True),
    ("HTTP://a.example", "a.example", "http", True),
    ("https://a.example", "a.example", "http", True),  # TLS ends at a proxy in front of us
    ("https://a.example", "a.example:443", "http", True),
    ("https://a.example:443", "a.example", "http", True),
    ("https://a.example:8443", "a.example:8443", "http", True),
    ("https://a.example", "a.example", "https", True),
    ("http://127.0.0.1:8081", "127.0.0.1:8081", "http", True),
    ("http://localhost:8081", "localhost:8081", "http", True),
    ("http://[::1]:8081", "[::1]:8081", "http", True),
    ("http://[::1]", "[0:0:0:0:0:0:0:1]", "http", True),
    ("http://[2001:DB8::1]", "[2001:db8::1]", "http", True),
    ("http://xn--bcher-kva.example", "xn--bcher-kva.example", "http", True),
    ("http://a.example", "a.example:", "http", True),
    ("http://a.example", "a.example", "https", False),  # a forged http page must not get at a TLS service
    ("http://a.example:8081", "a.example", "http", False),
    ("http://a.example", "a.example:8081", "http", False),
    ("http://a.example:8081", "a.example:8082", "http", False),
    ("https://a.example", "a.example:80", "http", False),
    ("http://a.example:443", "a.example", "http", False),
    ("http://b.example", "a.example", "http", False),
    ("http://x.a.example", "a.example", "http", False),
    ("http://example", "a.example", "http", False),
    ("http://a.example.evil.example", "a.example", "http", False),  # prefix trap
    ("http://evila.example", "a.example", "http", False),  # suffix trap
    ("http://evil.example/a.example", "a.example", "http", False),
    ("http://evil.example#a.example", "a.example", "http", False),
    ("http://evil.example?a.example", "a.example", "http", False),
    ("http://a.example@evil.example", "a.example", "http", False),
    ("http://evil.example@a.example", "a.example", "http", False),  # userinfo is in no Origin
    ("http://user:pass@a.example", "a.example", "http", False),
    ("http://a.example/", "a.example", "http", False),  # nor is a path
    ("http://a.example ", "a.example", "http", False),
    ("http://a.example\n", "a.example", "http", False),
    ("http://a.example http://a.example", "a.example", "http", False),  # RFC 6454's list: no browser sends it
    ("http://a.example, http://a.example", "a.example", "http", False),
    ("http://b.example http://a.example", "a.example", "http", False),
    ("http://a.example\\.evil.example", "a.example", "http", False),
    ("http://a..example", "a..example", "http", False),
    ("http://.example", ".example", "http", False),
    ("http://a.example.", "a.example", "http", False),  # another name for the same host, another origin to browsers
    ("http://a.example:", "a.example", "http", False),
    ("http://a.example:0x50", "a.example", "http", False),
    ("http://a.example:65536", "a.example:65536", "http", False),
    ("http://a.example:000080", "a.example", "http", False),
    ("http://b\xfccher.example", "b\xfccher.example", "http", False),  # browsers send punycode
    ("http://[::1", "[::1", "http", False),
    ("http://[:::1]", "[:::1]", "http", False),
    ("http://", "a.example", "http", False),
    ("://a.example", "a.example", "http", False),
    ("//a.example", "a.example", "http", False),
    ("a.example", "a.example", "http", False),
    ("null", "a.example", "http", False),  # sandboxed frames, file://, data:
    ("null", "null", "http", False),
    ("", "a.example", "http", False),
    ("file://", "a.example", "http", False),
    ("file://a.example", "a.example", "http", False),
    ("ws://a.example", "a.example", "http", False),  # a page is never of this scheme
    ("chrome-extension://a.example", "a.example", "http", False),
    ("http://a.example", "", "http", False),
    ("http://a.example", "a.example/b", "http", False),
]

# entry, origin, is it allowed? The Host is a stranger's throughout: it has no say where there is a list.
LISTED = [
    ("https://a.example", None, True),
    ("https://a.example", "https://a.example", True),
    ("https://a.example", "https://a.example:443", True),
    ("https://a.example:443", "https://a.example", True),
    ("HTTPS://A.Example", "https://a.example", True),
    ("https://a.example:8443", "https://a.example:8443", True),
    ("http://a.example:80", "http://a.example", True),
    ("https://[2001:db8:0::1]:8443", "https://[2001:db8::1]:8443", True),
    ("https://b\xfccher.example", "https://xn--bcher-kva.example", True),
    ("https://B\xdcCHER.example:8443", "https://xn--bcher-kva.example:8443", True),
    ("https://X.b\xfccher.example", "https://x.xn--bcher-kva.example", True),
    ("chrome-extension://abcdef", "chrome-extension://abcdef", True),
    ("https://host.example", "https://host.example", True),
    ("https://a.example", "http://a.example", False),
    ("http://a.example", "https://a.example", False),
    ("https://a.example", "https://a.example:8443", False),
    ("https://a.example:8443", "https://a.example", False),
    ("https://a.example", "https://x.a.example", False),
    ("http://good.test", "http://x.http://good.test", False),  # lighttpd lets this pass
    ("https://a.example", "https://a.example.evil.example", False),
    ("https://a.example", "https://host.example", False),  # the same origin as Host is no longer enough
    ("https://a.example", "null", False),
    ("https://a.example", "", False),
    ("a.example", "http://a.example", True),  # lighttpd refuses this one
    ("a.example", "https://a.example", True),
    ("a.example", "https://a.example:8443", True),
    ("a.example", "chrome-extension://a.example", True),
    ("A.EXAMPLE", "https://a.example", True),
    ("b\xfccher.example", "https://xn--bcher-kva.example", True),
    ("[::1]", "http://[::1]:3000", True),
    ("127.0.0.1", "http://127.0.0.1:3000", True),
    ("localhost", "http://localhost:3000", True),
    ("a.example", "http://x.a.example", False),  # lighttpd lets this pass
    ("a.example", "http://nota.example", False),
    ("a.example", "http://a.example.evil.example", False),
    ("a.example", "http://a.example@evil.example", False),
    ("a.example", "http://evil.example:80@a.example", False),
    ("a.example", "http://evil.example/http://a.example", False),
    ("a.example", "a.example", False),
    ("a.example", "null", False),
    ("*.a.example", "https://x.a.example", True),
    ("*.a.example", "http://x.a.example:8080", True),
    ("*.a.example", "http://x.y.a.example", True),
    ("*.A.example", "http://X.a.Example", True),
    ("*.b\xfccher.example", "https://x.xn--bcher-kva.example", True),
    ("*.a.example", "https://a.example", False),
    ("*.a.example", "https://xa.example", False),
    ("*.a.example", "https://.a.example", False),
    ("*.a.example", "https://x..a.example", False),
    ("*.a.example", "https://x.a.example.evil.example", False),
    ("*.a.example", "https://x.a.example@evil.example", False),
    ("*.a.example", "https://evil.example/.a.example", False),
    ("*.a.example", "https://evil.example#.a.example", False),
    ("*.a.example", "null", False),
    ("*", "https://evil.example", True),
    ("*", "null", True),
    ("*", "", True),
    ("*", "what ever", True),
]

BAD_ENTRIES = [
    "",
    " ",
    "null",
    "*.null",
    "https://",
    "https://a.example/",
    "https://a.example/path",
    "https://user@a.example",
    "https://a.example:",
    "https://a.example:https",
    "https://a.example:65536",
    "https://a..example",
    "https://*.a.example",
    "https://*",
    "https://a.example https://b.example",
    "https://a.example,https://b.example",
    " https://a.example",
    "://a.example",
    "a.example:8080",
    "a.example:",
    "a.example/",
    "u@a.example",
    ".a.example",
    "a b",
    "*.",
    "*.*.example",
    "*.a.example:80",
    "**",
    "*a.example",
    "a.*.example",
    "http://[::1",
    "[1:2]",
    "https://stra\xdfe.example",  # the standard library would allow strasse.example instead
    "https://\u2603\ufffd.example",
    "https://" + "b\xfc" * 40 + ".example",
]


@pytest.mark.parametrize(("origin", "host", "scheme", "is_allowed"), SAME_ORIGIN)
def test_same_origin_is_the_default(origin, host, scheme, is_allowed):
    assert OriginPolicy(None).allows(origin, host, scheme) is is_allowed


@pytest.mark.parametrize(("entry", "origin", "is_allowed"), LISTED)
def test_list_decides(entry, origin, is_allowed):
    assert OriginPolicy((entry,)).allows(origin, "host.example", "https") is is_allowed


def test_any_entry_of_a_list_lets_pass():
    policy = OriginPolicy(("https://a.example", "b.example", "*.c.example", "*.d.example"))
    origins = ["https://a.example", "http://b.example", "http://x.c.example", "http://x.d.example"]
    assert all(policy.allows(origin, "h", "http") for origin in origins)
    assert not policy.allows("http://a.example", "h", "http")


def test_empty_list_lets_only_programs_pass():
    assert OriginPolicy(()).allows(None, "a.example", "http")
    assert not OriginPolicy(()).allows("http://a.example", "a.example", "http")


@pytest.mark.parametrize("entry", BAD_ENTRIES)
def test_entry_that_could_never_match_is_an_error_that_quotes_it(entry):
    with pytest.raises(ValueError, match="is not an origin") as caught:
        OriginPolicy(("https://a.example", entry))
    assert f'"{entry}"' in str(caught.value)


def request(*origins: str) -> Request:
    headers = tuple(("origin", origin) for origin in origins)
    return Request(method="GET", target="/", path="/", query="", host="a.example", headers=headers, peer="unix:")


@pytest.mark.parametrize("origins", [(), ("http://a.example",)])
def test_request_of_the_same_origin_passes(origins):
    OriginPolicy(None).check(request(*origins))


@pytest.mark.parametrize(
    "part", [{"headers": (("origin", "http://b.example"),)}, {"host": "b.example"}, {"scheme": "https"}]
)
def test_one_that_passed_vouches_for_no_other(part):
    policy = OriginPolicy(None)
    for _ in range(2):
        policy.check(request("http://a.example"))
        with pytest.raises(PeerError):
            policy.check(replace(request("http://a.example"), **part))


@pytest.mark.parametrize(
    ("policy", "origins"),
    [
        (None, ("http://b.example",)),
        (None, ("",)),
        (None, ("http://a.example", "http://a.example")),
        (("*",), ("http://a.example", "http://b.example")),
    ],
)
def test_other_request_is_403(policy, origins):
    with pytest.raises(PeerError) as caught:
        OriginPolicy(policy).check(request(*origins))
    assert caught.value.status == 403


def test_refused_origin_is_quoted_escaped():
    with pytest.raises(PeerError) as caught:
        OriginPolicy(None).check(request("http://\x1b[31m\xe9" + "x" * 500))
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 120
