"""A lighttpd.conf as Settings: what becomes of each option, and a warning for all that becomes nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wstunnel.config import flags, toml
from wstunnel.config.check import as_toml
from wstunnel.config.lighttpd import is_lighttpd_conf
from wstunnel.config.lighttpd.convert import load, read, read_top
from wstunnel.config.lighttpd.known import OPTIONS as OPTIONS_DONE
from wstunnel.config.rules import Settled
from wstunnel.errors import ConfigError
from wstunnel.settings import Condition, Host, Route, Settings, TcpAddress, UnixAddress

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path, monkeypatch) -> Write:
    """Write a lighttpd.conf beside an executable ./echo.pl and a folder www; its name as seen from that folder."""
    program = tmp_path / "echo.pl"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "www").mkdir()
    monkeypatch.chdir(tmp_path)

    def to_file(text: str) -> str:
        (tmp_path / "lighttpd.conf").write_text(textwrap.dedent(text), encoding="utf-8")
        return "lighttpd.conf"

    return to_file


def settled(path: str) -> Settled:
    """What a file amounts to; what its wstunnel.toml says is the same."""
    found = read(path)
    with open("as.toml", "w", encoding="utf-8") as file:
        file.write(as_toml(found.settings))
    assert toml.load("as.toml") == found.settings
    return found


def settings_of(path: str) -> Settings:
    return settled(path).settings


def routes_of(path: str) -> tuple[Route, ...]:
    return settled(path).settings.routes


def warnings_of(path: str) -> list[str]:
    """What is said about the file, but for the places of programs, which differ with the folder of the test."""
    return [warning for warning in settled(path).warnings if "may put files into" not in warning]


def problems_of(path: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return list(caught.value.problems)


TUNNEL = 'server.modules += ("mod_wstunnel")\nwstunnel.origins = ("https://a.example")\nwstunnel.ping-interval = 0\n'
"""With everything said that is warned of otherwise."""


def tunnel(host: str, rest: str = "") -> str:
    return f'{TUNNEL}{rest}\nwstunnel.server = ("/ws/" => (({host})))'


def host_of(write: Write, said: str) -> Route:
    (route,) = routes_of(write(tunnel(said)))
    return route


# --- which file is one


@pytest.mark.parametrize(
    ("path", "is_one"), [("lighttpd.conf", True), ("/a/b.conf", True), ("a.toml", False), ("a", False)]
)
def test_a_name_that_ends_with_conf_is_one(path, is_one):
    assert is_lighttpd_conf(path) is is_one


# --- whole files


def test_a_tunnel_beside_a_page(write, tmp_path):
    """The first of lighttpd's own examples, in other words."""
    path = write(
        """\
        server.document-root = "www"   # the page
        server.bind = "127.0.0.1"
        server.port = 8081

        server.modules += ("mod_wstunnel")
        wstunnel.server = ( "/ws/" => ( ( "socket" => "echo.sock", "bin-path" => "./echo.pl", "max-procs" => 1 ) ) )
        """
    )
    assert settings_of(path) == Settings(
        listen=(TcpAddress("127.0.0.1", 8081),),
        document_root=str(tmp_path / "www"),
        routes=(
            Route(
                path="/ws/",
                socket=str(tmp_path / "echo.sock"),
                bin_path=(str(tmp_path / "echo.pl"),),
                max_procs=1,
            ),
        ),
    )
    assert [warning.partition(" (")[0] for warning in warnings_of(path)] == [
        "lighttpd.conf:6: wstunnel.server: differs from lighttpd on purpose: pages of other origins are refused",
        "lighttpd.conf:6: bin-path: differs from lighttpd on purpose: only our own user may connect to its sockets",
    ]


def test_a_proxy_for_everything(write, tmp_path):
    """The second one."""
    path = write(
        """\
        server.document-root = "www"
        server.bind = "127.0.0.1"
        server.port = 8080
        server.modules += ("mod_proxy")
        proxy.server = ( "/" => (( "host" => "127.0.0.1", "port" => "8081" )))
        proxy.header = ( "upgrade" => "enable" )
        """
    )
    assert routes_of(path) == (Route(path="/", gateway="proxy", host="127.0.0.1", port=8081, upgrade=True),)


