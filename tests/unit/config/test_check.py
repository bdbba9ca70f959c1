"""Effective settings are a wstunnel.toml that says the same."""

from __future__ import annotations

import os
import signal
import tempfile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.authority import Authority
from wstunnel.config.check import as_toml
from wstunnel.config.toml import load
from wstunnel.settings import Condition, Entrance, Host, Route, Settings, TcpAddress, UnixAddress

NAMES = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/?#%"), min_size=1, max_size=8
).filter(lambda name: name.strip() and name not in {".", ".."})
PATHS = st.lists(NAMES, min_size=1, max_size=2).map(lambda names: "/" + "/".join(names))
SECONDS = st.floats(0.001, 1e7)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


VARIABLES = st.lists(
    st.tuples(st.from_regex("[A-Za-z_][A-Za-z0-9_]{0,3}", fullmatch=True), WORDS),
    max_size=3,
    unique_by=lambda pair: pair[0],
).map(tuple)
SIGNALS = st.sampled_from([signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGUSR2])

PROGRAM = {
    "bin_environment": VARIABLES,
    "bin_copy_environment": st.sampled_from([(), ("LANG",)]),
    "kill_signal": SIGNALS,
}
TIMEOUTS = {"connect_timeout_s": SECONDS, "read_timeout_s": SECONDS, "write_timeout_s": SECONDS}


@st.composite
def hosts(draw: st.DrawFn, where: str, port: int) -> dict[str, Any]:
    """The fields of any host; `where` and `port` keep it apart from others."""
    fields = draw(st.fixed_dictionaries({**TIMEOUTS, "tcp_fin_propagate": st.booleans(), "disable_time_s": SECONDS}))
    if draw(st.booleans()):
        fields["socket"] = f"/run/{where}{draw(NAMES)}"
    else:
        fields |= {"host": draw(st.sampled_from(["127.0.0.1", "::1", "a.b"])), "port": port}
    fields["max_load_policy"] = draw(st.sampled_from(["share", "queue", "refuse"]))
    if draw(st.booleans()):
        most = draw(st.integers(1, 9))
        fields |= {
            "bin_path": ("/bin/sh", *draw(st.lists(WORDS))),
            "max_procs": most,
            "min_procs": draw(st.none() | st.integers(0, most)),
            "idle_timeout_s": draw(SECONDS),
            "listen_backlog": draw(st.integers(1, 9999)),
            **draw(st.fixed_dictionaries(PROGRAM)),
        }
    if "bin_path" in fields or fields["max_load_policy"] != "share":
        fields["max_load_per_proc"] = draw(st.integers(1, 99))
    return fields


CONDITIONS = st.sampled_from(
    [
        Condition("url", "=^", "/a "),
        Condition("url", "=~", "^/(a|b)\\.py$"),
        Condition("host", "!=", "a.example"),
        Condition("socket", "==", ":8080"),
        Condition("socket", "!=", "[::1]:1"),
    ]
)
SUFFIXES = st.lists(st.tuples(WORDS, st.just("/bin/sh")), max_size=3, unique_by=lambda pair: pair[0]).map(tuple)
SPOKEN = {
    "proxy": {"upgrade": st.booleans(), "forwarded": st.sampled_from([(), ("for", "proto")])},
    "cgi": {
        "upgrade": st.booleans(),
        "docroot": st.just("/usr"),
        "cgi_assign": SUFFIXES.filter(bool),
        "max_forks": st.integers(1, 99),
        **PROGRAM,
        **TIMEOUTS,
    },
    "scgi": {"upgrade": st.booleans(), "docroot": st.sampled_from([None, "/usr"])},
    "fastcgi": {"upgrade": st.booleans(), "docroot": st.just("/usr"), "check_local": st.booleans()},
    "static": {
        "docroot": st.just("/usr"),
        "index_file_names": st.sampled_from([("index.html",), ("a", "b")]),
        "mimetype_assign": SUFFIXES,
    },
}


