"""Scripts under a folder: which is found, what runs it, and that nothing else ever is."""

from __future__ import annotations

import os

import pytest

from wstunnel import owners
from wstunnel.errors import StartError
from wstunnel.supervise.scripts import Script, ScriptFolder
from wstunnel.supervise.spawn import Program

ASSIGN = ((".pl", "/usr/bin/perl"), (".cgi", ""), ("tar.pl", "/never"))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    for name in ("a.pl", "b.cgi", "sub/c.pl", "text", "x.tar.pl", "../out.pl"):
        (root / name).write_text("")
        (root / name).chmod(0o755)
    (root / os.fsdecode(b"\xe9.pl")).write_text("")
    (root / "link.pl").symlink_to("../out.pl")
    return root


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a.pl", Script("a.pl", "")),
        ("/sub/c.pl/x//y", Script("sub/c.pl", "/x//y")),
        ("/\udce9.pl/\udcff", Script("\udce9.pl", "/\udcff")),
        ("/text", None),
        ("/sub", None),
        ("/link.pl", None),
        ("/../out.pl", None),
        ("a.pl", None),
    ],
)
def test_a_script_is_a_file_whose_suffix_is_assigned(root, path, expected):
    assert ScriptFolder(str(root), ASSIGN).find(path) == expected


def test_the_first_suffix_that_fits_says_what_runs_a_script(root):
    folder = ScriptFolder(str(root), ASSIGN)
    assert folder.program("sub/c.pl") == Program(
        "/usr/bin/perl", (f"{root}/sub/c.pl",), "cgi-assign", folder=f"{root}/sub"
    )
    assert folder.program("x.tar.pl") == Program("/usr/bin/perl", (f"{root}/x.tar.pl",), "cgi-assign", str(root))
    assert folder.program("b.cgi") == Program(f"{root}/b.cgi", (), "script")
    assert ScriptFolder(str(root), (("", ""),)).program("a.pl") == Program(f"{root}/a.pl", (), "script")
    assert ScriptFolder(str(root), ASSIGN).program("\udce9.pl") == Program(
        "/usr/bin/perl", (os.fsdecode(os.fsencode(str(root)) + b"/\xe9.pl"),), "cgi-assign", str(root)
    )


@pytest.mark.parametrize(
    "file",
    [
        "",
        "/a.pl",
        "a.pl/",
        "a.pl/x",
        "../out.pl",
        "sub/../a.pl",
        "link.pl",
        "text",
        "/etc/passwd",
        "sub",
        "a.pl\0",
        "//a.pl",
    ],
)
def test_what_is_no_script_by_its_exact_path_is_never_run(root, file):
    assert ScriptFolder(str(root), ASSIGN).program(file) is None


def test_a_script_that_runs_by_itself_must_be_executable(root):
    (root / "b.cgi").chmod(0o644)
    with pytest.raises(StartError, match=r"script .*b\.cgi: is not executable for this user; chmod \+x it"):
        ScriptFolder(str(root), ASSIGN).program("b.cgi")


# --- whose hands a script has been in

STRANGER = 4_000_001
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@ONLY_ROOT
@pytest.mark.parametrize("path", ["sub/c.pl", "sub"])
def test_what_belongs_to_somebody_else_is_not_run(root, path):
    os.chown(root / path, STRANGER, -1)
    with pytest.raises(StartError) as caught:
        ScriptFolder(str(root), ASSIGN).program("sub/c.pl")
    assert str(caught.value) == (
        f"script {root}/{path}: belongs to user {STRANGER}, and nothing is run but what belongs to root or to the user "
        "that runs wstunnel; chown it, or set allow-unsafe-places"
    )


@pytest.mark.parametrize(("path", "bits"), [("sub/c.pl", 0o757), ("sub/c.pl", 0o1757), ("sub", 0o777)])
def test_what_others_may_write_to_is_not_run(root, path, bits):
    (root / path).chmod(bits)
    with pytest.raises(StartError) as caught:
        ScriptFolder(str(root), ASSIGN).program("sub/c.pl")
    assert str(caught.value) == (
        f"script {root}/{path}: everybody may write to it (mode {bits:04o}), so it is not run; chmod o-w it, or set "
        "allow-unsafe-places"
    )


def test_a_script_of_ours_in_a_folder_such_as_tmp_is_run(root):
    """Everybody may write to it, and only the owner of an entry may replace that."""
    (root / "sub").chmod(0o1777)
    root.chmod(0o1777)
    for file in ("a.pl", "sub/c.pl"):
        assert ScriptFolder(str(root), ASSIGN).program(file).arguments == (f"{root}/{file}",)


@pytest.mark.parametrize("has_stranger", [True, False])
def test_a_group_counts_once_somebody_else_is_in_it(root, monkeypatch, has_stranger):
    (root / "a.pl").chmod(0o775)
    monkeypatch.setattr(owners, "_has_strangers", lambda gid, trusted: has_stranger)
    folder = ScriptFolder(str(root), ASSIGN)
    if has_stranger:
        with pytest.raises(StartError, match=r"a\.pl: the group .* may write to it \(mode 0775\)"):
            folder.program("a.pl")
    else:
        assert folder.program("a.pl") is not None


def test_scripts_of_anybody_are_run_if_it_is_said(root):
    (root / "a.pl").chmod(0o777)
    assert ScriptFolder(str(root), ASSIGN, allows_strangers=True).program("a.pl") is not None


def test_a_script_is_told_of_its_place(root):
    folder = ScriptFolder(f"{root}/", ASSIGN)
    assert folder.variables("sub/c.pl", "/x") == {
        "DOCUMENT_ROOT": f"{root}/",
        "SCRIPT_FILENAME": f"{root}/sub/c.pl",
        "PATH_TRANSLATED": f"{root}/x",
        "REDIRECT_STATUS": "200",
    }
    assert "PATH_TRANSLATED" not in folder.variables("a.pl", "")


def test_a_folder_or_an_interpreter_that_is_not_there_is_seen_at_once(root):
    ScriptFolder(str(root), ((".sh", "/bin/sh"), (".cgi", ""))).check()
    with pytest.raises(StartError, match="docroot /nowhere: No such file or directory"):
        ScriptFolder("/nowhere", ASSIGN).check()
    with pytest.raises(StartError, match="cgi-assign /nowhere/perl: does not exist"):
        ScriptFolder(str(root), ((".pl", "/nowhere/perl"),)).check()