def test_programs_below_a_path(write, tmp_path):
    """The third one, with a document root around it."""
    path = write(
        """\
        server.document-root = "www"
        server.modules += ("mod_cgi")
        $HTTP["url"] =^ "/ws/" {
          cgi.assign = ("" => "")
          cgi.upgrade = 1
          #cgi.limits = ( "read-timeout" => 60 )
        }
        """
    )
    assert routes_of(path) == (
        Route(path="/ws/", gateway="cgi", docroot=str(tmp_path / "www"), cgi_assign=(("", ""),), upgrade=True),
    )


@pytest.mark.parametrize("kind", ["scgi", "fastcgi"])
def test_a_backend_that_speaks_a_kind_of_cgi(write, tmp_path, kind):
    """The last two, in which a comma is missing."""
    path = write(
        f"""\
        server.document-root = "www"
        server.modules += ("mod_{kind}")
        {kind}.server = ("/ws/" =>
            ((
                "socket" => "{kind}.sock",
                "bin-path" => "./echo.pl"  # whichever
                "check-local" => "disable",
                "min-procs" => 1,
                "max-procs" => 1,
                "upgrade" => 1
                #"read-timeout" => 60,
            ))
        )
        """
    )
    assert routes_of(path) == (
        Route(
            path="/ws/",
            gateway=kind,
            socket=str(tmp_path / f"{kind}.sock"),
            bin_path=(str(tmp_path / "echo.pl"),),
            docroot=str(tmp_path / "www"),
            upgrade=True,
        ),
    )
    assert any("lighttpd.conf:7: a comma is missing" in warning for warning in warnings_of(path))


# --- the server


@pytest.mark.parametrize(
    ("said", "listen"),
    [
        ("", [TcpAddress("0.0.0.0", 80)]),
        ("server.port = 8080", [TcpAddress("0.0.0.0", 8080)]),
        ('server.port = "8080"', [TcpAddress("0.0.0.0", 8080)]),
        ('server.bind = "*"', [TcpAddress("0.0.0.0", 80)]),
        ('server.bind = "::1"', [TcpAddress("::1", 80)]),
        ('server.bind = "[::]"\nserver.port = 81', [TcpAddress("::", 81)]),
        ('server.bind = "localhost"', [TcpAddress("localhost", 80)]),
        ('server.bind = "127.0.0.1:81"', [TcpAddress("127.0.0.1", 81)]),
        ('server.bind = "/run/x.sock"', [UnixAddress("/run/x.sock")]),
        ('server.use-ipv6 = "enable"', [TcpAddress("::", 80)]),
        ('$SERVER["socket"] == ":8080" { }', [TcpAddress("0.0.0.0", 80), TcpAddress("0.0.0.0", 8080)]),
        ('$SERVER["socket"] == ":80" { }', [TcpAddress("0.0.0.0", 80)]),
        ('$SERVER["socket"] == "127.0.0.1" { }', [TcpAddress("0.0.0.0", 80), TcpAddress("127.0.0.1", 80)]),
        ('$SERVER["socket"] == "/run/x.sock" { }', [TcpAddress("0.0.0.0", 80), UnixAddress("/run/x.sock")]),
        ('$SERVER["socket"] != ":8080" { }', [TcpAddress("0.0.0.0", 80)]),
        ('$HTTP["cookie"] == "x" { $SERVER["socket"] == ":8080" { } }', [TcpAddress("0.0.0.0", 80)]),
    ],
)
def test_listeners(write, said, listen):
    assert list(settings_of(write(f'server.document-root = "www"\n{said}')).listen) == listen


