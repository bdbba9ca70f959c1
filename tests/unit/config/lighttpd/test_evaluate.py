"""Variables, joined values, blocks and included files: what holds where, and everything that is wrong."""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wstunnel.config.drafts import Problems
from wstunnel.config.lighttpd.evaluate import Block, evaluate
from wstunnel.config.lighttpd.values import Value
from wstunnel.errors import ConfigError
from wstunnel.limits import ConfLimits

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path) -> Write:
    """Write a file, and the path of it."""

    def to_file(text: str, name: str = "lighttpd.conf") -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return str(path)

    return to_file


def plain(value: Value) -> object:
    """The value without its places; a list of pairs where there are keys."""
    if not isinstance(value.data, tuple):
        return value.data
    return [plain(item.value) if item.key is None else (item.key, plain(item.value)) for item in value.data]


def options_of(block: Block) -> dict[str, object]:
    given_always = {"var.CWD", "var.PID"} if block.parent is None else set()
    return {name: plain(setting.value) for name, setting in block.options.items() if name not in given_always}


def blocks_of(path: str, **environ: str) -> list[Block]:
    problems = Problems()
    blocks = evaluate(path, environ, problems)
    problems.raise_any()
    assert problems.warnings == ()
    return blocks


def top_of(path: str, **environ: str) -> dict[str, object]:
    return options_of(blocks_of(path, **environ)[0])


def problems_of(path: str, **environ: str) -> list[str]:
    problems = Problems()
    evaluate(path, environ, problems)
    with pytest.raises(ConfigError) as caught:
        problems.raise_any()
    return [problem.replace(f"{os.path.dirname(path)}/", "") for problem in caught.value.problems]


def warnings_of(path: str) -> list[str]:
    problems = Problems()
    evaluate(path, {}, problems)
    problems.raise_any()
    return [warning.replace(f"{os.path.dirname(path)}/", "") for warning in problems.warnings]


# --- values


def test_a_name_without_a_dot_is_a_variable(write):
    assert top_of(write("a = 1\nb = var.a\nvar.c = a")) == {"var.a": 1, "var.b": 1, "var.c": 1}


def test_the_environment_is_read(write):
    assert top_of(write('a = env.HOME + "/x"'), HOME="/home/me") == {"var.a": "/home/me/x"}


def test_the_folder_and_the_process_are_known(write):
    assert top_of(write("a = var.CWD\nb = var.PID")) == {"var.a": os.getcwd(), "var.b": os.getpid()}


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ('"a" + "b"', "ab"),
        ('"a" + 5', "a5"),
        ('5 + "a"', "5a"),
        ("5 + 6", 11),
        ('("a") + ("b")', ["a", "b"]),
        ('("a" => 1) + ("b" => 2, 3)', [("a", 1), ("b", 2), 3]),
        ('("a" => 1) + ("a" => 1)', [("a", 1)]),
        ('(1 => "x", "a" + 1 => ())', [("1", "x"), ("a1", [])]),
    ],
)
def test_values_are_joined_as_by_lighttpd(write, said, value):
    assert top_of(write(f"a = {said}")) == {"var.a": value}


def test_plus_equals_adds_to_what_there_is(write):
    said = 'server.modules = ("mod_cgi")\nserver.modules += ("mod_proxy")\na += "x"\na += 1'
    assert top_of(write(said)) == {"server.modules": ["mod_cgi", "mod_proxy"], "var.a": "x1"}


def test_colon_equals_replaces(write):
    assert top_of(write("server.port = 80\nserver.port := 81")) == {"server.port": 81}


def test_a_global_block_is_global(write):
    assert top_of(write("global {\n server.port = 80\n}")) == {"server.port": 80}


# --- blocks


