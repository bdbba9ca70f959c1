"""Static files: what is sent for which request, and that nothing outside the folder ever is."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
from email.utils import formatdate
from urllib.parse import unquote, unquote_to_bytes

import pytest

from tests.traversal import traversals
from wstunnel.errors import StartError
from wstunnel.gateways.static import ShortFileError, StaticGateway
from wstunnel.limits import FileLimits
from wstunnel.proto.request import Headers, Request

SECRET = b"the secret beside the root"
PAGE = b"<!doctype html><title>page</title>"
TEXT = bytes(range(48, 58)) * 10
OLD_S = 1_600_000_000


def fields(headers: Headers) -> dict[str, str]:
    found = {name.lower(): value for name, value in headers}
    assert len(found) == len(headers), "a field twice"
    return found


class Answer:
    """An exchange that keeps what it is told, and refuses what HTTP would not survive."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.chunks: list[int] = []
        self.length: int | None = None

    async def respond(self, status: int, headers: Headers = (), body: bytes = b"", *, close: bool = False) -> None:
        assert not self.status, "a second answer"
        self.status, self.headers = status, fields(headers)
        self.body = b"" if self.request.method == "HEAD" else body

    async def start(self, status: int, headers: Headers, length: int) -> None:
        assert not self.status, "a second answer"
        self.status, self.headers, self.length = status, fields(headers), length

    async def write(self, chunk: bytes) -> None:
        assert self.length is not None
        assert self.request.method != "HEAD"
        self.body += chunk
        self.chunks.append(len(chunk))
        assert len(self.body) <= self.length, "more bytes than promised"


@pytest.fixture
def root(tmp_path):
    """A folder with a few files, every kind of link out of it, and a secret beside it."""
    (tmp_path / "secret.txt").write_bytes(SECRET)
    (tmp_path / "www-secret").mkdir()
    (tmp_path / "www-secret" / "secret.txt").write_bytes(SECRET)
    root = tmp_path / "www"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / ".git").mkdir()
    (root / "index.html").write_bytes(PAGE)
    (root / "sub" / "index.html").write_bytes(PAGE)
    (root / "sub" / "deep" / "a.txt").write_bytes(TEXT)
    (root / "a.txt").write_bytes(TEXT)
    (root / "nothing.txt").write_bytes(b"")
    (root / ".env").write_bytes(SECRET)
    (root / ".git" / "config").write_bytes(SECRET)
    (root / "ünïcode £.txt").write_bytes(TEXT)
    (root / os.fsdecode(b"latin-\xe9.txt")).write_bytes(TEXT)
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "relative.txt").symlink_to("../secret.txt")
    (root / "out").symlink_to(tmp_path)
    (root / "sub" / "up").symlink_to("../..")
    (root / "sub" / "hop").symlink_to("../out")
    (root / "slash").symlink_to("/")
    (root / "inside.txt").symlink_to("a.txt")
    (root / "proc").symlink_to(f"/proc/{os.getpid()}/cwd")
    for folder in (root, root / "sub"):
        os.utime(folder / "index.html", (OLD_S, OLD_S))
    os.utime(root / "a.txt", (OLD_S, OLD_S))
    return root


@pytest.fixture
def gateway(root):
    return StaticGateway(str(root), FileLimits(chunk_bytes=32))


def ask(gateway, path, *headers, method="GET", query=""):
    request = Request(
        method=method,
        target=path.encode("utf-8", "surrogatepass").decode("latin-1") + (f"?{query}" if query else ""),
        path=path,
        query=query,
        host="example.com",
        headers=(("host", "example.com"), *headers),
        peer="127.0.0.1:4711",
    )
    answer = Answer(request)
    asyncio.run(gateway.serve(answer))
    if answer.length is not None and method == "GET":
        assert len(answer.body) == answer.length
    return answer


# --- what is sent


def test_a_file_is_sent_whole_with_its_type_and_validators(gateway, root):
    answer = ask(gateway, "/a.txt")

    assert (answer.status, answer.body) == (200, TEXT)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["last-modified"] == formatdate(OLD_S, usegmt=True)
    assert answer.headers["etag"].startswith('"')
    assert answer.headers["etag"].endswith('"')


