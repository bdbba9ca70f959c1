"""What stands under a folder: found where it is, and nothing outside, whoever asks in whatever words."""

from __future__ import annotations

import os
from urllib.parse import unquote_to_bytes

import pytest

from tests.conftest import open_descriptors
from tests.traversal import traversals
from wstunnel.errors import StartError
from wstunnel.folders import check_folder, find_file, names_of, open_file


@pytest.fixture
def root(tmp_path):
    """Files, and every kind of way out to the secret beside them."""
    (tmp_path / "secret.txt").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for file in ("a", "sub/b", "sub/deep/c", ".hidden/d", ".e", "back\\slash"):
        (root / file).write_bytes(file.encode())
    (root / "link").symlink_to(tmp_path / "secret.txt")
    (root / "inside").symlink_to("a")
    (root / "out").symlink_to(tmp_path)
    (root / "sub" / "up").symlink_to("../..")
    os.mkfifo(root / "fifo")
    (root / os.fsdecode(b"latin-\xe9")).write_bytes(b"latin")
    return root


def found(root, path: str) -> tuple[str, str] | None:
    names = names_of(path)
    assert names is not None
    count = find_file(str(root), names)
    if count is None:
        return None
    return b"/".join(names[:count]).decode("latin-1"), b"/".join(names[count:]).decode("latin-1")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a", ("a", "")),
        ("/a/", ("a", "")),
        ("/a/more/.of/../it", ("a", "more/.of/../it")),
        ("/sub/b", ("sub/b", "")),
        ("/sub/deep/c/x", ("sub/deep/c", "x")),
        ("/latin-\udce9", ("latin-\xe9", "")),
    ],
)
def test_a_path_leads_to_the_first_file_on_it(root, path, expected):
    assert found(root, path) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/sub",
        "/sub/",
        "/sub/deep/nothing",
        "/nothing/a",
        "//a",
        "/sub//b",
        "/.e",
        "/.hidden/d",
        "/./a",
        "/../secret.txt",
        "/sub/../a",
        "/link",
        "/inside",
        "/out/secret.txt",
        "/sub/up/secret.txt",
        "/fifo",
        "/back\\slash",
        "/a\0",
        "/" + "x" * 300,
    ],
)
def test_what_is_no_plain_file_under_the_folder_is_not_found(root, path):
    before = open_descriptors()
    assert names_of(path) is None or found(root, path) is None
    assert open_descriptors() == before


def test_no_attackers_path_leads_out(root):
    for target in traversals():
        names = names_of(unquote_to_bytes(target.encode("utf-8")).decode("utf-8", "surrogateescape"))
        if names is not None:
            assert find_file(str(root), names) is None, target


@pytest.mark.parametrize(
    "path", ["/link", "/out/secret.txt", "/sub/up/secret.txt", "/.e", "/../secret.txt", "/a\0", "//a", "/a/b"]
)
def test_what_is_not_found_is_not_opened_either(root, path):
    before = open_descriptors()
    with pytest.raises(OSError):
        os.close(open_file(str(root), names_of(path)))
    assert open_descriptors() == before


def test_a_file_is_opened_by_its_names(root):
    fd = open_file(str(root), [b"sub", b"deep", b"c"])
    assert os.read(fd, 100) == b"sub/deep/c"
    os.close(fd)


def test_a_path_without_a_first_slash_or_without_bytes_has_no_names():
    assert names_of("a/b") is names_of("") is names_of("*") is names_of("/\ud800") is None


def test_the_folder_itself_may_be_a_link_that_is_swapped(root, tmp_path):
    (tmp_path / "other").mkdir()
    link = tmp_path / "current"
    link.symlink_to(root)
    assert found(link, "/a") == ("a", "")
    link.unlink()
    assert found(link, "/a") is None
    link.symlink_to(tmp_path / "other")
    assert found(link, "/a") is None


def test_a_folder_that_is_none_is_an_error_with_its_option(root):
    check_folder(str(root), option="docroot")
    with pytest.raises(StartError, match="docroot /nowhere: No such file or directory"):
        check_folder("/nowhere", option="docroot")
    with pytest.raises(StartError, match="a: Not a directory"):
        check_folder(str(root / "a"), option="docroot")
