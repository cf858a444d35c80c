"""Every small change to a script that a slip of the hand could make: one mutant for each.

A parser for the Lua that the scripts are written in (no ``goto``, no ``repeat``, no methods) finds what can be
changed, and nothing else changes, so that every mutant compiles:

=====================================  ==================================================
a statement that calls or assigns      is removed; so is a ``return``, a ``break``, a loop
what a ``local`` is set to             becomes ``nil``
a condition                            becomes ``true``, then ``false``
``==`` ``<`` ``<=`` and the like       become their neighbour
``a and b``, ``a or b``                become ``a``, then ``b``
``not a``                              becomes ``a``
``+`` and ``-``, ``*`` and ``/``       change places
a number                               becomes twice that and one
=====================================  ==================================================

Strings stay: a wrong name of a key or command fails at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    r"(?P<skip>\s+|--[^\n]*)|(?P<string>'[^'\n]*')|(?P<number>\d+)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<op>\.\.|==|~=|<=|>=|[-+*/%#<>=(){}\[\],.])"
)
_PRIORITY = {"or": 1, "and": 2, "..": 4, "+": 5, "-": 5, "*": 6, "/": 6, "%": 6}
_PRIORITY |= dict.fromkeys(("==", "~=", "<", "<=", ">", ">="), 3)
_UNARY = 7
_NEIGHBOUR = {"==": "~=", "~=": "==", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "+": "-", "-": "+"}
_NEIGHBOUR |= {"*": "/", "/": "*"}
_BLOCK_ENDS = ("end", "else", "elseif", "")


@dataclass(frozen=True, slots=True)
class Change:
    """Characters `start` to `end` of a script become `new`. `old` is what they are, on one line."""

    start: int
    end: int
    old: str
    new: str
    line: int
    text: str  # the whole line where it begins

    def applied(self, source: str) -> str:
        return source[: self.start] + self.new + source[self.end :]

    def __str__(self) -> str:
        return f"{self.line}: {_short(self.old)} → {self.new or 'nothing'}    in: {self.text}"


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def changes(source: str) -> list[Change]:
    """All of a script, in the order of their place."""
    parser = _Parser(source)
    parser.block()
    if parser.word:
        raise SyntaxError(f"{parser.word!r} is not expected at {parser.here.start}")
    return sorted(set(parser.found), key=lambda change: (change.start, -change.end, change.new))


def _tokens(source: str) -> Iterator[_Token]:
    at = 0
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is None:
            raise SyntaxError(f"unknown token at {source[at : at + 20]!r}")
        if match.lastgroup != "skip":
            yield _Token(match.lastgroup or "", match[0], at, match.end())
        at = match.end()
    yield _Token("end", "", at, at)


def _short(text: str) -> str:
    return re.sub(r"\s+", " ", text)


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens = list(_tokens(source))
        self.at = 0
        self.found: list[Change] = []

    @property
    def here(self) -> _Token:
        return self.tokens[self.at]

    @property
    def word(self) -> str:
        return self.here.text

    def take(self, *expected: str) -> _Token:
        token = self.here
        if expected and token.text not in expected:
            raise SyntaxError(f"{token.text!r} where {expected} is expected, at {token.start}")
        self.at += 1
        return token

    def accept(self, word: str) -> bool:
        if self.word == word:
            self.at += 1
            return True
        return False

    def change(self, start: int, new: str, end: int | None = None) -> None:
        end = self.tokens[self.at - 1].end if end is None else end
        line = self.source.count("\n", 0, start) + 1
        text = self.source.splitlines()[line - 1].strip()
        self.found.append(Change(start, end, _short(self.source[start:end]), new, line, text))

    # Statements

    def block(self) -> None:
        while self.word not in _BLOCK_ENDS:
            self.statement()

    def statement(self) -> None:
        start = self.here.start
        word = self.word
        if word == "local":
            self.local()
        elif word == "if":
            self.branches()
        elif word in ("for", "while"):
            self.loop()
            self.change(start, "")
        elif word == "return":
            self.take()
            if self.word not in _BLOCK_ENDS:
                self.expressions()
            self.change(start, "")
        elif word == "break":
            self.take()
            self.change(start, "")
        else:
            self.suffixed()
            while self.accept(","):
                self.suffixed()
            if self.accept("="):
                self.expressions()
            self.change(start, "")

    def local(self) -> None:
        self.take("local")
        if self.accept("function"):
            self.take()
            self.take("(")
            while not self.accept(")"):
                self.take()
            self.block()
            self.take("end")
            return
        self.take()
        while self.accept(","):
            self.take()
        if self.accept("="):
            start = self.here.start
            self.expressions()
            if self.source[start : self.tokens[self.at - 1].end] != "nil":
                self.change(start, "nil")

    def branches(self) -> None:
        self.take("if")
        while True:
            self.condition()
            self.take("then")
            self.block()
            if self.accept("elseif"):
                continue
            if self.accept("else"):
                self.block()
            self.take("end")
            return

    def loop(self) -> None:
        if self.take("for", "while").text == "while":
            self.condition()
        else:
            self.take()
            while self.accept(","):
                self.take()
            self.take("in", "=")
            self.expressions()
        self.take("do")
        self.block()
        self.take("end")

    def condition(self) -> None:
        start = self.here.start
        self.expression()
        for new in ("true", "false"):
            if self.source[start : self.tokens[self.at - 1].end] != new:
                self.change(start, new)

    # Expressions

    def expressions(self) -> None:
        self.expression()
        while self.accept(","):
            self.expression()

    def expression(self, above: int = 0) -> None:
        start = self.here.start
        if self.word in ("not", "-", "#"):
            unary = self.take()
            inner = self.here.start
            self.expression(_UNARY)
            if unary.text == "not":
                self.change(start, self.source[inner : self.tokens[self.at - 1].end])
        else:
            self.simple()
        while _PRIORITY.get(self.word, 0) > above:
            left_end = self.tokens[self.at - 1].end
            op = self.take()
            right = self.here.start
            # `..` binds to the right; no script depends on it.
            self.expression(_PRIORITY[op.text])
            end = self.tokens[self.at - 1].end
            if op.text in ("and", "or"):
                self.change(start, self.source[start:left_end])
                self.change(start, self.source[right:end])
            elif op.text in _NEIGHBOUR:
                self.change(op.start, _NEIGHBOUR[op.text], op.end)

    def simple(self) -> None:
        token = self.here
        if token.kind == "number":
            self.take()
            self.change(token.start, str(2 * int(token.text) + 1))
        elif token.kind == "string" or token.text in ("nil", "true", "false"):
            self.take()
        elif token.text == "{":
            self.table()
        else:
            self.suffixed()

    def table(self) -> None:
        self.take("{")
        while not self.accept("}"):
            if self.here.kind == "name" and self.tokens[self.at + 1].text == "=":
                self.take()
                self.take("=")
            self.expression()
            self.accept(",")

    def suffixed(self) -> None:
        if self.accept("("):
            self.expression()
            self.take(")")
        elif self.here.kind == "name":
            self.take()
        else:
            raise SyntaxError(f"{self.word!r} at {self.here.start}")
        while self.word in (".", "[", "("):
            if self.accept("."):
                self.take()
            elif self.accept("["):
                self.expression()
                self.take("]")
            else:
                self.take("(")
                while not self.accept(")"):
                    self.expression()
                    self.accept(",")
