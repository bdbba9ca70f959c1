"""Rules between options, and what the file system says, in whatever way the options came in."""

from __future__ import annotations

import grp
import os
import pwd
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.authority import Authority
from wstunnel.config.drafts import Draft, Place, Problems
from wstunnel.config.rules import Settled, settle
from wstunnel.errors import ConfigError
from wstunnel.server.certificates import Material
from wstunnel.settings import Entrance, Front, Host, Route, TcpAddress, UnixAddress

NO_BACKEND = "has no backend: it takes a socket, a port (and a host), a bin-path or a stdio"
NO_HOST = "has no backend: it takes a socket, a port (and a host), a bin-path"
NO_PROGRAM = "needs a bin-path: it is about programs that are spawned here"
BESIDE_STDIO = "cannot stand beside stdio, which starts a program for each tunnel and connects to none"


class Asked:
    """Settles routes given as keywords; places read `1.port`, `server.listen`, and `1h2.port` for a host of a route."""

    def __init__(self, base: str) -> None:
        self.base = base

    def __call__(
        self,
        *routes: dict[str, object],
        refused: set[str] | None = None,
        listeners: Sequence[dict[str, object]] = (),
        **server: object,
    ) -> Settled:
        drafts = [
            self._draft(number, str(number), dict(values), refused or set()) for number, values in enumerate(routes, 1)
        ]
        top = Draft(self._where(0, "server"), self.base, dict(server))
        top.listeners = [self._draft(0, f"l{number}", dict(each), set()) for number, each in enumerate(listeners, 1)]
        return settle([top], drafts, Problems())

    def _draft(self, line: int, name: str, values: dict[str, object], refused: set[str]) -> Draft:
        hosts: list[dict[str, object]] | None = values.pop("hosts", None)
        draft = Draft(self._where(line, name), self.base, values, refused)
        if hosts is not None:
            draft.hosts = [
                self._draft(line, f"{name}h{number}", dict(host), set()) for number, host in enumerate(hosts, 1)
            ]
        return draft

    @staticmethod
    def _where(line: int, of: str) -> Callable[[str | None], Place]:
        return lambda name: Place(line, f"{of}.{name or '-'}")

    def problems(
        self,
        *routes: dict[str, object],
        refused: set[str] | None = None,
        listeners: Sequence[dict[str, object]] = (),
        **server: object,
    ) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self(*routes, refused=refused, listeners=listeners, **server)
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
        ({"host": "a"}, "1.host: needs a port beside it"),
        ({"socket": "s", "port": 1}, "1.socket: a backend has a socket or a host and port, not both"),
        ({"port": 1, "path": "/", "suffix": "x"}, "1.suffix: a route has a path or a suffix, not both"),
        ({"port": 1, "max_forks": 2}, "1.max_forks: needs a stdio or a gateway of cgi"),
        (
            {"port": 1, "max_load_per_proc": 2},
            "1.max_load_per_proc: needs a bin-path, or a max-load-policy of queue or refuse",
        ),
        ({"hosts": []}, "1.hosts: needs at least one [[route.hosts]]"),
        ({"hosts": [{}]}, f"1h1.-: {NO_HOST}"),
        (
            {"hosts": [{"port": 1}], "port": 1},
            "1.port: cannot stand beside 1h1.-; write it into each [[route.hosts]] that it is for",
        ),
        (
            {"hosts": [{"port": 1}], "tcp_fin_propagate": True},
            "1.tcp_fin_propagate: cannot stand beside 1h1.-; write it into each [[route.hosts]] that it is for",
        ),
        ({"hosts": [{"port": 1}], "stdio": ("cat",)}, "1.stdio: cannot stand beside 1.hosts"),
        ({"hosts": [{"port": 1}], "max_forks": 1}, "1.max_forks: needs a stdio or a gateway of cgi"),
        ({"port": 1, "upgrade": True}, "1.upgrade: needs a gateway of proxy or cgi or scgi or fastcgi"),
        ({"port": 1, "docroot": "www"}, "1.docroot: needs a gateway of cgi or scgi or fastcgi or static"),
        (
            {"gateway": "static", "docroot": "www", "frame_type": "text"},
            "1.frame_type: needs a stdio or a gateway of tunnel",
        ),
        (
            {"gateway": "static", "docroot": "www", "port": 1},
            "1.port: cannot stand beside a gateway of static, which connects to no backend",
        ),
        ({"gateway": "static"}, "1.gateway: needs a docroot, or an alias, beside it"),
        (
            {"gateway": "static", "docroot": "www", "alias": "www"},
            "1.alias: a route has a docroot or an alias, not both",
        ),
        (
            {"gateway": "static", "alias": "www", "suffix": ".md"},
            "1.alias: needs a path, in whose place it stands, not a suffix",
        ),
        (
            {"gateway": "cgi", "docroot": "www"},
            '1.gateway: needs a cgi-assign beside it, such as { ".pl" = "/usr/bin/perl" }',
        ),
        ({"gateway": "scgi", "port": 1, "check_local": True}, "1.check_local: needs a docroot beside it"),
        (
            {"gateway": "cgi", "docroot": "www", "cgi_assign": (("", ""),), "hosts": [{"port": 1}]},
            "1.gateway: cannot stand beside 1.hosts",
        ),
        (
            {"gateway": "proxy", "frame_type": "text", "hosts": [{"port": 1}]},
            "1.frame_type: needs a stdio or a gateway of tunnel",
        ),
        (
            {"stdio": ("cat",), "gateway": "proxy"},
            "1.gateway: cannot stand beside stdio, which starts a program for each tunnel and connects to none",
        ),
    ],
)
def test_a_route_that_says_too_little_or_too_much_is_refused(asked, route, problem):
    assert asked.problems(route) == [problem]


