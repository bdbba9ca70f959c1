"""The text of a lighttpd.conf -> statements, each with its line.

Pure. Line ends mean nothing, as in lighttpd: a value may stand below its `=`, and two assignments beside each other.
lighttpd skips, without a word, tokens that it does not expect; here they are errors, with two exceptions that
its own examples make: commas may be missing between the entries of a list, and there may be too many of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedInput, UnexpectedToken
from lark.lark import PostLex

from wstunnel.config.options import shown
from wstunnel.limits import ConfLimits

__all__ = [
    "Assignment",
    "Branch",
    "Chain",
    "ConfSyntaxError",
    "Entry",
    "Global",
    "Group",
    "Include",
    "Name",
    "Operation",
    "Statement",
    "Sum",
    "Test",
    "parse",
]

Operation = Literal["=", "+=", ":="]

_GRAMMAR = r"""
start: statements
statements: statement*
?statement: assignment | chain | global_ | include | COMMA

assignment: NAME SET sum
include: INCLUDE sum
global_: GLOBAL "{" statements "}"
chain: branch otherwise*
branch: IF? test "{" statements "}"
otherwise: ELSE branch -> otherwise | ELSE "{" statements "}" -> last
test: "$" NAME "[" sum "]" COMPARE sum

sum: term ("+" term)*
?term: string | number | name | group
string: STRING
number: NUMBER
name: NAME
group: LPAR (entry | COMMA)* ")"
entry: sum ("=>" sum)?

SET: "=" | "+=" | ":="
COMPARE: "==" | "!=" | "=~" | "!~" | "=^" | "=$"
COMMA: ","
LPAR: "("
STRING: /"(?:[^"\\\0]|\\\x22|\\(?!\x22))*"/
NUMBER.2: /[0-9]+(?![A-Za-z0-9._-])/
INCLUDE.2: /include(_shell)?(?![A-Za-z0-9._-])/
GLOBAL.2: /global(?![A-Za-z0-9._-])/
IF.2: /if(?=[ \t]*\$)/
ELSE.2: /(else|elif|elsif|elseif)(?![A-Za-z0-9._-])/
NAME: /[A-Za-z_.-][A-Za-z0-9_.-]*/

%ignore /[ \t\r\n\u00a0]+/
%ignore /#[^\r\n]*/
"""


class ConfSyntaxError(Exception):
    """What stands in a line cannot be read."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line, self.text = line, text


@dataclass(frozen=True, slots=True)
class Name:
    """The value of a variable or of an option above."""

    text: str