def test_the_rest_of_the_server(write, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    path = write(
        """\
        server.document-root = "www"
        server.modules = ()
        server.max-connections = "100"
        server.max-worker = 2
        server.username = "root"
        server.groupname = "root"
        server.errorlog = "error.log"
        server.feature-flags = ("server.graceful-shutdown-timeout" => 20)
        """
    )
    assert settled(path) == Settled(
        Settings(
            listen=(TcpAddress("0.0.0.0", 80),),
            max_connections=100,
            workers=2,
            user="root",
            group="root",
            drain_timeout_s=20.0,
            document_root=str(tmp_path / "www"),
            log_file=str(tmp_path / "error.log"),
        ),
        (),
    )


def test_users_stay_who_they_are(write, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    path = write('server.document-root = "www"\nserver.username = "nobody"\nserver.groupname = "nogroup"')
    found = settled(path)

    assert (found.settings.user, found.settings.group) == (None, None)
    assert [warning.partition(",")[0] for warning in found.warnings] == [
        "lighttpd.conf:2: server.username: ignored",
        "lighttpd.conf:3: server.groupname: ignored",
    ]


def test_settings_of_the_command_line_win(write):
    path = write('server.document-root = "www"\nserver.port = 8080')
    said = flags.flag_parser().parse_args(["-f", path, "--listen", "127.0.0.1:0", "--allow-unsafe-places", "true"])
    found = flags.settings_of(said).settings

    assert found.listen == (TcpAddress("127.0.0.1", 0),)
    assert found.allow_unsafe_places


def test_the_top_is_read_though_the_rest_is_wrong(write):
    path = write(
        'server.document-root = "www"\nserver.port = 8080\nserver.max-connections = "many"\nwstunnel.server = 5'
    )
    assert read_top(path, ("listen", "control")).values == {"listen": (TcpAddress("0.0.0.0", 8080),)}


# --- tunnels


def test_the_policy_of_a_tunnel(write):
    (route,) = routes_of(
        write(
            """\
            server.modules = ("mod_wstunnel")
            wstunnel.server = ("/ws/" => (("host" => "127.0.0.1", "port" => "7000")))
            wstunnel.frame-type = "Binary"
            wstunnel.ping-interval = "5"
            wstunnel.origins = ("https://a.example", "b.example")
            server.max-read-idle = 60
            server.max-write-idle = 61
            """
        )
    )
    assert route == Route(
        path="/ws/",
        host="127.0.0.1",
        port=7000,
        frame_type="binary",
        ping_interval_s=5.0,
        origins=("https://a.example", "*.b.example"),
        max_read_idle_s=60.0,
        max_write_idle_s=61.0,
    )


@pytest.mark.parametrize(
    ("said", "ours", "warned"),
    [
        ("*", "*", False),
        ("http://a.example:8080", "http://a.example:8080", False),
        ("a.example", "*.a.example", True),
        (".a.example", "*.a.example", True),
    ],
)
def test_origins_let_in_whom_lighttpd_lets_in(write, said, ours, warned):
    path = write(
        'server.modules = ("mod_wstunnel")\nwstunnel.ping-interval = 1\n'
        f'wstunnel.server = ("" => (("port" => 1)))\nwstunnel.origins = ("{said}")'
    )
    assert routes_of(path)[0].origins == (ours,)
    assert bool(warnings_of(path)) is warned


def test_a_path_is_a_prefix_and_everything_else_a_suffix(write):
    path = write(
        f'{TUNNEL}wstunnel.server = ("/a" => (("port" => 1)), ".ws" => (("port" => 2)), "" => (("port" => 3)))'
    )
    assert [(route.path, route.suffix, route.port) for route in routes_of(path)] == [
        ("/a", None, 1),
        (None, ".ws", 2),
        ("/", None, 3),
    ]


def test_mapped_extensions_come_first(write):
    path = write(
        f'{TUNNEL}wstunnel.map-extensions = (".x" => "/a", ".y" => "/none")\n'
        'wstunnel.server = ("/a" => (("port" => 1)))'
    )
    assert [(route.suffix or route.path, route.port) for route in routes_of(path)] == [(".x", 1), ("/a", 1)]
    assert warnings_of(path) == ['lighttpd.conf:4: wstunnel.map-extensions: there is no "/none" in wstunnel.server']


def test_several_hosts_are_balanced(write, tmp_path):
    path = write(
        f'{TUNNEL}wstunnel.balance = "hash"\n'
        'wstunnel.server = ("/" => ("a" => ("host" => "10.0.0.1", "port" => 1), "b" => ("host" => "/run/b.sock")))'
    )
    assert routes_of(path)[0].hosts == (Host(host="10.0.0.1", port=1), Host(socket="/run/b.sock"))
    assert routes_of(path)[0].balance == "hash"


@pytest.mark.parametrize(("said", "ours"), [("fair", "least-connection"), ("zork", "least-connection")])
def test_other_words_for_a_balance(write, said, ours):
    path = write(f'{TUNNEL}wstunnel.balance = "{said}"\nwstunnel.server = ("/" => (("port" => 1), ("port" => 2)))')
    assert routes_of(path)[0].balance == ours
    assert len(warnings_of(path)) == (said == "zork")


# --- hosts


@pytest.mark.parametrize(
    ("said", "most", "least"),
    [
        ("", 4, None),
        ('"max-procs" => 1', 1, None),
        ('"max-procs" => "6"', 6, 4),
        ('"min-procs" => 0', 4, 0),
        ('"min-procs" => 9', 4, None),
        ('"min-procs" => 2, "max-procs" => 3', 3, 2),
        ('"min_procs" => 2, "max_procs" => 2', 2, None),
    ],
)
def test_processes_are_counted_as_by_lighttpd(write, said, most, least):
    route = host_of(write, f'"socket" => "s", "bin-path" => "./echo.pl", {said}')
    assert (route.max_procs, route.min_procs) == (most, least)


def test_every_option_of_a_host(write, tmp_path):
    said = (
        '"host" => "127.0.0.1", "port" => 7000, "bin-path" => "./echo.pl -a \\"b c", "min-procs" => 1,'
        '"max-procs" => 2, "max-load-per-proc" => 3, "idle-timeout" => 4, "disable-time" => 5,'
        '"bin-environment" => ("A" => "b", "C" => 1), "bin-copy-environment" => ("LANG", "TZ"),'
        '"listen-backlog" => 6, "kill-signal" => 10, "connect-timeout" => 7, "write-timeout" => 8,'
        '"read-timeout" => 9, "tcp-fin-propagate" => "disable"'
    )
    assert host_of(write, said) == Route(
        path="/ws/",
        origins=("https://a.example",),
        ping_interval_s=0.0,
        host="127.0.0.1",
        port=7000,
        bin_path=(str(tmp_path / "echo.pl"), "-a", '"b', "c"),
        min_procs=1,
        max_procs=2,
        max_load_per_proc=3,
        idle_timeout_s=4.0,
        disable_time_s=5.0,
        bin_environment=(("A", "b"), ("C", "1")),
        bin_copy_environment=("LANG", "TZ"),
        listen_backlog=6,
        kill_signal=signal.SIGUSR1,
        connect_timeout_s=7.0,
        write_timeout_s=8.0,
        read_timeout_s=9.0,
        tcp_fin_propagate=False,
    )


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ('"host" => "10.0.0.1"', (None, "10.0.0.1", 80)),
        ('"port" => "81"', (None, "127.0.0.1", 81)),
        ('"socket" => "/run/x"', ("/run/x", None, None)),
        ('"host" => "/run/x"', ("/run/x", None, None)),
        ('"bin-path" => "./echo.pl"', (None, "127.0.0.1", 80)),
    ],
)
def test_where_a_backend_is(write, said, address):
    route = host_of(write, said)
    assert (route.socket, route.host, route.port) == address


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('"max-id" => 4', "max-id: unknown; it is ignored"),
        ('"max-prox" => 4', "max-prox: unknown; it is ignored; did you mean max-procs?"),
        ('"x-sendfile" => "enable"', "x-sendfile: not done here"),
        ('"max-procs" => 4', "max-procs: ignored: needs a bin-path"),
        ('"connect-timeout" => 0', "connect-timeout: 0 is not done here: it stays at 8 seconds"),
    ],
)
def test_what_a_host_says_in_vain_is_warned_of(write, said, told):
    (warning,) = warnings_of(write(tunnel(f'"port" => 1,\n{said}')))
    assert warning.startswith(f"lighttpd.conf:6: {told}")