def test_a_file_is_read_in_pieces_of_the_limit(gateway):
    assert ask(gateway, "/a.txt").chunks == [32, 32, 32, 4]


def test_an_empty_file_is_sent_as_nothing(gateway):
    answer = ask(gateway, "/nothing.txt")
    assert (answer.status, answer.length, answer.body) == (200, 0, b"")


@pytest.mark.parametrize("path", ["/", "/sub/"])
def test_a_folder_with_an_index_shows_it(gateway, path):
    answer = ask(gateway, path)
    assert (answer.status, answer.body) == (200, PAGE)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("path", ["/empty/", "/sub/deep/"])
def test_a_folder_without_an_index_is_not_listed(gateway, path):
    assert ask(gateway, path).status == 404


@pytest.mark.parametrize("path", ["/ünïcode £.txt", "/latin-\udce9.txt"])
def test_names_beyond_ascii_are_found(gateway, path):
    assert ask(gateway, path).body == TEXT


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("x.html", "text/html; charset=utf-8"),
        ("x.HTML", "text/html; charset=utf-8"),
        ("x.css", "text/css; charset=utf-8"),
        ("x.js", "text/javascript; charset=utf-8"),
        ("x.mjs", "text/javascript; charset=utf-8"),
        ("x.json", "application/json"),
        ("x.svg", "image/svg+xml"),
        ("x.png", "image/png"),
        ("x.wasm", "application/wasm"),
        ("x.woff2", "font/woff2"),
        ("x.tar.gz", "application/gzip"),
        ("x", "application/octet-stream"),
        ("x.unheard-of", "application/octet-stream"),
        ("x.\udce9", "application/octet-stream"),
    ],
)
def test_a_type_follows_the_last_suffix_alone(gateway, root, name, type_):
    (root / name).write_bytes(PAGE)
    assert ask(gateway, f"/{name}").headers["content-type"] == type_


def test_head_says_what_get_would_say_and_sends_nothing(gateway):
    get, head = ask(gateway, "/a.txt"), ask(gateway, "/a.txt", method="HEAD")
    assert (head.status, head.headers, head.length) == (get.status, get.headers, get.length)
    assert head.body == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"])
def test_other_methods_are_told_which_are_allowed(gateway, method):
    answer = ask(gateway, "/a.txt", method=method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_a_root_that_is_a_link_follows_it_at_each_request(tmp_path, root):
    """Deployments swap such a link; the operator wrote the name, so it is followed."""
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "a.txt").write_bytes(b"next")
    (tmp_path / "current").symlink_to(root)
    gateway = StaticGateway(str(tmp_path / "current"), FileLimits())
    assert ask(gateway, "/a.txt").body == TEXT

    (tmp_path / "swap").symlink_to(tmp_path / "next")
    (tmp_path / "swap").replace(tmp_path / "current")
    assert ask(gateway, "/a.txt").body == b"next"


@pytest.mark.parametrize("name", ["missing", "a-file"])
def test_a_root_that_is_no_folder_is_named_at_the_start(tmp_path, name):
    (tmp_path / "a-file").touch()
    with pytest.raises(StartError, match=f"document-root .*{name}: "):
        StaticGateway(str(tmp_path / name), FileLimits())


# --- the way to a folder


@pytest.mark.parametrize(
    ("path", "query", "location"),
    [
        ("/sub", "", "/sub/"),
        ("/sub", "a=1&b=%2F", "/sub/?a=1&b=%2F"),
        ("/sub/deep", "", "/sub/deep/"),
        ("/sub", "\r\nset-cookie: x=1", "/sub/?%0D%0Aset-cookie:%20x=1"),
        ("/sub", "\xe9", "/sub/?%E9"),
    ],
)
def test_a_folder_without_its_slash_is_sent_there_with_its_query(gateway, path, query, location):
    answer = ask(gateway, path, query=query)
    assert (answer.status, answer.headers["location"]) == (301, location)


