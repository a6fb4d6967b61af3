"""Rendering the tree of a Go template, within a budget of steps and characters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from services.chat.gotemplate.faults import Exceeded, Fault
from services.chat.gotemplate.functions import FUNCTIONS
from services.chat.gotemplate.parser import Action, Branch, Call, Jump, Literal, Node, Operand, Path, Pipe, Text
from services.chat.gotemplate.values import Struct, Unfit, kind, printed, size, truth

MAX_STEPS = 200_000         # nodes and operands


class _Jumped(Exception):
    """A break or continue on its way to its range."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Run:
    """One rendering of at most `chars` characters; the values that are built on the way have 16 times that."""

    def __init__(self, data: Any, chars: int) -> None:
        self.variables: list[tuple[str, Any]] = [("$", data)]
        self.written: list[str] = []
        self.chars = chars
        self.room = chars
        self.built = 16 * chars
        self.steps = MAX_STEPS

    def step(self, line: int) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Exceeded(line, "takes too long")

    def write(self, text: str, line: int) -> None:
        self.room -= len(text)
        if self.room < 0:
            raise Exceeded(line, "writes too much")
        self.written.append(text)

    def hold(self, value: Any, line: int) -> Any:
        """`value`, taken from what may be built in all."""
        self.built -= size(value) if not isinstance(value, bool | int | float) else 1
        if self.built < 0:
            raise Exceeded(line, "builds too much")
        return value

    # ------------------------------------------------------------ nodes

    def walk(self, nodes: Iterable[Node], dot: Any) -> None:
        known = len(self.variables)
        for node in nodes:
            if isinstance(node, Text):
                self.step(node.line)
                self.write(node.text, node.line)
            elif isinstance(node, Action):
                self._action(node.pipe, dot)
            elif isinstance(node, Branch):
                self._branch(node, dot)
            else:
                self._jump(node)
        del self.variables[known:]

    @staticmethod
    def _jump(node: Jump) -> None:
        raise _Jumped(node.kind)

    def _action(self, pipe: Pipe, dot: Any) -> None:
        value = self.value(pipe, dot)
        if pipe.variables:
            self.set(pipe, value)
        else:
            self._check_size(value, pipe.line)
            self.write(self._told(printed, value, pipe.line), pipe.line)

    def _check_size(self, value: Any, line: int) -> None:
        if not isinstance(value, str) and size(value) > 4 * self.chars:
            raise Exceeded(line, "writes too much")

    @staticmethod
    def _told(function: Any, value: Any, line: int) -> Any:
        try:
            return function(value)
        except Unfit as error:
            raise Fault(line, str(error)) from None

    def _branch(self, node: Branch, dot: Any) -> None:
        known = len(self.variables)
        value = self.value(node.pipe, dot)
        if node.kind == "range":
            self._range(node, value, dot)
        else:
            if node.pipe.variables:
                self.set(node.pipe, value)
            if truth(value):
                self.walk(node.body, value if node.kind == "with" else dot)
            else:
                self.walk(node.otherwise, dot)
        del self.variables[known:]

    def _range(self, node: Branch, value: Any, dot: Any) -> None:
        ran = False
        for key, item in self._items(value, node.pipe):
            ran = True
            known = len(self.variables)
            self.step(node.pipe.line)
            self._loop_variables(node.pipe, key, item)
            try:
                self.walk(node.body, item)
            except _Jumped as jump:
                if jump.kind == "break":
                    break
            finally:
                del self.variables[known:]
        if not ran:
            self.walk(node.otherwise, dot)

    def _loop_variables(self, pipe: Pipe, key: Any, item: Any) -> None:
        values = [key, item] if len(pipe.variables) == 2 else [item]
        for name, value in zip(pipe.variables, values, strict=False):
            self._set(name, value, pipe.declares)

    @staticmethod
    def _items(value: Any, pipe: Pipe) -> Iterator[tuple[Any, Any]]:
        if value is None:
            return iter(())
        if isinstance(value, list):
            return iter(enumerate(value))
        if isinstance(value, dict):
            return iter([(key, value[key]) for key in sorted(value)])
        if type(value) is int and len(pipe.variables) < 2:
            return zip(range(value), range(value), strict=True)
        raise Fault(pipe.line, f"a range{' of two variables' if type(value) is int else ''} cannot go over a "
                               f"{kind(value)}")

    # ------------------------------------------------------------ variables

    def set(self, pipe: Pipe, value: Any) -> None:
        self._set(pipe.variables[0], value, pipe.declares)

    def _set(self, name: str, value: Any, declare: bool) -> None:
        at = None if declare else self._find(name)
        if at is None:
            self.variables.append((name, value))
        else:
            self.variables[at] = name, value

    def _find(self, name: str) -> int:
        return max(at for at, (known, _) in enumerate(self.variables) if known == name)

    # ------------------------------------------------------------ values

    def value(self, pipe: Pipe, dot: Any) -> Any:
        passed: list[Any] = []
        for command in pipe.commands:
            passed = [self._command(command, dot, passed)]
        return passed[0]

    def _command(self, command: Sequence[Operand], dot: Any, passed: list[Any]) -> Any:
        first = command[0]
        if not isinstance(first, Call):
            return self._operand(first, dot)
        self.step(first.line)
        if first.name in ("and", "or"):
            return self._choice(first, command[1:], dot, passed)
        return self._called(first, [*(self._operand(one, dot) for one in command[1:]), *passed])

    def _called(self, call: Call, arguments: list[Any]) -> Any:
        try:
            return self.hold(FUNCTIONS[call.name](self.chars, arguments), call.line)
        except Unfit as error:
            raise Fault(call.line, f"{call.name}: {error}") from None

    def _choice(self, call: Call, operands: Sequence[Operand], dot: Any, passed: list[Any]) -> Any:
        """The first value that decides, and no further one is looked at."""
        value = None
        for operand in operands:
            value = self._operand(operand, dot)
            if truth(value) == (call.name == "or"):
                return value
        if not operands and not passed:
            raise Fault(call.line, f"{call.name} takes one or more arguments")
        return passed[0] if passed else value

    def _operand(self, operand: Operand, dot: Any) -> Any:
        self.step(operand.line)
        if isinstance(operand, Literal):
            return operand.value
        if isinstance(operand, Call):
            return self._command((operand,), dot, [])
        return self._path(operand, dot)

    def _path(self, path: Path, dot: Any) -> Any:
        if isinstance(path.start, Pipe):
            value = self.value(path.start, dot)
            if value is None:
                return None         # as Go has it; of a nil that is named it is an error
        else:
            value = dot if path.start == "." else self.variables[self._find(path.start)][1]
        for name in path.fields:
            if isinstance(value, dict) and name not in value:
                return None         # nor is there anything of what is missing
            value = self._field(value, name, path.line)
        return value

    @staticmethod
    def _field(value: Any, name: str, line: int) -> Any:
        if isinstance(value, dict):
            return value[name]
        if isinstance(value, Struct) and name in value.fields:
            return value.fields[name]
        if value is None:
            raise Fault(line, f"there is no {name} of nil")
        known = f"; there are: {', '.join(value.fields)}" if isinstance(value, Struct) else ""
        raise Fault(line, f"a {kind(value)} has no field {name}{known}")
