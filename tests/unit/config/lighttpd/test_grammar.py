"""The text of a lighttpd.conf: what is accepted, where it stands, and what is said about the rest."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.config.lighttpd.grammar import (
    Assignment,
    Chain,
    ConfSyntaxError,
    Entry,
    Global,
    Group,
    Include,
    Name,
    Sum,
    parse,
)
from wstunnel.limits import ConfLimits


def value_of(text: str) -> tuple[object, ...]:
    (statement,) = parse(f"a = {text}\n")
    assert isinstance(statement, Assignment)
    return statement.value.terms


def group_of(text: str) -> list[tuple[object, object]]:
    (group,) = value_of(text)
    assert isinstance(group, Group)
    return [(entry.key and entry.key.terms[0], entry.value.terms[0]) for entry in group.entries]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"plain"', "plain"),
        ('""', ""),
        (r'"a \"quoted\" word"', 'a "quoted" word'),
        (r'"^/a\.php$"', r"^/a\.php$"),
        (r'"two\\slashes"', r"two\\slashes"),
        ('"two\nlines"', "two\nlines"),
        ('"# no comment"', "# no comment"),
        ('"é"', "é"),
        ("8081", 8081),
        ("007", 7),
        (str(ConfLimits().max_number), ConfLimits().max_number),
        ("env.HOME", Name("env.HOME")),
        ("other-name_1", Name("other-name_1")),
    ],
)
def test_a_value_is_a_string_a_number_or_a_name(text, value):
    assert value_of(text) == (value,)


def test_values_are_joined_by_plus():
    assert value_of('"a" + 1 +\n b') == ("a", 1, Name("b"))


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("()", []),
        ("(1, 2)", [(None, 1), (None, 2)]),
        ("(1, 2,)", [(None, 1), (None, 2)]),
        ("(,1,,2,,)", [(None, 1), (None, 2)]),
        ('("a" => 1,\n # first\n "b" => 2,\n)', [("a", 1), ("b", 2)]),
        ('("a" => 1, 2)', [("a", 1), (None, 2)]),
        ("(1 => 2)", [(1, 2)]),
    ],
)
def test_a_list_has_entries_with_and_without_keys(text, entries):
    assert group_of(text) == entries


def test_lists_stand_in_lists():
    inner = Group((Entry(Sum(("b",), 1), Sum((1,), 1)),), ())
    assert group_of('("a" => (("b" => 1)))') == [("a", Group((Entry(None, Sum((inner,), 1)),), ()))]


def test_a_missing_comma_is_noted_with_its_line():
    (group,) = value_of('(\n"a" => 1  # the comma is missing\n"b" => 2\n"c" => 3, "d" => 4)')

    assert isinstance(group, Group)
    assert len(group.entries) == 4
    assert group.uncommaed == (3, 4)


@pytest.mark.parametrize("operation", ["=", "+=", ":="])
def test_an_assignment_has_its_line(operation):
    assert parse(f"\n# comment\na.b {operation}\n 1") == (Assignment("a.b", operation, Sum((1,), 4), 3),)


def test_line_ends_and_stray_commas_part_nothing():
    first, second, third = parse("a = 1, b = 2 c = 3")
    assert [first.name, second.name, third.name] == ["a", "b", "c"]


@pytest.mark.parametrize("operator", ["==", "!=", "=~", "!~", "=^", "=$"])
def test_a_condition_compares(operator):
    (chain,) = parse(f'$HTTP["url"] {operator} "/a" {{ a = 1 }}')

    assert isinstance(chain, Chain)
    (branch,) = chain.branches
    assert branch.test is not None
    assert (branch.test.of, branch.test.key.terms, branch.test.operator) == ("HTTP", ("url",), operator)
    assert len(branch.body) == 1


@pytest.mark.parametrize("word", ["else", "else if", "elif", "elsif", "elseif"])
def test_branches_follow_each_other_whatever_the_word(word):
    (chain,) = parse(f'if $HTTP["url"]=="/a"{{}}\n\n# c\n{word} $HTTP["url"] == "/b"\n{{\n}} else {{ }} a = 1')[:1]

    assert isinstance(chain, Chain)
    assert [branch.line for branch in chain.branches] == [1, 4, 6]
    assert [branch.test is None for branch in chain.branches] == [False, False, True]


def test_words_are_names_where_they_can_be():
    statements = parse("else = 1\nelsewhere = 2\ninclude_dir = 3\nglobally = 4\nif = 5\nglobal-x = 6")
    assert [each.name for each in statements] == ["else", "elsewhere", "include_dir", "globally", "if", "global-x"]


def test_global_blocks_and_includes_are_statements():
    first, second, third = parse('global { a = 1 }\ninclude "b" + c\ninclude_shell "ls"')

    assert isinstance(first, Global)
    assert second == Include(Sum(("b", Name("c")), 2), is_shell=False, line=2)
    assert third == Include(Sum(("ls",), 3), is_shell=True, line=3)


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("\na = '80'", 2, "double quotes"),
        ('a = "x\n\n', 1, "no closing quotation mark"),
        ('a = "x\\"', 1, "no closing quotation mark"),
        ("a = 1.5", 1, '"1.5" cannot stand here: a value is'),
        ("a = 1;\n", 1, '";" cannot stand here'),
        ("a = 9223372036854775808", 1, "too large a number"),
        ("a = " + "9" * 10_000, 1, "too large a number"),
        ("a = 1\n5a = 1", 2, '"5a = 1" cannot stand here: a line is'),
        ("a == 1", 1, "a value is"),
        ('"a" = 1', 1, "a line is"),
        ("a = ( 1,\n2\n", 3, "the file ends too early: a ( is not closed"),
        ('$HTTP["url"] == "/" {\n', 2, "the file ends too early: a { is not closed"),
        ("a", 1, "the file ends too early: a name is followed by"),
        ("}", 1, '"}" cannot stand here'),
        ("a = 1 )", 1, '")" cannot stand here'),
        ("a = (1 = 2)", 1, '"= 2)" cannot stand here: a list holds values'),
        ('$HTTP["url"] = "/" { }', 1, "a condition compares with"),
        ('$HTTP["url"] < "/" { }', 1, "a condition compares with"),
        ("a + = 1", 1, "a name is followed by"),
        ("else { }", 1, "a name is followed by"),
        ("vér = 1", 1, "a name is followed by"),
        ('a = "x\0"', 1, "no closing quotation mark"),
        ("a = 1\0", 1, r'"\x00" cannot stand here'),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line_and_a_remedy(text, line, told):
    with pytest.raises(ConfSyntaxError) as caught:
        parse(text)
    assert caught.value.line == line
    assert told in caught.value.text


@pytest.mark.parametrize("text", ["a = " + "(" * 100_000, "$HTTP['x']" * 100_000, '$HTTP["url"] == "a" {' * 100_000])
def test_depth_is_bounded(text):
    with pytest.raises(ConfSyntaxError):
        parse(text)


def test_as_many_brackets_as_the_bound_may_be_nested():
    most = ConfLimits().max_nesting
    assert parse(f"a = {'(' * most}{')' * most}")
    with pytest.raises(ConfSyntaxError, match=f"nested more than {most} deep"):
        parse(f"a = {'(' * (most + 1)}{')' * (most + 1)}")


PIECES = st.sampled_from(
    ["a", "=", "+=", ":=", "==", "=>", "(", ")", "{", "}", ",", '"', "+", "$HTTP", '["url"]', '"x"', '"\\"', "12"]
)
WORDS = st.sampled_from(["#", "\n", "else", "if", "include", "global", "env.A", "\\", "\0", "\xa0"])


@given(st.one_of(st.text(max_size=200), st.lists(PIECES | WORDS, max_size=60).map(" ".join)))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ConfSyntaxError):
        parse(text)


# --- beside the real one

SAME: dict[str, tuple[bool, str]] = {
    "single quotes": (False, "server.port = '80'"),
    "escapes": (True, r'var.a = "x\"y\\z\."'),
    "a backslash before the closing quote": (False, 'var.a = "x\\"'),
    "a string of two lines": (True, 'var.a = "x\ny"'),
    "a comma after a statement": (True, "server.port = 81,"),
    "two statements in a line": (True, "var.a = 1 var.b = 2"),
    "a value in the next line": (True, "var.a =\n1"),
    "a sum over two lines": (True, 'var.a = "x" +\n"y"'),
    "commas on their own": (True, 'var.a = (\n"x"\n,\n"y"\n,,)'),
    "a comma first": (True, 'var.a = ( ,"y" )'),
    "a missing comma": (True, 'var.a = ( "x" => "1"\n"y" => "2" )'),
    "a long number": (False, "var.b = 99999999999999999999"),
    "a fraction": (False, "var.b = 1.5"),
    "a body in the next line": (True, '$HTTP["url"] == "/a"\n{ server.tag = "x" }'),
    "a statement after a body": (True, '$HTTP["url"] == "/a" { server.tag = "x" } var.b = 2'),
    "an else some lines later": (True, '$HTTP["url"] == "/a" {\n}\n\n# c\n\nelse {\n}'),
    "an else with an if": (True, '$HTTP["url"] == "/a" { } else if $HTTP["url"] == "/b" { }'),
    "an unknown operator": (False, '$HTTP["url"] <= "x" { }'),
    "an assignment in a condition": (False, '$HTTP["url"] = "x" { }'),
    "blanks in a condition": (True, '$ HTTP [ "url" ]  ==  "/a"{ }'),
    "sums in a condition": (True, '$HTTP["u" + "rl"] == "/a" + "b" { }'),
    "numbers as keys": (True, "var.a = ( 1 => 2 )"),
    "sums as keys": (True, 'var.a = ( "a" + "b" => "c" + "d" )'),
    "an open list": (False, 'var.a = ( "a"'),
    "an open block": (False, '$HTTP["url"] == "/a" {'),
    "too many brackets": (False, "var.a = 1 )"),
    "a no-break space": (True, "var.a\xa0= 1"),
    "a letter beyond ASCII in a name": (False, "vér = 1"),
    "a letter beyond ASCII in a string": (True, 'var.a = "é"'),
    "line ends of Macs and Windows": (True, "var.a = 1\rvar.b = 2\r\nvar.c = 3"),
    "a semicolon": (False, "var.a = 1;"),
    "nothing": (True, ""),
    "a comment at the end": (True, "var.a = 1 # x"),
    "a colon on its own": (False, "var.x : = 2"),
    "an arrow outside of a list": (False, "var.a => 1"),
    "an equals sign in a list": (False, "var.a = (1 = 2)"),
}
"""Text, and whether both read it."""

STRICTER = {
    "an else on its own": "else {\n}",
    "a closing brace too many": "}",
    "a string as a name": '"a" = 1',
    "two equals signs": "var.a == 1",
    "a plus apart from its equals sign": "var.a + = 2",
    "a name that begins with a digit": "5a = 1",
}
"""What lighttpd 1.4.69 reads by dropping words from it, without telling."""

LOOSER = {
    "elif": '$HTTP["url"] == "/a" { } elif $HTTP["url"] == "/b" { }',
}
"""What later versions of lighttpd read."""


def is_read(text: str) -> bool:
    try:
        parse(text)
    except ConfSyntaxError:
        return False
    return True


@pytest.mark.parametrize("name", SAME)
def test_the_table_is_read_as_it_says(name):
    is_sound, text = SAME[name]
    assert is_read(text) is is_sound


@pytest.mark.parametrize("name", SAME)
def test_lighttpd_reads_the_table_as_it_says(name, lighttpd):
    is_sound, text = SAME[name]
    assert lighttpd(text) is is_sound


@pytest.mark.parametrize("name", STRICTER)
def test_what_lighttpd_passes_over_in_silence_is_an_error(name, lighttpd):
    assert lighttpd(STRICTER[name])
    assert not is_read(STRICTER[name])


@pytest.mark.parametrize("name", LOOSER)
def test_what_later_versions_read_is_read(name, lighttpd):
    assert not lighttpd(LOOSER[name])
    assert is_read(LOOSER[name])
