# SPDX-License-Identifier: Apache-2.0
"""Generation with a T5: NVIDIA's tokens, caches without effect on results, and a complete evaluation job."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemo_launcher.adapters.archive import load_adapter, save_adapter
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.config.load import Loaded, load
from nemo_launcher.config.sections import Evaluation
from nemo_launcher.data.prompt_encoder import PromptSettings
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.prompting import answer_prompts
from nemo_launcher.evaluation.run import evaluate
from nemo_launcher.evaluation.sampling import Request, Sampling
from nemo_launcher.evaluation.session import Session
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.t5.samples import T5Sample
from tests import t5
from tests.shared import shared_path

pytestmark = pytest.mark.unit


def _by_full_forward(base: Base, sample: T5Sample, count: int) -> list[int]:
    """Generate greedily without any cache, until the end of text."""
    tokens = list(sample.decoder_ids)
    while len(tokens) <= count:
        logits = t5.logits_of(base, [dataclasses.replace(sample, decoder_ids=[*tokens, 0])])[-1]
        tokens.append(int(logits[: base.tokenizer.vocab_size].argmax()))
        if tokens[-1] == base.tokenizer.eos_id:
            return tokens[1:-1]
    return tokens[1:]


def _generate(base: Base, samples: Sequence[T5Sample], count: int, **options: Any) -> list[list[int]]:
    return generate(base, samples, Sampling(tokens_to_generate=count), **({"batch_size": 4} | options))


# --- NVIDIA's tokens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", t5.KINDS)
def test_tokens_and_texts_are_nemos(kind: str) -> None:
    oracle = t5.load_case(f"generate_{kind}_t5")
    base = load_base(shared_path("oracle/base_t5.nemo"))
    _, config = load_adapter(shared_path(f"oracle/{kind}_t5.nemo"), base)
    count = oracle["pred_ids"].size(1) - 1
    sampling = Sampling(tokens_to_generate=7).as_nemo(base.family.nemo_length(count))
    assert sampling.tokens_to_generate == count
    assert base.family.nemo_length(None) == oracle["decoder_seq_length_default"]
    encoder = base.family.prompt_encoder(
        base.tokenizer, base.shape, PromptSettings.read(config["data"]), nemo_compat=True, tokens_to_generate=count
    )
    template = TaskTemplate.from_config(config["task_templates"][0])
    samples = [encoder.encode(record, template) for record in oracle["prompts"]]
    wanted_prompts = [
        row[mask.bool()].tolist() for row, mask in zip(oracle["enc_input"], oracle["enc_mask"], strict=True)
    ]
    assert [sample.input_ids for sample in samples] == wanted_prompts
    tokens = _generate(base, samples, count)
    found = [[*sample.decoder_ids, *new] for sample, new in zip(samples, tokens, strict=True)]
    assert found == oracle["pred_ids"].tolist()
    assert [base.family.text(base.tokenizer, ids) for ids in tokens] == oracle["preds_text"]
    assert [base.family.text(base.tokenizer, sample.input_ids) for sample in samples] == oracle["input_text"]


# --- caches -----------------------------------------------------------------------------------------------------


def test_caches_and_company_change_no_token(tmp_path: Path) -> None:
    """The base alone; with adapters: tests/conformance/methods."""
    base = load_base(t5.tiny_base(tmp_path / "base.nemo", seed=3))
    samples = [dataclasses.replace(sample, decoder_ids=[0]) for sample in t5.random_samples(9, seed=4)]
    together = _generate(base, samples, 12)
    assert together == [_by_full_forward(base, sample, 12) for sample in samples]
    assert together == [_generate(base, [sample], 12)[0] for sample in samples]
    assert len({len(tokens) for tokens in together}) > 1  # samples end at different steps


def test_learned_positions_are_followed_step_by_step() -> None:
    base = load_base(shared_path("oracle/base_t5.nemo"))
    samples = t5.random_samples(3, start=1, vocabulary=90)
    samples = [dataclasses.replace(sample, decoder_ids=[1]) for sample in samples]
    assert _generate(base, samples, 15) == [_by_full_forward(base, sample, 15) for sample in samples]


def test_before_the_minimum_nothing_ends(tmp_path: Path) -> None:
    base = load_base(t5.tiny_base(tmp_path / "base.nemo", seed=3))
    samples = [dataclasses.replace(sample, decoder_ids=[0]) for sample in t5.random_samples(9, seed=4)]
    sampling = Sampling(tokens_to_generate=6, min_tokens_to_generate=6)
    assert {len(tokens) for tokens in generate(base, samples, sampling, batch_size=4)} == {6}


# --- jobs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return a base, an adapter for it and a folder with data."""
    base_path, adapter_path = t5.tiny_base(tmp_path / "base.nemo"), tmp_path / "adapter.nemo"
    data = t5.write_data(tmp_path / "data")
    config = t5.training_config(base_path, data, tmp_path)["model"]
    base = load_base(base_path)
    adapters = AdapterSet(base.model, base.shape, config)
    save_adapter(adapter_path, dict(config), adapters.state_dict())
    return base_path, adapter_path, data


def _job(config: Any) -> Loaded[Evaluation]:
    values: Any = OmegaConf.to_container(config, resolve=True)
    return load(values, Evaluation)


def test_the_evaluation_job_writes_its_three_files(job: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base_path, adapter_path, data = job
    evaluate(_job(t5.evaluation_config(base_path, adapter_path, data, tmp_path / "out")))
    lines = (tmp_path / "out" / "predictions.txt").read_text().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("context : carl is in the inn question : where is carl answer : ")
    records = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [record["prediction"] for record in records] == [line.split("answer :")[-1].strip() for line in lines]
    metric = json.loads((tmp_path / "out" / "squad_metric.json").read_text())
    assert metric["total"] == 4
    assert (tmp_path / "out" / "base_squad_metric.json").is_file()


def test_nemo_generates_its_own_length_and_from_bos(job: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base_path, adapter_path, data = job
    config = t5.evaluation_config(base_path, adapter_path, data, tmp_path / "out", nemo_compat=True)
    with pytest.raises(UserError, match="the decoder would start with BOS, but the tokenizer has no such token"):
        evaluate(_job(config))
    sampling = Sampling(tokens_to_generate=8, greedy=False, min_tokens_to_generate=3)
    wanted = Sampling(tokens_to_generate=40, greedy=True, min_tokens_to_generate=0)
    assert sampling.as_nemo(load_base(base_path).family.nemo_length(None)) == wanted


def test_prompts_of_ones_own_are_answered(job: tuple[Path, Path, Path]) -> None:
    base_path, adapter_path, _ = job
    prompts = ["context : anna is in the den question : where is anna answer :", "where"]
    request = Request(Sampling(tokens_to_generate=5), batch_size=2)
    session = Session.open(base_path, adapter_path, precision="32", settings=[])
    assert [answer["prompt"] for answer in answer_prompts(session, prompts, request)] == prompts
    with pytest.raises(UserError, match=r"--prompt 1: has \d+ tokens; 1 to 512 fit"):
        answer_prompts(session, ["a " * 600], request)
    bare = Session.open(base_path, None, precision="32", settings=[])
    with pytest.raises(UserError, match="decoder_starts_with_pad: True"):
        answer_prompts(bare, prompts, request)
    settings = ["data.decoder_starts_with_pad=True"]
    with_pad = Session.open(base_path, None, precision="32", settings=settings)
    assert len(answer_prompts(with_pad, prompts, request)) == 2
