"""Tokens of a Go template as a tree. What is outside the supported part is refused here, before any rendering."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.chat.gotemplate.faults import Fault
from services.chat.gotemplate.functions import FUNCTIONS
from services.chat.gotemplate.lexer import Token, tokens

MAX_DEPTH = 50              # of blocks and parentheses in each other
MAX_TOKENS = 50_000
_NOT_HERE = ("define", "template", "block")


@dataclass(frozen=True)
class Literal:
    value: Any
    line: int


@dataclass(frozen=True)
class Path:
    """`.A.B` (`start` "."), `$x.A`, `(…).A`: fields of a value."""

    start: str | Pipe           # ".", a variable with its $, or a pipe in parentheses
    fields: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Call:
    name: str
    line: int


Operand = Literal | Path | Call


@dataclass(frozen=True)
class Pipe:
    """Commands, each one's value the last argument of the next; and the variables that get the result."""

    commands: tuple[tuple[Operand, ...], ...]
    variables: tuple[str, ...]
    declares: bool              # := and not =
    line: int


@dataclass(frozen=True)
class Text:
    text: str
    line: int


@dataclass(frozen=True)
class Action:
    pipe: Pipe


@dataclass(frozen=True)
class Branch:
    """`kind`: if, with or range."""

    kind: str
    pipe: Pipe
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]


@dataclass(frozen=True)
class Jump:
    """`kind`: break or continue."""

    kind: str
    line: int


Node = Text | Action | Branch | Jump


def parse(source: str) -> tuple[Node, ...]:
    """The tree of `source`. Raises `Fault` with line and reason."""
    parser = Parser(source)
    nodes, stop = parser.nodes()
    if stop is not None:
        raise Fault(stop.line, f"{{{{{stop.value}}}}} without an if, with or range before it")
    return nodes


