"""The command line: one route at most, every mistake at once, and files under flags."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shlex
import signal

import pytest

from tests.authority import Authority
from wstunnel.config.flags import COMMANDS, asked_of_running, flag_parser, settings_of
from wstunnel.config.options import ROUTE_OPTIONS, SERVER_OPTIONS
from wstunnel.errors import ConfigError
from wstunnel.settings import Route, Settings, TcpAddress, UnixAddress


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> str:
    """A current folder with an executable ./echo.pl and a folder www."""
    (tmp_path / "echo.pl").write_text("#!/bin/sh\n")
    (tmp_path / "echo.pl").chmod(0o755)
    (tmp_path / "www").mkdir()
    monkeypatch.chdir(tmp_path)
    return str(tmp_path)


def settings(*words: str) -> Settings:
    return settings_of(*flag_parser().parse_known_args(words)).settings


def problems(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        settings(*words)
    return list(caught.value.problems)


def test_a_socket_and_a_program_are_the_whole_of_it(folder):
    assert settings("--socket", "/run/echo.sock", "--bin-path", "./echo.pl") == Settings(
        routes=(Route(socket="/run/echo.sock", bin_path=(f"{folder}/echo.pl",)),)
    )


def test_every_flag_reaches_its_setting(folder, monkeypatch):
    words = (
        "--listen 127.0.0.1:0 --listen [::]:80 --listen=unix:a,b.sock --max-connections 100 --document-root www "
        "--log-level error --log-format json --path /ws/ --host localhost --port 7000 --max-procs 3 "
        "--frame-type binary --origins https://a.example,*.b.example --ping-interval 0 --ping-timeout 1.5 "
        "--max-read-idle 3 --max-write-idle 4 --close-timeout 5.5 --connect-timeout 6 --workers auto --user me "
        "--group me --control c --drain-timeout 7 --reload-timeout 8 --kill-timeout 9 --allow-unsafe-places true "
        "--log-file log --min-procs 2 --max-load-per-proc 4 --max-load-policy refuse --idle-timeout 10 "
        "--bin-environment A=1,B=2 --bin-copy-environment LANG,TZ --listen-backlog 11 --kill-signal int "
        "--disable-time 12 --read-timeout 13 --write-timeout 14 --tcp-fin-propagate false"
    )
    me = os.geteuid(), os.getegid()
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.struct_passwd((name, "x", *me, "", "/", "/bin/sh")))
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", me[1], [])))
    assert settings(*words.split(), "--bin-path", "./echo.pl 'a b'") == Settings(
        workers="auto",
        user="me",
        group="me",
        control=f"{folder}/c",
        drain_timeout_s=7.0,
        reload_timeout_s=8.0,
        kill_timeout_s=9.0,
        allow_unsafe_places=True,
        log_file=f"{folder}/log",
        listen=(TcpAddress("127.0.0.1", 0), TcpAddress("::", 80), UnixAddress(f"{folder}/a,b.sock")),
        max_connections=100,
        document_root=f"{folder}/www",
        log_level="error",
        log_format="json",
        routes=(
            Route(
                path="/ws/",
                host="localhost",
                port=7000,
                bin_path=(f"{folder}/echo.pl", "a b"),
                max_procs=3,
                frame_type="binary",
                origins=("https://a.example", "*.b.example"),
                ping_interval_s=0.0,
                ping_timeout_s=1.5,
                max_read_idle_s=3.0,
                max_write_idle_s=4.0,
                close_timeout_s=5.5,
                connect_timeout_s=6.0,
                min_procs=2,
                max_load_per_proc=4,
                max_load_policy="refuse",
                idle_timeout_s=10.0,
                bin_environment=(("A", "1"), ("B", "2")),
                bin_copy_environment=("LANG", "TZ"),
                listen_backlog=11,
                kill_signal=signal.SIGINT,
                disable_time_s=12.0,
                read_timeout_s=13.0,
                write_timeout_s=14.0,
                tcp_fin_propagate=False,
            ),
        ),
    )


def test_certificates_are_flags_that_may_be_repeated(authority: Authority):
    a, b = authority.files("a"), authority.files("b")
    words = ("--tls-cert", a.cert, "--tls-key", a.key, "--tls-cert", b.both, "--tls-key", b.both)
    front = ("--tls-client-ca", authority.ca, "--tls-client-verify", "optional", "--max-streams", "7")
    assert settings(*words, *front, "--port", "7000") == Settings(
        tls_cert=(a.cert, b.both),
        tls_key=(a.key, b.both),
        tls_client_ca=authority.ca,
        tls_client_verify="optional",
        max_streams=7,
        routes=(Route(host="127.0.0.1", port=7000),),
    )
    assert settings("--h2c", "true", "--port", "7000").h2c


def test_a_listen_flag_is_in_the_place_of_all_listeners_of_a_file(tmp_path):
    (tmp_path / "a.toml").write_text('[[listener]]\nlisten = "127.0.0.1:1"\n[[route]]\nport = 7\n')
    assert settings("-f", "a.toml").addresses == (TcpAddress("127.0.0.1", 1),)
    assert settings("-f", "a.toml", "--listen", "127.0.0.1:2").addresses == (TcpAddress("127.0.0.1", 2),)


def test_a_program_for_each_tunnel_is_a_flag_too(folder):
    assert settings("--stdio", "./echo.pl -x", "--max-forks", "7") == Settings(
        routes=(Route(stdio=(f"{folder}/echo.pl", "-x"), max_forks=7),)
    )


def test_a_program_alone_is_enough(folder, monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", folder)
    (route,) = settings("--bin-path", "./echo.pl").routes
    assert route.socket.startswith(f"{folder}/echo.pl-")


def test_the_flags_of_the_issue_are_there():
    known = {word for action in flag_parser()._actions for word in action.option_strings}
    wanted = """--listen --path --socket --host --port --bin-path --max-procs --frame-type --origins --ping-interval
        --document-root --max-connections --log-level -f --help --version"""
    assert known >= set(wanted.split())


def test_a_document_root_alone_is_enough(folder):
    assert settings("--document-root", "www") == Settings(document_root=f"{folder}/www")


def test_nothing_to_serve_is_refused():
    assert problems() == [
        "nothing to serve: give --bin-path, --socket, --port, --stdio, --document-root or -f; --help has examples"
    ]  # fmt: skip
    assert problems("--listen", "127.0.0.1:1") == problems()


def test_every_mistake_is_told_at_once(folder):
    words = "--max-proc 4 --hosts=3 --path ws --path /a --ping-interval soon --document-root nope --suffix .x -x"
    assert problems(*words.split()) == [
        "--max-proc: unknown flag; did you mean --max-procs?",
        "--hosts: unknown flag; did you mean --host?",
        "--suffix: stands in a [[route]] of a file (-f) only",
        "-x: unknown flag",
        "--path: given more than once; a file (-f) takes any number of routes",
        '--ping-interval: needs seconds from 0 to 31536000, got "soon"',
        f'--document-root: "{folder}/nope" is not a folder',
        "the route: has no backend: it takes a socket, a port (and a host), a bin-path or a stdio",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--max_procs", "4"], "--max_procs: unknown flag; did you mean --max-procs?"),
        (["--sock", "a"], "--sock: unknown flag; did you mean --socket?"),
        (["-port=7"], "-port: unknown flag; did you mean --port?"),
        (["--colour=red"], "--colour: unknown flag"),
        (
            ["--port", "1", "check"],
            '"check": unexpected; a command (check, convert, status, reload, drain, stop) comes first',
        ),
        (["--port", "1", "--json"], "--json: goes with the status command only, which comes first"),
        (["--watch"], "--watch: goes with the status command only, which comes first"),
        (["--balance", "hash", "--port", "1"], "--balance: stands in a [[route]] of a file (-f) only"),
        (["--port", "1", "--help=x"], "-h/--help: ignored explicit argument 'x'"),
        (["--port"], "--port: expected one argument"),
        (["--port", "1", "--\x1b[31m"], "--\\x1b[31m: unknown flag"),
    ],
)
def test_what_no_flag_takes_is_told_with_what_was_meant(words, problem):
    assert problem in problems(*words)


def test_a_flag_is_never_taken_for_a_longer_one():
    """`--ping 3` could mean two flags today and a third tomorrow."""
    assert problems("--document-root", "www", "--max-c", "3")[0].startswith("--max-c: unknown flag")


def test_a_file_gives_routes_and_flags_win_over_its_top(folder):
    with open("wstunnel.toml", "w") as file:
        file.write('listen = ["127.0.0.1:1"]\nlog-level = "debug"\n[[route]]\nport = 7\n')
    assert settings("-f", "wstunnel.toml", "--listen", "127.0.0.1:2", "--document-root", "www") == Settings(
        listen=(TcpAddress("127.0.0.1", 2),),
        document_root=f"{folder}/www",
        log_level="debug",
        routes=(Route(host="127.0.0.1", port=7),),
    )


def test_a_relative_flag_beside_a_file_starts_from_the_current_folder(folder):
    os.mkdir("etc")
    with open("etc/wstunnel.toml", "w") as file:
        file.write("[[route]]\nport = 7\n")
    assert settings("-f", "etc/wstunnel.toml", "--document-root", "www").document_root == f"{folder}/www"


def test_a_document_root_flag_is_enough_for_a_file_without_routes(folder):
    with open("wstunnel.toml", "w") as file:
        file.write('log-level = "debug"')
    assert settings("-f", "wstunnel.toml", "--document-root", "www").document_root == f"{folder}/www"


def test_route_flags_beside_a_file_are_refused_by_name():
    with open("wstunnel.toml", "w") as file:
        file.write("[[route]]\nprt = 7\n")
    assert problems("-f", "wstunnel.toml", "--port", "7", "--frame-type", "text", "--log-level", "loud") == [
        '--log-level: needs debug or info or warning or error, got "loud"',
        "--port, --frame-type: cannot stand beside -f; routes are in wstunnel.toml",
        "wstunnel.toml:1: route[1]: has no backend: it takes a socket, a port (and a host), a bin-path or a stdio",
        "wstunnel.toml:2: route[1].prt: unknown; did you mean port?",
    ]


def test_a_mistake_beside_a_sound_file_is_refused():
    with open("wstunnel.toml", "w") as file:
        file.write("[[route]]\nport = 7\n")
    assert problems("-f", "wstunnel.toml", "-f", "b.toml") == ["-f: given more than once"]


def test_help_stands_in_groups_with_every_flag_and_examples():
    text = flag_parser().format_help()
    groups = ["listening", "backend", "processes", "policy", "timeouts", "files", "logging"]
    order = [text.index(f"\n{group}:\n") for group in groups]
    assert order == sorted(order)
    for option in (*SERVER_OPTIONS.values(), *ROUTE_OPTIONS.values()):
        assert (f"  --{option.name} {option.metavar}" in text) == option.is_flag
    assert "exit codes: 0 ended as asked, 1 failed at run time, 2 unusable configuration" in text
    assert max(map(len, text.splitlines())) <= 110


def test_help_lists_every_command():
    text = flag_parser().format_help()
    for command in COMMANDS:
        assert re.search(rf"^       wstunnel {command} .*\[flags\]", text, re.MULTILINE)


def test_status_has_flags_of_its_own():
    said, strangers = flag_parser("status").parse_known_args(["--json", "--port", "1"])
    assert (said.json, said.watch, strangers) == (True, False, [])
    assert "  --watch " in flag_parser("status").format_help()
    assert "  --watch " not in flag_parser("stop").format_help()


def asked(*words: str) -> Settings:
    return asked_of_running(*flag_parser("status").parse_known_args(words))


def test_who_asks_says_what_the_one_that_runs_was_started_with(folder):
    words = "--listen unix:a --control c --port 7000 --bin-path ./gone --max-procs 99999"
    found = asked(*words.split())
    assert (found.listen, found.control) == ((UnixAddress(f"{folder}/a"),), f"{folder}/c")
    assert asked() == Settings()


def test_who_asks_needs_no_file_that_could_be_started(folder):
    """Somebody may have broken it since; this is when an operator wants to know how things are."""
    os.mkdir("etc")
    with open("etc/wstunnel.toml", "w") as file:
        file.write('listen = ["127.0.0.1:9"]\ncontrol = "c"\nworkers = "many"\nnonsense = 3\n[[route]]\nport = "x"\n')
    found = asked("-f", "etc/wstunnel.toml")
    assert (found.listen, found.control) == ((TcpAddress("127.0.0.1", 9),), f"{folder}/etc/c")
    assert asked("-f", "etc/wstunnel.toml", "--control", "d").control == f"{folder}/d"


def test_who_asks_may_name_a_lighttpd_conf(folder):
    with open("lighttpd.conf", "w") as file:
        file.write('server.bind = "127.0.0.1"\nserver.port = 9\nserver.max-connections = "many"\n')
    assert asked("-f", "lighttpd.conf").listen == (TcpAddress("127.0.0.1", 9),)


def test_who_asks_is_told_what_cannot_be_read():
    with open("wstunnel.toml", "w") as file:
        file.write("listen = 3\n")
    with pytest.raises(ConfigError) as caught:
        asked("-f", "wstunnel.toml", "--contrl", "x", "--control", "")
    assert caught.value.problems == (
        "--contrl: unknown flag; did you mean --control?",
        '--control: needs a path, got ""',
        'wstunnel.toml:1: listen: needs a list such as ["127.0.0.1:8081"], got 3',
    )
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read: no such file"):
        asked("-f", "missing.toml")


def test_who_asks_is_not_told_of_places_that_are_not_safe(folder):
    os.chmod(folder, 0o777)
    assert asked("--control", "c").control == f"{folder}/c"


LIGHTTPD_CONF = 'server.modules = ("mod_wstunnel")\nwstunnel.server = ("/a" => (("port" => 7000)))\n'


def converted(*words: str) -> Settings:
    return settings_of(*flag_parser("convert").parse_known_args(words)).settings


def test_a_file_is_read_by_the_end_of_its_name(folder):
    with open("a.conf", "w") as file:
        file.write(LIGHTTPD_CONF)
    with open("a.toml", "w") as file:
        file.write("[[route]]\nport = 7000\n")
    assert settings("-f", "a.conf").routes[0].path == "/a"
    assert settings("-f", "a.toml").routes[0].path == "/"


def test_convert_takes_a_lighttpd_conf_of_any_name_and_flags_that_win(folder):
    with open("some.file", "w") as file:
        file.write(LIGHTTPD_CONF)
    assert converted("some.file").routes[0].port == 7000
    assert converted("some.file", "--listen", "127.0.0.1:9").listen == (TcpAddress("127.0.0.1", 9),)


@pytest.mark.parametrize("words", [[], ["a.conf", "-f", "a.conf"], ["-f", "a.conf"]])
def test_convert_takes_one_name(words):
    with pytest.raises(ConfigError) as caught:
        converted(*words)
    assert caught.value.problems == ("convert takes the name of a lighttpd.conf, without -f",)


def test_convert_takes_no_second_name():
    with open("a.conf", "w") as file:
        file.write(LIGHTTPD_CONF)
    with pytest.raises(ConfigError) as caught:
        converted("a.conf", "b.conf")
    assert caught.value.problems[0].startswith('"b.conf": unexpected')


def test_problems_of_flags_and_of_a_lighttpd_conf_are_told_together():
    with open("a.conf", "w") as file:
        file.write("server.port = (1)\n")
    with pytest.raises(ConfigError) as caught:
        settings("-f", "a.conf", "--workers", "many")
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == ["--workers", "a.conf:1"]


def test_every_example_of_the_help_is_sound():
    with open("wstunnel.toml", "w") as file:
        file.write("[[route]]\nport = 7\n")
    text = flag_parser().format_help().replace("\\\n", "")
    examples = [line.strip() for line in text.splitlines() if line.startswith("    wstunnel ")]
    assert 4 <= len(examples) <= 8
    for example in examples:
        words = shlex.split(example)[1:]
        assert settings(*(words[1:] if words[0] == "check" else words)).routes
