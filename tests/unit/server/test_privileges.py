"""Giving up root, in processes of their own: none of it can be taken back here."""

from __future__ import annotations

import grp
import json
import os
import pwd
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from wstunnel.errors import StartError
from wstunnel.server.privileges import Identity, become, identity_of, make_folder_for

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up root")

NOBODY = pwd.getpwnam("nobody")
OTHER_GROUP = next(group for group in grp.getgrall() if group.gr_gid not in {0, NOBODY.pw_gid})

PROLOGUE = """
import ctypes, json, os, socket, threading
from wstunnel.errors import StartError
from wstunnel.net.listen import open_listeners
from wstunnel.server.privileges import become
from wstunnel.settings import TcpAddress, UnixAddress

def who():
    return [os.getresuid(), os.getresgid(), sorted(os.getgroups())]
"""


def run_script(body: str, *, cwd: Path | None = None) -> Any:
    """What a Python program says in JSON; it ends well."""
    words = [sys.executable, "-c", PROLOGUE + textwrap.dedent(body)]
    environ = {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(words, cwd=cwd, env=environ, check=True, timeout=60, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


# --- who that is


def test_without_user_and_group_we_stay_what_we_are():
    assert identity_of(None, None) is None
    become(None, None)


def test_a_user_comes_with_its_group_and_further_groups(monkeypatch):
    monkeypatch.setattr(os, "getgrouplist", lambda user, gid: [gid, 70001] if user == "nobody" else [])
    assert identity_of("nobody", None) == Identity("nobody", NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid, 70001))


def test_a_group_takes_the_place_of_the_users_own():
    who = identity_of("nobody", OTHER_GROUP.gr_name)
    assert who is not None
    assert (who.uid, who.gid) == (NOBODY.pw_uid, OTHER_GROUP.gr_gid)
    assert NOBODY.pw_gid not in who.groups


def test_a_group_alone_leaves_the_user():
    who = identity_of(None, OTHER_GROUP.gr_name)
    assert who is not None
    assert (who.uid, who.gid) == (os.geteuid(), OTHER_GROUP.gr_gid)


def test_our_own_user_keeps_the_group_that_we_were_started_with(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid)
    monkeypatch.setattr(os, "getegid", lambda: 70001)
    who = identity_of("nobody", None)
    assert who is not None
    assert who.gid == 70001


def test_who_is_not_there_is_named():
    with pytest.raises(StartError, match="user: there is no user no-such-user on this machine"):
        identity_of("no-such-user", None)
    with pytest.raises(StartError, match="group: there is no group no-such-group on this machine"):
        identity_of("nobody", "no-such-group")


def test_only_root_becomes_another(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 70001)
    with pytest.raises(StartError, match="only root may become nobody"):
        become("nobody", None)


# --- becoming it


@as_root
def test_all_ids_and_groups_are_the_users_in_every_thread_and_root_cannot_be_had_again():
    said = run_script("""
        os.getgrouplist = lambda user, gid: [gid, 70001]
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        become("nobody", None)
        def ids(thread):
            lines = open(f"/proc/{os.getpid()}/task/{thread}/status").read().splitlines()
            return [line.split()[1:] for line in lines if line.startswith(("Uid:", "Gid:", "CapEff:", "CapPrm:"))]
        def fails(way):
            try:
                way(0)
            except PermissionError:
                return True
            return False
        print(json.dumps([
            who(),
            [ids(thread) for thread in os.listdir(f"/proc/{os.getpid()}/task")],
            [fails(way) for way in (os.setuid, os.seteuid, os.setgid, os.setegid)],
        ]))
        """)
    uid, gid = NOBODY.pw_uid, NOBODY.pw_gid
    none = "0" * 16
    assert said[0] == [[uid] * 3, [gid] * 3, [gid, 70001]]
    assert said[1] == [[[str(uid)] * 4, [str(gid)] * 4, [none], [none]]] * 2
    assert said[2] == [True] * 4


@as_root
def test_it_is_done_once_and_done_again_is_no_error():
    said = run_script("""
        become("nobody", None)
        first = who()
        become("nobody", None)
        print(json.dumps([first, who()]))
        """)
    assert said[0] == said[1]


@as_root
def test_a_group_alone_is_taken_without_giving_up_the_user():
    said = run_script(f"""
        become(None, {OTHER_GROUP.gr_name!r})
        print(json.dumps(who()))
        """)
    assert said[:2] == [[0, 0, 0], [OTHER_GROUP.gr_gid] * 3]


REGAINED = """
    {how}
    try:
        become("nobody", None)
        print(json.dumps("became it"))
    except StartError as error:
        print(json.dumps(str(error)))
    """


@as_root
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "ctypes.CDLL(None).prctl(28, 4, 0, 0, 0)",
            "as nobody we could have user root again",
        ),  # SECBIT_NO_SETUID_FIXUP
        ("os.setresuid = lambda *uids: os.seteuid(uids[1])", "did not make us nobody entirely"),
        ("os.setresgid = lambda *gids: os.setegid(gids[1])", "did not make us nobody entirely"),
        ("os.setgroups = lambda groups: None; os.getgroups = lambda: [0]", "did not make us nobody entirely"),
    ],
    ids=["capabilities stay", "saved user stays", "saved group stays", "groups stay"],
)
def test_root_that_could_be_had_again_is_a_start_error(how, said):
    assert said in run_script(REGAINED.format(how=how))


