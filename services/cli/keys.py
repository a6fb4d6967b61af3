"""`main.py keys`: make, list, show, edit, revoke and rotate API keys, on the server's own data folder.

Whoever may write the data folder may do all of it: this is the way back from a lost master key.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from services.errors import BadRequest, ParleyError

if TYPE_CHECKING:
    from auth.keys import Identity, Key, Keys

MASTER = "0"
NONE = "none"       # of an option of `keys edit`: without that limit
_OPTIONS = {"name": "--name", "scopes": "--scope", "profiles": "--profile", "expires_in": "--expires-in",
            "requests_per_minute": "--rpm", "max_parallel": "--parallel", "tokens_per_minute": "--tpm",
            "token_budget": "--budget", "weight": "--weight",
            "jwt_kid": "--jwt-kid", "jwt_iss": "--jwt-iss"}     # by the fields of a key
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def duration(text: str) -> int:
    """Text like `90s`, `12h`, `30d`, as seconds."""
    found = re.fullmatch(r"([0-9]{1,10})([smhdw])", text.strip())
    if not found:
        raise click.BadParameter(f"{text!r}: expected a number and its unit, s, m, h, d or w: for example 30s, 12h or "
                                 "30d")
    return int(found[1]) * _UNITS[found[2]]


def budget(text: str) -> dict[str, Any]:
    """Text like `100000/day`, as a token budget."""
    found = re.fullmatch(r"([0-9]{1,16})/(day|month|total)", text.strip())
    if not found:
        raise click.BadParameter(f"{text!r}: expected tokens and a period, day, month or total: for example 100000/day")
    return {"tokens": int(found[1]), "per": found[2]}


def or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """What reads NONE as itself, and other texts as `kind` does."""
    return lambda text: NONE if text.strip() == NONE else kind(text)


@click.group()
def keys() -> None:
    """API keys: who may use this server, and for what."""


@keys.command()
@click.option("--name", default="", help="What the key is for, to be read in the list.")
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE",
              help="answer, models:read, models:switch, keys or admin; may be repeated. Default: the first three.")
@click.option("--profile", "profiles", multiple=True, metavar="NAME",
              help="A profile that the key may use; may be repeated. Default: all.")
@click.option("--expires-in", type=duration, metavar="TIME",
              help="How long the key works, as 12h or 30d. Default: for good.")
@click.option("--rpm", type=int, help="Requests per minute. Default: no limit.")
@click.option("--parallel", type=int, help="Answers at the same time. Default: no limit.")
@click.option("--tpm", type=int, help="Tokens per minute, of prompts and answers. Default: no limit.")
@click.option("--budget", type=budget, metavar="TOKENS/PERIOD",
              help="Tokens in all, as 100000/day, 2000000/month or 50000/total. Default: no limit.")
@click.option("--weight", type=float, help="Share of a busy model beside other keys, 0.1 to 100. Default: 1.")
@click.option("--jwt-kid", "kids", multiple=True, metavar="KID",
              help="JSON Web Tokens with this kid come in as the key; may be repeated. Needs ASAP_PUB_KEYS_REPO_URL.")
@click.option("--jwt-iss", "iss", metavar="ISS", help="Of them, only those with this iss.")
def create(name: str, scopes: tuple[str, ...], profiles: tuple[str, ...], expires_in: int | None, rpm: int | None,
           parallel: int | None, tpm: int | None, budget: dict[str, Any] | None, weight: float | None,
           kids: tuple[str, ...], iss: str | None) -> None:
    """Make a key and print it: this is the only time it can be seen."""
    chosen: dict[str, Any] = {"scopes": scopes} if scopes else {}
    _warn_of_unknown(profiles)
    identity = _identity(kids, iss)
    with _told():
        secret, key = _keys().create(name=name, profiles=profiles or None, expires_in=expires_in,
                                     requests_per_minute=rpm, max_parallel=parallel, weight=weight,
                                     tokens_per_minute=tpm, token_budget=budget, identity=identity, **chosen)
    click.echo(f"made key {key.id} ({', '.join(key.scopes)}); it is shown this once:", err=True)
    click.echo(secret)


@keys.command("jwt")
@click.argument("key_id", metavar="ID")
@click.option("--jwt-kid", "kids", multiple=True, metavar="KID", help="Of the tokens; may be repeated.")
@click.option("--jwt-iss", "iss", metavar="ISS", help="Of them, only those with this iss.")
def tokens(key_id: str, kids: tuple[str, ...], iss: str | None) -> None:
    """Have JSON Web Tokens come in as a key, and those of before no longer; without options none."""
    identity = _identity(kids, iss)
    with _told():
        _keys().assign_tokens(key_id, identity)
    click.echo(f"tokens with the kid {', '.join(kids)} come in as key {key_id}" if kids else
               f"no tokens come in as key {key_id}")


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="All fields, for scripts.")
def list_keys(as_json: bool) -> None:
    """List all keys, without their secrets."""
    found = _keys().list()
    if as_json:
        click.echo(json.dumps([key.public() for key in found], indent=2))
        return
    rows: list[tuple[str, ...]] = [("ID", "STATE", "BEGINS", "CREATED", "EXPIRES", "RPM", "TPM", "BUDGET",
                                     "PARALLEL", "WEIGHT", "SCOPES", "NAME")]
    rows += [_row(key) for key in found]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
@click.argument("key_id", metavar="ID")
def show(key_id: str) -> None:
    """Show one key's record."""
    click.echo(json.dumps(_keys().get(key_id).public(), indent=2))


