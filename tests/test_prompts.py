"""Texts are the design's, whatever stands in the data; templates can neither leave their texts nor run away."""

import logging
from pathlib import Path

import naive
import pandas as pd
import pytest
import yaml

from icprobe.attribution import METHODS
from icprobe.config import Templates, load
from icprobe.errors import ConfigError
from icprobe.tables.unread import tell_of_inputs
from icprobe.texts.prompts import Prompts, encode, flat, token_ids

CONFIG = yaml.safe_load((Path(__file__).parents[1] / "config.yaml").read_text(encoding="utf-8"))
ROW = {"instruction": " Add\tthe\n numbers ", "input": "1\u00a02", "output": "three\r\n(3) "}
TASK = {"instruction": "Name it", "input": None, "output": "x"}


def with_query(template):
    return Prompts({**Templates().model_dump(), "query": template})


def test_the_default_texts_are_those_of_the_definitions(prompts):
    for row in (ROW, TASK, {**ROW, "input": " \n"}, {**ROW, "input": float("nan")}):
        expected = {**row, "input": "" if row["input"] != row["input"] else row["input"]}
        assert prompts.query(row) == naive.query(expected)
        assert prompts.target(row) == naive.target(expected)
        assert prompts.document(row) == naive.query(expected) + naive.target(expected)
    assert prompts.query(ROW) == "Instruction: Add the numbers Input: 1 2 Response:"
    assert prompts.one_shot(ROW, TASK) == (
        "These examples may be helpful to answer the question\n\n\n"
        "Instruction: Add the numbers Input: 1 2 Response: three (3)\n\nInstruction: Name it Response:"
    )


def test_a_one_shot_context_is_prefix_separator_query(prompts):
    assert prompts.one_shot(ROW, TASK) == prompts.one_shot_prefix(ROW) + prompts.separator + prompts.query(TASK)


@pytest.mark.parametrize(
    "text", ["{{ 7 * 7 }}", "{% for x in y %}", "{# gone #}", "{{ ''.__class__ }}", "{%- raw -%}", "# line", "<b>&amp;"]
)
def test_template_syntax_in_data_stays_literal(text, prompts):
    row = {"instruction": text, "input": text, "output": text}
    assert prompts.query(row) == f"Instruction: {text} Input: {text} Response:"
    assert prompts.target(row) == f" {text}"
    assert text in prompts.one_shot_prefix(row)


@pytest.mark.parametrize(
    "template",
    [
        "{{ instruction.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ instruction|attr('__class__') }}",
        "{{ instruction['__class__'] }}",
        "{{ '{0.__class__}'.format(instruction) }}",
        "{{ instruction.format_map({}) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ flat.__globals__ }}",
        "{{ ''.join.__self__.__class__ }}",
        "{% for x in [] %}{% else %}{{ loop.__class__ }}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{% set x = namespace() %}",
        "{% macro a() %}{{ a() }}{{ a() }}{% endmacro %}{{ a() }}",
    ],
)
def test_a_template_cannot_leave_its_texts(template):
    with pytest.raises(ConfigError, match=r"config: templates\.query: ") as caught:
        print(with_query(template).query(ROW))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "template",
    [
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ 'a' * 99999999999 }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ 'a'.center(99999999999) }}",
        "{{ 'a'|center(99999999999) }}",
        "{{ '{:99999999999}'.format(1) }}",
        "{% for i in range(99999999) %}x{% endfor %}",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        "{{ " + "9" * 5000 + " }}",
        "{% if a %}" * 200 + "{% endif %}" * 200,
        "{{ 1 / 0 }}",
        "{{ unknown }}",
        "{{ instruction | nofilter }}",
        "{{ instruction",
        "{% endfor %}",
        "{{ output }}",
    ],
)
def test_a_template_that_fails_or_would_run_away_is_one_sentence(template):
    with pytest.raises(ConfigError, match=r"config: templates\.query: "):
        with_query(template).query(ROW)