def test_a_redirect_quotes_what_a_header_cannot_carry(gateway, root):
    (root / "a b\r\nset-cookie: x=1 ü").mkdir()
    answer = ask(gateway, "/a b\r\nset-cookie: x=1 ü")
    assert (answer.status, answer.headers["location"]) == (301, "/a%20b%0D%0Aset-cookie%3A%20x%3D1%20%C3%BC/")


@pytest.mark.parametrize(
    "path", ["//sub", "///sub", "/\\sub", "\\/sub", "//evil.example", "/\\evil.example/..", "sub", ""]
)
def test_no_redirect_leads_to_another_host(gateway, root, path):
    (root / "evil.example").mkdir()
    answer = ask(gateway, path)
    assert (answer.status, "location" in answer.headers) == (404, False)


# --- preconditions


def etag_of(gateway, path="/a.txt"):
    return ask(gateway, path).headers["etag"]


@pytest.mark.parametrize(
    "form", ["{}", "W/{}", "*", '"other", {}', 'W/"other",W/{}', '"a,b" , {}', " * ", '{}, "other"']
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_known_tag_is_answered_with_not_modified(gateway, form, method):
    etag = etag_of(gateway)
    answer = ask(gateway, "/a.txt", ("if-none-match", form.replace("{}", etag)), method=method)
    assert (answer.status, answer.body, answer.length) == (304, b"", None)
    assert answer.headers["etag"] == etag
    assert "content-type" not in answer.headers


def test_a_known_tag_on_the_second_line_counts(gateway):
    answer = ask(gateway, "/a.txt", ("if-none-match", '"other"'), ("if-none-match", etag_of(gateway)))
    assert answer.status == 304


@pytest.mark.parametrize("value", ['"other"', "", "other", '"', '"*"', '"other", *', "w/{}x", "{}x"])
def test_an_unknown_tag_gets_the_file(gateway, value):
    etag = etag_of(gateway).strip('"')
    assert ask(gateway, "/a.txt", ("if-none-match", value.replace("{}", etag))).status == 200


@pytest.mark.parametrize(
    ("offset_s", "status"), [(-1, 200), (0, 304), (1, 304), (86_400, 304)], ids=["older", "same", "newer", "a day"]
)
def test_a_date_decides_by_the_second(gateway, offset_s, status):
    since = formatdate(OLD_S + offset_s, usegmt=True)
    assert ask(gateway, "/a.txt", ("if-modified-since", since)).status == status


@pytest.mark.parametrize(
    "value",
    [
        "",
        "yesterday",
        " ",
        "0",
        "Sun, 99 Sep 2020 12:26:40 GMT",
        "Sun, 13 Xxx 2099 12:26:40 GMT",
        "Sun, 13 Sep 0000 12:26:40 GMT",
        "Sun, 13 Sep 2099 12:26:40 +0000",
        "Sun, 13 Sep 2099 12:26:40 GMT; length=3",
    ],
)
def test_a_date_that_cannot_be_read_has_no_effect(gateway, value):
    assert ask(gateway, "/a.txt", ("if-modified-since", value), ("if-unmodified-since", value)).status == 200


def test_a_date_beside_a_tag_is_not_looked_at(gateway):
    since = ("if-modified-since", formatdate(OLD_S, usegmt=True))
    assert ask(gateway, "/a.txt", since, ("if-none-match", '"other"')).status == 200


@pytest.mark.parametrize(
    ("form", "status"),
    [("{}", 200), ("*", 200), ('"other", {}', 200), ("W/{}", 412), ('"other"', 412), ("", 412)],
)
def test_if_match_lets_only_the_strong_tag_through(gateway, form, status):
    assert ask(gateway, "/a.txt", ("if-match", form.replace("{}", etag_of(gateway)))).status == status


@pytest.mark.parametrize(("offset_s", "status"), [(-1, 412), (0, 200), (1, 200)])
def test_if_unmodified_since_refuses_a_newer_file(gateway, offset_s, status):
    since = formatdate(OLD_S + offset_s, usegmt=True)
    assert ask(gateway, "/a.txt", ("if-unmodified-since", since)).status == status


@pytest.mark.parametrize("change", ["content", "time", "another file"])
def test_a_tag_changes_with_the_file(gateway, root, change):
    before = etag_of(gateway)
    if change == "content":
        (root / "a.txt").write_bytes(TEXT + b"!")
        os.utime(root / "a.txt", (OLD_S, OLD_S))
    elif change == "time":
        os.utime(root / "a.txt", ns=(0, OLD_S * 10**9 + 1))
    else:
        (root / "b.txt").write_bytes(TEXT[::-1])
        os.utime(root / "b.txt", (OLD_S, OLD_S))
        (root / "b.txt").replace(root / "a.txt")
    assert etag_of(gateway) != before


@pytest.mark.parametrize("mtime_s", [-86_400, 2**40], ids=["before 1970", "in 34,000 years"])
def test_a_time_that_no_date_can_say_is_bent(gateway, root, mtime_s):
    os.utime(root / "a.txt", (mtime_s, mtime_s))
    answer = ask(gateway, "/a.txt")
    assert (answer.status, answer.body) == (200, TEXT)
    assert answer.headers["last-modified"].endswith(" GMT")
    assert int(answer.headers["last-modified"].split()[3]) in range(1970, 2200)


# --- ranges


@pytest.mark.parametrize(
    ("value", "first", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 100),
        ("bytes=0-99", 0, 100),
        ("bytes=0-100", 0, 100),
        ("bytes=0-9999999999999999999", 0, 100),
        ("bytes=10-49", 10, 50),
        ("bytes=99-", 99, 100),
        ("bytes=-1", 99, 100),
        ("bytes=-100", 0, 100),
        ("bytes=-1000", 0, 100),
        ("bytes=00010-00019", 10, 20),
        ("Bytes= 10-19 ", 10, 20),
    ],
)
def test_one_range_is_sent_alone(gateway, value, first, stop):
    answer = ask(gateway, "/a.txt", ("range", value))
    assert (answer.status, answer.body) == (206, TEXT[first:stop])
    assert answer.headers["content-range"] == f"bytes {first}-{stop - 1}/100"
    assert answer.headers["etag"]