def test_a_socket_and_a_host_are_one_too_many(asked):
    assert asked.problems({"socket": "s", "host": "a"}) == [
        "1.host: needs a port beside it",
        "1.socket: a backend has a socket or a host and port, not both",
    ]


def test_a_host_is_not_asked_for_where_the_port_is_there(asked):
    route = asked({"port": 7}).settings.routes[0]
    assert (route.host, route.port, route.path) == ("127.0.0.1", 7, "/")


def test_a_suffix_takes_the_place_of_the_path(asked):
    route = asked({"port": 7, "suffix": ".ws"}).settings.routes[0]
    assert (route.path, route.suffix) == (None, ".ws")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_procs", 1),
        ("min_procs", 1),
        ("idle_timeout_s", 1.0),
        ("listen_backlog", 1),
        ("kill_signal", signal.SIGINT),
        ("bin_environment", (("A", "1"),)),
        ("bin_copy_environment", ("A",)),
    ],
)
def test_what_is_about_programs_needs_one(asked, name, value):
    assert asked.problems({"port": 7, name: value}) == [f"1.{name}: {NO_PROGRAM}"]
    assert getattr(asked({"port": 7, "bin_path": ("./echo",), name: value}).settings.routes[0], name) == value


def test_what_a_program_needs_is_not_asked_for_twice(asked):
    """One mistake, one problem: the bin-path is there, and could not be read."""
    assert asked({"port": 7, "max_procs": 2}, refused={"bin_path"})


@pytest.mark.parametrize("policy", ["queue", "refuse"])
def test_a_limit_that_is_kept_is_for_any_backend(asked, policy):
    host = {"port": 7, "max_load_per_proc": 2, "max_load_policy": policy}
    settled = asked(host)
    assert (settled.settings.routes[0].max_load_per_proc, settled.warnings) == (2, ())
    assert asked({**host, "bin_path": ("./echo",)}).warnings == ()


def test_a_load_that_changes_nothing_is_warned_of(asked):
    program = {"port": 7, "bin_path": ("./echo",), "max_procs": 3, "max_load_per_proc": 2}
    for fixed in (program, {**program, "min_procs": 3}):
        (warning,) = asked(fixed).warnings
        assert warning.startswith("1.max_load_per_proc: without effect: all 3 processes run from the start")
    assert asked({**program, "min_procs": 2}).warnings == ()


def test_no_more_processes_are_kept_than_there_may_be(asked):
    program = {"port": 7, "bin_path": ("./echo",)}
    assert asked({**program, "min_procs": 3, "max_procs": 3})
    assert asked.problems({**program, "min_procs": 3, "max_procs": 2}) == [
        "1.min_procs: 3 is more than max-procs, 2"
    ]  # fmt: skip
    assert asked.problems({**program, "min_procs": 2}) == [
        "1.min_procs: 2 is more than max-procs, which is 1 unless it is given"
    ]
    assert asked({**program, "min_procs": 2}, refused={"max_procs"})