# --- proxies


def test_a_proxy_with_all_it_can_say(write):
    path = write(
        """\
        server.modules = ("mod_proxy")
        proxy.server = ("/a" => (("host" => "10.0.0.1", "upgrade" => "enable")), "/b" => (("port" => 1)))
        proxy.forwarded = ("for" => 1, "proto" => "enable", "by" => 0, "remote_user" => 1)
        proxy.header = ("https-remap" => "enable")
        """
    )
    first, second = routes_of(path)
    assert (first.upgrade, second.upgrade) == (True, False)
    assert first.forwarded == ("for", "proto")
    assert [warning.partition(" is not")[0] for warning in warnings_of(path)[1:]] == [
        'lighttpd.conf:3: proxy.forwarded: "remote_user"',
        'lighttpd.conf:4: proxy.header: "https-remap"',
    ]


# --- cgi and files


def test_scripts_are_looked_for_where_an_alias_says(write, tmp_path):
    (tmp_path / "bin").mkdir()
    first, second, files = routes_of(
        write(
            """\
            server.document-root = "www"
            server.modules = ("mod_alias", "mod_cgi")
            alias.url = ("/cgi-bin/" => "bin/")
            cgi.assign = (".sh" => "/bin/sh", ".x" => "")
            cgi.limits = ("read-timeout" => 5, "write-timeout" => "6", "tcp-fin-propagate" => "SIGTERM")
            """
        )
    )
    scripts = ((".sh", "/bin/sh"), (".x", ""))
    assert (first.path, first.alias, first.docroot, first.cgi_assign) == (
        "/cgi-bin/",
        str(tmp_path / "bin"),
        None,
        scripts,
    )
    assert (second.docroot, second.cgi_assign) == (str(tmp_path / "www"), scripts)
    assert second.when == (Condition("url", "!~", r"\A/cgi\-bin/"),)
    assert (first.read_timeout_s, first.write_timeout_s, first.kill_signal) == (5.0, 6.0, signal.SIGTERM)
    assert (files.gateway, files.path, files.alias) == ("static", "/cgi-bin/", str(tmp_path / "bin"))


