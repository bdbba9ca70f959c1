"""What /proc tells about processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from wstunnel.supervise.procfs import ProcessStat, is_ending, is_gone_or_ending, orphans_live, parse_stat, read_stat


def stat_line(name: bytes = b"perl", state: bytes = b"S", flags: int = 0x400000) -> bytes:
    return b"4711 (%b) %b 1 4700 99 34816 4711 %d 118 0 0 0 2 1 0 0 20 0 1 0 123\n" % (name, state, flags)


@pytest.mark.parametrize("name", [b"perl", b"a b", b"a) S (b", b") R 1 2 3", b"((", b"new\nline"])
def test_a_name_with_blanks_and_parentheses_does_not_shift_the_fields(name):
    assert parse_stat(stat_line(name)) == ProcessStat(state="S", group=4700, flags=0x400000, cpu_ticks=3)


@pytest.mark.parametrize(
    ("state", "flags", "is_dead", "is_on_its_way"),
    [
        (b"S", 0x400000, False, False),
        (b"R", 0x40010C, False, True),
        (b"D", 0x4, False, True),
        (b"Z", 0x400000, True, True),
        (b"X", 0, True, True),
    ],
)
def test_a_process_is_ending_from_the_kernels_flag_on(state, flags, is_dead, is_on_its_way):
    found = parse_stat(stat_line(state=state, flags=flags))

    assert (found.is_dead, found.is_ending) == (is_dead, is_on_its_way)


@pytest.mark.parametrize(
    ("state", "is_asleep"), [(b"S", True), (b"R", False), (b"D", False), (b"Z", False), (b"T", False)]
)
def test_only_a_process_that_waits_for_somebody_is_asleep(state, is_asleep):
    assert parse_stat(stat_line(state=state)).is_asleep is is_asleep


def test_processor_time_is_told_of_a_process_that_uses_it():
    before = read_stat("self")
    deadline = time.monotonic() + 20.0
    while before is not None and (found := read_stat("self")) is not None and found.cpu_ticks == before.cpu_ticks:
        assert time.monotonic() < deadline

    assert found is not None
    assert found.state == "R"


def sleeper(group: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "1000"], process_group=group)


def kill_unreaped(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


@pytest.fixture
def leader() -> Iterator[subprocess.Popen[bytes]]:
    with sleeper(0) as process:
        yield process
        process.kill()


@pytest.fixture
def member(leader: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    with sleeper(leader.pid) as process:
        yield process
        process.kill()


def test_a_zombie_is_ending_and_a_running_process_is_not(leader):
    assert not is_ending(leader.pid)

    kill_unreaped(leader)

    assert is_ending(leader.pid)


def test_a_process_that_is_gone_is_not_ending(leader):
    leader.kill()
    leader.wait()

    assert not is_ending(leader.pid)


def test_what_is_gone_counts_as_ended_where_somebody_else_may_have_reaped_it(leader):
    assert not is_gone_or_ending(leader.pid)
    kill_unreaped(leader)
    assert is_gone_or_ending(leader.pid)
    leader.wait()
    assert is_gone_or_ending(leader.pid)


def test_a_group_lives_on_while_a_member_does(leader, member):
    leader.kill()
    leader.wait()
    assert orphans_live(leader.pid)

    kill_unreaped(member)
    os.killpg(leader.pid, signal.SIGTERM)  # for the kernel a zombie still is a member

    assert not orphans_live(leader.pid)


def test_an_empty_group_does_not_live(leader):
    leader.kill()
    leader.wait()

    assert not orphans_live(leader.pid)


def test_a_group_whose_number_names_a_process_again_is_not_ours(leader, member):
    assert not orphans_live(leader.pid)


def test_a_group_that_may_not_be_signalled_lives_all_the_same(leader, member, monkeypatch):
    def refuse(group, number):
        raise PermissionError(1, "Operation not permitted")

    leader.kill()
    leader.wait()
    monkeypatch.setattr(os, "killpg", refuse)

    assert orphans_live(leader.pid)
