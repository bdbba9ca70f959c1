"""Becoming another version of the program: what is asked first, what is handed over, and what a failure leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Run, children, open_descriptors
from tests.wire.sockets import DEADLINE_S
from wstunnel import cli
from wstunnel.errors import StartError
from wstunnel.server.image import STATE_FORMAT, STATE_VARIABLE, Image, inherited_state

ROOT = Path(cli.__file__).parent.parent
SIGNALS = (signal.SIGTERM, signal.SIGHUP)
STATE: dict[str, object] = {"material": {}}


@pytest.fixture(autouse=True)
def _nothing_is_left(_warm_loops: None) -> Iterator[None]:
    fds, processes, mask = open_descriptors(), children(), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    assert open_descriptors().keys() == fds.keys()
    assert children() == processes
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(program))


# --- trying out


def test_the_arguments_are_checked_by_the_program_that_would_run(run: Run, tmp_path):
    program = python(f"import sys; open({str(tmp_path / 'said')!r}, 'w').write(repr(sys.argv[1:]))")
    run(Image(program, ("--port", "7000")).try_out(STATE, DEADLINE_S))
    assert (tmp_path / "said").read_text() == "['check', '--port', '7000']"


def test_what_the_program_says_last_against_it_is_the_reason(run: Run):
    program = python("import sys; sys.exit('first\\nthe option --x is gone\\x1b')")
    with pytest.raises(StartError, match=r"the new version does not start: the option --x is gone\\x1b$"):
        run(Image(program, ()).try_out(STATE, DEADLINE_S))


def test_a_program_that_is_not_there_is_the_reason(run: Run):
    with pytest.raises(StartError, match="/nowhere/python: cannot be started: No such file or directory"):
        run(Image(("/nowhere/python",), ()).try_out(STATE, DEADLINE_S))


def test_a_program_that_hangs_is_ended(run: Run):
    with pytest.raises(StartError, match=r"the new version said nothing for 0\.05 s"):
        run(Image(("/bin/sh", "-c", "exec sleep 1000"), ()).try_out(STATE, 0.05))


def test_a_trial_that_is_cancelled_leaves_no_process(run: Run):
    async def story() -> None:
        task = asyncio.create_task(Image(("/bin/sh", "-c", "exec sleep 1000"), ()).try_out(STATE, DEADLINE_S))
        while not children():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(story())


def test_this_very_version_takes_over_from_itself(run: Run, monkeypatch):
    monkeypatch.chdir(ROOT)
    run(Image((sys.executable, "-m", "wstunnel"), ("--port", "7000")).try_out(STATE, DEADLINE_S))


def test_a_version_with_another_form_of_state_is_refused_before_anything_happens(run: Run, monkeypatch):
    monkeypatch.chdir(ROOT)
    later = python(f"""
        import sys
        from wstunnel.server import image
        image.STATE_FORMAT = {STATE_FORMAT + 1}
        from wstunnel.cli import main
        sys.exit(main(sys.argv[1:]))
    """)
    with pytest.raises(StartError, match="this version cannot go on where the one that runs has stopped"):
        run(Image(later, ("--port", "7000")).try_out(STATE, DEADLINE_S))


# --- becoming

BECOME = """
    import os, signal, sys
    from wstunnel.server.image import Image
    kept, lost = os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)
    then = '''
    import os, signal, sys
    from wstunnel.server.image import STATE_VARIABLE, inherited_state
    state = inherited_state(os.environ[STATE_VARIABLE])
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3, 20) if os.path.exists(f"/proc/self/fd/{fd}")]
    blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    print(os.getpid() == state["pid"], state["kept"] == sys.argv[1:], "/dev/null" in links, "/dev/zero" in links,
          any("wstunnel-state" in link for link in links), *(each.name for each in blocked))
    '''
    image = Image((sys.executable, "-c", then), ("a", "b c"))
    image.become({"pid": os.getpid(), "kept": ["a", "b c"]}, [kept], (signal.SIGTERM, signal.SIGHUP))
"""


def test_the_same_process_goes_on_with_what_it_was_handed_and_signals_wait():
    done = subprocess.run(python(BECOME), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout == "True True True False False SIGHUP SIGTERM\n"


def test_a_program_that_cannot_be_executed_changes_nothing():
    """(Descriptors and signals are looked at behind every test.)"""
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        with pytest.raises(StartError, match="/nowhere/python: cannot be started: No such file or directory"):
            Image(("/nowhere/python",), ()).become({}, [fd], SIGNALS)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_without_a_descriptor_for_the_state_nothing_changes(monkeypatch):
    def none(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", none)
    with pytest.raises(StartError, match="Too many open files"):
        Image((sys.executable,), ()).become({}, [], SIGNALS)


# --- what was left


def state_of(text: bytes) -> str:
    fd = os.memfd_create("state")
    os.write(fd, text)
    os.lseek(fd, 0, os.SEEK_SET)
    return str(fd)


def test_a_state_is_read_and_its_descriptor_closed():
    said = state_of(json.dumps({"format": STATE_FORMAT, "a": [1]}).encode())
    assert inherited_state(said) == {"format": STATE_FORMAT, "a": [1]}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(int(said))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff"])
def test_what_is_no_state_is_an_error(text):
    with pytest.raises(StartError, match=f"{STATE_VARIABLE}: [0-9]+ is no state of an earlier image: "):
        inherited_state(state_of(text))


@pytest.mark.parametrize("text", [b"[]", b"{}", b'{"format": 0}', b'{"format": null}'])
def test_the_state_of_another_version_is_an_error(text):
    with pytest.raises(StartError, match="this version cannot go on"):
        inherited_state(state_of(text))


@pytest.mark.parametrize("said", ["", "x\n", "-1", "999999"])
def test_a_variable_that_names_no_descriptor_is_an_error(said):
    with pytest.raises(StartError, match=f"{STATE_VARIABLE}: .*is no state of an earlier image"):
        inherited_state(said)


# --- how a process was started


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "wstunnel"),
        ("-P", "-m", "wstunnel"),
        ("-X", "dev", "-m", "wstunnel"),
        ("-c", "import sys; from wstunnel.cli import main; sys.exit(main())"),
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_an_image_is_the_interpreter_as_it_was_called(words, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\natexit.register(lambda: print(sys.modules['wstunnel.cli']._interpreter(2)))\n"
    )
    done = subprocess.run(
        [sys.executable, *words, "--nonsense", "x"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == f"{(sys.executable, *words)}\n"
