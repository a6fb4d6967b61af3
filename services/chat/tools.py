"""How models write calls of tools: the form that a chat template teaches, and one for models that know none.

A `Form` is all that is known of it. The runner holds the model to it (`Form.calls`), `speech.Reader` reads it. The
forms are those of llama.cpp's common/chat.cpp; each is found by what the template's text says of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from services.chat.jinja import MAX_SOURCE
from services.chat.messages import Call, Message, Tool, Toolbox
from services.chat.thinking import Thinks
from services.wire import CallForm, Calls

SHORT_ID = 9            # characters of the ids that Mistral's templates demand
WHOLE = {"$ref", "anyOf", "oneOf", "allOf", "const", "enum"}    # keywords of a schema beside which it needs no type
NAMELESS = {"additionalProperties", "patternProperties"}        # of those whose names are not known


@dataclass(frozen=True)
class Form:
    """`opening`, calls with `between` between them, `closing`. One call is `before`, the tool's name, `after`, the
    arguments as a JSON object, `end`. All texts may hold special tokens."""

    name: str
    trigger: str                # what calls begin with, and nothing else that a model writes
    before: str
    after: str
    end: str
    opening: str = ""
    between: str = ""
    closing: str = ""
    several: bool = True        # whether the model knows answers with several calls
    leads: bool = False         # the trigger counts only where the answer begins with it
    short_ids: bool = False     # the template takes only ids of nine letters and digits
    native: bool = True         # the template shows tools, calls and results itself

    def begin(self, name: str) -> str:
        """Of a call of the tool `name`, up to its arguments."""
        return self.before + json.dumps(name, ensure_ascii=False)[1:-1] + self.after

    def calls(self, toolbox: Toolbox, thinks: Thinks | None = None) -> Calls:
        """What the runner holds an answer to; `thinks`: how the model thinks before it answers, where it does."""
        forms = [CallForm(name=tool.name, begin=self.begin(tool.name), schema=_arguments(tool), end=self.end,
                          loose=not tool.strict) for tool in toolbox.offered]
        think, thought, thinking = thinks or ("", "", False)
        return Calls(forms=forms, trigger=self.trigger, opening=self.opening, between=self.between,
                     closing=self.closing, leads=self.leads, required=toolbox.choice == "required",
                     many=toolbox.parallel and not toolbox.named and self.several,
                     think=think, thought=thought, thinking=thinking)

    def write(self, calls: tuple[Call, ...]) -> str:
        """Calls as a model writes them."""
        return self.opening + self.between.join(self.begin(call.name) + call.arguments + self.end
                                                for call in calls) + self.closing if calls else ""

    def instructions(self, toolbox: Toolbox) -> str:
        """What a system text says of the tools to a model whose template does not show them."""
        tools = "\n".join(json.dumps(tool.shape()["function"], ensure_ascii=False) for tool in toolbox.offered)
        example = self.write((Call("", "get_weather", '{"city": "Paris"}'),))
        lines = ["# Tools", "", "You have these tools, one JSON object per line, with the JSON Schema of their "
                 "parameters:", "<tools>", tools, "</tools>", "", "To call a tool, write its name and its arguments "
                 "in exactly this form, here for a tool get_weather with one parameter, city:", example, "",
                 self._when(toolbox), "You get the result of a call in the next message, between <tool_response> and "
                 "</tool_response>; answer from it, and never make a result up."]
        return "\n".join(lines)

    def said(self, message: Message) -> str:
        """The text of `message` for a template that knows neither calls (an assistant's) nor results (a user's, then).
        """
        if message.role == "tool":
            name = f" of {message.name}" if message.name else ""
            return f"<tool_response>\nResult{name}: {message.content}\n</tool_response>"
        return "\n".join(filter(None, (message.content, self.write(message.calls))))

    def id_for(self, call_id: str) -> str:
        """A call's id as the template takes it."""
        if not self.short_ids or (len(call_id) == SHORT_ID and call_id.isalnum() and call_id.isascii()):
            return call_id
        return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:SHORT_ID]

    def _when(self, toolbox: Toolbox) -> str:
        several = "" if toolbox.parallel and self.several else " Call one tool at a time."
        if toolbox.choice == "required":
            return "Your answer must be a call: write it, and no other text." + several
        return ("Call a tool only when it helps to answer; then write the call, and nothing after it. Otherwise answer "
                "in plain text." + several)


