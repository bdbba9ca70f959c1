"""wstunnel.toml: the shape that the README shows, and every mistake in its place."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Callable

import pytest

from tests.authority import Authority
from wstunnel.config.drafts import Problems
from wstunnel.config.rules import settle_server
from wstunnel.config.toml import load, read, read_top
from wstunnel.errors import ConfigError
from wstunnel.settings import Entrance, Host, Route, Settings, TcpAddress, UnixAddress

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path, monkeypatch) -> Write:
    """Write a wstunnel.toml beside an executable ./echo.pl and a folder www; its name as seen from that folder."""
    program = tmp_path / "echo.pl"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "www").mkdir()
    monkeypatch.chdir(tmp_path)

    def to_file(text: str) -> str:
        (tmp_path / "wstunnel.toml").write_text(textwrap.dedent(text), encoding="utf-8")
        return "wstunnel.toml"

    return to_file


def problems(path: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return list(caught.value.problems)


def test_a_whole_file_becomes_settings(write, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # who else may name a user
    path = write(
        """\
        listen = ["127.0.0.1:8081", "[::1]:0", "unix:http.sock"]
        document-root = "www"
        max-connections = 10_000
        log-level = "debug"
        log-format = "json"
        log-file = "log"
        workers = "auto"
        user = "root"
        group = "root"
        control = "c.sock"
        drain-timeout = 1
        reload-timeout = 2
        kill-timeout = 3
        allow-unsafe-places = true

        [[route]]
        path = "/ws/"
        socket = "/run/wstunnel/echo.sock"
        bin-path = "./echo.pl 'a b'"
        max-procs = 4
        min-procs = 0
        max-load-per-proc = 2
        max-load-policy = "queue"
        idle-timeout = 30
        bin-copy-environment = ["LANG"]
        listen-backlog = 100
        kill-signal = 15
        disable-time = 0
        read-timeout = 7
        write-timeout = 8
        tcp-fin-propagate = false
        frame-type = "binary"
        origins = ["https://example.com", "*.example.org"]
        subprotocols = ["chat", "binary"]
        ping-interval = 0
        ping-timeout = 1.5
        max-read-idle = 60
        max-write-idle = 0
        close-timeout = 0
        connect-timeout = 0.5
        [route.bin-environment]
        TZ = "UTC"
        X = ""

        [[route]]
        path = "/each"
        stdio = "./echo.pl -1"
        max-forks = 9

        [[route]]
        path = "/many"
        balance = "fair"
        [[route.hosts]]
        port = 7010
        [[route.hosts]]
        bin-path = "./echo.pl"
        socket = "many.sock"
        bin-environment.A = "1"
        bin-environment.B = "2"

        [[route]]
        suffix = ".chat"
        host = "backend.example"
        port = 7000

        [[route]]
        port = 7001
        """
    )
    assert load(path) == Settings(
        listen=(TcpAddress("127.0.0.1", 8081), TcpAddress("::1", 0), UnixAddress(f"{tmp_path}/http.sock")),
        document_root=f"{tmp_path}/www",
        max_connections=10_000,
        log_level="debug",
        log_format="json",
        log_file=f"{tmp_path}/log",
        workers="auto",
        user="root",
        group="root",
        control=f"{tmp_path}/c.sock",
        drain_timeout_s=1.0,
        reload_timeout_s=2.0,
        kill_timeout_s=3.0,
        allow_unsafe_places=True,
        routes=(
            Route(
                path="/ws/",
                socket="/run/wstunnel/echo.sock",
                bin_path=(f"{tmp_path}/echo.pl", "a b"),
                max_procs=4,
                min_procs=0,
                max_load_per_proc=2,
                max_load_policy="queue",
                idle_timeout_s=30.0,
                bin_environment=(("TZ", "UTC"), ("X", "")),
                bin_copy_environment=("LANG",),
                listen_backlog=100,
                kill_signal=signal.SIGTERM,
                disable_time_s=0.0,
                read_timeout_s=7.0,
                write_timeout_s=8.0,
                tcp_fin_propagate=False,
                frame_type="binary",
                origins=("https://example.com", "*.example.org"),
                subprotocols=("chat", "binary"),
                ping_interval_s=0.0,
                ping_timeout_s=1.5,
                max_read_idle_s=60.0,
                max_write_idle_s=0.0,
                close_timeout_s=0.0,
                connect_timeout_s=0.5,
            ),
            Route(path="/each", stdio=(f"{tmp_path}/echo.pl", "-1"), max_forks=9),
            Route(
                path="/many",
                balance="least-connection",
                hosts=(
                    Host(host="127.0.0.1", port=7010),
                    Host(
                        socket=f"{tmp_path}/many.sock",
                        bin_path=(f"{tmp_path}/echo.pl",),
                        bin_environment=(("A", "1"), ("B", "2")),
                    ),
                ),
            ),
            Route(path=None, suffix=".chat", host="backend.example", port=7000),
            Route(host="127.0.0.1", port=7001),
        ),
    )


def test_relative_paths_start_from_the_folder_of_the_file(write, tmp_path, monkeypatch):
    path = write('document-root = "www"\n[[route]]\nsocket = "echo.sock"\nbin-path = "./echo.pl"')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = load(f"../{path}")
    route = settings.routes[0]
    assert settings.document_root == f"{tmp_path}/www"
    assert (route.socket, route.bin_path) == (f"{tmp_path}/echo.sock", (f"{tmp_path}/echo.pl",))


def test_every_problem_is_told_at_once_in_the_order_of_the_file(write, tmp_path):
    path = write(
        """\
        listen = ["127.0.0.1:8081", ":80"]
        max_connections = 5
        documentroot = "www"

        [[route]]
        path = "ws"
        socket = 3
        max-procs = true
        log-level = "info"

        [[route]]  # suffix and path
        path = "/ab"
        suffix = ".b"
        ping-timeout = nan
        bin-path = "./nope"
        port = 99999

        [[route]]
        "a\\tb" = 3
        """
    )
    assert problems(path) == [
        'wstunnel.toml:1: listen: ":80" has no host; write 127.0.0.1:80 for this machine only, '
        "[::]:80 for every interface",
        "wstunnel.toml:2: max_connections: unknown; did you mean max-connections?",
        "wstunnel.toml:3: documentroot: unknown; did you mean document-root?",
        'wstunnel.toml:6: route[1].path: must begin with a slash, got "ws"; write "/ws"',
        "wstunnel.toml:7: route[1].socket: needs a path, got 3",
        "wstunnel.toml:8: route[1].max-procs: needs a whole number from 1 to 1024, got true",
        "wstunnel.toml:9: route[1].log-level: unknown here; log-level stands at the top of the file, "
        "before the first [[route]]",
        "wstunnel.toml:13: route[2].suffix: a route has a path or a suffix, not both",
        "wstunnel.toml:14: route[2].ping-timeout: needs seconds over 0 and up to 31536000, got nan",
        f'wstunnel.toml:15: route[2].bin-path: "{tmp_path}/nope" cannot be started: no such file or directory',
        "wstunnel.toml:16: route[2].port: needs a whole number from 1 to 65535, got 99999",
        "wstunnel.toml:18: route[3]: has no backend: it takes a socket, a port (and a host), a bin-path or a stdio",
        'wstunnel.toml:19: route[3]."a\\tb": unknown',
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("pathh = 1", "wstunnel.toml:1: pathh: unknown here; path stands in a [[route]]"),
        ("port = 1", "wstunnel.toml:1: port: unknown here; port stands in a [[route]]"),
        ("routes = []", "wstunnel.toml:1: routes: unknown; routes are written as [[route]]"),
        ("[general]\nx = 1", "wstunnel.toml:1: general: unknown"),
        ("balance = 'hash'", "wstunnel.toml:1: balance: unknown here; balance stands in a [[route]]"),
        ("[route]\nport = 1", "wstunnel.toml:1: route: write [[route]], with double brackets"),
        ("route = 5", "wstunnel.toml:1: route: needs [[route]] tables"),
        ("route = [{port = 1}, 2]", "wstunnel.toml:1: route: needs [[route]] tables"),
        ("\nroute = [\n{path = 1, port = 9}]", "wstunnel.toml:2: route[1].path: needs a URL path, got 1"),
        ("[[route]]\nport = 1\n[route.extra]\nx = 1", "wstunnel.toml:3: route[1].extra: unknown"),
        ("[[route]]\nhost = 'a'\n[route.hosts]\nport = 1",
         "wstunnel.toml:3: route[1].hosts: write [[route.hosts]], with double brackets"),
        ("[[route]]\nhosts = [1]", "wstunnel.toml:2: route[1].hosts: needs [[route.hosts]] tables"),
        ("[[route]]\n[[route.host]]\nport = 1", "wstunnel.toml:2: route[1].host: unknown; hosts are written as "
         "[[route.hosts]]"),
        ("[[route]]\n[[route.hostz]]\nport = 1", "wstunnel.toml:2: route[1].hostz: unknown; hosts are written as "
         "[[route.hosts]]"),
        ("[[route]]\n[[route.hosts]]\nport = 1\n\n[[route.hosts]]\nmax-proc = 2",
         "wstunnel.toml:6: route[1].hosts[2].max-proc: unknown; did you mean max-procs?"),
        ("[[route]]\n[[route.hosts]]\norigins = ['*']", "wstunnel.toml:3: route[1].hosts[1].origins: unknown here; "
         "origins stands in a [[route]]"),
        ("[[route]]\n[[route.hosts]]\nlog-level = 3", "wstunnel.toml:3: route[1].hosts[1].log-level: unknown here; "
         "log-level stands at the top of the file, before the first [[route]]"),
        ("[[route]]\nhosts = [{port = 1},\n{port = 'x'}]", "wstunnel.toml:2: route[1].hosts[2].port: needs a whole "
         'number from 1 to 65535, got "x"'),
        ("[[route]]\n[[route.hosts]]\nbin-path = 'cat'\n[route.hosts.bin-environment]\n\nA = 1",
         "wstunnel.toml:4: route[1].hosts[1].bin-environment: the value of A needs quotation marks"),
        ("[[route]]\nmax-procs = 3\n[[route.hosts]]\nport = 1", "wstunnel.toml:2: route[1].max-procs: cannot stand "
         "beside wstunnel.toml:3: route[1].hosts[1]; write it into each [[route.hosts]] that it is for"),
        ("[[route]]\nhosts = []", "wstunnel.toml:2: route[1].hosts: needs at least one [[route.hosts]]"),
        ("[[route]]\n[[route.hosts]]\n[[route.hosts]]\nport = 1", "wstunnel.toml:2: route[1].hosts[1]: has no "
         "backend: it takes a socket, a port (and a host), a bin-path"),
        ("[[route]]\nport.x = 1", "wstunnel.toml:2: route[1].port: needs a whole number from 1 to 65535, got a table"),
        ("[[listener]]\n[[listener]]\nlisten = 1", "wstunnel.toml:3: listener[2].listen: needs a list such as"),
        ("[[listener]]\nlisten = ':1'\nuser = 'x'", "wstunnel.toml:3: listener[1].user: unknown here; user stands at "
         "the top of the file, before the first [[route]]"),
        ("[[listener]]\nh2c = true", "wstunnel.toml:1: listener[1]: needs an address to serve: listen"),
        ("[listener]\nh2c = true", "wstunnel.toml:1: listener: write [[listener]], with double brackets"),
        ("[[listeners]]\nh2c = true", "wstunnel.toml:1: listeners: unknown; further listeners are written as "
         "[[listener]]"),
        ("lisen = ['127.0.0.1:1']", "wstunnel.toml:1: lisen: unknown; did you mean listen?"),
        ("tls-cert = 'a'\n[[route]]\nport = 1", 'wstunnel.toml:1: tls-cert: "'),
    ],
)  # fmt: skip
def test_a_name_or_table_out_of_place_is_told(write, text, problem):
    assert any(told.startswith(problem) for told in problems(write(text)))


@pytest.mark.parametrize("text", ["[[route]]\nhosts = 3", "[[route]]\n[[route.host]]\nport = 1"])
def test_hosts_that_cannot_be_read_are_one_problem(write, text):
    assert len(problems(write(text))) == 1


@pytest.mark.parametrize("text", ["", "# nothing\n", 'listen = ["127.0.0.1:1"]', "route = []"])
def test_a_file_that_serves_nothing_is_refused(write, text):
    assert problems(write(text)) == ["wstunnel.toml: nothing to serve: it takes a [[route]] or a document-root"]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"a = 1\nb == 2\n", "wstunnel.toml:2: is not TOML: Invalid value at column 4"),
        (b"a = 1\na = 2\n", "wstunnel.toml:2: is not TOML: Cannot overwrite a value at column 6"),
        (b'a = 1\nb = """\n\n', "wstunnel.toml:4: is not TOML: Unterminated string at the end"),
        (b"\nb = '\xff'\n", "wstunnel.toml:2: is not UTF-8"),
        (b"a = " + b"9" * 5000, "wstunnel.toml: is not TOML: Exceeds the limit"),
        (b"a = " + b"[" * 50_000, "wstunnel.toml: is nested too deeply"),
        (b"#" * (1024 * 1024), "wstunnel.toml: nothing to serve"),
        (b"#" * (1024 * 1024 + 1), "wstunnel.toml: has more than 1048576 bytes"),
    ],
)
def test_what_is_not_toml_is_told_with_its_line(write, tmp_path, raw, problem):
    path = write("")
    (tmp_path / path).write_bytes(raw)
    assert problems(path)[0].startswith(problem)


