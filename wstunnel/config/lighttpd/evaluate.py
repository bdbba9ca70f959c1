"""The statements of a lighttpd.conf and of all that it includes -> the options of each conditional block."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from wstunnel.config.drafts import Place, Problems
from wstunnel.config.files import text_of
from wstunnel.config.lighttpd.conditions import Claim, negated, simplified
from wstunnel.config.lighttpd.grammar import (
    Assignment,
    Branch,
    Chain,
    ConfSyntaxError,
    Global,
    Group,
    Include,
    Name,
    Statement,
    Sum,
    Test,
    parse,
)
from wstunnel.config.lighttpd.values import Item, JoinError, Merging, Value, as_list
from wstunnel.config.options import shown
from wstunnel.errors import ConfigError
from wstunnel.limits import ConfLimits
from wstunnel.settings import ConditionField

__all__ = ["Block", "Setting", "evaluate"]

_FIELDS: dict[tuple[str, str], ConditionField] = {
    ("HTTP", "url"): "url",
    ("HTTP", "host"): "host",
    ("SERVER", "socket"): "socket",
}
_IGNORED_FIELDS = frozenset(
    (
        "cookie",
        "language",
        "query-string",
        "querystring",
        "referer",
        "remote-ip",
        "remoteip",
        "request-method",
        "scheme",
        "user-agent",
        "useragent",
    )
)
"""What lighttpd can ask of a request by $HTTP[...], and we do not."""
_GLOB_SIGNS = frozenset("*?[]{}")
_NUL = "\0"


@dataclass(frozen=True, slots=True)
class Setting:
    """The value of an option, and the place of the line that gave it the last part of it."""

    value: Value
    place: Place


@dataclass(slots=True)
class Block:
    """What holds under some conditions. The first one is global and has none.

    when      all of them hold; None: the block is never used, because it asks for something that is not asked here
    options   by name, variables (var.*) included
    """

    when: tuple[Claim, ...] | None
    place: Place
    parent: Block | None = None
    options: dict[str, Setting] = field(default_factory=dict)

    def find(self, name: str) -> Setting | None:
        """What holds here, be it said here or around."""
        block: Block | None = self
        while block is not None:
            if name in block.options:
                return block.options[name]
            block = block.parent
        return None

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1


def evaluate(path: str, environ: Mapping[str, str], problems: Problems) -> list[Block]:
    """The blocks of a file, the global one first and the others in the order in which they begin.

    in      environ   for env.NAME
            problems  gets everything that is wrong, in included files too, and a warning for what is ignored
    bound   ConfLimits
    """
    evaluation = _Evaluation(path, environ, problems)
    evaluation.read(path, evaluation.blocks[0], None)
    return evaluation.blocks


class _Evaluation:
    def __init__(self, path: str, environ: Mapping[str, str], problems: Problems) -> None:
        self._base = os.path.dirname(path)
        self._environ = environ
        self._problems = problems
        self._limits = ConfLimits()
        self._merging = Merging(self._limits)
        self._files = 0
        self._bytes_left = self._limits.max_bytes
        self._open: list[str] = []
        """The file that is read, after those that include it."""
        top = Place(0, path)
        self.blocks = [Block((), top)]
        self.blocks[0].options["var.CWD"] = Setting(Value(os.getcwd(), top), top)
        self.blocks[0].options["var.PID"] = Setting(Value(os.getpid(), top), top)

    # --- files

    def read(self, path: str, block: Block, from_place: Place | None) -> None:
        """Evaluate a file within a block.

        in      from_place  where it is included
        """
        place_of = self._place_maker(path)
        try:
            text = self._text(path)
            statements = parse(text)
        except ConfSyntaxError as bad:
            self._problems.add(place_of(bad.line), bad.text)
        except _IncludeError as bad:
            self._problems.add(from_place or place_of(0), str(bad))
        except ConfigError as bad:  # cannot be read; its text names the file
            for problem in bad.problems:
                if from_place is None:
                    self._problems.add(place_of(0), problem.removeprefix(f"{path}: "))
                else:
                    self._problems.add(from_place, f"the included {problem}")
        else:
            self._open.append(path)
            self._run(statements, block, place_of)
            self._open.pop()

    def _place_maker(self, path: str) -> Callable[[int], Place]:
        first = self._files * (self._limits.max_bytes + 1)  # problems are told file by file
        self._files += 1
        return lambda line: Place(first + line, f"{path}:{line}" if line else path)

    def _text(self, path: str) -> str:
        if len(self._open) > self._limits.max_include_depth:
            raise _IncludeError(f"files include each other more than {self._limits.max_include_depth} deep")
        if self._files > self._limits.max_files:
            raise _IncludeError(f"more than {self._limits.max_files} files are included")
        text = text_of(path)
        self._bytes_left -= len(text)
        if self._bytes_left < 0:
            raise _IncludeError(f"the files have more than {self._limits.max_bytes} bytes together")
        return text

    # --- statements

    def _run(self, statements: Sequence[Statement], block: Block, place_of: Callable[[int], Place]) -> None:
        for statement in statements:
            match statement:
                case Assignment():
                    self._assign(statement, block, place_of)
                case Chain():
                    self._chain(statement, block, place_of)
                case Global():
                    self._global(statement, place_of)
                case Include():
                    self._include(statement, block, place_of)

    def _global(self, statement: Global, place_of: Callable[[int], Place]) -> None:
        inner = [each for each in statement.body if not isinstance(each, Chain)]
        if len(inner) != len(statement.body):
            self._problems.add(place_of(statement.line), "a condition cannot stand inside global { }")
        self._run(inner, self.blocks[0], place_of)

    def _assign(self, said: Assignment, block: Block, place_of: Callable[[int], Place]) -> None:
        place = place_of(said.line)
        name = _full_name(said.name)
        value = self._value(said.value, block, place_of)
        if name.startswith("env."):
            self._problems.add(place, f"{_safe_name(name)}: the environment cannot be set from here")
            return
        if value is None:
            block.options.setdefault(name, Setting(Value("", place), place))  # so that its users are not told of too
            return
        before = block.options.get(name)
        if said.operation == "=" and before is not None:
            self._problems.add(
                place, f"{_safe_name(name)}: has a value already ({before.place.text}); write := to replace it"
            )
            return
        if said.operation == "+=":
            outer = block.find(name)
            if outer is not None:
                try:
                    value = self._merging.join(outer.value, value)
                except JoinError as bad:
                    self._problems.add(place, f"{_safe_name(name)}: {bad}")
                    return
        block.options[name] = Setting(value, place)

    def _include(self, said: Include, block: Block, place_of: Callable[[int], Place]) -> None:
        place = place_of(said.line)
        if said.is_shell:
            self._problems.add(
                place,
                "include_shell: commands are not run from here; write what the command prints into a file, and "
                "include that",
            )
            return
        value = self._value(said.path, block, place_of)
        if value is None:
            return
        if isinstance(value.data, tuple):
            self._problems.add(place, "include: needs the name of a file, got a list")
            return
        pattern = str(value.data)
        if not pattern or _NUL in pattern:
            self._problems.add(place, f"include: {shown(pattern)} is not the name of a file")
            return
        if not pattern.startswith(("/", "./", "../")):
            pattern = os.path.join(self._base, pattern)
        try:
            paths = list(_matches(pattern, self._limits.max_files))
        except _IncludeError as bad:
            self._problems.add(place, f"include: {bad}")
            return
        if not paths and not _GLOB_SIGNS.intersection(pattern):
            self._problems.add(place, f"include: there is no file {shown(pattern)}")
        for path in paths:
            self.read(path, block, place)

    # --- conditions

    def _chain(self, chain: Chain, block: Block, place_of: Callable[[int], Place]) -> None:
        earlier: list[Claim] = []
        is_over = False
        for branch in chain.branches:
            if is_over:
                self._problems.add(place_of(branch.line), "is never reached: the else above takes everything")
            own = self._condition(branch.test, block, place_of) if branch.test is not None else ()
            is_over = is_over or branch.test is None
            inner = self._block(block, (*map(negated, earlier), *own) if own is not None else None, branch, place_of)
            if inner is not None:
                self._run(branch.body, inner, place_of)
            earlier += own or ()

    def _block(
        self, outer: Block, own: tuple[Claim, ...] | None, branch: Branch, place_of: Callable[[int], Place]
    ) -> Block | None:
        """The block for these conditions inside another one: the one there was, if they have been written before."""
        when = None if own is None or outer.when is None else (*outer.when, *own)
        if when is not None:
            for block in self.blocks:
                if block.when == when and block.parent is outer:
                    return block
        if len(self.blocks) > self._limits.max_blocks:
            self._problems.add(place_of(branch.line), f"there are more than {self._limits.max_blocks} conditions")
            return None
        if outer.depth >= self._limits.max_nesting:
            self._problems.add(place_of(branch.line), f"is nested more than {self._limits.max_nesting} deep")
            return None
        block = Block(when, place_of(branch.line), outer)
        self.blocks.append(block)
        return block

    def _condition(self, test: Test, block: Block, place_of: Callable[[int], Place]) -> tuple[Claim, ...] | None:
        """What a test asks; None, and a warning or a problem, where it cannot be asked here."""
        place = place_of(test.line)
        key, value = self._value(test.key, block, place_of), self._value(test.value, block, place_of)
        if key is None or value is None:
            return None
        if isinstance(key.data, tuple) or not isinstance(value.data, str):
            self._problems.add(place, f"a condition compares with a string, got {value.kind}")
            return None
        asked = (test.of, str(key.data))
        name = f"${_safe_name(test.of)}[{shown(asked[1])}]"
        if asked in _FIELDS:
            return self._claim(_FIELDS[asked], test.operator, value.data, place)
        if test.of == "REQUEST_HEADER" or (test.of == "HTTP" and asked[1] in _IGNORED_FIELDS):
            self._problems.warn(place, f"{name}: not asked here; what stands in this block is ignored")
        else:
            self._problems.add(place, f'{name}: unknown; $HTTP["url"], $HTTP["host"] and $SERVER["socket"] are known')
        return None

    def _claim(self, about: ConditionField, operator: str, value: str, place: Place) -> tuple[Claim, ...] | None:
        if operator in {"=~", "!~"}:
            try:
                re.compile(value)
            except (re.error, OverflowError, RecursionError) as bad:
                self._problems.add(place, f"{shown(value)} is not a regular expression: {bad}")
                return None
        elif about == "host":
            value = value.lower()
        holds = not operator.startswith("!")
        return (simplified(Claim(about, operator if holds else f"={operator[1:]}", value, holds)),)

    # --- values

    def _value(self, said: Sum, block: Block, place_of: Callable[[int], Place]) -> Value | None:
        """A value; None, and a problem, where there is none."""
        place = place_of(said.line)
        total: Value | None = None
        for term in said.terms:
            value = self._term(term, place, block, place_of)
            if value is None:
                return None
            try:
                total = value if total is None else self._merging.join(total, value)
            except JoinError as bad:
                self._problems.add(place, str(bad))
                return None
        return total

    def _term(
        self, term: str | int | Name | Group, place: Place, block: Block, place_of: Callable[[int], Place]
    ) -> Value | None:
        match term:
            case Name():
                return self._named(_full_name(term.text), place, block)
            case Group():
                return self._list(term, place, block, place_of)
            case _:
                return Value(term, place)

    def _named(self, name: str, place: Place, block: Block) -> Value | None:
        if name.startswith("env."):
            variable = name.removeprefix("env.")
            if variable in self._environ:
                return Value(self._environ[variable], place)
            self._problems.add(place, f"{_safe_name(name)}: there is no {_safe_name(variable)} in the environment")
            return None
        found = block.find(name)
        if found is not None:
            return Value(found.value.data, place)
        self._problems.add(
            place,
            f"{_safe_name(name)}: has no value yet; set it above its use, or quote it if it is meant as it stands",
        )
        return None

    def _list(self, group: Group, place: Place, block: Block, place_of: Callable[[int], Place]) -> Value | None:
        for line in group.uncommaed:
            self._problems.warn(
                place_of(line),
                "a comma is missing between this entry and the one before; lighttpd skips such entries without a word, "
                "or refuses them: put it in",
            )
        items: list[Item] = []
        is_whole = True
        for entry in group.entries:
            key = None if entry.key is None else self._value(entry.key, block, place_of)
            value = self._value(entry.value, block, place_of)
            if value is None or (entry.key is not None and key is None):
                is_whole = False
            elif key is not None and isinstance(key.data, tuple):
                self._problems.add(key.place, "the key of an entry is a string, got a list")
                is_whole = False
            else:
                items.append(Item(None if key is None else str(key.data), value))
        try:
            return Value(as_list(items), place) if is_whole else None
        except JoinError as bad:
            self._problems.add(place, str(bad))
            return None


class _IncludeError(Exception):
    """Why an included file is not read."""


def _full_name(name: str) -> str:
    """`x` is short for `var.x`."""
    return name if "." in name else f"var.{name}"


def _safe_name(name: str) -> str:
    return shown(name)[1:-1]


def _matches(pattern: str, most: int) -> Iterator[str]:
    """The files that an include names, as glob(3) with braces finds them.

    raises  _IncludeError when there are too many
    """
    found = 0
    for plain in _braced(pattern, most):
        for path in sorted(glob.iglob(plain)) if glob.has_magic(plain) else ([plain] if os.path.exists(plain) else []):
            found += 1
            if found > most:
                raise _IncludeError(f"{shown(pattern)} names more than {most} files")
            yield path


def _braced(pattern: str, most: int) -> list[str]:
    """`a{b,c}` -> `ab`, `ac`; the innermost braces first.

    raises  _IncludeError when there are too many
    """
    done: list[str] = []
    left = [pattern]
    while left:
        each = left.pop(0)
        braces = re.search(r"\{([^{}]*)\}", each)
        if braces is None:
            done.append(each)
        else:
            left[:0] = [each[: braces.start()] + part + each[braces.end() :] for part in braces[1].split(",")]
        if len(done) + len(left) > most:
            raise _IncludeError(f"{shown(pattern)} names more than {most} files")
    return list(dict.fromkeys(done))  # the outer braces of `{a,{b,c}}` have made `a` twice