def test_templates_may_use_text_methods_filters_and_loops():
    template = "{% for w in instruction.split() %}{{ loop.index }}{{ w.upper() | replace('A', 'b') }}{% endfor %}"
    assert with_query(template).query(ROW) == "1bDD2THE3NUMBERS"
    assert (
        with_query("{{ input | default('none', true) | trim }}|{{ '' if 1 + 1 > 2 else 'x' }}").query(TASK) == "none|x"
    )


def test_flat_is_idempotent_and_leaves_no_white_space_but_single_spaces():
    text = "\x1c a \u2003b\u0085\u2028c\t\n "
    assert flat(text) == "a b c"
    assert flat(flat(text)) == flat(text)
    assert flat(None) == flat(float("nan")) == ""


def test_encoded_ids_are_those_of_the_joint_text_split_at_the_context(tokenizer):
    encoded = encode(tokenizer, "Instruction: Add", " three and more")
    assert list(encoded.ids) == tokenizer("Instruction: Add three and more", add_special_tokens=False)["input_ids"]
    assert encoded.n_context == len(token_ids(tokenizer, "Instruction: Add"))
    assert encoded.n_context + encoded.n_target == len(encoded.ids)


def test_a_target_begins_with_the_token_that_has_its_first_letter():
    """Without a pre-tokenizer one token may have the query's last letter and the target's first."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: number for number, letter in enumerate([*"Respon: ", ": "])}
    words = Tokenizer(models.BPE(vocabulary, [(":", " ")]))
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    encoded = encode(tokenizer, "Response:", " no")
    pieces = tokenizer.convert_ids_to_tokens(list(encoded.ids))
    assert pieces[encoded.n_context :] == [": ", "n", "o"]
    assert encode(tokenizer, "Response", ": no").n_context == len("Response")
    assert encode(tokenizer, ":", " no").n_context == 1, "what is predicted has something before it"


@pytest.mark.parametrize(
    ("name", "template", "said"),
    [
        ("query", "Instruction: {instruction} Response:", "{{ instruction }} or {{ input }}"),
        ("query", "{# {{ instruction }} #}{{ 'input' }}", "{{ instruction }} or {{ input }}"),
        ("target", " {output}", "{{ output }}"),
        ("one_shot_prefix", "Example: {document}", "{{ document }}"),
    ],
)
def test_a_template_without_its_text_is_refused_before_any_job(name, template, said):
    with pytest.raises(ConfigError) as caught:
        load(CONFIG | {"templates": {name: template}}, METHODS)
    assert f"templates: {name}: without {said} in it all rows would read alike" in str(caught.value)


def test_a_template_that_does_not_parse_is_refused_before_any_job():
    with pytest.raises(ConfigError, match=r"^config: templates: query: unexpected '}'"):
        load(CONFIG | {"templates": {"query": "{{ instruction }"}}, METHODS)


def test_templates_that_use_their_texts_otherwise_are_taken():
    for query in ("{{ input | flat }}", "{% if instruction %}{{ instruction.strip() | upper }}{% endif %}"):
        load(CONFIG | {"templates": {"query": query, "target": "{% set said = output %}{{ said }}"}}, METHODS)


def test_inputs_that_the_query_leaves_out_are_told(caplog):
    rows = pd.DataFrame({"instruction": ["a", "b", "c"], "input": ["x", " ", ""]})
    with caplog.at_level(logging.WARNING):
        for template in ("{{ instruction }} {{ input | flat }}", Templates().query):
            tell_of_inputs(rows, {"query": template, "format": "jinja"}, "examples")
        tell_of_inputs(rows, {"query": "{{ instruction }}", "format": "chat"}, "examples")
        tell_of_inputs(rows[1:], {"query": "{{ instruction }}", "format": "jinja"}, "examples")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        tell_of_inputs(rows, {"query": "{{ instruction }}", "format": "jinja"}, "examples")
    assert [r.getMessage() for r in caplog.records] == [
        "templates.query does not use input, which 1 of 3 examples have"
    ]
