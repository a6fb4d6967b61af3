"""`main.py chat`: talk to a running server from the terminal, or through a pipe, one line a question."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import httpx

HINT = "Type a question and Enter. Ctrl-C stops an answer, Ctrl-D ends."
WHERE_KEY = "--key, or PARLEY_API_KEY or API_KEY in the environment"


@click.command()
@click.option("--url", envvar="PARLEY_URL", show_envvar=True,
              help="The server. Without it this machine's, from HOST and PORT.")
@click.option("--key", envvar=["PARLEY_API_KEY", "API_KEY"], show_envvar=True, help="The API key.")
@click.option("--session", help="Go on with this session.  [default: a new one]")
@click.option("--profile", help="The profile that answers.  [default: the selected one]")
def chat(url: str | None, key: str | None, session: str | None, profile: str | None) -> None:
    """Talk to a running server. Answers appear as they are written; questions may also come through a pipe."""
    if not key:
        raise click.UsageError(f"a key is needed: {WHERE_KEY}")
    if not key.isascii() or not key.isprintable():
        raise click.ClickException(f"the key holds characters that no key has; check {WHERE_KEY}")
    for option, text in (("--session", session), ("--profile", profile)):
        _check_text(text or "", option)
    import httpx

    given = session or f"chat-{secrets.token_hex(4)}"
    body: dict[str, Any] = {"session_id": int(given) if _is_integer(given) else given, "stream": True}
    if profile:
        body["profile"] = profile
    headers = {"Authorization": f"Bearer {key}"}
    try:
        with httpx.Client(base_url=url or _own_url(), headers=headers, timeout=httpx.Timeout(10, read=120),
                          trust_env=False) as client:
            _talk(client, body)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise click.ClickException(f"the address {url} of --url or PARLEY_URL cannot be used: {error}") from None


def _is_integer(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) <= 18 and str(int(text)) == text


def _own_url() -> str:
    """Where this machine's server listens, by the settings."""
    settings = click.get_current_context().obj
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "") else settings.host
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _talk(client: httpx.Client, body: dict[str, Any]) -> None:
    """One question after another. At a terminal an error is told and the next question may come; in a pipe it ends."""
    terminal = sys.stdin.isatty()
    if terminal:
        click.echo(f"Session {body['session_id']}. {HINT}", err=True)
    for question in _questions(terminal):
        try:
            _ask(client, {**body, "prompt": question})
        except click.ClickException as error:
            if not terminal or getattr(error, "fatal", False):
                raise
            error.show()
        except KeyboardInterrupt:
            click.echo(" [stopped]", err=True)
            if not terminal:
                raise click.Abort from None


def _questions(terminal: bool) -> Iterator[str]:
    while True:
        try:
            line = input("> ") if terminal else sys.stdin.readline()
        except EOFError:
            click.echo(err=True)
            return
        except KeyboardInterrupt:
            click.echo(err=True)
            continue
        except UnicodeDecodeError as error:
            raise click.ClickException(f"what was read is not {error.encoding} text") from None
        if not terminal and not line:
            return
        _check_text(line, "what was read")
        if line.strip():
            yield line.rstrip("\r\n")


def _check_text(text: str, what: str) -> None:
    """Python hands over bytes that are no text as halves of surrogate pairs, which no request can carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise click.ClickException(f"{what} is not UTF-8 text") from None


def _ask(client: httpx.Client, body: dict[str, Any]) -> None:
    """Print the answer as it comes. Raises `ClickException` with the server's message."""
    import httpx

    try:
        with client.stream("POST", "/answer", json=body) as response:
            if response.status_code != 200:
                response.read()
                raise _refused(response.status_code, response.text)
            complete = _print(_events(response))
    except httpx.UnsupportedProtocol:
        raise
    except (httpx.ConnectError, httpx.ConnectTimeout):
        raise _fatal(f"no server answers at {client.base_url}; start one with `main.py serve`, or name it with "
                     "--url or PARLEY_URL") from None
    except httpx.HTTPError as error:
        raise click.ClickException(f"the answer broke off: {error or type(error).__name__}") from None
    if not complete:
        raise click.ClickException("the answer broke off: the server ended it without saying why")


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The payloads of server-sent events. Lines end in LF only, whatever else a text holds."""
    waiting = b""
    for chunk in response.iter_bytes():
        *lines, waiting = (waiting + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                try:
                    yield json.loads(line[6:])
                except ValueError:
                    raise _fatal("what answers there is no Parley server") from None


def _print(events: Iterator[dict[str, Any]]) -> bool:
    """Whether the answer came to its end."""
    for event in events:
        if "error" in event:
            click.echo()
            raise click.ClickException(_one_line(event["error"]["message"]))
        if event.get("done"):
            click.echo()
            for warning in event.get("warnings", []):
                click.echo(f"[{_one_line(warning)}]", err=True)
            return True
        if queue := event.get("queue"):
            click.echo(f"waiting: position {queue['position']}, about {queue['eta_seconds']} s", err=True)
        click.echo(_printable(event.get("delta", "")), nl=False)
    return False


def _refused(status: int, text: str) -> click.ClickException:
    try:
        message = _one_line(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return _fatal(f"what answers there is no Parley server (HTTP {status})")
    if status == 401:
        return _fatal(f"the server does not know this key; check {WHERE_KEY}")
    return click.ClickException(message)


def _fatal(message: str) -> click.ClickException:
    """An error after which the next question would fail as well."""
    error = click.ClickException(message)
    error.fatal = True      # type: ignore[attr-defined]
    return error


def _printable(text: str) -> str:
    """`text` without what would steer the terminal."""
    return "".join(char if char in "\n\t" or (char >= " " and not "\x7f" <= char <= "\x9f") else "\ufffd"
                   for char in text)


def _one_line(text: object) -> str:
    return _printable(" ".join(str(text).split()))