def _list(name: str, tag: str, end: str = "") -> Form:
    """A JSON list of calls behind a tag."""
    return Form(name, tag, '{"name": "', '", "arguments": ', "}", f"{tag}[", ", ", f"]{end}")


HERMES = Form("hermes", "<tool_call>", '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", between="\n")
GENERIC = replace(HERMES, name="generic", native=False)
NEMO = replace(_list("mistral-nemo", "[TOOL_CALLS]"), short_ids=True)
MISTRAL = Form("mistral", "[TOOL_CALLS]", "[TOOL_CALLS]", "[ARGS]", "", short_ids=True)
LLAMA = Form("llama", '{"name"', '{"name": "', '", "parameters": ', "}", several=False, leads=True)
FUNCTIONARY = Form("functionary", "<function=", "<function=", ">", "</function>")
COMMAND = Form("command-r7b", "<|START_ACTION|>", '{"tool_call_id": "0", "tool_name": "', '", "parameters": ', "}",
               opening="<|START_ACTION|>[\n    ", between=",\n    ", closing="\n]<|END_ACTION|>")
DEEPSEEK = Form("deepseek", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n",
                "\n```<｜tool▁call▁end｜>", opening="<｜tool▁calls▁begin｜>", between="\n",
                closing="<｜tool▁calls▁end｜>")
DEEPSEEK_V31 = replace(DEEPSEEK, name="deepseek-v3.1", before="<｜tool▁call▁begin｜>", after="<｜tool▁sep｜>",
                       end="<｜tool▁call▁end｜>", between="")
GRANITE = _list("granite", "<|tool_call|>")
PHI = Form("phi-4-mini", "<|tool_call|>", '<|tool_call|>{"name": "', '", "arguments": ', "}<|/tool_call|>")
NEMOTRON = _list("nemotron", "<TOOLCALL>", "</TOOLCALL>")
APRIEL = _list("apriel", "<tool_calls>", "</tool_calls>")

# What in a template's text tells its form, the special before the common. Forms of calls that are no JSON (Qwen3-
# Coder's and GLM's XML, gpt-oss's channels) are not among them: such models are taught the generic form.
MARKS: tuple[tuple[str, Form | None], ...] = (
    (r"<arg_key>|<parameter=|<parameter name=|<invoke name=|<\|channel\|>", None),
    (r"<\|START_ACTION\|>", COMMAND),
    (r"tool▁calls▁begin(?s:.)*```json", DEEPSEEK), (r"tool▁calls▁begin", DEEPSEEK_V31),
    (r"\[TOOL_CALLS\](?s:.)*\[ARGS\]", MISTRAL), (r"\[TOOL_CALLS\]", NEMO),
    (r"<\|tool_call\|>(?s:.)*<\|/tool_call\|>", PHI), (r"<\|tool_call\|>", GRANITE),
    (r"<TOOLCALL>", NEMOTRON), (r"<tool_calls>\[", APRIEL),
    (r"<function=", FUNCTIONARY),
    (r'<tool_call>(\\n|\s)*\{\\?"name\\?"|json object [^"]*<tool_call>', HERMES),
    (r'\{\\?"name\\?": function name, \\?"parameters\\?"', LLAMA))
SHOWS_TOOLS = re.compile(r"\{[{%][^%{}]*(?<![\w'\"])tools(?![\w'\"])")


@lru_cache(maxsize=64)
def form_of(chat_template: str | None) -> Form:
    """The form of a model with this chat template; `GENERIC`, which is not native, where it has none or teaches none
    that is known, and for text templates (None)."""
    if not chat_template or len(chat_template) > MAX_SOURCE or not SHOWS_TOOLS.search(chat_template):
        return GENERIC
    return next((form or GENERIC for mark, form in MARKS if re.search(mark, chat_template)), GENERIC)


def _arguments(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments, always an object's: one that names no parameters takes none."""
    schema = tool.parameters
    if WHOLE & schema.keys():
        return schema
    free = schema.get("properties") or schema.get("required") or NAMELESS & schema.keys()
    return {"type": "object", **schema} if free else {"type": "object", "additionalProperties": False}