@pytest.mark.parametrize("value", ["bytes=100-", "bytes=100-200", "bytes=9999999999999999999-", "bytes=-0"])
def test_a_range_beyond_the_end_is_told_the_length(gateway, value):
    answer = ask(gateway, "/a.txt", ("range", value))
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */100")


def test_no_range_of_an_empty_file_exists(gateway):
    assert ask(gateway, "/nothing.txt", ("range", "bytes=0-")).headers["content-range"] == "bytes */0"


@pytest.mark.parametrize(
    "value",
    [
        "bytes=0-1,5-6",
        "bytes=5-4",
        "bytes=-",
        "bytes=",
        "bytes",
        "",
        "lines=0-1",
        "bytes=a-b",
        "bytes=0x0-0x1",
        "bytes=--1",
        "bytes=+0-1",
        "bytes=0-1\u0665",
        "bytes=1",
        "bytes=0 -1",
        "bytes=" + "9" * 5000 + "-",
    ],
)
def test_several_ranges_and_what_is_no_range_get_the_whole_file(gateway, value):
    answer = ask(gateway, "/a.txt", ("range", value))
    assert (answer.status, answer.body, "content-range" in answer.headers) == (200, TEXT, False)


def test_two_range_lines_get_the_whole_file(gateway):
    assert ask(gateway, "/a.txt", ("range", "bytes=0-0"), ("range", "bytes=0-0")).status == 200


def test_head_knows_no_ranges(gateway):
    assert ask(gateway, "/a.txt", ("range", "bytes=0-0"), method="HEAD").length == 100


@pytest.mark.parametrize(
    ("form", "status"),
    [("{}", 206), ("W/{}", 200), ('"other"', 200), ("date", 206), ("older date", 200), ("newer date", 200), ("x", 200)],
)
def test_a_range_of_another_version_gets_the_whole_file(gateway, form, status):
    value = {
        "date": formatdate(OLD_S, usegmt=True),
        "older date": formatdate(OLD_S - 1, usegmt=True),
        "newer date": formatdate(OLD_S + 1, usegmt=True),
    }.get(form, form.replace("{}", etag_of(gateway)))
    answer = ask(gateway, "/a.txt", ("range", "bytes=5-9"), ("if-range", value))
    assert (answer.status, answer.body) == (status, TEXT[5:10] if status == 206 else TEXT)


