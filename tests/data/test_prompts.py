# SPDX-License-Identifier: Apache-2.0
"""One record to a sample: what is trained, what is cut, and tokens across the boundary of prompt and answer."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.data.tokenizers import Tokenizer
from nemo_launcher.families.gpt.prompts import GPTPromptEncoder
from nemo_launcher.families.gpt.samples import GPTSample
from tests.data.prompting import WordTokenizer, squad_template

pytestmark = pytest.mark.unit


def encode_prompt(
    record: dict[str, Any],
    template: TaskTemplate,
    tokenizer: Tokenizer,
    *,
    add_bos: bool,
    add_eos: bool,
    max_seq_length: int,
    for_train: bool,
    nemo_compat: bool,
) -> GPTSample | None:
    """Return the sample of one record, or None if it is too long and cannot be cut."""
    encoder = GPTPromptEncoder(
        tokenizer=tokenizer,
        add_bos=add_bos,
        add_eos=add_eos,
        max_seq_length=max_seq_length,
        for_train=for_train,
        nemo_compat=nemo_compat,
    )
    sample = encoder.encode(record, template)
    return sample if len(sample.input_ids) <= max_seq_length else None


class CharTokenizer(WordTokenizer):
    """Each character is a token, except that "ab" is one: the answer's start may merge with the prompt's end."""

    def text_to_ids(self, text: str) -> list[int]:
        return [self._id(piece.replace("\0", "ab")) for piece in text.replace("ab", "\0")]


class ByteTokenizer(WordTokenizer):
    """Each UTF-8 byte is a token, after the special tokens."""

    def text_to_ids(self, text: str) -> list[int]:
        return [byte + 4 for byte in text.encode()]

    def ids_to_text(self, ids: list[int]) -> str:
        return bytes(index - 4 for index in ids if index >= 4).decode(errors="replace")


def encoded(
    record: dict[str, Any],
    template: TaskTemplate,
    tokenizer: Tokenizer,
    *,
    add_bos: bool = False,
    add_eos: bool = True,
    max_seq_length: int = 100,
    for_train: bool = True,
    nemo_compat: bool = False,
) -> GPTSample:
    sample = encode_prompt(
        record,
        template,
        tokenizer,
        add_bos=add_bos,
        add_eos=add_eos,
        max_seq_length=max_seq_length,
        for_train=for_train,
        nemo_compat=nemo_compat,
    )
    assert sample is not None
    return sample


def test_the_answer_and_the_end_are_in_the_loss() -> None:
    tokenizer = WordTokenizer()
    record = {"context": "the old town", "answer": "of Warsaw"}
    sample = encoded(record, squad_template(), tokenizer, add_bos=True)
    assert tokenizer.ids_to_text(sample.input_ids) == "<s>c: the old town a: of Warsaw</s>"
    assert tokenizer.ids_to_text(sample.input_ids[sample.answer_start :]) == " of Warsaw</s>"
    assert sample.num_trained_tokens == 3
    assert sample.record is record
    everything = encoded(record, squad_template(answer_only_loss=False), tokenizer)
    assert everything.answer_start == 0
    assert everything.num_trained_tokens == len(everything.input_ids) - 1


def test_the_loss_begins_where_the_prompt_of_inference_ends() -> None:
    """The answer's tokens are not a suffix of the whole, because trailing spaces are removed."""
    tokenizer = WordTokenizer()
    record = {"context": "x", "answer": "yes  "}
    sample = encoded(record, squad_template(), tokenizer, add_bos=True)
    prompt = encoded(record, squad_template(), tokenizer, add_bos=True, add_eos=False, for_train=False)
    assert sample.input_ids[: sample.answer_start] == prompt.input_ids
    assert tokenizer.ids_to_text(sample.input_ids[sample.answer_start :]) == " yes</s>"


def test_a_token_across_the_boundary_is_in_the_loss() -> None:
    tokenizer = CharTokenizer()
    sample = encoded({"context": "x", "answer": "bc"}, squad_template("{context}a{answer}"), tokenizer, add_eos=False)
    assert tokenizer.ids_to_text(sample.input_ids[: sample.answer_start]) == "x"
    assert tokenizer.ids_to_text(sample.input_ids[sample.answer_start :]) == "abc"