def test_files_with_types_and_an_index_are_a_route(write, tmp_path):
    (route,) = routes_of(
        write(
            """\
            server.document-root = "www"
            index-file.names = ("a.html", "b.html")
            mimetype.assign = ("" => "x/y", ".a" => "a/b")
            """
        )
    )
    assert route == Route(
        gateway="static",
        docroot=str(tmp_path / "www"),
        index_file_names=("a.html", "b.html"),
        mimetype_assign=((".a", "a/b"), ("", "x/y")),
    )


def test_another_document_root_for_a_host(write, tmp_path):
    (tmp_path / "other").mkdir()
    path = write('server.document-root = "www"\n$HTTP["host"] == "Other" { server.document-root = "other" }')
    assert routes_of(path) == (
        Route(gateway="static", docroot=str(tmp_path / "other"), when=(Condition("host", "==", "other"),)),
    )


def test_a_backend_is_asked_only_if_there_is_a_file(write, tmp_path):
    path = write(
        """\
        server.document-root = "www"
        server.modules = ("mod_fastcgi", "mod_proxy")
        fastcgi.server = (".php" => (("socket" => "/run/php.sock", "docroot" => ".")),
                          "/x" => (("port" => 1, "check-local" => "disable")))
        proxy.server = ("" => (("port" => 2)))
        """
    )
    assert [(route.gateway, route.suffix or route.path, route.check_local) for route in routes_of(path)] == [
        ("fastcgi", "/x", False),
        ("proxy", "/", False),
        ("fastcgi", ".php", True),
    ]
    assert routes_of(path)[2].docroot == str(tmp_path)


# --- conditions


def test_conditions_decide_about_options(write):
    """The last block that holds wins, as in lighttpd, though the first route does."""
    path = write(
        f"""\
        {TUNNEL.replace(chr(10), chr(10) + " " * 8)}
        wstunnel.server = ("/ws/" => (("port" => 1)))
        $HTTP["host"] == "b" {{ wstunnel.frame-type = "binary" }}
        $HTTP["url"] =^ "/ws/c" {{ wstunnel.server = ("" => (("port" => 2))) }}
        """
    )
    found = [
        (route.path, route.frame_type, route.port, [str(each) for each in route.when]) for route in routes_of(path)
    ]
    assert found == [
        ("/ws/c", "binary", 2, ["host == b"]),
        ("/ws/", "binary", 1, ["host == b", r"url !~ \A/ws/c"]),
        ("/ws/c", "text", 2, ["host != b"]),
        ("/ws/", "text", 1, ["host != b", r"url !~ \A/ws/c"]),
    ]


