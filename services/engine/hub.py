"""`models pull`: choose a file of a hub's repository, or take a plain URL, and bring it into the folder of models.

huggingface_hub lists the repository; the bytes come by `transfer`, since the library's own downloader neither writes
beside the target under a lock nor checks where redirects lead. A file gets its name only when length, sha256 and GGUF
header are right.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from services.engine import gguf, part, transfer
from services.engine.guard import Guard, parse
from services.engine.machine import in_words
from services.engine.transfer import Progress, Transfer, Wanted
from services.errors import BadRequest, Conflict, NotFound, ParleyError, Unavailable

DEFAULT_HUB = "https://huggingface.co"
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
TIMEOUT = 15.0          # seconds for the listing
SHOWN = 40              # files that an error lists


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. `sha256` only for files in LFS, which models are."""

    path: str
    size: int | None
    sha256: str | None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


def pull(repo: str, pattern: str | None, models_dir: Path, *, hub_url: str = DEFAULT_HUB, token: str | None = None,
         progress: Progress = lambda file, done, total: None) -> list[Path]:
    """Download a model into `models_dir`; its files there, the first part first.

    `repo` is "owner/name" or the URL of a .gguf file; `pattern` a file of the repository, a glob, or a piece of a name
    such as "Q4_K_M". What is there already, whole and the same, is not downloaded again. Every error is a ParleyError
    of one line: what does not match says what there is, a cut one is resumed by the same call.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    hub_url = hub_url.rstrip("/")
    token = _token(hub_url, token)
    try:
        repo, pattern = _from_hub_link(repo, pattern, hub_url)
        if repo.startswith(("http://", "https://")):
            guard, wanted = Guard(repo), [_from_url(repo, pattern)]
            token = token if guard.is_home(parse(hub_url)) else None
        else:
            if not REPO.fullmatch(repo):
                raise BadRequest(f"{repo[:100]!r} is no repository: expected owner/name, or the URL of a .gguf file")
            guard = Guard(hub_url)
            wanted = _from_hub(repo, pattern, hub_url, token, guard)
    except Unavailable as error:
        raise Unavailable(f"{error.message}. {transfer.by_hand(models_dir)}", retry_after=error.retry_after) from None
    return _fetch_all(wanted, models_dir, guard, token, progress)


def _token(hub_url: str, token: str | None) -> str | None:
    """The one of the settings, else the one that `hf auth login` saved, which is meant for its own hub only."""
    if token or hub_url != DEFAULT_HUB:
        return token
    from huggingface_hub import get_token
    return get_token()


# ---------------------------------------------------------------- what is wanted

def _from_hub_link(repo: str, pattern: str | None, hub_url: str) -> tuple[str, str | None]:
    """A link copied from the hub's pages as repository and file; anything else as it is."""
    short = next((repo[len(start):] for start in (hub_url + "/", DEFAULT_HUB + "/", "hf.co/", "huggingface.co/")
                  if repo.startswith(start)), None)
    if short is None:
        return repo, pattern
    pieces = unquote(urlsplit(short).path).strip("/").split("/")
    if len(pieces) > 4 and pieces[2] in ("blob", "resolve") and pieces[3] == "main":
        return "/".join(pieces[:2]), pattern or "/".join(pieces[4:])
    return ("/".join(pieces), pattern) if len(pieces) == 2 else (repo, pattern)


def _from_url(url: str, name: str | None) -> Wanted:
    name = name or unquote(PurePosixPath(parse(url).path).name)
    if not name.endswith(".gguf"):
        raise BadRequest(f"the URL names {name[:80]!r}, expected a file that ends in .gguf; give a name as second "
                         "argument to store it under", param="file")
    return Wanted(url=url, name=name)


def _from_hub(repo: str, pattern: str | None, hub_url: str, token: str | None, guard: Guard) -> list[Wanted]:
    commit, files = _listing(repo, hub_url, token, guard)
    return [Wanted(url=f"{hub_url}/{repo}/resolve/{commit}/{quote(file.path)}", name=file.name, size=file.size,
                   sha256=file.sha256) for file in choose(repo, files, pattern)]


