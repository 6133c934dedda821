# SPDX-License-Identifier: Apache-2.0
"""Records of the kinds of data in benchmarks/workloads.py, made from real text with lengths in a model's tokens."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.records import SQUAD, Records, squad_records
from nemo_launcher.data.record_checks import record_problems
from nemo_launcher.data.records import read_records
from nemo_launcher.data.squad_format import read_questions
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError

LABELS = ("science", "history", "sport", "music", "politics", "business", "weather", "art")

_READ = 20  # records of a file for each one that is measured: some may be too long for the base


@dataclass(frozen=True, slots=True)
class Text:
    """A field of some workload's records."""

    low: int = 1
    """The smallest number of tokens."""
    high: int = 1
    """The largest number of tokens."""
    skew: int = 1
    """With 1, all lengths are equally likely; with more, short ones are more frequent."""
    shared: bool = False
    """Whether all records have the same text."""
    shots: int = 0
    """How many solved examples the text consists of; low and high then hold for each."""
    is_label: bool = False
    """Whether it is one of a few words instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One kind of data."""

    name: str
    """Its name in options and results."""
    kind: str
    """What it stands for."""
    template: str
    """The prompt, the answer's field last."""
    fields: Mapping[str, Text] = field(default_factory=dict)
    """The texts of its records by field; empty: questions of the SQuAD file."""
    records: int = 64
    """How many records it has, and the largest number that is taken from a file."""
    seed: int = 0
    """The seed of lengths and texts."""
    rounds: int = 1
    """How often each side runs over its records; the fastest round counts."""
    epochs: int = 1
    """How often a round runs over the records."""
    batch: int = 8
    """The peer's batch, and our micro_batch_size."""
    global_batch: int = 64
    """Our global_batch_size."""
    short: bool = False
    """Whether the base has only its first layers, as long records take long."""
    peer_records: int = 16
    """How many records the peer is measured on."""
    layout_records: int = 64
    """How many records our fixed layouts are compared on."""
    generation: bool = False
    """Whether prompts are answered greedily instead of trained on."""

    def task(self) -> TaskTemplate:
        """Return the template of its records."""
        if not self.fields:
            return SQUAD
        answer = list(self.fields)[-1]
        return TaskTemplate(
            taskname=self.name, prompt_template=self.template, answer_only_loss=True, answer_field=answer
        )


class Words:
    """Running text of a file in the SQuAD format, in pieces of a given number of tokens."""

    def __init__(self, squad: Path, tokenizer: Tokenizer, seed: int) -> None:
        contexts = dict.fromkeys(question.context for question in read_questions(squad))
        self._words = " ".join(contexts).split()
        self._tokenizer = tokenizer
        self.random = random.Random(seed)
        self._starts = self.random.sample(range(len(self._words)), len(self._words))

    def num_tokens(self, text: str) -> int:
        """Return the number of tokens of a text within a prompt."""
        return len(self._tokenizer.encode(f" {text}", add_special_tokens=False).ids)

    def piece(self, num_tokens: int) -> str:
        """Return whole words from a new place: as many as have at most `num_tokens` tokens, but at least one."""
        start = self._starts.pop() if self._starts else self.random.randrange(len(self._words))
        words: list[str] = []
        while len(words) < num_tokens:  # a word has at least one token
            words += self._words[start : start + num_tokens - len(words)]
            start = 0
        text = " ".join(words)
        spans = self._tokenizer.encode(text, add_special_tokens=False).offsets
        if len(spans) > num_tokens:
            end = spans[num_tokens][0]
            if " " not in text[end - 1 : end + 1]:  # inside a word
                end = text.rfind(" ", 0, end)
            text = text[: max(end, len(words[0]))]
        return text.strip()


def made_records(workload: Workload, squad: Path, tokenizer: Tokenizer) -> Records:
    """Return the records of a workload; tokenizer: of the base."""
    if not workload.fields:
        return squad_records(squad, workload.records)
    words = Words(squad, tokenizer, workload.seed)
    shared = {name: _text(text, words) for name, text in workload.fields.items() if text.shared}
    records = [
        {name: shared.get(name) or _text(text, words) for name, text in workload.fields.items()}
        for _ in range(workload.records)
    ]
    return Records(workload.task(), records)


def _text(text: Text, words: Words) -> str:
    if text.is_label:
        return words.random.choice(LABELS)
    if text.shots:
        return " ".join(_shot(words, _length(text, words)) for _ in range(text.shots))
    return words.piece(_length(text, words))


def _length(text: Text, words: Words) -> int:
    return round(text.low + (text.high - text.low) * words.random.random() ** text.skew)


def _shot(words: Words, num_tokens: int) -> str:
    """Return a solved example of classification."""
    label = words.random.choice(LABELS)
    frame = words.num_tokens(f"text: label: {label}")
    return f"text: {words.piece(num_tokens - frame)} label: {label}"


def records_of_file(workload: Workload, path: Path) -> Records:
    """Return the records of a user's file: JSON Lines with the fields of the workload, or SQuAD's format for SQuAD.

    Raises UserError if the file is unreadable, or for the first records that lack a field.
    """
    template = workload.task()
    if path.suffix == ".json" and template is SQUAD:
        return squad_records(path)
    problems: list[Problem] = []
    records = []
    for place, record in islice(read_records(path), _READ * workload.records):
        problems += record_problems(record, place, template.fields(), template.answer_field)
        records.append({name: str(record.get(name)) for name in template.fields()})
        if len(problems) >= 5:
            break
    if problems:
        raise UserError(problems[:5])
    return Records(template, records)