# --- stdio


def test_a_program_for_each_tunnel_is_a_backend(asked):
    settled = asked({"stdio": ("./echo", "-x"), "max_forks": 5, "kill_signal": signal.SIGINT, "read_timeout_s": 1.0})
    (route,) = settled.settings.routes
    assert (route.stdio, route.max_forks, route.backends) == ((f"{asked.base}/echo", "-x"), 5, ())
    assert settled.warnings == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("socket", "s"),
        ("host", "a"),
        ("port", 7),
        ("bin_path", ("./echo",)),
        ("max_procs", 2),
        ("min_procs", 0),
        ("max_load_per_proc", 1),
        ("max_load_policy", "queue"),
        ("idle_timeout_s", 1.0),
        ("listen_backlog", 1),
        ("disable_time_s", 1.0),
        ("balance", "hash"),
    ],
)
def test_what_is_about_connecting_stands_not_beside_stdio(asked, name, value):
    assert asked.problems({"stdio": ("./echo",), name: value}) == [f"1.{name}: {BESIDE_STDIO}"]


# --- several hosts


def test_a_route_has_several_hosts(asked):
    settled = asked(
        {
            "path": "/ws",
            "balance": "hash",
            "hosts": [
                {"host": "a", "port": 7},
                {"port": 8, "connect_timeout_s": 2.0},
                {"socket": "s", "bin_path": ("./echo",), "max_procs": 2},
            ],
        }
    )
    (route,) = settled.settings.routes
    assert route == Route(
        path="/ws",
        balance="hash",
        hosts=(
            Host(host="a", port=7),
            Host(host="127.0.0.1", port=8, connect_timeout_s=2.0),
            Host(socket=f"{asked.base}/s", bin_path=(f"{asked.base}/echo",), max_procs=2),
        ),
    )
    assert settled.warnings == ()


def test_a_host_is_held_against_the_same_rules(asked):
    hosts = [{"host": "a"}, {"port": 7, "max_procs": 2}, {"socket": "s", "port": 1}, {}]
    assert asked.problems({"hosts": hosts}) == [
        "1h1.host: needs a port beside it",
        f"1h2.max_procs: {NO_PROGRAM}",
        "1h3.socket: a backend has a socket or a host and port, not both",
        f"1h4.-: {NO_HOST}",
    ]


@pytest.mark.parametrize("route", [{"port": 7}, {"hosts": [{"port": 7}]}])
def test_a_balance_with_nothing_to_choose_from_is_warned_of(asked, route):
    assert asked({**route, "balance": "sticky"}).warnings == (
        "1.balance: without effect: there is one host; several stand as [[route.hosts]]",
    )


# --- a program without a socket


@pytest.fixture
def runtime(monkeypatch) -> str:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/own")
    return "/run/own"


def test_a_program_without_a_socket_gets_one_in_the_runtime_folder(asked, runtime):
    route = asked({"bin_path": ("./echo",)}).settings.routes[0]
    assert re.fullmatch(r"/run/own/echo-[0-9a-f]{8}", route.socket)


def test_sockets_that_nobody_named_are_told_apart(asked, runtime):
    spawn = {"bin_path": ("./echo",)}
    routes = ({"path": "/a", **spawn}, {"path": "/b", **spawn}, {"path": "/b", **spawn})
    hosts = {"path": "/c", "hosts": [spawn, {"bin_path": ("./echo", "-x")}, spawn]}
    settings = asked(*routes, hosts).settings
    sockets = [host.socket for route in settings.routes for host in route.backends]
    assert len(set(sockets)) == 6
    other = asked(*routes, hosts, listen=(TcpAddress("127.0.0.1", 1),)).settings
    assert not set(sockets) & {host.socket for route in other.routes for host in route.backends}


