"""The line of every key, in spite of strings, comments and arrays that look like keys."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.config.lines import key_lines


def test_keys_and_tables_have_their_lines():
    text = "# comment\n\nlisten = []\n\n[[route]]  # first\npath = '/'\n[[route]]\nport=1\npath = '/'\n"
    assert key_lines(text) == {
        ("listen",): 3,
        ("route", "1"): 5,
        ("route", "1", "path"): 6,
        ("route", "2"): 7,
        ("route", "2", "port"): 8,
        ("route", "2", "path"): 9,
    }


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", {}),
        ("# a = 1", {}),
        ("a = 1", {("a",): 1}),
        ("\r\na = 1\r\nb = 2", {("a",): 2, ("b",): 3}),
        ('"a b" = 1\n\'c\' = 2\n"\\u0064" = 3', {("a b",): 1, ("c",): 2, ("d",): 3}),
        ("a . b.c=1\n1.5 = 2", {("a", "b", "c"): 1, ("1", "5"): 2}),
        ("a = [ # [\n  ']', \"]\", # ]\n 'b = 1' ]\nc = 2", {("a",): 1, ("c",): 4}),
        ("a = { b = 1, c = [1,\n2] }\nd = 1", {("a",): 1, ("d",): 3}),
        ('a = """\nb = 1\\"""\n"" """\nc = 2', {("a",): 1, ("c",): 4}),
        ('a = """x""""\nb = 1\nc = """"""\nd = """"x"""""\ne = 2', {
            ("a",): 1, ("b",): 2, ("c",): 3, ("d",): 4, ("e",): 5}),
        ("a = '''\nb = 1\n\"\"\"''''\nc = '''\\'''\nd = 1", {("a",): 1, ("c",): 4, ("d",): 5}),
        ("a = '\\'\nb = \"#\\\\\" # \"\nc = 1", {("a",): 1, ("b",): 2, ("c",): 3}),
        ("[a]\nb = 1\n[a.c]\nd = 1\n[[ 'r' ]]\ne = 1", {
            ("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", "d"): 4, ("r", "1"): 5, ("r", "1", "e"): 6
        }),
        ("[[r]]\n[[r]]\n[r.a]\nb = 1\n[[r.c]]\n[[r.c]]\nd = 1\n[r.c.e]", {
            ("r", "1"): 1, ("r", "2"): 2, ("r", "2", "a"): 3, ("r", "2", "a", "b"): 4, ("r", "2", "c", "1"): 5,
            ("r", "2", "c", "2"): 6, ("r", "2", "c", "2", "d"): 7, ("r", "2", "c", "2", "e"): 8
        }),
    ],
)  # fmt: skip
def test_only_keys_are_taken_for_keys(text, lines):
    tomllib.loads(text)
    assert key_lines(text) == lines


VALUES = st.sampled_from(
    ["1", "true", '"x = 1"', "'#['", '"""\nfake = 1\n[fake]\n"""', "'''\nfake = 1'''", "[\n1, # ]\n2]", "{ x = '}' }"]
)
KEYS = st.sampled_from(["a", "b-c", "d_e", '"f g"', "'h'", "9"])
BETWEEN = st.sampled_from(["", "\n", "# [[route]]\n", "   # a = 1\n\n", "\t\n"])


@given(
    tables=st.lists(st.dictionaries(KEYS, st.tuples(VALUES, BETWEEN), max_size=4), max_size=4),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_the_line_of_a_key_is_where_it_was_written(tables, newline):
    text, expected = "", {}
    for number, table in enumerate(tables, 1):
        expected["route", str(number)] = text.count("\n") + 1
        text += "[[route]]\n"
        for key, (value, between) in table.items():
            text += between
            expected["route", str(number), key.strip("\"'")] = text.count("\n") + 1
            text += f"{key} = {value} # comment\n"
    text = text.replace("\n", newline)
    tomllib.loads(text)
    assert key_lines(text) == expected


def test_tables_in_tables_have_their_lines():
    text = (
        "[[route]]\nport = 1\n[[route]]\n[[route.hosts]]\nport = 1\n"
        "[[route.hosts]]\nmax-procs = 2\n[route.hosts.bin-environment]\nA = '1'\n[[route]]\n[[route.hosts]]\n"
    )
    tomllib.loads(text)
    lines = key_lines(text)
    assert lines["route", "2", "hosts", "1", "port"] == 5
    assert lines["route", "2", "hosts", "2"] == 6
    assert lines["route", "2", "hosts", "2", "max-procs"] == 7
    assert lines["route", "2", "hosts", "2", "bin-environment"] == 8
    assert lines["route", "3", "hosts", "1"] == 11


def test_a_long_string_costs_no_recursion():
    text = 'a = """' + '\\"\n"' * 100_000 + '"""\nb = 1'
    assert key_lines(text) == {("a",): 1, ("b",): 100_002}
