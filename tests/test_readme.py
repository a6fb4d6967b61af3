"""What the documentation names is there: files, verbs, settings, profile fields, routes."""

import re
from pathlib import Path

import pytest

from services.chat.profiles import DEFAULT, Profile
from services.cli import VERBS
from services.settings import _VARIABLES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "models" / "README.md", ROOT / "examples" / "starter_model" / "README.md"]
README = PAGES[0].read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text()
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_commands_name_what_there_is():
    assert set(re.findall(r"main\.py ([a-z]+)", README)) <= set(VERBS)
    for path in re.findall(r"(?:^|[ `])((?:examples|tests|models|auth|services)/[\w./-]+\.\w+)", README, re.M):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"-m (tests\.[\w.]+)", README):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


def test_settings_and_profile_fields_are_real():
    named = set(re.findall(r"`([A-Z][A-Z_]{3,})[=`]", README))
    assert named <= {*_VARIABLES, "API_KEY", "PARLEY_URL", "CMAKE_ARGS"}, named
    table = README.partition("## Profiles")[2].partition("##")[0]
    fields = {field for row in re.findall(r"^\| (`.*?) \|", table, re.M) for field in re.findall(r"`(\w+)`", row)}
    assert fields == set(Profile.model_fields) - {"model", "verbose"}


def test_the_profile_of_the_first_answer_ships():
    assert DEFAULT["SelectedModel"] == "starter"
    assert (ROOT / "models" / "starter.gguf").stat().st_size <= 8 * 1024 * 1024
