"""Chat templates of model files: rendered as transformers do, and harmless whatever they hold (row T4)."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import pytest

from services.chat import jinja
from services.errors import BadRequest, Unprocessable

SAID = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "  Bye <b>&amp; 'x'  "}]
CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""
LLAMA = """{{ bos_token }}{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate') }}
    {% endif %}
    {% if message.role == 'user' %}
{{ '[INST] ' ~ message.content.strip() ~ ' [/INST]' }}
    {% else %}{% generation %}{{ ' ' ~ message.content ~ eos_token }}{% endgeneration %}{% endif %}
{% endfor %}"""


def test_common_templates_come_out_as_written() -> None:
    assert jinja.render(CHATML, SAID) == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
                                          "<|im_start|>user\nBye <b>&amp; 'x'<|im_end|>\n<|im_start|>assistant\n")
    text = jinja.render(LLAMA, SAID, bos="<s>", eos="</s>")
    assert text == "<s>[INST] Hi [/INST]\n Hello</s>[INST] Bye <b>&amp; 'x' [/INST]\n"
    with pytest.raises(jinja.Raised, match="roles must alternate"):
        jinja.render(LLAMA, SAID[1:])


@pytest.mark.parametrize(("source", "text"), [
    ("{{ messages[0] | tojson }}", '{"role": "user", "content": "Hi"}'),
    ("{{ messages | map(attribute='role') | unique | join(',') }}", "user,assistant"),
    ("{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "3"),
    ("{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}", "Hi"),
    ("{{ (messages | selectattr('role', 'equalto', 'user') | list | last).content.split('<')[0] }}", "  Bye "),
    ("{{ 'a.b'.replace('.', '-') | upper }}{{ 'x' * 3 }}{{ 7 % 4 }}{{ 2 ** 3 }}", "A-Bxxx38"),
    ("{{ strftime_now('%Y') | length }}{{ tools is defined }}{{ nothing }}", "4False"),
    ("{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(messages[0].content) }}", "<Hi>"),
    ("{% set x %}{{ 'a' ~ 1 }}{% endset %}{{ x }}{{ 'ü€' | tojson }}{{ 'a\nb' | indent(2) }}", 'a1"ü€"a\n  b'),
    ("{{ messages[0].items() | list | length }}{{ {'b': 1, 'a': 2} | dictsort }}", "2[('a', 2), ('b', 1)]"),
    ("{% for m in messages %}{{ loop.previtem.role }}>{{ m.role }} {% endfor %}",
     ">user user>assistant assistant>user "),
    ("{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}x{% endcall %}{{ 'a b'.split()[-1] }}", "<x>b"),
    ("{{ [1, 2] | tojson(indent=2) }}{{ {'a': 1} | tojson(separators=(',', ':')) }}", '[\n  1,\n  2\n]{"a":1}'),
    ("{{ 'ü\ue0f1😀' | tojson(ensure_ascii=True) }}", '"\\u00fc\ue0f1\\ud83d\\ude00"'),
    ("{{ ['\ue0f1\\\\ue0f1', '\U000f0000\uffff\U00100000\\n'] }}",
     "['\ue0f1\\\\ue0f1', '\U000f0000\\uffff\U00100000\\n']"),
    ("{{ {'a': '\ue0f1'} | string }}{{ '' ~ ['\uf8ff'] }}{{ [['\ue000']] | join }}",
     "{'a': '\ue0f1'}['\uf8ff']['\ue000']"),
    ("{{ messages is iterable }}{{ messages[0] is mapping }}{{ messages[0].content is string }}", "TrueTrueTrue"),
    ("{% set ns = namespace(q=[]) %}{% for m in messages %}{% set _ = ns.q.append(m.role) %}{% endfor %}"
     "{{ ns.q.pop(0) }}{{ ns.q | length }}", "user2"),
    ("{{ '<{}|{}>'.format(1, 'b') }}{{ '{a}{{}}'.format(a=2) }}{{ [1, 2] | sum }}", "<1|b>2{}3"),
    ("{{ 'a' + nothing }}{{ none + 'b' }}{{ nothing.at.all }}{{ nothing | tojson }}", "abnull"),
    ("{% for m in messages %}{% set c = m.content.replace('H', 'h') %}{{ c.strip()[:2] }}{% endfor %}", "hiheBy"),
    ("{{ '{\n'|indent(2, first=true) }}{{ 'a\n\nb'|indent(1) }}{{ 'x' }}", "  {\na\n\n bx"),
])
def test_what_templates_use_works(source: str, text: str) -> None:
    assert jinja.render(source, SAID) == text


ESCAPES = [
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "{{ lipsum.__globals__['os'].popen('touch CANARY').read() }}",
    "{{ namespace.__init__.__globals__['__builtins__'].open('CANARY', 'w') }}",
    "{{ self.__init__.__globals__.__builtins__.open('CANARY', 'w') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__base__']['__subclasses__']() }}",
    "{{ (''|attr('__class__')).__base__ }}",
    "{{ messages | map(attribute='__class__.__init__.__globals__') | list | tojson }}",
    "{{ messages | map('attr', '__class__') | list }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "{{ '{0.__class__}'.format_map(messages[0]) }}",
    "{{ ['{0.__globals__}'] | map('format', raise_exception) | list }}",
    "{% set f = '{0.__globals__}'.format %}{{ f(strftime_now) }}",
    "{% set f = '{0.__globals__}'['format'] %}{{ f(strftime_now) }}",
    "{{ ['{0.__globals__}'] | map(attribute='format') | first }}",
    "{{ raise_exception.__globals__['os'].system('touch CANARY') }}",
    "{{ strftime_now.__code__.co_consts[0] }}",
    "{{ range.__self__.open('CANARY', 'w') }}",
    "{{ dict.mro()[1].__subclasses__() }}",
    "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "{{ loop.__init__.__globals__ }}",
    "{{ '{a.__class__}'.format(a=messages) }}", "{{ '{0!r}'.format(messages) }}", "{{ '{0[0]}'.format(messages) }}",
    "{{ messages.append({'role': 'system', 'content': 'x'}) }}", "{{ messages.pop() and '' }}",
    "{{ messages.clear() }}", "{{ messages.extend(messages) }}", "{{ messages[0].pop('role') }}",
    "{{ messages[0].update({'content': 'x'}) }}",
    "{% include 'CANARY' %}", "{% import '/etc/passwd' as p %}{{ p }}", "{% extends 'CANARY' %}",
    "{{ 'CANARY'.encode() }}", "{{ caller.__init__ }}", "{{ [].__class__.__init__.__globals__ }}",
    "{{ config.__class__.from_envvar('HOME') }}", "{{ request.application.__globals__ }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_template_gets_out(source: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    said = [dict(message) for message in SAID]
    try:
        text = jinja.render(source.replace("CANARY", str(canary)), said)
    except Unprocessable as error:
        assert error.code == "bad_template" and error.status == 422
    else:
        assert not any(word in text for word in ("builtins", "function", "<class", "module", "/bin/")), text
    assert not canary.exists() and said == SAID


BOMBS = [
    "{{ range(10**9) | list }}", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for a in range(99999) if a > range(99999) | list | length %}{% endfor %}",
    "{{ 'a' * 10**9 }}", "{{ 10**9 * [1] }}", "{{ 9**9**9**9 }}", "{{ '%1000000000d' % 1 }}",
    "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "{{ 'x'.center(10**9) }}", "{{ 'x'.ljust(10**9) }}", "{{ 'x' | center(10**9) }}", "{{ 1 .to_bytes(10**9, 'big') }}",
    "{{ '{:>1000000000}'.format(1) }}", "{{ '\t'.expandtabs(10**9) }}", "{{ lipsum(99999) }}",
    "{% set n = namespace(a='aa') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}{{ n.a }}",
    "{% set n = namespace(a='aa') %}{% for i in range(99) %}{% set n.a = n.a + n.a %}{% endfor %}{{ n.a }}",
    "{% set n = namespace(a='aa') %}{% for i in range(99) %}{% set n.a = n.a.replace('a', 'aa') %}{% endfor %}",
    "{% set n = namespace(a='aa') %}{% for i in range(99) %}{% set n.a = n.a | replace('a', 'aa') %}{% endfor %}",
    "{% set n = namespace(a='aa') %}{% for i in range(99) %}{% set x %}{{ n.a }}{{ n.a }}{% endset %}"
    "{% set n.a = x %}{% endfor %}",
    "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}"
    "{% endfor %}{{ n.a == n.b }}",
    "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a }}",
    "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a | tojson }}",
    "{% set n = namespace(a=(1,)) %}{% for i in range(60) %}{% set n.a = (n.a, n.a) %}{% endfor %}{{ {n.a: 1} }}",
    "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n }}",
    "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n ~ 'x' }}",
    "{% set n = namespace(l=[]) %}{% set b = 'x' * 999999 %}{% for i in range(99999) %}{% set n.l = [n.l, b[i:]] %}"
    "{% endfor %}",
    "{{ range(99999) | map('string') | join('z' * 999999) }}", "{{ ('z' * 999999).join(range(99) | map('string')) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{% if 1 %}" * 300 + "{% endif %}" * 300, "{{ 1" + " + 1" * 5000 + " }}", "x" * (jinja.MAX_SOURCE + 1),
    "{% set x %}{% for i in range(99999) %}" + "y" * 99999 + "{% endfor %}{% endset %}",
    "{% set l = [1] %}{% for i in l %}{% set _ = l.append(i) %}{% endfor %}",
    "{% set l = [1] %}{% for i in range(99) %}{% set _ = l.append(l) %}{% endfor %}{{ l | tojson }}",
    "{{ ('{0}' * 9999).format('x' * 999999) }}", "{{ [[1], [2]] | sum(start=[]) }}",
    "{% for m in messages %}", "{{ no such thing }}", "{% nothing %}", "{{ 1 / 0 }}", "{{ undefined() }}",
    "{{ [1, 2] | tojson(separators=('x' * 999999, 'y' * 999999), indent=10**9) * 9 }}",
]


@pytest.mark.parametrize("source", BOMBS, ids=range(len(BOMBS)))
def test_no_template_runs_for_ever_or_fills_the_memory(source: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        jinja.render(source, SAID)
    assert caught.value.code == "bad_template" and "\n" not in caught.value.message
    assert len(caught.value.message) < 500


def test_a_stopped_template_leaves_the_thread_as_it_was() -> None:
    before = sys.gettrace()
    for source in (BOMBS[1], CHATML):
        try:
            jinja.render(source, SAID)
        except Unprocessable:
            pass
        assert sys.gettrace() is before
    assert jinja.render(CHATML, SAID)


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: dict[str, object] = {}
    for _ in range(200):
        deep = {"a": deep}
    with pytest.raises(BadRequest, match="deeper than 100"):
        jinja.render(CHATML, SAID, tools=[deep])


def test_the_time_is_told_as_llama_cpp_tells_it() -> None:
    date = datetime.datetime(2026, 2, 3, 4, 5)
    source = "{{ strftime_now('%H:%M') }} {{ date_string }} {{ datetime }} {{ tools is defined }} {{ enable_thinking }}"
    assert jinja.render(source, SAID, date=date) == "04:05 03 Feb 2026 Feb 03 2026 False "
    assert jinja.render(source, SAID, date=date, tools=[{}], thinking=False, date_string="x").endswith(
        "x Feb 03 2026 True False")


def test_long_conversations_are_no_bombs() -> None:
    said = [{"role": "user", "content": "word " * 20_000}, {"role": "assistant", "content": "x" * 100_000}] * 10
    assert len(jinja.render(CHATML, said)) > 1_900_000