def test_a_date_within_the_second_of_the_change_cannot_tell_versions_apart(gateway, root):
    os.utime(root / "a.txt", (2**33, 2**33))
    changed = ask(gateway, "/a.txt").headers["last-modified"]
    assert ask(gateway, "/a.txt", ("range", "bytes=5-9"), ("if-range", changed)).status == 200


def test_not_modified_goes_before_the_range(gateway):
    answer = ask(gateway, "/a.txt", ("range", "bytes=5-9"), ("if-none-match", etag_of(gateway)))
    assert answer.status == 304


# --- files that change or are none


class Shrinking(Answer):
    """Cuts the file to `keep` bytes once the first chunk was taken."""

    def __init__(self, request, path, keep):
        super().__init__(request)
        self.path, self.keep = path, keep

    async def write(self, chunk):
        await super().write(chunk)
        os.truncate(self.path, self.keep)


@pytest.mark.parametrize("keep", [0, 32, 33, 99])
def test_a_file_that_shrinks_while_it_is_sent_is_an_error_and_never_wrong_bytes(gateway, root, keep):
    request = Request(method="GET", target="/a.txt", path="/a.txt", query="", host="h", headers=(), peer="p")
    answer = Shrinking(request, root / "a.txt", keep)
    with pytest.raises(ShortFileError, match=f"a file of 100 bytes ended at byte {max(keep, 32)}"):
        asyncio.run(gateway.serve(answer))
    assert answer.body == TEXT[: max(keep, 32)]


def test_a_file_that_grows_while_it_is_sent_keeps_its_length(gateway, root):
    class Growing(Answer):
        async def write(self, chunk):
            await super().write(chunk)
            os.truncate(root / "a.txt", 10_000)

    request = Request(method="GET", target="/a.txt", path="/a.txt", query="", host="h", headers=(), peer="p")
    answer = Growing(request)
    asyncio.run(gateway.serve(answer))
    assert answer.body == TEXT


def test_a_disk_that_fails_while_reading_is_an_error(gateway, root, monkeypatch):
    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(ShortFileError, match="reading a file failed at byte 0: Input/output error"):
        ask(gateway, "/a.txt")


