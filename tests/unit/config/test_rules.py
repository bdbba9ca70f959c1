"""Rules between options, and what the file system says, in whatever way the options came in."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from wstunnel.config.rules import Draft, Place, Problems, Settled, settle
from wstunnel.errors import ConfigError
from wstunnel.settings import TcpAddress, UnixAddress

NO_BACKEND = "has no backend: it takes a socket, or a port (and a host)"


class Asked:
    """Settles routes given as keywords; places read `1.port`, `server.listen`."""

    def __init__(self, base: str) -> None:
        self.base = base

    def __call__(self, *routes: dict[str, object], refused: set[str] | None = None, **server: object) -> Settled:
        drafts = [
            Draft(self._where(number, str(number)), self.base, dict(values), refused or set())
            for number, values in enumerate(routes, 1)
        ]
        return settle([Draft(self._where(0, "server"), self.base, dict(server))], drafts, Problems())

    @staticmethod
    def _where(line: int, of: str) -> Callable[[str | None], Place]:
        return lambda name: Place(line, f"{of}.{name or '-'}")

    def problems(self, *routes: dict[str, object], refused: set[str] | None = None, **server: object) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self(*routes, refused=refused, **server)
        return list(caught.value.problems)


@pytest.fixture
def asked(tmp_path) -> Asked:
    (tmp_path / "echo").write_text("#!/bin/sh\n")
    (tmp_path / "echo").chmod(0o755)
    (tmp_path / "notes").write_text("")
    (tmp_path / "www").mkdir()
    return Asked(str(tmp_path))


# --- a route has one backend and one way to be found


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        ({}, f"1.-: {NO_BACKEND}"),
        ({"bin_path": ("./echo",)}, f"1.-: {NO_BACKEND}"),
        ({"host": "a"}, "1.host: needs a port beside it"),
        ({"socket": "s", "port": 1}, "1.socket: a route has a socket or a host and port, not both"),
        ({"port": 1, "path": "/", "suffix": "x"}, "1.suffix: a route has a path or a suffix, not both"),
        ({"port": 1, "max_procs": 2}, "1.max_procs: needs a bin-path: only programs that are spawned here are counted"),
    ],
)
def test_a_route_that_says_too_little_or_too_much_is_refused(asked, route, problem):
    assert asked.problems(route) == [problem]


def test_a_socket_and_a_host_are_one_too_many(asked):
    assert asked.problems({"socket": "s", "host": "a"}) == [
        "1.host: needs a port beside it",
        "1.socket: a route has a socket or a host and port, not both",
    ]


def test_a_host_is_not_asked_for_where_the_port_is_there(asked):
    route = asked({"port": 7}).settings.routes[0]
    assert (route.host, route.port, route.path) == ("127.0.0.1", 7, "/")


def test_a_suffix_takes_the_place_of_the_path(asked):
    route = asked({"port": 7, "suffix": ".ws"}).settings.routes[0]
    assert (route.path, route.suffix) == (None, ".ws")


def test_one_process_is_no_count(asked):
    assert asked({"port": 7, "max_procs": 1}).settings.routes[0].max_procs == 1


@pytest.mark.parametrize("name", ["socket", "port"])
def test_what_was_written_but_not_read_is_not_missed(asked, name):
    """One mistake, one problem."""
    assert asked({}, refused={name}).settings.routes[0]


def test_problems_come_in_the_order_of_their_lines(asked):
    found = asked.problems({"host": "a"}, {"port": 1, "max_procs": 2}, {}, listen=(UnixAddress("a"), UnixAddress("a")))
    assert [problem.partition(":")[0] for problem in found] == ["server.listen", "1.host", "2.max_procs", "3.-"]


# --- files


def test_paths_become_absolute(asked):
    settings = asked(
        {"socket": "a/../b.sock", "bin_path": ("./echo", "-x")},
        listen=(UnixAddress("http.sock"), TcpAddress("localhost", 0)),
        document_root="./www/",
    ).settings
    assert settings.listen == (UnixAddress(f"{asked.base}/http.sock"), TcpAddress("localhost", 0))
    assert settings.document_root == f"{asked.base}/www"
    assert settings.routes[0].socket == f"{asked.base}/b.sock"
    assert settings.routes[0].bin_path == (f"{asked.base}/echo", "-x")


def test_a_program_without_a_slash_is_looked_for_where_programs_are(asked, monkeypatch):
    monkeypatch.setenv("PATH", asked.base)
    assert asked({"port": 7, "bin_path": ("cat", "-u")}).settings.routes[0].bin_path[0] in {"/usr/bin/cat", "/bin/cat"}
    (problem,) = asked.problems({"port": 7, "bin_path": ("notes",)})
    assert problem == (
        '1.bin_path: no program "notes" in /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; '
        "write ./notes for one in the current folder, or its whole path"
    )


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("./nope", '"{base}/nope" cannot be started: no such file or directory'),
        ("./notes/x", '"{base}/notes/x" cannot be started: not a directory'),
        ("./notes", '"{base}/notes" is not executable; chmod +x makes it so'),
        ("./www", '"{base}/www" is not a program'),
        ("/" + "x" * 5000, "cannot be started: file name too long"),
    ],
)
def test_a_program_that_cannot_be_started_is_told(asked, program, text):
    (problem,) = asked.problems({"port": 7, "bin_path": (program,)})
    assert problem.endswith(text.format(base=asked.base))


def test_a_document_root_is_a_folder(asked):
    assert asked.problems(document_root="notes") == [f'server.document_root: "{asked.base}/notes" is not a folder']


def test_a_document_root_that_may_not_be_read_is_told(asked, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not path.endswith("www"))
    assert asked.problems(document_root="www") == [
        f'server.document_root: "{asked.base}/www" may not be read by this user'
    ]


# --- addresses


def test_a_listener_stands_there_once(asked):
    twice = (TcpAddress("::", 80), TcpAddress("::", 80), UnixAddress("a"), UnixAddress("./a"))
    assert asked.problems(listen=twice) == [
        'server.listen: "[::]:80" stands there twice',
        f'server.listen: "unix:{asked.base}/a" stands there twice',
    ]


def test_any_number_of_listeners_may_take_any_port(asked):
    free = (TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", 0))
    assert asked(listen=free, document_root="www").settings.listen == free


def test_the_path_of_a_socket_has_its_length(asked):
    fits = "/" + "s" * 106
    assert asked({"socket": fits})
    assert asked.problems({"socket": fits + "s"})[0].endswith("has 108 bytes, and the path of a socket at most 107")
    assert asked.problems({"socket": fits, "bin_path": ("./echo",)})[0].endswith(
        '-0" has 109 bytes, and the path of a socket at most 107'
    )
    assert asked.problems(listen=(UnixAddress("/" + "ä" * 54),))[0].endswith("at most 107")


def test_a_backend_is_not_a_listener(asked):
    listen = (UnixAddress("s"), TcpAddress("127.0.0.1", 80))
    assert asked.problems({"socket": "s"}, {"port": 80}, listen=listen) == [
        f'1.socket: "unix:{asked.base}/s" belongs to a listener',
        '2.port: "127.0.0.1:80" belongs to a listener',
    ]
    assert asked.problems({"port": 8081}) == ['1.port: "127.0.0.1:8081" belongs to a listener']


def test_two_programs_do_not_share_an_address(asked):
    spawn = {"bin_path": ("./echo",)}
    assert asked.problems({"socket": "s", **spawn}, {"socket": "s", **spawn}) == [
        f'2.socket: "unix:{asked.base}/s-0" belongs to the backend of route 1'
    ]
    assert asked.problems({"port": 7, "max_procs": 3, **spawn}, {"port": 9, **spawn}) == [
        '2.port: "127.0.0.1:9" belongs to the backend of route 1'
    ]
    assert asked({"port": 7, "max_procs": 2, **spawn}, {"port": 9, **spawn})


def test_a_route_may_use_what_another_spawns(asked):
    spawned = {"socket": "s", "bin_path": ("./echo",)}
    assert asked(spawned, {"socket": "s-0"}, {"socket": "s-0"})
    assert asked({"socket": "s-0"}, spawned)


def test_the_ports_of_all_processes_are_ports(asked):
    assert asked({"port": 65534, "max_procs": 2, "bin_path": ("./echo",)})
    assert asked.problems({"port": 65535, "max_procs": 2, "bin_path": ("./echo",)}) == [
        "1.port: 2 processes from port 65535 on would go past 65535"
    ]


# --- warnings


@pytest.mark.parametrize(
    ("earlier", "later", "is_swallowed"),
    [
        ({"path": "/"}, {"path": "/ws"}, True),
        ({"path": "/"}, {"suffix": ".ws"}, True),
        ({"path": "/ws"}, {"path": "/ws"}, True),
        ({"path": "/ws"}, {"path": "/wsx"}, True),
        ({"path": "/ws/"}, {"path": "/ws"}, False),
        ({"path": "/ws"}, {"suffix": "/ws"}, False),
        ({"suffix": "s"}, {"suffix": "ws"}, True),
        ({"suffix": "ws"}, {"suffix": "s"}, False),
        ({"suffix": "s"}, {"path": "/ws"}, False),
    ],
)
def test_a_route_that_no_request_reaches_is_warned_of(asked, earlier, later, is_swallowed):
    warnings = asked({"port": 1, **earlier}, {"port": 2, **later}).warnings
    what = "path" if "path" in later else "suffix"
    assert warnings == ((f"2.{what}: never reached, 1.- takes all its requests",) if is_swallowed else ())


def test_an_argument_that_the_program_will_not_find_is_warned_of(asked):
    warnings = asked({"port": 1, "bin_path": ("cat", "-u", "notes", "missing")}).warnings
    assert len(warnings) == 1
    assert '"notes" is not in /' in warnings[0]
    assert f'write "{asked.base}/notes" if it names a file' in warnings[0]


def test_an_argument_beside_the_program_is_found(asked):
    assert asked({"port": 1, "bin_path": ("./echo", "notes")}).warnings == ()
