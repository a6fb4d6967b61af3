"""A root to build on that takes no time: this machine's own programs, seen in an otherwise empty one."""

import os
import subprocess

import pytest

from deploy.in_root.build import Lent, build

USR = ("/usr", "/usr", "ro")


@pytest.fixture(scope="session")
def namespaces():
    """Skips where there is no leave to make them."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"]).returncode != 0:
        pytest.skip("needs root, and leave to make namespaces")


@pytest.fixture
def folder(tmp_path, namespaces):
    base = tmp_path / "made" / "bases" / "tiny"
    for name in ("usr", "proc", "sys", "dev", "tmp", "etc"):
        (base / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (base / name).symlink_to(f"usr/{name}")
    (base / "tmp").chmod(0o1777)
    return tmp_path / "made"


@pytest.fixture
def context(tmp_path):
    """What is built from."""
    place = tmp_path / "context"
    for name in ("a/one", "a/two.pyc", "three"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(name)
    (place / ".dockerignore").write_text("**/*.pyc\n")
    return place


@pytest.fixture
def built(context, folder):
    """(a Dockerfile's text, build arguments) -> the root, with /usr and $LENT lent to its commands."""
    def made(text, **arguments):
        (context / "Dockerfile").write_text(text)
        return build(context, context / "Dockerfile", folder, arguments, Lent([USR], {"LENT": "yes"}))
    return made
