"""Settings from the environment and `.env`, read once, frozen, refused by name and value (spec: docs in .env.example).

The only reader of `os.environ`. A variable of the environment wins over the same one in `.env`.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream

from services.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent       # the folder of main.py
PLACEHOLDERS = ("your-api-key-here", "changeme", "change-me", "your-master-key-here")


@dataclass(frozen=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 5000
    data_dir: Path = ROOT / "data"
    models_dir: Path = ROOT / "models"
    master_key: str | None = None           # unset: made at first start
    data_key: str | None = None             # unset: data at rest is plain JSON
    log_level: str = "INFO"
    debug: bool = False                     # verbose logs; never a debugger, never tracebacks to clients
    web_workers: int = 1                    # gunicorn workers
    threads: int = 128                      # threads of one worker: concurrent requests it can hold
    runner_threads: int = 0                 # default n_threads of profiles; 0: the machine's cores
    gpu_layers: int = 0                     # default n_gpu_layers of profiles
    context_window: int = 2048              # default n_ctx of profiles
    max_queue: int = 512                    # requests waiting in a runner before 503
    max_queue_per_key: int = 128            # of them, of one key, before 429
    kv_memory_bytes: int = 256 << 20        # KV state of suspended sessions in a runner's memory; 0: none
    kv_disk_bytes: int = 2 << 30            # the same on disk, under DATA_DIR/kv; 0: none
    replicas: int = 1                       # runners of each model
    memory_budget: int = 0                  # bytes that all runners may take; 0: what the machine has free
    max_loaded: int = 16                    # models kept loaded at once
    load_on_fly: bool = False               # a model is loaded at its first request and unloaded after its last one
    max_body_bytes: int = 8 * 1024 * 1024
    max_prompt_bytes: int = 1024 * 1024
    session_wait: float = 30.0              # seconds a second caller waits for a session's turn before 409
    request_timeout: float = 600.0          # seconds one answer may take before 504
    stall_timeout: float = 30.0             # seconds a working runner may go without progress before it is restarted
    metrics_keys: int = 100                 # keys that /metrics tells apart; the others are counted together
    max_sockets: int = 1000                 # websockets of one web worker
    max_sockets_per_key: int = 100
    socket_idle: float = 600.0              # seconds that a websocket may go without a question
    allowed_origins: tuple[str, ...] = ()   # of pages from elsewhere that may open one
    allowed_hosts: tuple[str, ...] = ()     # names that the server goes by, beside its addresses and localhost
    prepare: bool = True                    # after an answer, compute the session's next prompt while nobody waits
    drain_timeout: float = 30.0             # seconds that running answers get on SIGTERM
    hub_url: str = "https://huggingface.co"
    hub_token: str | None = None
    galleries: tuple[tuple[str, str], ...] = ()     # LocalAI's: name, address of the index
    preload_models: tuple[dict[str, Any], ...] = ()     # bodies of POST /models/apply, done in the background at start
    preload_file: Path | None = None        # the same, in YAML
    knowledge_url: str | None = None        # postgresql://…; unset: SQLite files in data_dir
    knowledge_documents: int = 10_000       # of one knowledge base
    knowledge_bytes: int = 256 << 20        # characters of all its texts
    knowledge_pages: int = 500              # of one crawl
    wikis: tuple[str, ...] = ()             # REST interfaces of MediaWikis that a model may look things up in
    rag_length: int | None = None           # characters of a page in a prompt, where a personality does not say
    rag_helper: str | None = None           # personality that chooses and judges sources, where one does not say
    fetch: bool = True                      # pages, feeds and documents that clients name are fetched
    fetch_allow: tuple[str, ...] = ()       # hosts and networks that are fetched from though they are not public
    fetch_deny: tuple[str, ...] = ()        # hosts and networks that are not, whatever they are
    fetch_ports: tuple[int, ...] = ()       # beside 80 and 443
    fetch_timeout: float = 10.0             # seconds that a page may take, with its redirects
    fetch_max_bytes: int = 2 << 20          # of a page, uncompressed; what is beyond is left
    summary_minimum: int = 100              # characters that a text to be summarised has at least
    live_summary_minimum: int = 400         # the same, of a text that is still being written
    modules: tuple[str, ...] = ("summaries:dispatcher", "summaries:executor")   # of jobs: take them, do them
    max_concurrency: int = 5                # jobs that one executor does at once
    job_timeout: float = 300.0              # seconds that one attempt at a job may take
    job_kept: float = 1800.0                # seconds that a job's result is kept
    max_files_bytes: int = 1 << 30          # of files of /v1/files, of one key
    jobs_per_key: int = 10_000              # of one key, that wait or run
    store: str = "files"                    # where keys, limits and sessions are: "files" of data_dir, or "redis"
    redis_url: str | None = None            # redis://… rediss://… unix://…; unset, as redis_host: SQLite in data_dir
    redis_host: str | None = None
    redis_port: int = 6379
    redis_tls: bool = False
    redis_db: int = 0
    redis_user: str | None = None
    redis_password: str | None = None
    redis_namespace: str = "parley"         # what every name in Redis begins with
    asap_keys: str | Path | None = None     # address or folder of the public keys of JSON Web Tokens; none: no tokens
    asap_folder: str = ""                   # below it
    asap_fallback: str = ""                 # below it too, for keys that asap_folder does not have
    asap_audiences: tuple[str, ...] = ()    # a token is for one of them
    asap_cached: int = 512                  # public keys kept in memory
    bypass_authorization: bool = False      # requests without a key may answer; on a loopback HOST only
    without_effect: tuple[str, ...] = ()    # set, understood by a source system, but not by this version
    runner: str = "llama"                   # "fake": scripted answers without a model, to test clients against

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator is told of at every start, and by /readyz."""
        bypass = ("BYPASS_AUTHORIZATION is on: whoever can reach this server from this machine may use it without a "
                  "key",) if self.bypass_authorization else ()
        plain = ("ASAP_PUB_KEYS_REPO_URL is no https address: whoever is on the way can put in a key of their own",) \
            if isinstance(self.asap_keys, str) and not self.asap_keys.startswith("https:") else ()
        undone = ("ENABLED_MODULES has no summaries:executor, and without STORE=redis nobody else does the jobs that "
                  "are taken here",) if self.modules == ("summaries:dispatcher",) and self.store == "files" else ()
        return bypass + plain + undone


