"""Where sockets go that nobody has named."""

from __future__ import annotations

import os

import pytest

from wstunnel.config import runtime
from wstunnel.config.runtime import backend_socket, control_socket, keep_runtime_folder, runtime_folder
from wstunnel.errors import ConfigError
from wstunnel.settings import Settings, TcpAddress, UnixAddress
from wstunnel.sockets import SOCKET_PATH_BYTES


@pytest.fixture(autouse=True)
def _no_session(monkeypatch) -> None:
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> str:
    """The runtime folder."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(runtime, "_SYSTEM_FOLDER", str(tmp_path / "system"))
    return str(tmp_path)


# --- the folder


def test_the_service_manager_says_where(monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/a:/run/b")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert runtime_folder() == "/run/a"


def test_the_session_says_where_if_it_is_ours(monkeypatch, tmp_path):
    if os.geteuid() == 0:
        os.chown(tmp_path, 1234, -1)
        monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_folder() == f"{tmp_path}/wstunnel"


@pytest.mark.parametrize("session", ["{folder}", "{folder}/missing", "relative", ""])
def test_the_session_of_somebody_else_is_left_alone(monkeypatch, tmp_path, session):
    """`sudo -E -u` keeps it in the environment."""
    somebody = os.geteuid() + 1234
    monkeypatch.setattr(os, "geteuid", lambda: somebody)
    monkeypatch.setenv("XDG_RUNTIME_DIR", session.format(folder=tmp_path))
    assert runtime_folder() == f"/tmp/wstunnel-{somebody}"


def test_root_has_one_folder_with_a_session_and_without(monkeypatch):
    """What a login shell asks for was started by the boot."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "relative")
    assert runtime_folder() == "/run/wstunnel"


def test_the_folder_can_be_kept_when_we_become_another_user(monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", "")  # so that it is put back
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    keep_runtime_folder()
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert runtime_folder() == "/run/wstunnel"


# --- backends


def test_a_backend_socket_is_named_after_the_program(folder):
    path = backend_socket("/srv/echo.pl", ("/",))
    assert path.startswith(f"{folder}/echo.pl-")
    assert len(path) == len(f"{folder}/echo.pl-") + 8


def test_a_backend_socket_is_the_same_for_the_same_and_another_for_another(folder):
    assert backend_socket("/a/echo", ("/", None)) == backend_socket("/b/echo", ("/", None))
    assert backend_socket("/a/echo", ("/", None)) != backend_socket("/a/echo", ("/x", None))


def test_a_name_in_the_runtime_folder_is_short_and_printable(folder):
    path = backend_socket("/srv/" + "ä b\n\x1b" * 40, ())
    assert path.isascii()
    assert path.isprintable()
    assert " " not in path.removeprefix(folder)
    assert len(path) - len(folder) <= 50


# --- the control socket


def test_the_control_socket_that_is_set_is_taken(folder):
    settings = Settings(control="/run/c.sock")
    assert control_socket(settings) == control_socket(settings, settings.listen) == "/run/c.sock"


@pytest.mark.parametrize(
    ("listener", "name"),
    [
        (TcpAddress("127.0.0.1", 8081), "control-127.0.0.1:8081"),
        (TcpAddress("::", 80), "control-[::]:80"),
        (TcpAddress("localhost", 80), "control-localhost:80"),
    ],
)
def test_the_control_socket_is_named_after_the_first_listener(folder, listener, name):
    settings = Settings(listen=(listener, TcpAddress("127.0.0.2", 1)))
    assert control_socket(settings) == control_socket(settings, settings.listen) == f"{folder}/{name}"


@pytest.mark.parametrize("listener", [UnixAddress("/run/" + "x" * 100), TcpAddress("a." * 120, 80)])
def test_a_long_name_is_cut_and_stays_its_own(folder, listener):
    other = UnixAddress(listener.path + "y") if isinstance(listener, UnixAddress) else TcpAddress("b." * 120, 80)
    path, other_path = (control_socket(Settings(listen=(each,))) for each in (listener, other))
    assert path != other_path
    assert len(path) - len(folder) <= 60


def test_a_unix_listener_is_named_by_its_file_and_told_apart_by_its_folder(folder):
    first, second = (control_socket(Settings(listen=(UnixAddress(f"/{name}/http.sock"),))) for name in "ab")
    assert first.startswith(f"{folder}/control-http.sock-")
    assert first != second


def test_a_port_that_the_kernel_chose_is_in_the_name(folder):
    settings = Settings(listen=(TcpAddress("127.0.0.1", 0),))
    assert control_socket(settings, (TcpAddress("127.0.0.1", 4711),)) == f"{folder}/control-127.0.0.1:4711"


def test_the_only_one_at_any_port_is_found(folder):
    for name in ("control-127.0.0.1:4711", "control-127.0.0.2:1", "control-127.0.0.1:80.old"):
        open(f"{folder}/{name}", "w").close()
    assert control_socket(Settings(listen=(TcpAddress("127.0.0.1", 0),))) == f"{folder}/control-127.0.0.1:4711"


def test_one_of_none_or_of_several_at_any_port_cannot_be_told(folder):
    settings = Settings(listen=(TcpAddress("127.0.0.1", 0),))
    with pytest.raises(
        ConfigError, match=r"control: 127.0.0.1:0 may be any port, and none is there; name the port, or"
    ):
        control_socket(settings)
    for port in (80, 90):
        open(f"{folder}/control-127.0.0.1:{port}", "w").close()
    with pytest.raises(
        ConfigError, match=r"2 have been started from here \(control-127.0.0.1:80, control-127.0.0.1:90"
    ):
        control_socket(settings)


def test_a_folder_that_is_missing_holds_none(monkeypatch, tmp_path):
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}/missing")
    with pytest.raises(ConfigError, match="none is there"):
        control_socket(Settings(listen=(TcpAddress("127.0.0.1", 0),)))


def test_who_asks_finds_the_service_of_the_system(folder):
    os.mkdir(f"{folder}/system")
    theirs = f"{folder}/system/control-127.0.0.1:8081"
    open(theirs, "w").close()
    assert control_socket(Settings()) == theirs
    assert control_socket(Settings(), Settings().listen) == f"{folder}/control-127.0.0.1:8081"
    open(f"{folder}/control-127.0.0.1:8081", "w").close()
    assert control_socket(Settings()) == f"{folder}/control-127.0.0.1:8081"


def test_a_control_socket_that_cannot_be_bound_is_told(monkeypatch):
    room = SOCKET_PATH_BYTES - len("/control-127.0.0.1:8081")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/" + "x" * (room - 1))
    assert len(control_socket(Settings(), Settings().listen)) == SOCKET_PATH_BYTES
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/" + "x" * room)
    with pytest.raises(ConfigError, match="is too long for a socket; give control a shorter path"):
        control_socket(Settings(), Settings().listen)