def test_no_descriptor_stays_open(gateway, root):
    paths = [
        "/a.txt",
        "/sub",
        "/sub/",
        "/none",
        "/link.txt",
        "/sub/up/secret.txt",
        "/empty/",
        "/a.txt/",
        "/sub/deep/a.txt",
    ]
    ask(gateway, "/a.txt")
    before = sorted(os.listdir("/proc/self/fd"))
    for path, method in itertools.product(paths, ["GET", "HEAD", "POST"]):
        ask(gateway, path, method=method)
    request = Request(method="GET", target="/a.txt", path="/a.txt", query="", host="h", headers=(), peer="p")
    with contextlib.suppress(ShortFileError):
        asyncio.run(gateway.serve(Shrinking(request, root / "a.txt", 0)))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_running_out_of_descriptors_asks_the_client_to_come_back(gateway, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", fail)
    assert ask(gateway, "/a.txt").status == 503


def test_a_disk_that_fails_while_opening_is_our_fault(gateway, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "open", fail)
    assert ask(gateway, "/a.txt").status == 500


@pytest.mark.timeout(20)
def test_a_fifo_a_socket_and_a_device_are_not_there_and_do_not_hang(gateway, root):
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        with contextlib.suppress(PermissionError):  # only root makes devices
            os.mknod(root / "zero", 0o20666, os.makedev(1, 5))
        assert [ask(gateway, f"/{name}").status for name in ("fifo", "socket", "zero")] == [404] * 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_not_there(gateway, root):
    (root / "a.txt").chmod(0)
    assert ask(gateway, "/a.txt").status == 404


# --- the way out


def readings(target: str) -> set[str]:
    """Every path that a server could take a target for: decoded not at all, once, twice, thrice, in either charset."""
    found = {target, unquote(target, "latin-1")}
    text = target
    for _ in range(3):
        text = unquote_to_bytes(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
        found.add(text)
    return found


def test_no_target_reaches_a_file_outside_the_root_however_it_is_decoded(gateway, root, tmp_path):
    targets = traversals()
    assert len(targets) >= 300
    secret = tmp_path / "secret.txt"
    absolute = [str(secret), f"/{secret}", f"/slash{secret}", f"/out/../{secret}"]

    async def send_all():
        for target in [*targets, *absolute]:
            for path in readings(target):
                request = Request(
                    method="GET", target="", path=path, query="", host="h", headers=(), peer="127.0.0.1:1"
                )
                answer = Answer(request)
                await gateway.serve(answer)
                yield path, answer

    async def check():
        return [(path, answer.status) async for path, answer in send_all() if answer.status not in (301, 404)]

    assert asyncio.run(check()) == []


def test_a_name_with_a_backslash_is_not_there_even_if_it_is(gateway, root):
    (root / "sub\\a.txt").write_bytes(TEXT)
    assert ask(gateway, "/sub\\a.txt").status == 404


def test_links_are_not_followed_even_when_they_stay_inside(gateway):
    """Which way a link leads can change between a look and an open; so none is followed at all."""
    assert ask(gateway, "/inside.txt").status == 404


def test_a_folder_swapped_for_a_link_while_walking_leads_nowhere(gateway, root, tmp_path, monkeypatch):
    real_open = os.open

    def swap_then_open(name, flags, *args, **kwargs):
        if name == b"deep":
            (root / "sub" / "deep").rename(root / "sub" / "was-deep")
            (root / "sub" / "deep").symlink_to(tmp_path / "www-secret")
        return real_open(name, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", swap_then_open)
    assert ask(gateway, "/sub/deep/secret.txt").status == 404


@pytest.mark.parametrize("path", ["/\ud800.txt", "/a\0.txt", "/" + "a" * 300, "/" + "sub/" * 2000, "/sub" + "/" * 2000])
def test_a_name_that_no_file_can_have_is_not_there(gateway, path):
    assert ask(gateway, path).status == 404


# --- what an operator says of files


def test_a_folder_stands_in_the_place_of_a_prefix(tmp_path):
    (tmp_path / "a.txt").write_text("found")
    gateway = StaticGateway(str(tmp_path), FileLimits(), prefix="/doc/")
    assert ask(gateway, "/doc/a.txt").body == b"found"
    assert ask(gateway, "/a.txt").status == 404
    assert ask(StaticGateway(str(tmp_path), FileLimits(), prefix="/doc"), "/document/a.txt").status == 404


def test_the_first_index_that_is_there_stands_for_its_folder(tmp_path):
    gateway = StaticGateway(str(tmp_path), FileLimits(), index_names=("a.html", "b.html"))
    assert ask(gateway, "/").status == 404
    (tmp_path / "b.html").write_text("b")
    assert ask(gateway, "/").body == b"b"
    (tmp_path / "a.html").write_text("a")
    assert ask(gateway, "/").body == b"a"
    assert ask(StaticGateway(str(tmp_path), FileLimits(), index_names=()), "/").status == 404


def test_a_type_is_what_the_operator_says_then_what_is_known_then_the_default(tmp_path):
    for name in ("a.md", "a.tar.gz", "a.css", "a.x"):
        (tmp_path / name).write_text("")
    types = ((".md", "text/x-mine"), (".tar.gz", "application/x-tgz"), ("", "text/x-other"))
    gateway = StaticGateway(str(tmp_path), FileLimits(), types=types)
    found = [ask(gateway, f"/{name}").headers["content-type"] for name in ("a.md", "a.tar.gz", "a.css", "a.x")]
    assert found == ["text/x-mine", "application/x-tgz", "text/css; charset=utf-8", "text/x-other"]
