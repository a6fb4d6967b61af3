"""Makes expected.json: what llama.cpp's own engine renders from the templates here.

    pip install xllamacpp==2026.10.11549    # llama.cpp's server as a Python package
    python -m tests.services.chat.templates.make_expected [NAME …]

Each template is given to a server with a tiny model, and each conversation is posted to its `/apply-template`. A text
that is there is what the server answers; `{"error": …}`: what it says why there is none. `caps` is what it finds that a
template can do.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.tiny_gguf import write_tiny

HERE = Path(__file__).parent
MODULE = "tests.services.chat.templates.make_expected"
EXPECTED = HERE / "expected.json"
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a city; <b>now</b> & \"soon\", in °C.",
    "parameters": {"type": "object", "required": ["city"], "properties": {
        "city": {"type": "string", "description": "Name of the city"},
        "days": {"type": "integer", "description": "How many days", "default": 1},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}}}}}
SEND = {"type": "function", "function": {
    "name": "send_mail", "description": "Sends a message.",
    "parameters": {"type": "object", "required": ["to", "options"], "properties": {
        "to": {"type": "array", "items": {"type": "string"}, "description": "Addresses"},
        "options": {"type": "object", "properties": {"urgent": {"type": "boolean"}, "weight": {"type": "number"}}}}}}}


def _call(number: int, name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": f"call0000{number}", "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}}


def _result(number: int, name: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": f"call0000{number}", "name": name}


SYSTEM = {"role": "system", "content": "You are a \"terse\" helper.\n"}
ASK = {"role": "user", "content": " How warm is it in Malmö?"}
PARIS = _call(1, "get_weather", city="Malmö", days=2)
MAIL = _call(2, "send_mail", to=["a@b.se", "c@d.se"], options={"urgent": True, "weight": 0.5})
ANSWER = {"role": "assistant", "content": "It is 7 °C."}
THANKS = {"role": "user", "content": "Thanks & <bye>"}
THOUGHT = "They want\nthe temperature."
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [ASK]},
    "turns": {"messages": [SYSTEM, ASK, ANSWER, THANKS]},
    "no thinking": {"messages": [SYSTEM, ASK], "thinking": False},
    "reasoning": {"messages": [ASK, {**ANSWER, "reasoning_content": THOUGHT}, THANKS]},
    "call": {"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": [PARIS]},
                          _result(1, "get_weather", '{"degrees": 7}')], "tools": [WEATHER]},
    "parallel": {"messages": [SYSTEM, ASK, {"role": "assistant", "content": "", "tool_calls": [PARIS, MAIL],
                                            "reasoning_content": THOUGHT},
                              _result(1, "get_weather", "7 °C"), _result(2, "send_mail", "sent"), ANSWER, THANKS],
                 "tools": [WEATHER, SEND]},
    "said and called": {"messages": [ASK, {"role": "assistant", "content": "I shall see.", "tool_calls": [PARIS],
                                           "reasoning_content": THOUGHT}, _result(1, "get_weather", "7 °C")],
                        "tools": [WEATHER]},
}


def serve(model: str, template: str) -> None:
    """The server of one template, until it is ended."""
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path, params.chat_template = model, Path(template).read_text()
    params.n_parallel, params.n_ctx, params.warmup = 1, 256, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.use_jinja, params.port, params.verbosity = True, 0, 0
    server = xllamacpp.Server(params)
    print("listening", server.listening_address, flush=True)
    while True:
        time.sleep(3600)


def renderings(model: Path, template: Path) -> dict[str, Any]:
    """What llama.cpp makes of each conversation, and what it finds that the template can do."""
    command = [sys.executable, "-m", MODULE, "--serve", str(model), str(template)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout
        try:
            address = next(line for line in server.stdout if line.startswith("listening ")).split()[1]
            with urllib.request.urlopen(f"{address}/props", timeout=60) as answer:
                caps = json.load(answer)["chat_template_caps"]
            return {"caps": caps, "prompts": {name: _posted(address, asked) for name, asked in CONVERSATIONS.items()}}
        finally:
            server.terminate()


def _posted(address: str, asked: dict[str, Any]) -> str | dict[str, str]:
    body = {"messages": asked["messages"], "chat_template_kwargs": {"enable_thinking": asked.get("thinking", True)}}
    if "tools" in asked:
        body["tools"] = asked["tools"]
    request = urllib.request.Request(f"{address}/apply-template", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.load(answer)["prompt"])
    except urllib.error.HTTPError as error:
        return {"error": json.load(error)["error"]["message"].rpartition("Error: ")[2]}


def main() -> None:
    """Renews the renderings of the templates that are named, or of all."""
    if sys.argv[1:2] == ["--serve"]:
        return serve(*sys.argv[2:4])
    kept = json.loads(EXPECTED.read_text())["templates"] if sys.argv[1:] else {}
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny(Path(folder) / "tiny.gguf")
        for template in sorted(HERE.glob("*.jinja")):
            if template.stem in sys.argv[1:] or not sys.argv[1:]:
                print(template.stem, flush=True)
                kept[template.stem] = renderings(model, template)
    made = {"made": datetime.date.today().isoformat(), "conversations": CONVERSATIONS, "templates": kept}
    EXPECTED.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
