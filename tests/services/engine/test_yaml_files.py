"""YAML of people and galleries: values with their lines, and nothing that takes the process with it."""

import os
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.engine import yaml_files
from services.engine.yaml_files import parse, read
from services.errors import ConfigError


def value(text):
    return parse(text, "models/x.yaml").value


@pytest.mark.parametrize(("text", "expected"), [
    ("a: 1\nb: {c: yes, d: 0x1f, e: 1e-3, f: ~, g: '1', h: !!str 5, i: 0o17, j: -2.5, k: 12:30, l: 2024-01-01}",
     {"a": 1, "b": {"c": "yes", "d": 31, "e": 0.001, "f": None, "g": "1", "h": "5", "i": 15, "j": -2.5, "k": "12:30",
                    "l": "2024-01-01"}}),
    ("- &a\n  n: 1\n  o: {p: 2}\n- !!merge <<: *a\n  n: 2\n", [{"n": 1, "o": {"p": 2}}, {"n": 2, "o": {"p": 2}}]),
    ("x: &x {a: 1}\ny: &y {a: 2, b: 3}\nz: {<<: [*x, *y], c: 4}", {"x": {"a": 1}, "y": {"a": 2, "b": 3},
                                                                 "z": {"a": 1, "b": 3, "c": 4}}),
    ("'<<': 1", {"<<": 1}),
    ("a: &x 1\nb: &x 2\nc: *x", {"a": 1, "b": 2, "c": 2}),
    ("1: a\ntrue: b", {"1": "a", "true": "b"}),
    ("a: |\n  b\n  c\n", {"a": "b\nc\n"}),
    ("a: !!int 7\nb: !!float 1\nc: ! 7", {"a": 7, "b": 1.0, "c": "7"}),
    ("", None), ("# nothing\n", None), ("[]", []),
    ("n: 99999999999999999999999999", {"n": "9" * 26}),
])
@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_values(text, expected, loader, monkeypatch):
    if not hasattr(yaml, loader):
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(yaml_files, "_LOADER", getattr(yaml, loader))
    assert value(text) == expected


@pytest.mark.parametrize(("text", "told"), [
    ("a: 1\nb: 2\na: 3", "line 3: 'a' is given twice"),
    ("a: [1", "not YAML"), ("a: 1\n b: 2", "line 2: not YAML"), ("--- 1\n--- 2", "line 2: a second document"),
    ("a: !!python/object/apply:os.system [x]", "line 1: the tag 'python/object/apply:os.system'"),
    ("a: !x 1", "line 1: the tag '!x' is not known"),
    ("a: &a [*a]", "line 1: *a is the name of nothing"), ("? [a]\n: 1", "line 1: a key must be a text"),
    ("<<: 1", "line 1: << takes a mapping"), ("\x00", "control characters"), ("a: !!int x", "'x' is no !!int"),
])
def test_what_is_wrong_is_told_with_its_line(text, told):
    with pytest.raises(ConfigError) as error:
        value(text)
    assert error.value.message.startswith("models/x.yaml") and told in error.value.message
    assert "\n" not in error.value.message


@pytest.mark.parametrize("text", [
    "[" * 200_000, "- " * 100_000, "{a: " * 100_000, "a: &a [1,1,1,1,1,1,1,1]\n" + "".join(
        f"b{n}: &b{n} [{','.join([f'*b{n - 1}' if n else '*a'] * 9)}]\n" for n in range(30)),
    "a: &a {x: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [{','.join([f'*b{n - 1}' if n else '*a'] * 9)}], y{n}: 1}}\n"
                               for n in range(30)),
    "k: " + "9" * 100_000])
def test_bombs_do_no_harm(text):
    began = time.process_time()
    try:
        value(text)
    except ConfigError as error:
        assert len(error.message) < 300
    assert time.process_time() - began < 10


def test_lines_of_keys():
    document = parse("a:\n  b: 1\n  c:\n    - x\n    - y: 2\n", "models/x.yaml")
    assert document.at("a", "c", 1, "y") == "models/x.yaml, line 5"
    assert document.at("a", "zzz") == "models/x.yaml, line 1"
    assert str(document.error("is wrong", "a", "b")) == "models/x.yaml, line 2: is wrong"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-10**15, 10**15) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Co", "Cn")) | st.sampled_from("\n:-#'\"{}"),
              max_size=12)
    | st.sampled_from(["1e3", "0o7", "0x1", "yes", "null", "~", "true", "1.", "<<", "=", "a\nb\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc<1", min_size=1, max_size=4), inner,
                                                                max_size=3), max_leaves=8)


@given(json_values)
def test_what_is_written_is_read_as_it_was(given_value):
    assert value(yaml_files.dump(given_value)) == given_value


def test_files(tmp_path):
    path = tmp_path / "x.yaml"
    for content, told in ((b"\xff", "not UTF-8"), (b"x" * (yaml_files.MAX_BYTES + 1), "at most")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=told):
            read(path)
    path.write_text("a: 1")
    assert read(path).value == {"a": 1}
    (tmp_path / "link.yaml").symlink_to(path)
    os.mkfifo(tmp_path / "fifo.yaml")
    for name in ("link.yaml", "fifo.yaml", "none.yaml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read(tmp_path / name)


@given(st.text(alphabet="ab:-[]{}&*<!'\"|> \n,?#%0", max_size=50))
def test_any_text_is_a_value_or_an_error(text):
    try:
        value(text)
    except ConfigError as error:
        assert "\n" not in error.message
