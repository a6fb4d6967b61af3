"""What the documentation names is there: files, verbs, settings, profile fields, routes."""

import re
from pathlib import Path

import pytest

from services.chat.profiles import DEFAULT, Profile
from services.cli import VERBS
from services.metrics import Figures
from services.runner.grammar import TYPES
from services.runner.pattern import FORMATS
from services.settings import _VARIABLES, SPINS
from tests.bench.bench_peer import BENCHES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "models" / "README.md", ROOT / "examples" / "clients.md",
         ROOT / "examples" / "personalities.md", ROOT / "examples" / "summaries.md",
         ROOT / "examples" / "starter_model" / "README.md"]
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
    folders = "examples|tests|models|auth|services"
    for path in re.findall(rf"(?:^|(?<!--picture)[ `])((?:{folders})/[\w./-]+\.\w+)", README, re.M):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"-m (tests\.[\w.]+)", README):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


def test_settings_and_profile_fields_are_real():
    named = set(re.findall(r"`([A-Z][A-Z_]{3,})[=`]", README))
    assert named <= {*_VARIABLES, *SPINS, "OMP_WAIT_POLICY", "API_KEY", "PARLEY_URL", "CMAKE_ARGS"}, named
    table = README.partition("## Profiles")[2].partition("##")[0]
    fields = {field for row in re.findall(r"^\| (`.*?) \|", table, re.M) for field in re.findall(r"`(\w+)`", row)}
    assert fields == set(Profile.model_fields) - {"model", "verbose"}


def section(title):
    return re.split(r"^## ", README.partition(f"\n## {title}\n")[2], maxsplit=1, flags=re.M)[0]


def test_every_schema_keyword_is_named():
    told = section("Answers as data").partition("Supported are")[2].partition("Any\nother")[0]
    named = set(re.findall(r"`([$\w-]+)`", told))
    of_types = set[str]().union(*TYPES.values())
    assert named == {*of_types, *FORMATS, "type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}


def test_benches_are_real():
    named = set(re.findall(r"\[`([\w-]+)`\]", section("What makes it fast")))
    assert named and named <= set(BENCHES)
    assert set(re.findall(r"--only ([\w-]+)", README)) <= set(BENCHES)


def test_metrics_are_real():
    text = Figures(1).text([])
    for name in set(re.findall(r"\bparley_\w+", README)):
        assert f"# TYPE {name} " in text, name


def test_the_profile_of_the_first_answer_ships():
    assert DEFAULT["SelectedModel"] == "starter"
    assert (ROOT / "models" / "starter.gguf").stat().st_size <= 8 * 1024 * 1024
