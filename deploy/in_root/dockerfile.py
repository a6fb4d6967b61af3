"""A strict reader of Dockerfiles: what it does not know is an error with the line's number, never skipped.

Known are the instructions of WORDS, continued lines, comments, JSON and shell forms, flags, stages, build arguments and
the variables that Docker replaces ($NAME, ${NAME}, ${NAME:-word}, ${NAME:+word}); not known are heredocs, other escape
characters, ADD, ONBUILD, SHELL and VOLUME. What instructions mean: docs.docker.com/reference/dockerfile.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

WORDS = {"FROM", "ARG", "ENV", "LABEL", "RUN", "COPY", "WORKDIR", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD",
         "STOPSIGNAL"}
FLAGS = {"COPY": {"from", "chown"}, "RUN": set(), "FROM": {"platform"},
         "HEALTHCHECK": {"interval", "timeout", "start-period", "retries"}}
_INSTRUCTION = re.compile(r"([A-Za-z]+)(?:\s+(.*))?$", re.DOTALL)
_FLAG = re.compile(r"--([a-z-]+)=(\S+)\s*")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:(:[-+])([^}]*))?\}|(.?))")


class Refused(Exception):
    """A Dockerfile, or a use of one, that this program cannot carry out; the text says what and where."""


@dataclass(frozen=True)
class Instruction:
    line: int
    word: str                       # upper case
    flags: Mapping[str, str]
    text: str                       # what follows the flags, on one line; variables as they are written

    def refuse(self, why: str) -> Refused:
        return Refused(f"line {self.line}: {self.word} {self.text}: {why}")

    def listed(self) -> list[str] | None:
        """The strings of a JSON form; None for a shell form."""
        if not self.text.startswith("["):
            return None
        try:
            found = json.loads(self.text)
        except ValueError as error:
            raise self.refuse(f"not a JSON list of strings ({error})") from None
        if not (isinstance(found, list) and found and all(isinstance(item, str) for item in found)):
            raise self.refuse("not a JSON list of strings")
        return found

    def command(self) -> list[str]:
        return self.listed() or ["/bin/sh", "-c", self.text]

    def pairs(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The NAME=value pairs of ENV and LABEL, with variables replaced."""
        pairs = {}
        for item in words(self, self.text):
            name, equals, value = item.partition("=")
            if not equals:
                raise self.refuse(f"{item!r} is not NAME=value")
            pairs[name] = expand(self, value, variables)
        return pairs


@dataclass(frozen=True)
class Stage:
    name: str                       # as FROM ... AS names it, else its number
    base: str                       # an image, or an earlier stage's name; variables are replaced
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Dockerfile:
    arguments: Mapping[str, str]    # those before the first FROM, with the values that were asked for
    stages: tuple[Stage, ...]

    def needed(self) -> list[Stage]:
        """The last stage and those that it is made of, in the file's order."""
        stages = {stage.name: stage for stage in self.stages}
        wanted, found = [self.stages[-1].name], set()
        while wanted:
            if (name := wanted.pop()) in found or name not in stages:
                continue
            found.add(name)
            wanted.append(stages[name].base)
            wanted += [item.flags["from"] for item in stages[name].instructions if "from" in item.flags]
        return [stage for stage in self.stages if stage.name in found]


def read(text: str, asked: Mapping[str, str] | None = None) -> Dockerfile:
    """The Dockerfile in `text`, with the build arguments `asked` for; `Refused` where one is declared nowhere."""
    asked = asked or {}
    found = list(instructions(text))
    first = next((number for number, item in enumerate(found) if item.word == "FROM"), None)
    if first is None:
        raise Refused("there is no FROM")
    arguments: dict[str, str] = {}
    for item in found[:first]:
        if item.word != "ARG":
            raise item.refuse("only ARG may stand before the first FROM")
        name, default = argument(item, arguments)
        arguments[name] = asked.get(name, default or "")
    declared = {argument(item, {})[0] for item in found if item.word == "ARG"}
    if unknown := sorted(set(asked) - declared):
        raise Refused(f"the Dockerfile has no build argument {unknown[0]!r}, but: {', '.join(sorted(declared))}")
    return Dockerfile(arguments, tuple(_stages(found[first:], arguments)))


def instructions(text: str) -> Iterator[Instruction]:
    """Each instruction, with its lines joined and comments left out."""
    whole, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"#\s*escape\s*=", line, re.IGNORECASE):
            raise Refused(f"line {number}: another escape character is not supported")
        if line.lstrip().startswith("#") or not line.strip():
            continue
        begun = begun or number
        if line.rstrip().endswith("\\"):
            whole += line.rstrip()[:-1]
            continue
        yield _instruction(begun, (whole + line).strip())
        whole, begun = "", 0
    if begun:
        raise Refused(f"line {begun}: the file ends within this instruction")


def _instruction(line: int, text: str) -> Instruction:
    match = _INSTRUCTION.match(text)
    word = match[1].upper() if match else ""
    if match is None or word not in WORDS:
        raise Refused(f"line {line}: {text.split(maxsplit=1)[0]!r} is not an instruction known here: "
                      f"{', '.join(sorted(WORDS))}")
    rest, flags = match[2] or "", {}
    while word in FLAGS and (flag := _FLAG.match(rest)):
        if flag[1] not in FLAGS[word]:
            raise Refused(f"line {line}: {word} with --{flag[1]} is not supported")
        flags[flag[1]], rest = flag[2], rest[flag.end():]
    if not rest or (word in FLAGS and rest.startswith("--")) or "<<" in rest:
        raise Refused(f"line {line}: {text}: not supported ({word} with nothing, an unknown flag or a heredoc)")
    return Instruction(line, word, flags, rest)


def _stages(found: list[Instruction], arguments: Mapping[str, str]) -> Iterator[Stage]:
    starts = [number for number, item in enumerate(found) if item.word == "FROM"]
    for count, (start, end) in enumerate(zip(starts, [*starts[1:], len(found)], strict=True)):
        item = found[start]
        parts = item.text.split()
        if len(parts) not in (1, 3) or (len(parts) == 3 and parts[1].upper() != "AS"):
            raise item.refuse("expected FROM <image>, or FROM <image> AS <name>")
        yield Stage(parts[2].lower() if len(parts) == 3 else str(count), expand(item, parts[0], arguments),
                    tuple(found[start + 1:end]))


def argument(item: Instruction, variables: Mapping[str, str]) -> tuple[str, str | None]:
    """An ARG's name and its default."""
    parts = words(item, item.text)
    if len(parts) != 1:
        raise item.refuse("expected ARG <name>, or ARG <name>=<default>")
    name, equals, default = parts[0].partition("=")
    return name, expand(item, default, variables) if equals else None


def words(item: Instruction, text: str) -> list[str]:
    """The words of `text` as Docker splits them, without their quotes."""
    if "'" in text or "\\" in text:
        raise item.refuse("single quotes and backslashes are not supported here")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise item.refuse(str(error).lower()) from None


def expand(item: Instruction, text: str, variables: Mapping[str, str]) -> str:
    """`text` with its variables replaced; one that is not set is empty, as in Docker."""
    def value(match: re.Match[str]) -> str:
        plain, braced, operator, other, wrong = match.groups()
        if wrong is not None:
            raise item.refuse(f"{match[0]!r} is no variable of a kind known here")
        found = variables.get(plain or braced, "")
        if operator == ":-":
            return found or expand(item, other, variables)
        if operator == ":+":
            return expand(item, other, variables) if found else ""
        return found
    if "\\" in text:
        raise item.refuse("backslashes are not supported here")
    return _VARIABLE.sub(value, text)