def test_else_is_everything_else(write):
    path = write(
        'server.modules = ("mod_proxy")\n'
        '$HTTP["host"] == "a" { proxy.server = ("" => (("port" => 1))) }\n'
        'else $SERVER["socket"] == ":81" { proxy.server = ("" => (("port" => 2))) }\n'
        'else { proxy.server = ("" => (("port" => 3))) }\n'
    )
    assert [(route.port, [str(each) for each in route.when]) for route in routes_of(path)] == [
        (1, ["host == a"]),
        (2, ["host != a", "socket == 0.0.0.0:81"]),
        (3, ["host != a", "socket != 0.0.0.0:81"]),
    ]


def test_a_path_that_a_condition_excludes_makes_no_route(write):
    path = write(
        f'{TUNNEL}$HTTP["url"] =^ "/a/" {{ wstunnel.server = ("/a/b" => (("port" => 1)), "/b" => (("port" => 2))) }}'
    )
    assert [(route.path, route.when) for route in routes_of(path)] == [("/a/b", ())]


def test_combinations_of_conditions_are_bounded(write):
    blocks = "".join(f'$HTTP["url"] =~ "{n}" {{ wstunnel.frame-type = "binary" }}\n' for n in range(20))
    (told,) = problems_of(write(tunnel('"port" => 1', blocks)))
    assert "there are more than 256 combinations of conditions about wstunnel" in told


# --- what is not done


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("url.access-deny = ()", "url.access-deny: not done here: what it denies IS SERVED"),
        ("auth.require = ()", "auth.require: not done here: EVERYBODY PASSES"),
        ("zork.foo = 1", "zork.foo: not done here; it is ignored"),
        ('index-file.name = ("a")', "index-file.name: not done here; it is ignored; did you mean index-file.names?"),
        ("proxy.debug = 1", "proxy.debug: ignored, as by lighttpd"),
        ("cgi.assign = ()", 'cgi.assign: ignored, as by lighttpd: server.modules += ("mod_cgi")'),
        ("server.tag = 1", "server.tag: not done here"),
        ('server.modules = ("mod_zork")', 'server.modules: "mod_zork": not done here'),
        ('server.errorlog = "|logger"', "server.errorlog: a log cannot be a program"),
        ('server.feature-flags = ("x" => 1)', 'server.feature-flags["x"]: not done here'),
        ('$HTTP["url"] == "/" { server.port = 1 }', "server.port: is for the whole server"),
        ('$HTTP["remote-ip"] == "::1" { auth.x = 1 }', '$HTTP["remote-ip"]: not asked here'),
        ('$SERVER["socket"] =~ ":80" { }', '$SERVER["socket"] is asked with == and != only'),
    ],
)
def test_what_is_not_done_is_warned_of_with_its_line(write, said, told):
    (warning,) = warnings_of(write(f'server.document-root = "www"\n{said}'))
    assert warning.startswith(f"lighttpd.conf:2: {told}")