def test_sockets_that_nobody_named_stay_the_same_when_others_come_and_go(asked, runtime):
    """A reload keeps the processes of a pool that is the same as before."""
    spawn = {"bin_path": ("./echo",)}
    before = asked({"path": "/a", **spawn}).settings.routes[0]
    after = asked({"path": "/new", **spawn}, {"path": "/a", "ping_interval_s": 1.0, **spawn}).settings.routes[1]
    assert before.socket == after.socket


def test_two_processes_at_any_port_do_not_share_sockets_that_nobody_named(asked, runtime, monkeypatch):
    def socket() -> str | None:
        return asked({"bin_path": ("./echo",)}, listen=(TcpAddress("127.0.0.1", 0),)).settings.routes[0].socket

    mine = socket()
    assert mine == socket()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert mine != socket()


def test_a_runtime_folder_that_is_too_deep_is_told(asked, monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/" + "x" * 100)
    (problem,) = asked.problems({"bin_path": ("./echo",)})
    assert problem.startswith('1.bin_path: "/xxx')
    assert problem.endswith("and the path of a socket at most 107")


# --- order


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
        control="c.sock",
        log_file="www/../log",
    ).settings
    assert (settings.control, settings.log_file) == (f"{asked.base}/c.sock", f"{asked.base}/log")
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
    (problem,) = asked.problems({"stdio": (program,)})
    assert problem.startswith("1.stdio: ")
    assert problem.endswith(text.format(base=asked.base))


@pytest.mark.parametrize("program", ["./nope", "./notes", "./www", "nope"])
def test_a_program_on_demand_may_come_later(asked, program):
    settled = asked({"port": 7, "bin_path": (program,), "min_procs": 0}, {"path": "/b", "port": 8})
    (warning,) = (warning for warning in settled.warnings if "never reached" not in warning)
    assert warning.startswith("1.bin_path: ")
    assert warning.endswith("; with min-procs = 0 its clients get 503 until it can be started")
    assert os.path.basename(settled.settings.routes[0].bin_path[0]) == os.path.basename(program)


def test_a_log_file_has_a_folder_and_is_none(asked):
    assert asked.problems(log_file="www") == [
        f'server.log_file: "{asked.base}/www" is a folder; name a file in it'
    ]  # fmt: skip
    assert asked.problems(log_file="nope/log") == [
        f'server.log_file: the folder "{asked.base}/nope" does not exist; create it'
    ]


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
    assert asked.problems({"socket": "s", **spawn}, {"socket": "s", "bin_path": ("./echo", "-x")}) == [
        f'2.socket: "unix:{asked.base}/s-0" belongs to the backend of route 1, which differs in bin-path'
    ]
    assert asked.problems({"port": 7, "max_procs": 3, **spawn}, {"port": 9, **spawn}) == [
        '2.port: "127.0.0.1:9" belongs to the backend of route 1, which differs in port, max-procs'
    ]
    assert asked({"port": 7, "max_procs": 2, **spawn}, {"port": 9, **spawn})
    hosts = [{"port": 7, "max_procs": 2, **spawn}, {"port": 8, "max_procs": 2, **spawn}]
    assert asked.problems({"hosts": hosts}) == [
        '1h2.port: "127.0.0.1:8" belongs to host 1 of route 1, which differs in port'
    ]


def test_two_routes_share_one_program_if_all_is_the_same(asked):
    """lighttpd does so for two entries with the same socket and bin-path."""
    spawn = {"socket": "s", "bin_path": ("./echo",), "max_procs": 2}
    settings = asked({"path": "/a", **spawn}, {"path": "/b", "hosts": [spawn], "frame_type": "binary"}).settings
    assert settings.routes[0].socket == settings.routes[1].hosts[0].socket
    assert asked({"path": "/a", **spawn}, {"path": "/b", **spawn, "connect_timeout_s": 1.0})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("max_procs", 3, "max-procs"),
        ("min_procs", 1, "min-procs"),
        ("idle_timeout_s", 1.0, "idle-timeout"),
        ("bin_environment", (("A", "1"),), "bin-environment"),
        ("bin_copy_environment", ("A",), "bin-copy-environment"),
        ("listen_backlog", 1, "listen-backlog"),
        ("kill_signal", signal.SIGINT, "kill-signal"),
    ],
)
def test_what_keeps_two_routes_from_sharing_a_program_is_named(asked, name, value, told):
    spawn = {"socket": "s", "bin_path": ("./echo",), "max_procs": 2}
    assert asked.problems({"path": "/a", **spawn}, {"path": "/b", **spawn, name: value}) == [
        f'2.socket: "unix:{asked.base}/s-0" belongs to the backend of route 1, which differs in {told}'
    ]


