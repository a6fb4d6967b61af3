"""Downloads from a hub that lies, cuts, stalls and redirects: whole and checked, or not there at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.engine import guard, hub, part, transfer
from services.engine.guard import Guard
from services.engine.hub import HubFile, choose
from services.errors import (
    BadModel,
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    ParleyError,
    StorageFull,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from tests.hub_server import Hub
from tests.tiny_gguf import write_tiny

REPO, NAME = "owner/tiny-GGUF", "tiny-Q4_K_M.gguf"
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> bytes:
    return write_tiny(tmp_path_factory.mktemp("hub") / "m.gguf").read_bytes()


@pytest.fixture
def server(data, monkeypatch) -> Iterator[Hub]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transfer, "PAUSES", (0.0, 0.0, 0.0))
    with Hub() as running:
        running.add(REPO, NAME, data)
        running.add(REPO, "README.md", b"# tiny", lfs=False)
        yield running


def pull(server: Hub, folder: Path, pattern: str | None = None, repo: str = REPO, **more: Any) -> list[Path]:
    return hub.pull(repo, pattern, folder, hub_url=server.url, **more)


def only_part(folder: Path, name: str = NAME) -> bytes:
    """What the part holds; nothing else may be in the folder."""
    assert [path.name for path in folder.iterdir()] == [name + ".part"]
    return (folder / (name + ".part")).read_bytes()


def nothing(folder: Path) -> bool:
    return not folder.exists() or not list(folder.iterdir())


# ---------------------------------------------------------------- the good case

def test_a_model_arrives_whole(server, tmp_path, data):
    steps: list[tuple[str, int, int | None]] = []
    paths = pull(server, tmp_path / "models", progress=lambda *step: steps.append(step))
    assert paths == [tmp_path / "models" / NAME] and paths[0].read_bytes() == data
    assert [path.name for path in (tmp_path / "models").iterdir()] == [NAME]
    assert steps[-1] == (NAME, len(data), len(data)) and steps == sorted(steps)
    assert [path for _, path, _ in server.requests] == [f"/api/models/{REPO}", server.requests[1][1]]
    assert paths[0].stat().st_mode & 0o777 == 0o644 & ~_umask()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_a_second_pull_downloads_nothing(server, tmp_path):
    pull(server, tmp_path)
    count = len(server.asked(NAME))
    assert pull(server, tmp_path) == [tmp_path / NAME] and len(server.asked(NAME)) == count


def test_what_has_the_name_already_is_never_overwritten(server, tmp_path):
    (tmp_path / NAME).write_bytes(b"mine")
    with pytest.raises(Conflict, match="move it away"):
        pull(server, tmp_path)
    assert (tmp_path / NAME).read_bytes() == b"mine"


def test_the_token_goes_along(server, tmp_path):
    server.token = "hf_secret"
    with pytest.raises(Unauthorized, match="private, gated, or does not exist"):
        pull(server, tmp_path)
    with pytest.raises(Unauthorized, match="HF_TOKEN is not accepted"):
        pull(server, tmp_path, token="hf_wrong")
    assert pull(server, tmp_path, token="hf_secret")


@pytest.mark.parametrize("link", ["{hub}/{repo}", "{hub}/{repo}/blob/main/{name}",
                                  "{hub}/{repo}/resolve/main/{name}?download=true"])
def test_links_copied_from_the_hub(server, tmp_path, link):
    assert pull(server, tmp_path, repo=link.format(hub=server.url, repo=REPO, name=NAME))[0].name == NAME
    assert server.asked(f"/api/models/{REPO}")


def test_a_small_file_outside_lfs(server, tmp_path, data):
    server.add("owner/plain", "small.gguf", data, lfs=False)
    assert pull(server, tmp_path, repo="owner/plain")[0].read_bytes() == data


# ---------------------------------------------------------------- choosing

def files(*names: str) -> list[HubFile]:
    return [HubFile(name, 4_100_000_000, None) for name in names]


def test_choosing_one_of_several():
    there = files("m-Q4_K_M.gguf", "m-Q8_0.gguf", "sub/m-F16.gguf", "mmproj-F16.gguf", "README.md")
    assert choose("o/r", there, "m-Q8_0.gguf")[0].path == "m-Q8_0.gguf"
    assert choose("o/r", there, "*q4_k_m.gguf")[0].path == "m-Q4_K_M.gguf"
    assert choose("o/r", there, "Q8")[0].path == "m-Q8_0.gguf"
    assert choose("o/r", there, "sub/*")[0].name == "m-F16.gguf"
    with pytest.raises(BadRequest, match=r"several models match; name one of them: m-Q4_K_M.gguf \(4.1 GB\), m-"):
        choose("o/r", there, None)
    with pytest.raises(NotFound, match=r"nothing matches 'Q5\*'; those there are: m-Q4_K_M.gguf \(4.1 GB\)"):
        choose("o/r", there, "Q5*")
    with pytest.raises(NotFound, match=r"has no \.gguf files"):
        choose("o/r", files("model.safetensors"), None)
    assert len(choose("o/r", files("a.gguf", "mmproj-a.gguf"), None)) == 1


def test_choosing_a_split_model():
    parts = files("Q8/m-00002-of-00002.gguf", "Q8/m-00001-of-00002.gguf", "m-Q4.gguf")
    assert [file.name for file in choose("o/r", parts, "Q8/*")] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    with pytest.raises(NotFound, match="only 1 of the 2 parts"):
        choose("o/r", parts[:1], None)


def test_a_split_model_gets_its_first_name_last(server, tmp_path, monkeypatch):
    from tests.services.engine.test_gguf import split
    (tmp_path / "there").mkdir()
    named: list[str] = []
    for path in split(tmp_path / "there"):
        server.add("owner/split", f"Q8/{path.name}", path.read_bytes())
    publish = part.Part.publish
    monkeypatch.setattr(part.Part, "publish", lambda self: named.append(self.name) or publish(self))
    paths = pull(server, tmp_path / "models", repo="owner/split")
    assert [path.name for path in paths] == [f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)] == named[::-1]


@pytest.mark.parametrize("repo", ["", "name", "a/b/c", "../x", "a/../b", "-/x", "a/b--c", "a b/c",
                                  "a/" + "x" * 200, "ftp://h/m.gguf"])
def test_what_is_no_repository(server, tmp_path, repo):
    with pytest.raises(BadRequest):
        pull(server, tmp_path, repo=repo)
    assert nothing(tmp_path)


@pytest.mark.parametrize("name", ["..gguf.", "a b.gguf", "%2e%2e%2fx.gguf", ".gguf", "-\x1b[31m.gguf"])
def test_names_that_the_hub_makes_up_stay_in_the_folder(server, tmp_path, data, name):
    server.add("owner/evil", f"x/{name}" if name.endswith(".gguf") else f"{name}.gguf", data)
    try:
        pull(server, tmp_path / "models", repo="owner/evil")
    except ParleyError as error:
        assert "\x1b" not in error.message
    assert nothing(tmp_path / "models") or all(p.parent == tmp_path / "models" for p in (tmp_path / "models").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


# ---------------------------------------------------------------- cuts, lies and limits

def test_a_cut_is_taken_up_again(server, tmp_path, data):
    server.evil(NAME, times=2, cut=100_000)
    assert pull(server, tmp_path)[0].read_bytes() == data
    assert [headers.get("range") for headers in server.asked(NAME)] == [None, "bytes=100000-", "bytes=200000-"]


def test_a_server_that_only_cuts_is_given_up_and_resumed_later(server, tmp_path, data):
    server.evil(NAME, cut=100_000)
    server.evil(NAME, times=4, cut=0)
    with pytest.raises(Unavailable, match=r"stopped at 100 kB .* run the same command again; it goes on from there"):
        pull(server, tmp_path)
    assert only_part(tmp_path) == data[:100_000]
    server.evils.clear()
    assert pull(server, tmp_path)[0].read_bytes() == data
    assert server.asked(NAME)[-1]["range"] == "bytes=100000-"


def test_a_range_that_is_ignored_means_from_the_start(server, tmp_path, data):
    server.evil(NAME, cut=100_000)
    server.evil(NAME, no_range=True)
    assert pull(server, tmp_path)[0].read_bytes() == data


def test_a_server_without_ranges_that_always_cuts_is_given_up(server, tmp_path):
    server.evil(NAME, times=99, cut=100_000, no_range=True)
    with pytest.raises(Unavailable):
        pull(server, tmp_path)
    assert len(server.asked(NAME)) < 10


def test_a_stall_is_a_cut(server, tmp_path, data, monkeypatch):
    monkeypatch.setattr(transfer, "READ", 0.3)
    server.evil(NAME, cut=50_000, stall=True)
    assert pull(server, tmp_path)[0].read_bytes() == data


@pytest.mark.parametrize("length", [1000, 10_000_000])
def test_a_wrong_length_is_not_taken(server, tmp_path, length):
    server.evil(NAME, length=length)
    with pytest.raises(BadModel, match="its listing says"):
        pull(server, tmp_path)
    assert nothing(tmp_path)


def test_wrong_bytes_are_not_taken(server, tmp_path, data):
    server.evil(NAME, wrong=True)
    with pytest.raises(BadModel, match="came damaged"):
        pull(server, tmp_path)
    assert nothing(tmp_path)
    assert pull(server, tmp_path)[0].read_bytes() == data


def test_a_part_with_other_bytes_is_dropped_once(server, tmp_path, data):
    (tmp_path / (NAME + ".part")).write_bytes(b"GGUF" + b"x" * 50_000)
    assert pull(server, tmp_path)[0].read_bytes() == data
    assert [headers.get("range") for headers in server.asked(NAME)] == ["bytes=50004-", None]


def test_a_part_of_another_version_is_begun_anew(server, tmp_path, data):
    with part.Part(tmp_path, NAME) as unfinished:
        unfinished.clear("0" * 64)
        unfinished.append(data[:1000])
    assert pull(server, tmp_path)[0].read_bytes() == data


def test_a_part_longer_than_the_file_is_begun_anew(server, tmp_path, data):
    (tmp_path / (NAME + ".part")).write_bytes(data + b"more")
    assert pull(server, tmp_path)[0].read_bytes() == data


def test_a_whole_part_needs_no_request(server, tmp_path, data):
    (tmp_path / (NAME + ".part")).write_bytes(data)
    assert pull(server, tmp_path)[0].read_bytes() == data
    assert server.asked(NAME) == []


def test_a_web_page_is_not_taken(server, tmp_path):
    server.add("owner/unsized", "m.gguf", b"x", lfs=False).listed_size = None
    server.evil(NAME, html=True, headers={"Content-Length": None})
    with pytest.raises(BadModel):
        pull(server, tmp_path)
    server.plain["/page.gguf"] = server.repos[REPO][NAME]
    server.evil("/page.gguf", html=True)
    with pytest.raises(BadModel, match="is a web page"):
        pull(server, tmp_path, repo=server.url + "/page.gguf")
    assert nothing(tmp_path)


def test_whole_but_no_model_is_not_taken(server, tmp_path, data):
    server.add("owner/cut", "m.gguf", data[:-100])
    with pytest.raises(BadModel, match="the download was cut"):
        pull(server, tmp_path, repo="owner/cut")
    assert nothing(tmp_path)


def test_too_many_requests(server, tmp_path, data):
    server.evil(NAME, status=429, retry_after=1)
    assert pull(server, tmp_path / "a")[0].read_bytes() == data
    server.evil(NAME, status=429, retry_after=3600)
    with pytest.raises(TooManyRequests, match="in 3600 s"):
        pull(server, tmp_path / "b")
    server.evil(f"/api/models/{REPO}", status=429, retry_after=7)
    with pytest.raises(TooManyRequests) as caught:
        pull(server, tmp_path / "b")
    assert caught.value.retry_after == 7 and nothing(tmp_path / "b")


@pytest.mark.parametrize(("status", "error"), [(401, Unauthorized), (403, Forbidden), (404, NotFound),
                                               (500, Unavailable), (418, Unavailable)])
def test_refusals_are_one_line(server, tmp_path, status, error):
    for path in (f"/api/models/{REPO}", NAME):
        server.evil(path, times=5, status=status)
        with pytest.raises(error) as caught:
            pull(server, tmp_path)
        assert "\n" not in caught.value.message
        server.evils.clear()
    assert nothing(tmp_path)


@pytest.mark.parametrize("listing", [b"<html>login</html>", b"[]", b"{}", b'{"id":"a/b","siblings":[{"x":1}]}', b"null",
                                     b'{"id":"a/b","siblings":[{"rfilename":"m.gguf","size":-5,"lfs":{"sha256":"zz"}}]}'])
def test_a_strange_listing_is_told_in_one_line(server, tmp_path, listing):
    server.listing = listing
    with pytest.raises(ParleyError) as caught:
        pull(server, tmp_path)
    assert "\n" not in caught.value.message and nothing(tmp_path)


def test_no_network_fails_at_once(server, tmp_path, monkeypatch):
    def forbidden(seconds: float) -> None:
        raise AssertionError("it waits to try again")
    monkeypatch.setattr(time, "sleep", forbidden)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    for url, repo in ((closed, REPO), ("http://no-such-host.invalid", REPO), (server.url, closed + "/m.gguf")):
        with pytest.raises(Unavailable) as caught:
            hub.pull(repo, None, tmp_path, hub_url=url)
        assert "\n" not in caught.value.message and "by hand" in caught.value.message
    assert nothing(tmp_path)


def test_no_room_is_said_before_and_during(server, tmp_path, data, monkeypatch):
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(StorageFull, match=r"425 kB are to be downloaded and 1.0 kB are free"):
        pull(server, tmp_path)
    assert nothing(tmp_path) and server.asked(NAME) == []
    monkeypatch.undo()
    monkeypatch.setattr(part, "FULL", {27})
    code = ("import resource, signal, sys; sys.path.insert(0, {root!r}); signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000));"
            "from services.engine import hub; from pathlib import Path\n"
            "try: hub.pull({repo!r}, None, Path({folder!r}), hub_url={url!r})\n"
            "except Exception as error: print(type(error).__name__, error)")
    code = code.format(root=str(ROOT), repo=REPO, folder=str(tmp_path), url=server.url)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert told.startswith("StorageFull the disk is full after 90,000 bytes"), told
    assert only_part(tmp_path) == data[:90_000]
    assert pull(server, tmp_path)[0].read_bytes() == data


# ---------------------------------------------------------------- two at once, kill -9, cancel

def test_the_second_of_two_at_once_says_so(server, tmp_path, data):
    with part.Part(tmp_path, NAME) as held:
        held.append(data[:1000])
        with pytest.raises(Conflict, match="is being downloaded by another process"):
            pull(server, tmp_path)
    assert only_part(tmp_path) == data[:1000]


def test_a_lock_on_a_file_that_was_published_meanwhile_is_not_taken(tmp_path, data, monkeypatch):
    """Between opening and locking, the other process gives the file its name."""
    first = part.Part(tmp_path, NAME)
    first.append(data)
    lock, seen = part.fcntl.flock, []

    def publish_first(fd: int, how: int) -> None:
        if not seen:
            seen.append(fd)
            first.publish()
            os.close(first.fd)
        lock(fd, how)
    monkeypatch.setattr(part.fcntl, "flock", publish_first)
    with part.Part(tmp_path, NAME) as second:
        assert second.size == 0
    assert (tmp_path / NAME).read_bytes() == data and not (tmp_path / (NAME + ".part")).exists()


def _pull_forever(url: str, folder: Path) -> None:
    hub.pull(REPO, None, folder, hub_url=url)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_resumed(server, tmp_path, data, number):
    server.evil(NAME, cut=120_000, stall=True)
    child = multiprocessing.get_context("fork").Process(target=_pull_forever, args=(server.url, tmp_path))
    child.start()
    path, deadline = tmp_path / (NAME + ".part"), time.monotonic() + 30
    while not (path.exists() and path.stat().st_size == 120_000):
        assert time.monotonic() < deadline, "the download did not begin"
        time.sleep(0.01)
    os.kill(child.pid or 0, number)
    child.join(20)
    assert child.exitcode not in (0, None) and only_part(tmp_path) == data[:120_000]
    assert pull(server, tmp_path)[0].read_bytes() == data
    assert server.asked(NAME)[-1]["range"] == "bytes=120000-"


def test_an_empty_part_is_not_left(server, tmp_path):
    server.evil(NAME, times=9, status=404)
    with pytest.raises(NotFound):
        pull(server, tmp_path)
    assert nothing(tmp_path)


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_part_that_is_no_file_is_refused(server, tmp_path, kind):
    path = tmp_path / "m" / (NAME + ".part")
    path.parent.mkdir()
    {"link": lambda: path.symlink_to(tmp_path / "x"), "fifo": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with pytest.raises(BadRequest, match="not a regular file"):
        pull(server, path.parent)
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------- redirects

def test_a_redirect_elsewhere_goes_without_the_token(server, tmp_path, data):
    server.token = "hf_secret"
    with Hub() as other:
        other.plain["/cdn/blob"] = server.repos[REPO][NAME]
        server.evil(NAME, redirect=other.url + "/cdn/blob?signature=1", headers={"X-Linked-Size": len(data)})
        assert pull(server, tmp_path, token="hf_secret")[0].read_bytes() == data
        assert [headers.get("authorization") for headers in other.asked("/cdn/blob")] == [None]
    assert server.asked(NAME)[0]["authorization"] == "Bearer hf_secret"


def test_a_redirected_listing_goes_without_the_token(server, tmp_path):
    server.token = "hf_secret"
    with Hub() as other:
        other.add(REPO, NAME, b"x")
        server.evil(f"/api/models/{REPO}", redirect=f"{other.url}/api/models/{REPO}?blobs=true")
        with pytest.raises(ParleyError):
            pull(server, tmp_path, token="hf_secret")
        assert [headers.get("authorization") for headers in other.asked(f"/api/models/{REPO}")] == [None]


def test_a_redirect_at_home_keeps_the_token(server, tmp_path, data):
    server.token = "hf_secret"
    server.add("owner/new", NAME, data)
    server.evil(NAME, redirect=f"/owner/new/resolve/main/{NAME}")
    assert pull(server, tmp_path, token="hf_secret")[0].read_bytes() == data


def test_redirects_without_end_are_given_up(server, tmp_path):
    server.evil(NAME, times=99, loop=True)
    with pytest.raises(Unavailable, match="more than 10 times"):
        pull(server, tmp_path)
    server.evils.clear()
    server.evil(f"/api/models/{REPO}", times=99, loop=True)
    with pytest.raises(Unavailable):
        pull(server, tmp_path)
    assert nothing(tmp_path)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.com/x", "gopher://127.0.0.1:70/x",
                                    "http://u:p@127.0.0.1/x", "http://169.254.169.254/latest/meta-data",
                                    "http://[fe80::1]/x"])
def test_redirects_that_are_never_followed(server, tmp_path, target):
    server.evil(NAME, redirect=target)
    with pytest.raises(Forbidden):
        pull(server, tmp_path)
    assert nothing(tmp_path)


@pytest.mark.parametrize("target", ["http:///x", "http://[", "http://no-such-host.invalid/x", "https:\\x", "\xff"])
def test_redirects_to_nowhere(server, tmp_path, target):
    server.evil(NAME, redirect=target)
    with pytest.raises(ParleyError) as caught:
        pull(server, tmp_path)
    assert "\n" not in caught.value.message and nothing(tmp_path)


@pytest.fixture
def public_hub(server, monkeypatch) -> str:
    """The server under a name that counts as public; other names are as `guard.addresses` finds them."""
    real, port = socket.getaddrinfo, server.url.rpartition(":")[2]
    monkeypatch.setattr(socket, "getaddrinfo",
                        lambda host, *rest, **more: real("127.0.0.1" if host == "hub.test" else host, *rest, **more))
    known, public = guard.addresses, [guard.ipaddress.ip_address("93.184.216.34")]
    monkeypatch.setattr(guard, "addresses", lambda host: public if host.endswith(".test") else known(host))
    return f"http://hub.test:{port}"


def test_a_public_hub_does_not_lead_to_private_addresses(server, public_hub, tmp_path, data):
    with Hub() as inside:
        inside.plain["/secret.gguf"] = server.repos[REPO][NAME]
        port = inside.url.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "10.0.0.1",
                     "0.0.0.0"):
            server.evil(NAME, redirect=f"http://{host}:{port}/secret.gguf")
            with pytest.raises((Forbidden, Unavailable)):
                hub.pull(REPO, None, tmp_path, hub_url=public_hub)
            server.evils.clear()
            server.evil(f"/api/models/{REPO}", redirect=f"http://{host}:{port}/api/models/{REPO}")
            with pytest.raises((Forbidden, Unavailable)):
                hub.pull(REPO, None, tmp_path, hub_url=public_hub)
            server.evils.clear()
        assert inside.requests == [] and nothing(tmp_path)
    assert hub.pull(REPO, None, tmp_path, hub_url=public_hub)[0].read_bytes() == data


def test_a_name_that_changes_its_address_is_caught(server, public_hub, tmp_path, monkeypatch):
    """The name was public when it was looked up, the connection went to a private address."""
    with Hub() as inside:
        inside.plain["/x"] = server.repos[REPO][NAME]
        known = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo",
                            lambda host, *rest, **more: known("127.0.0.1" if host == "cdn.test" else host, *rest,
                                                              **more))
        server.evil(NAME, redirect=f"http://cdn.test:{inside.url.rpartition(':')[2]}/x")
        with pytest.raises(Forbidden, match=r"address 127\.0\.0\.1 is no public one \(this machine\)"):
            hub.pull(REPO, None, tmp_path, hub_url=public_hub)
    assert nothing(tmp_path)


def test_never_from_https_to_http():
    watch = Guard("https://93.184.216.34")
    with pytest.raises(Forbidden, match="from https to"):
        watch.check(guard.parse("http://93.184.216.34/x"))
    watch.check(guard.parse("https://93.184.216.35/x"))
    assert not watch.is_home(guard.parse("https://93.184.216.34:444/x"))


def test_behind_a_proxy_only_written_addresses_are_known(monkeypatch):
    monkeypatch.setattr(guard, "getproxies", lambda: {"https": "http://proxy:3128"})
    monkeypatch.setattr(guard, "proxy_bypass", lambda host: False)
    watch = Guard("https://hub.invalid")
    watch.check(guard.parse("https://cdn.invalid/x"))
    with pytest.raises(Forbidden):
        watch.check(guard.parse("https://10.0.0.1/x"))


# ---------------------------------------------------------------- plain URLs

def test_a_plain_url(server, tmp_path, data):
    server.plain["/a/b/my model.gguf"] = server.plain["/a/b/m.gguf"] = server.repos[REPO][NAME]
    assert pull(server, tmp_path, repo=server.url + "/a/b/m.gguf")[0].read_bytes() == data
    with pytest.raises(BadRequest, match="not a plain file name"):
        pull(server, tmp_path, repo=server.url + "/a/b/my%20model.gguf")
    paths = pull(server, tmp_path, "mine.gguf", repo=server.url + "/a/b/my%20model.gguf")
    assert paths == [tmp_path / "mine.gguf"]
    with pytest.raises(BadRequest, match=r"ends in \.gguf"):
        pull(server, tmp_path, repo=server.url + "/a/b/page")


def test_the_token_is_for_the_hub_only(server, tmp_path):
    with Hub() as other:
        other.plain["/m.gguf"] = server.repos[REPO][NAME]
        pull(server, tmp_path, repo=other.url + "/m.gguf", token="hf_secret")
        assert all("authorization" not in headers for headers in other.asked(""))


def test_a_plain_url_is_resumed_only_when_it_is_the_same(server, tmp_path, data):
    url = server.url + "/m.gguf"
    server.plain["/m.gguf"] = server.repos[REPO][NAME]
    for evil, ranges in (({}, [None, "bytes=70000-"]), ({"changed": True}, [None, "bytes=70000-"]),
                         ({"no_etag": True}, [None, "bytes=70000-", None])):
        server.requests.clear()
        server.evil("/m.gguf", cut=70_000)
        server.evil("/m.gguf", **evil)
        assert pull(server, tmp_path, repo=url)[0].read_bytes() == data
        assert [headers.get("range") for headers in server.asked("/m.gguf")] == ranges
        (tmp_path / "m.gguf").unlink()


def test_a_plain_url_without_etag_begins_anew(server, tmp_path, data):
    server.plain["/m.gguf"] = server.repos[REPO][NAME]
    server.evil("/m.gguf", cut=70_000, no_etag=True)
    assert pull(server, tmp_path, repo=server.url + "/m.gguf")[0].read_bytes() == data
    assert [headers.get("range") for headers in server.asked("/m.gguf")] == [None, None]
