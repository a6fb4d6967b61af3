"""The compose files are what the Compose Specification allows, and fit the Dockerfile and the settings.

compose-spec.json is the specification's schema (Apache-2.0: compose-spec.LICENSE), as
check-jsonschema 0.39.0 brings it.
"""

import json
import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from deploy.in_root.dockerfile import read
from services import settings
from services.cli import VERBS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SCHEMA = json.loads(Path(__file__).with_name("compose-spec.json").read_text())


def compose(name="compose.yaml"):
    return yaml.safe_load((DEPLOY / name).read_text())


def problems(found):
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(found)]


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_it_complies(name):
    assert problems(compose(name)) == []


def test_the_schema_refuses_what_is_wrong():
    wrong = compose()
    wrong["services"]["server"]["restarts"] = "always"
    assert problems(wrong)


def test_services_wait_for_what_there_is_and_use_declared_volumes():
    found = compose()
    for name, service in found["services"].items():
        assert set(service.get("depends_on", {})) <= set(found["services"]), name
        named = {volume.split(":")[0] for volume in service.get("volumes", []) if not volume.startswith("$")}
        assert named <= set(found["volumes"]), name
        assert service["restart"] == "unless-stopped" and service["deploy"]["resources"]["limits"]["memory"], name


def test_what_is_waited_for_can_be_healthy():
    for service in compose()["services"].values():
        for other in service.get("depends_on", {}):
            assert "healthcheck" in compose()["services"][other]


def test_the_build_is_of_our_dockerfile_and_its_arguments():
    build = compose()["services"]["server"]["build"]
    dockerfile = DEPLOY / build["context"] / build["dockerfile"]
    assert dockerfile.resolve() == DEPLOY / "Dockerfile"
    read(dockerfile.read_text(), compose("compose.cuda.yaml")["services"]["server"]["build"]["args"])


def test_settings_are_known_and_all_is_in_a_redis_that_keeps_it():
    documented = set(re.findall(r"^#([A-Z_]+)=", (DEPLOY.parent / ".env.example").read_text(), re.MULTILINE))
    for service in compose()["services"].values():
        given = {name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text)
                 for name, text in service.get("environment", {}).items()}
        assert set(given) <= documented
        loaded = settings.load(given, None)
        assert (loaded.redis_url, loaded.store) == (("redis://redis:6379/0", "redis") if given else (None, "files"))
    command = compose()["services"]["redis"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--appendfsync") + 1] == "always"


def test_commands_are_verbs_of_ours():
    services = compose()["services"]
    assert "command" not in services["server"]                  # the image's own: serve
    assert set(services["executor"]["command"]) <= set(VERBS)


def test_each_has_a_data_folder_of_its_own():
    services = compose()["services"].values()
    folders = {volume for service in services for volume in service["volumes"] if volume.endswith(":/data")}
    assert len(folders) == len(services)


def test_time_to_stop_is_more_than_running_answers_get():
    grace = compose()["services"]["server"]["stop_grace_period"]
    assert int(re.fullmatch(r"(\d+)s", grace)[1]) > settings.load({}, None).drain_timeout


def test_what_may_be_set_is_documented():
    told = (DEPLOY / "README.md").read_text()
    asked = set(re.findall(r"\$\{(\w+)", "".join(path.read_text() for path in DEPLOY.glob("compose*.yaml"))))
    assert asked and not [name for name in asked if name not in told]


def test_nothing_in_it_is_a_secret_and_only_this_machine_reaches_it():
    text = (DEPLOY / "compose.yaml").read_text()
    assert not re.search(r"(MASTER_KEY|DATA_KEY|PASSWORD|PWD)\s*[:=]", text)
    assert compose()["services"]["server"]["ports"] == ["${PARLEY_LISTEN:-127.0.0.1:5000}:5000"]
    assert "ports" not in compose()["services"]["redis"]