def test_the_control_socket_is_no_other_socket(asked):
    assert asked.problems(listen=(UnixAddress("s"),), control="./s") == [
        f'server.control: "{asked.base}/s" belongs to a listener'
    ]
    assert asked.problems({"socket": "c-0"}, control="c-0") == [
        f'1.socket: "unix:{asked.base}/c-0" belongs to the control socket'
    ]
    assert asked.problems(control="/" + "c" * 107)[0].endswith("and the path of a socket at most 107")


def test_a_route_may_use_what_another_spawns(asked):
    spawned = {"socket": "s", "bin_path": ("./echo",)}
    assert asked(spawned, {"socket": "s-0"}, {"socket": "s-0"})
    assert asked({"socket": "s-0"}, spawned)


def test_the_ports_of_all_processes_are_ports(asked):
    assert asked({"port": 65534, "max_procs": 2, "bin_path": ("./echo",)})
    assert asked.problems({"port": 65535, "max_procs": 2, "bin_path": ("./echo",)}) == [
        "1.port: 2 processes from port 65535 on would go past 65535"
    ]


# --- who we are


ACCOUNTS = {"www": 4711, "me": 1234}


@pytest.fixture
def accounts(monkeypatch) -> None:
    """There are users and groups www (4711) and me (1234)."""

    def uid(name: str) -> pwd.struct_passwd:
        return pwd.struct_passwd((name, "x", ACCOUNTS[name], ACCOUNTS[name], "", "/", "/bin/sh"))

    monkeypatch.setattr(pwd, "getpwnam", uid)
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", ACCOUNTS[name], [])))


@pytest.fixture
def be(monkeypatch) -> Callable[[int], None]:
    def become(number: int) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: number)
        monkeypatch.setattr(os, "getegid", lambda: number)

    return become


@pytest.mark.usefixtures("accounts")
def test_root_may_become_anybody(asked, be):
    be(0)
    assert asked({"port": 7}, user="www", group="me").settings.user == "www"


@pytest.mark.usefixtures("accounts")
def test_only_root_may_become_another(asked, be):
    be(1234)
    assert asked({"port": 7}, user="me", group="me")
    assert asked.problems({"port": 7}, user="www", group="www") == [
        "server.user: only root may become another user: start as root, or leave it out",
        "server.group: only root may take another group: start as root, or leave it out",
    ]


@pytest.mark.usefixtures("accounts")
def test_who_we_become_has_to_be_there(asked):
    assert asked.problems({"port": 7}, user="nö", group="no") == [
        'server.user: there is no user "n\\xf6" on this machine',
        'server.group: there is no group "no" on this machine',
    ]


# --- places


def test_places_that_are_not_safe_are_refused_with_where_they_were_written(asked):
    os.chmod(asked.base, 0o777)
    found = asked.problems(
        {"path": "/a", "bin_path": ("./echo",), "socket": "s"},
        {"path": "/b", "stdio": ("./echo",)},
        {"path": "/c", "hosts": [{"port": 7}, {"bin_path": ("./echo",), "port": 8}]},
        listen=(TcpAddress("127.0.0.1", 1), UnixAddress("http.sock")),
        control="c.sock",
    )
    places = ["server.listen", "server.control", "1.bin_path", "1.socket", "2.stdio", "3h2.bin_path"]
    assert [problem.partition(":")[0] for problem in found] == places
    assert all(f'everybody may write to "{asked.base}" (mode 0777)' in problem for problem in found)


@pytest.mark.parametrize("where", [{"docroot": "www"}, {"alias": "www", "path": "/cgi/"}], ids=["docroot", "alias"])
def test_a_folder_of_scripts_is_looked_at(asked, where):
    route = {"gateway": "cgi", "cgi_assign": ((".pl", ""),), **where}
    (option, *_) = where
    os.chmod(f"{asked.base}/www", 0o755)
    assert asked(route).warnings == ()

    os.chmod(f"{asked.base}/www", 0o777)
    (problem,) = asked.problems(route)
    assert problem.startswith(
        f'1.{option}: everybody may write to "{asked.base}/www" (mode 0777) and could put scripts'
    )
    assert asked(route, allow_unsafe_places=True).warnings == ()
    assert asked({"gateway": "static", **where}).warnings == ()

    os.chmod(f"{asked.base}/www", 0o1777)
    (warning,) = asked(route).warnings
    assert warning.startswith(f'1.{option}: everybody may put files into "{asked.base}/www": scripts in')