def test_a_byte_order_mark_is_passed_over(write, tmp_path):
    path = write("")
    (tmp_path / path).write_bytes(b"\xef\xbb\xbf[[route]]\r\nport = 7\r\n")
    assert load(path).routes == (Route(host="127.0.0.1", port=7),)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("missing.toml", "missing.toml: cannot be read: no such file or directory"),
        ("www", "www: cannot be read: is a directory"),
        ("a\0b", '"a\\x00b": is not a file name'),
    ],
)
def test_a_file_that_cannot_be_read_is_told(write, path, problem):
    write("")
    assert problems(path) == [problem]


def test_warnings_come_with_the_settings(write):
    path = write("[[route]]\nport = 1\n\n[[route]]\npath = '/ws/'\nport = 2\n")
    assert read(path).warnings == (
        "wstunnel.toml:5: route[2].path: never reached, wstunnel.toml:1: route[1] takes all its requests",
    )


def test_the_examples_are_sound():
    path = os.path.join(os.path.dirname(__file__), "..", "..", "..", "examples", "wstunnel.toml")
    settled = read(path)
    assert settled.settings.routes
    assert settled.warnings == ()


def test_a_listener_may_have_one_address_or_several(write, authority: Authority):
    files = authority.files("a")
    path = write(
        f"""
        [[listener]]
        listen = "127.0.0.1:1"
        tls-cert = "{os.path.basename(files.cert)}"
        tls-key = ["{files.key}"]
        max-streams = 7
        [[listener]]
        listen = ["[::1]:2", "unix:s"]
        h2c = true
        [[route]]
        port = 7
        """
    )
    assert load(path).listeners == (
        Entrance(listen=(TcpAddress("127.0.0.1", 1),), tls_cert=(files.cert,), tls_key=(files.key,), max_streams=7),
        Entrance(listen=(TcpAddress("::1", 2), UnixAddress(os.path.abspath("s"))), h2c=True),
    )


def test_listeners_tell_which_one_runs_whatever_else_is_wrong(write):
    path = write("[[listener]]\nlisten = '127.0.0.1:5'\ntls-cert = 5\n[[route]]\nno = 1")
    problems = Problems()
    settings = settle_server([read_top(path, ("listen", "control"), problems)], problems)
    assert settings.addresses == (TcpAddress("127.0.0.1", 5),)
