"""Go templates: what Go's own text/template makes of them, and the bounds that it does not have."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chat.gotemplate import MAX_SOURCE, Exceeded, Fault, Struct, Template

# [template, what Go 1.27 prints for ROOT, or null where it refuses]; functions of sprig in it are Go's strings package
CORPUS = json.loads((Path(__file__).parent / "go_templates.json").read_text())
FUNCTION = {"Name": "name", "Description": "description", "Strict": "strict", "Parameters": "parameters"}


def function(name, description, strict, parameters):
    return Struct("Function", {"Name": name, "Description": description, "Strict": strict, "Parameters": parameters},
                  FUNCTION)


CALLED = Struct("FunctionCall", {"Name": "f", "Arguments": '{"x": "<1>"}'}, {"Name": "name", "Arguments": "arguments"},
                ("Name",))
ROOT = Struct("Root", {
    "Content": 'Hello <you> & "me"', "RoleName": "user", "Empty": "", "Count": 3, "Zero": 0, "Half": 0.5, "Yes": True,
    "Nothing": None, "Words": ["b", "a", "ünï"], "None": [], "Map": {"b": 1, "a": "x", "n": {"deep": True}},
    "Functions": [function("f", "does f", False, {"type": "object", "properties": {"x": {"type": "string"}}}),
                  function("g", "", True, None)],
    "FunctionCall": [Struct("ToolCall", {"Index": 0, "ID": "call_1", "Type": "function", "FunctionCall": CALLED},
                            {"Index": "index", "ID": "id", "Type": "type", "FunctionCall": "function"})]})


def render(source, **values):
    return Template(source).render(Struct("Data", values) if values else ROOT)


@pytest.mark.parametrize(("source", "expected"), CORPUS, ids=[source[:40] for source, _ in CORPUS])
def test_as_go_does_it(source, expected):
    if expected is None:
        with pytest.raises(Fault):
            render(source)
    else:
        assert render(source) == expected


@pytest.mark.parametrize(("source", "expected"), [
    ('{{trimPrefix "He" .Content | trunc 4}}', "llo "),
    ('{{trimAll "/" "//a/b/"}}', "a/b"),
    ('{{title "hello big world"}}', "Hello Big World"),
    ('{{default "x" .Empty}} {{default "x" "y"}} {{.Empty | default "z"}}', "x y z"),
    ('{{replace "l" "L" .Content}}', 'HeLLo <you> & "me"'),
    ('{{contains "you" .Content}} {{hasPrefix "H" .Content}} {{hasSuffix "x" .Content}}', "true true false"),
    ('{{join ", " .Words}} {{join "-" (list 1 2 "x")}}', "b, a, ünï 1-2-x"),
    ('{{splitList "," "a,b" | join "+"}}', "a+b"),
    ('{{toRawJson "<a>"}} {{toJson "<a>"}}', '"<a>" "\\u003ca\\u003e"'),
    ('{{"a\\nb" | indent 2}}|{{"a" | nindent 1}}', "  a\n  b|\n a"),
    ('{{quote "a" 1}} {{squote "a"}}', '"a" "1" \'a\''),
    ('{{repeat 3 "ab"}}', "ababab"),
    ("{{add 1 2 3}} {{sub 5 7}}", "6 -2"),
    ('{{$d := dict "a" 1 "b" "x"}}{{get $d "b"}}{{$d.a}}{{get $d "no"}}{{hasKey $d "a"}}', "x1true"),
    ('{{empty ""}} {{empty .Words}} {{ternary "y" "n" .Yes}} {{coalesce .Empty 0 "c"}}', "true false y c"),
    ("{{first .Words}} {{last .Words}} {{first .None}}", "b ünï <no value>"),
    ('{{trunc -2 "abcd"}} {{upper "é"}} {{toString 3}}', "cd É 3"),
    ('{{"\ue0f1" | quote}}', '"\ue0f1"'),
])
def test_sprig(source, expected):
    assert render(source) == expected


@pytest.mark.parametrize(("source", "line", "told"), [
    ("a\n\n{{sha256sum .Content}}", 3, "the function sha256sum is not supported; those that are: add, and, "),
    ("\n{{template \"x\"}}", 2, "template is not supported"),
    ("{{if .Yes}}\nx", 1, "this if has no {{end}}"),
    ("{{range .Words}}\n{{else}}\n{{else}}{{end}}", 1, "two else"),
    ("x\n{{end}}", 2, "without an if"),
    ("{{.A\n}}{{", 2, "an action does not end"),
    ("{{/* x", 1, "a comment does not end"),
    ("{{.A | 3}}", 1, "must be a function"),
    ("{{\n.Content.b}}", 2, "a string has no field b"),
    ("{{.Wrong}}", 1, "a Root has no field Wrong; there are: Content, RoleName"),
    ("{{upper 3}}", 1, "upper: takes a string where it gets a int"),
    ("{{upper}}", 1, "upper: takes 1 arguments, not 0"),
    ("{{9999999999999999999}}", 1, "too large a number"),
    ('{{"\\z"}}', 1, "no escape"),
    ("{{$y = 3}}", 1, "the variable $y cannot be set"),
    ("{{.A#}}", 1, "cannot be read"),
])
def test_what_is_wrong_is_told_with_its_line(source, line, told):
    with pytest.raises(Fault) as fault:
        render(source)
    assert fault.value.line == line
    assert told in fault.value.reason


@pytest.mark.parametrize("source", [
    "{{range 1000000}}{{range 1000000}}{{end}}{{end}}",
    '{{$x := "aaaaaaaaaa"}}{{range 100}}{{$x = print $x $x}}{{end}}',
    '{{range 100000}}{{repeat 1000000 "a"}}{{end}}',
    '{{repeat 100000000000 "a"}}',
    '{{$x := list 1}}{{range 60}}{{$x = list $x $x}}{{end}}{{$x}}',
    '{{$x := list 1}}{{range 60}}{{$x = list $x $x}}{{end}}{{toJson $x}}',
    '{{$x := list 1}}{{range 1000}}{{$x = list $x}}{{end}}{{$x}}',
    '{{$x := ""}}{{range 5000}}{{$x = printf "%s%s" $x $.Content}}{{end}}' * 20,
    '{{printf "%999d%999d%999d" 1 2 3 | replace "" "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" | replace "" "' + "b" * 9999
    + '"}}',
])
def test_a_rendering_is_bounded(source):
    began = time.process_time()
    with pytest.raises(Fault):
        render(source)
    assert time.process_time() - began < 20     # seconds, where it would be hours


@pytest.mark.parametrize("source", [
    "{{if .Yes}}" * 5000, "{{" + "(" * 5000 + ".Yes" + ")" * 5000 + "}}", "{{.A}}" * 30_000, "x" * (MAX_SOURCE + 1),
    "{{if .Yes}}" + "{{else if .Yes}}" * 3000 + "{{end}}"])
def test_a_template_is_bounded(source):
    with pytest.raises(Fault):
        Template(source)


def test_exceeding_is_told_apart():
    with pytest.raises(Exceeded, match="takes too long"):
        render("{{range 1000000}}{{end}}")


@pytest.mark.parametrize("name", ["__class__", "keys", "fields", "upper", "__init__"])
def test_nothing_of_python_can_be_reached(name):
    for start in ("", ".Content", ".Words", ".Functions", ".Count"):
        with pytest.raises(Fault):
            render("{{%s.%s}}" % (start, name))     # noqa: UP031
    assert render("{{.Map.%s}}" % name) == "<no value>"     # noqa: UP031


def test_texts_are_only_copied():
    """What a person wrote is never read as a template, and private characters come through."""
    text = "{{.Content}} }} \ue0f1\U000f0001 {{"
    assert render("[{{.Content}}] {{.Content | trim}}", Content=text) == f"[{text}] {text}"


@given(st.text(alphabet="{}-. \n$|()\"`/*ifrangelsdwth:=,x1", max_size=60))
def test_any_text_is_a_template_or_a_fault(source):
    try:
        render(source)
    except Fault as fault:
        assert fault.line >= 1 and "\n" not in fault.reason
