"""Try the starter model through a running Parley server: fresh cases of every task, greedy, a table of right answers.

python evaluate.py --key ply_… --profile starter --profile starter-chat --strict
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys

import requests
from dialogues import TASKS, Case, cases

TIMEOUT = 120
"""Seconds to wait for one answer."""


class Server:
    """A Parley server, as one key sees it."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        self.http = requests.Session()
        self.http.headers["Authorization"] = key

    def ask(self, prompt: str, session: str, profile: str) -> str:
        """The answer to one prompt, at temperature 0."""
        body = {"prompt": prompt, "session_id": session, "profile": profile, "temperature": 0}
        response = self.http.post(f"{self.url}/answer", json=body, timeout=TIMEOUT)
        response.raise_for_status()
        return response.json()["result"]

    def last_answer(self, case: Case, profile: str) -> str:
        """The answer to a case's last turn, all its turns posted into one session, which is deleted after."""
        session = f"evaluate-{secrets.token_hex(8)}"
        try:
            return [self.ask(prompt, session, profile) for prompt in case.prompts][-1]
        finally:
            self.http.delete(f"{self.url}/answer/{session}", timeout=TIMEOUT)


def right(case: Case, answer: str) -> bool:
    """Whether an answer is the wanted one, to the letter."""
    return answer.strip() == case.wanted


def share(server: Server, task: str, profile: str, count: int, seed: int, show: int) -> float:
    """The percentage of right answers to fresh cases of a task; the first few wrong ones are printed."""
    wrong = []
    for case in cases(task, count, seed):
        answer = server.last_answer(case, profile)
        if not right(case, answer):
            wrong.append((case, answer))
    for case, answer in wrong[:show]:
        print(f"  {profile}, {task}: {case.prompts!r}\n    wanted {case.wanted!r}\n    got    {answer!r}")
    return 100 * (1 - len(wrong) / count)


def table(rows: list[tuple[str, int, list[float]]], profiles: list[str]) -> str:
    """The shares as text, a task a line; a figure below the wanted one is marked."""
    lines = [f"{'task':<14} {'wanted':>7} " + " ".join(f"{profile:>14}" for profile in profiles)]
    for task, wanted, shares in rows:
        cells = (f"{figure:>12.0f} %" if figure >= wanted else f"{figure:>11.0f} %!" for figure in shares)
        lines.append(f"{task:<14} {wanted:>5} % " + " ".join(cells))
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:5000")
    parser.add_argument("--key", default=os.environ.get("API_KEY"), help="an API key (default: the variable API_KEY)")
    parser.add_argument(
        "--profile", action="append", help="a profile to try; may be given more than once (default: starter)"
    )
    parser.add_argument("--task", action="append", choices=list(TASKS), help="a task to try (default: all of them)")
    parser.add_argument("--count", type=int, default=100, help="cases of each task")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--show", type=int, default=3, help="wrong answers to print for each task")
    parser.add_argument(
        "--strict", action="store_true", help="exit with status 1 when a task is below its wanted figure"
    )
    options = parser.parse_args()
    if not options.key:
        parser.error("no API key: give --key or set API_KEY")
    return options


def main() -> int:
    """Try every task with every profile."""
    options = parsed()
    profiles = options.profile or ["starter"]
    server = Server(options.url, options.key)
    rows = []
    try:
        for task in options.task or TASKS:
            shares = [share(server, task, p, options.count, options.seed, options.show) for p in profiles]
            rows.append((task, TASKS[task][0], shares))
    except requests.RequestException as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 1
    print(table(rows, profiles))
    low = any(figure < wanted for _, wanted, shares in rows for figure in shares)
    return 1 if options.strict and low else 0


if __name__ == "__main__":
    sys.exit(main())