@keys.command()
@click.argument("key_id", metavar="ID")
@click.option("--name", help="What the key is for.")
@click.option("--scope", "scopes", multiple=True, metavar="SCOPE",
              help="What the key may do from now on; may be repeated. See keys create.")
@click.option("--profile", "profiles", multiple=True, metavar="NAME|none",
              help="A profile that the key may use from now on; may be repeated. none: all.")
@click.option("--expires-in", type=or_none(duration), metavar="TIME|none",
              help="How long the key works from now, as 12h or 30d. none: for good.")
@click.option("--rpm", "requests_per_minute", type=or_none(click.INT), metavar="N|none", help="Requests per minute.")
@click.option("--parallel", "max_parallel", type=or_none(click.INT), metavar="N|none", help="Answers at the same time.")
@click.option("--tpm", "tokens_per_minute", type=or_none(click.INT), metavar="N|none",
              help="Tokens per minute, of prompts and answers.")
@click.option("--budget", "token_budget", type=or_none(budget), metavar="TOKENS/PERIOD|none",
              help="Tokens in all, as 100000/day, 2000000/month or 50000/total. What was used counts.")
@click.option("--weight", type=or_none(click.FLOAT), metavar="N|none",
              help="Share of a busy model beside other keys, 0.1 to 100. none: 1.")
def edit(key_id: str, scopes: tuple[str, ...], profiles: tuple[str, ...], **given: Any) -> None:
    """Change what a key may do, at once, also on a running server.

    What is not given stays as it is; none takes a limit away.
    """
    changes = {field: None if value == NONE and field != "name" else value
               for field, value in given.items() if value is not None}
    if scopes:
        changes["scopes"] = scopes
    if profiles:
        changes["profiles"] = None if profiles == (NONE,) else profiles
        _warn_of_unknown(changes["profiles"] or ())
    if not changes:
        raise click.UsageError("nothing to change: give one or more of the options; --help shows them")
    found = _keys()
    before = found.get(key_id).public()
    with _told():
        after = found.edit(key_id, **changes).public()
    for field in (field for field in after if after[field] != before[field]):
        click.echo(f"key {key_id}: {field} is {_said(after[field])}, was {_said(before[field])}")
    if after == before:
        click.echo(f"key {key_id} is as it was")