def test_what_is_done_is_not_warned_of(write):
    path = write('server.document-root = "www"\nserver.modules = ("mod_indexfile", "mod_staticfile", "mod_alias")')
    assert warnings_of(path) == []


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("", "lighttpd.conf: nothing to serve"),
        ('server.port = "x"', 'lighttpd.conf:1: server.port: needs a whole number, got "x"'),
        ("server.port = 65536", "lighttpd.conf:1: server.port: "),
        ('server.document-root = "none"', "lighttpd.conf:1: server.document-root: "),
        ('server.bind = "a b"', 'lighttpd.conf:1: server.bind: "a b" is not an address'),
        ("server.bind = 5", "lighttpd.conf:1: server.bind: needs a string, got 5"),
        ('server.modules = ("a" => ("b"))', "lighttpd.conf:1: server.modules: needs a string, got a list"),
        ("server.max-connections = ()", "lighttpd.conf:1: server.max-connections: needs a whole number, got a list"),
        ('server.use-ipv6 = "maybe"', 'lighttpd.conf:1: server.use-ipv6: needs "enable" or "disable"'),
        ('ssl.engine = "enable"', "lighttpd.conf:1: ssl.engine: needs an ssl.pemfile: the certificate, with its key"),
        ('ssl.engine = "perhaps"', 'lighttpd.conf:1: ssl.engine: needs "enable" or "disable"'),
        ('server.feature-flags = ("server.h2c" => ())', "lighttpd.conf:1: server.feature-flags: needs"),
        ('$SERVER["socket"] == "a b" { }', 'lighttpd.conf:1: "a b" is not an address'),
        ("server.feature-flags = 1", "lighttpd.conf:1: server.feature-flags: needs a list"),
    ],
)
def test_what_the_server_cannot_be_is_an_error(write, said, told):
    assert problems_of(write(said))[0].startswith(told)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("wstunnel.server = 1", "wstunnel.server: needs a list such as"),
        ('wstunnel.server = ("a")', "wstunnel.server: needs entries such as"),
        ('wstunnel.server = ("/a" => "x")', 'wstunnel.server["/a"]: needs hosts'),
        ('wstunnel.server = ("/a" => ("port" => 1))', 'wstunnel.server["/a"]: needs one more pair of ( )'),
        ('wstunnel.server = ("/a" => (("port" => "x")))', 'port: needs a whole number, got "x"'),
        ('wstunnel.server = ("/a" => (("port" => 1, "mode" => "authorizer")))', "mode: "),
        ('wstunnel.server = ("/a" => (("port" => 1, "socket" => "/x")))', "socket: a backend has a socket or"),
        ('wstunnel.server = ("/a" => (()))', 'wstunnel.server["/a"]: has no backend'),
        ('wstunnel.server = ("/a%20b" => (("port" => 1)))', 'wstunnel.server["/a%20b"]: requests are decoded'),
        ('wstunnel.server = ("" => (("bin-path" => " ", "socket" => "/x")))', "bin-path: needs a program"),
        (
            'wstunnel.server = ("" => (("bin-path" => "/none", "socket" => "/x")))',
            'bin-path: "/none" cannot be started',
        ),
        ('wstunnel.server = ("" => (("port" => 1)))\nwstunnel.origins := ("")', "wstunnel.origins: "),
        ('wstunnel.server = ("" => (("port" => 1)))\nwstunnel.origins := ("a b")', "wstunnel.origins: "),
        ('wstunnel.server = ("" => (("port" => 1)))\nwstunnel.ping-interval := "x"', "wstunnel.ping-interval: "),
        ('wstunnel.server = ("" => (("port" => 1)))\nwstunnel.frame-type = 1', "wstunnel.frame-type: needs a string"),
        (
            'wstunnel.server = ("" => (("port" => 1)))\nwstunnel.map-extensions = 1',
            "wstunnel.map-extensions: needs a list",
        ),
        ('proxy.server = ("" => (("port" => 1)))\nproxy.forwarded = ("x" => 1)', "proxy.forwarded: needs for, proto"),
        ('proxy.server = ("" => (("port" => 1)))\nproxy.header = ("upgrade" => "x")', "proxy.header: needs "),
        ('cgi.assign = ("" => "")', "cgi.assign: needs a server.document-root"),
        ('server.document-root = "www"\ncgi.assign = (".pl")', "cgi.assign: needs entries such as"),
        ('server.document-root = "www"\ncgi.assign = ("" => "")\ncgi.limits = 1', "cgi.limits: needs a list"),
        ('server.document-root = "www"\nalias.url = ("/a" => 1)', "alias.url: needs a string"),
        ('server.document-root = "www"\nalias.url = ("a" => "www")', "alias.url: needs a path"),
    ],
)
def test_what_a_route_cannot_be_is_an_error(write, said, told):
    path = write(
        f'server.modules = ("mod_wstunnel", "mod_proxy", "mod_cgi", "mod_alias")\n{TUNNEL.partition(chr(10))[2]}{said}'
    )
    assert any(problem.partition(": ")[2].startswith(told) for problem in problems_of(path)), problems_of(path)


