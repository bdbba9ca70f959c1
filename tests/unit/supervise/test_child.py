"""One running process: how to watch it, end it, and learn how it ended."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from wstunnel.supervise import procfs
from wstunnel.supervise.child import Child, ExitStatus


def start(*argv: str) -> Child:
    return Child.of(subprocess.Popen(argv, process_group=0))


def wait_for(child: Child) -> ExitStatus | None:
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    status = child.reap()
    child.close()
    return status


@pytest.mark.parametrize(
    ("status", "text", "is_clean"),
    [
        (ExitStatus(code=0), "exited with status 0", True),
        (ExitStatus(code=255), "exited with status 255", False),
        (ExitStatus(signal=11), "killed by SIGSEGV", False),
        (ExitStatus(signal=40), "killed by signal 40", False),
        (ExitStatus(), "ended", False),
    ],
)
def test_a_status_reads_as_what_happened_and_only_zero_is_clean(status, text, is_clean):
    assert (str(status), status.clean) == (text, is_clean)


def test_an_exit_code_is_told():
    assert wait_for(start("sh", "-c", "exit 7")) == ExitStatus(code=7)


def test_a_signal_is_told():
    child = start("sleep", "1000")
    child.signal_group(signal.SIGTERM)

    assert wait_for(child) == ExitStatus(signal=signal.SIGTERM)


def test_a_core_dump_is_told_as_its_signal():
    assert wait_for(start("sh", "-c", "ulimit -c 0; kill -ABRT $$")) == ExitStatus(signal=signal.SIGABRT)


def test_a_child_is_taken_over_by_its_numbers():
    """An upgrade in place: the same process, another program in it."""
    popen = subprocess.Popen(["sh", "-c", "exit 7"], process_group=0)
    popen.returncode = 0
    child = Child(popen.pid, os.pidfd_open(popen.pid))

    assert wait_for(child) == ExitStatus(code=7)


def test_a_process_that_runs_has_no_status():
    child = start("sleep", "1000")

    assert child.reap() is None
    assert not child.is_exiting()

    child.signal_group(signal.SIGKILL)
    wait_for(child)


def test_signalling_a_process_that_is_gone_is_no_error():
    child = start("true")
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    child.reap()

    child.signal_group(signal.SIGTERM)
    child.close()


def test_signalling_a_process_that_is_not_ours_to_signal_is_no_error(monkeypatch):
    def refuse(group, number):
        raise PermissionError(1, "Operation not permitted")

    child = start("sleep", "1000")
    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", refuse)
        child.signal_group(signal.SIGTERM)
    child.signal_group(signal.SIGKILL)

    assert wait_for(child) == ExitStatus(signal=signal.SIGKILL)


def test_a_process_that_is_exiting_is_looked_up_once(monkeypatch):
    """A thousand tunnels of one dead process all ask."""
    looks = []
    child = start("true")
    os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
    monkeypatch.setattr(procfs, "is_ending", lambda pid: looks.append(pid) or True)

    assert [child.is_exiting() for _ in range(3)] == [True] * 3
    assert looks == [child.pid]
    wait_for(child)


def test_a_process_that_cannot_be_watched_is_ended(monkeypatch):
    def fail(pid):
        raise OSError(24, "Too many open files")

    popen = subprocess.Popen(["sleep", "1000"])
    monkeypatch.setattr(os, "pidfd_open", fail)

    with pytest.raises(OSError, match="Too many open files"):
        Child.of(popen)

    assert popen.returncode == -signal.SIGKILL
