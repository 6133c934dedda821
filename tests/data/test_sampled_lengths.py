# SPDX-License-Identifier: Apache-2.0
"""Lengths of samples for the estimate at launch, without torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.data.prefix_tree import prefix_trees
from nemo_launcher.data.prompt_encoder import PromptSettings
from nemo_launcher.data.sampled_lengths import sampled_lengths
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.data.token_counts import about_tokens, chat_of, token_counter
from nemo_launcher.data.tokenizers import load_tokenizer
from nemo_launcher.families.base import load_base
from tests.archives import write_folder_base
from tests.engine import TEMPLATE, squad_records, write_jsonl

pytestmark = pytest.mark.unit
SQUAD = TaskTemplate(taskname="squad", prompt_template=TEMPLATE, answer_only_loss=True, answer_field="answer")


def test_lengths_are_those_of_the_tokens(tiny_base: Path, tmp_path: Path) -> None:
    records = squad_records(32)
    path = write_jsonl(tmp_path / "train.jsonl", records)
    with Archive(tiny_base) as archive:
        count, tokenizer = token_counter(archive), load_tokenizer(archive)
    ids = [tokenizer.text_to_ids(TEMPLATE.format(**record)) for record in records]
    found = sampled_lengths([path], [SQUAD], count, limit=1000, answer_apart=False)
    assert found is not None
    assert found.longest == max(map(len, ids))
    assert found.mean == sum(map(len, ids)) / 32
    trees = [tree.num_tokens() for tree in prefix_trees(ids)]
    assert found.own == pytest.approx(sum(trees) / 32, rel=0.15)
    assert found.tree == pytest.approx(max(trees), rel=0.25)
    shorter = sampled_lengths([path], [SQUAD], count, limit=20, answer_apart=False)
    assert shorter is not None
    assert shorter.longest == 20


def test_answer_choices_count_where_the_loss_compares_them(tiny_base: Path, tmp_path: Path) -> None:
    choices = ["the river", "an old town", "a high hill"]
    records = [record | {"answer": choices[n % 3], "choices": choices} for n, record in enumerate(squad_records(32))]
    path = write_jsonl(tmp_path / "train.jsonl", [*records, {**records[0], "choices": None}])
    template = dataclasses.replace(SQUAD, choices_field="choices")
    base = load_base(tiny_base)
    encoder = base.family.prompt_encoder(base.tokenizer, base.shape, PromptSettings.read({}), with_choices=True)
    samples = [encoder.encode(dict(record), template) for record in records]
    with Archive(tiny_base) as archive:
        count = token_counter(archive)
    options = {"limit": 1000, "answer_apart": False}
    found = sampled_lengths([path], [template], count, **options, with_choices=True)
    alone = sampled_lengths([path], [template], count, **options)
    assert found is not None
    assert alone is not None
    inputs = sum(sample.num_input_tokens for sample in samples) / 32
    learnt = sum(sample.num_trained_tokens + sample.num_wrong_tokens for sample in samples) / 32
    assert found.mean == pytest.approx(inputs, rel=0.1)
    assert found.answer == pytest.approx(learnt, rel=0.25)  # without the end-of-text token of each choice
    assert found.answer > 2 * alone.answer


def test_lines_with_mistakes_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"taskname": "squad"\n[]\n{"taskname": "other"}\n\n')
    assert sampled_lengths([path], [SQUAD], len, limit=100, answer_apart=False) is None
    assert sampled_lengths([tmp_path / "no.jsonl"], [SQUAD], len, limit=100, answer_apart=False) is None


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("four letters", 3), ("中文字", 3), ("a中", 2)])
def test_tokens_without_a_tokenizer(text: str, tokens: int) -> None:
    assert about_tokens(text) == tokens


def test_conversations_count_with_the_chat_template_of_the_base(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}{{ bos_token }}assistant: {% endif %}"
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    base = write_folder_base(tmp_path / "base.nemo", chat_template=template, **names)
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "sport"}]
    path = write_jsonl(tmp_path / "train.jsonl", [{"messages": turns}])
    chats = TaskTemplate(taskname="messages", prompt_template="", template_format="chat", answer_only_loss=True)
    with Archive(base) as archive:
        chat = chat_of(archive)
    lengths = [
        sampled_lengths([path], [chats], len, limit=1000, answer_apart=False, chat=each) for each in (chat, None)
    ]
    assert [(found.longest, found.answer) for found in lengths if found is not None] == [
        (len("<s>user: What is it?</s>\n<s>assistant: sport</s>\n"), len("sport</s>")),
        (len("What is it?\nsport"), len("sport")),
    ]


def test_a_base_may_have_no_chat_template(tmp_path: Path, tiny_base: Path) -> None:
    with Archive(write_folder_base(tmp_path / "base.nemo")) as without, Archive(tiny_base) as other_kind:
        assert chat_of(without) is None
        assert chat_of(other_kind) is None
