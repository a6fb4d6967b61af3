"""The rules of the house: which room may import which, and by which doors outside libraries come in."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS = [
    {"services.settings", "services.errors", "services.wire", "services.paths", "services.logs",
     "services.kv_names", "services.metrics"},
    {"services.store"},
    {"services.engine", "auth"},
    {"services.knowledge"},
    {"services.chat"},
    {"services.jobs"},
    {"services.web", "services.cli"},
    {"main"},
]
CHILD = "services.runner"                                   # behind the process boundary
CHILD_MAY = {"services.wire", "services.errors", "services.kv_names", "services.logs"}
DOORS = {                                                   # library -> where it may be imported
    "llama_cpp": {"services.runner.llama"},
    "multiprocessing": {"services.wire"},
    "flask": {"services.web", "auth.gate"},
    "flask_restful": {"services.web"},
    "gunicorn": {"services.web"},
    "langchain_core": {"services.chat"},
    "langchain": {"services.chat"},
    "limits": {"auth.windows"},
    "cryptography": {"services.store", "services.runner.kvfile", "services.web.bindings.discord", "auth.publickeys"},
    "jwt": {"auth.tokens"},
    "huggingface_hub": {"services.engine.hub"},
    "jinja2": {"services.chat"},
    "yaml": {"services.engine.yaml_files"},
    "click": {"services.cli"},
    "httpcore": {"services.knowledge.fetch", "services.knowledge.connection"},
    "selectolax": {"services.knowledge.readers.html"},
    "feedparser": {"services.knowledge.readers.feed"},
    "pypdf": {"services.knowledge.readers.pdf"},
    "charset_normalizer": {"services.knowledge.readers.text"},
    "sqlite3": {"services.store"},
    "psycopg": {"services.store"},
    "redis": {"services.store"},
    "langchain_text_splitters": {"services.knowledge.split"},
    "prometheus_client": {"services.metrics"},
    "dotenv": {"services.settings"},
    "websockets": {"services.web.sockets"},
}
NEVER = {"pickle", "marshal", "shelve", "dill", "diskcache", "joblib", "cloudpickle"}


def sources() -> list[Path]:
    return sorted([ROOT / "main.py", *(ROOT / "auth").rglob("*.py"), *(ROOT / "services").rglob("*.py")])


def name_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, rooms: set[str]) -> str | None:
    return next((room for room in rooms if module == room or module.startswith(room + ".")), None)


def place(module: str) -> tuple[int, str] | None:
    found = [(floor, room) for floor, rooms in enumerate(FLOORS) if (room := within(module, rooms))]
    return found[0] if found else None


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_imports_go_down_the_stairs(path):
    me = name_of(path)
    for target in imports(path):
        if within(me, {CHILD}):
            if target.startswith(("services.", "auth")):
                assert within(target, {CHILD, *CHILD_MAY}), f"{me} imports {target}: a runner knows only the wire"
            continue
        assert me == "main" or not within(target, {CHILD}), f"{me} imports {target}: only main may, in the child"
        here, there = place(me), place(target)
        if here and there:
            ground = there[0] == here[0] == 0
            assert there[0] < here[0] or there[1] == here[1] or ground, f"{me} imports {target}: up or sideways"


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_libraries_come_in_by_their_doors(path):
    me = name_of(path)
    for target in imports(path):
        library = target.split(".")[0]
        assert library not in NEVER, f"{me} imports {library}"
        if library in DOORS:
            assert within(me, DOORS[library]), f"{me} imports {library}: only {sorted(DOORS[library])} may"


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_nothing_is_unpickled_by_another_name(path):
    """Row P11: `Connection.recv()` unpickles what comes (a socket's takes a size), and so do processes in pools."""
    assert "concurrent.futures.ProcessPoolExecutor" not in imports(path)
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "recv":
            assert node.args, f"{where} unpickles what comes"
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle", where
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("ProcessPoolExecutor", "Pool", "Manager"), where


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_environment_is_read_in_one_place(path):
    text = path.read_text()
    if name_of(path) not in ("services.settings", "services.store.disk"):
        assert "os.environ" not in text and "getenv(" not in text, f"{name_of(path)} reads the environment"


def test_every_source_has_a_floor():
    homeless = [name_of(path) for path in sources()
                if not place(name_of(path)) and not within(name_of(path), {CHILD}) and name_of(path) != "services"]
    assert not homeless


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_no_eval_no_shell(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"{name_of(path)}:{node.lineno} calls {node.func.id}"
        if isinstance(node, ast.keyword) and node.arg == "shell":
            raise AssertionError(f"{name_of(path)}:{node.value.lineno} uses a shell")
