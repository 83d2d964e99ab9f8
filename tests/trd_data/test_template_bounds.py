"""Chat templates that loop or explode fail soon, and in little memory."""

from __future__ import annotations

import resource
import time

import pytest

from trd_data.chat_template import ChatTemplate
from trd_data.errors import PromptError

MANY = "range(100000)"
GROW = "{%% set n = namespace(s=%s) %%}{%% for i in range(60) %%}%s{%% endfor %%}%s"

LOOPS = {
    "nested loops": f"{{% for a in {MANY} %}}{{% for b in {MANY} %}}{{% endfor %}}{{% endfor %}}",
    "loops that choose nothing": f"{{% for a in {MANY} %}}{{% for b in {MANY} if false %}}{{% endfor %}}{{% endfor %}}",
    "a loop over a generator": "{% for a in messages|map(attribute='role') %}{% for b in range(100000) %}"
    "{% for c in range(100000) %}{% endfor %}{% endfor %}{% endfor %}",
    "a loop that writes much": f"{{% for a in {MANY} %}}{{{{ 'x' * 100000 }}}}{{% endfor %}}",
    "lists in a loop": f"{{% for a in {MANY} %}}{{{{ {MANY} | list | length }}}}{{% endfor %}}",
    "a search in a loop": f"{{% set b = 'x' * 4000000 %}}{{% for a in {MANY} %}}{{% if 'y' in b %}}{{% endif %}}"
    "{% endfor %}",
    "a comparison in a loop": "{% set b = 'x' * 2000000 %}{% set c = 'x' * 2000000 %}"
    f"{{% for a in {MANY} %}}{{% if b == c %}}{{% endif %}}{{% endfor %}}",
    "copies in a loop": f"{{% set b = 'x' * 4000000 %}}{{% for a in {MANY} %}}{{% set c = b[::-1] %}}{{% endfor %}}",
    "a recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "a recursive macro": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "call blocks": "{% macro w() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call w() %}" * 40
    + "x"
    + "{% endcall %}" * 40,
}
EXPLOSIONS = {
    "doubling by ~": GROW % ("'x'", "{% set n.s = n.s ~ n.s %}", "{{ n.s }}"),
    "doubling by +": GROW % ("'x'", "{% set n.s = n.s + n.s %}", "{{ n.s }}"),
    "doubling by a block": GROW % ("'x'", "{% set t %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = t %}", ""),
    "doubling a list": GROW % ("[1]", "{% set n.s = [n.s, n.s] %}", "{{ n.s }}"),
    "doubling a list, as JSON": GROW % ("[1]", "{% set n.s = [n.s, n.s] %}", "{{ n.s | tojson }}"),
    "squaring by replace": GROW % ("'aa'", "{% set n.s = n.s.replace('a', n.s) %}", ""),
    "squaring by a filter": GROW % ("'aa'", "{% set n.s = n.s | replace('a', n.s) %}", ""),
    "squaring a number": GROW % ("9", "{% set n.s = n.s * n.s %}", ""),
    "a product": "{{ 'x' * 10000000000 }}",
    "a product of a list": "{{ [0] * 10000000000 }}",
    "a power": "{{ 9 ** 999999999 }}",
    "a width": "{{ 'x' | center(10000000000) }}{{ 'x'.ljust(10000000000) }}",
    "a width in a format": "{{ '{:9999999999}'.format('x') }}",
    "a width that is formatted": "{{ '{:{}}'.format('x', 9999999) }}",
    "a width after %": "{{ '%9999999999s' % 'x' }}",
    "a computed width after %": "{{ '%*s' % (9999999, 'x') }}",
    "a width in a filter": "{{ '%9999999999s' | format('x') }}",
    "a long separator": "{{ range(100000) | join('x' * 100000) }}",
    "a deep indent": "{{ [[1]] | tojson(indent=100000000) }}{{ 'a\n' | indent(1000000000) }}",
    "wide tabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "a table of characters": "{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}",
}
BROKEN = {
    "many brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "many blocks": "{% if true %}" * 500 + "{% endif %}" * 500,
    "a long source": "x" * 1_000_000,
    "a wrong type": "{{ none + 'x' }}",
    "a division by zero": "{{ 1 / 0 }}",
    "a missing item": "{{ messages[7].content.x }}",
    "a file": "{% include '/etc/passwd' %}",
    "too few values": "{% set a, b = 1 %}",
    "lipsum": "{{ lipsum(100000) }}",
}


@pytest.mark.parametrize("source", [*LOOPS.values(), *EXPLOSIONS.values()], ids=[*LOOPS, *EXPLOSIONS])
def test_a_template_that_loops_or_explodes_fails_soon(source: str) -> None:
    before, started_at = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    with pytest.raises(PromptError, match="the model's chat template fails: "):
        ChatTemplate(source, {}).render("hello")
    assert time.process_time() - started_at < 8, "a second or two, on a slow machine too"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss < 400_000, "kB"


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
def test_whatever_a_template_raises_is_a_refusal(source: str) -> None:
    with pytest.raises(PromptError, match=r"the model's chat template (fails|cannot be read): "):
        ChatTemplate(source, {}).render("hello")


def test_long_messages_have_room() -> None:
    source = (
        "{% for m in messages %}{% if '</think>' in m.content %}{% set c = m.content.split('</think>')[-1] %}"
        "{% else %}{% set c = m.content | trim %}{% endif %}{{ '<' ~ m.role ~ '>' + c.replace('  ', ' ') }}{% endfor %}"
    )
    text = "a word " * 140_000
    assert ChatTemplate(source, {}).render(text) == "<user>" + text.strip()
    assert ChatTemplate(source, {}).render(f"x</think>{text}") == "<user>" + text


def test_each_rendering_has_a_budget_of_its_own() -> None:
    template = ChatTemplate("{% for i in range(20000) %}{{ i }}{% endfor %}", {})
    for _ in range(4):
        assert template.render("x").endswith("19999")
