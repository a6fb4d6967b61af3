"""Settings: what is read, what wins, and how a wrong value is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.errors import ConfigError
from services.settings import _VARIABLES, ROOT, Settings, load, runner_environment


def test_nothing_set_is_the_defaults() -> None:
    assert load({}, None) == Settings()
    assert load({"PORT": "", "MASTER_KEY": " ", "DEBUG": ""}, None) == Settings()


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("PORT=7000\nMAX_QUEUE=9\n# WEB_WORKERS=3\n")
    settings = load({"PORT": "8000"}, file)
    assert (settings.port, settings.max_queue, settings.web_workers) == (8000, 9, 1)


def test_the_source_systems_names_count_when_ours_are_unset() -> None:
    assert load({"LLM_CPU_THREADS": "3", "LLAMA_N_CTX": "512"}, None).runner_threads == 3
    assert load({"LLM_CPU_THREADS": "3", "NUM_THREADS": "5"}, None).runner_threads == 5


@pytest.mark.parametrize(("text", "value"), [("1", True), ("True", True), ("yes", True), ("ON", True), ("0", False),
                                             ("false", False), ("No", False), ("off", False), ("", False)])
def test_booleans(text: str, value: bool) -> None:
    assert load({"DEBUG": text}, None).debug is value


def test_where_pages_are_fetched_from() -> None:
    settings = load({"FETCH": "off", "FETCH_ALLOW": "wiki.example, *.intranet,10.1.0.0/16,::1",
                     "FETCH_PORTS": "8080, 9"}, None)
    assert (settings.fetch, settings.fetch_ports) == (False, (8080, 9))
    assert settings.fetch_allow == ("wiki.example", "*.intranet", "10.1.0.0/16", "::1")


@pytest.mark.parametrize(("variable", "text"), [
    ("FETCH_ALLOW", "http://wiki.example/"), ("FETCH_ALLOW", "10.1.0.1/16"), ("FETCH_ALLOW", "10.1"),
    ("FETCH_ALLOW", "a b"), ("FETCH_DENY", "*"), ("FETCH_PORTS", "0"),
    ("FETCH_PORTS", "http"), ("FETCH_MAX_BYTES", "10"), ("FETCH_TIMEOUT", "x")])
def test_places_that_are_none_are_named(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        load({variable: text}, None)


def test_relative_folders_lie_beside_main(tmp_path: Path) -> None:
    assert load({"DATA_DIR": "elsewhere", "MODELS_DIR": str(tmp_path)}, None).data_dir == ROOT / "elsewhere"


@pytest.mark.parametrize(("variable", "text"), [
    ("PORT", "65536"), ("PORT", "-1"), ("PORT", "--5"), ("PORT", "5 0"), ("PORT", "٥"), ("PORT", "9" * 5000),
    ("DEBUG", "maybe"), ("REQUEST_TIMEOUT", "nan"), ("REQUEST_TIMEOUT", "-1"), ("LOG_LEVEL", "loud"), ("RUNNER", "x")])
def test_a_wrong_value_is_named_with_what_was_expected(variable: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({variable: text}, None)
    assert caught.value.message.startswith(f"{variable}={text[:80]!r}: expected ")


@pytest.mark.parametrize("text", ["YOUR-API-KEY-HERE", "too short", "ü" * 40, "with a space" * 4])
def test_a_wrong_secret_is_not_shown(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"MASTER_KEY": text}, None)
    assert caught.value.message.startswith("MASTER_KEY=(not shown): ") and text not in caught.value.message


def test_the_example_names_every_variable() -> None:
    named = set(re.findall(r"[A-Z][A-Z_]{3,}", (ROOT / ".env.example").read_text()))
    assert set(_VARIABLES) <= named


def test_a_runner_sees_what_its_libraries_need_and_no_secret() -> None:
    environ = {"PATH": "/bin", "OMP_NUM_THREADS": "2", "MASTER_KEY": "m", "HF_TOKEN": "t", "DATA_KEY": "d"}
    assert runner_environment(environ) == {"PATH": "/bin", "OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "2000"}


@pytest.mark.parametrize("own", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_a_runners_threads_wait_as_somebody_said(own: dict[str, str]) -> None:
    assert runner_environment(own) == own


def test_a_nearly_right_name_in_the_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# fine\nAPI_KEY=for the examples\nPROT=5107\n")
    with pytest.raises(ConfigError, match=r"\.env, line 3: PROT is no setting; is PORT meant"):
        load({}, path)
    path.write_text("PORT=5107\nwhat is this\n")
    with pytest.raises(ConfigError, match=r"\.env, line 2: expected NAME=value"):
        load({}, path)


def test_variables_of_source_systems_without_effect_are_known() -> None:
    settings = load({"LLM_MODEL_FILE": "x.gguf", "LLAMA_PATH": "/x", "LLM_LIB": ""}, None)
    assert settings.without_effect == ("LLAMA_PATH", "LLM_MODEL_FILE")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.1"])
@pytest.mark.parametrize("text", ["1", "y", "Yes", "true"])
def test_authorization_is_bypassed_on_a_loopback_host_only(host: str, text: str) -> None:
    settings = load({"BYPASS_AUTHORIZATION": text, "HOST": host}, None)
    assert settings.bypass_authorization and "without a key" in settings.warnings[0]
    for elsewhere in ("0.0.0.0", "::", "10.1.2.3", "example.org", "127.0.0.1.example.org", "::ffff:10.1.2.3"):
        with pytest.raises(ConfigError, match="can be reached from other machines"):
            load({"BYPASS_AUTHORIZATION": text, "HOST": elsewhere}, None)
    off = load({"BYPASS_AUTHORIZATION": "n", "HOST": "0.0.0.0"}, None)
    assert not off.bypass_authorization and off.warnings == ()


def test_where_the_public_keys_of_tokens_are() -> None:
    given = {"ASAP_PUB_KEYS_REPO_URL": "https://keys.example/", "ASAP_PUB_KEYS_FOLDER": "/prod/",
             "ASAP_PUB_KEYS_AUDS": "a, b,"}
    settings = load(given, None)
    assert (settings.asap_keys, settings.asap_folder, settings.asap_audiences, settings.asap_cached) == \
        ("https://keys.example", "prod", ("a", "b"), 512) and settings.warnings == ()
    assert load({**given, "ASAP_PUB_KEYS_REPO_URL": "/keys"}, None).asap_keys == Path("/keys")
    assert "no https" in load({**given, "ASAP_PUB_KEYS_REPO_URL": "http://keys.example"}, None).warnings[0]
    for wrong, said in (({"ASAP_PUB_KEYS_AUDS": " , "}, "ASAP_PUB_KEYS_AUDS is not"),
                        ({"ASAP_PUB_KEYS_REPO_URL": "ftp://x"}, "begins with http"),
                        ({"ASAP_PUB_KEYS_MAX_CACHE_SIZE": "0"}, "MAX_CACHE_SIZE")):
        with pytest.raises(ConfigError, match=said):
            load({**given, **wrong}, None)


def test_a_hub_has_a_scheme() -> None:
    with pytest.raises(ConfigError, match="HF_ENDPOINT='foo': expected an address"):
        load({"HF_ENDPOINT": "foo"}, None)


def test_localais_galleries_and_preloads() -> None:
    settings = load({"GALLERIES": '[{"name": "a", "url": "https://x/y.yaml"}]', "PRELOAD_MODELS": '[{"id": "a@b"}]'},
                    None)
    assert settings.galleries == (("a", "https://x/y.yaml"),) and settings.preload_models == ({"id": "a@b"},)
    for name, text in (("GALLERIES", "[1]"), ("GALLERIES", '[{"name": "x"}]'), ("GALLERIES", "{"),
                       ("GALLERIES", '[{"name": "x", "url": "y"}, {"name": "x", "url": "z"}]'),
                       ("PRELOAD_MODELS", "{}"), ("PRELOAD_MODELS", "[" * 100_000)):
        with pytest.raises(ConfigError, match=f"{name}=.*expected a JSON array"):
            load({name: text}, None)


def test_origins_are_addresses_without_a_path():
    assert load({"ALLOWED_ORIGINS": "https://A.example/, http://b.example:81"}, None).allowed_origins == \
        ("https://a.example", "http://b.example:81")
    for text in ("a.example", "*", "https://a.example/x", "null", "https://"):
        with pytest.raises(ConfigError, match="ALLOWED_ORIGINS"):
            load({"ALLOWED_ORIGINS": text}, None)


def test_jobs_that_nobody_would_do_are_warned_of():
    given = {"ENABLED_MODULES": "summaries:dispatcher"}
    assert "nobody else does the jobs" in load(given, None).warnings[0]
    assert not load({**given, "STORE": "redis", "REDIS_HOST": "queue"}, None).warnings
    assert not load({"ENABLED_MODULES": "none"}, None).warnings


def test_jobs_and_where_they_are_queued():
    settings = load({"ENABLED_MODULES": "summaries:executor", "REDIS_HOST": "queue", "REDIS_PWD": "x y",
                     "REDIS_EXP_SECONDS": "60", "JOB_TIMEOUT": "9.5"}, None)
    assert settings.modules == ("summaries:executor",) and load({"ENABLED_MODULES": "none"}, None).modules == ()
    assert (settings.redis_host, settings.redis_password, settings.job_kept, settings.job_timeout) == \
        ("queue", "x y", 60.0, 9.5)
    for name, text in (("ENABLED_MODULES", "summaries"), ("REDIS_URL", "http://u:verysecret@h"),
                       ("REDIS_NAMESPACE", "a b"), ("MAX_CONCURRENCY", "0")):
        with pytest.raises(ConfigError, match=name) as told:
            load({name: text}, None)
        assert "verysecret" not in told.value.message


def test_a_store_in_redis_needs_a_redis():
    assert load({"STORE": "redis", "REDIS_HOST": "redis.example"}, None).store == "redis"
    with pytest.raises(ConfigError, match="REDIS_URL"):
        load({"STORE": "redis"}, None)