@st.composite
def routes(draw: st.DrawFn, number: int) -> Route:
    """Any route; the number keeps its backends apart from those of the others."""
    fields = draw(
        st.fixed_dictionaries(
            {
                "when": st.lists(CONDITIONS, max_size=2).map(tuple),
                "gateway": st.sampled_from(["tunnel", *SPOKEN]),
            }
        )
    )
    kind = fields["gateway"]
    if kind != "static":
        fields |= draw(
            st.fixed_dictionaries(
                {
                    "origins": st.sampled_from([None, ("*",), ("https://a.example:8443", "*.b.example")]),
                    "max_read_idle_s": st.just(0.0),
                    "max_write_idle_s": SECONDS,
                    "close_timeout_s": SECONDS,
                }
            )
        )
    if kind == "tunnel":
        fields |= draw(
            st.fixed_dictionaries(
                {
                    "frame_type": st.sampled_from(["text", "binary"]),
                    "subprotocols": st.sampled_from([(), ("binary",), ("chat.v2", "binary")]),
                    "ping_interval_s": SECONDS,
                    "ping_timeout_s": SECONDS,
                }
            )
        )
    else:
        fields |= draw(st.fixed_dictionaries(SPOKEN[kind]))
    fields |= draw(
        st.one_of(
            st.builds(lambda path: {"path": path}, PATHS),
            st.builds(lambda suffix: {"path": None, "suffix": suffix}, NAMES),
        )
    )
    if kind in {"cgi", "static"}:
        return Route(**fields)
    backend = draw(st.sampled_from(["host", "hosts", "stdio"] if kind == "tunnel" else ["host", "hosts"]))
    if backend == "stdio":
        fields |= draw(st.fixed_dictionaries({**PROGRAM, **TIMEOUTS, "max_forks": st.integers(1, 99)}))
        fields["stdio"] = ("/bin/sh", *draw(st.lists(WORDS)))
        return Route(**fields)
    fields["balance"] = draw(st.sampled_from(["least-connection", "round-robin", "hash", "sticky"]))
    if backend == "host":
        return Route(**fields, **draw(hosts(f"{number}", 1000 + 100 * number)))
    many = [Host(**draw(hosts(f"{number}h{index}", 1000 + 100 * number + 10 * index))) for index in range(1, 4)]
    return Route(**fields, hosts=tuple(many[: draw(st.integers(1, 3))]))


FRONT = {"h2c": st.booleans(), "max_streams": st.integers(1, 10_000_000)}
LISTENERS = st.lists(
    st.builds(Entrance, listen=PATHS.map(lambda path: (UnixAddress("/e" + path),)), **FRONT),
    max_size=2,
    unique_by=lambda entrance: entrance.listen,
).map(tuple)

SETTINGS = st.builds(
    Settings,
    listeners=LISTENERS,
    **FRONT,
    listen=st.lists(
        st.one_of(
            st.builds(TcpAddress, st.sampled_from(["0.0.0.0", "::1", "localhost"]), st.integers(1, 999)),
            st.builds(UnixAddress, PATHS.map(lambda path: "/l" + path)),
        ),
        min_size=1,
        max_size=3,
        unique=True,
    ).map(tuple),
    document_root=st.sampled_from([None, "/", "/usr"]),
    max_connections=st.none() | st.integers(1, 10_000_000),
    workers=st.just("auto") | st.integers(1, 64),
    control=st.sampled_from([None, "/run/control"]),
    drain_timeout_s=SECONDS,
    reload_timeout_s=SECONDS,
    kill_timeout_s=SECONDS,
    allow_unsafe_places=st.booleans(),
    log_level=st.sampled_from(["debug", "info", "warning", "error"]),
    log_format=st.sampled_from(["text", "json"]),
    log_file=st.sampled_from([None, "/log"]),
    routes=st.tuples(*map(routes, range(1, 3))),
)


@settings(deadline=None)
@given(SETTINGS)
def test_any_settings_are_printed_as_a_file_that_loads_to_the_same(any_settings):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "wstunnel.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(as_toml(any_settings))
        assert load(path) == any_settings


TOP = """\
listen = ["127.0.0.1:8081"]
# max-connections: what the descriptor limit carries
workers = 1
io = "auto"
# control: in the runtime folder, named after the first listener
h2c = false
max-streams = 128
drain-timeout = 10
reload-timeout = 0
kill-timeout = 5
allow-unsafe-places = false
log-level = "info"
log-format = "text"
# log-file: stderr
"""

POLICY = """\
frame-type = "text"
# origins: the same origin as the Host
subprotocols = ["binary"]
"""

PINGS = """\
ping-interval = 20
ping-timeout = 20
max-read-idle = 0
max-write-idle = 360
close-timeout = 5
"""