def test_a_block_has_its_conditions_and_adds_to_what_is_around_it(write):
    path = write(
        """\
        a = ("x")
        $HTTP["url"] =^ "/ws/" {
            a += ("y")
            $HTTP["host"] == "A.example" { b = a }
        }
        c = a
        """
    )
    top, outer, inner = blocks_of(path)

    assert options_of(top) == {"var.a": ["x"], "var.c": ["x"]}
    assert options_of(outer) == {"var.a": ["x", "y"]}
    assert options_of(inner) == {"var.b": ["x", "y"]}
    assert [(claim.field, claim.operator, claim.value) for claim in inner.when or ()] == [
        ("url", "=^", "/ws/"),
        ("host", "==", "a.example"),
    ]


def test_an_else_holds_when_nothing_before_it_does(write):
    path = write('$HTTP["url"] == "/a" { }\nelse $HTTP["url"] =~ "b+" { }\nelse { }')
    _, first, second, last = blocks_of(path)

    assert [claim.holds for claim in first.when or ()] == [True]
    assert [claim.holds for claim in second.when or ()] == [False, True]
    assert [(claim.value, claim.holds) for claim in last.when or ()] == [("/a", False), ("b+", False)]


def test_the_same_condition_is_the_same_block(write):
    _, block = blocks_of(write('$HTTP["url"] == "/a" { a = 1 }\n$HTTP["url"] == "/a" { b = a }'))
    assert options_of(block) == {"var.a": 1, "var.b": 1}


@pytest.mark.parametrize(
    ("said", "operator", "value"),
    [
        ('=~ "^/ws/"', "=^", "/ws/"),
        ('=~ "^/ws$"', "==", "/ws"),
        ('=~ "/ws$"', "=$", "/ws"),
        (r'=~ "\.php$"', "=$", ".php"),
        ('=~ "/ws"', "=~", "/ws"),
        (r'=~ "^/a\.b"', "=~", r"^/a\.b"),
        ('=~ "^/a|^/b"', "=~", "^/a|^/b"),
        ('=~ ""', "=~", ""),
    ],
)
def test_a_plain_regular_expression_is_none(write, said, operator, value):
    _, block = blocks_of(write(f'$HTTP["url"] {said} {{ }}'))
    assert [(claim.operator, claim.value) for claim in block.when or ()] == [(operator, value)]


@pytest.mark.parametrize(
    "asked",
    ['$HTTP["remote-ip"]', '$HTTP["request-method"]', '$HTTP["cookie"]', '$HTTP["scheme"]', '$REQUEST_HEADER["x"]'],
)
def test_what_is_not_asked_here_is_named_and_its_block_ignored(write, asked):
    path = write(f'\n{asked} == "10.0.0.1" {{ a = 1 }}')
    name = asked[1:]

    assert warnings_of(path) == [f"lighttpd.conf:2: ${name}: not asked here; what stands in this block is ignored"]
    assert evaluate(path, {}, Problems())[1].when is None


# --- files


def test_files_are_included_from_the_folder_of_the_first(write, tmp_path):
    write("a = 1", "conf.d/10-a.conf")
    write("b = a", "conf.d/20-b.conf")
    write("c = b", "conf.d/x.other")
    path = write('include "conf.d/*.conf"\nname = "x.other"\ninclude "conf.d/" + name\ninclude "conf.d/none*"')

    assert top_of(path) == {"var.a": 1, "var.b": 1, "var.c": 1, "var.name": "x.other"}


def test_braces_in_an_include_are_alternatives(write):
    for name in "abc":
        write(f"{name} = 1", f"{name}.conf")
    assert top_of(write('include "{a,{b,c}}.conf"')) == {"var.a": 1, "var.b": 1, "var.c": 1}


def test_an_include_in_a_block_belongs_to_it(write):
    write("a = 1", "a.conf")
    top, block = blocks_of(write('$HTTP["url"] == "/a" { include "a.conf" }'))
    assert (options_of(top), options_of(block)) == ({}, {"var.a": 1})