def test_a_cut_prompt_keeps_its_special_tokens_and_uses_the_whole_budget() -> None:
    tokenizer = WordTokenizer()
    record = {"context": "one two three four five six", "answer": "of Warsaw"}
    template = squad_template(truncate_field="context")
    sample = encoded(record, template, tokenizer, add_bos=True, max_seq_length=9)
    assert tokenizer.ids_to_text(sample.input_ids) == "<s>c: one two three a: of Warsaw</s>"
    assert tokenizer.ids_to_text(sample.input_ids[sample.answer_start :]) == " of Warsaw</s>"
    assert record["context"] == "one two three four five six"
    compat = encoded(record, template, tokenizer, add_bos=True, max_seq_length=9, nemo_compat=True)
    assert tokenizer.ids_to_text(compat.input_ids) == "c: one two a: of Warsaw"
    assert tokenizer.ids_to_text(compat.input_ids[compat.answer_start :]) == " a: of Warsaw"


def test_a_cut_leaves_no_half_of_a_character() -> None:
    tokenizer = ByteTokenizer()
    record = {"context": "żółw żółw", "answer": "ż"}
    template = squad_template("{context} {answer}", truncate_field="context")
    for max_seq_length in range(6, 20):
        sample = encoded(record, template, tokenizer, max_seq_length=max_seq_length)
        text = tokenizer.ids_to_text(sample.input_ids)
        assert "\ufffd" not in text
        assert text.endswith(" ż")


@pytest.mark.parametrize("tokenizer", [WordTokenizer(), CharTokenizer()])
def test_random_prompts_fit_and_train_exactly_the_answer(tokenizer: WordTokenizer) -> None:
    draw = random.Random(0)
    for _ in range(300):
        context = " ".join(draw.choices(["a", "ab", "b", "abba", "x"], k=draw.randint(0, 30)))
        answer = " ".join(draw.choices(["a", "ab", "b"], k=draw.randint(1, 3)))
        options: dict[str, Any] = {"add_bos": draw.random() < 0.5, "add_eos": draw.random() < 0.5}
        sample = encode_prompt(
            {"context": context, "answer": answer},
            squad_template(truncate_field="context"),
            tokenizer,
            max_seq_length=draw.randint(20, 60),
            for_train=True,
            nemo_compat=False,
            **options,
        )
        assert sample is not None
        text = tokenizer.ids_to_text(sample.input_ids)
        assert text.startswith("<s>c:" if options["add_bos"] else "c:")
        trained = tokenizer.ids_to_text(sample.input_ids[sample.answer_start :])
        assert trained == f" {answer}{'</s>' if options['add_eos'] else ''}"


def test_what_cannot_be_cut_to_fit_is_no_sample() -> None:
    record = {"context": "one two", "answer": "a b c d e f"}
    options: dict[str, Any] = {"add_bos": False, "add_eos": True, "max_seq_length": 6, "for_train": True}
    for template in (squad_template(), squad_template(truncate_field="context")):
        for nemo_compat in (False, True):
            sample = encode_prompt(record, template, WordTokenizer(), nemo_compat=nemo_compat, **options)
            assert sample is None


def test_inference_never_sees_the_answer() -> None:
    tokenizer = WordTokenizer()
    options: dict[str, Any] = {"for_train": False, "add_eos": False}
    record = {"context": "x", "answer": "secret"}
    sample = encoded(record, squad_template(), tokenizer, **options)
    assert tokenizer.ids_to_text(sample.input_ids) == "c: x a:"
    assert sample.answer_start == 0
    compat = encoded(record, squad_template(), tokenizer, nemo_compat=True, **options)
    assert "secret" in tokenizer.ids_to_text(compat.input_ids)


def test_spaces_at_the_ends_of_a_prompt_go_and_line_breaks_stay() -> None:
    tokenizer = CharTokenizer()
    options: dict[str, Any] = {"for_train": False, "add_eos": False}
    for prompt, text in ((" {context}  {answer}", "x"), ("\n{context}\n{answer}", "\nx\n")):
        sample = encoded({"context": "x"}, squad_template(prompt), tokenizer, **options)
        assert tokenizer.ids_to_text(sample.input_ids) == text


def test_braces_inside_a_value_are_text() -> None:
    tokenizer = WordTokenizer()
    sample = encoded({"context": "{answer}", "answer": "yes"}, squad_template(), tokenizer)
    assert tokenizer.ids_to_text(sample.input_ids) == "c: {answer} a: yes</s>"
