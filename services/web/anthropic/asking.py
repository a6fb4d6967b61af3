"""From a request to Anthropic's Messages API to an `Ask`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any, NoReturn

from services.chat.events import Ask
from services.chat.messages import Call, Message, Tool, Toolbox
from services.errors import BadRequest
from services.web.anthropic.bodies import (
    Block,
    CountTokensBody,
    MessageParam,
    MessagesBody,
    NamedToolChoiceParam,
    RedactedThinkingBlockParam,
    TextBlockParam,
    Texts,
    ThinkingBlockParam,
    ToolResultBlockParam,
    ToolUseBlockParam,
)
from services.web.openai.common import make_ask, only_one_form, session_id, toolbox

_OF_USERS = (TextBlockParam, ToolResultBlockParam)
_OF_ASSISTANTS = (TextBlockParam, ToolUseBlockParam, ThinkingBlockParam, RedactedThinkingBlockParam)
_CHOICES = {"any": "required", "auto": "auto", "tool": "required", "none": "none"}


def to_answer(body: MessagesBody, digest: str | None) -> Ask:
    """The question that `body` asks. `digest`: as `Answering.respond` hands it on."""
    session = session_id(body.metadata.model_dump() if body.metadata else None)
    return _ask(body, session, digest, max_tokens=body.max_tokens, temperature=body.temperature, top_p=body.top_p,
                top_k=body.top_k, seed=body.seed, stream=bool(body.stream),
                stop=None if body.stop_sequences is None else tuple(body.stop_sequences))


def to_count(body: CountTokensBody) -> Ask:
    """The question whose prompt is to be counted."""
    return _ask(body, session_id(), None)


def _ask(body: CountTokensBody, session: str | None, digest: str | None, **fields: Any) -> Ask:
    schema = body.output_config.format.schema_ if body.output_config and body.output_config.format else None
    tools = _toolbox(body)
    only_one_form(tools=tools, **{"output_config.format": schema is not None})
    return make_ask(digest, model=body.model, messages=_conversation(body, whole=session is None), session_id=session,
                    tools=tools, schema=schema, thinking=body.thinks, **fields)


def _toolbox(body: CountTokensBody) -> Toolbox | None:
    choice = body.tool_choice
    tools = [Tool(tool.name, tool.description or "", tool.input_schema, strict=bool(tool.strict))
             for tool in body.tools or []]
    return toolbox(tools, choice=_CHOICES[choice.type] if choice else "auto",
                   named=choice.name if isinstance(choice, NamedToolChoiceParam) else "",
                   parallel=not getattr(choice, "disable_parallel_tool_use", None), name="tools.{}.name".format)


# ---------------------------------------------------------------- messages

def _conversation(body: CountTokensBody, whole: bool) -> tuple[Message, ...]:
    """The messages, the system's first. `whole`: they begin where the conversation began, so each result of a tool has
    its call among them. Turns of one role that follow each other are one, as in Anthropic's API, and one of the
    assistant at the end is gone on with."""
    said: list[Message] = []
    names: dict[str, str] = {}              # of the calls so far: id -> tool
    for number, turn in enumerate(body.messages):
        path = f"messages.{number}.content"
        said += _of_user(turn, path, names, whole) if turn.role == "user" else _of_assistant(turn, path, names)
    system = [] if body.system is None else [Message("system", _joined(body.system))]
    return (*system, *_merged(said))


def _merged(said: Sequence[Message]) -> Iterator[Message]:
    for role, turns in groupby(said, key=lambda message: message.role):
        together = list(turns)
        yield from together if role == "tool" or len(together) == 1 else [_one(together)]


def _of_user(turn: MessageParam, path: str, names: dict[str, str], whole: bool) -> Iterator[Message]:
    """Results of tools first, whatever their place: they belong to the message before."""
    blocks = _blocks(turn, path, _OF_USERS)
    for number, block in enumerate(blocks):
        if isinstance(block, ToolResultBlockParam):
            if whole and block.tool_use_id not in names:
                _refuse(f"{path}.{number}.tool_use_id", f"no 'tool_use' block before has the id "
                                                        f"{block.tool_use_id[:80]!r}")
            yield Message("tool", _result(block), call_id=block.tool_use_id, name=names.get(block.tool_use_id, ""))
    texts = [block.text for block in blocks if isinstance(block, TextBlockParam)]
    if any(text.strip() for text in texts):
        yield Message("user", "\n".join(texts))
    elif texts or not blocks:
        _refuse(path, "should not be blank")


def _of_assistant(turn: MessageParam, path: str, names: dict[str, str]) -> Iterator[Message]:
    blocks = _blocks(turn, path, _OF_ASSISTANTS)
    calls = tuple(Call(block.id, block.name, json.dumps(block.input, ensure_ascii=False)) for block in blocks
                  if isinstance(block, ToolUseBlockParam))
    names.update((call.id, call.name) for call in calls)
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlockParam)]
    texts = [block.text for block in blocks if isinstance(block, TextBlockParam)]
    yield Message("assistant", "\n".join(texts), calls, reasoning="\n".join(thoughts))


def _blocks(turn: MessageParam, path: str, kinds: tuple[type[Any], ...]) -> list[Block]:
    """The turn's blocks, all of `kinds`: its role may have no others."""
    content = turn.content
    blocks: list[Block] = [TextBlockParam.of(content)] if isinstance(content, str) else content
    for number, block in enumerate(blocks):
        if not isinstance(block, kinds):
            _refuse(f"{path}.{number}", f"{block.type!r} blocks cannot be in messages of the {turn.role}")
    return blocks


def _one(turns: Sequence[Message]) -> Message:
    """Turns of one role as one."""
    def together(texts: Iterable[str]) -> str:
        return "\n\n".join(filter(None, texts))
    return Message(turns[0].role, together(turn.content for turn in turns),
                   tuple(chain.from_iterable(turn.calls for turn in turns)),
                   reasoning=together(turn.reasoning for turn in turns))


def _result(block: ToolResultBlockParam) -> str:
    """What the tool gave back, as the model is told it."""
    text = _joined(block.content or "")
    return f"Error: {text}" if block.is_error else text


def _joined(content: Texts) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _refuse(path: str, told: str) -> NoReturn:
    raise BadRequest(f"{path}: {told}", param=path)
