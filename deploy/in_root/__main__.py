"""Makes and runs what deploy/Dockerfile describes on a machine without a Docker engine. As root, with debootstrap:

    python3 -m deploy.in_root build /var/tmp/parley              carry out the Dockerfile's steps; minutes
    python3 -m deploy.in_root check /var/tmp/parley              start it, ask it, stop it, start it again; a minute
    python3 -m deploy.in_root run /var/tmp/parley -v /srv/parley:/data      the server, until Ctrl-C or SIGTERM
    python3 -m deploy.in_root run /var/tmp/parley -v /srv/parley:/data -- keys list     another verb of main.py

Everything is below the folder that is named; remove it with rm -r. The network is the machine's own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from deploy.in_root.build import Lent, build
from deploy.in_root.check import check
from deploy.in_root.container import run
from deploy.in_root.dockerfile import Refused

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {"debootstrap": "debootstrap", "unshare": "util-linux", "nsenter": "util-linux", "setpriv": "util-linux"}


def bind(text: str) -> tuple[str, str, str]:
    """HOST[:INSIDE[:ro]]"""
    outside, _, rest = text.partition(":")
    inside, _, mode = rest.partition(":")
    if mode not in ("", "ro", "rw") or not os.path.isabs(inside or outside):
        raise argparse.ArgumentTypeError(f"{text!r} is not PATH, PATH:INSIDE or PATH:INSIDE:ro, with whole paths")
    return os.path.abspath(outside), inside or outside, mode or "rw"


def variable(text: str) -> tuple[str, str]:
    """NAME=value, or NAME of a variable that is set here."""
    name, equals, value = text.partition("=")
    if not equals and name not in os.environ:
        raise argparse.ArgumentTypeError(f"{name} is not set here; give {name}=value")
    return name, value if equals else os.environ[name]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python3 -m deploy.in_root", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = made.add_subparsers(dest="verb", required=True)
    for verb in ("build", "check", "run"):
        one = verbs.add_parser(verb)
        one.add_argument("folder", type=lambda text: Path(text).resolve())
        one.add_argument("-e", "--env", action="append", type=variable, default=[], metavar="NAME[=value]")
        if verb != "check":
            one.add_argument("-v", "--bind", action="append", type=bind, default=[], metavar="PATH[:INSIDE[:ro]]",
                             help="a file or folder of this machine that is seen inside")
        if verb == "build":
            one.add_argument("--build-arg", action="append", type=variable, default=[], metavar="NAME=value")
            one.add_argument("--mirror", help="where debootstrap gets Debian from, if not from its usual place")
            one.add_argument("-f", "--file", type=Path, default=ROOT / "deploy" / "Dockerfile")
    return made


def main(arguments: list[str]) -> int:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    asked, command = parser().parse_args(arguments[:cut]), arguments[cut + 1:]
    if os.geteuid() != 0:
        raise Refused("this needs root: debootstrap, chroot and mounts")
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise Refused(f"{tool} is missing. Get it with: apt-get install {package}")
    if asked.verb == "build":
        build(ROOT, asked.file, asked.folder, dict(asked.build_arg), Lent(asked.bind, dict(asked.env), asked.mirror))
        return 0
    if not (asked.folder / "image.json").exists():
        raise Refused(f"nothing is built in {asked.folder}: python3 -m deploy.in_root build {asked.folder}")
    if asked.verb == "check":
        return check(asked.folder, dict(asked.env))
    return run(asked.folder, dict(asked.env), asked.bind, command)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Refused as error:
        sys.exit(f"in_root: {error}")