def test_an_included_file_is_named_in_its_errors(write):
    write("\na = nothing\nb = '1'", "a.conf")
    write("c = nothing", "b.conf")
    path = write('include "a.conf"\ninclude "b.conf"\nd = nothing\n')

    told = problems_of(path)
    assert [problem.partition(": ")[0] for problem in told] == ["lighttpd.conf:3", "a.conf:3", "b.conf:1"]


def test_a_file_that_includes_itself_is_an_error(write):
    (told,) = problems_of(write('include "lighttpd.conf"'))
    assert told == f"lighttpd.conf:1: files include each other more than {ConfLimits().max_include_depth} deep"


def test_a_file_that_includes_itself_twice_ends(write):
    assert len(problems_of(write('include "lighttpd.conf"\ninclude "lighttpd.conf"'))) < 2 * ConfLimits().max_files


def test_includes_are_bounded_in_number(write):
    most = ConfLimits().max_files
    write("", "a.conf")
    told = problems_of(write('include "a.conf"\n' * (most + 1)))
    assert told[0] == f"lighttpd.conf:{most}: more than {most} files are included"


def test_includes_are_bounded_in_size(write):
    limits = ConfLimits()
    write("#" * (limits.max_bytes // 2), "a.conf")
    told = problems_of(write('include "a.conf"\ninclude "a.conf"\ninclude "a.conf"\n'))
    assert told == [
        f"lighttpd.conf:{line}: the files have more than {limits.max_bytes} bytes together" for line in (2, 3)
    ]


def test_blocks_are_bounded_in_depth_over_all_files(write):
    most = ConfLimits().max_nesting
    deep = "".join(f'$HTTP["url"] == "/{{0}}{n}" {{{{\n' for n in range(most - 1)) + "{1}" + "}}" * (most - 1)
    write(deep.format("b", ""), "b.conf")
    told = problems_of(write(deep.format("a", 'include "b.conf"\n')))
    assert told == [f"b.conf:2: is nested more than {most} deep"]


def test_braces_are_bounded(write):
    (told,) = problems_of(write(f'include "{"{a,b}" * 1000}"'))
    assert told.endswith(f"names more than {ConfLimits().max_files} files")


def test_a_command_is_refused_by_name(write):
    (told,) = problems_of(write('\ninclude_shell "ls"'))
    assert told.startswith("lighttpd.conf:2: include_shell: commands are not run from here")


# --- what is wrong


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a = b", "lighttpd.conf:1: var.b: has no value yet"),
        ("a = -5", "lighttpd.conf:1: var.-5: has no value yet"),
        ("a = env.NONE", "lighttpd.conf:1: env.NONE: there is no NONE in the environment"),
        ("env.A = 1", "lighttpd.conf:1: env.A: the environment cannot be set"),
        ("a = 1\na = 1", "lighttpd.conf:2: var.a: has a value already (lighttpd.conf:1); write := to replace it"),
        ('a = ("a" => 1, "a" => 1)', 'lighttpd.conf:1: the key "a" stands there twice'),
        ('a = ("a" => 1)\na += ("a" => 2)', 'lighttpd.conf:2: var.a: the key "a" is in both lists'),
        ('a = ("a" => ())\na += ("a" => ())', 'lighttpd.conf:2: var.a: the key "a" is in both lists'),
        ('a = ("a")\na += "b"', "lighttpd.conf:2: var.a: a list and a string cannot be joined"),
        ('a = ("a") + 1', "lighttpd.conf:1: a list and a number cannot be joined"),
        (f"a = {ConfLimits().max_number} + 1", "lighttpd.conf:1: the sum is too large a number"),
        ('a = (("x") => 1)', "lighttpd.conf:1: the key of an entry is a string, got a list"),
        ('$HTTP["zork"] == "x" { }', 'lighttpd.conf:1: $HTTP["zork"]: unknown'),
        ('$ZORK["url"] == "x" { }', 'lighttpd.conf:1: $ZORK["url"]: unknown'),
        ('$HTTP["url"] == 5 { }', "lighttpd.conf:1: a condition compares with a string, got a number"),
        ('$HTTP["url"] =~ "(" { }', 'lighttpd.conf:1: "(" is not a regular expression'),
        ('$HTTP["url"] == "/" { } else { }\nelse { }', "lighttpd.conf:2: is never reached"),
        ('global { $HTTP["url"] == "/a" { } }', "lighttpd.conf:1: a condition cannot stand inside global"),
        ('include "none.conf"', 'lighttpd.conf:1: include: there is no file "'),
        ('include ("a")', "lighttpd.conf:1: include: needs the name of a file"),
        ('include ""', 'lighttpd.conf:1: include: "" is not the name of a file'),
        ('include "/"', "lighttpd.conf:1: the included /: cannot be read: is a directory"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(write, text, told):
    (problem,) = problems_of(write(text))
    assert problem.startswith(told)


def test_everything_that_is_wrong_is_told_at_once(write):
    path = write('a = b\nc = a\nd = "x" + ("y")\n$HTTP["url"] == "/" { e = f }')
    assert [problem.partition(" ")[0] for problem in problems_of(path)] == [
        "lighttpd.conf:1:",
        "lighttpd.conf:3:",
        "lighttpd.conf:4:",
    ]


def test_a_missing_file_is_an_error(tmp_path):
    assert problems_of(str(tmp_path / "none.conf")) == ["none.conf: cannot be read: no such file or directory"]


@pytest.mark.parametrize("value", ['"' + "x" * 1024 + '"', f"({'1,' * 1024})"], ids=["string", "list"])
def test_values_that_double_with_each_line_are_stopped(write, value):
    told = problems_of(write(f"a = {value}\n" + "a += a\n" * 100))
    assert told[0].endswith(f"values grow beyond {ConfLimits().max_value_bytes} bytes")


def test_blocks_are_bounded_in_number(write):
    most = ConfLimits().max_blocks
    told = problems_of(write("".join(f'$HTTP["url"] == "/{n}" {{ }}\n' for n in range(most + 1))))
    assert told == [f"lighttpd.conf:{most + 1}: there are more than {most} conditions"]


# --- beside the real one

SAME: dict[str, tuple[bool, str]] = {
    "a key twice": (False, 'a = ("a" => 1, "a" => 1)'),
    "an option twice": (False, "a = 1\na = 1"),
    "an option replaced": (True, "server.port = 81\nserver.port := 82"),
    "a replacement first": (True, "server.port := 82"),
    "lists added": (True, 'a = ("a")\na += ("b")'),
    "something added to nothing": (True, 'a += ("b")'),
    "a string added to a list": (False, 'a = ("a")\na += "b"'),
    "a string added to a number": (True, 'a = 1\na += "b"'),
    "another value for a key": (False, 'a = ("a" => 1)\na += ("a" => 2)'),
    "the same value for a key": (True, 'a = ("a" => 1)\na += ("a" => 1)'),
    "a string and a number": (True, 'a = "a" + 5 + 6'),
    "a list and a string": (False, 'a = ("a") + "b"'),
    "a variable": (True, "a = 1\nb = a + var.a"),
    "an unknown variable": (False, "a = b"),
    "a negative number": (False, "a = -5"),
    "an unknown variable of the environment": (False, "a = env.NOBODY_HAS_SET_THIS"),
    "a setting of the environment": (False, "env.A = 1"),
    "the current folder": (True, "a = var.CWD"),
    "the process": (True, "a = var.PID"),
    "a variable of a block in it": (True, '$HTTP["url"] == "/" { a = 1\nb = a\n}'),
    "a variable of a block behind it": (False, '$HTTP["url"] == "/" { a = 1 }\nb = a'),
    "a variable hidden in a block": (True, 'a = 1\n$HTTP["url"] == "/" { a = 2 }'),
    "a variable added to in a block": (True, 'a = ("a")\n$HTTP["url"] == "/" { a += ("b") }'),
    "the same block again": (True, '$HTTP["url"] == "/" { a = 1 }\n$HTTP["url"] == "/" { b = a }'),
    "an option twice in the same block": (False, '$HTTP["url"] == "/" { a = 1 }\n$HTTP["url"] == "/" { a = 1 }'),
    "two branches without a condition": (False, '$HTTP["url"] == "/" { } else { }\nelse { }'),
    "a regular expression": (True, '$HTTP["url"] =~ "^/a(b|c)" { }'),
    "no regular expression": (False, '$HTTP["url"] =~ "^/a(b|c" { }'),
    "an unknown condition": (False, '$HTTP["zork"] == "x" { }'),
    "an unknown kind of condition": (False, '$ZORK["url"] == "x" { }'),
    "a condition on a number": (False, '$HTTP["url"] == 5 { }'),
    "a global block": (True, "global {\nserver.port = 81\n}"),
    "a condition in a global block": (False, 'global { $HTTP["url"] == "/a" { } }'),
    "a global block in a condition": (True, '$HTTP["url"] == "/a" { global { server.port = 81 } }'),
    "a missing include": (False, 'include "/nowhere/none.conf"'),
    "a pattern that nothing fits": (True, 'include "/nowhere/none*.conf"'),
    "a list as a key": (False, "a = ((1) => 2)"),
}
"""Text, and whether both take it."""


@pytest.mark.parametrize("name", SAME)
def test_the_table_is_taken_as_it_says(name, write):
    is_sound, text = SAME[name]
    problems = Problems()
    evaluate(write(text), {}, problems)
    if is_sound:
        problems.raise_any()
    else:
        with pytest.raises(ConfigError):
            problems.raise_any()


@pytest.mark.parametrize("name", SAME)
def test_lighttpd_takes_the_table_as_it_says(name, lighttpd):
    is_sound, text = SAME[name]
    assert lighttpd(text) is is_sound


# --- any text at all

LINES = st.sampled_from(
    [
        "a = 1",
        'a += "x"',
        "a := (a, a)",
        'b = ("k" => a) + ("k" => 2)',
        "b += b",
        "c = env.A + b",
        '$HTTP["url"] =~ "^/(a" {',
        '$HTTP["host"] == "x" + a {',
        '$SERVER["socket"] == ":80" {',
        '$HTTP["remote-ip"] == "::1" {',
        "}",
        "} else {",
        'else $HTTP["url"] !~ a {',
        "global {",
        'include "any.conf"',
        'include "*.conf"',
        'include "a\\u0000"',
        "include_shell a",
        "server.port = 80",
        "(",
        '"',
    ]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(max_size=100), st.lists(LINES, max_size=30).map("\n".join)))
def test_any_text_is_evaluated_or_refused(write, text):
    path = write("", "any.conf")
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(text)
    problems = Problems()
    blocks = evaluate(path, {}, problems)

    assert blocks[0].parent is None
    with contextlib.suppress(ConfigError):
        problems.raise_any()


# --- there and back

NAMES = st.from_regex(r"\A[a-z][a-z0-9_-]{0,8}\Z")
TEXTS = st.text(st.characters(exclude_characters="\0\r\\", exclude_categories=["Cs"]), max_size=12)
TREES = st.recursive(
    st.one_of(TEXTS, st.integers(0, ConfLimits().max_number)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(TEXTS, inner, min_size=1, max_size=4).map(lambda pairs: list(pairs.items())),
    ),
    max_leaves=12,
)


def written(value: object) -> str:
    match value:
        case int():
            return str(value)
        case str():
            return '"' + value.replace('"', '\\"') + '"'
        case tuple():
            return f"{written(value[0])} => {written(value[1])}"
        case list():
            return f"({', '.join(map(written, value))},)"
    raise AssertionError(value)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, TREES, max_size=5))
def test_what_is_written_is_read_back(write, tree):
    path = write("")
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.writelines(f"opt.{name} = {written(value)}\n" for name, value in tree.items())

    assert top_of(path) == {f"opt.{name}": value for name, value in tree.items()}
