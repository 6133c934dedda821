# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data.jinja_limits import MAX_CHARACTERS
from nemo_launcher.data.jinja_text import names_in, render
from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import UserError
from tests.caches import gpt_encoder, t5_encoder

pytestmark = pytest.mark.unit

CHOICES = (
    "Question: {{ question }}\n{% for choice in choices %}{{ loop.index }}. {{ choice }}\n{% endfor %}"
    "Answer: {{ answer }}"
)
RECORD = {"taskname": "mine", "question": "Which {{ answer }}?", "choices": ["a", "b"], "answer": "b", "id": 7}
TEXT = "Question: Which {{ answer }}?\n1. a\n2. b\nAnswer: "


def _template(text: str = CHOICES, **changes: Any) -> TaskTemplate:
    entry = {"taskname": "mine", "prompt_template": text, "template_format": "jinja", "answer_field": "answer"}
    return TaskTemplate.from_config(entry | {"answer_only_loss": True} | changes)


def _data(folder: Path, record: dict[str, Any]) -> str:
    (folder / "a.jsonl").write_text(json.dumps(record) + "\n")
    return str(folder / "a.jsonl")


def test_a_template_loops_over_lists_and_learns_the_answer(tmp_path: Path) -> None:
    encoder = gpt_encoder(max_seq_length=1000, add_bos=False, add_eos=False)
    (sample,) = encode_files([_data(tmp_path, RECORD)], [_template()], encoder)
    assert encoder.tokenizer.ids_to_text(sample.input_ids) == f"{TEXT}b"
    assert encoder.tokenizer.ids_to_text(sample.input_ids[sample.answer_start :]) in ("b", " b")


def test_a_t5_gets_the_prompt_without_the_answer(tmp_path: Path) -> None:
    encoder = t5_encoder(add_sentinel_to_input=False, add_eos=False, max_seq_length=1000)
    (sample,) = encode_files([_data(tmp_path, RECORD)], [_template()], encoder)
    assert encoder.tokenizer.ids_to_text(sample.input_ids).strip() == TEXT.strip()


def test_the_fields_of_a_template_are_what_it_reads_from_a_record() -> None:
    assert _template().fields() == ["question", "choices", "answer"]
    assert _template().prompt_fields() == ["question", "choices"]
    assert names_in("{% set x = a %}{% for b in range(2) %}{{ x }}{{ c.d }}{% endfor %}", "") == ["a", "c"]


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    data = _data(tmp_path, {name: value for name, value in RECORD.items() if name != "choices"})
    with pytest.raises(UserError, match="no field 'choices'"):
        encode_files([data], [_template()], gpt_encoder())


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("{{ question }}\n{% for x in y %}\n{{ answer }}", "prompt_template", "line 3 of the template: Unexpected end"),
        ("{{ answer }} of {{ question }}", "prompt_template", "must end with {{ answer }}"),
        ("{% if answer %}x{% endif %}{{ answer }}", "prompt_template", "must end with {{ answer }}"),
        ("no names", "prompt_template", "has no {field}"),
        ("{{ question }}", "answer_field", "'answer' is not a field"),
        ("{% set ns.__x = 1 %}{{ answer }}", "prompt_template", "line 1 of the template"),
    ],
)
def test_a_mistake_in_a_template_is_named_with_its_line(text: str, where: str, what: str) -> None:
    with pytest.raises(UserError) as error:
        _template(text)
    assert any(str(p.where).endswith(where) and what in p.what for p in error.value.problems), error.value.problems


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a\n{{ ''.__class__.__mro__ }}", "line 2 of the template: access to attribute '__class__'"),
        ("{{ x.append(1) }}", "access to attribute 'append'"),
        ("{{ x.absent }}", "has no attribute 'absent'"),
        ("{{ 'x' * 999999999 }}", "a text or list has more than"),
        ("{{ 9 ** 999999999 }}", "a number has more than 100,000 bits"),
        ("{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}", "range has more than 100,000"),
        ("{% for a in range(99) %}{{ 'x' * 1000000 }}{% endfor %}", f"more than {MAX_CHARACTERS:,} characters"),
        ("{{ namespace(_a=1) }}", "do not start with _"),
        ("{{ 1 / 0 }}", "line 1 of the template: division by zero"),
    ],
)
def test_the_sandbox_refuses_with_the_line(text: str, what: str) -> None:
    with pytest.raises(UserError) as error:
        render(text, {"x": [1]}, "here")
    assert what in error.value.problems[0].what
    assert error.value.problems[0].where == "here"


