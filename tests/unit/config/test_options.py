"""One value at a time: what is read, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import math
import signal
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.config.options import HOST_OPTIONS, ROUTE_OPTIONS, SERVER_OPTIONS, OptionError, shown, toml_string
from wstunnel.limits import OptionLimits
from wstunnel.settings import Condition, Host, Route, Settings, TcpAddress, UnixAddress

OPTIONS = SERVER_OPTIONS | ROUTE_OPTIONS
A_YEAR_S = int(OptionLimits().max_seconds)


def refusal(name: str, value: object) -> str:
    """The error text of a value in a file."""
    with pytest.raises(OptionError) as caught:
        OPTIONS[name].kind.from_toml(value)
    return str(caught.value)


def refusal_of_word(name: str, word: str) -> str:
    with pytest.raises(OptionError) as caught:
        OPTIONS[name].kind.from_text(word)
    return str(caught.value)


def test_every_field_but_routes_and_limits_is_an_option():
    fields = {each.name for each in (*dataclasses.fields(Settings), *dataclasses.fields(Route))}
    assert {option.field for option in OPTIONS.values()} == fields - {"routes", "listeners", "hosts", "limits"}


def test_what_a_host_takes_a_route_takes_for_its_own_host():
    assert HOST_OPTIONS.items() <= ROUTE_OPTIONS.items()
    assert {option.field for option in HOST_OPTIONS.values()} == {each.name for each in dataclasses.fields(Host)}


def test_a_route_is_shown_from_its_path_on():
    assert list(ROUTE_OPTIONS)[:6] == ["path", "suffix", "when", "gateway", "stdio", "balance"]
    groups = [option.group for option in ROUTE_OPTIONS.values()]
    assert list(dict.fromkeys(groups)) == ["backend", "processes", "policy", "timeouts", "files"]
    assert groups == sorted(groups, key=["backend", "processes", "policy", "timeouts", "files"].index)


def test_no_name_is_an_option_of_the_server_and_of_a_route():
    assert not SERVER_OPTIONS.keys() & ROUTE_OPTIONS.keys()


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("127.0.0.1:8081", TcpAddress("127.0.0.1", 8081)),
        ("127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("0.0.0.0:65535", TcpAddress("0.0.0.0", 65535)),
        ("[::]:80", TcpAddress("::", 80)),
        ("[0:0::1]:80", TcpAddress("::1", 80)),
        ("[fe80::1%lo]:80", TcpAddress("fe80::1%lo", 80)),
        ("localhost:80", TcpAddress("localhost", 80)),
        ("my_host.example.:00080", TcpAddress("my_host.example.", 80)),
        ("unix:/run/a b.sock", UnixAddress("/run/a b.sock")),
        ("unix:a:1", UnixAddress("a:1")),
    ],
)
def test_a_listen_address_is_read(written, address):
    kind = OPTIONS["listen"].kind
    assert kind.from_toml([written]) == (address,)
    assert kind.from_toml(tomllib.loads(f"x = {kind.to_toml((address,))}")["x"]) == (address,)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("8081", '"8081" has no host; write 127.0.0.1:8081 for this machine only, [::]:8081 for every interface'),
        (":8081", '":8081" has no host; write 127.0.0.1:8081 for this machine only, [::]:8081 for every interface'),
        ("localhost", 'needs HOST:PORT, [IPV6]:PORT or unix:PATH, got "localhost"'),
        ("127.0.0.1:", 'needs a port from 0 to 65535 after the last colon, got "127.0.0.1:"'),
        ("127.0.0.1:http", 'needs a port from 0 to 65535 after the last colon, got "127.0.0.1:http"'),
        ("127.0.0.1:65536", 'needs a port from 0 to 65535 after the last colon, got "127.0.0.1:65536"'),
        ("127.0.0.1:-1", 'needs a port from 0 to 65535 after the last colon, got "127.0.0.1:-1"'),
        ("127.0.0.1:" + "9" * 5000, "needs a port from 0 to 65535 after the last colon"),
        ("127.0.0.1:٣", "needs a port from 0 to 65535 after the last colon"),
        ("::1:8081", 'an IPv6 address stands in brackets, as in [::1]:8081, got "::1:8081"'),
        ("[::1:80", '"[::1" is not an IP address'),
        ("::1]:80", "an IPv6 address stands in brackets, as in [::1]:8081"),
        ("[::g]:80", '"[::g]" is not an IP address'),
        ("[localhost]:80", '"[localhost]" is not an IP address'),
        ("127.0.0.256:80", '"127.0.0.256" is not an IP address'),
        ("a/b:80", 'needs an IP address or a host name, got "a/b"'),
        ("-a:80", 'needs an IP address or a host name, got "-a"'),
        ("unix:", 'needs a path after unix:, got "unix:"'),
        ("", 'needs an address, got ""'),
    ],
)
def test_a_listen_address_is_refused_with_the_remedy(written, text):
    assert refusal("listen", [written]).startswith(text)


def test_every_bad_entry_of_a_list_is_named():
    assert refusal("listen", [":1", "127.0.0.1:1", 5]) == (
        '":1" has no host; write 127.0.0.1:1 for this machine only, [::]:1 for every interface; needs an address, got 5'
    )


@pytest.mark.parametrize("name", ["listen", "origins"])
def test_a_list_that_is_empty_is_refused(name):
    assert refusal(name, []).startswith("needs at least one entry")


def test_no_subprotocols_at_all_can_be_said():
    kind = OPTIONS["subprotocols"].kind
    assert kind.from_toml([]) == ()
    assert kind.to_toml(()) == "[]"


def test_a_list_is_not_a_single_string():
    assert refusal("origins", "*") == 'needs a list such as ["https://example.com"], got "*"'


def test_commas_part_a_list_on_the_command_line():
    assert OPTIONS["origins"].kind.from_text("https://a.example, *.b.example,*") == (
        "https://a.example",
        "*.b.example",
        "*",
    )


@pytest.mark.parametrize("entry", ["https://a.example/", "a.example:80", "", "user@a.example"])
def test_an_origin_that_could_never_match_is_refused(entry):
    assert "origin" in refusal("origins", [entry])


@pytest.mark.parametrize("word", ["", "a b", "a,b", "ä", "a/b"])
def test_a_subprotocol_is_a_token(word):
    assert "subprotocol" in refusal("subprotocols", [word]) or "needs names" in refusal("subprotocols", [word])


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("./echo.pl", ("./echo.pl",)),
        ("/a\\ b/c 'd e' \"f\"", ("/a b/c", "d e", "f")),
        ("a ''", ("a", "")),
        ("perl -e 'a\n\tb'", ("perl", "-e", "a\n\tb")),
    ],
)
def test_a_command_is_split_as_a_shell_does(written, words):
    assert OPTIONS["bin-path"].kind.from_text(written) == words


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("'a", '"\'a" cannot be split into words: no closing quotation'),
        ("a\\", '"a\\\\" cannot be split into words: no escaped character'),
        ("''", "needs a program, got \"''\""),
        ("  ", 'needs a program and its arguments, got "  "'),
        ("# a", None),
        ("a\0b", 'needs a program and its arguments, got a control character in "a\\x00b"'),
        ("a\udcff", 'needs a program and its arguments, got "a\\udcff", which is not UTF-8'),
    ],
)
def test_a_command_that_is_none_is_refused(written, text):
    if text is None:
        assert OPTIONS["bin-path"].kind.from_text(written) == ("#", "a")
    else:
        assert refusal_of_word("bin-path", written) == text


@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1))
def test_any_command_that_is_written_as_toml_is_read_back(words):
    kind = OPTIONS["bin-path"].kind
    command = ("program", *words)
    assert kind.from_toml(tomllib.loads(f"x = {kind.to_toml(command)}")["x"]) == command


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_a_toml_string(text):
    assert tomllib.loads(f"x = {toml_string(text)}") == {"x": text}


@pytest.mark.parametrize(
    "name", ["socket", "document-root", "path", "suffix", "host", "control", "log-file", "user", "group"]
)
@pytest.mark.parametrize("text", ["/a\nb", "/a\x1b[31m", "/a\x7f", "/\0"])
def test_control_characters_are_refused(name, text):
    assert "control character" in refusal(name, text)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("ws", 'must begin with a slash, got "ws"; write "/ws"'),
        ("/ws?a", 'only the path of a request is matched, and "/ws?a" holds a query'),
        ("/ws#a", 'only the path of a request is matched, and "/ws#a" holds a fragment'),
        ("/a%20b", 'requests are decoded before they are matched; write "/a b" for "/a%20b"'),
        ("/a/../b", '"/a/../b" can never match: requests lose their . and .. before they are matched'),
        ("/.", '"/." can never match: requests lose their . and .. before they are matched'),
    ],
)
def test_a_path_that_no_request_can_have_is_refused(written, text):
    assert refusal("path", written) == text


@pytest.mark.parametrize("written", ["/", "/ws", "/ws/", "/a..b/.c", "/100%", "/ä b"])
def test_a_path_is_kept_as_written(written):
    assert OPTIONS["path"].kind.from_toml(written) == written


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [("port", 1, 65535), ("max-procs", 1, 1024), ("min-procs", 0, 1024), ("max-forks", 1, 10_000_000)],
)
def test_a_whole_number_keeps_within_its_bounds(name, lowest, highest):
    kind = OPTIONS[name].kind
    for number in (lowest, highest):
        assert kind.from_toml(number) == kind.from_text(f"00{number}") == number
    for number in (lowest - 1, highest + 1, -highest, 10**5000):
        assert refusal(name, number).startswith(f"needs a whole number from {lowest} to {highest}, got ")
    for word in (str(lowest - 1), str(highest + 1), "-1", "1.0", "1e1", "", " 1", "1_0", "٣", "9" * 5000):
        assert refusal_of_word(name, word).startswith(f"needs a whole number from {lowest} to {highest}, got ")


@pytest.mark.parametrize("value", [True, False, 1.0, "1", [1], {}, math.nan])
def test_a_whole_number_is_nothing_else(value):
    assert refusal("max-connections", value).startswith("needs a whole number from 1 to 10000000, got ")


@pytest.mark.parametrize(("word", "seconds"), [("0", 0), ("20", 20), ("2.5", 2.5), (".5", 0.5), ("5.", 5), ("-0", 0)])
def test_seconds_may_have_parts(word, seconds):
    value = OPTIONS["ping-interval"].kind.from_text(word)
    assert (value, math.copysign(1, value)) == (seconds, 1)


@pytest.mark.parametrize("word", ["-1", "nan", "inf", "1e3", "", "5s", str(A_YEAR_S + 1), "٣", "9" * 5000])
def test_seconds_are_neither_negative_nor_endless(word):
    assert refusal_of_word("ping-interval", word).startswith(f"needs seconds from 0 to {A_YEAR_S}, got ")


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, -math.inf, True, "5", [], A_YEAR_S + 1])
def test_seconds_in_a_file_are_neither_negative_nor_endless(value):
    assert refusal("ping-interval", value).startswith(f"needs seconds from 0 to {A_YEAR_S}, got ")


@pytest.mark.parametrize("name", ["ping-timeout", "connect-timeout"])
def test_a_wait_of_no_time_at_all_is_refused_where_it_could_only_fail(name):
    assert refusal(name, 0) == f"needs seconds over 0 and up to {A_YEAR_S}, got 0"


@given(seconds=st.floats(0, A_YEAR_S))
def test_any_seconds_that_are_written_as_toml_are_read_back(seconds):
    kind = OPTIONS["ping-interval"].kind
    assert kind.from_toml(tomllib.loads(f"x = {kind.to_toml(abs(seconds))}")["x"]) == seconds


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("frame-type", "text or binary"),
        ("log-level", "debug or info or warning or error"),
        ("max-load-policy", "share or queue or refuse"),
        ("balance", "least-connection or round-robin or hash or sticky"),
    ],
)
def test_a_choice_names_its_words(name, words):
    assert refusal(name, "Text") == f'needs {words}, got "Text"'
    assert refusal(name, 3) == f"needs {words}, got 3"
    assert refusal_of_word(name, "") == f'needs {words}, got ""'


def test_lighttpds_older_word_is_translated():
    assert OPTIONS["balance"].kind.from_toml("fair") == "least-connection"


# --- switches and numbers with a word


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False)])
def test_a_switch_is_true_or_false(word, value):
    kind = OPTIONS["tcp-fin-propagate"].kind
    assert kind.from_text(word) is kind.from_toml(value) is value
    assert kind.to_toml(value) == word


@pytest.mark.parametrize("value", ["true", 1, 0, 1.0, [], "enable"])
def test_a_switch_in_a_file_is_nothing_else(value):
    assert refusal("tcp-fin-propagate", value) == f"needs true or false, without quotation marks, got {shown(value)}"


@pytest.mark.parametrize("word", ["", "True", "yes", "1", "enable"])
def test_a_switch_on_the_command_line_is_nothing_else(word):
    assert refusal_of_word("allow-unsafe-places", word) == f'needs true or false, got "{word}"'


@pytest.mark.parametrize(("written", "workers"), [("auto", "auto"), (1, 1), (64, 64)])
def test_workers_are_counted_or_left_to_the_machine(written, workers):
    kind = OPTIONS["workers"].kind
    assert kind.from_toml(written) == kind.from_text(str(written)) == workers
    assert tomllib.loads(f"x = {kind.to_toml(workers)}")["x"] == written


@pytest.mark.parametrize("written", [0, 65, -1, "4", True, "Auto", [], 1.0])
def test_workers_are_nothing_else(written):
    assert refusal("workers", written) == f"needs auto or a whole number from 1 to 64, got {shown(written)}"


@pytest.mark.parametrize("word", ["0", "65", "", "all"])
def test_workers_on_the_command_line_are_nothing_else(word):
    assert refusal_of_word("workers", word) == f'needs auto or a whole number from 1 to 64, got "{word}"'


# --- signals


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("SIGTERM", signal.SIGTERM),
        ("TERM", signal.SIGTERM),
        ("sigint", signal.SIGINT),
        ("15", signal.SIGTERM),
        (2, signal.SIGINT),
        ("KILL", signal.SIGKILL),
        ("SIGWINCH", signal.SIGWINCH),
        ("USR1", signal.SIGUSR1),
    ],
)
def test_a_signal_has_a_name_or_a_number(written, meant):
    kind = OPTIONS["kill-signal"].kind
    assert kind.from_toml(written) is kind.from_text(str(written)) is meant
    assert kind.from_toml(tomllib.loads(f"x = {kind.to_toml(meant)}")["x"]) is meant


@pytest.mark.parametrize("written", ["SIGNONE", "", "SIG", 0, -15, 99, "099", "1000", 15.0, True, [], "٣"])
def test_what_is_no_signal_is_refused(written):
    text = f"needs the name or the number of a signal, such as SIGTERM, got {shown(written)}"
    assert refusal("kill-signal", written) == text


@pytest.mark.parametrize("written", ["SIGSTOP", "TSTP", "CONT", "19", 18, "SIGCHLD", "TTIN", "ttou", "URG"])
def test_a_signal_that_asks_nobody_to_end_is_refused(written):
    assert refusal("kill-signal", written) == (
        f"{shown(written)} does not ask a process to end; SIGTERM, SIGINT, SIGQUIT and others do"
    )


# --- variables


@pytest.mark.parametrize(
    ("word", "pairs"),
    [
        ("A=1", (("A", "1"),)),
        ("A=1,B=2", (("A", "1"), ("B", "2"))),
        ("A=", (("A", ""),)),
        ("A=x=y", (("A", "x=y"),)),
        ("OPTS=a,b,_c9=d,", (("OPTS", "a,b"), ("_c9", "d,"))),
        ("A= b \n", (("A", " b \n"),)),
    ],
)
def test_variables_stand_with_commas_between_them(word, pairs):
    assert OPTIONS["bin-environment"].kind.from_text(word) == pairs


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("A", 'needs NAME=VALUE, with commas between several, got "A"'),
        ("", 'needs NAME=VALUE, with commas between several, got ""'),
        ("A=1,A=2", '"A" stands there twice'),
        ("9=1", 'the name of a variable has letters, digits and _ and begins with no digit, got "9"'),
        ("=1", 'the name of a variable has letters, digits and _ and begins with no digit, got ""'),
        ("A=\0", 'the value of A holds a NUL: "\\x00"'),
        ("A=\udcff", 'the value of A is not UTF-8: "\\udcff"'),
    ],
)
def test_what_is_no_variable_is_refused(word, text):
    assert refusal_of_word("bin-environment", word) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("A=1", 'needs a table such as { LANG = "C.UTF-8" }, got "A=1"'),
        (["A=1"], 'needs a table such as { LANG = "C.UTF-8" }, got a list'),
        (
            {"A": 1, "b c": "", "D": "d"},
            'the value of A needs quotation marks, as in "1", got 1; '
            'the name of a variable has letters, digits and _ and begins with no digit, got "b c"',
        ),
    ],
)
def test_variables_in_a_file_are_a_table_of_strings(value, text):
    assert refusal("bin-environment", value) == text


@given(
    table=st.dictionaries(
        st.from_regex("[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    )
)
def test_any_variables_that_are_written_as_toml_are_read_back(table):
    kind = OPTIONS["bin-environment"].kind
    pairs = tuple(table.items())
    assert kind.from_toml(tomllib.loads(f"x = {kind.to_toml(pairs)}")["x"]) == pairs


def test_variables_to_copy_are_names():
    kind = OPTIONS["bin-copy-environment"].kind
    assert kind.from_text("LANG, TZ") == kind.from_toml(["LANG", "TZ"]) == ("LANG", "TZ")
    assert refusal("bin-copy-environment", ["A=1"]) == (
        'the name of a variable has letters, digits and _ and begins with no digit, got "A=1"'
    )


# --- as they are shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('a"\x1b', '"a\\"\\x1b"'),
        (True, "true"),
        (False, "false"),
        (3, "3"),
        (math.inf, "inf"),
        ([1], "a list"),
        ({}, "a table"),
        (tomllib.loads("x = 2026-01-31")["x"], "2026-01-31"),
    ],
)
def test_a_value_is_shown_short_and_printable(value, text):
    assert shown(value) == text


def test_a_value_of_any_length_is_shown_in_one_line_of_bounded_length():
    assert len(shown("x" * 100_000)) < 600
    assert len(shown(10**4000)) < 600


@pytest.mark.parametrize(
    ("written", "condition"),
    [
        ("url =^ /a b", Condition("url", "=^", "/a b")),
        ("  host   !~   ^www\\. ", Condition("host", "!~", "^www\\. ")),
        ("socket == :80", Condition("socket", "==", ":80")),
        ("socket != unix:/a", Condition("socket", "!=", "unix:/a")),
    ],
)
def test_a_condition_has_three_parts(written, condition):
    assert ROUTE_OPTIONS["when"].kind.from_toml([written]) == (condition,)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("url /a", "needs url or host or socket"),
        ("path == /a", "needs url or host or socket"),
        ("url = /a", "needs url or host or socket"),
        ("url =~ (", "is not a regular expression"),
        ("socket =~ :80", "a socket is == or !="),
        ("socket == 80", "a socket is == or !="),
    ],
)
def test_a_condition_that_cannot_be_is_refused(written, why):
    with pytest.raises(OptionError, match=why):
        ROUTE_OPTIONS["when"].kind.from_toml([written])


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("cgi-assign", [".pl"], "needs a table"),
        ("cgi-assign", {".pl": 1}, 'needs the path of a program for ".pl", got 1'),
        ("mimetype-assign", {".md": ""}, 'needs a media type for ".md", got ""'),
        ("index-file-names", ["a/b"], "without folders"),
        ("forwarded", ["for", "to"], "needs for or by or host or proto"),
    ],
)
def test_tables_and_lists_of_files_are_held_to_their_shape(option, value, why):
    with pytest.raises(OptionError, match=why):
        ROUTE_OPTIONS[option].kind.from_toml(value)