@as_root
def test_a_kernel_that_refuses_is_a_start_error(monkeypatch):
    """In a container root may be without the capability, or the user without an id."""

    def refuse(groups: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setgroups", refuse)
    with pytest.raises(StartError, match="cannot become nobody: Operation not permitted; CAP_SETUID"):
        become("nobody", None)


@as_root
def test_listeners_are_the_users_and_serve_on(tmp_path):
    tmp_path.chmod(0o755)
    said = run_script(
        """
        sets = open_listeners([TcpAddress("127.0.0.1", 0), UnixAddress("s")], count=1, backlog=8)
        become("nobody", None, sets, [])
        sets[0].grow(2)
        client = socket.socket(socket.AF_UNIX)
        client.connect("s")
        print(json.dumps([len(sets[0]), os.stat("s").st_uid]))
        """,
        cwd=tmp_path,
    )
    assert said == [2, NOBODY.pw_uid]


# --- folders


@as_root
def test_a_missing_folder_is_made_for_the_user_before_root_is_gone(tmp_path):
    tmp_path.chmod(0o755)
    run_script(
        """
        become("nobody", None, [], [os.path.abspath("run")])
        open("run/file", "w").close()
        print(json.dumps(None))
        """,
        cwd=tmp_path,
    )
    found = (tmp_path / "run").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o700, NOBODY.pw_uid, NOBODY.pw_gid)


def nobody() -> Identity:
    who = identity_of("nobody", None)
    assert who is not None
    return who


@as_root
def test_a_folder_that_is_there_is_left_alone(tmp_path):
    make_folder_for(str(tmp_path), nobody())
    assert tmp_path.stat().st_uid == 0


@as_root
def test_in_a_folder_of_somebody_else_root_makes_nothing(tmp_path):
    """Its owner could put a link of theirs in the place of what root has just made, and be given what it leads to."""
    os.chown(tmp_path, NOBODY.pw_uid, NOBODY.pw_gid)
    make_folder_for(str(tmp_path / "run"), nobody())
    assert os.listdir(tmp_path) == []


@as_root
def test_a_link_is_never_followed_to_what_is_given_away(tmp_path, monkeypatch):
    precious = tmp_path / "precious"
    precious.mkdir()
    monkeypatch.setattr(os, "mkdir", lambda path, mode: os.symlink(precious, path))
    with pytest.raises(StartError, match=f"the folder {tmp_path}/run cannot be made for nobody"):
        make_folder_for(str(tmp_path / "run"), nobody())
    assert precious.stat().st_uid == 0


@as_root
def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(StartError, match=f"the folder {tmp_path}/no/run cannot be made for nobody: No such file"):
        make_folder_for(str(tmp_path / "no" / "run"), nobody())
