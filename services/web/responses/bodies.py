"""The shape of requests to the Responses API, as the package `openai` sends them, and what their fields mean.

Beside OpenAI's fields there are llama.cpp's for sampling. What needs OpenAI's own servers (web search, conversations,
stored prompts) is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, Tag

from services.chat.messages import Tool, Toolbox
from services.errors import BadRequest
from services.web.bodies import MAX_TOKENS, Body, Name
from services.web.openai.common import MAX_TOOLS, STRICT, Ignored, Refused, SamplingBody, by_kind, toolbox

LOGPROBS = "message.output_text.logprobs"
INCLUDES = (LOGPROBS, "reasoning.encrypted_content", "message.input_image.image_url", "file_search_call.results",
            "web_search_call.results", "web_search_call.action.sources", "code_interpreter_call.outputs",
            "computer_call_output.output.image_url")
ResponseId = Annotated[str, Field(min_length=1, max_length=200)]


class Lenient(Body):
    """A part of a body that newer clients may have put more into."""

    model_config = ConfigDict(extra="ignore")


class ResponseFormat(Lenient):
    """What the text must look like. `strict` without effect: it always complies."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="of json_schema: JSON Schema")
    strict: bool | None = None


class TextConfig(Lenient):
    format: ResponseFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="without effect")


class ResponseTool(Lenient):
    """A function of the client's. Other types are OpenAI's own tools, and refused."""

    type: str = Field(max_length=100)
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON Schema of an object")
    strict: bool | None = Field(None, description=f"{STRICT}; default: false")


class ReasoningConfig(Lenient):
    """Whether a model thinks; how much is its own."""

    effort: str | None = Field(None, max_length=20, description="none: a model that thinks before it answers does not; "
                                                                "else without effect")
    summary: str | None = Field(None, max_length=20, description="without effect")


Choice = Annotated[Annotated[Literal["none", "auto", "required"], Tag("str")]
                   | Annotated[dict[str, Any], Tag("dict[str,any]")], by_kind("dict[str,any]")]


class ResponsesBody(SamplingBody):
    """A question with all that belongs to it, or what is new in a conversation."""

    unknown: ClassVar[str] = "Unknown parameter: '{}'"

    input: Annotated[Annotated[str, Tag("str")]
                     | Annotated[list[dict[str, Any]], Field(max_length=10_000), Tag("list[dict]")],
                     by_kind("list[dict]")] = Field(description="text, or items: messages, function calls, their "
                                                                "outputs, reasoning")
    model: Name | None = Field(None, description="a profile, or the file of a model; default: the selected profile")
    instructions: str | None = Field(None, description="the system text of this response alone")
    previous_response_id: ResponseId | None = Field(None, description="the stored response that this one goes on from")
    store: bool | None = Field(None, description="keep it, with its conversation as a session; default: true")
    background: bool | None = Field(None, description="answer at once, and be asked for it later")
    stream: bool | None = None
    tools: list[ResponseTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[str] | None = Field(None, max_length=20, description=f"{LOGPROBS}; others are without effect")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16, description="`session_id` in it names the session, as the header X-Session-Id does")
    reasoning: ReasoningConfig | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="without effect: what is sent of a session is its window")
    user: str | None = Field(None, max_length=512, description="without effect")
    safety_identifier: str | None = Field(None, max_length=512, description="without effect")
    prompt_cache_key: str | None = Field(None, max_length=512, description="without effect")
    max_tool_calls: int | None = Field(None, ge=1, description="without effect: of OpenAI's own tools")
    service_tier: Ignored = None
    stream_options: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None
    conversation: Refused = None
    prompt: Refused = None
    context_management: Refused = None
    moderation: Refused = None

    @property
    def thinking(self) -> bool:
        """Whether a model that can is to think before it answers."""
        return self.reasoning is None or self.reasoning.effort != "none"

    def form(self) -> dict[str, Any] | None:
        """What the text must comply with."""
        form = self.text.format if self.text else None
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return {"type": "object"}
        if form.schema_ is None:
            raise BadRequest("text.format.schema: a format of type json_schema has one", param="text.format.schema",
                             code="missing_required_parameter")
        return form.schema_

    def likely(self) -> int | None:
        """How many other tokens are told beside each; None: no log probabilities are wanted."""
        for index, name in enumerate(self.include or ()):
            if name not in INCLUDES:
                raise BadRequest(f"include.{index}: {name[:80]!r} is not known; known are: {', '.join(INCLUDES)}",
                                 param=f"include.{index}")
        wanted = self.top_logprobs or LOGPROBS in (self.include or ())
        return (self.top_logprobs or 0) if wanted else None

    def offered(self) -> Toolbox | None:
        tools = [_tool(tool, f"tools.{index}") for index, tool in enumerate(self.tools or ())]
        parallel = self.parallel_tool_calls is not False
        choice = self.tool_choice or "auto"
        if isinstance(choice, str):
            return toolbox(tools, choice, parallel=parallel, name=_name_of_tool)
        kind = choice.get("type")
        if kind == "function":
            return toolbox(tools, named=_named(choice, "tool_choice"), parallel=parallel, name=_name_of_tool)
        if kind == "allowed_tools":
            return _allowed(tools, choice, parallel)
        raise BadRequest(f"tool_choice.type: {str(kind)[:80]!r} is not taken; expected function or allowed_tools",
                         param="tool_choice.type", code="unsupported_value")


_name_of_tool = "tools.{}.name".format


def _tool(tool: ResponseTool, where: str) -> Tool:
    if tool.type != "function":
        raise BadRequest(f"{where}.type: {tool.type!r} is a tool of OpenAI's and not here; give functions of your own",
                         param=f"{where}.type", code="unsupported_value")
    if not tool.name:
        raise BadRequest(f"{where}.name: a function has a name", param=f"{where}.name",
                         code="missing_required_parameter")
    described = Tool(tool.name, tool.description or "")
    return described if tool.parameters is None else Tool(tool.name, described.description, tool.parameters,
                                                          strict=bool(tool.strict))


def _named(choice: Mapping[str, Any], where: str) -> str:
    name = choice.get("name")
    if not isinstance(name, str) or not name:
        raise BadRequest(f"{where}.name: expected the name of a function", param=f"{where}.name")
    return name


def _allowed(tools: list[Tool], choice: Mapping[str, Any], parallel: bool) -> Toolbox | None:
    """All `tools` are checked; those that `choice` allows are offered."""
    mode, allowed = choice.get("mode"), choice.get("tools")
    if mode not in ("auto", "required") or not isinstance(allowed, list):
        raise BadRequest("tool_choice: allowed_tools has a mode, auto or required, and a list of tools",
                         param="tool_choice")
    names = {_named(tool if isinstance(tool, dict) else {}, f"tool_choice.tools.{index}")
             for index, tool in enumerate(allowed)}
    toolbox(tools, name=_name_of_tool)
    if unknown := names - {tool.name for tool in tools}:
        raise BadRequest(f"tool_choice names {min(unknown)[:80]!r}, which is none of the tools", param="tool_choice")
    return toolbox([tool for tool in tools if tool.name in names], mode, parallel=parallel, name=_name_of_tool)
