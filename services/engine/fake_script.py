"""What the directives in a prompt, or in a model file, ask of the fake runner: see services.engine.fake."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from services.errors import BadRequest, NotFound, from_code
from services.wire import Calls, Generate

USER = re.compile(r"(?:^|\n)[ \t]*(?:#+ *)?(?:human|user|prompt|question|input|instruction)[ \t]*:[ \t]*", re.I)
ASSISTANT = re.compile(r"\n[ \t]*(?:#+ *)?(?:ai|bot|assistant|answer|response|model)[ \t]*:", re.I)
TURN = re.compile(r"<\|im_start\|>(\w+)\n")
MARK = re.compile(r"<\|im_end\|>|</?s>|\[/?INST\]")
DIRECTIVE = re.compile(r"(?:^|(?<=\s))!([a-z]+)[ \t]*((?:(?![ \t]+![a-z]).)*)")
WRITES = ("echo", "prompt", "tokens", "bytes")
FAULTS = ("die", "hang", "freeze", "garbage", "half", "huge", "close", "wrongid")
FOR_EVER = 1e6          # seconds


def last_said(prompt: str) -> str:
    """What the user said last, without the template around it."""
    text = MARK.sub("", TURN.sub(r"\n\1: ", prompt))
    begins = [found.end() for found in USER.finditer(text)]
    text = text[begins[-1]:] if begins else text
    ends = ASSISTANT.search(text)
    return (text[:ends.start()] if ends else text).strip()


@dataclass
class Script:
    """What the directives of one prompt ask for."""

    answer: str
    prompt: str = ""
    wait: float = 0.0
    sleep: float = 0.0
    fail: str | None = None
    faults: list[tuple[int, str, str]] = field(default_factory=list)    # after how many pieces, which, how
    written: bool = False               # a directive said what to answer
    wanted: list[tuple[str, Any]] = field(default_factory=list)         # calls: tool and arguments

    @classmethod
    def read(cls, prompt: str, first: str = "", request: Generate | None = None) -> Script:
        said = last_said(prompt)
        script = cls(reply(prompt, said), prompt)
        if request and request.suffix is not None:
            script.answer = f"between {(said.splitlines() or [''])[-1]} and {(request.suffix.splitlines() or [''])[0]}"
        for word, rest in DIRECTIVE.findall(f"{first}\n{said}"):
            try:
                script.take(word, rest.strip())
            except (ValueError, IndexError):
                raise BadRequest(f"the fake runner does not understand !{word} {rest}") from None
        if calls := called(request.calls if request else None, script.wanted):
            script.answer = (script.answer if script.written else "") + calls
        return script

    def take(self, word: str, rest: str) -> None:
        if word in WRITES:
            self.write(word, rest)
        elif word == "call":
            name, _, arguments = rest.partition(" ")
            self.wanted.append((name, json.loads(arguments or "{}")))
        elif word in ("wait", "sleep"):
            setattr(self, word, float(rest))
        elif word == "fail":
            self.fail = rest
        elif word in FAULTS:
            values = rest.split()
            how = values.pop(0) if word == "die" else ""
            self.faults.append((int(values[0]) if values else 0, word, how))

    def write(self, word: str, rest: str) -> None:
        self.written = True
        if word == "echo":
            self.answer = rest
        elif word == "prompt":
            self.answer = self.prompt
        elif word == "tokens":
            self.answer = " ".join(f"w{n + 1}" for n in range(int(rest)))
        else:
            self.answer = bytes.fromhex(rest).decode(errors="replace")


def reply(prompt: str, said: str) -> str:
    if re.search(r"what(?: is|'s) my name", said, re.I):
        names = re.findall(r"my name is ([\w'-]+)", prompt, re.I)
        return f"Your name is {names[-1]}." if names else "You have not told me your name."
    return "You said: " + (said.splitlines() or [""])[-1]


def called(calls: Calls | None, wanted: list[tuple[str, Any]]) -> str:
    """The calls that are wanted (tool, arguments), written as the request has them; "" for none. Where one is required
    and none is wanted it is the first tool's, without arguments."""
    if not calls or not wanted:
        if wanted:
            raise BadRequest("the fake runner was told to !call a tool, and the request has none")
        return called(calls, [(calls.forms[0].name, {})]) if calls and calls.required else ""
    forms = {form.name: form for form in calls.forms}
    if unknown := [name for name, _ in wanted if name not in forms]:
        raise BadRequest(f"the fake runner was told to !call {unknown[0]}; the request has {', '.join(forms)}")
    texts = [forms[name].begin + json.dumps(arguments) + forms[name].end for name, arguments in wanted]
    return calls.opening + calls.between.join(texts) + calls.closing


def die(how: str) -> NoReturn:
    """End this process by a signal ("SIGKILL") or with an exit code ("134")."""
    if how.isdigit():
        os._exit(int(how))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signal.Signals[how])
    time.sleep(FOR_EVER)
    raise AssertionError("a signal did not end this process")


def load_script(path: str) -> Iterator[tuple[str, str]]:
    """The directives of a model file that begins with `!`."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise NotFound(f"there is no model file {os.path.basename(path)!r}") from None
    if head.startswith(b"!"):
        for line in head.decode(errors="replace").splitlines():
            word, _, rest = line.removeprefix("!").partition(" ")
            yield word, rest.strip()


def load(path: str) -> str:
    """Do what the model file asks for; the directives that go before each prompt's own."""
    first = ""
    for word, rest in load_script(path):
        if word == "first":
            first = rest
        elif word == "sleep":
            time.sleep(float(rest))
        elif word == "hang":
            time.sleep(FOR_EVER)
        elif word == "die":
            die(rest)
        elif word == "noise":
            sys.stdout.write(rest + "\n")
        elif word == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        elif word == "fail":
            code, _, text = rest.partition(" ")
            raise from_code(code, text)
    return first