def test_sockets_of_others_are_theirs_to_keep_safe(asked):
    os.chmod(asked.base, 0o777)
    assert asked({"socket": "s"}).warnings == ()


def test_a_socket_that_nobody_named_is_looked_at_too(asked, monkeypatch, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    (problem,) = asked.problems({"bin_path": ("./echo",)})
    assert problem.startswith(
        f'1.bin_path: everybody may write to "{tmp_path}/run" (mode 0777) and could bind a socket'
    )


def test_places_that_are_not_safe_are_taken_if_it_is_said(asked):
    os.chmod(asked.base, 0o777)
    settled = asked({"bin_path": ("./echo",), "socket": "s"}, allow_unsafe_places=True)
    assert settled.settings.allow_unsafe_places
    assert settled.warnings == ()


def test_a_sticky_folder_is_warned_of(asked):
    """As in lighttpd's own examples: --socket /tmp/echo.sock --bin-path /tmp/echo.pl."""
    os.chmod(asked.base, 0o1777)
    warnings = asked({"bin_path": ("./echo",), "socket": "s"}).warnings
    assert [warning.partition(":")[0] for warning in warnings] == ["1.bin_path", "1.socket"]
    assert all(f'everybody may put files into "{asked.base}"' in warning for warning in warnings)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_user_that_we_become_is_trusted(asked, accounts):
    os.chown(f"{asked.base}/echo", ACCOUNTS["www"], -1)
    assert "belongs to user 4711, who could run" in asked.problems({"port": 7, "bin_path": ("./echo",)})[0]
    assert asked({"port": 7, "bin_path": ("./echo",)}, user="www").warnings == ()


def test_a_program_that_may_come_later_is_not_looked_at(asked):
    (warning,) = asked({"port": 7, "bin_path": ("/tmp/no such program",), "min_procs": 0}).warnings
    assert "cannot be started" in warning


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


# --- fronts

ECHO = {"port": 7}
ADDRESS, OTHER, THIRD = TcpAddress("127.0.0.1", 1), TcpAddress("127.0.0.1", 2), UnixAddress("/run/wstunnel/third")


def test_listeners_beside_listen_have_fronts_of_their_own(asked, authority: Authority):
    files = authority.files("a")
    settled = asked(
        ECHO,
        listen=(ADDRESS,),
        h2c=True,
        listeners=[{"listen": (OTHER, THIRD), "tls_cert": (files.cert,), "tls_key": (files.key,)}],
        allow_unsafe_places=True,
    )
    tls = Front(tls_cert=(files.cert,), tls_key=(files.key,))
    assert settled.settings.addresses == (ADDRESS, OTHER, THIRD)
    assert settled.settings.fronts == (Front(h2c=True), tls, tls)
    assert settled.material.pem.keys() == {files.cert, files.key}


def test_without_listen_the_listeners_are_all(asked):
    assert asked(ECHO, listeners=[{"listen": (OTHER,)}]).settings.addresses == (OTHER,)
    assert asked(ECHO).settings.addresses == (TcpAddress("127.0.0.1", 8081),)


def test_a_later_listen_is_in_the_place_of_all_listeners(asked):
    file = Draft(asked._where(0, "file"), asked.base, {"h2c": True})
    file.listeners = [Draft(asked._where(0, "l1"), asked.base, {"listen": (OTHER,), "max_streams": 7})]
    flags = Draft(asked._where(0, "flags"), asked.base, {"listen": (ADDRESS,)})
    settings = settle([file, flags], [Draft(asked._where(1, "1"), asked.base, dict(ECHO))], Problems()).settings
    assert (settings.addresses, settings.fronts) == ((ADDRESS,), (Front(h2c=True),))


def test_options_for_listen_are_warned_of_where_there_is_no_listen(asked):
    settled = asked(ECHO, h2c=True, listeners=[{"listen": (OTHER,)}])
    told = "server.h2c: without effect: it is for listen, and every [[listener]] has its own"
    assert (settled.warnings, settled.settings.listeners) == ((told,), (Entrance(listen=(OTHER,)),))


@pytest.mark.parametrize(
    ("server", "listeners", "told"),
    [
        ({}, [{"h2c": True}], ["l1.-: needs an address to serve: listen"]),
        ({"listen": (OTHER,)}, [{"listen": (OTHER,)}], ['l1.listen: "127.0.0.1:2" stands at server.listen already']),
        ({}, [{"listen": (OTHER, OTHER)}], ['l1.listen: "127.0.0.1:2" stands there twice']),
        ({"tls_key": ("a",)}, [], ["server.tls_key: needs a tls-cert beside it"]),
        ({}, [{"listen": (OTHER,), "tls_client_ca": "a"}], ["l1.tls_client_ca: needs a tls-cert beside it"]),
        (
            {"tls_client_verify": "optional", "tls_cert": ("a",)},
            [],
            ["server.tls_client_verify: needs a tls-client-ca beside it"],
        ),
        (
            {"tls_cert": ("a", "b", "c"), "tls_key": ("a", "b")},
            [],
            [
                "server.tls_key: has 2 of 3 keys; name one for each, the certificate's own file where the key is in it",
            ],
        ),
        (
            {"tls_cert": ("a",), "io": "protocol"},
            [],
            ["server.tls_cert: cannot stand beside io = protocol, which is for sockets without TLS"],
        ),
        (
            {"tls_cert": ("none",)},
            [{"listen": (OTHER,), "tls_cert": ("nor",), "tls_key": ("that",)}],
            [
                'server.tls_cert: "{base}/none" cannot be read: no such file or directory',
                'l1.tls_cert: "{base}/nor" cannot be read: no such file or directory',
                'l1.tls_key: "{base}/that" cannot be read: no such file or directory',
            ],
        ),
    ],
)
def test_what_is_wrong_with_a_front_is_told_at_its_place(asked, server, listeners, told):
    if listeners and "tls_cert" in server:
        server = {"listen": (ADDRESS,), **server}
    assert asked.problems(ECHO, listeners=listeners, **server) == [each.format(base=asked.base) for each in told]


def test_an_option_that_could_not_be_read_is_not_missing(asked):
    top = Draft(asked._where(0, "server"), asked.base, {"tls_key": ("a",)}, {"tls_cert"})
    problems = Problems()
    problems.add(Place(0, "server.tls_cert"), "is nothing")
    with pytest.raises(ConfigError) as caught:
        settle([top], [Draft(asked._where(1, "1"), asked.base, dict(ECHO))], problems)
    assert caught.value.problems == ("server.tls_cert: is nothing",)


def test_h2c_means_nothing_beside_tls(asked, authority: Authority):
    settled = asked(ECHO, tls_cert=(authority.files("a").both,), h2c=True)
    assert settled.warnings == ("server.h2c: without effect: with TLS clients take HTTP/2 as they like",)


def test_unsafe_places_that_are_allowed_do_not_make_a_key_public(asked, authority: Authority):
    files = authority.files("a")
    os.chmod(files.both, 0o644)
    (told,) = asked.problems(ECHO, tls_cert=(files.both,), allow_unsafe_places=True)
    assert "holds a private key that others may read" in told


def test_what_we_may_not_read_any_more_is_a_warning(asked, authority: Authority, monkeypatch):
    files = authority.files("a")
    top = Draft(asked._where(0, "server"), asked.base, {"tls_cert": (files.both,)})
    held = Material({files.both: Path(files.both).read_bytes()})
    opened = os.open

    def checked(path: str, *more: int, **options: int) -> int:
        if path == files.both:
            raise PermissionError(13, "Permission denied")
        return opened(path, *more, **options)

    monkeypatch.setattr(os, "open", checked)
    settled = settle([top], [Draft(asked._where(1, "1"), asked.base, dict(ECHO))], Problems(), held)
    assert settled.material == held
    (told,) = settled.warnings
    assert told.startswith(f'server.tls_cert: "{files.both}" cannot be read any more: what it said stays in use')