@keys.command()
@click.argument("key_id", metavar="ID")
def revoke(key_id: str) -> None:
    """End a key, at once and for good."""
    found = _keys()
    before = None if key_id == MASTER else found.get(key_id).revoked_at
    key = found.revoke(key_id)
    click.echo(f"key {key.id} was revoked already, at {before}" if before else f"key {key.id} is revoked")


@keys.command()
@click.argument("key_id", metavar="ID")
@click.option("--grace", type=duration, default="0s", metavar="TIME",
              help="How long the old secret still works. Default: not at all, nor those of earlier rotations.")
def rotate(key_id: str, grace: int) -> None:
    """Give a key a new secret and print it: this is the only time it can be seen."""
    secret, key = _keys().rotate(key_id, grace)
    until = f"works until {key.old_secrets[0]}" if key.old_secrets else "no longer works"
    if key.old_secrets[1:]:
        until += f" (and of those before it, until {', '.join(key.old_secrets[1:])}; rotating without --grace ends all)"
    click.echo(f"key {key.id} has a new secret, the old one {until}; it is shown this once:", err=True)
    click.echo(secret)


@keys.command()
def master() -> None:
    """Make a new master key and print it. The old one stops working."""
    secret = _keys().new_master()
    click.echo("the master key is a new one, the old one no longer works; it is shown this once:", err=True)
    click.echo(secret)


def _said(value: Any) -> str:
    """A field of a record, in the words of the options."""
    if isinstance(value, dict):
        return f"{value['tokens']}/{value['per']}"
    return ", ".join(value) if isinstance(value, list) else NONE if value is None else str(value) or "empty"


def _identity(kids: tuple[str, ...], iss: str | None) -> Identity | None:
    from auth.keys import Identity

    if not kids:
        if iss is not None:
            raise click.BadParameter("it says which tokens of a kid; give --jwt-kid too", param_hint="'--jwt-iss'")
        return None
    if click.get_current_context().obj.asap_keys is None:
        click.echo("warning: no token comes in before ASAP_PUB_KEYS_REPO_URL and ASAP_PUB_KEYS_AUDS are set", err=True)
    return Identity(kids=list(kids), iss=iss)


@contextmanager
def _told() -> Iterator[None]:
    """Has a field that cannot be told as the option that it came by."""
    try:
        yield
    except BadRequest as error:
        field, _, wrong = error.message.partition(": ")
        if (option := _OPTIONS.get(field.partition(".")[0])) is None:
            raise
        raise click.BadParameter(wrong, param_hint=f"'{option}'") from None


def _keys() -> Keys:
    from auth.keys import Keys

    settings = click.get_current_context().obj
    return Keys(settings.data_dir, settings)


def _warn_of_unknown(profiles: tuple[str, ...]) -> None:
    """On stderr, for names that config.json does not have now: the key is made, since they may come later."""
    from services.chat.profiles import Profiles

    settings = click.get_current_context().obj
    path = settings.data_dir / "config.json"
    if not profiles or not path.exists():
        return
    try:
        known = Profiles(path, settings).current().profiles
    except ParleyError as error:
        click.echo(f"warning: whether there are such profiles is not known: {error.message}", err=True)
        return
    for name in profiles:
        if name not in known:
            click.echo(f"warning: config.json has no profile {name!r} now; there are: {', '.join(known)}", err=True)


def _row(key: Key) -> tuple[str, ...]:
    budget = f"{key.token_budget.tokens}/{key.token_budget.per}" if key.token_budget else "-"
    return (key.id, _state(key), key.prefix, key.created, key.expires_at or "never",
            str(key.requests_per_minute or "-"), str(key.tokens_per_minute or "-"), budget,
            str(key.max_parallel or "-"), f"{key.weight:g}", ",".join(key.scopes), key.name)


def _state(key: Key) -> str:
    if key.revoked_at:
        return "revoked"
    return "expired" if key.ends() <= time.time() else "master" if key.is_master else "valid"