def test_one_mistake_is_told_once(write):
    assert problems_of(write(tunnel('"port" => "x"'))) == ['lighttpd.conf:5: port: needs a whole number, got "x"']


def test_a_module_that_is_loaded_twice_is_one(write):
    assert len(routes_of(write(tunnel('"port" => 1', 'server.modules += ("mod_wstunnel")')))) == 1


@pytest.mark.parametrize("name", sorted(OPTIONS_DONE))
@pytest.mark.parametrize("step", ["(a, a)", '("" => a, "b" => a)', '("socket" => a, "/" => ((a)))'])
def test_lists_of_shared_lists_are_never_walked_through(write, name, step):
    """Written out, the value has 2**60 entries."""
    path = write(f'server.document-root = "www"\na = "x"\n{f"a := {step}" * 60}\n{name} := a\nb = a')
    with contextlib.suppress(ConfigError):
        load(path)


@pytest.mark.parametrize("name", ["server.port", "server.max-connections"])
def test_a_number_has_as_many_digits_as_it_needs(write, name):
    (told,) = problems_of(write(f'server.document-root = "www"\n{name} = "{"9" * 5000}"'))
    assert told.startswith(f"lighttpd.conf:2: {name}: needs a whole number")


def test_all_that_is_wrong_is_told_at_once(write):
    path = write(tunnel('"port" => "x", "max-procs" => "y", "bin-path" => "/none"', "server.port = 70000\na = b"))
    assert [problem.split(": ")[1].split(" ")[0] for problem in problems_of(path)] == [
        "server.port",
        "var.b",
        "port",
        "max-procs",
        "bin-path",
    ]


# --- anything at all

OPTIONS = st.sampled_from(
    [
        "server.port",
        "server.bind",
        "server.modules",
        "server.document-root",
        "server.feature-flags",
        "server.max-read-idle",
        "wstunnel.server",
        "wstunnel.origins",
        "wstunnel.frame-type",
        "wstunnel.map-extensions",
        "proxy.server",
        "proxy.header",
        "proxy.forwarded",
        "cgi.assign",
        "cgi.limits",
        "cgi.upgrade",
        "fastcgi.server",
        "alias.url",
        "index-file.names",
        "mimetype.assign",
        "ssl.engine",
        "other.option",
    ]
)
VALUES = st.recursive(
    st.sampled_from(
        [
            '""',
            '"x"',
            '"/"',
            '"/a"',
            '".b"',
            '"www"',
            '"./echo.pl"',
            '"enable"',
            '"upgrade"',
            '"80"',
            "0",
            "1",
            "99999",
            "()",
        ]
    ),
    lambda inner: st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "",
                    '"" => ',
                    '"/a" => ',
                    '"host" => ',
                    '"port" => ',
                    '"socket" => ',
                    '"bin-path" => ',
                    '"max-procs" => ',
                ]
            ),
            inner,
        ).map("".join),
        max_size=4,
        unique=True,
    ).map(lambda entries: f"({', '.join(entries)})"),
    max_leaves=8,
)
STATEMENTS = st.builds(lambda name, value: f"{name} := {value}", OPTIONS, VALUES)
BLOCKS = st.builds(
    lambda condition, body: f"{condition} {{\n{chr(10).join(body)}\n}}",
    st.sampled_from(
        [
            '$HTTP["url"] =^ "/a"',
            '$HTTP["url"] =~ "a|b"',
            '$HTTP["host"] != "x"',
            '$SERVER["socket"] == ":81"',
            '$HTTP["scheme"] == "x"',
        ]
    ),
    st.lists(STATEMENTS, max_size=3),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STATEMENTS | BLOCKS, max_size=8))
def test_any_options_are_settings_or_told_to_be_wrong(write, statements):
    modules = 'server.modules = ("mod_wstunnel", "mod_proxy", "mod_cgi", "mod_fastcgi", "mod_alias")\n'
    path = write(modules + "\n".join(statements))
    with contextlib.suppress(ConfigError):
        found = load(path)
        with open("as.toml", "w", encoding="utf-8") as file:
            file.write(as_toml(found))
        assert toml.load("as.toml") == found