@dataclass(frozen=True, slots=True)
class Sum:
    """One or more values joined by +, and the line of the first."""

    terms: tuple[str | int | Name | Group, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Entry:
    key: Sum | None
    value: Sum


@dataclass(frozen=True, slots=True)
class Group:
    """A list, or a hash where its entries have keys."""

    entries: tuple[Entry, ...]
    uncommaed: tuple[int, ...]
    """Lines of entries that no comma parts from the one before."""


@dataclass(frozen=True, slots=True)
class Assignment:
    name: str
    operation: Operation
    value: Sum
    line: int


@dataclass(frozen=True, slots=True)
class Test:
    """`$HTTP["url"] =^ "/ws/"`."""

    of: str
    key: Sum
    operator: str
    value: Sum
    line: int


@dataclass(frozen=True, slots=True)
class Branch:
    test: Test | None
    """None: the last `else`."""
    body: tuple[Statement, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Chain:
    """Branches of which one is taken at most."""

    branches: tuple[Branch, ...]


@dataclass(frozen=True, slots=True)
class Global:
    body: tuple[Statement, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Include:
    path: Sum
    is_shell: bool
    line: int


Statement = Assignment | Chain | Global | Include


def parse(text: str) -> tuple[Statement, ...]:
    """The statements of a file.

    raises  ConfSyntaxError at the first place that cannot be read
    bound   ConfLimits.max_nesting
    """
    try:
        statements: tuple[Statement, ...] = _parser().parse(text)  # type: ignore[assignment]  # made by _Builder
    except UnexpectedInput as bad:
        raise _explained(bad, text) from None
    return statements


@cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", lexer="contextual", transformer=_Builder(), postlex=_Depth())


class _Depth(PostLex):
    """Refuses what is nested too deeply, so that nobody who walks the statements runs out of stack."""

    always_accept = ()

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        bound, depth = ConfLimits().max_nesting, 0
        for token in stream:
            if token.type in {"LPAR", "LBRACE"}:
                depth += 1
            elif token.type in {"RPAR", "RBRACE"}:
                depth -= 1
            if depth > bound:
                raise ConfSyntaxError(_line_of(token), f"is nested more than {bound} deep")
            yield token


def _line_of(token: Token) -> int:
    return token.line or 1


_EXCERPT_CHARS = 24
_VALUE = 'a value is a "string" in double quotes, a number, a (list) or the name of a variable'


def _explained(bad: UnexpectedInput, text: str) -> ConfSyntaxError:
    """The same as one sentence: the offending text and the remedy."""
    if isinstance(bad, UnexpectedToken):
        expected = bad.accepts or bad.expected
        if bad.token.type == "$END":
            return ConfSyntaxError(text.count("\n") + 1, f"the file ends too early: {_missing(expected)}")
    else:
        expected = getattr(bad, "allowed", None) or set()
    offset = bad.pos_in_stream or 0
    rest = text[offset : offset + _EXCERPT_CHARS].partition("\n")[0]
    if rest.startswith('"') and not isinstance(bad, UnexpectedToken) and "STRING" in expected:
        return ConfSyntaxError(bad.line, f"the string that begins with {shown(rest[1:])} has no closing quotation mark")
    return ConfSyntaxError(bad.line, f"{shown(rest)} cannot stand here: {_hint(expected)}")


def _missing(expected: set[str]) -> str:
    if "RPAR" in expected:
        return "a ( is not closed"
    if "RBRACE" in expected:
        return "a { is not closed"
    return _hint(expected)


def _hint(expected: set[str]) -> str:
    if expected == {"SET"}:
        return "a name is followed by =, += or := and a value"
    if "COMPARE" in expected and "NAME" not in expected:
        return "a condition compares with ==, !=, =~, !~, =^ or =$"
    if "RPAR" in expected and "INCLUDE" not in expected:
        return "a list holds values with commas between them, each as it is or as key => value"
    if "STRING" in expected and "INCLUDE" not in expected:
        return _VALUE
    return 'a line is an option with its value, an include, or a condition such as $HTTP["url"] =^ "/ws/" { ... }'


@v_args(inline=True)
class _Builder(Transformer[Token, Any]):
    """Makes statements while the text is parsed, from the innermost outwards: no recursion."""

    def start(self, statements: tuple[Statement, ...]) -> tuple[Statement, ...]:
        return statements

    def statements(self, *statements: Statement | Token) -> tuple[Statement, ...]:
        return tuple(each for each in statements if not isinstance(each, Token))  # lighttpd passes over commas

    def assignment(self, name: Token, operation: Any, value: Sum) -> Assignment:
        return Assignment(str(name), str(operation), value, _line_of(name))  # type: ignore[arg-type]

    def include(self, word: Token, path: Sum) -> Include:
        return Include(path, word == "include_shell", _line_of(word))

    def global_(self, word: Token, body: tuple[Statement, ...]) -> Global:
        return Global(body, _line_of(word))

    def chain(self, *branches: Branch) -> Chain:
        return Chain(branches)

    def branch(self, *parts: Any) -> Branch:
        test, body = parts[-2:]
        return Branch(test, body, test.line)

    def otherwise(self, _word: Token, branch: Branch) -> Branch:
        return branch

    def last(self, word: Token, body: tuple[Statement, ...]) -> Branch:
        return Branch(None, body, _line_of(word))

    def test(self, of: Token, key: Sum, operator: Token, value: Sum) -> Test:
        return Test(str(of), key, str(operator), value, _line_of(of))

    def sum(self, *terms: tuple[str | int | Name | Group, int]) -> Sum:
        return Sum(tuple(term for term, _ in terms), terms[0][1])

    def string(self, token: Token) -> tuple[str, int]:
        return token[1:-1].replace('\\"', '"'), _line_of(token)

    def number(self, token: Token) -> tuple[int, int]:
        digits = token.lstrip("0") or "0"
        if len(digits) > len(str(ConfLimits().max_number)) or int(digits) > ConfLimits().max_number:
            raise ConfSyntaxError(_line_of(token), f"{shown(str(token))} is too large a number")
        return int(digits), _line_of(token)

    def name(self, token: Token) -> tuple[Name, int]:
        return Name(str(token)), _line_of(token)

    def entry(self, first: Sum, second: Sum | None = None) -> Entry:
        return Entry(None, first) if second is None else Entry(first, second)

    def group(self, opening: Token, *parts: Entry | Token) -> tuple[Group, int]:
        entries, uncommaed = [], []
        before: Entry | Token | None = None
        for part in parts:
            if isinstance(part, Entry):
                entries.append(part)
                if isinstance(before, Entry):
                    uncommaed.append((part.key or part.value).line)
            before = part
        return Group(tuple(entries), tuple(uncommaed)), _line_of(opening)