class Parser:
    def __init__(self, source: str) -> None:
        self.list: list[Token] = []
        for token in tokens(source):
            self.list.append(token)
            if len(self.list) > MAX_TOKENS:
                raise Fault(token.line, "the template is too long")
        self.list.append(Token("end", "", self.list[-1].line if self.list else 1))
        self.at = 0
        self.depth = 0
        self.loops = 0
        self.known: list[str] = ["$"]       # variables that may be read here

    # ------------------------------------------------------------ tokens

    @property
    def next(self) -> Token:
        return self.list[self.at]

    def take(self) -> Token:
        self.at += 1
        return self.list[self.at - 1]

    def expect(self, kind: str, what: str) -> Token:
        if self.next.kind != kind:
            raise Fault(self.next.line, f"{self._shown(self.next)} where {what} was expected")
        return self.take()

    @staticmethod
    def _shown(token: Token) -> str:
        return "the end" if token.kind == "end" else repr(token.value)[:40]

    def _deeper(self, read: Callable[[], Any]) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Fault(self.next.line, "nested too deeply")
        result = read()
        self.depth -= 1
        return result

    # ------------------------------------------------------------ blocks

    def nodes(self) -> tuple[tuple[Node, ...], Token | None]:
        """All nodes up to an `end` or `else`, whose word is taken and returned; None at the template's end."""
        found: list[Node] = []
        while True:
            token = self.take()
            if token.kind == "end":
                return tuple(found), None
            if token.kind == "text":
                found.append(Text(token.value, token.line))
                continue
            word = self.next.value if self.next.kind == "word" else ""
            if word in ("end", "else"):
                return tuple(found), self.take()
            found.append(self._action(word))

    def _action(self, word: str) -> Node:
        if word in _NOT_HERE:
            raise Fault(self.next.line, f"{word} is not supported; write the text where it is used")
        if word in ("if", "with", "range"):
            self.take()
            node: Node = self._deeper(lambda: self._branch(word))
            return node
        if word in ("break", "continue"):
            return self._jump(self.take())
        pipe = self._pipe()
        self.expect("close", "}}")
        return Action(pipe)

    def _jump(self, token: Token) -> Jump:
        if not self.loops:
            raise Fault(token.line, f"{token.value} outside of a range")
        self.expect("close", "}}")
        return Jump(str(token.value), token.line)

    def _branch(self, kind: str) -> Branch:
        """After its word. A variable of its pipe is known until its end, one of its body until the body's."""
        outer = len(self.known)
        pipe = self._pipe(in_range=kind == "range")
        inner = len(self.known)
        self.expect("close", "}}")
        self.loops += kind == "range"
        body, stop = self.nodes()
        self.loops -= kind == "range"
        del self.known[inner:]
        otherwise: tuple[Node, ...] = ()
        if stop is not None and stop.value == "else":
            otherwise, stop = self._otherwise(kind)
        if stop is None or stop.value != "end":
            raise Fault(pipe.line, f"this {kind} has no {{{{end}}}}" if stop is None else "two else of one block")
        self.expect("close", "}}")
        del self.known[outer:]
        return Branch(kind, pipe, body, otherwise)

    def _otherwise(self, kind: str) -> tuple[tuple[Node, ...], Token | None]:
        """After `else`. An `else if` is a whole block of its own, whose `end` is this one's too."""
        word = self.next.value
        if self.next.kind == "word" and word == kind and kind in ("if", "with"):
            self.take()
            branch = self._deeper(lambda: self._branch(kind))
            self.at -= 1            # its }} is read again, as this block's
            return (branch,), Token("word", "end", self.next.line)
        self.expect("close", "}}")
        return self.nodes()

    # ------------------------------------------------------------ pipes

    def _pipe(self, in_range: bool = False) -> Pipe:
        line = self.next.line
        variables, declares = self._variables(in_range)
        commands = [self._command()]
        while self.next.kind == "mark" and self.next.value == "|":
            self.take()
            commands.append(self._command())
            if not isinstance(commands[-1][0], Call):
                raise Fault(line, "what follows | must be a function")
        if declares:
            self.known += variables
        return Pipe(tuple(commands), variables, declares, line)

    def _variables(self, in_range: bool) -> tuple[tuple[str, ...], bool]:
        """`$x :=`, `$x =` and, in a range, `$i, $x :=`; nothing is taken when there is none."""
        begun, names = self.at, []
        while self.next.kind == "variable":
            names.append(str(self.take().value))
            if not (in_range and len(names) == 1 and self.next.value == "," and self.next.kind == "mark"):
                break
            self.take()
        if names and self.next.kind == "mark" and self.next.value in (":=", "="):
            declares = self.take().value == ":="
            for name in names:
                if name == "$" or (not declares and name not in self.known):
                    raise Fault(self.next.line, f"the variable {name} cannot be set here")
            return tuple(names), declares
        self.at = begun
        return (), False

    def _command(self) -> tuple[Operand, ...]:
        operands: list[Operand] = []
        while not (self.next.kind in ("close", "end") or (self.next.kind == "mark" and self.next.value in ("|", ")"))):
            if operands and not self.next.spaced and self.next.kind != "mark":
                raise Fault(self.next.line, f"{self._shown(self.next)} must have a space before it")
            operands.append(self._operand())
        if not operands:
            raise Fault(self.next.line, "a value is missing")
        if len(operands) > 1 and not isinstance(operands[0], Call):
            raise Fault(operands[0].line, "only functions take arguments, and this is none")
        return tuple(operands)

    def _operand(self) -> Operand:
        token = self.take()
        start: str | Pipe
        if token.kind == "value":
            return Literal(token.value, token.line)
        if token.kind == "word":
            if token.value not in FUNCTIONS:
                raise Fault(token.line, f"the function {token.value} is not supported; those that are: "
                                        f"{', '.join(sorted(FUNCTIONS))}")
            return Call(str(token.value), token.line)
        if token.kind == "variable":
            if token.value not in self.known:
                raise Fault(token.line, f"the variable {token.value} is not known here")
            start = str(token.value)
        elif token.kind == "mark" and token.value == "(":
            start = self._deeper(self._pipe)
            if self.next.value != ")":
                raise Fault(self.next.line, f"{self._shown(self.next)} where ) was expected")
            self.take()
        elif token.kind in ("dot", "field"):
            start = "."
        else:
            raise Fault(token.line, f"{self._shown(token)} where a value was expected")
        fields = [token.value[1:]] if token.kind == "field" else []
        while self.next.kind == "field" and not self.next.spaced and token.kind != "dot":
            fields.append(self.take().value[1:])
        return Path(start, tuple(fields), token.line)
