"""In which line of a TOML text a key stands, which tomllib does not tell.

A scan for strings, comments and brackets, no more: the text has been read by tomllib before and is sound. Keys
inside inline tables and arrays are not found; whoever asks falls back to the key or table around them.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator

__all__ = ["KeyPath", "key_lines"]

KeyPath = tuple[str, ...]
"""`("listen",)`, `("route", "2")` for the second [[route]], `("route", "2", "path")` for a key in it."""

_TOKEN = re.compile(
    r'''"""(?:\\.|"{1,2}(?!")|[^"\\])*"{3,5}'''  # the four kinds of strings
    r"""|'''(?:'{1,2}(?!')|[^'])*'{3,5}"""
    r'''|"(?:\\.|[^"\\\n])*"'''
    r"""|'[^'\n]*'"""
    r"""|\#[^\n]*"""
    r"""|[A-Za-z0-9_-]+|.""",
    re.DOTALL,
)
_BLANK = frozenset(" \t\r\n")
_DEPTH = {"[": 1, "{": 1, "]": -1, "}": -1}


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line, counted from 1, of every table header and of every key that stands at the start of a line.

    in      text that tomllib has accepted
    bound   one entry per statement
    """
    lines: dict[KeyPath, int] = {}
    seen: Counter[KeyPath] = Counter()
    table: KeyPath = ()
    for line, tokens in _statements(text):
        if tokens[0] == "[":
            table = _in_last(_key(tokens), seen)
            if tokens[1] == "[":
                seen[table] += 1
                table = (*table, str(seen[table]))
            lines.setdefault(table, line)
        else:
            lines.setdefault(table + _key(tokens[: tokens.index("=")]), line)
    return lines


def _in_last(table: KeyPath, seen: Counter[KeyPath]) -> KeyPath:
    """The table of a header, inside the latest of every array of tables that it names: `[route.x]` -> route 2, x."""
    path: KeyPath = ()
    for part in table:
        path = (*path, str(seen[path]), part) if path in seen else (*path, part)
    return path


def _statements(text: str) -> Iterator[tuple[int, list[str]]]:
    """The line of each statement and its tokens, without blanks and comments."""
    line, start, depth = 1, 1, 0
    tokens: list[str] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "\n" and not depth and tokens:
            yield start, tokens
            tokens = []
        elif token not in _BLANK and not token.startswith("#"):
            if not tokens:
                start = line
            tokens.append(token)
            depth += _DEPTH.get(token, 0)
        line += token.count("\n")
    if tokens:
        yield start, tokens


def _key(tokens: list[str]) -> KeyPath:
    """The parts of a dotted key, as tomllib reads them."""
    parts = (token for token in tokens if token not in _DEPTH and token != ".")
    return tuple(tomllib.loads(f"key = {part}")["key"] if part[0] in "\"'" else part for part in parts)
