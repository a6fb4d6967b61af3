"""Parley from Python with `requests`: three small classes, one for each family of routes.

    API_KEY=ply_... python examples/api_requests.py "My name is Ada." --session 7
    API_KEY=ply_... python examples/api_requests.py "What is my name?" --session 7
    API_KEY=ply_... python examples/api_requests.py --sessions --models --auth

API_KEY and PARLEY_URL may stand in a .env file instead. `pip install requests python-dotenv` is all it needs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import requests
from dotenv import load_dotenv

SessionId = Any        # an integer, a short name, or None


class LLMRequests:
    """What the three classes share: the address, the key, and errors that say what the server said."""

    def __init__(self, api_key: str | None = None, url: str | None = None) -> None:
        self.url = (url or os.getenv("PARLEY_URL") or "http://127.0.0.1:5000").rstrip("/")
        self.api_key = api_key

    def call(self, method: str, endpoint: str, **kwargs: Any) -> requests.Response:
        try:
            response = requests.request(method, self.url + endpoint, headers={"Authorization": self.api_key or ""},
                                        timeout=600, **kwargs)
        except requests.ConnectionError:
            raise SystemExit(f"no server answers at {self.url}; set PARLEY_URL") from None
        except (requests.RequestException, UnicodeError) as error:
            raise SystemExit(f"the request to {self.url} failed: {error}") from None
        if not response.ok:
            raise SystemExit(f"{response.status_code}: {self.parsed(response)['message']}")
        return response

    def parsed(self, response: requests.Response) -> dict[str, Any]:
        try:
            return response.json()
        except requests.JSONDecodeError:
            raise SystemExit(f"what answers at {self.url} is no Parley server") from None


class AnswerRequest(LLMRequests):
    """POST /answer and the sessions behind it."""

    def get_answer(self, endpoint: str = "/answer", prompt: str = "", session_id: SessionId = None) -> str:
        """The answer's text."""
        return self.get_raw_answer(endpoint, prompt, session_id)["result"]

    def get_raw_answer(self, endpoint: str = "/answer", prompt: str = "",
                       session_id: SessionId = None) -> dict[str, Any]:
        """The whole answer: result, model, usage, context."""
        return self.parsed(self.call("POST", endpoint, json={"prompt": prompt, "session_id": session_id}))

    def stream_answer(self, endpoint: str = "/answer", prompt: str = "", session_id: SessionId = None) -> Iterator[str]:
        """The answer's pieces as they are made."""
        body = {"prompt": prompt, "session_id": session_id, "stream": True}
        try:
            for line in self.call("POST", endpoint, json=body, stream=True).iter_lines():
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise SystemExit(event["error"]["message"])
                    if "queue" in event:
                        print("waiting: position {position}, about {eta_seconds} s".format(**event["queue"]),
                              file=sys.stderr)
                    yield event.get("delta", "")
        except requests.RequestException as error:
            raise SystemExit(f"the answer broke off: {error}") from None

    def get_sessions(self, endpoint: str = "/answer") -> dict[str, str]:
        """`{session id: name}` of this key's sessions."""
        return self.parsed(self.call("GET", endpoint))


class ModelRequest(LLMRequests):
    """Which models and profiles there are, and which one answers."""

    def get_models(self, endpoint: str = "/models") -> dict[str, Any]:
        return self.parsed(self.call("GET", endpoint))

    def set_model(self, endpoint: str = "/models/model", model: str = "", model_config: str = "") -> dict[str, Any]:
        """Switch to the file `model` with the profile `model_config`; answers once it is loaded."""
        return self.parsed(self.call("POST", endpoint, json={"model": model, "model_config": model_config}))


class AuthRequest(LLMRequests):
    """Who this key is; with the master key or the scope `keys`, further keys."""

    def check_auth(self, endpoint: str = "/auth") -> dict[str, Any]:
        return self.parsed(self.call("GET", endpoint))

    def gen_key(self, endpoint: str = "/auth/key") -> dict[str, Any]:
        return self.parsed(self.call("POST", endpoint))


def main() -> None:
    load_dotenv()
    parser = argparse.ArgumentParser(description="Talk to a Parley server.")
    parser.add_argument("prompt", nargs="?", help="a prompt to answer; it is streamed")
    parser.add_argument("--session", default=None, help="a session number or name; without one nothing is kept")
    parser.add_argument("--sessions", action="store_true", help="list this key's sessions")
    parser.add_argument("--models", action="store_true", help="list models and profiles")
    parser.add_argument("--auth", action="store_true", help="show what this key may do")
    arguments = parser.parse_args()
    if not (arguments.prompt or arguments.sessions or arguments.models or arguments.auth):
        parser.exit(2, "give a prompt, or one of --sessions, --models, --auth; --help tells more\n")
    key = os.getenv("API_KEY")
    if not key:
        parser.exit(2, "set API_KEY in the environment or in .env, for example to a key from: "
                       ".venv/bin/python main.py keys create --name python\n")
    if arguments.prompt:
        for piece in AnswerRequest(key).stream_answer(prompt=arguments.prompt, session_id=arguments.session):
            print(piece, end="", flush=True)
        print()
    shown = [(arguments.sessions, AnswerRequest(key).get_sessions), (arguments.models, ModelRequest(key).get_models),
             (arguments.auth, AuthRequest(key).check_auth)]
    for wanted, get in shown:
        if wanted:
            print(json.dumps(get(), indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