CONNECTING = """\
connect-timeout = 8
read-timeout = 0
write-timeout = 0
"""


def test_a_route_says_what_means_something_there_and_no_more():
    assert as_toml(Settings(routes=(Route(host="127.0.0.1", port=7),))) == (
        f'{TOP}\n[[route]]\npath = "/"\ngateway = "tunnel"\nhost = "127.0.0.1"\nport = 7\n'
        f'max-load-policy = "share"\n{POLICY}'
        f"tcp-fin-propagate = true\n{PINGS}disable-time = 1\n{CONNECTING}"
    )


def test_a_program_says_how_it_is_run():
    text = as_toml(Settings(routes=(Route(socket="/s", bin_path=("/echo",), bin_environment=(("A", "1"),)),)))
    assert (
        'socket = "/s"\nbin-path = "/echo"\nmax-procs = 1\n# min-procs: as max-procs\nmax-load-per-proc = 1\n'
        'max-load-policy = "share"\nidle-timeout = 60\nbin-environment = { A = "1" }\nlisten-backlog = 4096\n'
        'kill-signal = "SIGTERM"\nframe-type = "text"\n'
    ) in text


def test_a_program_for_each_tunnel_says_nothing_of_pools():
    assert as_toml(Settings(routes=(Route(stdio=("/echo", "a b")),))) == (
        f'{TOP}\n[[route]]\npath = "/"\nstdio = "/echo \'a b\'"\nmax-forks = 1000\nkill-signal = "SIGTERM"\n'
        f"{POLICY}tcp-fin-propagate = true\n{PINGS}{CONNECTING}"
    )


def test_several_hosts_stand_below_their_route():
    hosts = (Host(host="127.0.0.1", port=7), Host(socket="/s"))
    each = f'max-load-policy = "share"\ntcp-fin-propagate = true\ndisable-time = 1\n{CONNECTING}'
    assert as_toml(Settings(routes=(Route(hosts=hosts),))) == (
        f'{TOP}\n[[route]]\npath = "/"\ngateway = "tunnel"\nbalance = "least-connection"\n{POLICY}{PINGS}'
        f'\n[[route.hosts]]\nhost = "127.0.0.1"\nport = 7\n{each}\n[[route.hosts]]\nsocket = "/s"\n{each}'
    )


def test_files_say_nothing_of_backends():
    route = Route(gateway="static", alias="/usr", mimetype_assign=((".x", "text/plain"),))
    assert as_toml(Settings(routes=(route,))) == (
        f'{TOP}\n[[route]]\npath = "/"\ngateway = "static"\nalias = "/usr"\nindex-file-names = ["index.html"]\n'
        'mimetype-assign = { ".x" = "text/plain" }\n'
    )


def test_fronts_are_shown_with_their_listeners(authority: Authority):
    files = authority.files("a")
    tls: dict[str, Any] = {
        "tls_cert": (files.cert, files.both),
        "tls_key": (files.key, files.both),
        "tls_client_ca": authority.ca,
        "tls_client_verify": "optional",
    }
    entrance = Entrance(listen=(TcpAddress("::1", 2), UnixAddress("/e")), **tls)
    route = Route(host="a.b", port=1)
    for shown in (
        Settings(listen=(), listeners=(entrance, Entrance(listen=(TcpAddress("::1", 3),))), routes=(route,)),
        Settings(listeners=(entrance,), routes=(route,), **tls, max_streams=7),
    ):
        text = as_toml(shown)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "wstunnel.toml")
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            assert load(path) == shown
        table = text.partition("[[listener]]\n")[2].partition("\n\n")[0]
        assert table.splitlines() == [
            'listen = ["[::1]:2", "unix:/e"]',
            f'tls-cert = ["{files.cert}", "{files.both}"]',
            f'tls-key = ["{files.key}", "{files.both}"]',
            f'tls-client-ca = "{authority.ca}"',
            'tls-client-verify = "optional"',
            "h2c = false",
            "max-streams = 128",
        ]


def test_a_front_that_nobody_reaches_is_not_shown():
    shown = as_toml(Settings(listen=(), h2c=True, listeners=(Entrance(listen=(UnixAddress("/e"),)),)))
    assert "listen =" not in shown.partition("[[listener]]")[0]
    assert "h2c" not in shown.partition("[[listener]]")[0]