def _listing(repo: str, hub_url: str, token: str | None, guard: Guard) -> tuple[str, list[HubFile]]:
    """The newest commit and its files."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    host = guard.home.host
    try:
        with _guarded_session(guard):
            info = HfApi(endpoint=hub_url, token=token or False).model_info(repo, files_metadata=True, timeout=TIMEOUT)
        files = [_hub_file(sibling) for sibling in info.siblings or []]
        return str(info.sha or "main"), files
    except ParleyError:
        raise
    except HfHubHTTPError as error:
        raise transfer.refusal(error.response.status_code, f"{host} ({repo})", dict(error.response.headers),
                               bool(token)) from None
    except HFValidationError as error:
        raise BadRequest(f"{repo[:100]!r} is no repository: {str(error).splitlines()[0][:200]}") from None
    except Exception as error:  # the library's transport errors have no public name; a strange answer breaks it anyhow
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        what = "answers with something that is no listing of files" if _strange(error) else "cannot be reached"
        raise Unavailable(f"{host} {what} ({reason})") from None


def _strange(error: Exception) -> bool:
    return isinstance(error, (ValueError, KeyError, TypeError, AttributeError))


def _hub_file(sibling: Any) -> HubFile:
    lfs = sibling.lfs
    sha256 = str(lfs.sha256).lower() if lfs is not None else ""
    size = lfs.size if lfs is not None else sibling.size
    return HubFile(path=str(sibling.rfilename), size=size if isinstance(size, int) and size >= 0 else None,
                   sha256=sha256 if transfer.SHA256.fullmatch(sha256) else None)


@contextmanager
def _guarded_session(guard: Guard) -> Iterator[None]:
    """huggingface_hub's HTTP session, asking the guard before each request, redirected ones too.

    Without its telemetry, for which it would look through the environment and ask the default hub for a list.
    """
    from huggingface_hub import close_session, constants, get_session
    constants.HF_HUB_DISABLE_TELEMETRY = True

    def check(request: Any) -> None:
        guard.check(parse(str(request.url)))
    session = get_session()
    session.event_hooks["request"].append(check)
    session.max_redirects = transfer.MAX_HOPS
    try:
        yield
    finally:
        close_session()


def choose(repo: str, files: list[HubFile], pattern: str | None) -> list[HubFile]:
    """The one model among `files` that `pattern` means: one file, or all parts of a split one, in order."""
    models: dict[str, list[HubFile]] = {}
    for file in files:
        if file.name.endswith(".gguf"):
            folder = PurePosixPath(file.path).parent
            models.setdefault(str(folder / gguf.siblings(file.name)[0]), []).append(file)
    if not models:
        raise NotFound(f"{repo} has no .gguf files: look for a repository of the same model whose name ends in -GGUF")
    found = {first: group for first, group in models.items() if _matches(group, pattern)}
    if len(found) != 1:
        what = "several models match; name one of them" if found else f"nothing matches {pattern!r}; those there are"
        raise (BadRequest if found else NotFound)(f"{repo}: {what}: {_shown(found or models)}", param="file")
    group = sorted(next(iter(found.values())), key=lambda file: file.name)
    if len(group) != len(gguf.siblings(group[0].name)):
        raise NotFound(f"{repo} has only {len(group)} of the {len(gguf.siblings(group[0].name))} parts of "
                       f"{group[0].name}", param="file")
    return group


def _matches(group: list[HubFile], pattern: str | None) -> bool:
    """Exact path or name; a glob over either, or a piece of a name, in whatever case. Projectors only when named."""
    if pattern is None:
        return not any("mmproj" in file.name.lower() for file in group)
    if any(pattern in (file.path, file.name) for file in group):
        return True
    plain = not any(letter in pattern for letter in "*?[") and not pattern.endswith(".gguf")
    lowered = f"*{pattern.lower()}*" if plain else pattern.lower()
    return any(fnmatch.fnmatchcase(text.lower(), lowered) for file in group for text in (file.path, file.name))


def _shown(models: dict[str, list[HubFile]]) -> str:
    lines = [f"{first} ({in_words(sum(file.size or 0 for file in group))})" for first, group in sorted(models.items())]
    return ", ".join(lines[:SHOWN]) + (f", and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")


# ---------------------------------------------------------------- getting it

def _fetch_all(wanted: list[Wanted], models_dir: Path, guard: Guard, token: str | None,
               progress: Progress) -> list[Path]:
    """All files whole in their parts, then all named, the first one last: a split model is never listed half-done."""
    missing = [file for file in wanted if not _is_there(file, models_dir)]
    with ExitStack() as stack:
        parts = [stack.enter_context(part.Part(models_dir, file.name)) for file in missing]
        there = sum(file.size for file in parts)
        transfer.check_space(models_dir, sum(file.size or 0 for file in missing) - there)
        for file, target in zip(missing, parts, strict=True):
            Transfer(file, target, guard, token, progress).run()
        for target in reversed(parts):
            target.publish()
    return [models_dir / file.name for file in wanted]


def _is_there(file: Wanted, models_dir: Path) -> bool:
    """Whether the file is in the folder already; `Conflict` when something else has its name."""
    path = models_dir / file.name
    if not os.path.lexists(path):
        return False
    if path.is_file() and file.sha256 and path.stat().st_size == file.size:
        with path.open("rb") as stream:
            if part.sha256_of(lambda at: os.pread(stream.fileno(), part.CHUNK, at)) == file.sha256:
                return True
    raise Conflict(f"{models_dir.name}/{file.name} is there and is not the file that would be downloaded: move it away "
                   "first")
