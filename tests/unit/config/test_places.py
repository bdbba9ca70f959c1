"""Who could put theirs in the place of a program or a socket: real folders, with real modes and owners."""

from __future__ import annotations

import grp
import os
import pwd
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from wstunnel.config.places import Danger, program_danger, scripts_danger, socket_danger

US = frozenset({0, os.geteuid()})
NOBODY = 65534
STRANGER = 4_000_001
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of ours in a folder of ours, with a program."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    for path in (tmp_path, tmp_path / "outer", inner):
        path.chmod(0o755)
    (inner / "echo").write_text("#!/bin/sh\n")
    (inner / "echo").chmod(0o755)
    return inner


@pytest.fixture
def members(monkeypatch) -> Callable[..., None]:
    """Says who is in our own group: names that it lists, and users who have it as their first group."""

    def are(listed: list[str], first: dict[str, int]) -> None:
        group = grp.struct_group(("team", "x", os.getegid(), listed))
        users = [
            pwd.struct_passwd((name, "x", uid, os.getegid() if name in first else 4711, "", "/", "/bin/sh"))
            for name, uid in {"me": os.geteuid(), "root": 0, "eve": STRANGER, **first}.items()
        ]
        monkeypatch.setattr(grp, "getgrgid", lambda gid: group)
        monkeypatch.setattr(pwd, "getpwall", lambda: users)

    return are


def told(danger: Danger | None, folder: Path) -> str | None:
    return None if danger is None else danger.text.replace(str(folder.parent.parent), "")


def test_a_program_in_a_folder_of_ours_is_safe(folder):
    assert program_danger(f"{folder}/echo", US) is None
    assert socket_danger(f"{folder}/echo.sock", US) is None


def test_programs_of_the_system_are_safe():
    assert program_danger("/bin/sh", US) is None


@pytest.mark.parametrize(
    ("path", "bits", "name"),
    [
        ("echo", 0o757, "/outer/inner/echo"),
        ("echo", 0o1777, "/outer/inner/echo"),
        (".", 0o777, "/outer/inner"),
        ("..", 0o703, "/outer"),
    ],
)
def test_a_program_that_everybody_could_replace_is_refused(folder, path, bits, name):
    (folder / path).chmod(bits)
    danger = program_danger(f"{folder}/echo", US)
    assert (told(danger, folder), danger.is_refused) == (
        f'everybody may write to "{name}" (mode {bits:04o}) and could run a program of theirs instead of '
        f'"/outer/inner/echo"; chmod o-w {name}, or set allow-unsafe-places',
        True,
    )


@pytest.mark.parametrize(("path", "bits"), [(".", 0o777), ("..", 0o757)])
def test_a_socket_that_everybody_could_replace_is_refused(folder, path, bits):
    (folder / path).chmod(bits)
    danger = socket_danger(f"{folder}/echo.sock", US)
    assert danger.is_refused
    assert f'(mode 0{bits:o}) and could bind a socket of theirs in the place of "{folder}/echo.sock"' in danger.text


def test_the_mode_of_a_socket_that_is_there_already_does_not_count(folder):
    (folder / "echo.sock").touch()
    (folder / "echo.sock").chmod(0o777)
    assert socket_danger(f"{folder}/echo.sock", US) is None


@ONLY_ROOT
@pytest.mark.parametrize("path", ["echo", ".", ".."])
def test_what_belongs_to_somebody_else_is_refused(folder, path):
    os.chown(folder / path, NOBODY, -1)
    danger = program_danger(f"{folder}/echo", US)
    name = pwd.getpwuid(NOBODY).pw_name
    assert danger.is_refused
    assert danger.text.startswith(f'"{os.path.normpath(folder / path)}" belongs to {name}, who could run a program')
    assert f'become that user (user = "{name}")' in danger.text
    assert program_danger(f"{folder}/echo", US | {NOBODY}) is None


@ONLY_ROOT
def test_an_owner_without_a_name_has_a_number(folder):
    os.chown(folder, 4_000_000, -1)
    assert "belongs to user 4000000, who could" in program_danger(f"{folder}/echo", US).text


