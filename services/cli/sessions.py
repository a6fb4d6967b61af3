"""`main.py sessions`: look at, export, import and delete sessions, also beside a running server."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services.errors import BadRequest, ConfigError, NotFound

if TYPE_CHECKING:
    from services.chat.sessions import Sessions, TurnRecord

FORMAT = "parley-session"
VERSION = 1
SHOWN = 20             # ids that a message names
LINES = "\n\t"         # control characters that a text may hold
_SPEAKERS = {"user": "User", "assistant": "Assistant"}


@click.group()
def sessions() -> None:
    """Sessions: the conversations that this server keeps. OWNER is a key's id, "0" the master key's."""


@sessions.command("list")
@click.option("--owner", help="Only the sessions of this key id.")
@click.option("--json", "as_json", is_flag=True, help="All fields, for scripts.")
def list_sessions(owner: str | None, as_json: bool) -> None:
    """List sessions, damaged ones too."""
    entries = _sessions().entries(owner)
    if as_json:
        click.echo(json.dumps({key: vars(entry) for key, entry in entries.items()}, indent=2))
        return
    for key, entry in entries.items():
        told = f"PROBLEM: {entry.problem}" if entry.problem else f"{_turns_of(entry.turns)}  {_plain(entry.name)}"
        click.echo(f"{key:24} {_plain(entry.updated[:19]):19} {told}")
    click.echo(f"{len(entries)} session{'' if len(entries) == 1 else 's'}", err=True)


def _turns_of(number: int) -> str:
    return f"{number:5} turn{' ' if number == 1 else 's'}"


@sessions.command()
@click.argument("session", metavar="OWNER/ID")
def show(session: str) -> None:
    """Print a session to read it."""
    click.echo(_markdown(_sessions().get(*_parse(session))), nl=False)


@sessions.command()
@click.argument("session", metavar="OWNER/ID")
@click.option("--format", "form", type=click.Choice(["json", "markdown"]), default="json", show_default=True)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A new file. Default: print it.")
def export(session: str, form: str, output: Path | None) -> None:
    """Write a session out: as JSON that `import` reads, or as Markdown."""
    shape = _sessions().get(*_parse(session))
    text = _markdown(shape) if form == "markdown" else \
        json.dumps({"format": FORMAT, "version": VERSION, **shape}, indent=2, ensure_ascii=False) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        with open(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise BadRequest(f"{output} exists: remove it first, or name another file") from None
    click.echo(f"wrote {output}", err=True)


@sessions.command("import")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--owner", default="0", show_default=True,
              help="The id of the key that the session will belong to; 0 is the master key.")
@click.option("--new-id", is_flag=True, help="Give it the next free integer as its id instead of its own.")
def import_session(file: Path, owner: str, new_id: bool) -> None:
    """Read a session that `export` wrote as JSON."""
    from services.chat.sessions import parse_id
    _check_owner(owner)
    shape = _read(file)
    sid = None if new_id else parse_id(shape["session_id"])
    made = _sessions(create=True).add(owner, sid, shape["name"], _turns(file, shape["turns"]))
    click.echo(f"{owner}/{made['session_id']}")


@sessions.command()
@click.argument("session", metavar="OWNER/ID")
def delete(session: str) -> None:
    """Remove a session for good, also one that is in use."""
    _sessions().delete(*_parse(session))
    click.echo(f"deleted {session}", err=True)


def _sessions(create: bool = False) -> Sessions:
    from services.chat.sessions import Sessions
    from services.store.opening import open_store
    settings = click.get_current_context().obj
    if not create and not settings.data_dir.is_dir():
        raise ConfigError(f"there is no data folder {settings.data_dir}: check DATA_DIR, or start the server once")
    return Sessions(open_store(settings, prepare=False))


def _check_owner(owner: str) -> None:
    """NotFound, naming those there are, for what is no key's id: nobody could ever read a session of that owner."""
    from auth.keys import MASTER_ID, Keys
    settings = click.get_current_context().obj
    there = [MASTER_ID, *(key.id for key in Keys(settings.data_dir, settings).list() if key.id != MASTER_ID)]
    if owner not in there:
        shown = ", ".join(there[:SHOWN]) + (", …; `main.py keys list` shows all" if len(there) > SHOWN else "")
        raise NotFound(f"--owner {owner[:80]!r} is no key's id; there are: {shown} (0 is the master key)")


def _parse(session: str) -> tuple[str, str]:
    from services.chat.sessions import parse_id
    owner, slash, sid = session.partition("/")
    if not slash or not owner:
        raise BadRequest(f"{session!r}: expected OWNER/ID as `sessions list` shows it, for example 0/1")
    return owner, parse_id(sid)


def _read(file: Path) -> dict[str, Any]:
    try:
        shape = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"there is no file {file}") from None
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{file} is not JSON: {error}") from None
    if not isinstance(shape, dict) or not isinstance(shape.get("turns"), list) \
            or not isinstance(shape.get("name"), str) or "session_id" not in shape:
        raise BadRequest(f"{file} is no exported session: expected session_id, name and turns")
    if shape.get("version", VERSION) != VERSION:
        raise BadRequest(f"{file} is an export of version {shape['version']!r}; this Parley reads {VERSION}")
    return shape


def _turns(file: Path, turns: list[Any]) -> list[TurnRecord]:
    from services.chat.sessions import TurnRecord, utc_now
    known = {"role", "content", "at", "interrupted", "finish_reason"}
    made = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or turn.get("role") not in _SPEAKERS or not isinstance(turn.get("content"), str):
            raise BadRequest(f"{file}: turn {number} is not {{\"role\": \"user\" or \"assistant\", \"content\": text}}")
        at = turn.get("at", utc_now())
        if not isinstance(at, str) or not isinstance(turn.get("finish_reason", ""), str | None):
            raise BadRequest(f"{file}: turn {number}: at and finish_reason are texts")
        extra = {key: value for key, value in turn.items() if key not in known}
        made.append(TurnRecord(turn["role"], turn["content"], at, number, extra,
                               finish_reason=turn.get("finish_reason"), interrupted=turn.get("interrupted") is True))
    return made


def _markdown(shape: dict[str, Any]) -> str:
    parts = [f"# {_plain(shape['name'])}\n"]
    for turn in shape["turns"]:
        cut = " (interrupted)" if turn.get("interrupted") else ""
        parts.append(f"## {_SPEAKERS[turn['role']]}, {_plain(turn['at'])}{cut}\n\n{_plain(turn['content'], LINES)}\n")
    return "\n".join(parts)


def _plain(text: str, keep: str = "") -> str:
    """`text` without control characters, which could steer a terminal."""
    return "".join("\ufffd" if unicodedata.category(char) == "Cc" and char not in keep else char for char in text)