_GROWS = "{% set ns = namespace(x='ab', n=10**9) %}{% for i in range(60) %}{% set ns.GROWN %}{% endfor %}"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (_GROWS.replace("GROWN", "x = ns.x ~ ns.x"), "a text or list has more than"),
        (_GROWS.replace("GROWN", "x = ns.x + ns.x"), "a text or list has more than"),
        (_GROWS.replace("GROWN", "x = [ns.x, ns.x]|join"), "a text or list has more than"),
        (_GROWS.replace("GROWN", "n = ns.n * ns.n"), "a number has more than"),
        ("{{ '%100000000d' % 1 }}", "a width in a format"),
        ("{{ '%100000000d'|format(1) }}", "a width in a format"),
        ("{{ '{:>{}}'.format(1, 10**8) }}", "a width in a format"),
        ("{{ 'a'.ljust(10**8) }}", "ljust is not provided"),
        ("{{ 'a'|center(10**8) }}", "No filter named 'center'"),
        ("{{ ('a' * 10000).join(range(5000)|map('string')) }}", "a text or list has more than"),
        ("{{ ('a' * 10000)|replace('a', 'b' * 10000) }}", "a text or list has more than"),
        ("{{ ('a' * 10000).replace('a', 'b' * 10000) }}", "a text or list has more than"),
        ("{% set l = range(999) %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}", "takes more than"),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
            "takes more than",
        ),
        ("{{ x|random }}", "No filter named 'random'"),
        ("{% for i in range(300) %}{% set y = big[1:] %}{% endfor %}", "takes more than"),
        ("{% for i in range(300) %}{% if big[1:] == big[1:] %}{% endif %}{% endfor %}", "takes more than"),
        ("{% if lists == lists %}{% endif %}", "takes more than"),
        ("{% if big is in lists %}{% endif %}", "takes more than"),
        ("{% if lists.index(big) %}{% endif %}", "takes more than"),
        ("{% for i in range(90) %}" + "{{ big and 1 }}" * 6400 + "{% endfor %}", "takes more than"),
        (
            "{% macro m() %}{% for i in range(9999) %}{{ z }}{% endfor %}{% endmacro %}{{ m() }}",
            "takes more than",
        ),
    ],
)
def test_time_and_memory_are_limited(text: str, what: str) -> None:
    values = {"x": [1], "big": "a" * 2**22, "lists": [["a" * 2**20] * 1000] * 1000, "z": [1234567] * 10_000}
    with pytest.raises(UserError) as error:
        render(text, values, "here")
    assert what in error.value.problems[0].what


LONG = "a text or list has more than 16,777,216 characters"
BIG = "{% set x = 'a' * 10000000 %}{% set y = [x] * 1000 %}"


@pytest.mark.parametrize(
    "text",
    [
        "{% set z %}{% for i in range(1000) %}{{ x }}{% endfor %}{% endset %}",
        "{% macro m() %}{% for i in range(1000) %}{{ x }}{% endfor %}{% endmacro %}{{ m()|length }}",
        "{% filter length %}{% for i in range(1000) %}{{ x }}{% endfor %}{% endfilter %}",
        "{% macro m() %}{{ caller()|length }}{% endmacro %}{% call m() %}{{ x }}{{ x }}{% endcall %}",
        "{% generation %}{{ x }}{{ x }}{% endgeneration %}",
        "{{ y }}",
        "{{ [y, [y] * 1000] }}",
        "{{ (y ~ 'a')|length }}",
        *(f"{{{{ (y|{name})|length }}}}" for name in ("string", "upper", "tojson", "replace('a', 'b')", "trim", "e")),
        "{{ ([y]|join)|length }}",
        "{{ ''.join([y])|length }}",
        "{{ ('%s' % [y])|length }}",
        "{{ ('%s'|format(y))|length }}",
        "{{ '{}'.format(y)|length }}",
        "{{ [namespace(x=x)] * 1000 }}",
        "{{ dict(a=y).items()|string|length }}",
        "{{ dict(a=y).values() ~ '' }}",
        "{{ ('a\n' * 5000000)|indent(100) }}",
    ],
)
def test_no_text_is_made_that_is_too_long(text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            render(BIG + text, {}, "here")
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert LONG in error.value.problems[0].what


def test_a_long_conversation_is_well_within_the_limits() -> None:
    text = (
        "{% macro shown(message) %}{{ message.role }}: {{ message.content|trim }}{% endmacro %}"
        "{% set ns = namespace(seen=[]) %}{% for message in messages %}"
        "{% if message.content is string and message.role in ['user', 'assistant'] and messages is defined %}"
        "{{ shown(message) }}{% set ns.seen = ns.seen + [message] %}{% endif %}"
        "{% if loop.index0 == messages|length - 1 %}{{ messages[-1].content == message.content }}{% endif %}"
        "{% endfor %}{{ ns.seen|length }}"
    )
    messages = [{"role": "user" if i % 2 else "assistant", "content": "word " * 100} for i in range(2000)]
    assert render(text, {"messages": messages}, "here").endswith("True2000")


def test_the_limits_leave_results_as_jinja_makes_them() -> None:
    text = (
        "{% for a in x %}{{ loop.index }}/{{ loop.length }}{{ '' if loop.last else ', ' }}{% endfor %}"
        "{% for k, v in d.items() %} {{ k ~ 1 ~ v }}{% else %}none{% endfor %} {{ d|tojson(indent=2)|length }}"
        " {{ '%s-%05.1f' % ('a', 2) }} {{ '{} {:>3}'.format(1, 2) }} {{ x|join('+') }}"
        " {{ 'a-b'|replace('-', '+') }} {{ '%s!'|format('a') }} {{ x|sum }}"
    )
    made = render(text, {"x": [1, 2], "d": {"k": "v"}}, "here")
    assert made == "1/2, 2/2 k1v 14 a-002.0 1   2 1+2 a+b a! 3"


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UserError, match="fields or jinja or chat"):
        _template(template_format="jinja2")