def test_we_are_trusted_because_it_is_said(folder):
    """Root and whoever runs the tests are trusted above; nobody is by nature."""
    danger = program_danger(f"{folder}/echo", frozenset({NOBODY}))
    assert danger.is_refused
    assert danger.text.startswith('"/" belongs to ')


# --- groups


@pytest.mark.parametrize(
    ("listed", "first", "is_refused"),
    [
        ([], {"me": os.geteuid()}, False),
        (["me", "root"], {"me": os.geteuid()}, False),
        ([], {}, False),
        (["eve"], {"me": os.geteuid()}, True),
        (["stranger"], {}, True),
        ([], {"eve": STRANGER}, True),
    ],
)
def test_a_group_counts_once_somebody_else_is_in_it(folder, members, listed, first, is_refused):
    """Debian's umask is 002 for users whose group is their own."""
    members(listed, first)
    folder.chmod(0o775)
    danger = program_danger(f"{folder}/echo", US)
    assert (danger is not None) == is_refused
    if danger is not None:
        assert danger.text.startswith(f'the group team may write to "{folder}" (mode 0775) and could run')
        assert f"; chmod g-w {folder}, or" in danger.text


@ONLY_ROOT
def test_a_group_that_nobody_knows_may_hold_anybody(folder):
    os.chown(folder, -1, 4_000_000)
    folder.chmod(0o775)
    assert program_danger(f"{folder}/echo", US).text.startswith("the group 4000000 may write to")


def test_an_access_control_list_may_name_anybody(folder, members):
    """With a list, the group's bits of the mode are the most that anybody in the list gets."""
    members([], {})
    entries = [
        (1, 7, -1),
        (2, 7, NOBODY),
        (4, 5, -1),
        (16, 7, -1),
        (32, 5, -1),
    ]  # acl(5): owner, user, group, mask, all
    raw = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(folder, "system.posix_acl_access", raw)
    except OSError:
        pytest.skip("no access control lists on this file system")
    danger = program_danger(f"{folder}/echo", US)
    assert danger.text.startswith(f'whoever its access control list names may write to "{folder}" (mode 0775) and')
    assert f"; setfacl -b {folder}, or" in danger.text


# --- sticky folders


@pytest.fixture
def sticky(folder) -> Path:
    """As /tmp: everybody may write, only owners may replace."""
    folder.chmod(0o1777)
    return folder


def test_a_program_of_ours_in_a_sticky_folder_is_a_warning(sticky):
    danger = program_danger(f"{sticky}/echo", US)
    assert (told(danger, sticky), danger.is_refused) == (
        'everybody may put files into "/outer/inner": "/outer/inner/echo" could be somebody else\'s whenever ours is '
        "not there",
        False,
    )


def test_a_socket_in_a_sticky_folder_is_a_warning(sticky):
    danger = socket_danger(f"{sticky}/echo.sock", US)
    assert (told(danger, sticky), danger.is_refused) == (
        'everybody may put files into "/outer/inner": "/outer/inner/echo.sock" could be taken whenever we do not '
        "listen there",
        False,
    )


def test_a_folder_of_ours_in_a_sticky_one_is_safe(sticky):
    (sticky / "own").mkdir(mode=0o700)
    (sticky / "own" / "echo").touch()
    assert program_danger(f"{sticky}/own/echo", US) is None
    assert socket_danger(f"{sticky}/own/echo.sock", US) is None


def test_a_folder_that_we_will_make_in_a_sticky_one_is_safe(sticky):
    assert socket_danger(f"{sticky}/own/echo.sock", US) is None


def test_a_folder_that_we_will_make_is_judged_by_the_one_above(folder):
    assert socket_danger(f"{folder}/own/echo.sock", US) is None
    folder.chmod(0o777)
    assert socket_danger(f"{folder}/own/echo.sock", US).is_refused


def test_a_folder_of_scripts_that_is_sticky_is_a_warning(sticky):
    """Each script is judged when it is to run."""
    danger = scripts_danger(str(sticky), US)
    assert (told(danger, sticky), danger.is_refused) == (
        'everybody may put files into "/outer/inner": scripts in "/outer/inner" are run only if they belong to root or '
        "to us",
        False,
    )


