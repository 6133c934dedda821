# SPDX-License-Identifier: Apache-2.0
"""What a launch and a job say about data: lengths, duplicates, records that two sets have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.data.common_samples import common_samples
from nemo_launcher.data.tokenizers import load_tokenizer
from nemo_launcher.families.gpt.prompts import GPTSample
from nemo_launcher.launcher import data_facts
from nemo_launcher.launcher.data_facts import COMPARED_RECORDS, describe_data
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stages import AdapterLearning
from tests.engine import TEMPLATE, squad_records, write_jsonl
from tests.jobs import job_config

pytestmark = pytest.mark.unit


def lines(base: Path, folder: Path, train: list[dict[str, Any]], validation: list[dict[str, Any]]) -> list[str]:
    write_jsonl(folder / "squad_train.jsonl", train)
    write_jsonl(folder / "squad_val.jsonl", validation)
    stage = AdapterLearning(job_config(base, folder, folder), "llama/squad", "/data")
    return describe_data(stage, [stage], LaunchProbe())


def distinct(count: int) -> list[dict[str, Any]]:
    return [record | {"question": f"which {number}?"} for number, record in enumerate(squad_records(count))]


def test_nothing_is_said_about_duplicates_if_there_are_none(tiny_base: Path, tmp_path: Path) -> None:
    (line,) = lines(tiny_base, tmp_path, distinct(20)[:15], distinct(20)[15:])
    assert line.startswith("adapter_learning: 15 training records of about ")


def test_the_lengths_are_those_of_the_samples(tiny_base: Path, tmp_path: Path) -> None:
    """With the end of text, as the job trains them."""
    records = distinct(15)
    (line, *_) = lines(tiny_base, tmp_path, records, distinct(20)[15:])
    with Archive(tiny_base) as archive:
        tokenizer = load_tokenizer(archive)
    whole = [len(tokenizer.text_to_ids(TEMPLATE.format(**record))) + 1 for record in records]
    answers = [len(tokenizer.text_to_ids(record["answer"])) + 1 for record in records]
    assert line.partition(" of about ")[2].startswith(
        f"{sum(whole) / 15:,.0f} tokens (longest {max(whole)}), {sum(answers) / 15:,.0f} in the loss"
    )


def test_duplicates_and_common_prompts_are_told(tiny_base: Path, tmp_path: Path) -> None:
    records = distinct(20)
    other_answer = records[3] | {"answer": "another"}
    found = lines(tiny_base, tmp_path, [*records, records[0], records[1]], [records[2], other_answer, distinct(21)[20]])
    assert found[1].startswith("adapter_learning: in the training data: 2 duplicates, 2 of 3 validation prompts")


def test_larger_data_is_left_to_the_job(tiny_base: Path, tmp_path: Path) -> None:
    records = distinct(4) * (COMPARED_RECORDS // 4 + 1)
    assert len(lines(tiny_base, tmp_path, records, records[:4])) == 1


def test_absent_data_is_not_described(tiny_base: Path, tmp_path: Path) -> None:
    stage = AdapterLearning(job_config(tiny_base, tmp_path / "no", tmp_path), "llama/squad", "/data")
    assert describe_data(stage, [stage], LaunchProbe()) == []


def test_runs_of_a_sweep_with_the_same_data_compare_it_once(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines(tiny_base, tmp_path, distinct(9)[:8], distinct(9)[8:])
    stage = AdapterLearning(job_config(tiny_base, tmp_path, tmp_path), "llama/squad", "/data")
    probe, read = LaunchProbe(), []
    original = data_facts.read_records
    monkeypatch.setattr(data_facts, "read_records", lambda path, *rest: read.append(path) or original(path, *rest))
    assert describe_data(stage, [stage], probe) == describe_data(stage, [stage], probe)
    assert len(read) == 2


def test_the_job_compares_samples() -> None:
    samples = [GPTSample([1, 2, number], 2, {}, f"a:{number}") for number in (1, 2, 3, 2)]
    found = common_samples(samples, [samples[0], GPTSample([1, 2, 9], 2, {}, "b:1")])
    assert [line.partition(" (")[0] for line in found] == [
        "1 of 4 training samples equal an earlier one",
        "1 of 2 validation samples are also training samples",
    ]
    assert common_samples(samples[:3], []) == []
