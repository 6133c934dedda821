# SPDX-License-Identifier: Apache-2.0
"""The records of the workloads have the lengths and the common prefixes that the table promises."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from benchmarks.batches import batches_of
from benchmarks.records import Records
from benchmarks.workload_records import LABELS, made_records, records_of_file
from benchmarks.workloads import WORKLOADS
from nemo_launcher.data.templates import fill_template
from nemo_launcher.errors import UserError
from tests.benchmarks.bases import write_squad

pytestmark = pytest.mark.unit

BY_NAME = {workload.name: workload for workload in WORKLOADS}
MADE = [workload for workload in WORKLOADS if workload.fields]


@pytest.fixture(scope="module")
def squad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squad(tmp_path_factory.mktemp("squad") / "squad.json", paragraphs=80, length=120)


@pytest.fixture(scope="module")
def by_word() -> Tokenizer:
    """A tokenizer with one token for each word and punctuation mark."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture(scope="module")
def by_piece() -> Tokenizer:
    """A tokenizer with several tokens for most words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(["the"], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def words_of(text: str) -> list[str]:
    return text.replace(":", " :").split()


def prompts(records: Records) -> list[list[str]]:
    return [words_of(fill_template(records.template, one, nemo_compat=False)) for one in records.records]


def common_prefix(rows: list[list[str]]) -> int:
    return next(n for n, column in enumerate(zip(*rows, strict=False)) if len({*column}) > 1)


@pytest.mark.parametrize("workload", MADE, ids=lambda workload: workload.name)
def test_texts_have_their_lengths(workload, squad, by_word):
    records = made_records(workload, squad, by_word)

    assert len(records.records) == workload.records
    for name, text in workload.fields.items():
        values = [record[name] for record in records.records]
        assert (len({*values}) == 1) == text.shared
        if text.is_label:
            assert {*values} <= {*LABELS}
            continue
        parts = max(1, text.shots)
        for value in values:
            assert parts * text.low <= len(words_of(value)) <= parts * text.high


@pytest.mark.parametrize("workload", MADE, ids=lambda workload: workload.name)
def test_texts_are_whole_words_of_at_most_so_many_pieces(workload, squad, by_piece):
    """A word has up to seven pieces here, so a text may have that many fewer."""
    known = {*words_of(squad.read_text(encoding="utf-8").replace('"', " ")), *LABELS}

    for record in made_records(workload, squad, by_piece).records:
        for name, text in workload.fields.items():
            assert {*words_of(record[name])} - {"text", "label", ":"} <= known
            if not (text.is_label or text.shots):
                length = len(by_piece.encode(record[name]).ids)
                assert text.low - 8 <= length <= text.high


def test_every_workload_has_at_least_64_records_but_for_three():
    few = {workload.name: workload.records for workload in WORKLOADS if workload.records < 64}

    assert few == {"one_record": 1, "sixteen": 16, "generation_one": 1}


@pytest.mark.parametrize("name", ["classification", "sixteen"])
def test_classification_has_a_short_common_prefix(name, squad, by_word):
    assert 3 <= common_prefix(prompts(made_records(BY_NAME[name], squad, by_word))) <= 5


def test_the_instruction_is_the_common_prefix(squad, by_word):
    instruction = BY_NAME["instruction"].fields["instruction"]
    prefix = common_prefix(prompts(made_records(BY_NAME["instruction"], squad, by_word)))

    assert 120 <= instruction.low <= instruction.high <= 300
    assert instruction.low <= prefix <= instruction.high + 3


def test_eight_shots_are_the_common_prefix(squad, by_word):
    records = made_records(BY_NAME["few_shot"], squad, by_word)
    shots = words_of(records.records[0]["shots"])
    starts = [place for place, word in enumerate(shots) if word == "text"]
    lengths = [stop - start for start, stop in zip(starts, [*starts[1:], len(shots)], strict=True)]

    assert len(lengths) == 8
    assert all(60 <= length <= 120 for length in lengths)
    assert len(shots) <= common_prefix(prompts(records)) <= len(shots) + 3


def test_long_documents_share_nothing(squad, by_word):
    rows = prompts(made_records(BY_NAME["long_documents"], squad, by_word))

    assert len({tuple(row[:8]) for row in rows}) == len(rows)
    assert all(2000 <= len(row) <= 8192 for row in rows)


def test_the_same_seed_makes_the_same_records(squad, by_word):
    first, again = (made_records(BY_NAME["chat"], squad, by_word).records for _ in range(2))

    assert first == again


def test_questions_come_from_the_squad_file(squad, by_word):
    records = made_records(BY_NAME["squad"], squad, by_word)

    assert len(records.records) == 100
    assert len({record["context"] for record in records.records}) == 34  # three questions a paragraph


def test_records_come_from_a_file_of_ones_own(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"taskname": "mine", "text": "a", "label": "b"}) + "\n", encoding="utf-8")

    records = records_of_file(BY_NAME["classification"], path)

    assert list(records.records) == [{"text": "a", "label": "b"}]
    assert Records.load(records.save(tmp_path / "saved.json")) == records


def test_a_file_without_a_field_is_refused(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "a", "topic": "b"}\n', encoding="utf-8")

    with pytest.raises(UserError, match="no field 'label'"):
        records_of_file(BY_NAME["classification"], path)


def test_squad_files_of_ones_own_have_squads_format(squad):
    assert len(records_of_file(BY_NAME["squad"], squad).records) == 240


@pytest.mark.parametrize(("mode", "part", "expected"), [("default", 16, 16), ("best", 20, 24), ("plain", None, 64)])
def test_a_part_consists_of_whole_batches(mode, part, expected):
    batches = batches_of([*range(64)], 8, mode, part)

    assert [len(batch) for batch in batches] == [8] * (expected // 8)
    assert len({*chain(*batches)}) == expected


def test_the_best_batches_have_one_length_and_stand_for_all_lengths():
    lengths = [number * 7 % 64 for number in range(64)]
    batches = batches_of(lengths, 8, "best", 16)
    taken = sorted([lengths[index] for index in batch] for batch in batches)

    assert all(max(row) - min(row) == 7 for row in map(sorted, taken))
    assert [min(row) // 8 for row in taken] == [2, 6]