RUNNER_VARIABLES = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH")
RUNNER_PREFIXES = ("OMP_", "GOMP_", "GGML_", "CUDA_")
# How often GNU OpenMP's threads look before they sleep: for some 20 µs, enough on a quiet machine. By default they look
# for 3 ms, and on a busy one take the time of the thread that they wait for.
SPINS = {"GOMP_SPINCOUNT": "2000"}


def runner_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a runner may see of the environment (default: this process's): what its libraries need, and no secret.

    How its threads wait for each other is said unless somebody has."""
    source = os.environ if environ is None else environ
    waiting = {} if "OMP_WAIT_POLICY" in source else SPINS
    return waiting | {name: value for name, value in source.items()
                      if name in RUNNER_VARIABLES or name.startswith(RUNNER_PREFIXES)}


def _bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("expected 1, true, yes, on or 0, false, no, off")


def _yes(text: str) -> bool:
    """A boolean as skynet writes them: y and n too (S1.37)."""
    return _bool({"y": "yes", "n": "no"}.get(text.strip().lower(), text))


def _int(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", text) or not low <= int(text) <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return int(text)
    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86400:
        raise ValueError("expected seconds from 0 to 86400")
    return value


def _secret(text: str) -> str:
    if text.strip().lower() in PLACEHOLDERS:
        raise ValueError("this is the placeholder from an example; set a secret of your own")
    if len(text) < 32:
        raise ValueError("expected a secret of 32 characters or more, for example from `openssl rand -hex 32`")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("expected printable ASCII without spaces, since it travels in a header")
    return text


def _choice(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        for value in values:
            if text.strip().lower() == value.lower():
                return value
        raise ValueError(f"expected one of {', '.join(values)}")
    return parse


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("expected a value")
    return text.strip()


def _url(text: str) -> str:
    if not text.strip().startswith(("http://", "https://")):
        raise ValueError("expected an address that begins with http:// or https://")
    return text.strip().rstrip("/")


def _keys_at(text: str) -> str | Path:
    return _url(text) if "://" in text else _folder(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _below(text: str) -> str:
    return text.strip().strip("/")


def _postgres(text: str) -> str:
    if not text.strip().startswith(("postgresql://", "postgres://")):
        raise ValueError("expected an address that begins with postgresql://")
    return text.strip()


def _redis(text: str) -> str:
    if not text.strip().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("expected an address that begins with redis://, rediss:// (TLS) or unix://")
    return text.strip()


def _password(text: str) -> str:
    return text


def _namespace(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", text.strip()):
        raise ValueError("expected 1 to 64 of the characters A-Z a-z 0-9 _ . : -")
    return text.strip()


def _modules(text: str) -> tuple[str, ...]:
    known = ("summaries:dispatcher", "summaries:executor")
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not set(found) <= {*known, "none"}:
        raise ValueError(f"expected {', '.join(known)}, one of them, or none")
    return tuple(name for name in known if name in found)


def _galleries(text: str) -> tuple[tuple[str, str], ...]:
    expected = 'expected a JSON array of {"name": …, "url": …}, with no name twice'
    values = _objects(text, expected)
    found = {str(one.get("name")): str(one.get("url")) for one in values
             if all(isinstance(one.get(key), str) and one[key] for key in ("name", "url"))}
    if len(found) != len(values):
        raise ValueError(expected)
    return tuple(found.items())


def _origins(text: str) -> tuple[str, ...]:
    found = tuple(one.strip().lower().rstrip("/") for one in text.split(",") if one.strip())
    if not all(re.fullmatch(r"https?://[^/?#@\s]+", one) for one in found):
        raise ValueError("expected addresses such as https://chat.example.org, with commas between them")
    return found


def _hosts(text: str) -> tuple[str, ...]:
    found = tuple(one.strip().lower() for one in text.split(",") if one.strip())
    if not all(re.fullmatch(r"\*|[a-z0-9_.-]+", one) for one in found):
        raise ValueError("expected names such as chat.example.org, without ports and with commas between them, or *")
    return found


def _wikis(text: str) -> tuple[str, ...]:
    found = tuple(_url(one.strip()) for one in text.split(",") if one.strip())
    if not all(re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?/rest\.php", one) for one in found):
        raise ValueError("expected addresses such as https://en.wikipedia.org/w/rest.php, with commas between them")
    return found


def _bodies(text: str) -> tuple[dict[str, Any], ...]:
    return _objects(text, 'expected a JSON array of what POST /models/apply takes, such as [{"id": "gallery@name"}]')


def _places(text: str) -> tuple[str, ...]:
    """Hosts and networks, by commas: `wiki.example, *.intranet.example, 10.1.0.0/16`."""
    entries = tuple(entry.strip() for entry in text.split(",") if entry.strip())
    for entry in entries:
        if re.fullmatch(r"[0-9.]+|.*[:/].*", entry):
            ipaddress.ip_network(entry)         # its ValueError says what is wrong
        elif not re.fullmatch(r"(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", entry):
            raise ValueError(f"{entry[:80]!r} is neither a host, nor *. and a host, nor a network such as 10.1.0.0/16")
    return entries


def _ports(text: str) -> tuple[int, ...]:
    return tuple(_int(1, 65535)(entry) for entry in text.split(",") if entry.strip())


def _objects(text: str, expected: str) -> tuple[dict[str, Any], ...]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(expected) from None
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError(expected)
    return tuple(values)


def _folder(text: str) -> Path:
    path = Path(_text(text)).expanduser()
    return path if path.is_absolute() else (ROOT / path)


# variable -> (field, parser); the source systems' own names stand behind ours and count when ours is unset
_VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "HOST": ("host", _text),
    "PORT": ("port", _int(0, 65535)),
    "DATA_DIR": ("data_dir", _folder),
    "MODELS_DIR": ("models_dir", _folder),
    "MASTER_KEY": ("master_key", _secret),
    "DATA_KEY": ("data_key", _secret),
    "LOG_LEVEL": ("log_level", _choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")),
    "DEBUG": ("debug", _bool),
    "WEB_WORKERS": ("web_workers", _int(1, 64)),
    "NUM_WORKERS": ("replicas", _int(1, 64)),
    "LOAD_ON_FLY": ("load_on_fly", _bool),
    "MEMORY_BUDGET": ("memory_budget", _int(0, 1 << 50)),
    "WEB_THREADS": ("threads", _int(2, 1024)),
    "NUM_THREADS": ("runner_threads", _int(0, 512)),
    "LLM_CPU_THREADS": ("runner_threads", _int(0, 512)),
    "LLM_GPU_LAYERS": ("gpu_layers", _int(-1, 10000)),
    "LLAMA_N_GPU_LAYERS": ("gpu_layers", _int(-1, 10000)),
    "LLM_CONTEXT_WINDOW": ("context_window", _int(16, 16_777_216)),
    "LLAMA_N_CTX": ("context_window", _int(16, 16_777_216)),
    "MAX_QUEUE": ("max_queue", _int(1, 100_000)),
    "MAX_QUEUE_PER_KEY": ("max_queue_per_key", _int(1, 100_000)),
    "KV_MEMORY_BYTES": ("kv_memory_bytes", _int(0, 1 << 50)),
    "KV_DISK_BYTES": ("kv_disk_bytes", _int(0, 1 << 50)),
    "MAX_LOADED": ("max_loaded", _int(1, 64)),
    "MAX_BODY_BYTES": ("max_body_bytes", _int(1024, 1 << 30)),
    "MAX_PROMPT_BYTES": ("max_prompt_bytes", _int(16, 1 << 30)),
    "SESSION_WAIT": ("session_wait", _seconds),
    "REQUEST_TIMEOUT": ("request_timeout", _seconds),
    "STALL_TIMEOUT": ("stall_timeout", _seconds),
    "MAX_SOCKETS": ("max_sockets", _int(0, 100_000)),
    "MAX_SOCKETS_PER_KEY": ("max_sockets_per_key", _int(0, 100_000)),
    "SOCKET_IDLE": ("socket_idle", _seconds),
    "ALLOWED_ORIGINS": ("allowed_origins", _origins),
    "ALLOWED_HOSTS": ("allowed_hosts", _hosts),
    "PREPARE": ("prepare", _bool),
    "DRAIN_TIMEOUT": ("drain_timeout", _seconds),
    "METRICS_KEYS": ("metrics_keys", _int(0, 10_000)),
    "HF_ENDPOINT": ("hub_url", _url),
    "HF_TOKEN": ("hub_token", _text),
    "GALLERIES": ("galleries", _galleries),
    "PRELOAD_MODELS": ("preload_models", _bodies),
    "PRELOAD_MODELS_CONFIG": ("preload_file", _folder),
    "KNOWLEDGE_URL": ("knowledge_url", _postgres),
    "KNOWLEDGE_MAX_DOCUMENTS": ("knowledge_documents", _int(1, 10_000_000)),
    "KNOWLEDGE_MAX_BYTES": ("knowledge_bytes", _int(1024, 1 << 50)),
    "KNOWLEDGE_MAX_PAGES": ("knowledge_pages", _int(1, 100_000)),
    "WIKIS": ("wikis", _wikis),
    "LLM_RAG_LENGTH": ("rag_length", _int(1, 1 << 24)),
    "LLM_RAG_HELPER": ("rag_helper", _text),
    "FETCH": ("fetch", _bool),
    "FETCH_ALLOW": ("fetch_allow", _places),
    "FETCH_DENY": ("fetch_deny", _places),
    "FETCH_PORTS": ("fetch_ports", _ports),
    "FETCH_TIMEOUT": ("fetch_timeout", _seconds),
    "FETCH_MAX_BYTES": ("fetch_max_bytes", _int(1024, 64 << 20)),
    "ENABLED_MODULES": ("modules", _modules),
    "MAX_CONCURRENCY": ("max_concurrency", _int(1, 256)),
    "JOB_TIMEOUT": ("job_timeout", _seconds),
    "JOB_KEPT": ("job_kept", _seconds),
    "REDIS_EXP_SECONDS": ("job_kept", _seconds),
    "MAX_JOBS_PER_KEY": ("jobs_per_key", _int(1, 10_000_000)),
    "STORE": ("store", _choice("files", "redis")),
    "MAX_FILES_BYTES": ("max_files_bytes", _int(1024, 1 << 50)),
    "REDIS_URL": ("redis_url", _redis),
    "REDIS_HOST": ("redis_host", _text),
    "REDIS_PORT": ("redis_port", _int(1, 65535)),
    "REDIS_USE_TLS": ("redis_tls", _bool),
    "REDIS_DB_NO": ("redis_db", _int(0, 65535)),
    "REDIS_USR": ("redis_user", _text),
    "REDIS_PWD": ("redis_password", _password),
    "REDIS_NAMESPACE": ("redis_namespace", _namespace),
    "ASAP_PUB_KEYS_REPO_URL": ("asap_keys", _keys_at),
    "ASAP_PUB_KEYS_FOLDER": ("asap_folder", _below),
    "ASAP_PUB_KEYS_FALLBACK_FOLDER": ("asap_fallback", _below),
    "ASAP_PUB_KEYS_AUDS": ("asap_audiences", _names),
    "ASAP_PUB_KEYS_MAX_CACHE_SIZE": ("asap_cached", _int(1, 1_000_000)),
    "BYPASS_AUTHORIZATION": ("bypass_authorization", _yes),
    "SUMMARY_MINIMUM_PAYLOAD_LENGTH": ("summary_minimum", _int(0, 1 << 20)),
    "LIVE_SUMMARY_MINIMUM_PAYLOAD_LENGTH": ("live_summary_minimum", _int(0, 1 << 20)),
    "RUNNER": ("runner", _choice("llama", "fake")),
}
# The source systems' variables that mean nothing here yet. None of them opens a route.
_WITHOUT_EFFECT = ("LLAMA_PATH", "LLM_HUGGINGFACE_FILE", "LLM_HUGGINGFACE_REPO", "LLM_LIB", "LLM_MODEL_FILE")
_MAY_BE_EMPTY = {"DEBUG"}       # an empty value of any other variable counts as unset


def load(environ: Mapping[str, str] | None = None, env_file: Path | None = ROOT / ".env") -> Settings:
    """Settings from `environ` (default: the process's) over `env_file`; `ConfigError` names variable and value."""
    source = _env_file(env_file) if env_file is not None and env_file.is_file() else {}
    source.update(os.environ if environ is None else environ)
    values: dict[str, Any] = {}
    for variable, (field, parse) in _VARIABLES.items():
        text = source.get(variable)
        if text is None or field in values or (not text.strip() and variable not in _MAY_BE_EMPTY):
            continue
        try:
            values[field] = parse(text)
        except ValueError as error:
            shown = "(not shown)" if parse in (_secret, _postgres, _redis, _password) else repr(text[:80])
            raise ConfigError(f"{variable}={shown}: {error}") from None
    unused = tuple(name for name in _WITHOUT_EFFECT if source.get(name, "").strip())
    settings = Settings(**values, without_effect=unused)
    _check_together(settings)
    return settings


def _check_together(settings: Settings) -> None:
    if settings.store == "redis" and settings.redis_url is None and settings.redis_host is None:
        raise ConfigError("STORE='redis': set REDIS_URL (or REDIS_HOST), too, so that it can be found")
    if settings.bypass_authorization and not is_loopback(settings.host):
        raise ConfigError(f"BYPASS_AUTHORIZATION is on and HOST={settings.host!r} can be reached from other machines: "
                          "everybody there could use this server without a key; set HOST=127.0.0.1, or take "
                          "BYPASS_AUTHORIZATION away")
    if settings.asap_keys is not None and not settings.asap_audiences:
        raise ConfigError("ASAP_PUB_KEYS_REPO_URL is set and ASAP_PUB_KEYS_AUDS is not: without it tokens that were "
                          "made for other services would be taken; list the audiences that are this server")


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine for itself alone: localhost, or a loopback address without brackets."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _env_file(path: Path) -> dict[str, str]:
    """The variables of `path`. `ConfigError` names a line that is none, and a name that is nearly one of ours."""
    try:
        with path.open(encoding="utf-8") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    values = {}
    for binding in bindings:
        where = f"{path}, line {binding.original.line}"
        if binding.error:
            raise ConfigError(f"{where}: expected NAME=value, or # and a comment")
        if binding.key and binding.key not in (*_VARIABLES, *_WITHOUT_EFFECT) and (near := difflib.get_close_matches(
                binding.key, _VARIABLES, 1, 0.75)):
            raise ConfigError(f"{where}: {binding.key} is no setting; is {near[0]} meant? .env.example lists them")
        if binding.key and binding.value is not None:
            values[binding.key] = binding.value
    return values


def no_tracing() -> None:
    """Switch off LangSmith, which would post prompts to its makers when these variables are set (langchain-core)."""
    for variable in ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2"):
        os.environ[variable] = "false"


def environment_with(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's whole environment with `changes`, for a child that reads its settings itself."""
    return {**os.environ, **changes}


def variable(name: str, environ: Mapping[str, str] | None = None, env_file: Path | None = ROOT / ".env") -> str | None:
    """What `name` is in the environment or `.env`, for a file that names it in a secret's place; None when unset."""
    source = os.environ if environ is None else environ
    return source.get(name) or (_env_file(env_file) if env_file and env_file.is_file() else {}).get(name) or None
