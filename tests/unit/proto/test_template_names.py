"""What a template reads is found in its source, wherever it stands."""

from __future__ import annotations

import re

import jinja2
import pytest
from jinja2 import meta
from preceptor.template_names import names_in

from tests.unit.server.alignment.chat_templates import LLAMA3_1, MISTRAL, PLAIN, QWEN2_5, QWEN3


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("{% macro turn(m, n=d) %}{{ m.x }}{{ n }}{{ deep }}{{ varargs }}{% endmacro %}{{ turn(1) }}", {"d", "deep"}),
        ("{% for m in messages if m.a %}{{ loop.index }}{{ m }}{% break %}{% endfor %}{{ m }}", {"messages", "m"}),
        ("{% for m in [] %}{% set x = 1 %}{{ x }}{% else %}{{ y }}{% endfor %}{{ x }}", {"x", "y"}),
        ("{% generation %}{% set x = z %}{{ x }}{% endgeneration %}{{ x }}", {"x", "z"}),
        ("{% set x %}{{ y }}{% set z = 1 %}{% endset %}{{ x }}{{ z }}", {"y", "z"}),
        ("{% with x = y %}{{ x }}{% endwith %}{{ x }}", {"x", "y"}),
        ("{% set x = x | default(1) %}{{ x }}", {"x"}),
        ("{% if x is not defined %}{% set x = 1 %}{% endif %}{{ x }}", {"x"}),
        ("{% set ns = namespace(a=b) %}{% set ns.a = c %}{{ ns.a }}{{ range(3) }}{{ dict() }}", {"b", "c"}),
        ("{{ raise_exception('') if strftime_now is defined else x }}", {"x"}),
        ("{% set a, b = pair %}{{ a }}{{ b }}{% filter upper %}{{ c }}{% endfilter %}", {"pair", "c"}),
        ("{% macro f() %}{{ caller(1) }}{% endmacro %}{% call(v) f() %}{{ v }}{{ w }}{% endcall %}", {"w"}),
    ],
)
def test_variables_are_those_that_a_template_has_not_certainly_set(source: str, read: set[str]) -> None:
    assert names_in(source).variables == read


@pytest.mark.parametrize("template", [QWEN2_5, QWEN3, LLAMA3_1, MISTRAL, PLAIN])
def test_no_variable_is_found_that_jinja2_does_not_find(template: str) -> None:
    tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(
        re.sub(r"{%- (end)?generation %}", "", template)
    )
    assert {"messages", "add_generation_prompt"} & names_in(template).variables
    assert names_in(template).variables <= meta.find_undeclared_variables(tree)


@pytest.mark.parametrize("written", ["m.tool_calls", "m['tool_calls']", "m.get('tool_calls')", "'tool_calls' in m"])
def test_a_key_of_a_message_is_found_however_it_is_read(written: str) -> None:
    assert "tool_calls" in names_in("{% for m in messages %}{{ " + written + " }}{% endfor %}").keys
    assert "tool_calls" not in names_in("tool_calls {# m.tool_calls #}{{ m }}").keys


def test_a_text_that_is_no_template_is_told() -> None:
    with pytest.raises(jinja2.TemplateError):
        names_in("{% for %}")