def test_a_folder_of_scripts_of_ours_is_safe_in_a_sticky_one_too(sticky):
    (sticky / "own").mkdir(mode=0o755)
    assert scripts_danger(f"{sticky}/own", US) is None


@pytest.mark.parametrize("path", [".", ".."])
def test_a_folder_of_scripts_that_everybody_could_write_to_is_refused(folder, path):
    (folder / path).chmod(0o777)
    danger = scripts_danger(str(folder), US)
    assert danger.is_refused
    assert danger.text.endswith(
        f'(mode 0777) and could put scripts of theirs into "{folder}"; '
        f"chmod o-w {os.path.normpath(folder / path)}, or set allow-unsafe-places"
    )


@ONLY_ROOT
def test_a_program_of_somebody_else_in_a_sticky_folder_is_refused(sticky):
    os.chown(sticky / "echo", NOBODY, -1)
    danger = program_danger(f"{sticky}/echo", US)
    assert danger.is_refused
    assert danger.text.startswith(f'"{sticky}/echo" belongs to ')


@ONLY_ROOT
def test_a_folder_of_somebody_else_in_a_sticky_one_is_refused(sticky):
    """Taken before we could make it."""
    (sticky / "own").mkdir(mode=0o700)
    os.chown(sticky / "own", NOBODY, -1)
    assert socket_danger(f"{sticky}/own/echo.sock", US).is_refused


@ONLY_ROOT
def test_a_sticky_folder_of_somebody_else_is_refused(sticky):
    """Its owner may replace what is in it."""
    os.chown(sticky, NOBODY, -1)
    assert program_danger(f"{sticky}/echo", US).is_refused


# --- links


@pytest.mark.parametrize("start", ["", "{tmp_path}/"])
def test_the_place_that_a_link_leads_to_is_looked_at(folder, tmp_path, start):
    (tmp_path / "link").symlink_to(f"{start.format(tmp_path=tmp_path)}outer/inner/echo")
    assert program_danger(f"{tmp_path}/link", US) is None
    (tmp_path / "outer").chmod(0o777)
    danger = program_danger(f"{tmp_path}/link", US)
    assert danger.is_refused
    assert danger.text.startswith(f'everybody may write to "{tmp_path}/outer" ')


def test_the_folder_of_a_link_is_looked_at(folder, tmp_path):
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "link").symlink_to(folder)
    (tmp_path / "loose").chmod(0o777)
    assert program_danger(f"{tmp_path}/loose/link/echo", US).is_refused
    (tmp_path / "loose").chmod(0o1777)
    danger = program_danger(f"{tmp_path}/loose/link/echo", US)
    assert not danger.is_refused
    assert danger.text.startswith(f'everybody may put files into "{tmp_path}/loose": ')


@ONLY_ROOT
def test_a_link_of_somebody_else_counts_only_where_they_may_change_it(folder, tmp_path):
    link = tmp_path / "outer" / "link"
    link.symlink_to("../outer/inner")
    os.lchown(link, NOBODY, -1)
    assert program_danger(f"{link}/echo", US) is None
    link.parent.chmod(0o1777)
    danger = program_danger(f"{link}/echo", US)
    assert danger.is_refused
    assert danger.text.startswith(f'"{link}" belongs to ')


def test_a_way_up_through_a_link_is_followed_as_the_kernel_does(folder, tmp_path):
    """`inner/..` is not where the words say when `inner` is a link."""
    (tmp_path / "other").symlink_to("outer/inner")
    (tmp_path / "link").symlink_to("other/../echo")
    (tmp_path / "outer" / "echo").touch()
    (tmp_path / "outer" / "echo").chmod(0o777)
    assert f'"{tmp_path}/outer/echo" (mode 0777)' in program_danger(f"{tmp_path}/link", US).text


def test_links_in_a_circle_come_to_an_end(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert program_danger(f"{tmp_path}/a/echo", US) is None


def test_what_stands_on_the_way_to_nothing_is_looked_at_all_the_same(folder):
    folder.chmod(0o777)
    assert socket_danger(f"{folder}/a/b/c.sock", US).is_refused
